//! Peers that fall silent: the living answer pings, the half-open leave the list.

use std::time::{Duration, Instant};

use super::wire::{PING, PONG, TEXT, Wire, frame};
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

/// Any byte is a sign of life, also one in the middle of a frame.
#[test]
fn a_peer_whose_message_trickles_in_stays() {
    let server = Server::with(&["ping_interval=100ms", "idle_timeout=300ms"]);
    let mut slow = Wire::open(&server);
    let began = Instant::now();
    for byte in frame(TEXT, b"help") {
        slow.bytes(&[byte]);
        // The trickle itself is what is tested.
        std::thread::sleep(Duration::from_millis(80));
    }
    assert!(began.elapsed() > Duration::from_millis(600));
    assert!(slow.hear().starts_with("Your ID: "));
}
