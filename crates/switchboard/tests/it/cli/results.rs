//! The results of `send`, each with its word and its exit code.

use std::time::{Duration, Instant};

use tungstenite::Message;

use super::durable::Listening;
use super::{Server, Shell, away, json, send, token};
use crate::device::Device;

#[test]
fn how_a_message_ends_is_told_by_word_and_exit_code() {
    let (server, shell) = (Server::start(), Shell::new());
    away(&shell, &server, "bob");
    for (line, code, result) in [
        // It once said "delivered" although the device was not connected.
        ("--wait 10ms bob x", 7, "stored"),
        ("--wait 0s bob x", 0, "accepted"),
        ("--ttl 1ms --wait 10s bob x", 9, "expired"),
        ("nobody x", 4, "rejected"),
        ("1 x", 4, "rejected"),
        ("--wait 0s --state me --id i bob x", 0, "accepted"),
        ("--wait 0s --state me --id i bob x", 0, "accepted"),
        ("--state me --id i bob y", 8, "rejected"),
    ] {
        let (ended, said) = send(&shell, &server, line);
        assert_eq!((ended, &said["result"]), (Some(code), &json!(result)), "{line}: {said}");
    }
    let (_, said) = send(&shell, &server, "--wait 10ms --state me --id i bob x");
    assert_eq!((&said["duplicate"], &said["durability"]), (&json!(true), &json!("disk")), "{said}");
    let ran = shell.run(&format!("send --wait 10ms --url {} bob x", server.url()));
    assert_eq!((ran.code, ran.err.as_str()), (Some(7), ""));
    assert!(ran.out.starts_with("stored for bob from "), "{}", ran.out);
    assert!(ran.out.ends_with(": it waits on disk until bob comes back\n"), "{}", ran.out);
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let (server, shell) = (Server::start(), Shell::new());
    token(&shell, &server, "deaf");
    let mut deaf = crate::v1::client::V1::named(&server, "deaf");
    let url = server.url();
    let mut command = shell.command(&format!("send --wait 10s --url {url} deaf x"));
    let sending = std::thread::spawn(move || command.output().unwrap());
    let message = deaf.expect(json!({"type": "message", "body": "x"}));
    deaf.say(&json!({"type": "refuse", "seq": message["seq"], "reason": "not now\nreally"}));
    let ran = super::Ran::from(sending.join().unwrap());
    assert_eq!(ran.code, Some(9), "{}", ran.err);
    let from = message["from"].as_str().unwrap();
    assert_eq!(
        ran.err,
        format!("switchboard: refused, not delivered to deaf from {from}: not now\\nreally\n")
    );
}

/// A device of the text protocol sends no acks, so nobody can say that a message was delivered.
#[test]
fn a_text_device_is_sent_to_without_a_receipt() {
    let (server, shell) = (Server::start(), Shell::new());
    let mut device = Device::connect(&server);
    let id = device.id;
    let (code, said) = send(&shell, &server, &format!("{id} hello"));
    assert_eq!((code, &said["result"]), (Some(0), &json!("accepted")), "{said}");
    assert_eq!(said["durability"], "none");
    assert_eq!(device.hear(), format!("{}:hello", said["from"].as_str().unwrap()));
    let ran = shell.run(&format!("send --url {} {id} hello", server.url()));
    let kept = "written to its connection, which does not say more";
    assert!(ran.out.starts_with("accepted for ") && ran.out.contains(kept), "{}", ran.out);
    for more in ["--ttl 1h", "--receipt --state me"] {
        let (code, said) = send(&shell, &server, &format!("{more} {id} hello"));
        assert_eq!((code, &said["code"]), (Some(8), &json!("durability_unavailable")), "{said}");
    }
}

