//! Records of two devices, ann and bob, as a store holds them.

use switchboard_broker::{DeviceRecord, EndedRecord, MessageRecord, Moment, OutcomeRecord, Record};
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

/// Returns the outcome, for ann, of a message that she sent to bob.
pub(crate) fn outcome(seq: u64, of_seq: u64, id: &'static str) -> Record<'static> {
    Record::Outcome(OutcomeRecord {
        to: ANN,
        seq,
        id,
        of: BOB,
        of_seq,
        outcome: Outcome::Delivered,
        at_ms: NOW.wall_ms,
        maybe_seen: false,
        reason: None,
    })
}

/// Returns the end of a message from ann to bob that bob refused.
pub(crate) fn refused(seq: u64) -> Record<'static> {
    ended(seq, Outcome::Refused, Some("no"))
}

/// Returns the end of a message from ann to bob that ann cancelled.
pub(crate) fn cancelled(seq: u64) -> Record<'static> {
    ended(seq, Outcome::Cancelled, None)
}

fn ended(seq: u64, outcome: Outcome, reason: Option<&'static str>) -> Record<'static> {
    Record::Ended(EndedRecord {
        device: BOB,
        seq,
        outcome,
        at_ms: NOW.wall_ms,
        maybe_seen: false,
        reason,
    })
}
