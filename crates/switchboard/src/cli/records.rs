//! Records for tests of the command line: alice is the sender, bob the receiver.

use switchboard_broker::{
    DeviceRecord, EndedOf, EndedRecord, MessageRecord, Moment, OutcomeRecord, PartitionId, Record,
};
use switchboard_proto::v1::{DeviceRef, Outcome};

pub(super) const ALICE: DeviceRef<'_> = DeviceRef::Name("alice");
pub(super) const BOB: DeviceRef<'_> = DeviceRef::Name("bob");
pub(super) const REASON: &str = "a reason that is found again in the file";

pub(super) fn device(device: DeviceRef<'static>, acked_to: u64) -> Record<'static> {
    let (mailbox, reserved_to, pushed_to, away_since_ms) = (1, 9, 4, Some(1));
    Record::Device(DeviceRecord {
        device,
        mailbox,
        reserved_to,
        acked_to,
        pushed_to,
        away_since_ms,
    })
}

pub(super) fn message(seq: u64, receipt: bool) -> Record<'static> {
    Record::Message(MessageRecord {
        to: BOB,
        seq,
        from: ALICE,
        id: "m",
        is_id_taken: true,
        body: b"1",
        re: None,
        sent_at_ms: 1,
        at: Moment::default(),
        expires_at_ms: None,
        receipt,
    })
}

/// Returns the outcome, at alice's `seq`, of a message that bob refused, with its number in the exchange.
pub(super) fn outcome(seq: u64, number: u64) -> Record<'static> {
    Record::Outcome(OutcomeRecord {
        to: ALICE,
        seq,
        id: "m",
        of: BOB,
        outcome: Outcome::Refused,
        at_ms: 1,
        maybe_seen: false,
        reason: Some(REASON),
        source: PartitionId::of(BOB),
        number,
    })
}

/// Returns the record that bob refused this message, with the number of its outcome in the exchange.
pub(super) fn ended(seq: u64, number: u64) -> Record<'static> {
    Record::Ended(EndedRecord {
        device: BOB,
        seq,
        outcome: Outcome::Refused,
        at_ms: 1,
        maybe_seen: false,
        reason: Some(REASON),
        of: Some(EndedOf { from: ALICE, id: "m", number: Some(number) }),
    })
}
