//! Comparison with tungstenite, an independent implementation: each side reads what the other
//! writes, and rejects what the other rejects.
//!
//! Known differences, each covered by a test here:
//!
//! - tungstenite accepts a payload length in a longer form than necessary; RFC 6455 section 5.2
//!   requires the shortest form, so we reject it.
//! - tungstenite checks a frame when all of it has arrived, we as soon as it is certainly wrong.
//! - tungstenite reports a close frame with a forbidden code as one with code 1002; we reject it
//!   with 1002.
//! - tungstenite does not know close code 1014 (Bad Gateway, registered at IANA); we do.

use std::io::{self, Cursor, Read, Write};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use switchboard::ws::{
    CloseCode, CloseFrame, Opcode, Role, Violation, write_client_frame, write_close,
    write_server_frame,
};
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame as TheirCloseFrame, Frame};
use tungstenite::protocol::{Role as TheirRole, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket, error::ProtocolError};

use crate::cases;
use crate::damage::damage;
use crate::stream::{
    BINARY, CLOSE, FIN, Outcome, PING, Said, TEXT, bytes_of, close_payload, conversation, decode,
    frame, text_of,
};

const MAX: usize = 1 << 17;

/// A connection in memory: its input is given, its output is kept.
#[derive(Default)]
struct Wire {
    comes: Cursor<Vec<u8>>,
    goes: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.comes.read(out)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.goes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn theirs(role: Role, max: usize, comes: Vec<u8>) -> WebSocket<Wire> {
    let role = match role {
        Role::Server => TheirRole::Server,
        Role::Client => TheirRole::Client,
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .max_message_size(Some(max))
        .max_frame_size(Some(max));
    let wire = Wire { comes: Cursor::new(comes), goes: Vec::new() };
    WebSocket::from_raw_socket(wire, role, Some(config))
}

/// The way in which a stream ends for tungstenite.
#[derive(Debug, PartialEq)]
enum End {
    /// It waits for more bytes.
    Waits,
    Closed,
    Refused,
}

/// Returns everything that tungstenite reads from a stream, and how that ended.
fn heard_by_theirs(role: Role, max: usize, stream: &[u8]) -> (Vec<Said>, End) {
    let mut socket = theirs(role, max, stream.to_vec());
    let mut said = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => said.push(Said::text(&text)),
            Ok(Message::Binary(payload)) => said.push(Said::Binary(payload.to_vec())),
            Ok(Message::Ping(payload)) => said.push(Said::Ping(payload.to_vec())),
            Ok(Message::Pong(payload)) => said.push(Said::Pong(payload.to_vec())),
            Ok(Message::Close(frame)) => {
                // tungstenite's text for a forbidden code.
                if frame.as_ref().is_some_and(|frame| frame.reason == "Protocol violation") {
                    return (said, End::Refused);
                }
                said.push(Said::Close(frame.map(|frame| CloseFrame {
                    code: CloseCode(frame.code.into()),
                    reason: frame.reason.to_string(),
                })));
                return (said, End::Closed);
            }
            Ok(Message::Frame(frame)) => panic!("reading gives no bare frames: {frame}"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return (said, End::Waits);
            }
            Err(Error::Protocol(_) | Error::Utf8(_) | Error::Capacity(_)) => {
                return (said, End::Refused);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Returns everything that our decoder reads from a stream, in tungstenite's terms.
fn heard_by_ours(role: Role, max: usize, stream: &[u8]) -> (Vec<Said>, End, Option<Violation>) {
    let Outcome { mut said, violation, .. } = decode(role, max, stream);
    said.retain(|said| *said != Said::EmptyFragment);
    let end = match (violation, said.last()) {
        (Some(_), _) => End::Refused,
        (None, Some(Said::Close(_))) => End::Closed,
        (None, _) => End::Waits,
    };
    (said, end, violation)
}

/// Checks that both read the same from a stream and end alike, except for the known differences.
fn agree(role: Role, max: usize, stream: &[u8]) {
    let (ours, our_end, violation) = heard_by_ours(role, max, stream);
    let (theirs, their_end) = heard_by_theirs(role, max, stream);
    match violation {
        Some(Violation::LengthNotMinimal) => {
            assert_eq!(theirs.get(..ours.len()), Some(ours.as_slice()));
        }
        _ if closes_with_1014(&ours) => assert_eq!(their_end, End::Refused),
        _ => assert_eq!((ours, our_end), (theirs, their_end), "{violation:?}"),
    }
}

fn closes_with_1014(said: &[Said]) -> bool {
    matches!(said.last(), Some(Said::Close(Some(frame))) if frame.code.0 == 1014)
}

/// Returns enough bytes to complete any frame within the limit, and then to break a rule: so
/// tungstenite, too, gets to check a frame that is wrong from its start.
fn padding(max: usize) -> Vec<u8> {
    vec![0; max + 64]
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn a_conversation_is_heard_alike(
        (role, conversation) in prop_oneof![Just(Role::Server), Just(Role::Client)]
            .prop_flat_map(|role| (Just(role), conversation(role, 8))),
    ) {
        agree(role, MAX, &conversation.stream);
        // Both reach the limit at the same message.
        agree(role, 128, &conversation.stream);
    }

    #[test]
    fn a_damaged_conversation_is_judged_alike(
        conversation in conversation(Role::Server, 4),
        damages in vec(damage(), 1..4),
    ) {
        let mut stream = conversation.stream;
        for damage in damages {
            damage.apply(&mut stream);
        }
        stream.extend(padding(MAX));
        agree(Role::Server, MAX, &stream);
    }

    #[test]
    fn random_frames_are_judged_alike(
        frames in vec((any::<u8>(), vec(any::<u8>(), 0..140)), 1..6),
        role in prop_oneof![Just(Role::Server), Just(Role::Client)],
    ) {
        let mut stream: Vec<u8> =
            frames.iter().flat_map(|(first, payload)| frame(role, *first, payload)).collect();
        stream.extend(padding(200));
        agree(role, 200, &stream);
    }

    #[test]
    fn frames_that_are_nearly_right_are_judged_alike(
        frames in vec(nearly_right(), 1..10),
        role in prop_oneof![Just(Role::Server), Just(Role::Client)],
    ) {
        let mut stream: Vec<u8> =
            frames.iter().flat_map(|(first, payload)| frame(role, *first, payload)).collect();
        stream.extend(padding(200));
        agree(role, 200, &stream);
    }

    #[test]
    fn what_their_client_writes_we_read(
        messages in vec((any::<bool>(), 0usize..300, vec(any::<Index>(), 0..4)), 1..8),
    ) {
        let mut client = theirs(Role::Client, MAX, Vec::new());
        let mut expected = Vec::new();
        for (is_text, len, cuts) in &messages {
            let said = match is_text {
                true => Said::Text(text_of(*len, *len as u8)),
                false => Said::Binary(bytes_of(*len, 0)),
            };
            write_by_theirs(&mut client, &said, cuts);
            client.send(Message::Ping(vec![*len as u8].into())).unwrap();
            expected.extend([said, Said::Ping(vec![*len as u8])]);
        }
        client.close(Some(TheirCloseFrame { code: 4001.into(), reason: "done".into() })).unwrap();
        let reason = "done".to_owned();
        expected.push(Said::Close(Some(CloseFrame { code: CloseCode(4001), reason })));
        let stream = &client.get_ref().goes;
        let (ours, _, violation) = heard_by_ours(Role::Server, MAX, stream);
        prop_assert_eq!(violation, None);
        prop_assert_eq!(&ours, &expected);
        prop_assert_eq!(heard_by_theirs(Role::Server, MAX, stream), (ours, End::Closed));
    }
}

/// Generates frames with mostly valid opcodes and bits, texts that are mostly UTF-8, and any
/// close code.
fn nearly_right() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let fin = prop_oneof![2 => Just(FIN), 1 => Just(0)];
    let data = (fin, 0u8..=2, "[aé€😀]{0,4}", 0usize..4).prop_map(|(fin, opcode, text, cut)| {
        let mut payload = text.into_bytes();
        payload.truncate(payload.len().saturating_sub(cut / 2));
        (fin | opcode, payload)
    });
    let reason = prop_oneof![Just("".to_owned()), "[aé]{0,60}", "x{120,123}"];
    let close = (990u16..1020, reason)
        .prop_map(|(code, reason)| (FIN | CLOSE, close_payload(code, &reason)));
    prop_oneof![
        12 => data,
        1 => close,
        2 => (PING..=PING + 1, vec(any::<u8>(), 0..4)).prop_map(|(opcode, payload)| (FIN | opcode, payload)),
        1 => (any::<u8>(), vec(any::<u8>(), 0..3)),
    ]
}

/// Writes a message through tungstenite, in one frame or, with cuts, in fragments.
fn write_by_theirs(socket: &mut WebSocket<Wire>, said: &Said, cuts: &[Index]) {
    let (opcode, payload) = match said {
        Said::Text(text) => (Data::Text, text.as_bytes()),
        Said::Binary(payload) => (Data::Binary, payload.as_slice()),
        other => panic!("{other:?} is no message"),
    };
    // An empty fragment is a separate event for us, and not a part of this test.
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
    cuts.retain(|cut| (1..payload.len()).contains(cut));
    cuts.sort_unstable();
    cuts.dedup();
    let (mut opcode, mut from) = (opcode, 0);
    for to in cuts.into_iter().chain([payload.len()]) {
        let fragment = payload[from..to].to_vec();
        let frame = Frame::message(fragment, OpCode::Data(opcode), to == payload.len());
        socket.send(Message::Frame(frame)).expect("memory takes it");
        (opcode, from) = (Data::Continue, to);
    }
}

#[test]
fn what_we_write_they_read() {
    for len in [0, 1, 125, 126, 1_000, 65_535, 65_536, MAX] {
        let (text, bytes) = (text_of(len, 1), bytes_of(len, 2));
        let ping = bytes_of(len.min(125), 3);
        let expected = [
            Said::text(&text),
            Said::Binary(bytes.clone()),
            Said::Ping(ping.clone()),
            Said::Pong(ping.clone()),
        ];
        let frames = [
            (Opcode::Text, text.as_bytes()),
            (Opcode::Binary, &bytes),
            (Opcode::Ping, &ping),
            (Opcode::Pong, &ping),
        ];
        let (mut from_server, mut from_client) = (Vec::new(), Vec::new());
        for (opcode, payload) in frames {
            write_server_frame(&mut from_server, opcode, payload);
            write_client_frame(&mut from_client, opcode, payload, [1, 2, 3, len as u8]);
        }
        let heard = heard_by_theirs(Role::Client, MAX, &from_server);
        assert_eq!(heard, (expected.to_vec(), End::Waits), "{len}");
        let heard = heard_by_theirs(Role::Server, MAX, &from_client);
        assert_eq!(heard, (expected.to_vec(), End::Waits), "{len}");
    }
}

#[test]
fn the_close_frames_that_we_write_they_read() {
    for code in [1000, 1001, 1002, 1007, 1008, 1009, 1011, 3000, 4508, 4999] {
        let mut stream = Vec::new();
        write_close(&mut stream, CloseCode(code), "grund: ä");
        let frame = CloseFrame { code: CloseCode(code), reason: "grund: ä".to_owned() };
        let heard = heard_by_theirs(Role::Client, MAX, &stream);
        assert_eq!(heard, (vec![Said::Close(Some(frame))], End::Closed));
    }
}

#[test]
fn all_first_bytes_are_judged_alike() {
    for first in 0..=u8::MAX {
        for len in [0, 1, 2, 125, 126, 150] {
            for role in [Role::Server, Role::Client] {
                for begun in [Vec::new(), frame(role, TEXT, b"begun"), frame(role, BINARY, b"")] {
                    let mut stream = begun;
                    // 0x2020 is a forbidden close code, but valid text.
                    stream.extend(frame(role, first, &vec![b' '; len]));
                    stream.extend(padding(200));
                    agree(role, 200, &stream);
                }
            }
        }
    }
}

#[test]
fn all_close_codes_are_judged_alike_but_1014() {
    for code in 0..=u16::MAX {
        let stream = frame(Role::Server, FIN | CLOSE, &close_payload(code, ""));
        agree(Role::Server, 200, &stream);
    }
    let stream = frame(Role::Server, FIN | CLOSE, &close_payload(1014, ""));
    assert_eq!(decode(Role::Server, 0, &stream).said, [Said::close(1014)]);
    assert_eq!(heard_by_theirs(Role::Server, 200, &stream).1, End::Refused);
}

#[test]
fn they_accept_lengths_that_are_too_long_and_we_do_not() {
    let stream = [FIN | TEXT, 126, 0, 2, b'h', b'i'];
    assert_eq!(decode(Role::Client, 100, &stream).violation, Some(Violation::LengthNotMinimal));
    let heard = heard_by_theirs(Role::Client, 100, &stream);
    assert_eq!(heard, (vec![Said::text("hi")], End::Waits));
}

#[test]
fn they_judge_a_frame_at_its_end_and_we_at_its_start() {
    let long_ping = frame(Role::Client, FIN | PING, &[0; 126]);
    for (len, their_end) in [(2, End::Waits), (long_ping.len(), End::Refused)] {
        let stream = &long_ping[..len];
        assert_eq!(decode(Role::Client, 200, stream).violation, Some(Violation::LongControl));
        assert_eq!(heard_by_theirs(Role::Client, 200, stream).1, their_end);
    }
}
