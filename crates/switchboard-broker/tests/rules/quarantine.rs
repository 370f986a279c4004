//! Messages whose records cannot be read back.

use switchboard_broker::{Input, Limits, Position};

use crate::rig::{Done, Rig};

/// Returns a rig in which bob is away, and ann has sent him `m1` and `m2` and asked for the
/// outcomes.
fn waiting() -> Rig {
    let mut rig = Rig::new(Limits::default(), true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.leave(1);
    rig.sync();
    for id in ["m1", "m2"] {
        let frame = r#"{"type":"send","to":"bob","body":1,"receipt":true,"id":""#;
        rig.say(0, &format!("{frame}{id}\"}}"));
        rig.sync();
    }
    rig
}

/// Lets bob connect; the first message that is fetched for him is damaged.
fn damaged(rig: &mut Rig) -> (Done, Position) {
    rig.hello(2, "bob", None);
    let mut opened = rig.sync();
    let (device, session, wants) = opened.fetches.pop().expect("what waits is fetched");
    let want = wants[0];
    (rig.handle(Input::Unreadable { device, session, want }), want.position)
}

/// When one byte of a message rotted on disk, it and all messages behind it were never delivered.
#[test]
fn a_damaged_message_is_evicted_and_its_sender_is_told() {
    let mut rig = waiting();
    let (done, _) = damaged(&mut rig);
    assert_eq!(done.appended, ["ended"]);
    let told = rig.sync();
    assert!(told.told(0).contains("\"outcome\":\"evicted\""), "{told:?}");
    assert!(told.told(0).contains("\"m1\"") && !told.told(0).contains("maybe_seen"), "{told:?}");
    let fetched = done.fetches.into_iter().chain(told.fetches);
    let seqs: Vec<u64> = fetched.flat_map(|(_, _, wants)| wants).map(|want| want.seq).collect();
    assert_eq!(seqs, [2], "the device goes on with the next");
}

#[test]
fn one_that_was_pushed_before_may_have_been_seen() {
    let mut rig = Rig::new(Limits::default(), true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.say(0, r#"{"type":"send","to":"bob","body":1,"receipt":true,"id":"m1"}"#);
    rig.sync();
    rig.leave(1);
    rig.sync();
    damaged(&mut rig);
    let told = rig.sync();
    assert!(told.told(0).contains("\"maybe_seen\":true"), "{told:?}");
}

#[test]
fn a_damaged_outcome_leaves_and_a_record_says_so() {
    let mut rig = Rig::new(Limits::default(), true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.say(0, r#"{"type":"send","to":"bob","body":1,"receipt":true,"id":"m1"}"#);
    rig.sync();
    rig.leave(0);
    rig.say(1, r#"{"type":"ack","seq":1}"#);
    rig.sync();
    rig.hello(2, "ann", None);
    let mut opened = rig.sync();
    let (device, session, wants) = opened.fetches.pop().expect("the outcome is fetched");
    let done = rig.handle(Input::Unreadable { device, session, want: wants[0] });
    assert_eq!(done.appended, ["ended"]);
    // Nothing happens twice, even if another session asked for the same.
    let again = rig.handle(Input::Unreadable { device, session, want: wants[0] });
    assert!(again.appended.is_empty(), "{again:?}");
}

#[test]
fn a_record_that_was_copied_meanwhile_is_not_given_up() {
    let mut rig = waiting();
    rig.hello(2, "bob", None);
    let mut opened = rig.sync();
    let (device, session, wants) = opened.fetches.pop().expect("what waits is fetched");
    let mut want = wants[0];
    want.position = Position(want.position.0 + 1_000);
    let done = rig.handle(Input::Unreadable { device, session, want });
    assert!(done.appended.is_empty(), "{done:?}");
    assert_eq!(done.fetches[0].2[0], wants[0], "it is fetched again");
}

#[test]
fn what_was_in_a_damaged_part_of_the_log_is_recorded_again_or_evicted() {
    let mut rig = waiting();
    let (from, to) = (Position(1), Position(1_000));
    let done = rig.handle(Input::Damaged { from, to });
    assert_eq!(done.appended.iter().filter(|kind| **kind == "ended").count(), 2);
    assert_eq!(done.appended.iter().filter(|kind| **kind == "device").count(), 2);
}
