//! Each rule of RFC 6455 that a peer can break, and the close code that answers.

use switchboard::ws::{Decoder, Role, Violation};

use crate::stream::{
    BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, RSV1, Said, TEXT, close_payload, decode,
    decode_reads, frame,
};

const RSV2: u8 = 0x20;
const RSV3: u8 = 0x10;

/// Returns the rule broken by a client, with its section of RFC 6455; the bytes; the violation;
/// the close code.
fn wrongs() -> Vec<(&'static str, Vec<u8>, Violation, u16)> {
    let frame = |first, payload: &[u8]| frame(Role::Server, first, payload);
    let close = |payload: &[u8]| frame(FIN | CLOSE, payload);
    let then = |one: Vec<u8>, other: Vec<u8>| [one, other].concat();
    let begun = || frame(TEXT, b"begun");
    vec![
        ("5.2 RSV1", frame(FIN | RSV1 | TEXT, b"x"), Violation::ReservedBits, 1002),
        ("5.2 RSV2", frame(FIN | RSV2 | TEXT, b"x"), Violation::ReservedBits, 1002),
        ("5.2 RSV3", frame(FIN | RSV3 | BINARY, b"x"), Violation::ReservedBits, 1002),
        ("5.2 RSV1 on a ping", frame(FIN | RSV1 | PING, b""), Violation::ReservedBits, 1002),
        ("5.2 RSV2 on a close", frame(FIN | RSV2 | CLOSE, b""), Violation::ReservedBits, 1002),
        (
            "5.2 RSV1 on a continuation",
            then(begun(), frame(FIN | RSV1 | CONTINUATION, b"")),
            Violation::ReservedBits,
            1002,
        ),
        ("5.2 opcode 3", frame(FIN | 0x3, b""), Violation::ReservedOpcode(0x3), 1002),
        ("5.2 opcode 7", frame(FIN | 0x7, b"x"), Violation::ReservedOpcode(0x7), 1002),
        ("5.2 opcode B", frame(FIN | 0xB, b""), Violation::ReservedOpcode(0xB), 1002),
        ("5.2 opcode F", frame(FIN | 0xF, b"x"), Violation::ReservedOpcode(0xF), 1002),
        ("5.1 no mask", vec![FIN | TEXT, 0], Violation::Unmasked, 1002),
        ("5.4 ping in fragments", frame(PING, b""), Violation::FragmentedControl, 1002),
        ("5.4 close in fragments", frame(CLOSE, b""), Violation::FragmentedControl, 1002),
        ("5.5 long ping", frame(FIN | PING, &[0; 126]), Violation::LongControl, 1002),
        ("5.5 long pong", frame(FIN | PONG, &[0; 70_000]), Violation::LongControl, 1002),
        (
            "5.5 long close",
            close(&close_payload(1000, &"x".repeat(124))),
            Violation::LongControl,
            1002,
        ),
        ("5.2 16 bits for 125", length(126, 125), Violation::LengthNotMinimal, 1002),
        ("5.2 16 bits for 0", length(126, 0), Violation::LengthNotMinimal, 1002),
        ("5.2 64 bits for 0", length(127, 0), Violation::LengthNotMinimal, 1002),
        ("5.2 64 bits for 65535", length(127, 65_535), Violation::LengthNotMinimal, 1002),
        ("5.2 top bit", length(127, 1 << 63), Violation::LengthOutOfRange, 1002),
        ("5.2 all bits", length(127, u64::MAX), Violation::LengthOutOfRange, 1002),
        ("5.4 nothing to continue", frame(FIN, b"x"), Violation::NothingToContinue, 1002),
        (
            "5.4 nothing to go on with",
            frame(CONTINUATION, b"x"),
            Violation::NothingToContinue,
            1002,
        ),
        (
            "5.4 continued after its end",
            then(frame(FIN | TEXT, b"whole"), frame(FIN | CONTINUATION, b"x")),
            Violation::NothingToContinue,
            1002,
        ),
        ("5.4 interrupted", then(begun(), frame(FIN | TEXT, b"x")), Violation::Interrupted, 1002),
        ("5.4 begun twice", then(begun(), frame(BINARY, b"x")), Violation::Interrupted, 1002),
        ("5.5.1 half a code", close(&[3]), Violation::ClosePayload, 1002),
        ("5.5.1 reason", close(b"\x03\xE8\xFF"), Violation::NotUtf8, 1007),
        ("5.6 text", frame(FIN | TEXT, b"\xFF"), Violation::NotUtf8, 1007),
        ("10.4 too big", frame(FIN | BINARY, &[0; 101]), Violation::TooBig { max: 100 }, 1009),
    ]
}

