//! Splitting a stream into reads does not change its messages.

use proptest::collection::vec;
use proptest::prelude::*;
use switchboard::ws::{Decoder, Role};

use crate::cases;
use crate::stream::{
    BINARY, CLOSE, CONTINUATION, FIN, Outcome, PING, PONG, RSV1, TEXT, bytes_of, close_payload,
    conversation, decode_reads, frame, text_of,
};

const MAX: usize = 1 << 17;

fn decoder(role: Role) -> Decoder {
    let mut decoder = Decoder::new(role, MAX);
    decoder.allow_deflate();
    decoder
}

/// Returns streams with every construct, and some that break a rule in the middle.
fn streams(reader: Role) -> Vec<Vec<u8>> {
    let frame = |first, payload: &[u8]| frame(reader, first, payload);
    let good = [
        frame(FIN | TEXT, text_of(60, 0).as_bytes()),
        frame(FIN | PING, b"are you there"),
        frame(TEXT, &"größer 😀".as_bytes()[..3]),
        frame(FIN | PONG, b""),
        frame(CONTINUATION, &"größer 😀".as_bytes()[3..11]),
        frame(CONTINUATION, b""),
        frame(FIN | PING, &bytes_of(125, 9)),
        frame(FIN | CONTINUATION, &"größer 😀".as_bytes()[11..]),
        frame(FIN | RSV1 | BINARY, b"deflated"),
        frame(RSV1 | TEXT, b"defl"),
        frame(FIN | CONTINUATION, b"ated"),
        frame(FIN | BINARY, &bytes_of(300, 5)),
        frame(FIN | TEXT, b""),
    ]
    .concat();
    let closed = [
        good.clone(),
        frame(FIN | CLOSE, &close_payload(1000, "bye")),
        frame(FIN | TEXT, b"after the end"),
    ];
    let with = |bad: Vec<u8>| [good.clone(), bad, frame(FIN | TEXT, b"not heard")].concat();
    vec![
        closed.concat(),
        with(frame(FIN | TEXT, b"valid \xF0\x9F\x98\x80 and not \xC3\x28")),
        with([frame(TEXT, b"half \xE2\x82"), frame(FIN | CONTINUATION, b"\x28")].concat()),
        with(frame(FIN | CONTINUATION, b"of nothing")),
        with(frame(FIN | 0x3, b"reserved")),
        with(frame(PING, b"in two")),
        with(frame(FIN | CLOSE, &close_payload(1005, ""))),
        with([frame(TEXT, b"begun"), frame(FIN | TEXT, b"interrupted")].concat()),
        good[..good.len() - 200].to_vec(),
    ]
}

#[test]
fn no_single_split_changes_what_is_heard() {
    for reader in [Role::Server, Role::Client] {
        for stream in streams(reader) {
            let whole = decode_reads(&mut decoder(reader), [stream.as_slice()]);
            for at in 0..=stream.len() {
                let (one, other) = stream.split_at(at);
                let split = decode_reads(&mut decoder(reader), [one, other]);
                assert_same(&split, &whole, &format!("split at {at}"));
            }
        }
    }
}

#[test]
fn no_two_splits_change_what_is_heard() {
    let stream = [
        frame(Role::Server, TEXT, "a😀".as_bytes()),
        frame(Role::Server, FIN | PING, b"p"),
        frame(Role::Server, FIN | CONTINUATION, "€".as_bytes()),
        frame(Role::Server, FIN | BINARY, &bytes_of(126, 0)),
    ]
    .concat();
    let whole = decode_reads(&mut decoder(Role::Server), [stream.as_slice()]);
    assert_eq!((whole.said.len(), whole.violation), (3, None));
    for from in 0..stream.len() {
        for to in from..stream.len() {
            let reads = [&stream[..from], &stream[from..to], &stream[to..]];
            let split = decode_reads(&mut decoder(Role::Server), reads);
            assert_same(&split, &whole, &format!("splits at {from} and {to}"));
        }
    }
}

#[test]
fn reads_of_equal_size_change_nothing() {
    for reader in [Role::Server, Role::Client] {
        for stream in streams(reader) {
            let whole = decode_reads(&mut decoder(reader), [stream.as_slice()]);
            for len in 1..20 {
                let split = decode_reads(&mut decoder(reader), stream.chunks(len));
                assert_same(&split, &whole, &format!("reads of {len}"));
            }
        }
    }
}

/// Checks for the same messages and the same violation. A violation may be detected before all
/// of its frame is here, so the bytes consumed by then may differ.
fn assert_same(split: &Outcome, whole: &Outcome, how: &str) {
    assert_eq!(split.said, whole.said, "{how}");
    assert_eq!(split.violation, whole.violation, "{how}");
    if whole.violation.is_none() {
        assert_eq!(split.consumed, whole.consumed, "{how}");
    }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn random_reads_change_nothing(
        conversation in conversation(Role::Server, 8),
        lens in vec(prop_oneof![1usize..20, 1usize..5_000], 1..50),
    ) {
        let mut rest = conversation.stream.as_slice();
        let reads = lens.iter().cycle().map_while(|&len| {
            let (read, after) = rest.split_at(len.min(rest.len()));
            rest = after;
            (!read.is_empty()).then_some(read)
        });
        let split = decode_reads(&mut decoder(Role::Server), reads);
        prop_assert_eq!(split.violation, None);
        prop_assert_eq!(split.said, conversation.said);
    }
}
