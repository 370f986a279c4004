//! Every bound, and the error at it.

use std::net::TcpStream;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::client::{V1, send, with};
use crate::device::Device;
use crate::server::{PATIENCE, Server, token};

fn rejected(id: &str, code: &str) -> Value {
    json!({"type": "rejected", "id": id, "code": code})
}

#[test]
fn at_most_in_flight_max_messages_are_pushed_ahead_of_the_acks() {
    let server = Server::with(&["shards=3", "in_flight_max=3"]);
    let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
    (1..=7).for_each(|n| a.send(&b.device(), &n.to_string()));
    let seqs: Vec<u64> = (1..=3).map(|n| b.take(&n.to_string())).collect();
    b.hears_nothing();
    b.ack(seqs[0]);
    b.take("4");
    b.hears_nothing();
    b.say(&json!({"type": "refuse", "seq": seqs[1]}));
    let last = b.take("5");
    b.hears_nothing();
    b.ack(last);
    b.take("6");
    b.take("7");
    b.hears_nothing();
}

#[test]
fn a_full_mailbox_refuses_and_keeps_what_it_has() {
    let server = Server::with(&["shards=3", "mailbox_max_messages=2"]);
    let mut a = V1::anonymous(&server);
    let b = V1::anonymous(&server).leave();
    a.send(&b.device, "1");
    a.send(&b.device, "2");
    let full = a.ask(send(&b.device, "3"), rejected("3", "mailbox_full"));
    assert!(full["retry_after_ms"].is_u64(), "{full}");
    let mut b = b.back(&server, 0);
    b.take("1");
    let seq = b.take("2");
    b.ack(seq);
    b.hears_nothing();
    // The id of a rejected message is still free.
    a.send(&b.device(), "3");
    b.take("3");
    b.hears_nothing();
}

#[test]
fn bytes_fill_a_mailbox_too_and_what_never_fits_is_too_large() {
    let server = Server::with(&["mailbox_max_bytes=1KiB"]);
    let mut a = V1::anonymous(&server);
    let b = V1::anonymous(&server).leave();
    let long = |len| json!({"body": "x".repeat(len)});
    a.ask(with(send(&b.device, "1"), &long(1025)), rejected("1", "too_large"));
    a.send_with(&b.device, "2", &long(600));
    a.ask(with(send(&b.device, "3"), &long(600)), rejected("3", "mailbox_full"));
}

#[test]
fn a_receipt_needs_a_place_for_its_outcome() {
    let server = Server::with(&["shards=3", "outcomes_max=2"]);
    let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
    let receipt = json!({"receipt": true});
    let to = b.device();
    a.send_with(&to, "1", &receipt);
    a.send_with(&to, "2", &receipt);
    let seqs = [b.take("1"), b.take("2")];
    b.ack(seqs[1]);
    let outcomes = ["1", "2"].map(|id| a.expect(json!({"type": "outcome", "id": id})));
    a.ask(with(send(&to, "3"), &receipt), rejected("3", "outcomes_full"));
    a.send(&to, "3");
    a.ack(outcomes[0]["seq"].as_u64().unwrap());
    a.send_with(&to, "4", &receipt);
}

/// What is pending is counted in memory, so after a restart it does not count: the outcomes come
/// all the same, and those that wait count as before.
#[test]
fn after_a_restart_only_outcomes_that_wait_count() {
    for shards in ["shards=1", "shards=3"] {
        let mut server = Server::with(&[shards, "outcomes_max=2"]);
        let mut a = V1::anonymous(&server);
        let b = V1::anonymous(&server).leave();
        let (receipt, to) = (json!({"receipt": true}), &b.device);
        ["1", "2"].iter().for_each(|id| a.send_with(to, id, &receipt));
        a.ask(with(send(to, "3"), &receipt), rejected("3", "outcomes_full"));
        let away = a.away();
        server.restart();
        let mut a = away.back(&server, 0);
        ["3", "4"].iter().for_each(|id| a.send_with(to, id, &receipt));
        a.ask(with(send(to, "5"), &receipt), rejected("5", "outcomes_full"));
        let mut b = b.back(&server, 0);
        let seqs = ["1", "2", "3", "4"].map(|id| b.take(id));
        b.ack(seqs[3]);
        let outcomes =
            ["1", "2", "3", "4"].map(|id| a.expect(json!({"type": "outcome", "id": id})));
        a.ask(with(send(&b.device(), "5"), &receipt), rejected("5", "outcomes_full"));
        a.ack(outcomes[2]["seq"].as_u64().unwrap());
        a.send_with(&b.device(), "5", &receipt);
    }
}

#[test]
fn one_sender_has_a_share_of_a_mailbox_and_is_told_so() {
    let server = Server::with(&["shards=3", "mailbox_max_messages=40"]);
    let mut a = V1::anonymous(&server);
    let b = V1::anonymous(&server).leave();
    (0..20).for_each(|n| a.send(&b.device, &n.to_string()));
    let full = a.ask(send(&b.device, "20"), rejected("20", "mailbox_full"));
    assert!(full["message"].as_str().unwrap().contains("your share"), "{full}");
    V1::anonymous(&server).send(&b.device, "21");
}

