//! Ephemeral devices, which end with their connection: without them a cron job that sends once a
//! minute left 1,440 mailboxes a day.

use switchboard_broker::{Limits, MessageRecord, Position, Record, Replay};
use switchboard_proto::v1::{DeviceRef, close};

use crate::rig::{Done, NOW, Rig};

/// Returns a rig in which `ann` will be ephemeral, and `bob`, who is not, was welcomed.
fn rig() -> (Rig, Done) {
    let mut rig = Rig::new(Limits::default(), true);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.is_ephemeral = true;
    let done = rig.hello(0, "ann", None);
    rig.is_ephemeral = false;
    (rig, done)
}

fn send(to: &str, id: &str, more: &str) -> String {
    format!(r#"{{"type":"send","id":"{id}","to":"{to}","body":1{more}}}"#)
}

#[test]
fn it_is_welcome_at_once_and_leaves_no_record() {
    let (mut rig, done) = rig();
    assert!(done.told(0).contains("\"welcome\""), "{done:?}");
    assert!(done.appended.is_empty(), "{done:?}");
    assert_eq!(rig.broker.stats().mailboxes, 1, "its own does not count");
    let done = rig.leave(0);
    assert!(done.appended.is_empty(), "{done:?}");
    let done = rig.say(1, &send("ann", "m", ""));
    assert!(done.told(1).contains("no_such_device"), "{done:?}");
    rig.broker.audit(100, 100).unwrap();
}

#[test]
fn what_it_sends_is_kept_like_anything_else() {
    let (mut rig, _) = rig();
    let done = rig.say(0, &send("bob", "m", ""));
    assert_eq!(done.appended, ["message"]);
    rig.leave(0);
    let done = rig.sync();
    assert!(done.told(1).contains("\"from\":\"ann\""), "{done:?}");
    rig.broker.audit(100, 100).unwrap();
}

#[test]
fn what_comes_to_it_is_in_memory_at_most_and_evicted_with_it() {
    let (mut rig, _) = rig();
    let done = rig.say(1, &send("ann", "a", r#","durability":"disk""#));
    assert!(done.told(1).contains("durability_unavailable"), "{done:?}");
    let done = rig.say(1, &send("ann", "b", r#","receipt":true"#));
    assert!(done.appended.is_empty(), "{done:?}");
    let told = |done: &Done, conn, what: &str| {
        done.frames.iter().any(|(to, frame)| *to == conn && frame.contains(what))
    };
    assert!(told(&done, 1, r#""durability":"memory""#) && told(&done, 0, "\"message\""));
    rig.leave(0);
    let done = rig.sync();
    assert!(told(&done, 1, "\"evicted\"") && told(&done, 1, "\"maybe_seen\":true"), "{done:?}");
    rig.broker.audit(100, 100).unwrap();
}

/// Its mailbox is in no record, but the message must be out of the store before its outcome is
/// told.
#[test]
fn an_outcome_comes_to_it_when_the_removal_is_on_disk() {
    let (mut rig, _) = rig();
    rig.say(0, &send("bob", "m", r#","receipt":true"#));
    rig.sync();
    let done = rig.say(1, r#"{"type":"ack","seq":1}"#);
    assert_eq!(done.appended, ["ended"]);
    assert!(done.frames.is_empty(), "{done:?}");
    let done = rig.sync();
    assert!(done.told(0).contains("\"delivered\""), "{done:?}");
    let done = rig.say(0, r#"{"type":"ack","seq":1}"#);
    assert!(done.appended.is_empty(), "{done:?}");
    rig.broker.audit(100, 100).unwrap();
}

/// The sender leaves while the outcome is on its way into its mailbox. The next device of its id once
/// had to wait for that.
#[test]
fn an_outcome_on_its_way_does_not_keep_the_next_device_waiting() {
    let (mut rig, _) = rig();
    rig.say(0, &send("bob", "m", r#","receipt":true"#));
    rig.sync();
    rig.say(1, r#"{"type":"ack","seq":1}"#);
    rig.leave(0);
    rig.is_ephemeral = true;
    let done = rig.hello(0, "ann", None);
    assert!(done.told(0).contains("\"resumed\":false"), "{done:?}");
    assert!(rig.sync().frames.is_empty(), "it is not for this one");
    rig.broker.audit(100, 100).unwrap();
}

#[test]
fn a_newer_connection_is_a_new_device() {
    let (mut rig, first) = rig();
    rig.say(1, &send("ann", "m", ""));
    let name = |done: &Done, conn| {
        let welcome =
            done.frames.iter().find(|(to, frame)| *to == conn && frame.contains("welcome"));
        let (_, frame) = welcome.expect("it is welcome");
        assert!(frame.contains("\"pending\":0"), "{frame}");
    };
    name(&first, 0);
    rig.is_ephemeral = true;
    let done = rig.hello(5, "ann", None);
    assert_eq!(done.closed, [(0, close::TAKEN_OVER)]);
    name(&done, 5);
}

/// Each takeover tells every watcher of the device twice: 1,500 idle watchers of one that was
/// taken over again and again took 2.4 GiB.
#[test]
fn one_that_is_taken_over_again_and_again_waits_like_any_other() {
    let (mut rig, _) = rig();
    rig.is_ephemeral = true;
    for conn in 2..6 {
        assert_eq!(rig.hello(conn, "ann", None).closed.len(), 1, "not yet");
    }
    for conn in 6..9 {
        let done = rig.hello(conn, "ann", None);
        assert!(done.frames.is_empty(), "{done:?}");
        assert!(done.closed.iter().all(|(closed, _)| *closed == conn - 1 && conn > 6), "{done:?}");
    }
    assert!(rig.say(5, r#"{"type":"ping"}"#).told(5).contains("pong"), "it is still there");
    rig.now.at = rig.now.at.after(std::time::Duration::from_secs(2));
    let done = rig.handle(switchboard_broker::Input::Tick { may_end: true });
    assert_eq!(done.closed, [(5, close::TAKEN_OVER)]);
    assert!(done.told(8).contains("\"welcome\""), "{done:?}");
    // They are still counted if the device before left while the next one waited.
    assert!(rig.hello(9, "ann", None).frames.is_empty());
    assert!(rig.leave(8).told(9).contains("\"welcome\""));
    assert!(rig.hello(10, "ann", None).frames.is_empty());
    rig.now.at = rig.now.at.after(std::time::Duration::from_secs(11));
    let done = rig.handle(switchboard_broker::Input::Tick { may_end: true });
    assert!(done.told(10).contains("\"welcome\""), "{done:?}");
    assert_eq!(rig.hello(11, "ann", None).closed, [(10, close::TAKEN_OVER)]);
    rig.broker.audit(100, 100).unwrap();
}

#[test]
fn a_device_that_has_a_mailbox_keeps_it() {
    let (mut rig, _) = rig();
    rig.leave(1);
    rig.say(0, &send("bob", "m", ""));
    rig.sync();
    rig.is_ephemeral = true;
    let done = rig.hello(1, "bob", None);
    assert!(done.told(1).contains("\"pending\":1"), "{done:?}");
    rig.leave(1);
    assert_eq!(rig.broker.stats().mailboxes, 1);
}

/// A crash leaves only the messages that it sent; outcomes that it asked for are told to nobody.
#[test]
fn after_a_crash_only_what_it_sent_is_there() {
    let (ann, bob) = (DeviceRef::Name("ann"), DeviceRef::Name("bob"));
    let device = Record::Device(switchboard_broker::DeviceRecord {
        device: bob,
        mailbox: 1,
        reserved_to: 100,
        acked_to: 0,
        pushed_to: 0,
        away_since_ms: Some(NOW.wall_ms),
    });
    let message = Record::Message(MessageRecord {
        to: bob,
        seq: 1,
        from: ann,
        id: "m",
        is_id_taken: true,
        body: b"1",
        re: None,
        sent_at_ms: NOW.wall_ms,
        at: NOW.at,
        expires_at_ms: None,
        receipt: true,
    });
    let mut rig = Rig::new(Limits::default(), true);
    let mut replay = Replay::default();
    for (record, position) in [device, message].iter().zip(1..) {
        rig.broker.replay(NOW, &mut replay, record, Position(position));
    }
    rig.broker.replayed_all(NOW, replay, &mut |_| ());
    let stats = rig.broker.stats();
    assert_eq!((stats.mailboxes, stats.messages, stats.ids), (1, 1, 1));
    rig.broker.audit(100, 100).unwrap();
}

/// The answer once went to the next device of the same id, which had sent another message under the
/// same id and was told `accepted` before that was judged.
#[test]
fn an_answer_to_one_that_left_is_not_taken_for_one_to_the_next() {
    let (mut rig, _) = rig();
    rig.say(0, &send("bob", "m", ""));
    rig.leave(0);
    rig.is_ephemeral = true;
    rig.nonce = 3;
    rig.hello(5, "ann", None);
    let done = rig.say(5, &send("bob", "m", r#","ttl_ms":1000"#).replace("1,", "2,"));
    assert_eq!(done.appended, ["message"]);
    let done = rig.sync_first(1);
    assert!(done.frames.iter().all(|(conn, _)| *conn != 5), "{done:?}");
    let done = rig.sync();
    assert!(done.frames.iter().any(|(conn, _)| *conn == 5), "{done:?}");
    rig.broker.audit(100, 100).unwrap();
}

#[test]
fn an_outcome_for_one_that_left_is_not_told_to_the_next() {
    let (mut rig, _) = rig();
    rig.say(0, &send("bob", "m", r#","receipt":true"#));
    rig.sync();
    rig.leave(0);
    rig.is_ephemeral = true;
    rig.nonce = 3;
    rig.hello(5, "ann", None);
    let done = rig.say(1, r#"{"type":"ack","seq":1}"#);
    assert_eq!(done.appended, ["ended"], "nobody waits for it");
    assert!(rig.sync().frames.is_empty());
    rig.broker.audit(100, 100).unwrap();
}

/// A device with a mailbox was told the outcomes of messages of its ephemeral namesake, even if
/// both had used the same id: `refused` for a message that was then `delivered`.
#[test]
fn nor_to_one_of_the_same_name_that_has_a_mailbox() {
    let (mut rig, _) = rig();
    rig.say(0, &send("bob", "m", r#","receipt":true"#));
    rig.sync();
    rig.leave(0);
    rig.hello(5, "ann", None);
    rig.sync();
    rig.say(5, &send("bob", "m", r#","receipt":true"#));
    rig.sync();
    rig.say(1, r#"{"type":"refuse","seq":1}"#);
    assert!(rig.sync().frames.is_empty(), "its sender is gone");
    rig.say(1, r#"{"type":"ack","seq":2}"#);
    assert!(rig.sync().told(5).contains("\"delivered\""));
    rig.broker.audit(100, 100).unwrap();
}
