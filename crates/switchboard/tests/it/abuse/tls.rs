//! TLS on the same port: devices, the page, new certificates, and peers that make errors.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustix::process::Signal;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use super::wire::{REQUEST, TEXT, Wire, frame, read_head, request_with, small_socket};
use crate::device::Device;
use crate::server::Server;
use crate::strace::{self, CONTROL, Tampering};

/// TLS over TCP, from the client's side.
pub(crate) type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Writes a new self-signed certificate and its key where the server looks for them.
fn write_certificate(directory: &std::path::Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(directory.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

fn start(settings: &[&str]) -> (Server, CertificateDer<'static>) {
    let directory: TempDir = tempfile::tempdir().unwrap();
    let certificate = write_certificate(directory.path());
    let tls = ["tls_cert=cert.pem", "tls_key=key.pem"];
    let server = Server::spawn(directory, &[&tls, settings].concat(), |_| {});
    (server, certificate)
}

/// Prepares TLS over a socket, trusting only this certificate; the handshake is still to come.
pub(crate) fn over(socket: TcpStream, certificate: &CertificateDer<'static>) -> Stream {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket)
}

fn connect(server: &Server, certificate: &CertificateDer<'static>) -> Stream {
    over(server.socket(), certificate)
}

fn device(server: &Server, certificate: &CertificateDer<'static>) -> Device<Stream> {
    Device::over(connect(server, certificate), "wss://localhost/").unwrap()
}

/// Sends a request and reads to the end, which must be announced.
fn raw(server: &Server, certificate: &CertificateDer<'static>, request: &str) -> String {
    let mut stream = connect(server, certificate);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the end is announced by `close_notify`");
    answer
}

fn get(server: &Server, certificate: &CertificateDer<'static>, path: &str) -> String {
    let answer = raw(server, certificate, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
}

/// Like [`Server::await_metric`], over TLS.
fn await_metric(
    server: &Server,
    certificate: &CertificateDer<'static>,
    sample: &str,
    holds: impl Fn(f64) -> bool,
) {
    let began = Instant::now();
    loop {
        let text = get(server, certificate, "/metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        let value: f64 = value.expect("the sample is there").parse().unwrap();
        if holds(value) {
            return;
        }
        assert!(began.elapsed() < crate::server::PATIENCE, "{sample} stays {value}");
    }
}

#[test]
fn devices_talk_over_tls() {
    let (server, certificate) = start(&["shards=2"]);
    let (mut a, mut b) = (device(&server, &certificate), device(&server, &certificate));
    for n in 0..100 {
        a.send(b.id, &n.to_string());
        assert_eq!(b.hear(), format!("{}:{n}", a.id));
    }
    a.close();
    let expected = "Invalid destinationId";
    await_metric(&server, &certificate, "switchboard_connections", |devices| devices == 1.0);
    assert_eq!(b.ask(&format!("send,{},gone?", b.id - 1)), expected);
}

#[test]
fn large_messages_pass_both_ways_over_tls() {
    let (server, certificate) = start(&[]);
    let (mut a, mut b) = (device(&server, &certificate), device(&server, &certificate));
    for size in [1, 16_383, 16_384, 16_385, 65_536, 1_000_000] {
        let text = "x".repeat(size);
        a.send(b.id, &text);
        assert_eq!(b.hear(), format!("{}:{text}", a.id));
        b.send(a.id, &text);
        assert_eq!(a.hear(), format!("{}:{text}", b.id));
    }
}

#[test]
fn the_page_and_the_metrics_are_served_over_tls() {
    let (server, certificate) = start(&[]);
    assert_eq!(get(&server, &certificate, "/healthz"), "ok\n");
    assert!(get(&server, &certificate, "/metrics").contains("\nprocess_max_fds "));
    for file in ["index.html", "style.css", "app.js", "text.js", "v1.js"] {
        let path = if file == "index.html" { "/".to_owned() } else { format!("/{file}") };
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../console");
        let content = std::fs::read_to_string(format!("{folder}/{file}")).unwrap();
        assert!(get(&server, &certificate, &path) == content, "{path} differs");
    }
}

#[test]
fn refusals_arrive_over_tls() {
    let (server, certificate) = start(&["max_connections=2"]);
    let answer = raw(&server, &certificate, &REQUEST.replace("GET", "POST"));
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let _inside = (device(&server, &certificate), device(&server, &certificate));
    let answer = raw(&server, &certificate, REQUEST);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[test]
fn a_violation_over_tls_gets_its_code_and_an_announced_end() {
    let (server, certificate) = start(&[]);
    let mut wire = Wire::over(connect(&server, &certificate), REQUEST);
    wire.bytes(&[frame(0x83, b""), frame(TEXT, &[b'a'; 100_000])].concat());
    assert_eq!(wire.end().0, Some(1002));
}

/// Request and `close_notify` in one segment: the response must still come.
#[test]
fn who_says_no_more_after_its_request_is_answered() {
    let (server, certificate) = start(&[]);
    for _ in 0..10 {
        let mut stream = connect(&server, &certificate);
        stream.conn.complete_io(&mut stream.sock).unwrap();
        stream.conn.writer().write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream.conn.send_close_notify();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer:?}");
    }
}

/// rustls reads nothing after `close_notify`, so waiting for it to take the rest once hung the
/// shard.
#[test]
fn bytes_behind_the_announced_end_harm_nobody() {
    let (server, certificate) = start(&["shards=1"]);
    let (mut a, mut b) = (device(&server, &certificate), device(&server, &certificate));
    for request in ["", REQUEST, "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut stream = connect(&server, &certificate);
        stream.conn.complete_io(&mut stream.sock).unwrap();
        stream.conn.writer().write_all(request.as_bytes()).unwrap();
        stream.conn.send_close_notify();
        let mut bytes = Vec::new();
        stream.conn.write_tls(&mut bytes).unwrap();
        bytes.extend([0; 30_000]);
        stream.sock.write_all(&bytes).unwrap();
        a.send(b.id, request);
        assert_eq!(b.hear(), format!("{}:{request}", a.id));
    }
}

#[test]
fn a_hangup_signal_brings_the_new_certificate_and_keeps_connections() {
    let (server, old) = start(&[]);
    let mut inside = device(&server, &old);
    let new = write_certificate(server.directory.path());
    server.signal(Signal::HUP);
    let began = Instant::now();
    while connect(&server, &new).write_all(b"GET").is_err() {
        assert!(began.elapsed() < crate::server::PATIENCE, "the old certificate stays");
    }
    assert!(connect(&server, &old).write_all(b"GET").is_err(), "the old one is gone");
    inside.hears_nothing();
    let mut comes = device(&server, &new);
    comes.send(inside.id, "hello");
    assert_eq!(inside.hear(), format!("{}:hello", comes.id));
    drop((inside, comes));
    let log = server.terminate().log;
    assert!(log.contains("certificate reread"), "{log}");
}

#[test]
fn a_broken_replacement_leaves_the_old_certificate() {
    let (server, old) = start(&[]);
    let directory = server.directory.path().to_owned();
    let key = std::fs::read(directory.join("key.pem")).unwrap();
    // Signals that arrive together are merged into one.
    let reread = |times| {
        server.signal(Signal::HUP);
        let refused = "switchboard_config_reloads_total{result=\"refused\"}";
        await_metric(&server, &old, refused, |count| count == times);
    };
    let broken = [("cert.pem", &b"no PEM"[..]), ("cert.pem", b""), ("key.pem", b"")];
    for ((file, content), times) in broken.into_iter().zip([1.0, 2.0, 3.0]) {
        std::fs::write(directory.join(file), content).unwrap();
        reread(times);
    }
    // A certificate and a key that are valid, but do not belong together.
    write_certificate(&directory);
    std::fs::write(directory.join("key.pem"), key).unwrap();
    reread(4.0);
    device(&server, &old);
    let log = server.terminate().log;
    assert_eq!(log.matches("everything stays as it was").count(), 4, "{log}");
    assert!(!log.contains("certificate reread"), "{log}");
}

#[test]
fn plain_http_on_a_tls_port_is_answered_with_an_alert() {
    let (server, certificate) = start(&[]);
    for said in
        [REQUEST.as_bytes(), b"GET / HTTP/1.1\r\n\r\n", &[0; 3000], b"\x16\x03\x01\0\x04\x01\0\0\0"]
    {
        let mut socket = server.socket();
        socket.write_all(said).unwrap();
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        assert_eq!(answer.first(), Some(&21), "an alert record, not {answer:?}");
    }
    let sample = "switchboard_handshakes_refused_total{status=\"tls\"}";
    await_metric(&server, &certificate, sample, |refused| refused == 4.0);
}

/// Sends more of a request than is taken, until the server has read nothing for many turns.
fn fill(stream: &mut Stream, inside: &mut Device<Stream>) {
    stream.sock.set_nonblocking(true).unwrap();
    let mut turns = 0;
    while turns < 100 {
        match stream.write(&[b'x'; 10_000]) {
            Ok(_) => turns = 0,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        // A device of the same shard is answered one turn later at the earliest.
        inside.hears_nothing();
        turns += 1;
    }
    stream.sock.set_nonblocking(false).unwrap();
}

/// The response was in the pipe, and was once lost when the rest of the request could not be
/// passed on.
#[test]
fn who_says_more_than_the_http_server_takes_waits_and_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = write_certificate(directory.path());
    let file = |name: &str| format!("{}", directory.path().join(name).display());
    let files = [format!("tls_cert={}", file("cert.pem")), format!("tls_key={}", file("key.pem"))];
    let server = Server::within(&strace::prefix(), &["shards=1", &files[0], &files[1]]);
    let mut inside = device(&server, &certificate);
    let mut stream = connect(&server, &certificate);
    stream.conn.complete_io(&mut stream.sock).unwrap();
    let hanging = Tampering::hang(&server, CONTROL, "all");
    let request = "POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    fill(&mut stream, &mut inside);
    assert_eq!(get(&server, &certificate, "/readyz"), "ready\n", "the shard answers probes itself");
    hanging.end();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer:?}");
    let paused = "switchboard_reader_pauses_total{reason=\"http_pipe\"}";
    await_metric(&server, &certificate, paused, |times| times >= 1.0);
}

#[test]
fn a_tls_handshake_that_does_not_come_to_an_end_is_ended() {
    let (server, certificate) = start(&["handshake_timeout=200ms"]);
    let mut inside = device(&server, &certificate);
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x02\0\x01\0\x01\xFC"] {
        let mut socket = server.socket();
        socket.write_all(begun).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"");
    }
    // TLS complete, and then no request.
    let mut stream = connect(&server, &certificate);
    stream.conn.complete_io(&mut stream.sock).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    inside.hears_nothing();
}

/// rustls alone keeps 64 KiB of it, for `handshake_timeout`.
#[test]
fn a_tls_handshake_that_is_too_long_is_ended() {
    let (server, certificate) = start(&["handshake_timeout=1h"]);
    // A ClientHello of 60,000 bytes, in records of 4,000.
    let mut message = vec![1, 0, (60_000_u16 >> 8) as u8, (60_000_u16 & 0xFF) as u8];
    message.resize(20_000, 0);
    let mut socket = server.socket();
    for part in message.chunks(4_000) {
        let len = part.len() as u16;
        socket.write_all(&[&[22, 3, 1][..], &len.to_be_bytes(), part].concat()).unwrap();
    }
    // Behind unread bytes it may be a reset.
    let mut answer = Vec::new();
    if let Err(error) = socket.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let sample = "switchboard_handshakes_refused_total{status=\"tls\"}";
    await_metric(&server, &certificate, sample, |refused| refused == 1.0);
}

#[test]
fn a_crowd_larger_than_one_turn_takes_is_let_in() {
    let (server, certificate) = start(&["shards=1"]);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| device(&server, &certificate).hears_nothing());
        }
    });
}