/// A message within the limit once became a frame above it: a client that limits its reads to
/// the size in `welcome` closed with 1009 on every connection, and everything after the message
/// waited for ever.
#[test]
fn a_message_is_judged_by_how_long_it_is_when_it_is_pushed() {
    let server = Server::with(&["max_message_bytes=4KiB"]);
    let mut a = V1::anonymous(&server);
    let mut b = V1::named(&server, "bob");
    let long = |len| json!({"body": "x".repeat(len)});
    a.ask(with(send("bob", "1"), &long(4_020)), rejected("1", "too_large"));
    a.send_with("bob", "1", &long(3_900));
    b.take("1");
    let mut text = Device::connect(&server);
    let escaped = "\u{1}".repeat(1_000);
    assert_eq!(text.ask(&format!("send,bob,{escaped}")), "Mailbox full");
    text.say(&format!("send,bob,{}", "\u{1}".repeat(600)));
    assert_eq!(b.expect(json!({"type": "message"}))["body"], "\u{1}".repeat(600));
}

/// A message accepted under a higher limit is still pushed, and `welcome` names its length.
#[test]
fn a_lowered_limit_does_not_lock_a_device_out_of_its_mailbox() {
    let mut server = Server::with(&["max_message_bytes=64KiB"]);
    let b = V1::named(&server, "bob").leave();
    let body = json!({"body": "x".repeat(20_000)});
    V1::named(&server, "ann").send_with("bob", "1", &body);
    server.kill();
    server.restart_with(&["max_message_bytes=8KiB"]);
    let mut b = b.back(&server, 0);
    let announced = b.welcome["max_message_bytes"].as_u64().unwrap();
    assert!((20_000..21_000).contains(&announced), "{announced}");
    let seq = b.take("1");
    b.ack(seq);
    let a = V1::named(&server, "ann");
    assert_eq!(a.welcome["max_message_bytes"], 8 << 10);
}

#[test]
fn a_page_of_devices_keeps_to_the_longest_frame() {
    let server = Server::with(&["max_message_bytes=4KiB"]);
    let devices: Vec<V1> = (0..80).map(|_| V1::anonymous(&server)).collect();
    let mut a = V1::anonymous(&server);
    let mut seen = 0;
    let mut after = Value::Null;
    loop {
        a.say(&json!({"type": "devices", "id": "d", "after": after}));
        let page = a.hear_text();
        assert!(page.len() <= 4 << 10, "{}", page.len());
        let page: Value = serde_json::from_str(&page).unwrap();
        seen += page["devices"].as_array().unwrap().len();
        after = page["next"].clone();
        if after.is_null() {
            break;
        }
    }
    assert_eq!(seen, devices.len() + 1);
}

#[test]
fn above_devices_max_new_devices_are_rejected_and_those_that_exist_come() {
    let server = Server::with(&["shards=2", "devices_max=2"]);
    let ann = V1::named(&server, "ann").leave();
    let _b = V1::anonymous(&server);
    for hello in [json!({}), json!({"token": super::client::token(&server, "cleo", None)})] {
        let mut c = V1::open(&server);
        c.say_hello(hello);
        let (code, reason) = c.end();
        assert_eq!(code, 1013);
        assert!(reason.starts_with("full"), "{reason}");
    }
    ann.back(&server, 0);
    // A device without a mailbox does not count.
    V1::hello(&server, json!({"ephemeral": true})).send("ann", "1");
}

#[test]
fn devices_without_a_name_leave_a_quarter_to_those_with_one() {
    let server = Server::with(&["shards=2", "devices_max=8", "memory_messages_max_bytes=1MiB"]);
    let mut ann = V1::named(&server, "ann");
    let mut strangers: Vec<V1> = (0..6).map(|_| V1::anonymous(&server)).collect();
    let mut refused = V1::open(&server);
    refused.say_hello(json!({}));
    assert_eq!(refused.end().0, 1013);
    V1::named(&server, "bob");
    // To itself, more than three quarters of a shard's half.
    let stranger = &mut strangers[0];
    let to = stranger.device();
    let more = json!({"body": "x".repeat(150_000), "durability": "memory"});
    for (id, kind) in [("1", "accepted"), ("2", "accepted"), ("3", "rejected")] {
        stranger.say(&with(send(&to, id), &more));
        let mut frames = std::iter::repeat_with(|| stranger.hear());
        let answer = frames.find(|frame| frame["type"] != "message").expect("an answer");
        assert_eq!(answer["type"], kind, "{answer}");
    }
    assert_eq!(server.metric("switchboard_rejected_total{code=\"store_full\"}"), 1.0);
    ann.ask(with(send(&to, "4"), &more), json!({"type": "accepted", "id": "4"}));
}

