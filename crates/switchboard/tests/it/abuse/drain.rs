//! Graceful shutdown: no new devices, everybody is told, and then the server ends.

use std::io::Write;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::wire::{REQUEST, Wire, read_head};
use crate::device::Device;
use crate::server::Server;

#[test]
fn without_connections_it_ends_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = Server::with(&["drain=1h", "shards=2"]);
        let began = Instant::now();
        server.signal(signal);
        let ended = server.wait();
        assert!(ended.status.success(), "{}", ended.log);
        assert!(began.elapsed() < Duration::from_secs(5));
        for line in ["listening", "draining", "stopped"] {
            let said = ended.log.lines().filter(|said| said.contains(&format!("\"{line}\"")));
            assert_eq!(said.count(), 1, "{line} in {}", ended.log);
        }
    }
}

/// If all were closed at once, they would all return at once, to whichever server is left.
#[test]
fn devices_are_told_1001_one_after_the_other() {
    let server = Server::with(&["drain=600ms", "shards=2"]);
    let devices: Vec<Device> = (0..40).map(|_| Device::connect(&server)).collect();
    let began = Instant::now();
    server.signal(Signal::TERM);
    let mut closed: Vec<Duration> = std::thread::scope(|scope| {
        let closing: Vec<_> = devices
            .into_iter()
            .map(|mut device| {
                scope.spawn(move || {
                    let frame = device.close_frame().expect("a close frame");
                    assert_eq!(u16::from(frame.code), 1001);
                    assert_ne!(frame.reason.as_str(), "");
                    began.elapsed()
                })
            })
            .collect();
        closing.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    closed.sort();
    assert!(closed[0] < Duration::from_millis(400), "{closed:?}");
    assert!(*closed.last().unwrap() >= Duration::from_millis(500), "{closed:?}");
    assert!(closed.last().unwrap().saturating_sub(closed[0]) > Duration::from_millis(250));
    let ended = server.wait();
    assert!(ended.status.success(), "{}", ended.log);
}

#[test]
fn while_it_drains_those_inside_talk_and_nobody_new_comes_in() {
    // With several shards, one may hear of the drain after the listener has closed.
    let server = Server::with(&["drain=1s", "shards=1"]);
    let (mut a, mut b) = (Device::connect(&server), Device::connect(&server));
    // These connect before the signal, and send after it.
    let (mut asks, mut upgrades) = (server.socket(), server.socket());
    server.await_metric("switchboard_sockets_accepted_total", |sockets| sockets >= 5.0);
    server.signal(Signal::TERM);
    server.await_refused();
    asks.write_all(b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    assert!(read_head(&mut asks).starts_with("HTTP/1.1 503 "));
    upgrades.write_all(REQUEST.as_bytes()).unwrap();
    assert!(read_head(&mut upgrades).starts_with("HTTP/1.1 503 "));
    b.say(&format!("send,{},still talking", a.id));
    if a.socket.read().is_ok_and(|message| message.is_text()) {
        a.close_code();
    }
    b.close_code();
    drop((a, b, asks, upgrades));
    assert!(server.wait().status.success());
}

/// A peer that does not answer the close frame delays nothing for longer than announced.
#[test]
fn who_does_not_answer_the_close_frame_is_not_waited_for() {
    let server = Server::with(&["drain=100ms", "close_timeout=300ms"]);
    let began = Instant::now();
    let _deaf: Vec<Wire> = (0..3).map(|_| Wire::open_small(&server)).collect();
    // Neither does one that never finishes its handshake.
    let mut half = server.socket();
    half.write_all(b"GET / HT").unwrap();
    let ended = server.terminate();
    assert!(ended.status.success(), "{}", ended.log);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let server = Server::with(&["drain=1h"]);
    let mut device = Device::connect(&server);
    server.signal(Signal::TERM);
    server.await_refused();
    device.hears_nothing();
    server.signal(Signal::TERM);
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.log.contains("stopping at once"), "{}", ended.log);
}