/// Above a number that wait for a handshake no more are accepted, until there are fewer.
#[test]
fn a_crowd_larger_than_may_wait_is_let_in() {
    for shards in ["shards=1", "shards=2"] {
        let (server, certificate) = start(&[shards]);
        // While stopped, they accumulate in the backlog, each with its ClientHello.
        server.freeze();
        let mut crowd: Vec<Stream> = (0..400).map(|_| connect(&server, &certificate)).collect();
        for stream in &mut crowd {
            stream.conn.write_tls(&mut stream.sock).unwrap();
        }
        server.signal(Signal::CONT);
        for mut stream in crowd {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        device(&server, &certificate).hears_nothing();
    }
}

/// Resets a connection.
fn reset(socket: &TcpStream) {
    socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// They once took all places, so that others had to give way to them: an attacker with a few
/// thousand in a second kept everybody out.
#[test]
fn who_resets_in_the_backlog_takes_no_place() {
    let (server, certificate) = start(&["shards=1", "max_connections=1"]);
    let hello = || {
        let mut stream = connect(&server, &certificate);
        stream.conn.write_tls(&mut stream.sock).unwrap();
        stream
    };
    let leave = |count| (0..count).for_each(|_| reset(&hello().sock));
    server.freeze();
    // More than the spare places, before and behind.
    leave(70);
    let comes = hello();
    leave(200);
    server.signal(Signal::CONT);
    Device::over(comes, "wss://localhost/").unwrap().hears_nothing();
}

/// Shown by bytes that are no TLS: they would be counted if they were read.
#[test]
fn who_resets_in_the_tls_handshake_is_not_read() {
    let (server, certificate) = start(&["shards=1"]);
    let mut crowd: Vec<TcpStream> = (0..40).map(|_| server.socket()).collect();
    // Accepted behind them.
    let mut inside = device(&server, &certificate);
    server.freeze();
    for socket in &mut crowd {
        socket.write_all(REQUEST.as_bytes()).unwrap();
        reset(socket);
    }
    drop(crowd);
    server.signal(Signal::CONT);
    inside.hears_nothing();
    let sample = "switchboard_handshakes_refused_total{status=\"tls\"}";
    await_metric(&server, &certificate, sample, |refused| refused == 0.0);
}

#[test]
fn a_proxy_header_comes_before_the_tls() {
    let settings = ["trusted_proxies=127.0.0.1", "max_connections_per_ip=1"];
    let (server, certificate) = start(&settings);
    let preface = b"PROXY TCP4 1.2.3.4 127.0.0.1 12345 8080\r\n";
    let from_proxy = || {
        let mut socket = server.socket();
        socket.write_all(preface).unwrap();
        over(socket, &certificate)
    };
    let mut inside = Wire::over(from_proxy(), REQUEST);
    assert!(inside.ask("help").starts_with("Your ID: "));
    let mut second = from_proxy();
    second.write_all(REQUEST.as_bytes()).unwrap();
    assert!(super::wire::read_head(&mut second).starts_with("HTTP/1.1 503 "));

    // Header and ClientHello in one segment.
    let mut together = connect(&server, &certificate);
    let mut bytes = b"PROXY TCP4 1.2.3.5 127.0.0.1 12345 8080\r\n".to_vec();
    together.conn.write_tls(&mut bytes).unwrap();
    together.sock.write_all(&bytes).unwrap();
    Wire::over(together, REQUEST);
    // Trusted, but without the proxy's header.
    assert_eq!(get(&server, &certificate, "/healthz"), "ok\n");
}

#[test]
fn who_does_not_read_over_tls_is_closed_too() {
    let (server, certificate) = start(&["shards=1", "out_queue_max_bytes=256KiB"]);
    let mut slow = Wire::over(connect(&server, &certificate), REQUEST);
    let mut from = device(&server, &certificate);
    let text = "x".repeat(100_000);
    let mut accepted = 0;
    loop {
        from.send(slow.id, &format!("{accepted}{text}"));
        let answer = from.ask("help");
        if answer == "Invalid destinationId" {
            break;
        }
        accepted += 1;
        assert!(accepted < 1000, "it is never closed");
    }
    for n in 0..accepted {
        assert_eq!(slow.hear(), format!("{}:{n}{text}", from.id));
    }
    assert_eq!(slow.end().0, Some(4508));
}

/// Data that was encrypted but not written once counted as written: 64 KiB of it were lost with
/// the process, and their sender had been told `delivered`.
#[test]
fn delivered_to_a_text_device_over_tls_is_written_to_its_socket() {
    let (mut server, certificate) = start(&["shards=1"]);
    let token = crate::server::token(&server, "bob", None);
    let request = request_with(&format!("Authorization: Bearer {token}\r\n"));
    let mut slow = over(small_socket(&server), &certificate);
    slow.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut slow);
    let mut slow = Wire { stream: slow, id: 0, head };
    assert!(slow.hear().starts_with("Your ID: bob\n"));
    let mut sender = connect(&server, &certificate);
    let offer = "Sec-WebSocket-Protocol: switchboard.v1.json\r\n";
    sender.write_all(request_with(offer).as_bytes()).unwrap();
    let head = read_head(&mut sender);
    let mut sender = Wire { stream: sender, id: 0, head };
    assert!(sender.ask(r#"{"type":"hello","ephemeral":true}"#).contains(r#""type":"welcome""#));

    // One after the other, until its socket takes no more: the next outcome does not come.
    sender.stream.sock.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let padding = "x".repeat(60_000);
    let (mut delivered, mut heard, mut buffer) = (0, Vec::new(), [0; 4 << 10]);
    while delivered < 1_000 {
        let body = format!("<{delivered}>{padding}");
        sender.say(&format!(
            r#"{{"type":"send","id":"{delivered}","to":"bob","body":"{body}","receipt":true}}"#
        ));
        let outcome = format!(r#""id":"{delivered}","to":"bob","outcome":"delivered""#);
        let is_delivered = loop {
            match sender.stream.read(&mut buffer) {
                Ok(len) => heard.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(error) => panic!("{error}"),
            }
            if String::from_utf8_lossy(&heard).contains(&outcome) {
                break true;
            }
        };
        if !is_delivered {
            break;
        }
        delivered += 1;
    }
    assert!(delivered > 0);
    server.kill();
    let mut came = Vec::new();
    // It ends without `close_notify`.
    slow.stream.read_to_end(&mut came).unwrap_err();
    let came = String::from_utf8_lossy(&came);
    let lost = (0..delivered).filter(|n| !came.contains(&format!(":<{n}>{padding}"))).count();
    assert_eq!(lost, 0, "of {delivered} that were told as delivered");
}

#[test]
fn draining_over_tls_tells_everybody() {
    let (server, certificate) = start(&["drain=100ms"]);
    let mut devices: Vec<_> = (0..5).map(|_| device(&server, &certificate)).collect();
    let began = Instant::now();
    server.signal(Signal::TERM);
    for device in &mut devices {
        assert_eq!(device.close_code(), 1001);
    }
    drop(devices);
    assert!(server.wait().status.success());
    assert!(began.elapsed() < Duration::from_secs(5));
}
