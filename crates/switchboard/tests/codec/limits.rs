//! `max_message_bytes` is exact to the byte, and is checked before a payload is read.

use switchboard::ws::{CloseCode, Decoder, Role, Violation};

use crate::stream::{
    BINARY, CONTINUATION, FIN, Outcome, PING, RSV1, Said, TEXT, bytes_of, decode, frame,
};

const MAXES: [usize; 7] = [0, 1, 125, 126, 1_000, 65_535, 65_536];

#[test]
fn a_message_of_the_limit_passes_and_one_byte_more_does_not() {
    for reader in [Role::Server, Role::Client] {
        for max in MAXES {
            let fits = bytes_of(max, 0);
            let outcome = decode(reader, max, &frame(reader, FIN | BINARY, &fits));
            assert_eq!(outcome.said, [Said::Binary(fits)]);
            let outcome = decode(reader, max, &frame(reader, FIN | BINARY, &bytes_of(max + 1, 0)));
            assert_eq!((outcome.said, outcome.violation), (vec![], Some(too_big(max))));
        }
    }
}

#[test]
fn a_declared_length_is_judged_before_any_payload_arrives() {
    for max in MAXES {
        for declared in [max + 1, max + 1_000] {
            let stream = frame(Role::Server, FIN | TEXT, &bytes_of(declared, 0));
            let header = &stream[..stream.len() - declared];
            assert_eq!(decode(Role::Server, max, header).violation, Some(too_big(max)));
            let early = &header[..header.len() - 1];
            assert_eq!(decode(Role::Server, max, early), begun(early.len()));
        }
    }
}

#[test]
fn fragments_count_together() {
    for max in [1, 125, 126, 1_000] {
        let fragments = |last: usize| {
            [
                frame(Role::Server, BINARY, &bytes_of(max / 2, 0)),
                frame(Role::Server, FIN | PING, &bytes_of(125, 0)),
                frame(Role::Server, FIN | CONTINUATION, &bytes_of(last, 0)),
            ]
            .concat()
        };
        let fits = decode(Role::Server, max, &fragments(max - max / 2));
        assert_eq!(fits.violation, None);
        assert!(matches!(fits.said.last(), Some(Said::Binary(all)) if all.len() == max));
        let over = fragments(max - max / 2 + 1);
        let header_only = &over[..over.len() - (max - max / 2 + 1)];
        assert_eq!(decode(Role::Server, max, header_only).violation, Some(too_big(max)));
    }
}

#[test]
fn the_limit_starts_anew_with_each_message() {
    let one = frame(Role::Server, FIN | BINARY, &bytes_of(100, 0));
    let two = [
        frame(Role::Server, BINARY, &bytes_of(60, 0)),
        frame(Role::Server, FIN | CONTINUATION, &bytes_of(40, 60)),
    ]
    .concat();
    let outcome = decode(Role::Server, 100, &[one.clone(), two.clone(), one, two].concat());
    assert_eq!(outcome.said, vec![Said::Binary(bytes_of(100, 0)); 4]);
}

#[test]
fn a_compressed_message_is_bounded_as_it_comes() {
    let mut decoder = Decoder::new(Role::Server, 10);
    decoder.allow_deflate();
    let mut outcome = Outcome::default();
    outcome.feed(&mut decoder, &frame(Role::Server, FIN | RSV1 | TEXT, &bytes_of(11, 0)));
    assert_eq!(outcome.violation, Some(too_big(10)));
}

#[test]
fn no_length_overflows_the_sum_of_fragments() {
    let mut stream = frame(Role::Client, BINARY, b"some");
    stream.extend([FIN | CONTINUATION, 127]);
    stream.extend((u64::MAX >> 1).to_be_bytes());
    let max = usize::MAX;
    let outcome = decode(Role::Client, max, &stream);
    // A decoder stores no limit above 4 GiB.
    assert_eq!(outcome.violation, Some(Violation::TooBig { max: u32::MAX }));
}

#[test]
fn too_big_closes_with_1009_and_names_the_limit() {
    assert_eq!(too_big(17).close_code(), CloseCode::MESSAGE_TOO_BIG);
    assert!(too_big(17).to_string().contains("17"));
}

fn too_big(max: usize) -> Violation {
    Violation::TooBig { max: u32::try_from(max).expect("a small limit") }
}

fn begun(consumed: usize) -> Outcome {
    Outcome { consumed, ..Outcome::default() }
}
