//! Answers to a sender that cancels a message.

use std::borrow::Cow;
use std::time::Duration;

use switchboard_broker::{
    Cancel, Conn, Deliver, DeviceReplyTo, EndedOf, Envelope, Input, Limits, Now, Record, Reply,
    ReplyTo, ShardId,
};
use switchboard_proto::v1::{Durability, Outcome, RejectCode};

use crate::records::{ANN, BOB, device, ended, message};
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

/// The record that ends the message says it, so a sender whose answer was lost is told the same by
/// the next run, whether or not it asked for the outcome.
#[test]
fn after_a_restart_who_asks_again_is_told_the_same() {
    for (receipt, number) in [(true, Some(1)), (false, None)] {
        let Record::Ended(mut end) = ended(Outcome::Cancelled, 1, "m", 1) else { unreachable!() };
        end.of = end.of.map(|of| EndedOf { number, ..of });
        let records =
            [device(ANN, 0), device(BOB, 0), message(1, "m", receipt), Record::Ended(end)];
        let (mut rig, _) = Rig::replayed(&records);
        rig.sync();
        rig.hello(0, "ann", None);
        rig.sync();
        assert_eq!(rig.say(0, CANCEL).told(0), CANCELLED);
    }
}

/// Sender and receiver are on different shards, and a disk that hangs makes all requests wait: a
/// sender must not make the receiver's shard keep any number of them.
#[test]
fn at_most_16_requests_of_another_shard_wait_for_a_message() {
    const REQUESTS_MAX: usize = 16;
    let mut rig = Rig::new(Limits::default(), true);
    rig.hello(1, "bob", None);
    rig.leave(1);
    rig.sync();
    let [from, to] = [ANN, BOB].map(|device| rig.directory.names().intern(device));
    let reply_to = DeviceReplyTo {
        shard: ShardId(1),
        device: from,
        conn: Conn(0),
        session: 1,
        is_told: false,
        incarnation: None,
        receipt: false,
    };
    let send = |rig: &mut Rig| {
        rig.handle(Input::Envelope(Envelope::Deliver(Box::new(Deliver {
            from,
            to,
            id: Cow::Borrowed("m"),
            incarnation: None,
            body: Cow::Borrowed(b"1"),
            re: None,
            sent_at_ms: 0,
            expires_at_ms: None,
            durability: None,
            receipt: false,
            no_room: None,
            reply_to: ReplyTo::Device(reply_to),
        }))))
    };
    let cancel = |rig: &mut Rig| {
        let cancel = Cancel { to, id: "m".into(), reply_to };
        rig.handle(Input::Envelope(Envelope::Cancel(cancel)))
    };
    let reply = |reply| Envelope::Reply { reply_to, of: to, id: "m".into(), reply };
    let cancel_reply = |result| Envelope::CancelReply { reply_to, of: to, id: "m".into(), result };

    assert_eq!(send(&mut rig).appended, ["message"]);
    for _ in 0..REQUESTS_MAX / 2 {
        assert_eq!(send(&mut rig).sent, []);
        assert_eq!(cancel(&mut rig).sent, []);
    }
    assert_eq!(send(&mut rig).sent, [reply(Reply::Unknown)]);
    let unknown = [cancel_reply(Err(RejectCode::StoreUnavailable))];
    assert_eq!(cancel(&mut rig).sent, unknown);

    // The message is accepted, its retries are told so, and then it is taken back.
    let accepted =
        |duplicate| reply(Reply::Accepted { seq: 1, durability: Durability::Disk, duplicate });
    let done = rig.sync_first(1);
    assert_eq!(done.appended, ["ended"]);
    assert_eq!(done.sent[0], accepted(false));
    assert_eq!(done.sent[1..], vec![accepted(true); REQUESTS_MAX / 2]);
    // As many as before may wait for the removal.
    for _ in REQUESTS_MAX / 2..REQUESTS_MAX {
        assert_eq!(cancel(&mut rig).sent, []);
    }
    assert_eq!(cancel(&mut rig).sent, unknown);
    assert_eq!(rig.sync().sent, vec![cancel_reply(Ok(())); REQUESTS_MAX]);
    assert_eq!(cancel(&mut rig).sent, [cancel_reply(Ok(()))]);
    assert_eq!(send(&mut rig).sent, [accepted(true)]);
    rig.broker.audit(100, 100).unwrap();
}
