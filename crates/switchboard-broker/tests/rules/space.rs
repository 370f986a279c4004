//! A store that is full: rejections, and everything that goes on.

use switchboard_broker::{Conn, Effect, Input, Limits, Refusal, StoreGate};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, close};

use crate::rig::Rig;

fn row_of(rig: &mut Rig) -> Vec<&'static str> {
    let mut done = rig.handle(Input::Tick { may_end: true }).appended;
    rig.sync();
    done.retain(|kind| *kind == "device");
    done
}

fn send(id: &str, more: &str) -> String {
    format!(r#"{{"type":"send","id":"{id}","to":"bob","body":1{more}}}"#)
}

fn rig() -> Rig {
    let mut rig = Rig::new(Limits::default(), true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig
}

/// A stranger filled the volume in a second, and then nothing could be removed from it.
#[test]
fn a_full_store_refuses_new_messages_and_takes_all_else() {
    let mut rig = rig();
    rig.say(0, &send("before", r#","receipt":true"#));
    let pushed = rig.sync();
    assert!(pushed.told(1).contains("\"before\""), "{pushed:?}");
    rig.handle(Input::StoreGate(StoreGate::Closed));
    let refused = rig.say(0, &send("m", ""));
    assert!(refused.told(0).contains("\"store_full\""), "{refused:?}");
    assert!(refused.told(0).contains("\"retry_after_ms\""), "{refused:?}");
    assert!(refused.appended.is_empty(), "{refused:?}");
    // A retry of an accepted message is answered so, and a message in memory is accepted.
    let retry = rig.say(0, &send("before", r#","receipt":true"#));
    assert!(retry.told(0).contains("\"duplicate\":true"), "{retry:?}");
    let memory = rig.say(0, &send("fast", r#","durability":"memory""#));
    assert!(memory.told(0).contains("\"accepted\""), "{memory:?}");
    // Acks and outcomes go into the store.
    assert!(rig.say(1, r#"{"type":"ack","seq":1}"#).appended.contains(&"ended"));
    let told = rig.sync();
    assert!(told.told(0).contains("\"delivered\""), "{told:?}");
    rig.handle(Input::StoreGate(StoreGate::Open));
    rig.say(0, &send("m", ""));
    let told = rig.sync();
    assert!(told.told(0).contains("\"accepted\""), "the refused id is free: {told:?}");
}

#[test]
fn a_store_that_is_full_and_fails_is_full() {
    let mut rig = rig();
    rig.handle(Input::StoreGate(StoreGate::Closed));
    rig.handle(Input::StoreFailing);
    assert!(rig.say(0, &send("m", "")).told(0).contains("\"store_full\""));
    rig.handle(Input::StoreGate(StoreGate::Open));
    assert!(rig.say(0, &send("m", "")).told(0).contains("\"store_unavailable\""));
}

/// While the disk refused, each device that acked made a record every 50 ms, in memory.
#[test]
fn acks_wait_without_records_while_the_store_fails() {
    let mut rig = rig();
    rig.say(0, &send("m", ""));
    rig.sync();
    rig.handle(Input::StoreFailing);
    assert!(rig.say(1, r#"{"type":"ack","seq":1}"#).appended.is_empty());
    rig.now.at = rig.now.at.after(std::time::Duration::from_secs(1));
    assert!(!rig.broker.is_due(rig.now.at));
    assert!(rig.handle(Input::Tick { may_end: true }).appended.is_empty());
    rig.handle(Input::StoreHealthy);
    assert!(rig.broker.is_due(rig.now.at));
    assert_eq!(rig.handle(Input::Tick { may_end: true }).appended, ["acked"]);
}

/// Each new device wrote a record of about 110 bytes, even while the store was full: a stranger
/// that opened one after the other kept it full, and brought it above its bound.
#[test]
fn a_full_store_takes_no_new_devices_but_those_that_leave_nothing() {
    let mut rig = rig();
    rig.leave(1);
    rig.sync();
    rig.handle(Input::StoreGate(StoreGate::Closed));
    let stranger = DeviceRef::Number(DeviceId::FIRST);
    for refused in [rig.hello(2, "cleo", None), rig.hello_as(3, stranger, None)] {
        assert_eq!(refused.closed[0].1, close::TRY_AGAIN_LATER, "{refused:?}");
        assert!(refused.appended.is_empty(), "{refused:?}");
    }
    assert!(rig.hello(1, "bob", None).closed.is_empty(), "it exists");
    rig.sync();
    rig.is_ephemeral = true;
    let welcome = rig.hello_as(4, stranger, None);
    assert!(welcome.told(4).contains("\"welcome\""), "{welcome:?}");
    assert!(welcome.appended.is_empty(), "{welcome:?}");
    rig.is_ephemeral = false;
    rig.handle(Input::StoreGate(StoreGate::Open));
    assert!(rig.hello(2, "cleo", None).closed.is_empty());
    assert_eq!(rig.broker.stats().mailboxes, 3);
}

/// A known device that connected and left in a loop appended a record each time, even while the
/// store was full: a log of 8 MiB grew to 26 MiB.
#[test]
fn while_the_store_is_full_known_devices_come_and_go_without_a_record_each_time() {
    let mut rig = rig();
    rig.leave(1);
    rig.sync();
    rig.handle(Input::StoreGate(StoreGate::Closed));
    let mut appended = 0;
    for _ in 0..10 {
        let came = rig.hello(1, "bob", None);
        appended += came.appended.len() + rig.sync().appended.len();
        assert!(came.told(1).contains("\"welcome\""), "{came:?}");
        appended += rig.leave(1).appended.len();
        rig.broker.audit(100, 0).unwrap();
    }
    assert_eq!(appended, 1, "that it is there");
    assert_eq!(row_of(&mut rig), [""; 0]);
    rig.handle(Input::StoreGate(StoreGate::Open));
    assert!(rig.broker.is_due(rig.now.at));
    assert_eq!(row_of(&mut rig), ["device"], "that it left is made up for");
    rig.now.at = rig.now.at.after(std::time::Duration::from_secs(1));
    assert_eq!(row_of(&mut rig), [""; 0], "once");
}

/// Nothing is pushed to a device before the store says that it is connected: after a crash what was
/// pushed must count as perhaps seen.
#[test]
fn a_device_that_comes_while_the_store_is_full_sees_nothing_before_the_store_has_it_that_it_is_there()
 {
    let mut rig = rig();
    rig.leave(1);
    rig.say(0, &send("m", ""));
    rig.sync();
    rig.handle(Input::StoreGate(StoreGate::Closed));
    let (fetched, seen) = (|done: &crate::rig::Done| done.fetches.len(), Some((1, 0)));
    assert_eq!(fetched(&rig.hello(1, "bob", seen)), 0);
    rig.leave(1);
    // The record of its first session is on its way, and enough.
    let again = rig.hello(1, "bob", seen);
    assert_eq!((fetched(&again), again.appended.len()), (0, 0));
    let mut synced = rig.sync();
    let (device, session, _) = synced.fetches.pop().expect("the store has it that it is there");
    rig.leave(1);
    // One fetch is under way, and no other one waits behind it.
    let again = rig.hello(1, "bob", seen);
    assert_eq!((fetched(&again), again.appended.len()), (0, 0));
    let answered = rig.handle(Input::Fetched { device, session, contents: Vec::new() });
    assert_eq!(fetched(&answered), 1);
}

/// A client that says in each `hello` that it has seen more than was pushed gets a new name for its
/// mailbox each time.
#[test]
fn a_mailbox_gets_a_new_name_without_a_record_while_the_store_is_full() {
    let mut rig = rig();
    rig.handle(Input::StoreGate(StoreGate::Closed));
    let mut name = 1;
    for nonce in [3, 5, 7] {
        rig.nonce = nonce;
        let came = rig.hello(1, "bob", Some((name, 1_000)));
        assert!(came.appended.is_empty(), "{came:?}");
        assert!(came.told(1).contains(&format!("{nonce:016x}")), "{came:?}");
        name = nonce;
    }
    rig.handle(Input::StoreGate(StoreGate::Open));
    assert_eq!(row_of(&mut rig), ["device"]);
    let came = rig.hello(1, "bob", Some((7, 0)));
    assert!(came.told(1).contains("\"resumed\":true"), "{came:?}");
}

#[test]
fn a_stop_makes_up_for_what_was_put_off_if_there_is_space() {
    for (gate, records) in [(StoreGate::Closed, 0), (StoreGate::Open, 1)] {
        let mut rig = rig();
        rig.handle(Input::StoreGate(StoreGate::Closed));
        assert!(rig.leave(1).appended.is_empty());
        rig.handle(Input::StoreGate(gate));
        let appended = rig.handle(Input::Ending).appended;
        assert_eq!(appended.len(), records, "{appended:?}");
    }
}

/// Strangers who stored messages and acked them at once took all that compaction freed: devices
/// with names were refused in four of five attempts.
#[test]
fn a_store_for_names_only_refuses_strangers_and_takes_all_else() {
    let mut rig = rig();
    let [known, new] = [0, 1].map(|_| DeviceRef::Number(rig.directory.new_id()));
    rig.hello_as(2, known, None);
    rig.sync();
    rig.handle(Input::StoreGate(StoreGate::NamedOnly));
    let refused = rig.say(2, &send("m", ""));
    assert!(refused.told(2).contains("\"store_full\""), "{refused:?}");
    assert!(refused.told(2).contains("devices without a name"), "{refused:?}");
    assert!(refused.appended.is_empty(), "{refused:?}");
    rig.handle(Input::Connected(Conn(9)));
    let mut refusal = None;
    rig.broker.said(rig.now, Conn(9), b"send,bob,m", &mut |effect| {
        if let Effect::Refuse { refusal: told, .. } = effect {
            refusal = Some(told);
        }
    });
    assert_eq!(refusal, Some(Refusal::MailboxFull));
    let memory = rig.say(2, &send("fast", r#","durability":"memory""#));
    assert!(memory.told(2).contains("\"accepted\""), "{memory:?}");
    // A stranger that is new would take space for as long as it exists.
    let refused = rig.hello_as(3, new, None);
    assert_eq!(refused.closed[0].1, close::TRY_AGAIN_LATER, "{refused:?}");
    assert!(rig.hello(4, "cleo", None).closed.is_empty());
    rig.say(0, &send("m", ""));
    assert!(rig.sync().frames.iter().any(|(_, frame)| frame.contains("\"accepted\"")));
    rig.handle(Input::StoreGate(StoreGate::Open));
    rig.say(2, &send("m", ""));
    let told = rig.sync();
    assert!(told.told(2).contains("\"accepted\""), "the refused id is free: {told:?}");
}