/// A cron job runs it 1,440 times a day, and each run once left a mailbox for a day.
#[test]
fn senders_leave_nothing_but_their_messages() {
    const COUNT: usize = 20;
    let shell = Shell::new();
    let server = super::stopped::server(&shell);
    super::stopped::device(&shell, &server, "sink");
    let before = server.metric("switchboard_mailboxes");
    for n in 0..COUNT {
        assert_eq!(send(&shell, &server, &format!("--wait 0s sink {n}")).0, Some(0));
    }
    server.await_metric("switchboard_connections", |count| count == 0.0);
    assert_eq!(server.metric("switchboard_mailboxes"), before);
    server.terminate();
    let listed = shell.run("mailbox list --json");
    let row: serde_json::Value = serde_json::from_str(&listed.out).expect("one device");
    assert_eq!((&row["device"], &row["messages"]), (&json!("sink"), &json!(COUNT)));
    let records = |shell: &Shell| -> usize {
        let checked = shell.run("store check").out;
        let records = checked.split(", ").nth(1).and_then(|part| part.split(' ').next());
        records.unwrap_or_else(|| panic!("{checked}")).parse().unwrap()
    };
    // Another run with twice as many: the log grows by the messages and by what each run writes.
    let first = records(&shell);
    let server = super::stopped::server(&shell);
    for n in 0..COUNT {
        assert_eq!(send(&shell, &server, &format!("--wait 0s sink {n}")).0, Some(0));
    }
    server.terminate();
    let per_sender = (records(&shell) - first) as f64 / COUNT as f64;
    assert!((1.0..1.5).contains(&per_sender), "{per_sender} records a message");
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let shell = Shell::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", silent.local_addr().unwrap());
    let ran = shell.run(&format!("send --timeout 50ms --url {url} alice x"));
    assert_eq!(ran.code, Some(3));
    assert_eq!(ran.err, format!("switchboard: cannot connect to {url}: no answer within 50ms\n"));
    let ran = shell.run(&format!("listen --timeout 50ms --url {url}"));
    assert_eq!(ran.code, Some(3), "{}", ran.err);
}

/// The server's side of a connection whose message is never answered.
fn welcomes_and_listens(listener: &std::net::TcpListener) {
    let (socket, _) = listener.accept().unwrap();
    #[expect(clippy::result_large_err, reason = "the library's type")]
    let speak_v1 = |request: &tungstenite::handshake::server::Request,
                    mut response: tungstenite::handshake::server::Response| {
        let name = "sec-websocket-protocol";
        response.headers_mut().insert(name, request.headers()[name].clone());
        Ok(response)
    };
    let mut socket = tungstenite::accept_hdr(socket, speak_v1).unwrap();
    socket.read().unwrap();
    let welcome = json!({
        "type": "welcome", "device": "7", "token": "t", "mailbox": "a", "resumed": false,
        "pending": 0, "last_seq": 0, "ping_every_ms": 25_000, "max_message_bytes": 4096,
        "durability": "disk", "server": "test",
    });
    socket.send(Message::text(welcome.to_string())).unwrap();
    while socket.read().is_ok() {}
}

#[test]
fn without_an_answer_the_result_is_unknown() {
    let shell = Shell::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || welcomes_and_listens(&listener));
    let began = Instant::now();
    let ran = shell.run(&format!("send --json --timeout 300ms --id i --url {url} alice x"));
    let said: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &said["result"]), (Some(6), &json!("unknown")), "{said}");
    assert_eq!((&said["id"], &said["from"]), (&json!("i"), &json!("7")));
    assert!(began.elapsed() >= Duration::from_millis(300));
    server.join().unwrap();
}

#[test]
fn presence_of_a_listener_ends_with_it() {
    let (server, shell) = (Server::start(), Shell::new());
    let listener = Listening::start(&shell, &server, "");
    let id = listener.welcome["id"].as_str().unwrap().to_owned();
    drop(listener);
    server.await_metric("switchboard_connections", |count| count == 0.0);
    let (code, said) = send(&shell, &server, &format!("{id} x"));
    assert_eq!((code, &said["code"]), (Some(4), &json!("no_such_device")), "{said}");
}
