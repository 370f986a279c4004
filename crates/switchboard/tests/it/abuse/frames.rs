//! Frames that violate RFC 6455 get its close code and a clean end; unusual but valid ones are
//! served.

use std::io::Write;
use std::time::Instant;

use super::wire::{CLOSE, PING, PONG, TEXT, Wire, close_payload, frame, frame_header};
use crate::server::{PATIENCE, Server};

const MIB: usize = 1 << 20;

/// Returns the name of the violation, the bytes, and the close code.
fn violations() -> Vec<(&'static str, Vec<u8>, u16)> {
    let mut cases = vec![
        ("unmasked", b"\x81\x04help".to_vec(), 1002),
        ("RSV1 without compression", frame(0xC1, b"help"), 1002),
        ("RSV2", frame(0xA1, b"help"), 1002),
        ("RSV3", frame(0x91, b"help"), 1002),
        ("reserved data opcode", frame(0x83, b""), 1002),
        ("reserved control opcode", frame(0x8B, b""), 1002),
        ("fragmented ping", frame(0x09, b""), 1002),
        ("ping of 126 bytes", frame(PING, &[0; 126]), 1002),
        ("close of 126 bytes", frame(CLOSE, &close_payload(1000, &[b'a'; 124])), 1002),
        ("125 in 16 bits", [&[TEXT, 0xFE, 0, 125][..], &[0; 129]].concat(), 1002),
        ("65535 in 64 bits", b"\x81\xFF\0\0\0\0\0\0\xFF\xFF".to_vec(), 1002),
        ("length with its top bit", b"\x81\xFF\x80\0\0\0\0\0\0\0".to_vec(), 1002),
        ("continuation of nothing", frame(0x80, b"help"), 1002),
        ("first fragment twice", [frame(0x01, b"a"), frame(0x01, b"b")].concat(), 1002),
        ("message in a message", [frame(0x01, b"a"), frame(TEXT, b"b")].concat(), 1002),
        ("no UTF-8", frame(TEXT, b"help \xFF"), 1007),
        ("a surrogate", frame(TEXT, b"\xED\xA0\x80"), 1007),
        ("bad in the next fragment", [frame(0x01, b"\xC3"), frame(0x80, b"\x28")].concat(), 1007),
        ("cut at the end", [frame(0x01, b"a\xE2\x82"), frame(0x80, b"")].concat(), 1007),
        ("binary and no UTF-8", frame(0x82, b"\xFF"), 1007),
        ("bad before the end", frame(0x01, b"\xFF"), 1007),
        ("half a close code", frame(CLOSE, b"\x03"), 1002),
        ("bad close reason", frame(CLOSE, &close_payload(1000, b"\xFF")), 1007),
        ("declared too large", frame_header(TEXT, MIB as u64 + 1), 1009),
        ("declared far too large", frame_header(0x82, u64::MAX >> 1), 1009),
        ("too large in two", [frame(0x01, &[b'a'; MIB]), frame_header(0x80, 1)].concat(), 1009),
    ];
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        cases.push((
            "a close code that must not be sent",
            frame(CLOSE, &close_payload(code, b"")),
            1002,
        ));
    }
    cases
}

#[test]
fn each_violation_gets_its_code_and_a_clean_end() {
    let server = Server::start();
    for (what, bytes, code) in violations() {
        let mut wire = Wire::open(&server);
        wire.bytes(&bytes);
        let (got, reason) = wire.end();
        assert_eq!(got, Some(code), "{what}: {reason}");
        assert_ne!(reason, "", "{what}");
    }
    server.await_metric("switchboard_connections", |devices| devices == 0.0);
}

/// Closing a socket with unread bytes sends a reset, which overtakes the close frame.
#[test]
fn the_end_is_clean_also_when_more_follows() {
    let server = Server::start();
    for (what, mut bytes, code) in violations() {
        let mut wire = Wire::open(&server);
        bytes.extend(frame(TEXT, &[b'a'; 300_000]));
        wire.bytes(&bytes);
        assert_eq!(wire.end().0, Some(code), "{what}");
    }
}

#[test]
fn a_peer_that_goes_on_talking_after_a_violation_is_cut_in_time() {
    let server = Server::with(&["close_timeout=200ms"]);
    let mut wire = Wire::open(&server);
    wire.bytes(&frame(0x83, b""));
    let began = Instant::now();
    while wire.stream.write_all(&[0; 4096]).is_ok() {
        assert!(began.elapsed() < PATIENCE, "it is still read");
    }
}

#[test]
fn a_message_of_exactly_the_limit_passes() {
    let server = Server::with(&["max_message_bytes=1000"]);
    let (mut from, mut to) = (Wire::open(&server), Wire::open(&server));
    let command = format!("send,{},", to.id);
    let text = "x".repeat(1000 - command.len());
    from.say(&format!("{command}{text}"));
    assert_eq!(to.hear(), format!("{}:{text}", from.id));
    from.say(&format!("{command}{text}!"));
    assert_eq!(from.end().0, Some(1009));
}

