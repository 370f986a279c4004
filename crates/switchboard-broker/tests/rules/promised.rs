//! Room for outcomes is kept free from the moment their messages are accepted.

use switchboard_broker::{DEVICE_BYTES, Limits, RECEIPT_BYTES};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, Outcome};

use crate::records::{ANN, BOB, device, ended, message, outcome};
use crate::rig::Rig;

fn send(id: u64, more: &str) -> String {
    format!(r#"{{"type":"send","id":"{id}","to":"bob","body":1,"receipt":true{more}}}"#)
}

/// Returns a `refuse` with the longest reason.
fn refuse(seq: u64) -> String {
    format!(r#"{{"type":"refuse","seq":{seq},"reason":"{}"}}"#, "r".repeat(256))
}

fn rig(limits: Limits, is_durable: bool) -> Rig {
    let mut rig = Rig::new(limits, is_durable);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig
}

/// Sends until a message is rejected; returns the number that were accepted.
fn fill(rig: &mut Rig, conn: u32, from: u64, more: &str) -> u64 {
    for id in from.. {
        let mut done = rig.say(conn, &send(id, more));
        done.frames.extend(rig.sync().frames);
        let (_, answer) = done.frames.iter().find(|(to, _)| *to == conn).expect("an answer");
        if !answer.contains("\"accepted\"") {
            assert!(answer.contains("\"store_full\""), "{answer}");
            return id - from;
        }
    }
    unreachable!("there are bounds")
}

/// Tiny messages, each refused with a long reason, once took three times the bound on memory.
#[test]
fn outcomes_in_memory_stay_within_the_bound_on_memory() {
    for (is_durable, is_ephemeral, more) in
        [(false, false, ""), (true, false, r#","durability":"memory""#), (true, true, "")]
    {
        let limits = Limits { memory_messages_max_bytes: 6_000, ..Limits::default() };
        let mut rig = rig(limits, is_durable);
        if is_ephemeral {
            rig.leave(0);
            rig.is_ephemeral = true;
            rig.hello(0, "eve", None);
        }
        let sent = fill(&mut rig, 0, 0, more);
        assert!(sent > 5, "{sent}");
        rig.broker.audit(100, 100).unwrap();
        for seq in 1..=sent {
            rig.say(1, &refuse(seq));
            rig.sync();
            rig.broker.audit(100, 100).unwrap();
        }
        // What is kept is used, and for no more than it was kept for.
        let more_sent = fill(&mut rig, 0, 1_000, more);
        rig.broker.audit(100, 100).unwrap();
        assert!(more_sent <= 5, "{more_sent}");
        rig.say(0, &format!(r#"{{"type":"ack","seq":{sent}}}"#));
        rig.sync();
        assert!(fill(&mut rig, 0, 2_000, more) >= 5, "acked outcomes are free again");
        rig.leave(0);
        rig.sync();
        rig.broker.audit(100, 100).unwrap();
    }
}

/// Only the receiver's shard knows that a message, and so its outcome, will be in memory only.
#[test]
fn a_message_that_turns_out_to_stay_in_memory_needs_memory_for_its_outcome() {
    let limits = Limits { memory_messages_max_bytes: 1_100, ..Limits::default() };
    let mut rig = rig(limits, true);
    rig.is_ephemeral = true;
    rig.hello(2, "eve", None);
    let to_eve =
        |id: u64| format!(r#"{{"type":"send","id":"e{id}","to":"eve","body":1,"receipt":true}}"#);
    assert!(rig.say(0, &to_eve(1)).frames.iter().any(|(_, frame)| frame.contains("accepted")));
    rig.broker.audit(100, 10).unwrap();
    assert!(rig.say(0, &to_eve(2)).told(0).contains("\"store_full\""));
    rig.broker.audit(100, 10).unwrap();
    // One that is stored needs none, and gives it back once that is known.
    rig.say(0, &send(3, ""));
    assert!(rig.sync().frames.iter().any(|(_, frame)| frame.contains("accepted")));
    rig.broker.audit(100, 10).unwrap();
}

/// Outcomes once made the log four times as long as its bound.
#[test]
fn the_store_is_promised_no_more_outcomes_than_it_has_room_for() {
    let mut rig = rig(Limits::default(), true);
    let (devices, receipt) = (2 * DEVICE_BYTES as u64, RECEIPT_BYTES as u64);
    assert_eq!(rig.directory.promised_bytes(), devices);
    rig.directory.set_store_room(devices + 3 * receipt, 0);
    assert_eq!(fill(&mut rig, 0, 0, ""), 3);
    assert_eq!(rig.directory.promised_bytes(), devices + 3 * receipt);
    let plain = r#"{"type":"send","id":"plain","to":"bob","body":1}"#;
    rig.say(0, plain);
    assert!(rig.sync().told(0).contains("\"accepted\""), "it promises nothing");
    rig.say(1, &refuse(1));
    assert_eq!(rig.directory.promised_bytes(), devices + 3 * receipt, "not recorded yet");
    rig.sync();
    assert_eq!(rig.directory.promised_bytes(), devices + 2 * receipt);
    rig.broker.audit(100, 10).unwrap();
    rig.say(1, r#"{"type":"ack","seq":4}"#);
    rig.sync();
    assert_eq!(rig.directory.promised_bytes(), devices);
    rig.broker.audit(100, 10).unwrap();
}

/// Tiny messages with receipts promise much more than they take themselves.
#[test]
fn strangers_are_promised_no_outcomes_in_the_room_of_those_with_names() {
    let mut rig = rig(Limits::default(), true);
    rig.hello_as(5, DeviceRef::Number(DeviceId::FIRST), None);
    rig.sync();
    let receipt = RECEIPT_BYTES as u64;
    let room = rig.directory.promised_bytes() + 5 * receipt;
    rig.directory.set_store_room(room, 3 * receipt);
    assert_eq!(fill(&mut rig, 5, 0, ""), 2);
    assert_eq!(fill(&mut rig, 0, 0, ""), 3);
}

/// The refusal of an ephemeral sender's message makes a record, even when the sender is gone.
#[test]
fn what_is_promised_for_an_ephemeral_sender_is_kept_free_until_its_messages_are_out() {
    let mut rig = rig(Limits::default(), true);
    rig.is_ephemeral = true;
    rig.hello(2, "eve", None);
    let before = rig.directory.promised_bytes();
    rig.say(2, &send(1, ""));
    rig.sync();
    rig.leave(2);
    assert_eq!(rig.directory.promised_bytes(), before + RECEIPT_BYTES as u64);
    rig.say(1, &refuse(1));
    rig.sync();
    rig.broker.audit(100, 10).unwrap();
    assert_eq!(rig.directory.promised_bytes(), before);
}

#[test]
fn outcomes_that_will_come_count_in_the_strangers_part_of_the_store() {
    let limits = Limits { store_bytes_max: 10_000, ..Limits::default() };
    let mut rig = rig(limits, true);
    let stranger = DeviceRef::Number(DeviceId::FIRST);
    rig.hello_as(5, stranger, None);
    rig.sync();
    let sent = fill(&mut rig, 5, 0, "");
    assert_eq!(sent, 7_500 / (RECEIPT_BYTES as u64 + 130));
    (1..=sent).for_each(|seq| {
        rig.say(1, &refuse(seq));
        rig.sync();
        rig.broker.audit(100, 10).unwrap();
    });
    rig.say(0, &send(1_000, ""));
    assert!(rig.sync().frames.iter().any(|(to, frame)| *to == 0 && frame.contains("accepted")));
}

#[test]
fn a_start_promises_what_the_run_before_had_promised() {
    let records =
        [device(ANN, 0), device(BOB, 2), message(1, "m-1", true), message(2, "m-2", true)];
    let (rig, _) = Rig::replayed(&records);
    let (devices, receipt) = (2 * DEVICE_BYTES as u64, RECEIPT_BYTES as u64);
    assert_eq!(rig.directory.promised_bytes(), devices + 2 * receipt);
    rig.broker.audit(100, 10).unwrap();
    let records =
        [records.as_slice(), &[ended(Outcome::Delivered, 1, "m-1", 1), outcome(9, 1, "m-1")]]
            .concat();
    let (rig, _) = Rig::replayed(&records);
    assert_eq!(rig.directory.promised_bytes(), devices + receipt);
    rig.broker.audit(100, 10).unwrap();
}
