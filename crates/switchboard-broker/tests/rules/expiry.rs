//! Expiry of messages.

use std::time::Duration;

use switchboard_broker::{Input, Limits, Now, StampClock};

use crate::rig::{NOW, Rig};

fn pass(rig: &mut Rig, ms: u64) {
    let Now { at, wall_ms } = rig.now;
    rig.now = Now { at: at.after(Duration::from_millis(ms)), wall_ms: wall_ms + ms };
}

/// A mailbox has one alarm. When that of the earlier message went off, the later message was not
/// synced and so was passed over, and then nothing looked at it again (seed 10193 of the world).
#[test]
fn a_message_that_was_not_synced_when_another_expired_expires_too() {
    let mut rig = Rig::new(Limits { in_flight_max: 0, ..Limits::default() }, true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.say(0, r#"{"type":"send","id":"a","to":"bob","body":1,"ttl_ms":10}"#);
    rig.say(0, r#"{"type":"send","id":"b","to":"bob","body":1,"ttl_ms":5000}"#);
    pass(&mut rig, 20);
    rig.handle(Input::Tick);
    rig.sync();
    assert_eq!(rig.broker.stats().messages, 1);
    pass(&mut rig, 5_000);
    rig.handle(Input::Tick);
    assert_eq!(rig.broker.stats().messages, 0);
}

/// Expiry was stored by the wall clock: when that was an hour behind at a start, a message lived
/// an hour longer; when it was ten years ahead, everything that waited expired.
#[test]
fn the_wall_clock_moves_no_expiry() {
    let mut rig = Rig::new(Limits { in_flight_max: 0, ..Limits::default() }, true);
    rig.broker.stamp_by(StampClock::at(NOW.at, 77_000_000));
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.now.wall_ms *= 1_000;
    rig.say(0, r#"{"type":"send","id":"a","to":"bob","body":1,"ttl_ms":4000}"#);
    rig.sync();
    rig.now.wall_ms = 5;
    for (ms, messages) in [(3_999, 1), (1, 0)] {
        pass(&mut rig, ms);
        rig.handle(Input::Tick);
        assert_eq!(rig.broker.stats().messages, messages, "after {ms} ms more");
    }
}

/// Each message that was synced after its expiry once made the broker look at all others in the
/// mailbox, beside the alarm of those that expire later.
#[test]
fn a_message_that_is_synced_after_its_end_expires_and_the_others_keep_theirs() {
    let mut rig = Rig::new(Limits { in_flight_max: 0, ..Limits::default() }, true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.say(0, r#"{"type":"send","id":"a","to":"bob","body":1,"ttl_ms":50}"#);
    rig.sync();
    rig.say(0, r#"{"type":"send","id":"b","to":"bob","body":1,"ttl_ms":10,"receipt":true}"#);
    pass(&mut rig, 20);
    rig.handle(Input::Tick);
    rig.sync();
    rig.sync();
    assert_eq!(rig.broker.stats().messages, 2, "one that waits, and the outcome of the other");
    pass(&mut rig, 29);
    rig.handle(Input::Tick);
    assert_eq!(rig.broker.stats().messages, 2);
    pass(&mut rig, 1);
    rig.handle(Input::Tick);
    assert_eq!(rig.broker.stats().messages, 1);
    rig.broker.audit(100, 100).unwrap();
}
