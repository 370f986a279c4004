//! Waiting messages, their redelivery, and the outcomes of all messages.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{V1, now_s, send, with};
use crate::device::Device;
use crate::server::{Server, binary};

/// On one shard, and with sender and receiver on different ones.
const SHARDS: [&str; 2] = ["shards=1", "shards=3"];

fn receipt() -> Value {
    json!({"receipt": true})
}

#[test]
fn what_waits_survives_a_crash_and_comes_in_order() {
    for shards in SHARDS {
        let mut server = Server::with(&[shards]);
        let mut a = V1::anonymous(&server);
        let b = V1::anonymous(&server).leave();
        for n in 1..=5 {
            a.send(&b.device, &format!("m{n}"));
        }
        server.restart();
        let mut device = b.back(&server, 0);
        let fields = ["device", "mailbox", "resumed", "pending", "last_seq"];
        let told = fields.map(|field| device.welcome[field].clone());
        assert_eq!(told, [json!(b.device), json!(b.mailbox), json!(true), json!(5), json!(0)]);
        let seqs: Vec<u64> = (1..=5).map(|n| device.take(&format!("m{n}"))).collect();
        assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
        device.ack(seqs[1]);
        device.hears_nothing();
        let mut device = device.leave().back(&server, 0);
        assert_eq!(
            (&device.welcome["pending"], &device.welcome["last_seq"]),
            (&json!(3), &json!(seqs[1]))
        );
        for n in 3..=5 {
            device.take(&format!("m{n}"));
        }
        device.hears_nothing();
    }
}

#[test]
fn pending_counts_messages_and_outcomes_that_are_not_acked() {
    for shards in SHARDS {
        let server = Server::with(&[shards]);
        let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
        b.send_with(&a.device(), "asked", &receipt());
        let seq = a.take("asked");
        a.ack(seq);
        let outcome = b.expect(json!({"type": "outcome", "id": "asked"}));
        a.send(&b.device(), "m");
        b.take("m");
        // Both were pushed, and neither is acked.
        let away = b.leave();
        let again = away.back(&server, 0);
        assert_eq!(again.welcome["pending"], 2);
        again.leave();
        a.send(&away.device, "later");
        let mut last = away.back(&server, outcome["seq"].as_u64().unwrap());
        assert_eq!(last.welcome["pending"], 2);
        last.take("m");
        last.take("later");
        last.hears_nothing();
    }
}

#[test]
fn what_a_hello_acks_is_not_pushed_again_also_after_a_crash() {
    for crash in [false, true] {
        let mut server = Server::with(&["shards=3"]);
        let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
        (1..=3).for_each(|n| a.send(&b.device(), &format!("m{n}")));
        let seqs: Vec<u64> = (1..=3).map(|n| b.take(&format!("m{n}"))).collect();
        let away = b.away();
        if crash {
            server.restart();
        }
        let mut b = away.back(&server, seqs[1]);
        assert_eq!(b.welcome["resumed"], true);
        assert_eq!(b.welcome["pending"], 1);
        b.take("m3");
        b.hears_nothing();
    }
}

#[test]
fn the_last_seq_of_another_mailbox_acks_nothing() {
    let server = Server::start();
    let mut a = V1::anonymous(&server);
    let mut b = V1::anonymous(&server).leave();
    a.send(&b.device, "1");
    let mailbox = std::mem::replace(&mut b.mailbox, "another".to_owned());
    let mut back = b.back(&server, 99);
    assert_eq!(
        (&back.welcome["resumed"], &back.welcome["mailbox"]),
        (&json!(false), &json!(mailbox))
    );
    back.take("1");
}

/// Acks are soon on disk: messages acked before a quiet moment do not come back.
#[test]
fn an_ack_survives_a_crash() {
    let mut server = Server::with(&["shards=3"]);
    let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
    a.send_with(&b.device(), "1", &receipt());
    let seq = b.take("1");
    b.ack(seq);
    // Sent only once the record that removes the message is synced.
    a.expect(json!({"type": "outcome", "id": "1", "outcome": "delivered"}));
    let away = b.away();
    server.restart();
    let mut b = away.back(&server, 0);
    assert_eq!(b.welcome["pending"], 0);
    b.hears_nothing();
    let mut a = a.away().back(&server, 0);
    a.expect(json!({"type": "outcome", "id": "1", "outcome": "delivered"}));
    a.hears_nothing();
}

