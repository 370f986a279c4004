//! The first frame: who may open a session, and the errors for clients that do it wrong.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use switchboard_proto::v1::{BAD_FRAMES_MAX, HELLO_TIMEOUT, SUBPROTOCOL};
use tungstenite::{Error, Message};

use super::client::{V1, send, token, with};
use crate::device::Device;
use crate::server::Server;

#[test]
fn who_offers_the_subprotocol_among_others_speaks_v1() {
    let server = Server::start();
    let offer = |protocols: &str| {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
        );
        let mut socket = server.socket();
        std::io::Write::write_all(&mut socket, request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            std::io::Read::read_exact(&mut socket, &mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap().to_ascii_lowercase()
    };
    let chosen = format!("sec-websocket-protocol: {SUBPROTOCOL}\r\n");
    assert!(offer(&format!("chat, {SUBPROTOCOL}")).contains(&chosen));
    assert!(!offer("chat").contains("sec-websocket-protocol"));
    // Without the subprotocol it is the text protocol.
    assert!(Device::connect(&server).welcome.starts_with("Your ID: "));
}

#[test]
fn a_welcome_says_what_a_device_must_know() {
    for (settings, durability) in [(&["shards=3"][..], "disk"), (&["data_dir="], "memory")] {
        let server = Server::with(settings);
        let device = V1::anonymous(&server);
        for (field, value) in [
            ("resumed", json!(false)),
            ("pending", json!(0)),
            ("last_seq", json!(0)),
            ("ping_every_ms", json!(25_000)),
            ("max_message_bytes", json!(1 << 20)),
            ("durability", json!(durability)),
            ("server", json!(concat!("switchboard/", env!("CARGO_PKG_VERSION")))),
        ] {
            assert_eq!(device.welcome[field], value, "{field}");
        }
        assert!(device.welcome["device"].as_str().unwrap().parse::<u64>().is_ok());
        assert!(!device.welcome["mailbox"].as_str().unwrap().is_empty());
        assert!(device.welcome["token"].is_string());
    }
}

#[test]
fn a_first_frame_that_is_no_hello_ends_the_connection() {
    let server = Server::start();
    for (first, told) in [
        (r#"{"type":"ping"}"#, None),
        (r#"{"type":"send","id":"1","to":"1","body":1}"#, None),
        ("hello", Some("bad_frame")),
        (r#"{"type":"hello","last_seq":"1"}"#, Some("bad_frame")),
        (r#"{"type":"hallo"}"#, Some("unknown_type")),
    ] {
        let mut device = V1::open(&server);
        device.say_text(first);
        if let Some(code) = told {
            device.expect(json!({"type": "error", "code": code}));
        }
        assert_eq!(device.end().0, 4400, "{first}");
    }
}

/// Even with data longer than a first frame may be, and from another shard than the device's.
#[test]
fn one_may_go_on_before_the_welcome() {
    let server = Server::with(&["shards=3"]);
    let b = V1::named(&server, "b").leave();
    for n in 0..6 {
        let mut device = V1::open(&server);
        let id = format!("m{n}");
        let long = with(send("b", &id), &json!({"body": "x".repeat(100_000)}));
        let hello = json!({"type": "hello", "token": token(&server, &format!("a{n}"), None)});
        device.say_all([hello, long, json!({"type": "ping", "id": "p"})]);
        device.expect(json!({"type": "welcome"}));
        let mut answers = [device.hear(), device.hear()];
        // Accepting takes a sync, a pong does not.
        answers.sort_by_key(|answer| answer["type"].to_string());
        assert_eq!((&answers[0]["type"], &answers[0]["id"]), (&json!("accepted"), &json!(id)));
        assert_eq!(answers[1], json!({"type": "pong", "id": "p"}));
    }
    let mut refused = V1::open(&server);
    refused.say_all([json!({"type": "hello", "token": "x"}), send("b", "refused")]);
    assert_eq!(refused.end().0, 4401);
    let mut b = b.back(&server, 0);
    for n in 0..6 {
        b.take(&format!("m{n}"));
    }
    b.hears_nothing();
}

#[test]
fn a_binary_message_is_read_as_text_if_it_is_utf_8() {
    let server = Server::start();
    let mut device = V1::open(&server);
    let say = |device: &mut V1, bytes: &'static [u8]| {
        device.socket().send(Message::binary(bytes)).unwrap();
    };
    say(&mut device, br#"{"type":"hello"}"#);
    // Answers are always text.
    device.expect(json!({"type": "welcome"}));
    say(&mut device, r#"{"type":"ping","id":"é"}"#.as_bytes());
    device.expect(json!({"type": "pong", "id": "é"}));
    say(&mut device, b"{\"type\":\"ping\",\"id\":\"\xff\"}");
    assert_eq!(device.end().0, 1007);
}

#[test]
fn a_silent_device_is_pinged_as_often_as_its_welcome_says() {
    let server = Server::with(&["ping_interval=100ms"]);
    let mut device = V1::anonymous(&server);
    assert_eq!(device.welcome["ping_every_ms"], 100);
    let began = Instant::now();
    for _ in 0..3 {
        // It answers the previous one as it reads.
        assert!(matches!(device.read().unwrap(), Message::Ping(_)));
    }
    assert!(began.elapsed() >= Duration::from_millis(200));
    // Clients that see no pings send their own.
    device.hears_nothing();
}

#[test]
fn after_a_crash_there_is_no_bye_and_one_may_come_back_at_once() {
    let mut server = Server::start();
    let mut device = V1::anonymous(&server);
    let away = device.away();
    server.kill();
    let end = device.read();
    assert!(!matches!(end, Ok(_) | Err(Error::ConnectionClosed)), "{end:?}");
    server.restart();
    assert_eq!(away.back(&server, 0).welcome["resumed"], true);
}

#[test]
fn who_says_nothing_for_ten_seconds_is_closed() {
    let server = Server::start();
    let began = Instant::now();
    let mut device = V1::open(&server);
    assert_eq!(device.end().0, 4408);
    let waited = began.elapsed();
    assert!((HELLO_TIMEOUT..HELLO_TIMEOUT + Duration::from_secs(3)).contains(&waited));
}

#[test]
fn bad_frames_are_answered_and_ten_of_them_end_the_connection() {
    let server = Server::start();
    let mut device = V1::anonymous(&server);
    for n in 1..BAD_FRAMES_MAX {
        let (frame, answer) = match n % 3 {
            0 => (r#"{"type":"dance","id":"x"}"#, json!({"code": "unknown_type", "id": "x"})),
            1 => ("[1]", json!({"code": "bad_frame"})),
            _ => (r#"{"type":"ack","seq":-1}"#, json!({"code": "bad_frame"})),
        };
        device.say_text(frame);
        let error = device.expect(answer);
        assert_eq!(error["type"], "error");
        assert_ne!(error["message"], "");
        device.hears_nothing();
    }
    // Not a bad frame: it could be parsed, and is merely wrong.
    let nobody = json!({"type": "rejected", "id": "1", "code": "no_such_device"});
    device.ask(send("no/body", "1"), nobody);
    device.say_text("{");
    device.expect(json!({"type": "error"}));
    assert_eq!(device.end().0, 4400);
}

#[test]
fn a_second_hello_and_an_ack_of_what_was_never_pushed_are_bad_frames() {
    let server = Server::start();
    let mut device = V1::anonymous(&server);
    for frame in [
        json!({"type": "hello"}),
        json!({"type": "ack", "seq": 1}),
        json!({"type": "refuse", "seq": 1}),
    ] {
        device.ask(frame, json!({"type": "error", "code": "bad_frame"}));
    }
    device.ack(0);
    device.hears_nothing();
}

#[test]
fn the_newest_connection_of_a_device_has_it_and_the_older_one_is_fenced() {
    let server = Server::with(&["shards=3"]);
    let (mut a, mut older) = (V1::anonymous(&server), V1::named(&server, "b"));
    a.send("b", "1");
    older.take("1");
    let mut newer = older.away().back(&server, 0);
    newer.take("1");
    // The old connection may still send.
    let _ = older.socket().write(Message::text(send(&a.device(), "2").to_string()));
    let _ = older.socket().write(Message::text(r#"{"type":"ack","seq":1}"#));
    let _ = older.socket().flush();
    assert_eq!(older.end().0, 4409);
    a.hears_nothing();
    newer.hears_nothing();
    let mut last = newer.leave().back(&server, 0);
    last.take("1");
    a.hears_nothing();
    assert_eq!(server.metric("switchboard_takeovers_total"), 1.0);
}

#[test]
fn clients_that_fight_for_one_device_are_slowed_down() {
    let server = Server::start();
    let hello = json!({"token": token(&server, "wanted", None)});
    let mut holders = vec![V1::hello(&server, hello.clone())];
    for _ in 0..4 {
        let began = Instant::now();
        holders.push(V1::hello(&server, hello.clone()));
        assert!(began.elapsed() < Duration::from_secs(1), "not yet");
    }
    let began = Instant::now();
    let mut fifth = V1::open(&server);
    fifth.say_hello(hello.clone());
    let last = holders.last_mut().unwrap();
    last.hears_nothing();
    // Frames sent while it waits are handled once it is welcomed.
    fifth.say(&json!({"type": "ping", "id": "early"}));
    fifth.welcome();
    fifth.expect(json!({"type": "pong", "id": "early"}));
    let waited = began.elapsed();
    assert!((Duration::from_millis(1_900)..Duration::from_secs(4)).contains(&waited), "{waited:?}");
    for mut holder in holders {
        assert_eq!(holder.end().0, 4409);
    }
    assert_eq!(server.metric("switchboard_takeovers_delayed_total"), 1.0);
    let log = server.terminate().log;
    assert!(log.contains("clients fight for this device"), "{log}");
    assert!(log.contains("wanted"), "{log}");
}

/// Two clients with one token once wrote 7,300 log lines per second.
#[test]
fn clients_that_fight_for_one_device_cannot_fill_the_log() {
    let server = Server::start();
    let began = Instant::now();
    for device in ["a", "b", "c", "d", "e"] {
        let hello = json!({"token": token(&server, device, None)});
        // From then on takeovers come too fast.
        let mut holders: Vec<V1> = (0..5).map(|_| V1::hello(&server, hello.clone())).collect();
        for _ in 0..20 {
            let mut next = V1::open(&server);
            next.say_hello(hello.clone());
            holders.push(next);
        }
    }
    server.await_metric("switchboard_takeovers_delayed_total", |delayed| delayed > 80.0);
    let lines_max = began.elapsed().as_secs() as usize + 1;
    let log = server.terminate().log;
    let lines = log.matches("clients fight for this device").count();
    assert!((1..=lines_max).contains(&lines), "{lines} lines");
}

#[test]
fn a_server_that_goes_down_says_bye_before_1001() {
    let server = Server::with(&["shards=3", "drain=50ms"]);
    let mut devices: Vec<V1> = (0..6).map(|_| V1::anonymous(&server)).collect();
    server.signal(rustix::process::Signal::TERM);
    for device in &mut devices {
        let bye: Value = device.expect(json!({"type": "bye"}));
        assert!(bye["reconnect_in_ms"].is_u64() && bye["reason"].is_string(), "{bye}");
        assert_eq!(device.end().0, 1001);
    }
    let ended = server.wait();
    assert!(ended.status.success(), "{}", ended.log);
}

#[test]
fn frames_that_the_websocket_forbids_end_as_in_the_text_protocol() {
    let server = Server::with(&["max_message_bytes=1KiB"]);
    let mut device = V1::anonymous(&server);
    device.say_text(&"x".repeat(1025));
    assert_eq!(device.end().0, 1009);
}
