//! Limits on connections and on message rates.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::wire::{CLOSE, REQUEST, TEXT, Wire, frame, frame_header, read_head, request_with};
use crate::server::{PATIENCE, Server};

/// Opens a socket whose local address is 127.0.0.`last`.
fn socket_from(server: &Server, last: u8) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
    socket.bind(&source.into()).unwrap();
    socket.connect(&server.address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

#[test]
fn a_full_server_says_503_and_when_to_come_again() {
    let server = Server::with(&["max_connections=3"]);
    let mut inside: Vec<Wire> = (0..3).map(|_| Wire::open(&server)).collect();
    for _ in 0..5 {
        let answer = server.raw(REQUEST.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("\r\nRetry-After: "), "{answer}");
    }
    assert_eq!(server.get("/healthz"), "ok\n", "the full are asked how they are, too");
    assert_eq!(server.metric("switchboard_handshakes_refused_total{status=\"503\"}"), 5.0);
    assert_eq!(server.metric("switchboard_connections"), 3.0);

    let mut leaves = inside.pop().unwrap();
    leaves.bytes(&frame(CLOSE, b""));
    leaves.end();
    drop(leaves);
    let mut comes = Wire::open_patiently(&server);
    assert!(comes.ask("help").starts_with("Your ID: "));
}

/// Beyond the spare connections in which a client can be told so, no connection waits either.
#[test]
fn a_crowd_is_rejected_by_a_full_server() {
    let server = Server::with(&["max_connections=1"]);
    let mut inside = Wire::open(&server);
    let crowd: Vec<TcpStream> = (0..200).map(|_| server.socket()).collect();
    let mut rejected = 0;
    for mut socket in crowd {
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut answer = [0; 12];
        if socket.read_exact(&mut answer).is_ok() {
            assert_eq!(&answer, b"HTTP/1.1 503");
            rejected += 1;
        }
        if rejected == 100 {
            break;
        }
    }
    assert_eq!(rejected, 100, "most of 200 are told at once");
    assert!(inside.ask("help").starts_with("Your ID: "));
}

#[test]
fn an_address_has_so_many_places_and_no_more() {
    let server = Server::with(&["max_connections_per_ip=2"]);
    let from = |last| Wire::over(socket_from(&server, last), REQUEST);
    let (_first, second) = (from(2), from(2));
    let mut third = socket_from(&server, 2);
    let answer = read_head(&mut third);
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "),
        "{answer}"
    );
    let (_other, _another) = (from(3), from(3));
    drop(second);
    server.await_metric("switchboard_connections", |devices| devices == 3.0);
    from(2);
}

/// When it was closed at once, the socket answered further bytes by a reset, which could destroy
/// the 503.
#[test]
fn a_rejected_connection_may_finish_asking() {
    let server = Server::with(&["shards=2", "max_connections_per_ip=1"]);
    let _inside = Wire::over(socket_from(&server, 2), REQUEST);
    // More than one shard keeps at a time, so the oldest make room for the next.
    for _ in 0..50 {
        let mut socket = socket_from(&server, 2);
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        socket.write_all(REQUEST.as_bytes()).unwrap();
        // A reset would have arrived before this is answered.
        server.get("/healthz");
        socket.write_all(REQUEST.as_bytes()).unwrap();
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    }
}

/// They are kept for a while, and no longer.
#[test]
fn a_rejected_connection_that_stays_is_closed() {
    // The test's own requests come from another address, and the last one may not be closed yet.
    let server = Server::with(&["max_connections_per_ip=8", "close_timeout=50ms", "shards=1"]);
    let _inside: Vec<Wire> = (0..8).map(|_| Wire::over(socket_from(&server, 2), REQUEST)).collect();
    let files = server.metric("process_open_fds");
    let mut stay: Vec<TcpStream> = (0..5).map(|_| socket_from(&server, 2)).collect();
    for socket in &mut stay {
        assert!(read_head(socket).starts_with("HTTP/1.1 503 "));
    }
    server.await_metric("process_open_fds", |now| now <= files);
}