#[test]
fn a_body_arrives_byte_for_byte_also_from_the_store() {
    let bodies = [
        "null",
        "-0.0",
        "1e400",
        "123456789012345678901234567890.10",
        r#"{"b" : 1,"a": [ ],  "b":2}"#,
        r#""\u00e9\/\n é 🐙""#,
        "[1, [2,  {}]]",
    ];
    let mut server = Server::with(&["shards=3"]);
    let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
    let (from, to) = (a.device(), b.device());
    for (n, body) in bodies.iter().enumerate() {
        a.say_text(&format!(
            r#"{{"body": {body} , "re":"q","id":"{n}","to":"{to}","type":"send","more":[]}}"#
        ));
        a.expect(json!({"type": "accepted", "id": n.to_string()}));
    }
    let hear_all = |b: &mut V1| {
        for (n, body) in bodies.iter().enumerate() {
            let text = b.hear_text();
            assert!(text.contains(&format!("\"body\":{body}")), "{body} in {text}");
            let message: Value = serde_json::from_str(&text.replace("1e400", "1")).unwrap();
            assert_eq!(message["from"], json!(from));
            assert_eq!((&message["id"], &message["re"]), (&json!(n.to_string()), &json!("q")));
            let sent_at_s = message["sent_at_ms"].as_u64().unwrap() / 1_000;
            assert!(now_s().abs_diff(sent_at_s) < 60);
        }
    };
    hear_all(&mut b);
    server.restart();
    hear_all(&mut b.away().back(&server, 0));
}

#[test]
fn a_retry_is_recognised_also_after_a_crash() {
    for shards in SHARDS {
        let mut server = Server::with(&[shards]);
        let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
        let to = b.device();
        a.send(&to, "1");
        b.take("1");
        let duplicate =
            json!({"type": "accepted", "id": "1", "durability": "disk", "duplicate": true});
        let reused = json!({"type": "rejected", "id": "1", "code": "id_reused"});
        a.ask(send(&to, "1"), duplicate.clone());
        a.ask(with(send(&to, "1"), &json!({"body": 2})), reused.clone());
        let (away, b) = (a.away(), b.away());
        server.restart();
        let mut a = away.back(&server, 0);
        a.ask(send(&to, "1"), duplicate);
        a.ask(with(send(&to, "1"), &json!({"body": 2})), reused);
        let mut b = b.back(&server, 0);
        b.take("1");
        b.hears_nothing();
    }
}

/// A message is identified by its sender, its receiver and its id: an id that stood for one
/// receiver was once `id_reused` for another, so that a sender needed one for each of several.
#[test]
fn the_same_id_to_two_receivers_is_two_messages() {
    for shards in SHARDS {
        let mut server = Server::with(&[shards]);
        let mut a = V1::anonymous(&server);
        let mut receivers = [V1::anonymous(&server), V1::anonymous(&server)];
        let to = [receivers[0].device(), receivers[1].device()];
        for to in &to {
            let new = a.ask(with(send(to, "1"), &receipt()), json!({"type": "accepted"}));
            assert_eq!(new.get("duplicate"), None, "{to}");
        }
        for (receiver, to) in receivers.iter_mut().zip(&to) {
            let seq = receiver.take("1");
            receiver.ack(seq);
            let delivered = json!({"type": "outcome", "id": "1", "to": to, "outcome": "delivered"});
            a.expect(delivered);
        }
        let away = a.away();
        server.restart();
        let mut a = away.back(&server, 0);
        for to in &to {
            a.expect(json!({"type": "outcome", "id": "1", "to": to}));
        }
        for to in &to {
            a.ask(send(to, "1"), json!({"type": "accepted", "id": "1", "duplicate": true}));
        }
        // Only to these: to a third one it is another message again.
        a.send(&a.device(), "1");
        a.take("1");
    }
}

