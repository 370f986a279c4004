//! Tables give their memory back: none keeps the size of its fullest moment. `audit` compares each
//! capacity with the length.

use std::time::Duration;

use switchboard_broker::{Input, Limits};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::DeviceRef;

use crate::rig::Rig;

fn send(rig: &mut Rig, conn: u32, id: u32, to: &str) {
    rig.say(conn, &format!(r#"{{"type":"send","id":"m-{id}","to":"{to}","body":1}}"#));
}

fn audit(rig: &Rig) {
    rig.broker.audit(100_000, 10_000).expect("nothing is left over");
}

fn limits() -> Limits {
    Limits {
        mailbox_messages_max: 1_000,
        mailbox_sender_share: 100,
        in_flight_max: 10_000,
        ..Limits::default()
    }
}

/// A mailbox kept the table of its fullest hour while one message waited: 60 KB instead of 56
/// bytes.
#[test]
fn a_mailbox_that_was_full_takes_what_one_message_takes() {
    let mut rig = Rig::new(limits(), false);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    for id in 0..900 {
        send(&mut rig, 0, id, "bob");
    }
    rig.say(1, r#"{"type":"ack","seq":899}"#);
    audit(&rig);
    rig.leave(1);
    audit(&rig);
}

/// The same by refusing all but the oldest: entries that are gone stay behind those before them.
#[test]
fn refused_messages_do_not_stay_behind_the_first() {
    let mut rig = Rig::new(limits(), false);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    for id in 0..900 {
        send(&mut rig, 0, id, "bob");
    }
    for seq in 2..=900 {
        rig.say(1, &format!(r#"{{"type":"refuse","seq":{seq}}}"#));
    }
    audit(&rig);
}

/// Shares were counted until another message came.
#[test]
fn senders_are_not_counted_when_the_mailbox_is_nearly_empty() {
    let mut rig = Rig::new(Limits { mailbox_sender_share: 1, ..limits() }, false);
    rig.hello(1000, "bob", None);
    for conn in 0..300 {
        let device = DeviceRef::Number(DeviceId::new(DeviceId::FIRST.get() + u64::from(conn)));
        rig.hello_as(conn, device, None);
        send(&mut rig, conn, 1, "bob");
    }
    audit(&rig);
    for seq in 1..300 {
        rig.say(1000, &format!(r#"{{"type":"ack","seq":{seq}}}"#));
        audit(&rig);
    }
}

/// Messages with a `ttl_ms` that left otherwise, and those that expired.
#[test]
fn expired_messages_leave_no_memory() {
    let mut rig = Rig::new(limits(), false);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.leave(1);
    for id in 0..900 {
        let ttl = 1 + id;
        let send = r#"{"type":"send","to":"bob","body":1,"id":"#;
        rig.say(0, &format!("{send}\"{id}\",\"ttl_ms\":{ttl}}}"));
    }
    while rig.broker.stats().messages > 0 {
        rig.now.at = rig.now.at.after(Duration::from_millis(1));
        rig.handle(Input::Tick { may_end: true });
        audit(&rig);
    }
}

/// With one id remembered, a device kept the tables of 100,000: 6 MB.
#[test]
fn forgotten_ids_leave_no_memory() {
    let window = Duration::from_secs(10);
    let mut rig = Rig::new(Limits { dedup_window: window, ..limits() }, false);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    for id in 0..5_000 {
        send(&mut rig, 0, id, "bob");
        rig.say(1, &format!(r#"{{"type":"ack","seq":{}}}"#, id + 1));
    }
    rig.now.at = rig.now.at.after(window / 2);
    send(&mut rig, 0, 5_000, "bob");
    rig.now.at = rig.now.at.after(window / 2);
    send(&mut rig, 0, 5_001, "bob");
    assert_eq!(rig.broker.stats().ids, 2);
    audit(&rig);
    rig.leave(0);
    audit(&rig);
}

/// The same if the ids of others push them out.
#[test]
fn ids_that_others_push_out_leave_no_memory() {
    let limits = Limits { dedup_ids_max: 2_000, ..limits() };
    let mut rig = Rig::new(limits, false);
    for conn in 0..20 {
        let device = DeviceRef::Number(DeviceId::new(DeviceId::FIRST.get() + u64::from(conn)));
        rig.hello_as(conn, device, None);
        for id in 0..1_000 {
            send(&mut rig, conn, id, "100000000");
            rig.say(0, &format!(r#"{{"type":"ack","seq":{}}}"#, conn * 1_000 + id + 1));
        }
        audit(&rig);
    }
}

/// Retries of messages that were not answered yet left a table with their device.
#[test]
fn answered_retries_leave_no_memory() {
    let mut rig = Rig::new(limits(), true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    for _ in 0..2 {
        for id in 0..500 {
            send(&mut rig, 0, id, "bob");
        }
    }
    audit(&rig);
    rig.sync();
    audit(&rig);
}

#[test]
fn devices_that_ended_leave_no_memory() {
    let mut rig = Rig::new(limits(), false);
    for conn in 0..2_000 {
        let device = DeviceRef::Number(DeviceId::new(DeviceId::FIRST.get() + u64::from(conn)));
        rig.hello_as(conn, device, None);
        send(&mut rig, conn, 0, "100000000");
    }
    audit(&rig);
    (0..2_000).for_each(|conn| drop(rig.leave(conn)));
    audit(&rig);
    while let Some(at) = rig.broker.next_tick() {
        rig.now.at = at;
        rig.handle(Input::Tick { may_end: true });
        audit(&rig);
    }
    assert_eq!(rig.broker.stats().mailboxes, 0);
}
