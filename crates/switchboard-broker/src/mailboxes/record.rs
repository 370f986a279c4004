//! Records, of which the store consists: facts about devices with mailboxes, in the order in which
//! they were decided.
//!
//! Replayed in that order into the brokers of a new process, they restore what was promised.

use switchboard_proto::v1::{DeviceRef, Outcome};

use crate::{Digest, Moment};

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
    /// A message ended and its sender's mailbox says so. The message is out of its mailbox.
    Outcome(OutcomeRecord<'a>),
    /// A device acked: all entries up to `seq` are out of its mailbox, but for messages with a
    /// receipt.
    Acked {
        /// The device whose mailbox it is.
        device: DeviceRef<'a>,
        /// The number up to which it acked.
        seq: u64,
    },
    /// An entry is out of a mailbox, and its sender is not to be told.
    Removed {
        /// The device whose mailbox it was in.
        device: DeviceRef<'a>,
        /// The entry's number.
        seq: u64,
    },
    /// A message with a receipt ended, neither by an ack nor because its receiver ended; its sender
    /// is not told yet.
    Ended(EndedRecord<'a>),
    /// State of a device. Each of these replaces the one before.
    Device(DeviceRecord<'a>),
    /// A device ended, with its mailbox and the ids it sent under.
    Gone {
        /// The device.
        device: DeviceRef<'a>,
    },
    /// An id is taken, although its message is out of the log.
    SentId(SentIdRecord<'a>),
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
    /// The same by the server's uptime, from which the duplicate window counts.
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
    /// The message's receiver, whose mailbox it was in.
    pub of: DeviceRef<'a>,
    /// Its number there.
    pub of_seq: u64,
    /// Kind of its end.
    pub outcome: Outcome,
    /// Time of its end, by the wall clock.
    pub at_ms: u64,
    /// True if the receiver may have seen it although it did not ack.
    pub maybe_seen: bool,
    /// Reason that the receiver gave when it refused it.
    pub reason: Option<&'a str>,
}

/// See [`Record::Ended`].
///
/// The receiver's shard writes it, before any ack that covers the message: the outcome's record is
/// the sender's shard's, and may be on disk later than that ack. Without it a crash in between
/// would leave a message that seems to have been acked.
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
}

/// See [`Record::Device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRecord<'a> {
    /// The device.
    pub device: DeviceRef<'a>,
    /// Name of its mailbox, an odd number. With all bits inverted, and so even, while the device
    /// is ending and what is left in it is to be evicted.
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

/// See [`Record::SentId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentIdRecord<'a> {
    /// The sender.
    pub from: DeviceRef<'a>,
    /// Digest of the id.
    pub id: Digest,
    /// The receiver.
    pub to: DeviceRef<'a>,
    /// The message's number in the receiver's mailbox.
    pub seq: u64,
    /// Digest of receiver and body.
    pub content: Digest,
    /// Time at which it was sent, by the server's uptime.
    pub at: Moment,
}