/// Its shard remembers the ids, whatever has become of the receiver itself.
#[test]
fn a_retry_is_recognised_also_when_its_receiver_has_ended() {
    for shards in SHARDS {
        let server = Server::with(&[shards, "device_ttl=1s"]);
        let mut a = V1::named(&server, "a");
        let mut ephemeral = V1::hello(&server, json!({"ephemeral": true}));
        let short = V1::anonymous(&server).leave();
        let sent = [(ephemeral.device(), "memory"), (short.device, "disk")];
        for (to, durability) in &sent {
            let accepted = json!({"type": "accepted", "id": "1", "durability": durability});
            a.ask(send(to, "1"), accepted);
        }
        ephemeral.take("1");
        ephemeral.leave();
        server.await_metric("switchboard_devices_ended_total", |ended| ended == 2.0);
        for (to, durability) in &sent {
            let nobody = json!({"type": "rejected", "id": "2", "code": "no_such_device"});
            a.ask(send(to, "2"), nobody);
            let first = json!({"type": "accepted", "durability": durability, "duplicate": true});
            a.ask(send(to, "1"), first);
            let reused = json!({"type": "rejected", "id": "1", "code": "id_reused"});
            a.ask(with(send(to, "1"), &json!({"body": 2})), reused);
        }
    }
}

/// Nothing is kept of a device without a mailbox: the answer must not depend on the shard that is
/// asked once it is gone.
#[test]
fn a_retry_to_a_text_device_that_is_gone_is_rejected() {
    for shards in SHARDS {
        let server = Server::with(&[shards]);
        let mut a = V1::anonymous(&server);
        for _ in 0..4 {
            let text = Device::connect(&server);
            let to = text.id.to_string();
            a.ask(send(&to, "1"), json!({"type": "accepted", "durability": "none"}));
            a.ask(send(&to, "1"), json!({"type": "accepted", "duplicate": true}));
            text.close();
            a.ask(send(&to, "1"), json!({"type": "rejected", "code": "no_such_device"}));
        }
    }
}

/// A message in memory is delivered to a connected receiver, and may be lost in a crash.
#[test]
fn a_sender_may_ask_for_less_than_disk() {
    let mut server = Server::with(&["shards=3"]);
    let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
    let memory = json!({"durability": "memory"});
    let accepted = json!({"type": "accepted", "id": "1", "durability": "memory"});
    a.ask(with(send(&b.device(), "1"), &memory), accepted);
    let first = b.take("1");
    let (a, b) = (a.away(), b.away());
    server.restart();
    let (mut a, mut b) = (a.back(&server, 0), b.back(&server, 0));
    a.send(&b.device(), "2");
    // Its number is not used again.
    assert!(b.take("2") > first);
}

fn cancel(to: &str, id: &str) -> Value {
    json!({"type": "cancel", "id": id, "to": to})
}

fn cancelled(to: &str, id: &str) -> Value {
    json!({"type": "cancelled", "id": id, "to": to})
}

fn too_late(to: &str, id: &str) -> Value {
    json!({"type": "rejected", "id": id, "to": to, "code": "too_late"})
}

/// An action on a message before its outcome is told.
type Ending = fn(&Server, &mut V1, V1);

