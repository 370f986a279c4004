//! Records, of which the store consists: facts about devices with mailboxes, in the order in which
//! they were decided.
//!
//! Replayed in that order into the brokers of a new process, they restore what was promised.

use switchboard_proto::v1::{DeviceRef, Outcome};

use crate::{Digest, Moment, PartitionId};

/// Position of a record in the store, by the store's own numbers. 0 is nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// Not in the store, or not yet.
    pub const NOWHERE: Position = Position(0);

    pub(crate) fn is_nowhere(self) -> bool {
        self == Position::NOWHERE
    }
}

/// A fact about devices with mailboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A message was accepted: it is in a mailbox, and its id is taken.
    Message(MessageRecord<'a>),
    /// The outcome of a message is in the mailbox of its sender.
    Outcome(OutcomeRecord<'a>),
    /// A device acked: all entries up to `seq` are out of its mailbox.
    Acked {
        /// The device whose mailbox it is.
        device: DeviceRef<'a>,
        /// The number up to which it acked.
        seq: u64,
    },
    /// An entry left a mailbox. Written for every end other than an ack, and for an ack if the
    /// sender asked for the outcome.
    Ended(EndedRecord<'a>),
    /// State of a device. Each of these replaces the one before.
    Device(DeviceRecord<'a>),
    /// A device ended, with its mailbox: what waited in it is evicted.
    Gone {
        /// The device.
        device: DeviceRef<'a>,
    },
    /// An id is taken, although its message is out of the log.
    Id(IdRecord<'a>),
    /// State of an exchange of outcomes. Each of these replaces the one before.
    Exchange(ExchangeRecord),
}

/// See [`Record::Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRecord<'a> {
    /// The receiver, whose mailbox it is in.
    pub to: DeviceRef<'a>,
    /// Its number there.
    pub seq: u64,
    /// The sender.
    pub from: DeviceRef<'a>,
    /// The sender's id for it.
    pub id: &'a str,
    /// True if the id counts for duplicates. Not for a text device, whose ids the server makes,
    /// nor for an ephemeral one, whose ids end with it.
    pub is_id_taken: bool,
    /// Raw JSON.
    pub body: &'a [u8],
    /// Id of the message that it answers.
    pub re: Option<&'a str>,
    /// Time at which it was sent, by the wall clock.
    pub sent_at_ms: u64,
    /// Time at which it was accepted, by the server's uptime, from which the duplicate window
    /// counts.
    pub at: Moment,
    /// Time at which it expires, as a stamp of [`crate::StampClock`]; `None` is never.
    pub expires_at_ms: Option<u64>,
    /// True if its sender asked for an outcome.
    pub receipt: bool,
}

/// See [`Record::Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutcomeRecord<'a> {
    /// The message's sender, whose mailbox the outcome is in.
    pub to: DeviceRef<'a>,
    /// Its number there.
    pub seq: u64,
    /// The message's id.
    pub id: &'a str,
    /// The message's receiver.
    pub of: DeviceRef<'a>,
    /// Kind of its end.
    pub outcome: Outcome,
    /// Time of its end, by the wall clock.
    pub at_ms: u64,
    /// True if the receiver may have seen it although it did not ack.
    pub maybe_seen: bool,
    /// Reason that the receiver gave when it refused it.
    pub reason: Option<&'a str>,
    /// The partition of the receiver, which sent it.
    pub source: PartitionId,
    /// Its number in the exchange with that.
    pub number: u64,
}

/// See [`Record::Ended`].
///
/// It comes before any ack that covers the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedRecord<'a> {
    /// The receiver, whose mailbox it was in.
    pub device: DeviceRef<'a>,
    /// Its number there.
    pub seq: u64,
    /// Kind of its end.
    pub outcome: Outcome,
    /// Time of its end, by the wall clock.
    pub at_ms: u64,
    /// True if the receiver may have seen it although it did not ack.
    pub maybe_seen: bool,
    /// Reason that the receiver gave when it refused it.
    pub reason: Option<&'a str>,
    /// Sender and id, if the outcome is to be told, or remembered because it was cancelled.
    pub of: Option<EndedOf<'a>>,
}

/// The message of an [`EndedRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedOf<'a> {
    /// The sender.
    pub from: DeviceRef<'a>,
    /// The sender's id for it.
    pub id: &'a str,
    /// The number of the outcome in the exchange with the sender's partition, if it is to be told.
    pub number: Option<u64>,
}

/// See [`Record::Device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRecord<'a> {
    /// The device.
    pub device: DeviceRef<'a>,
    /// Name of its mailbox, never 0.
    pub mailbox: u64,
    /// Numbers below this one are not given again.
    pub reserved_to: u64,
    /// It has acked everything up to here.
    pub acked_to: u64,
    /// Nothing above this number was pushed. Counts only if `away_since_ms` says that the device
    /// is away.
    pub pushed_to: u64,
    /// Time since which it is away, as a stamp of [`crate::StampClock`]; `None` while it is
    /// connected.
    pub away_since_ms: Option<u64>,
}

/// See [`Record::Id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRecord<'a> {
    /// The receiver of the message.
    pub to: DeviceRef<'a>,
    /// The sender.
    pub from: DeviceRef<'a>,
    /// Digest of the sender, the receiver and the id.
    pub key: Digest,
    /// Digest of the body.
    pub content: Digest,
    /// The message's number in the receiver's mailbox.
    pub seq: u64,
    /// True if its sender cancelled it.
    pub is_cancelled: bool,
    /// Time at which it was accepted, by the server's uptime.
    pub at: Moment,
}

/// See [`Record::Exchange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangeRecord {
    /// The partition whose record it is.
    pub partition: PartitionId,
    /// The other partition.
    pub with: PartitionId,
    /// The number of the next outcome for the other partition.
    pub next: u64,
    /// Outcomes for the other partition below this number are settled.
    pub settled_to: u64,
    /// Outcomes of the other partition below this number are applied.
    pub applied_to: u64,
}

impl Record<'_> {
    /// Returns the partition that owns it. Together with the partition's other records it restores
    /// all of that partition, and nothing of others.
    pub fn partition(&self) -> PartitionId {
        PartitionId::of(match *self {
            Record::Message(MessageRecord { to, .. })
            | Record::Outcome(OutcomeRecord { to, .. })
            | Record::Id(IdRecord { to, .. }) => to,
            Record::Acked { device, .. }
            | Record::Ended(EndedRecord { device, .. })
            | Record::Device(DeviceRecord { device, .. })
            | Record::Gone { device } => device,
            Record::Exchange(ExchangeRecord { partition, .. }) => return partition,
        })
    }
}
