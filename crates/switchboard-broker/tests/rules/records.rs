//! Records of two devices, ann and bob, as a store holds them.

use switchboard_broker::{
    DeviceRecord, EndedOf, EndedRecord, MessageRecord, Moment, OutcomeRecord, PartitionId, Record,
};
use switchboard_proto::v1::{DeviceRef, Outcome};

use crate::rig::NOW;

pub(crate) const ANN: DeviceRef<'static> = DeviceRef::Name("ann");
pub(crate) const BOB: DeviceRef<'static> = DeviceRef::Name("bob");
pub(crate) const MAILBOX: u64 = 77;

pub(crate) fn device(device: DeviceRef<'static>, pushed_to: u64) -> Record<'static> {
    Record::Device(DeviceRecord {
        device,
        mailbox: MAILBOX,
        reserved_to: 1,
        acked_to: 0,
        pushed_to,
        away_since_ms: Some(NOW.wall_ms),
    })
}

/// Returns a message from ann to bob.
pub(crate) fn message(seq: u64, id: &'static str, receipt: bool) -> Record<'static> {
    Record::Message(MessageRecord {
        to: BOB,
        seq,
        from: ANN,
        id,
        is_id_taken: true,
        body: b"1",
        re: None,
        sent_at_ms: NOW.wall_ms,
        at: Moment::from_ms(NOW.at.ms() - 1),
        expires_at_ms: None,
        receipt,
    })
}

/// Returns the outcome, for ann, of a message that she sent to bob, with its number in the exchange
/// of their partitions.
pub(crate) fn outcome(seq: u64, number: u64, id: &'static str) -> Record<'static> {
    Record::Outcome(OutcomeRecord {
        to: ANN,
        seq,
        id,
        of: BOB,
        outcome: Outcome::Delivered,
        at_ms: NOW.wall_ms,
        maybe_seen: false,
        reason: None,
        source: PartitionId::of(BOB),
        number,
    })
}

/// Returns the end of a message from ann to bob, with the number of its outcome.
pub(crate) fn ended(outcome: Outcome, seq: u64, id: &'static str, number: u64) -> Record<'static> {
    Record::Ended(EndedRecord {
        device: BOB,
        seq,
        outcome,
        at_ms: NOW.wall_ms,
        maybe_seen: false,
        reason: (outcome == Outcome::Refused).then_some("no"),
        of: Some(EndedOf { from: ANN, id, number: Some(number) }),
    })
}