#[test]
fn every_message_has_one_outcome_that_says_how_it_ended() {
    let endings: [(&str, &str, Value, Ending); 7] = [
        ("delivered", "", json!({}), |_, _, mut b| {
            let seq = b.take("1");
            b.ack(seq);
            b.hears_nothing();
        }),
        ("refused", "", json!({"reason": "not \"now\""}), |_, _, mut b| {
            let seq = b.take("1");
            b.say(&json!({"type": "refuse", "seq": seq, "reason": "not \"now\""}));
            b.hears_nothing();
        }),
        ("refused", "", json!({}), |_, _, mut b| {
            let seq = b.take("1");
            b.say(&json!({"type": "refuse", "seq": seq}));
            b.hears_nothing();
        }),
        ("expired", "busy", json!({}), |_, _, _| {}),
        ("expired", "", json!({"maybe_seen": true}), |_, _, mut b| {
            b.take("1");
        }),
        ("cancelled", "busy", json!({}), |_, a, b| {
            a.say(&cancel(&b.device(), "1"));
        }),
        ("evicted", "", json!({"maybe_seen": true}), |_, _, mut b| {
            b.take("1");
            b.leave();
        }),
    ];
    for (outcome, receiver, more, end) in &endings {
        let ends: &[&str] = if *outcome == "evicted" { &["device_ttl=1s"] } else { &[] };
        let server = Server::with(&[&["shards=3", "in_flight_max=1"], ends].concat());
        let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
        let to = b.device();
        if *receiver == "busy" {
            // It is connected with as many unacked messages as allowed: nothing more is pushed.
            V1::anonymous(&server).send(&to, "0");
            b.take("0");
        }
        let ttl = if *outcome == "expired" { json!({"ttl_ms": 300}) } else { json!({}) };
        a.send_with(&to, "1", &with(receipt(), &ttl));
        end(&server, &mut a, b);
        let mut told = a.hear();
        if *outcome == "cancelled" {
            // The receiver's shard answers, the sender's tells the outcome: in either order.
            let other = a.hear();
            let is_answer = told["type"] == "cancelled";
            let answer = if is_answer { std::mem::replace(&mut told, other) } else { other };
            assert_eq!(answer, cancelled(&to, "1"));
        }
        for (field, value) in [("type", "outcome"), ("id", "1"), ("to", &*to), ("outcome", outcome)]
        {
            assert_eq!(told[field], *value, "{field} of {told}");
        }
        for field in ["reason", "maybe_seen"] {
            assert_eq!(told.get(field), more.get(field), "{field} of {told}");
        }
        a.hears_nothing();
        let seq = told["seq"].as_u64().unwrap();
        a.ack(seq);
        let mut a = a.leave().back(&server, 0);
        assert_eq!(a.welcome["pending"], 0);
        a.hears_nothing();
    }
}

#[test]
fn an_expiry_is_told_within_a_second_also_over_a_restart() {
    for crash in [false, true] {
        let mut server = Server::with(&["shards=3"]);
        let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
        let ttl = Duration::from_millis(400);
        let began = Instant::now();
        a.send_with(&b.device, "1", &json!({"receipt": true, "ttl_ms": 400}));
        if crash {
            let away = a.away();
            server.restart();
            a = away.back(&server, 0);
        }
        a.expect(json!({"type": "outcome", "id": "1", "outcome": "expired"}));
        let took = began.elapsed();
        assert!((ttl..ttl + Duration::from_secs(1)).contains(&took), "{took:?}");
        let mut b = b.back(&server, 0);
        assert_eq!(b.welcome["pending"], 0);
        b.hears_nothing();
    }
}

#[test]
fn what_was_pushed_cannot_be_cancelled_and_the_rest_can() {
    let server = Server::with(&["shards=3"]);
    let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
    let to = b.device();
    a.send(&to, "1");
    let seq = b.take("1");
    a.ask(cancel(&to, "1"), too_late(&to, "1"));
    b.ack(seq);
    b.hears_nothing();
    a.ask(cancel(&to, "1"), too_late(&to, "1"));
    a.ask(cancel(&to, "never"), too_late(&to, "never"));
    let b = b.leave();
    a.send(&to, "2");
    a.send(&to, "3");
    // The message to that receiver alone, whoever else is named.
    for other in [&a.device(), "nobody", "no body"] {
        a.ask(cancel(other, "2"), too_late(other, "2"));
    }
    let error = json!({"type": "error", "code": "bad_frame", "id": "2"});
    a.ask(json!({"type": "cancel", "id": "2"}), error);
    // The first answer may have been lost.
    for _ in 0..2 {
        a.ask(cancel(&to, "2"), cancelled(&to, "2"));
    }
    let mut b = b.back(&server, seq);
    b.take("3");
    b.hears_nothing();
}

