//! Behind a proxy: only the proxy's statement of the client's address counts.

use std::io::Write;
use std::net::TcpStream;

use super::wire::{REQUEST, Wire, read_head, request_with};
use crate::server::Server;

const TRUSTING: [&str; 2] = ["trusted_proxies=127.0.0.0/8", "max_connections_per_ip=1"];

/// Returns a version 2 header (proxy-protocol.txt section 2.2): PROXY or LOCAL, TCP over IPv4.
fn proxy_v2(command: u8, source: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, 0x11, 0, 12]);
    header.extend(source);
    header.extend([127, 0, 0, 1, 0x30, 0x39, 0x1F, 0x90]);
    header
}

fn proxy_v1(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 127.0.0.1 12345 8080\r\n").into_bytes()
}

/// Opens a connection that sends `preface` and then the request; returns `None` if it is
/// rejected because the server is full.
fn enter(server: &Server, preface: &[u8], request: &str) -> Option<Wire> {
    let mut socket = server.socket();
    socket.write_all(&[preface, request.as_bytes()].concat()).unwrap();
    let mut peeked = [0; 12];
    while let len = socket.peek(&mut peeked).unwrap()
        && len < peeked.len()
    {
        assert!(len > 0, "the server says something");
    }
    match &peeked {
        b"HTTP/1.1 101" => Some(Wire::answered(socket)),
        b"HTTP/1.1 503" => {
            let head = read_head(&mut socket);
            assert!(head.contains("\r\nRetry-After: "), "{head}");
            None
        }
        other => panic!("{}", String::from_utf8_lossy(other)),
    }
}

#[test]
fn what_a_trusted_proxy_says_counts() {
    for header in [
        |client: &str| format!("X-Forwarded-For: {client}\r\n"),
        |client: &str| format!("X-Forwarded-For: 9.9.9.9, {client}, 127.0.0.9\r\n"),
        |client: &str| format!("X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: {client}\r\n"),
        |client: &str| format!("Forwarded: for={client};proto=https\r\n"),
        |client: &str| format!("Forwarded: for=9.9.9.9, FOR=\"{client}:4711\"\r\n"),
    ] {
        let server = Server::with(&TRUSTING);
        let from = |client| enter(&server, b"", &request_with(&header(client)));
        let first = from("1.2.3.4").expect("the first place");
        assert!(from("1.2.3.4").is_none(), "{}", header("1.2.3.4"));
        let _other = from("1.2.3.5").expect("another address has its own place");
        drop(first);
        server.await_metric("switchboard_connections", |devices| devices == 1.0);
        from("1.2.3.4").expect("the place is free again");
    }
}

#[test]
fn what_anybody_else_says_does_not_count() {
    let server = Server::with(&["trusted_proxies=10.0.0.0/8", "max_connections_per_ip=1"]);
    let from =
        |client| enter(&server, b"", &request_with(&format!("X-Forwarded-For: {client}\r\n")));
    let _first = from("1.2.3.4").expect("the first place");
    assert!(from("1.2.3.5").is_none(), "a client cannot choose its address");
}

/// A proxy writes one of the headers and passes the other on as the client sent it. `Forwarded`
/// used to win, so behind a proxy that writes X-Forwarded-For, as most do, a client could choose
/// its address.
#[test]
fn where_the_two_headers_disagree_neither_counts() {
    let server = Server::with(&TRUSTING);
    let from = |header: &str| enter(&server, b"", &request_with(header));
    let _proxy = from("X-Forwarded-For: 1.2.3.4\r\nForwarded: for=6.6.6.6\r\n");
    for forged in [
        "X-Forwarded-For: 1.2.3.4\r\nForwarded: for=7.7.7.7\r\n",
        "X-Forwarded-For: 7.7.7.7\r\nForwarded: for=1.2.3.4\r\n",
        "X-Forwarded-For: 1.2.3.4\r\nForwarded: for=unknown\r\n",
    ] {
        assert!(from(forged).is_none(), "they all count as the proxy: {forged}");
    }
    let agreeing = "X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n";
    let _agreeing = from(agreeing).expect("an address of its own");
    assert!(from("X-Forwarded-For: 1.2.3.4\r\n").is_none(), "the same address");
}

