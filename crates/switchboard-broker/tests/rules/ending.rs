//! A device that ends, and a crash before the record of its end.

use switchboard_broker::Record;
use switchboard_proto::v1::Outcome;

use crate::records::{ANN, BOB, device, ended, message};
use crate::rig::Rig;

/// Its remaining messages once came back after the crash, and were pushed again under another
/// name of the mailbox (seeds 5320103 and 10865750 of the world).
#[test]
fn what_waited_for_a_device_that_ended_is_evicted_after_a_crash() {
    let records = [
        device(ANN, 0),
        device(BOB, 1),
        message(1, "plain", false),
        message(2, "asked", true),
        message(3, "told", true),
        Record::Gone { device: BOB },
        ended(Outcome::Evicted, 3, "told", 1),
    ];
    let (mut rig, done) = Rig::replayed(&records);
    assert_eq!(done.appended, ["ended", "outcome"]);
    assert_eq!(rig.sync().appended, ["outcome"]);
    let stats = rig.broker.stats();
    assert_eq!(
        (stats.mailboxes, stats.messages),
        (1, 2),
        "ann, and the outcomes that wait for her"
    );
}
