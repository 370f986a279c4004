//! Other requests on the port: the page, health, metrics, and paths that do not exist.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::device::Device;
use crate::server::{Server, token};
use crate::strace::{self, CONTROL, Tampering};

#[test]
fn health_and_readiness_are_told() {
    let server = Server::start();
    assert_eq!(server.get("/healthz"), "ok\n");
    assert_eq!(server.get("/readyz"), "ready\n");
}

/// Whoever filled the HTTP server's queue, or made its thread work, once had the server restarted
/// by its own health check.
#[test]
fn probes_are_answered_whatever_the_http_server_does() {
    let server = Server::within(&strace::prefix(), &["http_connections_max=1"]);
    let _hanging = Tampering::hang(&server, CONTROL, "all");
    let hold = || {
        let mut socket = server.socket();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        socket
    };
    let _held: Vec<TcpStream> = (0..10).map(|_| hold()).collect();
    for _ in 0..10 {
        assert_eq!(server.get("/healthz"), "ok\n");
        assert_eq!(server.get("/readyz?of=this"), "ready\n");
    }
}

/// A shard answers those on the devices' port, and the HTTP server those on the metrics' port.
#[test]
fn probes_get_the_same_answer_on_both_ports() {
    let free = TcpListener::bind("127.0.77.2:0").unwrap().local_addr().unwrap();
    let server = Server::with(&["auth=token", &format!("metrics_listen={free}")]);
    let ask = |address, request: &str| {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (before, date) = answer.split_once("\r\ndate: ").expect("RFC 9110, section 6.6.1");
        let (date, after) = date.split_once("\r\n").unwrap();
        assert!(date.len() == 29 && date.ends_with(" GMT"), "{answer}");
        format!("{before}\r\n{after}")
    };
    for line in
        ["GET /*", "HEAD /*", "POST /*", "get /*", "GET /*?a=/b#c", "GET http://h/*", "GET /*/"]
    {
        for path in ["healthz", "readyz"] {
            for rest in [
                "1.1\r\nHost: a\r\n\r\n",
                "1.0\r\n\r\n",
                "1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
                "1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
                "1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ] {
                let request = format!("{} HTTP/{rest}", line.replace('*', path));
                let (by_shard, by_http) = (ask(server.address, &request), ask(free, &request));
                let (head, body) = by_shard.split_once("\r\n\r\n").unwrap();
                // A path that neither has is answered in other words on the devices' port.
                if !head.contains(" 404 ") {
                    assert_eq!(by_shard, by_http, "{request}");
                }
                assert!(!request.starts_with("HEAD") || body.is_empty(), "{request}");
            }
        }
    }
}

#[test]
fn each_answer_closes_the_connection() {
    let server = Server::start();
    for path in ["/", "/style.css", "/healthz", "/readyz", "/metrics", "/nowhere"] {
        let answer = server.raw(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        let head = answer.split_once("\r\n\r\n").unwrap().0.to_lowercase();
        assert!(head.contains("\r\nconnection: close"), "{path}: {head}");
    }
}

#[test]
fn the_page_may_talk_to_nobody_else() {
    let server = Server::start();
    let answer = server.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    assert!(head.contains("\r\ncontent-security-policy: default-src 'none';"), "{head}");
    assert!(head.contains("frame-ancestors 'none'"), "{head}");
    assert!(head.contains("\r\nx-content-type-options: nosniff"), "{head}");
    assert!(!body.contains("http://") && !body.contains("https://"), "it works offline");
}

#[test]
fn what_is_not_there_is_404_and_says_what_is() {
    let server = Server::start();
    for path in ["/nowhere", "/../Cargo.toml", "/style.css/", "//", "/%00", "/metrics?x=1/../.."] {
        let answer = server.raw(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        let expected = if path.starts_with("/metrics") { "200" } else { "404" };
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{path}: {answer}");
    }
    let body = server.get("/nowhere");
    assert!(body.contains("The page is at /"), "{body}");
}

#[test]
fn a_head_request_gets_a_head() {
    let server = Server::start();
    let answer = server.raw(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(server.raw(b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(server.raw(b"GET /healthz HTTP/1.0\r\n\r\n").ends_with("\r\n\r\nok\n"));
}

/// Under `auth = "token"` the metrics once told every stranger the number of devices and their
/// activity.
#[test]
fn where_tokens_are_asked_for_they_open_the_metrics_too() {
    let server = Server::with(&["auth=token"]);
    let ask = |token: &str| {
        let head = format!("GET /metrics HTTP/1.1\r\nHost: a\r\n{token}\r\n");
        server.raw(head.as_bytes())
    };
    for refused in ["", "Authorization: Bearer x\r\n", "Authorization: Basic eDp5\r\n"] {
        let answer = ask(refused);
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(answer.to_lowercase().contains("\r\nwww-authenticate: bearer\r\n"), "{answer}");
        assert!(answer.contains("metrics_listen") && !answer.contains("switchboard_"), "{answer}");
    }
    let token = token(&server, "prometheus", None);
    let answer = ask(&format!("authorization: bearer {token}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("switchboard_"), "{answer}");
    assert!(server.raw(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200 "));
}

#[test]
fn metrics_may_have_a_port_of_their_own() {
    // An address that no other test listens on, so that the port stays free.
    let free = TcpListener::bind("127.0.77.1:0").unwrap().local_addr().unwrap();
    let server = Server::with(&["auth=token", &format!("metrics_listen={free}")]);
    assert!(server.raw(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 404 "));
    for (path, says) in
        [("metrics", "switchboard_build_info{"), ("readyz", "ready"), ("healthz", "ok")]
    {
        let mut socket = TcpStream::connect(free).unwrap();
        write!(socket, "GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(says), "{answer}");
    }
}

/// One request, one response: a pipelined second request is not served on this connection.
#[test]
fn of_pipelined_requests_the_first_is_answered() {
    let server = Server::start();
    let two = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /readyz HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = server.raw(two);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
}

#[test]
fn a_request_may_arrive_byte_by_byte_and_from_somebody_who_then_falls_silent() {
    let server = Server::start();
    let mut socket = server.socket();
    for byte in b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" {
        socket.write_all(&[*byte]).unwrap();
    }
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
}

#[test]
fn many_http_requests_do_not_touch_the_devices() {
    let server = Server::start();
    let (mut a, mut b) = (Device::connect(&server), Device::connect(&server));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    assert!(server.get("/metrics").contains("\nprocess_max_fds "));
                }
            });
        }
        for n in 0..100 {
            a.send(b.id, &n.to_string());
            assert_eq!(b.hear(), format!("{}:{n}", a.id));
        }
    });
    assert_eq!(server.metric("switchboard_connections"), 2.0);
}
