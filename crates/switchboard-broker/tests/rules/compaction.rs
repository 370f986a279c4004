//! Records that are appended again when the oldest part of the log is compacted.

use switchboard_broker::Record;

use crate::records::{ANN, BOB, MAILBOX, device, message, outcome};
use crate::rig::Rig;

#[test]
fn what_waits_is_kept() {
    let records = [
        device(ANN, 0),
        device(BOB, 0),
        message(1, "plain", false),
        message(2, "with receipt", true),
        message(3, "ended", true),
        outcome(1, 3, "ended"),
    ];
    let (mut rig, _) = Rig::replayed(&records);
    let kept: Vec<_> = records
        .iter()
        .zip(1..)
        .map(|(record, position)| rig.compact(record, position).appended)
        .collect();
    let expected: [&[&str]; 6] =
        [&["device"], &["device"], &["message"], &["message"], &["id"], &["outcome"]];
    assert_eq!(kept, expected);
    // Their copies count now, and these records are not copied again.
    rig.sync();
    for (record, position) in records.iter().zip(1..).filter(|(record, _)| !is_message(record)) {
        assert_eq!(rig.compact(record, position).appended, [""; 0], "{record:?}");
    }
    // The id of what is out has its record already. With each copy of a message its id was once
    // recorded again, and these records were copied, too: a full log grew by all of its ids with
    // each round.
    assert_eq!(rig.compact(&records[4], 5).appended, [""; 0]);
}

fn is_message(record: &Record<'_>) -> bool {
    matches!(record, Record::Message(_))
}

/// Otherwise a crash in between would lose the outcome.
#[test]
fn a_message_is_kept_until_its_outcome_is_recorded() {
    let asked = message(1, "asked", true);
    let records = [device(ANN, 0), device(BOB, 1), asked, Record::Acked { device: BOB, seq: 1 }];
    let (mut rig, done) = Rig::replayed(&records);
    assert_eq!(done.appended, ["outcome"]);
    assert!(!rig.broker.may_compact(&asked));
    assert_eq!(rig.compact(&asked, 3).appended, ["message"]);
    rig.sync();
    assert!(rig.broker.may_compact(&asked));
    assert_eq!(rig.compact(&asked, 3).appended, ["id"]);
}

/// The outcome's record removes only what lies before it, and the copy may lie behind.
#[test]
fn a_copy_that_outlives_the_outcome_is_taken_out() {
    let asked = message(1, "asked", true);
    let records = [device(ANN, 0), device(BOB, 1), asked];
    let (mut rig, _) = Rig::replayed(&records);
    assert_eq!(rig.compact(&asked, 3).appended, ["message"]);
    let done = rig.hello(0, "bob", Some((MAILBOX, 1)));
    assert_eq!(done.appended, ["device", "outcome"]);
    assert_eq!(rig.sync().appended, ["removed"]);
    // Without a copy there is nothing to remove.
    let (mut rig, _) = Rig::replayed(&records);
    rig.hello(0, "bob", Some((MAILBOX, 1)));
    assert_eq!(rig.sync().appended, [""; 0]);
}
