//! Silent peers: live ones answer pings, half-open ones are removed.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::wire::{CLOSE, PING, PONG, TEXT, Wire, close_payload, frame, frame_header};
use crate::server::Server;

#[test]
fn a_silent_peer_is_pinged_and_then_gone() {
    let server = Server::with(&["ping_interval=100ms", "idle_timeout=300ms"]);
    let began = Instant::now();
    let mut silent = Wire::open(&server);
    let ping = silent.frame();
    assert_eq!((ping.first, ping.payload), (PING, vec![]));
    // The server counts whole milliseconds.
    assert!(began.elapsed() >= Duration::from_millis(99));
    server.await_metric("switchboard_connections_closed_total{code=\"none\"}", |gone| gone == 1.0);
    assert!(began.elapsed() >= Duration::from_millis(299));
    let mut other = Wire::open(&server);
    assert_eq!(other.ask(&format!("send,{},there?", silent.id)), "Invalid destinationId");
}

#[test]
fn a_peer_that_answers_pings_stays() {
    let server = Server::with(&["ping_interval=50ms", "idle_timeout=300ms"]);
    let began = Instant::now();
    let mut alive = Wire::open(&server);
    while began.elapsed() < Duration::from_millis(900) {
        let ping = alive.frame();
        assert_eq!(ping.first, PING);
        alive.bytes(&frame(PONG, &ping.payload));
    }
    alive.bytes(&frame(TEXT, b"help"));
    assert!(alive.hear().starts_with("Your ID: "));
}

/// Any byte is a sign of life, even one in the middle of a frame.
#[test]
fn a_peer_whose_message_trickles_in_stays() {
    let server = Server::with(&["ping_interval=100ms", "idle_timeout=300ms"]);
    let mut slow = Wire::open(&server);
    let began = Instant::now();
    for byte in frame(TEXT, b"help") {
        slow.bytes(&[byte]);
        // The slow pace itself is what is tested.
        std::thread::sleep(Duration::from_millis(80));
    }
    assert!(began.elapsed() > Duration::from_millis(600));
    assert!(slow.hear().starts_with("Your ID: "));
}

/// So slow that messages sent at once take a minute to be handled.
const PAUSED: [&str; 4] =
    ["rate_limit_messages_per_s=1", "rate_limit_burst=1", "ping_interval=100ms", "idle_timeout=1s"];

fn paused(server: &Server) -> Wire {
    let mut wire = Wire::open(server);
    wire.bytes(&frame(TEXT, b"help").repeat(60));
    let pauses = "switchboard_reader_pauses_total{reason=\"rate_limit\"}";
    server.await_metric(pauses, |times| times >= 1.0);
    wire
}

/// It is not read, so only the event itself reports the reset.
#[test]
fn a_paused_peer_that_resets_is_gone_at_once() {
    let server = Server::with(&["rate_limit_messages_per_s=1", "rate_limit_burst=1"]);
    let wire = paused(&server);
    SockRef::from(&wire.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(wire);
    server.await_metric("switchboard_connections", |devices| devices == 0.0);
}

/// Earlier messages are handled, but not for ever.
#[test]
fn a_paused_peer_that_says_no_more_is_gone_after_the_idle_timeout() {
    let server = Server::with(&PAUSED);
    let mut wire = paused(&server);
    wire.stream.shutdown(Shutdown::Write).unwrap();
    let began = Instant::now();
    server.await_metric("switchboard_connections", |devices| devices == 0.0);
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    let mut heard = 0;
    while let Ok(text) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wire.hear())) {
        assert!(text.starts_with("Your ID: "));
        heard += 1;
    }
    assert!((1..10).contains(&heard), "{heard}");
}

/// Its pongs are not read; but only sending shows whether its system is still there.
#[test]
fn a_paused_peer_is_pinged() {
    let server = Server::with(&PAUSED);
    let mut wire = paused(&server);
    let mut pings = 0;
    while pings < 3 {
        pings += usize::from(wire.frame().first == PING);
    }
}

/// Pings in between once kept an unfinished message alive for ever.
#[test]
fn a_message_must_be_complete_some_day() {
    let server = Server::with(&["message_timeout=500ms"]);
    let mut slow = Wire::open(&server);
    let began = Instant::now();
    // The first fragment of a text.
    slow.bytes(&frame(0x01, b"send,1,"));
    let close = loop {
        // Answering pings makes the time pass.
        slow.bytes(&frame(PING, b"still here"));
        match slow.frame() {
            frame if frame.first == PONG => {}
            frame => break frame,
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((close.first, &close.payload[..2]), (CLOSE, &close_payload(1008, b"")[..]));
    assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());
    // The same holds for a frame whose rest does not come.
    let mut silent = Wire::open(&server);
    silent.bytes(&frame_header(TEXT, 100));
    assert_eq!(silent.end().0, Some(1008));
    // A peer that sends one message after another is not affected, even if each ends in the
    // middle of a read.
    let mut busy = Wire::open(&server);
    let half = frame(TEXT, b"help");
    let began = Instant::now();
    busy.bytes(&half[..5]);
    while began.elapsed() < Duration::from_millis(1_200) {
        busy.bytes(&[&half[5..], &half[..5]].concat());
        assert!(busy.hear().starts_with("Your ID: "));
        std::thread::sleep(Duration::from_millis(20));
    }
}
