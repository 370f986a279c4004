//! The end of a message, when a crash comes before its outcome is recorded.

use switchboard_broker::{Limits, Record};
use switchboard_proto::v1::Outcome;

use crate::records::{ANN, BOB, device, ended, message, outcome};
use crate::rig::Rig;

/// Returns the outcomes that ann is told when she connects.
fn told(mut rig: Rig) -> Vec<String> {
    rig.hello(0, "ann", None);
    let frames = rig.sync().frames;
    frames.into_iter().map(|(_, frame)| frame).filter(|frame| frame.contains("\"seq\"")).collect()
}

/// The outcome was once recorded by the sender's shard alone. Bob's later ack could be on disk before
/// it, and after a crash what he had refused was taken for acked: ann was told `delivered`.
#[test]
fn what_was_refused_before_an_ack_is_not_delivered() {
    let acked = Record::Acked { device: BOB, seq: 2 };
    let mut records = vec![device(ANN, 0), device(BOB, 2)];
    records.extend([message(1, "m-1", true), message(2, "m-2", true)]);
    let refused = ended(Outcome::Refused, 1, "m-1", 1);
    let delivered = ended(Outcome::Delivered, 2, "m-2", 2);
    for (rest, expected) in [
        (vec![refused], vec!["refused"]),
        (vec![refused, delivered], vec!["refused", "delivered"]),
        (vec![refused, delivered, acked], vec!["refused", "delivered"]),
        // Its outcome is recorded.
        (vec![refused, outcome(9, 1, "m-1"), delivered, acked], vec!["delivered", "delivered"]),
    ] {
        let records = [records.clone(), rest].concat();
        let (rig, _) = Rig::replayed(&records);
        let told = told(rig);
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (frame, outcome) in told.iter().zip(&expected) {
            assert!(frame.contains(&format!("\"outcome\":\"{outcome}\"")), "{told:?}");
        }
        assert!(expected[0] != "refused" || told[0].contains("\"reason\":\"no\""), "{told:?}");
    }
}

/// The end is recorded before anything that the receiver says later.
#[test]
fn the_end_of_a_message_is_recorded_where_its_sender_asked() {
    for (durability, receipt, appended) in [
        ("disk", true, vec!["ended"]),
        ("disk", false, vec!["ended"]),
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