/// A sender whose answer was lost with the server may ask again: the record that ends a message with
/// a `receipt` says that it was cancelled.
#[test]
fn a_cancel_is_answered_the_same_after_a_restart() {
    for shards in SHARDS {
        let mut server = Server::with(&[shards]);
        let mut a = V1::anonymous(&server);
        let b = V1::anonymous(&server).leave();
        a.send_with(&b.device, "1", &receipt());
        a.say(&cancel(&b.device, "1"));
        let answers = [a.hear(), a.hear()];
        assert!(answers.contains(&cancelled(&b.device, "1")), "{answers:?}");
        let away = a.away();
        server.restart();
        let mut a = away.back(&server, 0);
        a.expect(json!({"type": "outcome", "id": "1", "to": b.device, "outcome": "cancelled"}));
        for _ in 0..2 {
            a.ask(cancel(&b.device, "1"), cancelled(&b.device, "1"));
        }
        // The id still stands for it, and nothing is left of the message.
        a.ask(send(&b.device, "1"), json!({"type": "accepted", "id": "1", "duplicate": true}));
        b.back(&server, 0).hears_nothing();
        a.hears_nothing();
    }
}

#[test]
fn a_refusal_takes_one_message_and_leaves_the_others() {
    let server = Server::start();
    let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
    (1..=3).for_each(|n| a.send(&b.device(), &n.to_string()));
    let seqs: Vec<u64> = (1..=3).map(|n| b.take(&n.to_string())).collect();
    b.say(&json!({"type": "refuse", "seq": seqs[1]}));
    b.hears_nothing();
    let mut b = b.leave().back(&server, 0);
    assert_eq!(b.welcome["pending"], 2);
    b.take("1");
    b.take("3");
    b.hears_nothing();
}

#[test]
fn a_device_that_was_away_too_long_comes_back_with_another_mailbox() {
    let server = Server::with(&["device_ttl=1s"]);
    let mut a = V1::named(&server, "a");
    let b = V1::anonymous(&server).leave();
    a.send(&b.device, "1");
    server.await_metric("switchboard_devices_ended_total", |ended| ended == 1.0);
    a.ask(send(&b.device, "2"), json!({"type": "rejected", "code": "no_such_device"}));
    let mut back = b.back(&server, 1);
    assert_eq!(back.device(), b.device);
    assert_eq!(back.welcome["resumed"], false);
    assert_ne!(back.away().mailbox, b.mailbox);
    back.hears_nothing();
    a.send(&b.device, "3");
    back.take("3");
}

#[test]
fn a_named_device_exists_from_its_first_hello_on() {
    let mut server = Server::with(&["shards=3", "device_ttl=1s"]);
    let mut a = V1::named(&server, "a");
    let nobody = json!({"type": "rejected", "id": "1", "code": "no_such_device"});
    a.ask(send("b", "1"), nobody);
    let b = V1::named(&server, "b").leave();
    // The id of a rejected message is not remembered.
    a.send("b", "1");
    let away = a.away();
    server.restart();
    away.back(&server, 0).send("b", "2");
    let mut b = b.back(&server, 0);
    b.take("1");
    b.take("2");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").arg(from.join(".")).arg(to).status();
    assert!(copied.unwrap().success());
}

/// Both runs after a backup once gave out the same ids. A device with such an id read the
/// messages to the device that had it before, and took that device over.
#[test]
fn an_id_given_after_a_backup_is_not_given_again() {
    let mut server = Server::start();
    let data = server.directory.path().join("switchboard-data");
    let backup = tempfile::tempdir().unwrap();
    server.kill();
    copy(&data, backup.path());
    server.restart();
    let lost = V1::anonymous(&server).leave();
    server.kill();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::create_dir(&data).unwrap();
    copy(backup.path(), &data);

    server.restart();
    let mut new = V1::anonymous(&server);
    let mut back = lost.back(&server, 0);
    assert_eq!(back.welcome["resumed"], false);
    new.send(&back.device(), "for the one that came back");
    back.take("for the one that came back");
    back.hears_nothing();
    assert!(new.device().parse::<u64>().unwrap() < 1 << 53, "JavaScript reads it as a number");
}

