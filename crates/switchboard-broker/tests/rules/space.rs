//! A store that is full: who is told so, and what goes on.

use switchboard_broker::{Input, Limits};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, close};

use crate::rig::Rig;

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

/// A stranger filled the volume in a second, and then nothing could be taken out of it.
#[test]
fn a_full_store_refuses_new_messages_and_takes_all_else() {
    let mut rig = rig();
    rig.say(0, &send("before", r#","receipt":true"#));
    let pushed = rig.sync();
    assert!(pushed.told(1).contains("\"before\""), "{pushed:?}");
    rig.handle(Input::StoreFull(true));
    let refused = rig.say(0, &send("m", ""));
    assert!(refused.told(0).contains("\"store_full\""), "{refused:?}");
    assert!(refused.told(0).contains("\"retry_after_ms\""), "{refused:?}");
    assert!(refused.appended.is_empty(), "{refused:?}");
    // A retry of what was accepted is told so, and what needs no disk goes through.
    let retry = rig.say(0, &send("before", r#","receipt":true"#));
    assert!(retry.told(0).contains("\"duplicate\":true"), "{retry:?}");
    let memory = rig.say(0, &send("fast", r#","durability":"memory""#));
    assert!(memory.told(0).contains("\"accepted\""), "{memory:?}");
    // Acks and outcomes go into the store.
    assert!(rig.say(1, r#"{"type":"ack","seq":1}"#).appended.contains(&"outcome"));
    let told = rig.sync();
    assert!(told.told(0).contains("\"delivered\""), "{told:?}");
    rig.handle(Input::StoreFull(false));
    rig.say(0, &send("m", ""));
    let told = rig.sync();
    assert!(told.told(0).contains("\"accepted\""), "the refused id is free: {told:?}");
}

#[test]
fn a_store_that_is_full_and_fails_is_full() {
    let mut rig = rig();
    rig.handle(Input::StoreFull(true));
    rig.handle(Input::StoreFailing);
    assert!(rig.say(0, &send("m", "")).told(0).contains("\"store_full\""));
    rig.handle(Input::StoreFull(false));
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
    assert!(rig.handle(Input::Tick).appended.is_empty());
    rig.handle(Input::StoreHealthy);
    assert!(rig.broker.is_due(rig.now.at));
    assert_eq!(rig.handle(Input::Tick).appended, ["acked"]);
}

/// Each new device wrote a record of about 110 bytes, also while the store was full: a stranger who
/// opened one after the other kept it full, and brought it above its bound.
#[test]
fn a_full_store_takes_no_new_devices_but_those_that_leave_nothing() {
    let mut rig = rig();
    rig.leave(1);
    rig.sync();
    rig.handle(Input::StoreFull(true));
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
    rig.handle(Input::StoreFull(false));
    assert!(rig.hello(2, "cleo", None).closed.is_empty());
    assert_eq!(rig.broker.stats().mailboxes, 3);
}