#[test]
fn a_fast_talker_is_read_more_slowly_and_nothing_is_lost() {
    let settings = ["rate_limit_messages_per_s=200", "rate_limit_burst=20"];
    let server = Server::with(&settings);
    let (mut fast, mut to) = (Wire::open(&server), Wire::open(&server));
    let began = Instant::now();
    let batch = |numbers: std::ops::Range<usize>, to| {
        numbers.flat_map(|n| frame(TEXT, format!("send,{to},{n}").as_bytes())).collect::<Vec<u8>>()
    };
    fast.bytes(&batch(0..120, to.id));
    for n in 0..120 {
        assert_eq!(to.hear(), format!("{}:{n}", fast.id));
        if n == 19 {
            assert!(began.elapsed() < Duration::from_millis(400), "the burst goes at once");
        }
    }
    // 100 messages beyond the burst at 200 a second.
    assert!(began.elapsed() >= Duration::from_millis(490), "{:?}", began.elapsed());
    assert!(server.metric("switchboard_reader_pauses_total{reason=\"rate_limit\"}") >= 1.0);
}

#[test]
fn the_rate_limit_is_each_connections_own() {
    let server = Server::with(&["rate_limit_messages_per_s=1", "rate_limit_burst=2"]);
    let mut held = Wire::open(&server);
    held.bytes(&frame(TEXT, b"help").repeat(50));
    let began = Instant::now();
    for _ in 0..20 {
        let mut other = Wire::open(&server);
        assert!(other.ask("help").starts_with("Your ID: "));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// The server does not read it: its silence does not count, and its pongs cannot be seen.
#[test]
fn a_paused_reader_is_exempt_from_the_idle_timeout() {
    let settings = [
        "rate_limit_messages_per_s=1",
        "rate_limit_burst=1",
        "ping_interval=50ms",
        "idle_timeout=200ms",
    ];
    let server = Server::with(&settings);
    let mut wire = Wire::open(&server);
    let began = Instant::now();
    wire.bytes(&frame(TEXT, b"help").repeat(3));
    for _ in 0..3 {
        assert!(wire.hear().starts_with("Your ID: "));
    }
    assert!(began.elapsed() >= Duration::from_secs(1), "it was paused");
}

#[test]
fn a_paused_peer_that_leaves_is_noticed() {
    let settings = ["rate_limit_messages_per_s=2", "rate_limit_burst=1"];
    let server = Server::with(&settings);
    let mut wire = Wire::open(&server);
    wire.bytes(&frame(TEXT, b"help").repeat(2));
    assert!(wire.hear().starts_with("Your ID: "));
    drop(wire);
    server.await_metric("switchboard_connections", |devices| devices == 0.0);
}

/// Asks so many times for a path while the server is stopped, so that it finds all requests in one
/// turn of its loop when it continues; returns the answers.
fn answers_in_one_turn(server: &Server, count: usize, path: &str) -> Vec<String> {
    server.freeze();
    let ask = |_| {
        let mut socket = server.socket();
        socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes()).unwrap();
        socket
    };
    let sockets: Vec<TcpStream> = (0..count).map(ask).collect();
    server.signal(rustix::process::Signal::CONT);
    let read = |mut socket: TcpStream| {
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    sockets.into_iter().map(read).collect()
}

#[test]
fn more_http_requests_than_are_served_at_once_get_503() {
    let server = Server::with(&["shards=1", "http_connections_max=1"]);
    let (mut served, mut busy) = (0, 0);
    for answer in answers_in_one_turn(&server, 100, "/metrics") {
        if answer.starts_with("HTTP/1.1 503 ") {
            assert!(answer.contains("\r\nRetry-After: "), "{answer}");
            busy += 1;
        } else {
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            served += 1;
        }
    }
    assert!(served > 0 && busy > 0, "{served} served, {busy} busy");
}

/// Silent clients once took the spare connections in which a full server answers its probes.
#[test]
fn a_full_server_answers_its_probes_while_strangers_hold_the_spare_places() {
    let server = Server::with(&["shards=2", "max_connections=1"]);
    let mut inside = Wire::open(&server);
    let mut silent: Vec<TcpStream> = (0..100).map(|_| server.socket()).collect();
    for _ in 0..20 {
        assert_eq!(server.get("/readyz"), "ready\n");
        assert_eq!(server.get("/healthz"), "ok\n");
        server.metric("switchboard_connections");
        silent.extend((0..5).map(|_| server.socket()));
    }
    // The oldest was closed, with an answer.
    assert!(read_head(&mut silent[0]).starts_with("HTTP/1.1 503 "));
    assert!(inside.ask("help").starts_with("Your ID: "));
}

/// Each connection that is beyond `max_connections` can give way to the next in the same turn, and
/// its answer is written at the end of the turn.
#[test]
fn a_full_server_answers_all_probes_of_one_turn() {
    let server = Server::with(&["shards=1", "max_connections=1"]);
    let _inside = Wire::open_patiently(&server);
    for answer in answers_in_one_turn(&server, 120, "/readyz") {
        assert!(answer.ends_with("\r\n\r\nready\n"), "{answer:?}");
    }
}

/// A client without a token could once make the server hold a whole message.
#[test]
fn before_hello_a_message_is_small() {
    let server = Server::start();
    let request = request_with("Sec-WebSocket-Protocol: switchboard.v1.json\r\n");
    let open = || {
        let mut socket = server.socket();
        socket.write_all(request.as_bytes()).unwrap();
        read_head(&mut socket);
        socket
    };
    let mut socket = open();
    socket.write_all(&frame_header(TEXT, (16 << 10) + 1)).unwrap();
    let mut close = [0; 4];
    socket.read_exact(&mut close).unwrap();
    assert_eq!((close[0], &close[2..]), (CLOSE, &1009u16.to_be_bytes()[..]));
    // After it, a message may be large, even in the same read.
    let mut socket = open();
    let large = format!("{{\"type\":\"ping\",\"id\":\"1\",\"x\":\"{}\"}}", "x".repeat(100_000));
    let both = [frame(TEXT, b"{\"type\":\"hello\"}"), frame(TEXT, large.as_bytes())].concat();
    socket.write_all(&both).unwrap();
    let mut heard = Vec::new();
    while !heard.windows(4).any(|bytes| bytes == b"pong") {
        let mut bytes = [0; 1_000];
        let len = socket.read(&mut bytes).unwrap();
        assert!(len > 0, "{}", String::from_utf8_lossy(&heard));
        heard.extend_from_slice(&bytes[..len]);
    }
}

#[test]
fn unfinished_messages_have_a_bound_in_all_and_the_oldest_gives_way() {
    let settings = ["shards=1", "max_message_bytes=512KiB", "unfinished_messages_max_bytes=1MiB"];
    let server = Server::with(&settings);
    let mut wires: Vec<Wire> = (0..12).map(|_| Wire::open(&server)).collect();
    for wire in &mut wires {
        let message = frame(TEXT, &[b'a'; 100_000]);
        wire.bytes(&message[..message.len() - 1]);
        // So that each is read before the next begins.
        server.metric("switchboard_connections");
    }
    let (code, reason) = wires[0].end();
    assert_eq!(code, Some(1013));
    assert!(reason.contains("unfinished_messages_max_bytes"), "{reason}");
    // The last one can be completed.
    wires[11].bytes(&frame(TEXT, b"a")[6..]);
    assert_eq!(wires[11].hear(), "Error reading the command");
    assert!(server.metric("switchboard_connections") >= 5.0);
}

#[test]
fn out_queues_have_a_bound_in_all_and_the_longest_give_way() {
    let settings = [
        "shards=1",
        "out_queue_max_bytes=64MiB",
        "out_queues_max_bytes=64MiB",
        "out_queue_stall_timeout=1h",
    ];
    let server = Server::with(&settings);
    let deaf: Vec<Wire> = (0..3).map(|_| Wire::open_small(&server)).collect();
    let mut from = Wire::open(&server);
    let overflows = "switchboard_out_queue_overflows_total";
    // None of them reaches its own bound.
    for n in 0..40 {
        for to in &deaf {
            from.say(&format!("send,{},{n} {0} {}", to.id, "x".repeat(1_000_000)));
        }
        // The sender is told first of those that were closed.
        from.say("help");
        while !from.hear().starts_with("Your ID: ") {}
    }
    server.await_metric(overflows, |times| times >= 1.0);
    assert!(server.metric(overflows) < 3.0);
    assert!(from.ask("help").starts_with("Your ID: "));
}