#[test]
fn an_ephemeral_device_leaves_nothing_but_what_it_sent() {
    let server = Server::with(&["shards=2"]);
    let mut b = V1::named(&server, "bob");
    let mut a = V1::hello(&server, json!({"ephemeral": true}));
    a.send("bob", "1");
    let seq = b.take("1");
    b.ack(seq);
    let answer = b.ask(send(&a.device(), "2"), json!({"type": "accepted", "id": "2"}));
    assert_eq!(answer["durability"], "memory");
    a.take("2");
    let a = a.leave();
    b.ask(send(&a.device, "3"), rejected("3", "no_such_device"));
    let again = a.back(&server, 0);
    assert_eq!(again.welcome["resumed"], false);
    assert_ne!(again.welcome["mailbox"], json!(a.mailbox));
}

#[test]
fn what_cannot_be_done_is_rejected_with_the_reason() {
    let server = Server::start();
    let mut a = V1::anonymous(&server);
    let text = Device::connect(&server);
    let gone = text.id.to_string();
    text.close();
    let mut text_device = Device::connect(&server);
    let to = text_device.id.to_string();
    for (to, more, code) in [
        ("1", json!({}), "no_such_device"),
        ("nobody", json!({}), "no_such_device"),
        ("no/body", json!({}), "no_such_device"),
        (&*gone, json!({}), "no_such_device"),
        (&*to, json!({"receipt": true}), "durability_unavailable"),
        (&*to, json!({"ttl_ms": 1000}), "durability_unavailable"),
        (&*to, json!({"durability": "memory"}), "durability_unavailable"),
        (&*a.device(), json!({"durability": "replicated"}), "durability_unavailable"),
        (&*a.device(), json!({"ttl_ms": 0}), "bad_request"),
    ] {
        let answer = a.ask(with(send(to, "1"), &more), rejected("1", code));
        assert_ne!(answer["message"], "", "{code}");
    }
    text_device.hears_nothing();
    let memory = Server::with(&["data_dir="]);
    let mut a = V1::anonymous(&memory);
    let disk = with(send(&a.device(), "1"), &json!({"durability": "disk"}));
    a.ask(disk, rejected("1", "durability_unavailable"));
}

/// A sender with more unanswered messages than ids are remembered was once rejected
/// `rate_limited`; now the oldest id is forgotten for the newest.
#[test]
fn as_many_ids_of_a_sender_are_remembered_as_may_be() {
    let server = Server::with(&["shards=1", "dedup_ids_max=5"]);
    let mut a = V1::anonymous(&server);
    let b = V1::anonymous(&server).leave();
    a.say_all([send(&b.device, "1"), send(&b.device, "2")]);
    a.expect(json!({"type": "accepted", "id": "1"}));
    a.expect(json!({"type": "accepted", "id": "2"}));
    a.ask(send(&b.device, "2"), json!({"type": "accepted", "id": "2", "duplicate": true}));
    a.send(&b.device, "1");
}

/// Connects a receiver with a small receive buffer.
fn slow(server: &Server, away: &super::client::Away) -> V1 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(&server.address.into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut device = V1::over(stream, server.url()).unwrap();
    device.say_hello(json!({"token": away.token, "mailbox": away.mailbox, "last_seq": 0}));
    device.welcome();
    device
}

#[test]
fn a_slow_reader_is_cut_and_loses_nothing() {
    let server = Server::with(&[
        "shards=3",
        "out_queue_stall_timeout=200ms",
        "out_queue_max_bytes=64KiB",
        "mailbox_max_messages=1000",
        "mailbox_max_bytes=256MiB",
    ]);
    let mut a = V1::anonymous(&server);
    let b = V1::anonymous(&server).leave();
    let device = slow(&server, &b);
    let body = json!({"body": "x".repeat(100_000)});
    (0..100).for_each(|n| a.send_with(&b.device, &n.to_string(), &body));
    let closed = "switchboard_connections_closed_total{code=\"4508\"}";
    server.await_metric(closed, |closed| closed == 1.0);
    drop(device);
    let mut device = b.back(&server, 0);
    assert_eq!(device.welcome["pending"], 100);
    let seqs: Vec<u64> = (0..100).map(|n| device.take(&n.to_string())).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b));
    device.hears_nothing();
}

/// After a restart the ids of an ephemeral device were once taken for those of the next device
/// of its name: a first message was answered `duplicate`, and never delivered.
#[test]
fn the_ids_of_an_ephemeral_device_end_with_it_also_in_the_store() {
    let mut server = Server::start();
    let bob = V1::named(&server, "bob");
    let mut ephemeral =
        V1::hello(&server, json!({"token": token(&server, "alice", None), "ephemeral": true}));
    ephemeral.send("bob", "1");
    ephemeral.leave();
    let alice = V1::named(&server, "alice").leave();
    let bob = bob.away();
    server.restart();
    let mut alice = alice.back(&server, 0);
    // Neither a retry of the first message nor another message under its id.
    alice.send("bob", "1");
    let mut bob = bob.back(&server, 0);
    assert!(bob.take("1") < bob.take("1"));
}
