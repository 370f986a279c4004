//! Handshakes that are late, large or wrong are told why; all others are accepted.

use std::io::{Read, Write};

use super::wire::{PING, REQUEST, TEXT, Wire, frame, request_with};
use crate::server::Server;

/// Checks that a refusal is a whole HTTP response: status, the reason in a sentence, and the end
/// of the connection.
fn assert_refused(answer: &str, status: &str, words: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(head.contains("\r\nConnection: close"), "{answer}");
    assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{answer}");
    assert!(body.contains(words) && body.ends_with('\n'), "{words} in {answer}");
}

#[test]
fn a_bad_handshake_is_told_what_is_wrong() {
    let server = Server::start();
    for (find, replace, status, words) in [
        ("GET", "POST", "405", "not POST"),
        ("GET", "HEAD", "405", "not HEAD"),
        ("HTTP/1.1", "HTTP/1.0", "400", "HTTP/1.1"),
        ("Host: test\r\n", "", "400", "Host"),
        ("Upgrade: websocket\r\n", "", "426", "Upgrade: websocket"),
        ("Connection: Upgrade\r\n", "", "400", "Connection: Upgrade"),
        ("Version: 13", "Version: 8", "426", "8"),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", "400", "Sec-WebSocket-Key"),
        ("dGhlIHNhbXBsZSBub25jZQ==", "no base64", "400", "Sec-WebSocket-Key"),
        ("GET", "\x16\x03\x01\x02\0", "400", "plain HTTP"),
        ("GET", "\0\0\0", "400", "not an HTTP/1.1 request"),
        ("Host: test", "Host: a\0b", "400", "not an HTTP/1.1 request"),
        ("HTTP/1.1", "HTTP/2.0", "400", "not an HTTP/1.1 request"),
    ] {
        let answer = server.raw(REQUEST.replace(find, replace).as_bytes());
        assert_refused(&answer, status, words);
    }
    let answer = server.raw(REQUEST.replace("Version: 13", "Version: 8").as_bytes());
    assert!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{answer}");
    let answer = server.raw(REQUEST.replace("GET", "POST").as_bytes());
    assert!(answer.contains("\r\nAllow: GET\r\n"), "{answer}");
    assert_eq!(server.metric("switchboard_connections"), 0.0);
}

/// The first one counted once, of `Authorization` none, and the bytes of a body were read as frames.
/// A proxy may read such a head in another way than the server.
#[test]
fn a_head_that_can_be_read_in_two_ways_is_400() {
    let server = Server::start();
    for (more, words) in [
        ("Host: test", "Host comes more than once"),
        ("sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Key comes"),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version comes"),
        ("Authorization: Bearer a\r\nauthorization: Bearer b", "Authorization comes"),
        ("Content-Length: 5", "no body"),
        ("Content-Length: 0\r\nContent-Length: 5", "no body"),
        ("Transfer-Encoding: chunked", "no body"),
    ] {
        let answer = server.raw(request_with(&format!("{more}\r\n")).as_bytes());
        assert_refused(&answer, "400", words);
    }
    Wire::over(server.socket(), &request_with("Content-Length: 0\r\n"));
}

#[test]
fn a_request_that_does_not_come_in_time_is_408() {
    let server = Server::with(&["handshake_timeout=150ms"]);
    let mut patient = Wire::open(&server);
    for begun in ["", "GET / HT", &REQUEST[..REQUEST.len() - 1]] {
        assert_refused(&server.raw(begun.as_bytes()), "408", "in time");
    }
    assert!(patient.ask("help").starts_with("Your ID: "), "the limit is the handshake's alone");
}

