//! The bound on devices with a mailbox, and the device that ends for a new one.

use switchboard_broker::Limits;
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, close};

use crate::rig::{Done, Rig};

fn rig() -> Rig {
    Rig::new(Limits { devices_max: 3, ..Limits::default() }, false)
}

fn number(at: u64) -> DeviceRef<'static> {
    DeviceRef::Number(DeviceId::new(DeviceId::FIRST.get() + at))
}

/// Lets an anonymous device connect and leave.
fn was_there(rig: &mut Rig, at: u64) {
    rig.hello_as(at as u32, number(at), None);
    rig.leave(at as u32);
    rig.now.at = rig.now.at.after(std::time::Duration::from_secs(1));
}

fn is_refused(done: &Done, conn: u32) -> bool {
    done.closed == [(conn, close::TRY_AGAIN_LATER)]
}

/// A client could once make 16,000 devices a second, each of which cost half a KiB for 24 hours.
#[test]
fn a_new_device_takes_the_place_of_the_anonymous_one_that_is_away_the_longest() {
    let mut rig = rig();
    for at in [0, 1, 2] {
        was_there(&mut rig, at);
    }
    was_there(&mut rig, 0);
    for (conn, name) in [(10, "ann"), (11, "bob")] {
        assert!(rig.hello(conn, name, None).closed.is_empty());
    }
    assert_eq!(rig.broker.stats().mailboxes, 3);
    let again = rig.hello_as(0, number(0), Some((1, 0)));
    assert!(again.told(0).contains("\"resumed\":true"), "it came last, and is kept: {again:?}");
    rig.broker.audit(100, 0).unwrap();
}

#[test]
fn where_nobody_can_end_a_new_device_is_rejected_and_those_that_exist_come() {
    let mut rig = rig();
    was_there(&mut rig, 0);
    rig.hello(10, "ann", None);
    rig.hello(11, "bob", None);
    let send = r#"{"type":"send","id":"m","to":"100000000","body":1}"#;
    rig.say(10, send);
    rig.leave(11);
    assert!(is_refused(&rig.hello(12, "cleo", None), 12), "one waits for it, two have names");
    assert!(is_refused(&rig.hello_as(13, number(7), None), 13));
    assert!(rig.hello(11, "bob", None).closed.is_empty());
    assert!(rig.hello_as(0, number(0), None).closed.is_empty());
    rig.say(0, r#"{"type":"ack","seq":1}"#);
    rig.leave(0);
    assert!(rig.hello(12, "cleo", None).closed.is_empty(), "nothing waits any more");
}

#[test]
fn strangers_who_stay_leave_a_quarter_of_the_slots_to_those_with_names() {
    let mut rig = Rig::new(Limits { devices_max: 8, ..Limits::default() }, false);
    rig.hello(20, "ann", None);
    for at in 0..6 {
        assert!(rig.hello_as(at, number(at.into()), None).closed.is_empty());
    }
    assert!(is_refused(&rig.hello_as(6, number(6), None), 6));
    assert!(rig.hello(21, "bob", None).closed.is_empty());
    assert!(is_refused(&rig.hello(22, "cleo", None), 22), "all slots are taken");
    rig.leave(0);
    assert!(rig.hello_as(6, number(6), None).closed.is_empty(), "instead of the one that left");
}

#[test]
fn where_nobody_has_a_name_strangers_have_all_slots() {
    let mut rig = Rig::new(Limits { devices_max: 4, ..Limits::default() }, false);
    for at in 0..4 {
        assert!(rig.hello_as(at, number(at.into()), None).closed.is_empty());
    }
    assert!(is_refused(&rig.hello_as(4, number(4), None), 4));
}

/// A device for which something waited is considered again when nothing does.
#[test]
fn a_device_whose_messages_expired_gives_way() {
    let mut rig = rig();
    was_there(&mut rig, 0);
    rig.hello(10, "ann", None);
    rig.hello(11, "bob", None);
    rig.say(10, r#"{"type":"send","id":"m","to":"100000000","body":1,"ttl_ms":5}"#);
    assert!(is_refused(&rig.hello(12, "cleo", None), 12));
    rig.now.at = rig.broker.next_tick().expect("it expires");
    rig.handle(switchboard_broker::Input::Tick { may_end: true });
    assert!(rig.hello(12, "cleo", None).closed.is_empty());
}