/// A copy was once recognised only by the inode of the directory. A backup restored in place
/// gave the receiver numbers that it had seen: it skipped fifty new messages, and their senders
/// were told `delivered`.
#[test]
fn a_backup_put_back_in_place_costs_no_new_message() {
    let mut server = Server::start();
    let data = server.directory.path().join("switchboard-data");
    let backup = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server));
    a.send(&b.device(), "before");
    let seq = b.take("before");
    b.ack(seq);
    let (a_away, b_away) = (a.away(), b.leave());
    server.kill();
    copy(&data, backup.path());

    server.restart();
    let (mut a, mut b) = (a_away.back(&server, 0), b_away.back(&server, seq));
    // More than a block of numbers. The messages in flight from the previous round, whose acks
    // may still be under way, and one round are less than the sender's share of a mailbox: 256 +
    // 200 < 500.
    let mut last = 0;
    for round in 0..16 {
        let ids: Vec<_> = (0..200).map(|n| format!("lost{round}.{n}")).collect();
        a.say_all(ids.iter().map(|id| send(&b.device(), id)));
        for id in &ids {
            last = b.take(id);
            // Otherwise nothing beyond the in-flight limit would come.
            b.ack(last);
        }
        ids.iter().for_each(|id| drop(a.expect(json!({"type": "accepted", "id": id}))));
    }
    let b_away = b.leave();
    server.kill();
    copy(backup.path(), &data);

    server.restart();
    let mut a = a_away.back(&server, 0);
    (0..50).for_each(|n| a.send(&b_away.device, &format!("new{n}")));
    let mut b = b_away.back(&server, last);
    assert_ne!(b.welcome["mailbox"], json!(b_away.mailbox));
    assert_eq!(b.welcome["resumed"], false);
    let ids: Vec<Value> = (0..50).map(|n| json!(format!("new{n}"))).collect();
    let mut next = b.hear()["id"].clone();
    if next == "before" {
        // Its ack was not on disk yet.
        next = b.hear()["id"].clone();
    }
    assert_eq!(next, ids[0]);
    ids[1..].iter().for_each(|id| assert_eq!(b.hear()["id"], *id));
}

/// After a backup was restored, and after a repair, a message that its receiver had read and acked
/// since was taken back by `cancel`. The first start after it must record that it may have been
/// seen, as later ones cannot know.
#[test]
fn what_was_read_after_a_backup_or_in_a_lost_part_cannot_be_taken_back() {
    for is_repaired in [false, true] {
        let mut server = Server::start();
        let data = server.directory.path().join("switchboard-data");
        let backup = tempfile::tempdir().unwrap();
        let b_away = V1::named(&server, "b").leave();
        let mut a = V1::named(&server, "a");
        a.send("b", "read");
        let a_away = a.leave();
        server.kill();
        copy(&data, backup.path());

        server.restart();
        let mut b = b_away.back(&server, 0);
        let seq = b.take("read");
        b.ack(seq);
        b.leave();
        server.kill();
        if is_repaired {
            let segment = "log/00000001.seg";
            std::fs::copy(backup.path().join(segment), data.join(segment)).unwrap();
            let repaired =
                binary().args(["store", "repair", "--data-dir"]).arg(&data).output().unwrap();
            assert!(repaired.status.success(), "{repaired:?}");
        } else {
            std::fs::remove_dir_all(&data).unwrap();
            std::fs::create_dir(&data).unwrap();
            copy(backup.path(), &data);
        }

        for since in ["one", "two", "three"] {
            server.restart();
            let mut a = a_away.back(&server, 0);
            a.ask(cancel("b", "read"), too_late("b", "read"));
            a.send("b", since);
            a.ask(cancel("b", since), cancelled("b", since));
            a.leave();
            server.kill();
        }
    }
}
