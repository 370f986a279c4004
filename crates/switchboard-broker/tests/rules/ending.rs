//! A device that ends, and a crash before the record of its end.

use switchboard_broker::Record;

use crate::records::{ANN, BOB, device, message};
use crate::rig::Rig;

/// Its remaining messages once came back after the crash, and were pushed again under another
/// name of the mailbox (seeds 5320103 and 10865750 of the world).
#[test]
fn a_device_goes_on_ending_after_a_crash() {
    let Record::Device(mut ending) = device(BOB, 1) else { unreachable!() };
    ending.mailbox = !ending.mailbox;
    let records = [
        device(ANN, 0),
        device(BOB, 1),
        message(1, "plain", false),
        message(2, "asked", true),
        Record::Device(ending),
    ];
    let (mut rig, done) = Rig::replayed(&records);
    assert_eq!(done.appended, ["device", "outcome"]);
    assert_eq!(rig.sync().appended, ["gone"]);
    let stats = rig.broker.stats();
    assert_eq!(
        (stats.mailboxes, stats.messages),
        (1, 1),
        "ann, and the outcome that waits for her"
    );
}
