//! Other requests on the port: the page, health, metrics, and paths that do not exist.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::device::Device;
use crate::server::{Server, token};

#[test]
fn health_and_readiness_are_told() {
    let server = Server::start();
    assert_eq!(server.get("/healthz"), "ok\n");
    assert_eq!(server.get("/readyz"), "ready\n");
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