#[test]
fn a_trusted_proxys_header_line_counts_in_both_versions() {
    let server = Server::with(&TRUSTING);
    let _v1 = enter(&server, &proxy_v1("1.2.3.4"), REQUEST).expect("the first place");
    assert!(enter(&server, &proxy_v2(1, [1, 2, 3, 4]), REQUEST).is_none());
    let _v2 = enter(&server, &proxy_v2(1, [1, 2, 3, 5]), REQUEST).expect("another address");
    assert!(enter(&server, &proxy_v1("1.2.3.5"), REQUEST).is_none());
    // Not a trusted proxy any more: the headers it forwards do not count.
    let chained = request_with("X-Forwarded-For: 7.7.7.7\r\n");
    assert!(enter(&server, &proxy_v1("1.2.3.5"), &chained).is_none());
    // LOCAL and UNKNOWN mean the proxy itself, such as its health check.
    let local = enter(&server, &proxy_v2(0, [9, 9, 9, 9]), REQUEST).expect("the proxy's own");
    assert!(enter(&server, b"PROXY UNKNOWN\r\n", REQUEST).is_none(), "the same address");
    drop(local);
}

#[test]
fn a_header_line_may_arrive_byte_by_byte_and_before_plain_http() {
    let server = Server::with(&TRUSTING);
    for header in [proxy_v1("1.2.3.4"), proxy_v2(1, [1, 2, 3, 4])] {
        let mut socket = server.socket();
        for byte in [header.as_slice(), REQUEST.as_bytes()].concat() {
            socket.write_all(&[byte]).unwrap();
        }
        let mut wire = Wire::answered(socket);
        assert!(wire.ask("help").starts_with("Your ID: "));
        drop(wire);
        server.await_metric("switchboard_connections", |devices| devices == 0.0);
        let request = [header.as_slice(), b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        assert!(server.raw(&request).ends_with("\r\n\r\nok\n"));
    }
}

#[test]
fn a_broken_header_line_is_400() {
    let server = Server::with(&TRUSTING);
    let mut bad_v2 = proxy_v2(1, [1, 2, 3, 4]);
    bad_v2[12] = 0x31;
    for header in [
        b"PROXY TCP4 1.2.3.4\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.400 127.0.0.1 1 2\r\n".to_vec(),
        b"PROXY TCP9 1.2.3.4 127.0.0.1 1 2\r\n".to_vec(),
        [b"PROXY TCP4 ".as_slice(), &[b'1'; 300]].concat(),
        bad_v2,
    ] {
        let answer = server.raw(&[header.as_slice(), REQUEST.as_bytes()].concat());
        let shown = String::from_utf8_lossy(&header).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{shown}: {answer}");
        assert!(answer.contains("PROXY header"), "{shown}: {answer}");
    }
}

#[test]
fn a_header_line_from_anybody_else_is_no_request() {
    let server = Server::with(&["max_connections_per_ip=5"]);
    for header in [proxy_v1("1.2.3.4"), proxy_v2(1, [1, 2, 3, 4])] {
        let answer = server.raw(&[header.as_slice(), REQUEST.as_bytes()].concat());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
}

/// An open TCP connection and nothing else, which many load balancers use as their health check.
#[test]
fn a_proxy_that_only_knocks_leaves_nothing() {
    let server = Server::with(&["trusted_proxies=127.0.0.1", "shards=1"]);
    let before = server.metric("process_open_fds");
    let knocks: Vec<TcpStream> = (0..10).map(|_| server.socket()).collect();
    // A file of the start may have been open at the first reading.
    server.await_metric("process_open_fds", |now| now >= before + 9.0);
    drop(knocks);
    server.await_metric("process_open_fds", |now| now <= before);
}