#[test]
fn fragments_are_counted_together_against_the_limit() {
    let server = Server::with(&["max_message_bytes=1000"]);
    let mut wire = Wire::open(&server);
    wire.bytes(&frame(0x01, &[b'a'; 600]));
    wire.bytes(&frame(0x00, &[b'a'; 400]));
    wire.bytes(&frame(PING, b"still here"));
    assert_eq!(wire.frame().payload, b"still here");
    wire.bytes(&frame_header(0x80, 1));
    assert_eq!(wire.end().0, Some(1009));
}

#[test]
fn a_message_in_fragments_arrives_whole_and_pings_between_are_answered() {
    let server = Server::start();
    let (mut from, mut to) = (Wire::open(&server), Wire::open(&server));
    let text = format!("send,{},größer → 🙂", to.id);
    let bytes = text.as_bytes();
    from.bytes(&frame(0x01, &bytes[..1]));
    for at in 1..bytes.len() - 1 {
        from.bytes(&frame(0x00, &bytes[at..=at]));
        from.bytes(&frame(PING, &[at as u8]));
        let pong = from.frame();
        assert_eq!((pong.first, pong.payload), (PONG, vec![at as u8]));
    }
    from.bytes(&frame(0x80, &bytes[bytes.len() - 1..]));
    assert_eq!(to.hear(), format!("{}:größer → 🙂", from.id));
}

#[test]
fn bytes_may_arrive_one_by_one() {
    let server = Server::start();
    let mut to = Wire::open(&server);
    let mut bytes = super::wire::REQUEST.as_bytes().to_vec();
    bytes.extend(frame(TEXT, format!("send,{},drop by drop", to.id).as_bytes()));
    bytes.extend(frame(PING, b"p"));
    bytes.extend(frame(0x01, b"he"));
    bytes.extend(frame(0x80, b"lp"));
    let mut stream = server.socket();
    for byte in bytes {
        stream.write_all(&[byte]).unwrap();
    }
    let mut from = Wire::answered(stream);
    assert_eq!(to.hear(), format!("{}:drop by drop", from.id));
    assert_eq!(from.frame().payload, b"p");
    assert!(from.hear().starts_with("Your ID: "));
}

#[test]
fn commands_in_one_segment_are_carried_out_in_order() {
    let server = Server::start();
    let (mut from, mut to) = (Wire::open(&server), Wire::open(&server));
    let mut bytes = Vec::new();
    for n in 0..1000 {
        bytes.extend(frame(TEXT, format!("send,{},{n}", to.id).as_bytes()));
        bytes.extend(frame(TEXT, b"send,1,nobody"));
        if n % 100 == 0 {
            bytes.extend(frame(PING, format!("{n}").as_bytes()));
        }
    }
    from.bytes(&bytes);
    for n in 0..1000 {
        assert_eq!(from.hear(), "Invalid destinationId");
        if n % 100 == 0 {
            assert_eq!(from.frame().payload, format!("{n}").as_bytes());
        }
        assert_eq!(to.hear(), format!("{}:{n}", from.id));
    }
}

#[test]
fn a_close_is_answered_with_its_own_code() {
    let server = Server::start();
    for code in [1000, 1001, 1003, 1011, 3000, 4999] {
        let mut wire = Wire::open(&server);
        wire.bytes(&frame(CLOSE, &close_payload(code, "tschüß".as_bytes())));
        assert_eq!(wire.end(), (Some(code), String::new()));
    }
    let mut wire = Wire::open(&server);
    wire.bytes(&frame(CLOSE, b""));
    assert_eq!(wire.end(), (None, String::new()));
}

#[test]
fn nothing_after_a_close_frame_counts() {
    let server = Server::start();
    let (mut from, mut to) = (Wire::open(&server), Wire::open(&server));
    let mut bytes = frame(CLOSE, &close_payload(1000, b""));
    bytes.extend(frame(TEXT, format!("send,{},too late", to.id).as_bytes()));
    bytes.extend(frame(0x83, b""));
    from.bytes(&bytes);
    assert_eq!(from.end().0, Some(1000));
    let info = to.ask("help");
    assert!(info.starts_with("Your ID: ") && !info.contains(&from.id.to_string()), "{info}");
}

#[test]
fn a_device_that_vanishes_leaves_the_list() {
    let server = Server::start();
    let mut stays = Wire::open(&server);
    for leaves in ["with a FIN", "in the middle of a frame", "with a reset"] {
        let mut wire = Wire::open(&server);
        if leaves == "in the middle of a frame" {
            wire.bytes(&frame_header(TEXT, 100));
        }
        if leaves == "with a reset" {
            socket2::SockRef::from(&wire.stream)
                .set_linger(Some(std::time::Duration::ZERO))
                .unwrap();
        }
        let id = wire.id;
        drop(wire);
        server.await_metric("switchboard_connections", |devices| devices == 1.0);
        assert_eq!(stays.ask(&format!("send,{id},anyone?")), "Invalid destinationId", "{leaves}");
    }
}
