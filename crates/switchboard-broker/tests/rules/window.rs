//! Bounds on the ids of messages that are remembered to recognize retries.

use switchboard_broker::{Conn, Input, Limits};

use crate::rig::Rig;

/// Sends from one of two devices to the other; returns whether the answer says that it is a retry.
fn send(rig: &mut Rig, from: u32, id: u32) -> bool {
    let to = ["ann", "bob"][1 - from as usize];
    let frame = format!(r#"{{"type":"send","id":"m-{id}","to":"{to}","body":{id}}}"#);
    let done = rig.say(from, &frame);
    let (_, answer) = done.frames.iter().find(|(conn, _)| *conn == from).expect("an answer");
    assert!(answer.contains("\"accepted\""), "{answer}");
    answer.contains("\"duplicate\":true")
}

/// The window once kept all ids that were sent between two ticks, and a server without deadlines
/// never ticks.
#[test]
fn no_more_ids_are_kept_than_may_be_also_when_no_time_passes() {
    let mut rig = Rig::new(Limits { dedup_ids_max: 10, ..Limits::default() }, false);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    for id in 0..100 {
        assert!(!send(&mut rig, id % 2, id));
        assert!(rig.broker.stats().ids <= 10);
    }
    assert!(send(&mut rig, 1, 99), "the newest are kept");
    assert!(send(&mut rig, 0, 98));
    assert!(!send(&mut rig, 0, 80), "the oldest are not");
}

/// Strangers that sent much once pushed out the ids of all devices, the oldest first: within a
/// second of such a flood the retry of a message on disk was delivered again.
#[test]
fn strangers_do_not_shorten_the_window_of_one_who_sends_little() {
    let limits = Limits { dedup_ids_max: 100, mailbox_messages_max: 100_000, ..Limits::default() };
    let mut rig = Rig::new(limits, false);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    for id in 0..4 {
        send(&mut rig, 0, id);
    }
    for id in 4..10_000 {
        send(&mut rig, 1, id);
    }
    assert!(rig.broker.stats().ids <= 100);
    for id in 0..4 {
        assert!(send(&mut rig, 0, id), "{id} is still known");
    }
    rig.broker.audit(100_000, 0).unwrap();
}

/// The ids of a device that never sends again once stayed until something else had a deadline.
#[test]
fn ids_are_forgotten_though_their_device_never_sends_again() {
    let mut rig = Rig::new(Limits::default(), false);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    send(&mut rig, 0, 1);
    assert_eq!(rig.broker.stats().ids, 1);
    rig.now.at = rig.broker.next_tick().expect("something is due");
    rig.handle(Input::Tick { may_end: true });
    assert_eq!(rig.broker.stats().ids, 0);
    assert_eq!(rig.broker.next_tick(), None);
}

/// A sender is told that nothing is known, and asks again until it is. Its message must not be stored
/// twice because the disk hung for longer than the window.
#[test]
fn the_window_of_an_id_begins_when_its_message_is_synced() {
    let limits = Limits::default();
    let window = limits.dedup_window;
    let mut rig = Rig::new(limits, true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    let send = r#"{"type":"send","id":"m","to":"bob","body":1}"#;
    rig.say(0, send);
    for _ in 0..3 {
        rig.now.at = rig.now.at.after(window);
        rig.handle(Input::Tick { may_end: true });
        assert!(rig.say(0, send).appended.is_empty());
    }
    let told = rig.sync();
    let answers = told.frames.iter().filter(|(_, frame)| frame.contains("\"accepted\"")).count();
    assert_eq!(answers, 4, "{told:?}");
    rig.now.at = rig.now.at.after(window - std::time::Duration::from_millis(1));
    assert!(rig.say(0, send).told(0).contains("\"duplicate\":true"));
}

/// Nothing is kept of what went to a device without a mailbox once that is gone: with more shards,
/// its own would not even be asked.
#[test]
fn a_retry_to_a_text_device_that_is_gone_finds_nobody() {
    let mut rig = Rig::new(Limits::default(), false);
    rig.hello(0, "ann", None);
    rig.handle(Input::Connected(Conn(1)));
    let to = rig.broker.device(Conn(1)).expect("it is connected").get();
    let frame = format!(r#"{{"type":"send","id":"m","to":"{to}","body":1}}"#);
    assert!(rig.say(0, &frame).told(0).contains(r#""durability":"none""#));
    assert!(rig.say(0, &frame).told(0).contains(r#""duplicate":true"#));
    rig.leave(1);
    assert!(rig.say(0, &frame).told(0).contains("no_such_device"));
    // Not `id_reused`, as it was once.
    let other = frame.replace("1}", "2}");
    assert!(rig.say(0, &other).told(0).contains("no_such_device"));
}
