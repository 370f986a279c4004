//! What the store holds: facts about devices with mailboxes, in the order in which they were
//! decided.
//!
//! Replayed in that order into the brokers of a new process they make the state that was promised.

use switchboard_proto::v1::{DeviceRef, Outcome};

use crate::{Digest, Moment};

/// Where a record lies in the store; the store's own number. 0 is nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// Not in the store, or not yet.
    pub const NOWHERE: Position = Position(0);

    pub(crate) fn is_nowhere(self) -> bool {
        self == Position::NOWHERE
    }
}

/// One fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A message was accepted: it is in a mailbox, and its id is taken.
    Message(MessageRecord<'a>),
    /// A message ended and its sender's mailbox says so. The message is out of its mailbox.
    Outcome(OutcomeRecord<'a>),
    /// A device acked: what asked for no outcome is out of its mailbox up to `seq`.
    Acked {
        /// Whose mailbox.
        device: DeviceRef<'a>,
        /// Up to where.
        seq: u64,
    },
    /// One message is out of a mailbox, and nobody is to be told.
    Removed {
        /// Whose mailbox.
        device: DeviceRef<'a>,
        /// Which message.
        seq: u64,
    },
    /// A message with a receipt ended otherwise than by an ack or with its receiver; its sender is
    /// not told yet.
    Ended(EndedRecord<'a>),
    /// How a device stands. Each one replaces the one before.
    Device(DeviceRecord<'a>),
    /// A device ended, with its mailbox and the ids it sent under.
    Gone {
        /// Which.
        device: DeviceRef<'a>,
    },
    /// An id is taken whose message is out of the log.
    SentId(SentIdRecord<'a>),
}

/// See [`Record::Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRecord<'a> {
    /// Whose mailbox.
    pub to: DeviceRef<'a>,
    /// Its number there.
    pub seq: u64,
    /// Who sent it.
    pub from: DeviceRef<'a>,
    /// The sender's id for it.
    pub id: &'a str,
    /// Whether the id counts for duplicates: not a text device's, which was made by the server,
    /// nor an ephemeral device's, which ended with it.
    pub is_id_taken: bool,
    /// Raw JSON.
    pub body: &'a [u8],
    /// The id that it answers.
    pub re: Option<&'a str>,
    /// When it was accepted: wall clock, and the server's uptime, which the duplicate window
    /// counts.
    pub sent_at_ms: u64,
    /// See `sent_at_ms`.
    pub at: Moment,
    /// When it expires, by [`crate::StampClock`].
    pub expires_at_ms: Option<u64>,
    /// Whether its sender asked for an outcome.
    pub receipt: bool,
}

/// See [`Record::Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutcomeRecord<'a> {
    /// Whose mailbox the outcome is in: the message's sender.
    pub to: DeviceRef<'a>,
    /// Its number there.
    pub seq: u64,
    /// The message's id.
    pub id: &'a str,
    /// In whose mailbox the message was.
    pub of: DeviceRef<'a>,
    /// Its number there.
    pub of_seq: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// When, wall clock.
    pub at_ms: u64,
    /// Whether the receiver may have seen it although it did not ack.
    pub maybe_seen: bool,
    /// Why it was refused.
    pub reason: Option<&'a str>,
}

/// See [`Record::Ended`].
///
/// The receiver's shard writes it, before any ack that covers the message: the outcome's record is
/// the sender's shard's, and may be on disk later than that ack. Without it a crash in between
/// would leave a message that seems to have been acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedRecord<'a> {
    /// In whose mailbox the message was.
    pub device: DeviceRef<'a>,
    /// Its number there.
    pub seq: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// When, wall clock.
    pub at_ms: u64,
    /// Whether the receiver may have seen it although it did not ack.
    pub maybe_seen: bool,
    /// Why it was refused.
    pub reason: Option<&'a str>,
}

/// See [`Record::Device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRecord<'a> {
    /// Which.
    pub device: DeviceRef<'a>,
    /// What its mailbox is called: an odd number. All its bits turned, and so even: the device is
    /// ending, and what is left of it is to be evicted.
    pub mailbox: u64,
    /// Numbers below this one are not given again.
    pub reserved_to: u64,
    /// It acked up to here.
    pub acked_to: u64,
    /// Nothing above was pushed; counts only where `away_since_ms` says that it is away.
    pub pushed_to: u64,
    /// Since when it is away, by [`crate::StampClock`]; `None` while it is connected.
    pub away_since_ms: Option<u64>,
}

/// See [`Record::SentId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentIdRecord<'a> {
    /// Who sent.
    pub from: DeviceRef<'a>,
    /// Stands for the id.
    pub id: Digest,
    /// To whom.
    pub to: DeviceRef<'a>,
    /// The message's number in the receiver's mailbox.
    pub seq: u64,
    /// Stands for receiver and body.
    pub content: Digest,
    /// When it was accepted, by the server's uptime.
    pub at: Moment,
}