/// Bytes that trickle in do not extend the deadline.
#[test]
fn a_slow_request_is_408_also_while_it_still_comes() {
    let server = Server::with(&["handshake_timeout=150ms"]);
    let mut socket = server.socket();
    socket.set_read_timeout(Some(std::time::Duration::from_millis(10))).unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    let mut answer = [0; 12];
    while socket.read_exact(&mut answer).is_err() {
        socket.write_all(b"y").expect("the answer comes before the end");
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[test]
fn the_head_may_have_16_kib_and_not_a_byte_more() {
    let server = Server::start();
    let padded = |len: usize| {
        let pad = len - request_with("Pad: \r\n").len();
        request_with(&format!("Pad: {}\r\n", "p".repeat(pad)))
    };
    Wire::over(server.socket(), &padded(16 << 10));
    assert_refused(&server.raw(padded((16 << 10) + 1).as_bytes()), "431", "16384 bytes");
    assert_refused(&server.raw(padded(400_000).as_bytes()), "431", "16384 bytes");
    let endless = vec![b'a'; 20_000];
    assert_refused(&server.raw(&[b"GET /", endless.as_slice()].concat()), "431", "16384 bytes");
}

#[test]
fn a_head_of_too_many_headers_is_431() {
    let server = Server::start();
    Wire::over(server.socket(), &request_with(&"A: b\r\n".repeat(50)));
    let crowded = request_with(&"A: b\r\n".repeat(1000));
    assert_refused(&server.raw(crowded.as_bytes()), "431", "64 headers");
}

#[test]
fn any_path_is_good() {
    let server = Server::start();
    for path in
        ["/", "/chat?room=1", "/../../etc/passwd", "/healthz", "/a%20b/", "http://test/x", "*"]
    {
        let request = REQUEST.replace("GET / ", &format!("GET {path} "));
        let mut wire = Wire::over(server.socket(), &request);
        assert!(wire.ask("help").starts_with("Your ID: "), "{path}");
    }
}

#[test]
fn header_names_and_tokens_are_good_in_any_case() {
    let server = Server::start();
    let request = REQUEST
        .replace("Upgrade: websocket", "uPGRADE:  h2c , WebSocket ")
        .replace("Connection: Upgrade", "CONNECTION: keep-alive, uPgRaDe")
        .replace("Sec-WebSocket-Key", "sec-websocket-key");
    let wire = Wire::over(server.socket(), &request);
    assert!(wire.head.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
}

#[test]
fn frames_may_come_with_the_handshake() {
    let server = Server::start();
    let mut to = Wire::open(&server);
    let mut bytes = REQUEST.as_bytes().to_vec();
    for n in 0..3 {
        bytes.extend(frame(TEXT, format!("send,{},{n}", to.id).as_bytes()));
    }
    bytes.extend(&frame(PING, b"half of it")[..7]);
    let mut stream = server.socket();
    stream.write_all(&bytes).unwrap();
    let mut from = Wire::answered(stream);
    for n in 0..3 {
        assert_eq!(to.hear(), format!("{}:{n}", from.id));
    }
    from.bytes(&frame(PING, b"half of it")[7..]);
    assert_eq!(from.frame().payload, b"half of it");
}

#[test]
fn only_allowed_origins_come_in() {
    let server = Server::with(&["allowed_origins=https://a.example, https://b.example"]);
    for origin in ["https://a.example", "https://b.example"] {
        Wire::over(server.socket(), &request_with(&format!("Origin: {origin}\r\n")));
    }
    for origin in ["https://c.example", "https://a.example.evil", "http://a.example", "null"] {
        let answer = server.raw(request_with(&format!("Origin: {origin}\r\n")).as_bytes());
        assert_refused(&answer, "403", origin);
    }
    assert_refused(&server.raw(REQUEST.as_bytes()), "403", "Origin");
}

#[test]
fn a_handshake_that_is_given_up_leaves_nothing() {
    let server = Server::with(&["shards=1"]);
    let before = server.metric("process_open_fds");
    let begun: Vec<_> = (0..20)
        .map(|_| {
            let mut socket = server.socket();
            socket.write_all(&REQUEST.as_bytes()[..60]).unwrap();
            socket
        })
        .collect();
    // A file of the start may have been open at the first reading.
    server.await_metric("process_open_fds", |now| now >= before + 19.0);
    drop(begun);
    server.await_metric("process_open_fds", |now| now <= before);
    assert_eq!(server.metric("switchboard_connections"), 0.0);
}
