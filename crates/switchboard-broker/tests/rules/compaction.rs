//! Records that are appended again when the oldest part of the log is compacted.

use switchboard_broker::{IdRecord, Limits, Record};
use switchboard_proto::v1::Outcome;

use crate::records::{ANN, BOB, device, ended, message, outcome};
use crate::rig::Rig;

#[test]
fn what_counts_is_kept() {
    let records = [
        device(ANN, 0),
        device(BOB, 0),
        message(1, "plain", false),
        message(2, "with receipt", true),
        message(3, "ended", true),
        ended(Outcome::Delivered, 3, "ended", 1),
        outcome(1, 1, "ended"),
    ];
    let (mut rig, _) = Rig::replayed(&records);
    let kept: Vec<_> = records
        .iter()
        .zip(1..)
        .map(|(record, position)| rig.compact(record, position).appended)
        .collect();
    // The outcome is settled: its number is in the state of the exchange, on both sides.
    let expected: [&[&str]; 7] = [
        &["device"],
        &["device"],
        &["message"],
        &["message"],
        &["id"],
        &["exchange"],
        &["outcome", "exchange"],
    ];
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
fn an_end_is_kept_until_its_outcome_is_settled() {
    let end = ended(Outcome::Refused, 1, "asked", 1);
    let records = [device(ANN, 0), device(BOB, 1), message(1, "asked", true), end];
    let (mut rig, done) = Rig::replayed(&records);
    assert_eq!(done.appended, ["outcome"]);
    assert_eq!(rig.compact(&records[2], 3).appended, ["id"], "the message is out");
    assert_eq!(rig.compact(&end, 4).appended, ["ended", "exchange"]);
    rig.sync();
    assert_eq!(rig.compact(&end, 6).appended, [""; 0], "it is settled");
}

/// The id of a message that still waited could get a record of its own after a crash, which was copied
/// as it was: once the record of its end had left the log, nothing said that it had been cancelled.
#[test]
fn the_record_of_an_id_says_that_its_message_was_cancelled_since() {
    let limits = Limits { in_flight_max: 0, ..Limits::default() };
    let mut rig = Rig::new(limits, true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.say(0, r#"{"type":"send","id":"m","to":"bob","body":1}"#);
    rig.sync();
    rig.say(0, r#"{"type":"cancel","id":"m","to":"bob"}"#);
    rig.sync();
    let id = rig.kept_id(&message(1, "m", false)).expect("it is in the window");
    assert!(id.is_cancelled);
    let older = Record::Id(IdRecord { is_cancelled: false, to: BOB, from: ANN, ..id });
    assert!(rig.kept_id(&older).expect("it still is").is_cancelled);
}
