//! Floods of requests that are cheap to send and expensive to answer.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::wire::{PING, PONG, TEXT, Wire, frame};
use crate::device::Device;
use crate::server::Server;

#[test]
fn too_many_pings_are_a_breach_of_policy() {
    let server = Server::start();
    let mut wire = Wire::open(&server);
    // Over the bound even if a new second begins in the middle.
    wire.bytes(&frame(PING, b"").repeat(201));
    let (code, reason) = wire.end();
    assert_eq!(code, Some(1008));
    assert!(reason.contains("100 control frames"), "{reason}");
}

#[test]
fn too_many_pongs_that_nobody_asked_for_are_too() {
    let server = Server::start();
    let mut wire = Wire::open(&server);
    wire.bytes(&frame(PONG, b"").repeat(201));
    assert_eq!(wire.end().0, Some(1008));
}

#[test]
fn too_many_empty_fragments_are_too() {
    let server = Server::start();
    let mut wire = Wire::open(&server);
    wire.bytes(&frame(0x01, b"h"));
    wire.bytes(&frame(0x00, b"").repeat(201));
    assert_eq!(wire.end().0, Some(1008));
}

#[test]
fn as_many_pings_a_second_as_allowed_are_answered() {
    let server = Server::start();
    let mut wire = Wire::open(&server);
    wire.bytes(&frame(PING, b"p").repeat(100));
    for _ in 0..100 {
        assert_eq!(wire.frame().first, PONG);
    }
    assert!(wire.ask("help").starts_with("Your ID: "));
}

#[test]
fn sockets_that_say_nothing_or_garbage_stop_nobody_and_do_not_stay() {
    let server = Server::with(&["handshake_timeout=700ms"]);
    let mut silent: Vec<TcpStream> = (0..300).map(|_| server.socket()).collect();
    for n in 0..100_usize {
        let garbage: Vec<u8> = (0..997).map(|at| (at * 31 + n * 17) as u8).collect();
        // The server may have closed already.
        let _: Result<(), _> = server.socket().write_all(&garbage);
    }
    let (mut a, mut b) = (Device::connect(&server), Device::connect(&server));
    a.send(b.id, "through the crowd");
    assert_eq!(b.hear(), format!("{}:through the crowd", a.id));
    for socket in &mut silent {
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    }
    assert!(server.metric("switchboard_handshakes_refused_total{status=\"408\"}") >= 300.0);
    drop(silent);
    // The two devices, this request itself, and the files that the process always has open.
    server.await_metric("process_open_fds", |open| open < 50.0);
}

/// At most 64 KiB are read per connection and turn, so a flood waits behind all others.
#[test]
fn a_flood_of_messages_starves_nobody() {
    let server = Server::with(&["shards=1"]);
    let (mut flood, mut sink) = (Wire::open(&server), Wire::open(&server));
    let (mut a, mut b) = (Device::connect(&server), Device::connect(&server));
    let total = 20_000;
    std::thread::scope(|scope| {
        let to = sink.id;
        scope.spawn(move || {
            for n in 0..total / 100 {
                let batch = (0..100)
                    .flat_map(|m| frame(TEXT, format!("send,{to},{}", n * 100 + m).as_bytes()));
                flood.bytes(&batch.collect::<Vec<u8>>());
            }
            assert!(flood.ask("help").starts_with("Your ID: "));
        });
        scope.spawn(move || {
            for n in 0..total {
                assert!(sink.hear().ends_with(&format!(":{n}")));
            }
        });
        for n in 0..200 {
            a.send(b.id, &n.to_string());
            assert_eq!(b.hear(), format!("{}:{n}", a.id));
        }
    });
}