/// Returns a client's empty text frame whose header declares a length in this form.
fn length(form: u8, len: u64) -> Vec<u8> {
    let mut out = vec![FIN | TEXT, 0x80 | form];
    match form {
        126 => out.extend((len as u16).to_be_bytes()),
        _ => out.extend(len.to_be_bytes()),
    }
    out.extend([0; 4]);
    out
}

#[test]
fn each_broken_rule_is_told_and_has_its_close_code() {
    for (rule, stream, violation, code) in wrongs() {
        let stream = [frame(Role::Server, FIN | PING, b"before"), stream].concat();
        let outcome = decode(Role::Server, 100, &stream);
        assert_eq!(outcome.violation, Some(violation), "{rule}");
        assert_eq!(outcome.said[0], Said::Ping(b"before".to_vec()), "{rule}");
        assert_eq!(violation.close_code().0, code, "{rule}");
        assert!(violation.close_code().may_be_sent(), "{rule}");
        assert!(violation.to_string().len() <= 123, "{rule}: a close frame holds its reason");
    }
}

#[test]
fn a_wrong_header_is_told_without_awaiting_its_payload() {
    for (rule, stream, violation, _) in wrongs() {
        let by_payload = matches!(violation, Violation::NotUtf8 | Violation::ClosePayload);
        let by_second_frame = stream.starts_with(&frame(Role::Server, TEXT, b"begun"))
            || stream.starts_with(&frame(Role::Server, FIN | TEXT, b"whole"));
        if !by_payload && !by_second_frame {
            let header = &stream[..stream.len().min(14)];
            assert_eq!(decode(Role::Server, 100, header).violation, Some(violation), "{rule}");
        }
    }
}

#[test]
fn the_compression_bit_counts_only_where_a_message_begins() {
    let frame = |first, payload: &[u8]| frame(Role::Server, first, payload);
    for stream in [
        frame(FIN | RSV1 | PING, b""),
        [frame(RSV1 | TEXT, b"a"), frame(FIN | RSV1 | CONTINUATION, b"b")].concat(),
        [frame(TEXT, b"a"), frame(FIN | RSV1 | CONTINUATION, b"b")].concat(),
    ] {
        let mut decoder = Decoder::new(Role::Server, 100);
        decoder.allow_deflate();
        let outcome = decode_reads(&mut decoder, [stream.as_slice()]);
        assert_eq!(outcome.violation, Some(Violation::ReservedBits), "{stream:X?}");
    }
}

#[test]
fn a_server_that_masks_breaks_a_rule_too() {
    let stream = frame(Role::Server, FIN | TEXT, b"masked");
    assert_eq!(decode(Role::Client, 100, &stream).violation, Some(Violation::Masked));
    assert_eq!(Violation::Masked.close_code().0, 1002);
}

#[test]
fn of_all_close_codes_those_pass_that_may_be_sent() {
    for code in 0..=u16::MAX {
        // RFC 6455 section 7.4 and its IANA registry: 1004 is reserved, 1005, 1006 and 1015 never
        // travel; 1012 to 1014 were registered later.
        let may = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        let outcome =
            decode(Role::Server, 0, &frame(Role::Server, FIN | CLOSE, &code.to_be_bytes()));
        match may {
            true => assert_eq!(outcome.said, [Said::close(code)]),
            false => assert_eq!(outcome.violation, Some(Violation::CloseCode(code))),
        }
    }
    assert_eq!(Violation::CloseCode(1005).close_code().0, 1002);
}

#[test]
fn after_a_close_frame_nothing_is_read() {
    let close = frame(Role::Server, FIN | CLOSE, &close_payload(1000, "bye"));
    let stream = [close.clone(), frame(Role::Server, FIN | TEXT, b"late")].concat();
    let outcome = decode(Role::Server, 100, &stream);
    assert_eq!((outcome.said.len(), outcome.consumed), (1, close.len()));
}
