//! Answers to a sender that cancels a message.

use std::time::Duration;

use switchboard_broker::{Limits, Now};

use crate::rig::Rig;

const CANCEL: &str = r#"{"type":"cancel","id":"m","to":"bob"}"#;
/// Begins the answer to [`CANCEL`] when it is too late.
const TOO_LATE: &str = r#"{"type":"rejected","id":"m","to":"bob","code":"too_late","#;
const CANCELLED: &str = r#"{"type":"cancelled","id":"m","to":"bob"}"#;

/// The answer may be lost with the connection. A sender that asked again was once told `too_late`.
#[test]
fn who_asks_again_is_told_the_same() {
    for receipt in [false, true] {
        for is_durable in [false, true] {
            let mut rig = Rig::new(Limits { in_flight_max: 0, ..Limits::default() }, is_durable);
            rig.hello(0, "ann", None);
            rig.hello(1, "bob", None);
            rig.sync();
            rig.say(
                0,
                &format!(r#"{{"type":"send","id":"m","to":"bob","body":1,"receipt":{receipt}}}"#),
            );
            rig.sync();
            let (at_once, when_synced) = (rig.say(0, CANCEL), rig.sync());
            let first = if is_durable { when_synced } else { at_once };
            assert_eq!(first.told(0), CANCELLED);
            assert_eq!(rig.say(0, CANCEL).told(0), CANCELLED);
            rig.hello(2, "ann", None);
            rig.sync();
            assert_eq!(rig.say(2, CANCEL).told(2), CANCELLED);
        }
    }
}

#[test]
fn what_was_pushed_cannot_be_taken_back() {
    let mut rig = Rig::new(Limits::default(), false);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.say(0, r#"{"type":"send","id":"m","to":"bob","body":1}"#);
    for _ in 0..2 {
        let done = rig.say(0, CANCEL);
        assert!(done.told(0).starts_with(TOO_LATE), "{done:?}");
    }
}

/// The numbers of a device that ended were given again to one that came back, and a `cancel` of
/// what was sent to the first took back what was sent to the second (seed 5895025 of the world).
#[test]
fn what_was_sent_to_a_device_that_ended_does_not_stand_for_what_came_later() {
    let ttl = Duration::from_secs(10);
    let limits = Limits { in_flight_max: 0, named_device_ttl: Some(ttl), ..Limits::default() };
    let mut rig = Rig::new(limits, false);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.say(0, r#"{"type":"send","id":"m","to":"bob","body":1}"#);
    rig.leave(1);
    let Now { at, wall_ms } = rig.now;
    rig.now = Now { at: at.after(ttl), wall_ms: wall_ms + ttl.as_millis() as u64 };
    rig.hello(2, "bob", None);
    rig.say(0, r#"{"type":"send","id":"later","to":"bob","body":1}"#);
    assert_eq!(rig.broker.stats().messages, 1, "the first one was evicted");
    let done = rig.say(0, CANCEL);
    assert!(done.told(0).starts_with(TOO_LATE), "{done:?}");
    assert_eq!(rig.broker.stats().messages, 1);
}

/// An id stands for a message to one receiver. With the name of another one, of nobody, or of
/// nobody possible, a `cancel` must take nothing back, also while the message is not synced.
#[test]
fn a_cancel_that_names_another_receiver_takes_nothing_back() {
    let mut rig = Rig::new(Limits { in_flight_max: 0, ..Limits::default() }, true);
    for (conn, name) in ["ann", "bob", "cleo"].into_iter().enumerate() {
        rig.hello(conn as u32, name, None);
    }
    rig.sync();
    rig.say(0, r#"{"type":"send","id":"m","to":"bob","body":1}"#);
    for is_synced in [false, true] {
        for to in ["cleo", "ann", "nobody", "100000000", "b o b", ""] {
            let done = rig.say(0, &CANCEL.replace("bob", to));
            assert!(done.told(0).starts_with(&TOO_LATE.replace("bob", to)), "{done:?}");
        }
        assert!(is_synced || rig.sync().told(0).contains("\"accepted\""));
    }
    assert_eq!(rig.broker.stats().messages, 1);
    rig.say(0, CANCEL);
    assert_eq!(rig.sync().told(0), CANCELLED);
}

/// A `cancel` that comes before its message is accepted waits for that, and so does the receiver's
/// name for the answer.
#[test]
fn a_cancel_that_waits_for_its_message_is_answered_with_the_receiver() {
    let mut rig = Rig::new(Limits { in_flight_max: 0, ..Limits::default() }, true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.say(0, r#"{"type":"send","id":"m","to":"bob","body":1}"#);
    assert!(rig.say(0, CANCEL).frames.is_empty());
    assert!(rig.sync_first(1).told(0).contains("\"accepted\""));
    assert_eq!(rig.sync().told(0), CANCELLED);
}

/// The cancel of a message that was not synced once took back the message that had its id by then
/// (seed 231222 of the world).
#[test]
fn a_cancel_that_waits_for_its_message_takes_back_no_other() {
    let limits = Limits { in_flight_max: 0, dedup_ids_per_device_max: 1, ..Limits::default() };
    let mut rig = Rig::new(limits, true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    let send =
        |id: &str, body: u32| format!(r#"{{"type":"send","id":"{id}","to":"bob","body":{body}}}"#);
    rig.say(0, &send("m", 1));
    rig.say(0, CANCEL);
    // The first one is forgotten: a sender may have one id.
    rig.say(0, &send("other", 2));
    rig.say(0, &send("m", 3));
    let told = rig.sync();
    assert!(told.frames.iter().any(|(_, frame)| frame == CANCELLED), "{told:?}");
    assert_eq!(rig.broker.stats().messages, 2);
    rig.hello(2, "bob", None);
    rig.sync();
    assert_eq!(rig.say(0, CANCEL).frames.len(), 0, "the newer one is taken back now");
    assert!(rig.sync().told(0).contains("cancelled"));
}
