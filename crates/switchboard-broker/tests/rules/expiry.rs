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
    rig.handle(Input::Tick { may_end: true });
    rig.sync();
    assert_eq!(rig.broker.stats().messages, 1);
    pass(&mut rig, 5_000);
    rig.handle(Input::Tick { may_end: true });
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
        rig.handle(Input::Tick { may_end: true });
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
    rig.handle(Input::Tick { may_end: true });
    rig.sync();
    rig.sync();
    assert_eq!(rig.broker.stats().messages, 2, "one that waits, and the outcome of the other");
    pass(&mut rig, 29);
    rig.handle(Input::Tick { may_end: true });
    assert_eq!(rig.broker.stats().messages, 2);
    pass(&mut rig, 1);
    rig.handle(Input::Tick { may_end: true });
    assert_eq!(rig.broker.stats().messages, 1);
    rig.broker.audit(100, 100).unwrap();
}

/// One client let five million messages expire in one millisecond. The shard took them all out in one
/// turn: nobody else was served for seconds, and their records took gigabytes of memory.
#[test]
fn what_expires_at_once_is_taken_out_in_portions_and_not_faster_than_the_store_can_follow() {
    let at_once = 300;
    let limits = Limits { in_flight_max: 0, endings_at_once: at_once, ..Limits::default() };
    let mut rig = Rig::new(limits, true);
    rig.hello(0, "ann", None);
    for (conn, receiver) in (1..).zip(["bob", "cleo", "dora", "eve"]) {
        rig.hello(conn, receiver, None);
        for id in 0..1_000 {
            let id = format!(r#""id":"{receiver}-{id}","to":"{receiver}""#);
            rig.say(0, &format!(r#"{{"type":"send",{id},"body":1,"ttl_ms":10}}"#));
        }
    }
    rig.sync();
    let mut left = rig.broker.stats().messages as usize;
    assert!(left > at_once, "{left}");
    pass(&mut rig, 10);
    rig.handle(Input::Tick { may_end: false });
    assert_eq!(rig.broker.stats().messages as usize, left, "the store is behind");
    while left > 0 {
        let due = rig.broker.next_tick().expect("there is more to expire");
        assert_eq!(due.since(rig.now.at), Duration::from_millis(1));
        pass(&mut rig, 1);
        let appended = rig.handle(Input::Tick { may_end: true }).appended.len();
        let now_left = rig.broker.stats().messages as usize;
        assert_eq!(appended, left - now_left);
        assert!((1..=at_once).contains(&appended), "{appended}");
        left = now_left;
    }
}

/// It must not be pushed any more.
#[test]
fn what_has_expired_before_its_turn_comes_is_not_pushed() {
    let mut rig = Rig::new(Limits { endings_at_once: 1, ..Limits::default() }, true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.leave(1);
    for id in 0..10 {
        let ttl = if id < 9 { r#","ttl_ms":10"# } else { "" };
        rig.say(0, &format!(r#"{{"type":"send","id":"{id}","to":"bob","body":1{ttl}}}"#));
    }
    rig.sync();
    pass(&mut rig, 10);
    let mut done = rig.hello(1, "bob", None);
    done.fetches.extend(rig.sync().fetches);
    let wanted: Vec<u64> =
        done.fetches.iter().flat_map(|(_, _, wants)| wants).map(|want| want.seq).collect();
    assert_eq!(wanted, [10]);
    assert_eq!(rig.broker.stats().messages, 1);
}
