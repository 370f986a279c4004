//! Each end decodes what the other end encodes.

use proptest::collection::vec;
use proptest::prelude::*;
use switchboard::ws::{
    CloseCode, CloseFrame, Opcode, Role, write_client_frame, write_close, write_header,
    write_header_reserved, write_server_frame,
};

use crate::cases;
use crate::stream::{Said, bytes_of, conversation, decode, decode_reads, text_of};

/// Lengths around every border between two forms of the length, and well inside each.
const LENS: [usize; 12] =
    [0, 1, 2, 124, 125, 126, 127, 1_000, 65_535, 65_536, 65_537, (1 << 20) + 3];

fn write(reader: Role, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match reader {
        Role::Server => write_client_frame(&mut out, opcode, payload, [0xA5, 0x00, 0xFF, 0x3C]),
        Role::Client => write_server_frame(&mut out, opcode, payload),
    }
    out
}

#[test]
fn a_message_of_any_size_is_heard_as_it_was_written() {
    for reader in [Role::Server, Role::Client] {
        for len in LENS {
            let (text, bytes) = (text_of(len, 1), bytes_of(len, 2));
            let outcome = decode(reader, len, &write(reader, Opcode::Text, text.as_bytes()));
            assert_eq!(outcome.said, [Said::Text(text)], "{reader:?} {len}");
            let outcome = decode(reader, len, &write(reader, Opcode::Binary, &bytes));
            assert_eq!(outcome.said, [Said::Binary(bytes)], "{reader:?} {len}");
        }
    }
}

#[test]
fn control_frames_of_any_size_are_heard_whatever_the_message_limit() {
    for reader in [Role::Server, Role::Client] {
        for len in [0, 1, 124, 125] {
            let payload = bytes_of(len, 7);
            let stream = [
                write(reader, Opcode::Ping, &payload),
                write(reader, Opcode::Pong, &payload),
                write(reader, Opcode::Close, b""),
            ];
            let outcome = decode(reader, 0, &stream.concat());
            assert_eq!(
                outcome.said,
                [Said::Ping(payload.clone()), Said::Pong(payload), Said::Close(None)]
            );
        }
    }
}

#[test]
fn a_close_frame_is_heard_with_its_code_and_reason() {
    for code in [CloseCode::NORMAL, CloseCode::GOING_AWAY, CloseCode::TOO_SLOW] {
        for reason in ["", "bye", "auf Wiederschauen, äöü 😀", &"x".repeat(123)] {
            let mut stream = Vec::new();
            write_close(&mut stream, code, reason);
            let frame = CloseFrame { code, reason: reason.to_owned() };
            assert_eq!(decode(Role::Client, 0, &stream).said, [Said::Close(Some(frame))]);
        }
    }
}

#[test]
fn a_header_written_apart_from_its_payload_is_the_same_frame() {
    for len in LENS {
        let payload = bytes_of(len, 3);
        let mut whole = Vec::new();
        write_server_frame(&mut whole, Opcode::Binary, &payload);
        let mut parts = Vec::new();
        write_header(&mut parts, Opcode::Binary, len);
        let header_len = parts.len();
        parts.extend(&payload);
        assert_eq!(parts, whole);
        let mut compressed = Vec::new();
        write_header_reserved(&mut compressed, Opcode::Binary, len);
        assert_eq!(compressed[0], whole[0] | 0x40);
        assert_eq!(compressed[1..], whole[1..header_len]);
    }
}

#[test]
fn a_compressed_message_is_handed_on_as_it_came_once_that_was_agreed_on() {
    let mut stream = Vec::new();
    write_header_reserved(&mut stream, Opcode::Text, 3);
    stream.extend([0xFF, 0xFE, 0xFD]);
    let mut decoder = switchboard::ws::Decoder::new(Role::Client, 100);
    decoder.allow_deflate();
    let outcome = decode_reads(&mut decoder, [stream.as_slice()]);
    let payload = vec![0xFF, 0xFE, 0xFD];
    assert_eq!(outcome.said, [Said::Compressed { text: true, payload }]);
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn a_conversation_in_fragments_is_heard_whole(
        (reader, conversation) in prop_oneof![Just(Role::Server), Just(Role::Client)]
            .prop_flat_map(|reader| (Just(reader), conversation(reader, 12))),
    ) {
        let outcome = decode(reader, 1 << 17, &conversation.stream);
        prop_assert_eq!(outcome.violation, None);
        prop_assert_eq!(outcome.consumed, conversation.stream.len());
        prop_assert_eq!(outcome.said, conversation.said);
    }

    #[test]
    fn any_masking_key_is_undone(payload in vec(any::<u8>(), 0..200), key: [u8; 4]) {
        let mut stream = Vec::new();
        write_client_frame(&mut stream, Opcode::Binary, &payload, key);
        prop_assert_eq!(decode(Role::Server, 200, &stream).said, vec![Said::Binary(payload)]);
    }
}
