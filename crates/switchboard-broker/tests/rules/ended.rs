//! The end of a message, when a crash comes before its outcome is recorded.

use switchboard_broker::{Limits, Record};

use crate::records::{ANN, BOB, device, message, outcome, refused};
use crate::rig::Rig;

/// Returns the outcomes that ann is told when she connects.
fn told(mut rig: Rig) -> Vec<String> {
    rig.hello(0, "ann", None);
    let frames = rig.sync().frames;
    frames.into_iter().map(|(_, frame)| frame).filter(|frame| frame.contains("\"seq\"")).collect()
}

/// The outcome is the record of the sender's shard. Bob's later ack could be on disk before it, and
/// after a crash what he had refused was taken for acked: ann was told `delivered`.
#[test]
fn what_was_refused_before_an_ack_is_not_delivered() {
    let acked = Record::Acked { device: BOB, seq: 2 };
    let (refused, mut records) = (refused(1), vec![device(ANN, 0), device(BOB, 2)]);
    records.extend([message(1, "m-1", true), message(2, "m-2", true)]);
    for (rest, expected) in [
        (vec![refused], vec!["refused"]),
        (vec![refused, acked], vec!["refused", "delivered"]),
        (vec![acked], vec!["delivered", "delivered"]),
        // Its outcome is recorded, before it or behind it.
        (vec![refused, outcome(9, 1, "m-1"), acked], vec!["delivered", "delivered"]),
        (vec![outcome(9, 1, "m-1"), refused, acked], vec!["delivered", "delivered"]),
    ] {
        let records = [records.clone(), rest].concat();
        let (rig, _) = Rig::replayed(&records);
        let told = told(rig);
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for word in ["refused", "delivered"] {
            let is_so = |frame: &&String| frame.contains(&format!("\"outcome\":\"{word}\""));
            let expected = expected.iter().filter(|one| **one == word).count();
            assert_eq!(told.iter().filter(is_so).count(), expected, "{told:?}");
        }
        assert!(expected[0] != "refused" || told[0].contains("\"reason\":\"no\""), "{told:?}");
    }
}

/// The end is recorded before anything that the receiver says later.
#[test]
fn the_end_of_a_message_is_recorded_where_its_sender_asked() {
    for (durability, receipt, appended) in [
        ("disk", true, vec!["ended", "outcome"]),
        ("disk", false, vec!["removed"]),
        ("memory", true, vec![]),
        ("memory", false, vec![]),
    ] {
        let mut rig = Rig::new(Limits::default(), true);
        rig.hello(0, "ann", None);
        rig.hello(1, "bob", None);
        rig.sync();
        let options = format!(r#""durability":"{durability}","receipt":{receipt}"#);
        rig.say(0, &format!(r#"{{"type":"send","id":"m","to":"bob","body":1,{options}}}"#));
        rig.sync();
        let done = rig.say(1, r#"{"type":"refuse","seq":1}"#);
        let appended_less_records: Vec<_> =
            done.appended.into_iter().filter(|kind| *kind != "device").collect();
        assert_eq!(appended_less_records, appended, "{options}");
    }
}

/// The record counts until the outcome is recorded.
#[test]
fn an_end_is_kept_until_the_outcome_is_recorded() {
    let records = [device(ANN, 0), device(BOB, 1), message(1, "m", true), refused(1)];
    let (mut rig, done) = Rig::replayed(&records);
    assert_eq!(done.appended, ["outcome"]);
    assert!(!rig.broker.may_compact(&records[2]) && !rig.broker.may_compact(&records[3]));
    rig.sync();
    assert!(rig.broker.may_compact(&records[3]));
    assert_eq!(rig.compact(&records[3], 4).appended, [""; 0]);
}
