//! Envelopes, which the brokers of two shards send each other about devices with mailboxes.

use std::borrow::Cow;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Durability, RejectCode};

use super::MessageOutcome;
use super::exchange::Numbered;
use super::reserved::OutcomesFull;
use crate::{Conn, Digest, PartitionId, ShardId};

/// An envelope from one shard's broker to another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// A message, for the shard of its receiver.
    Deliver(Box<Deliver<'static>>),
    /// The reply to it, for the shard of its sender.
    Reply {
        /// The session that waits for it.
        reply_to: DeviceReplyTo,
        /// The receiver of the message.
        of: DeviceId,
        /// The message's id.
        id: Box<str>,
        /// The reply.
        reply: Reply,
    },
    /// As [`Envelope::Reply`], for a device of the text protocol.
    TextReply {
        /// The connection that waits for it.
        reply_to: TextReplyTo,
        /// `Ok` if the message was accepted, otherwise the reason for refusing it.
        reply: Result<(), RejectCode>,
    },
    /// A sender cancels a message; for the shard of its receiver.
    Cancel(Cancel),
    /// The reply to that, for the shard of the sender.
    CancelReply {
        /// The session that waits for it.
        reply_to: DeviceReplyTo,
        /// The receiver of the message.
        of: DeviceId,
        /// The message's id.
        id: Box<str>,
        /// `Ok` if the message is cancelled, otherwise the reason for which it is not.
        result: Result<(), RejectCode>,
    },
    /// The outcome of a message, for the partition of its sender, which asked for it.
    Outcome {
        /// The sender.
        to: DeviceId,
        /// The message's id.
        id: Box<str>,
        /// The outcome.
        outcome: MessageOutcome,
        /// Its place in the exchange of the two partitions; `None` if it is in memory only.
        numbered: Option<Numbered>,
    },
    /// The senders' partition tells the receivers' partition up to which number it has recorded
    /// outcomes.
    Settled {
        /// The partition of the receivers, which sent them.
        source: PartitionId,
        /// The partition of the senders.
        target: PartitionId,
        /// The number below which all are recorded.
        to: u64,
    },
    /// A watched device came or went.
    Presence {
        /// The watcher.
        to: DeviceId,
        /// The watched device.
        device: DeviceId,
        /// True if it is connected.
        online: bool,
        /// Time since which it is so, by the wall clock.
        at_ms: u64,
    },
}

impl Envelope {
    /// Returns the memory that it takes while it waits.
    pub fn held_bytes(&self) -> usize {
        let beside = match self {
            Envelope::Deliver(deliver) => size_of::<Deliver<'_>>() + deliver.len_under(&deliver.id),
            Envelope::Reply { id, .. } | Envelope::CancelReply { id, .. } => id.len(),
            Envelope::Cancel(cancel) => cancel.id.len(),
            Envelope::Outcome { id, outcome, .. } => {
                id.len() + outcome.reason.as_ref().map_or(0, |reason| reason.len())
            }
            Envelope::TextReply { .. } | Envelope::Settled { .. } | Envelope::Presence { .. } => 0,
        };
        size_of::<Envelope>() + beside
    }
}

/// A message on its way to its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deliver<'a> {
    /// The sender.
    pub from: DeviceId,
    /// The receiver.
    pub to: DeviceId,
    /// The sender's id for it; empty if the server is to make one.
    pub id: Cow<'a, str>,
    /// Tells an ephemeral sender from others of its id: what it sent is no retry of what they sent.
    /// `None` for all other senders, text devices included.
    pub incarnation: Option<u64>,
    /// Raw JSON.
    pub body: Cow<'a, [u8]>,
    /// Id of the message that it answers.
    pub re: Option<Cow<'a, str>>,
    /// Time at which the sender's shard took it, by the wall clock.
    pub sent_at_ms: u64,
    /// Time at which it expires, as a stamp of [`crate::StampClock`]; `None` is never.
    pub expires_at_ms: Option<u64>,
    /// The durability that was asked for; `None` is the strongest that there is.
    pub durability: Option<Durability>,
    /// True if the sender asked for an outcome.
    pub receipt: bool,
    /// Reason for which the sender's shard could not reserve room for the outcome.
    pub no_room: Option<NoRoom>,
    /// Destination of the reply.
    pub reply_to: ReplyTo,
}

impl Deliver<'_> {
    /// Returns a copy that owns its parts, to be sent to another shard.
    pub(crate) fn into_owned(self) -> Deliver<'static> {
        Deliver {
            id: Cow::Owned(self.id.into_owned()),
            body: Cow::Owned(self.body.into_owned()),
            re: self.re.map(|re| Cow::Owned(re.into_owned())),
            ..self
        }
    }

    /// Returns whether its id counts for duplicates. Not if the server makes it.
    pub(crate) fn has_id(&self) -> bool {
        !self.id.is_empty()
    }

    /// Returns whether its id counts even after a restart. Not if the sender is ephemeral: its ids
    /// end with it.
    pub(crate) fn keeps_id(&self) -> bool {
        self.has_id() && self.incarnation.is_none()
    }

    /// Returns the bytes that count toward those of a mailbox, under this id: its own, or one
    /// that the server made.
    pub(crate) fn len_under(&self, id: &str) -> usize {
        self.body.len() + id.len() + self.re.as_ref().map_or(0, |re| re.len())
    }
}

/// Destination of the reply to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyTo {
    /// A session of a v1 device.
    Device(DeviceReplyTo),
    /// A connection of the text protocol.
    Text(TextReplyTo),
}

/// A session of a v1 device that waits for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceReplyTo {
    /// Its shard.
    pub shard: ShardId,
    /// The device.
    pub device: DeviceId,
    /// The connection.
    pub conn: Conn,
    /// The session on it: the connection may have another session by the time of the reply.
    pub session: u32,
    /// True if the session was told already that nothing is known; it is not told again.
    pub is_told: bool,
    /// As [`Deliver::incarnation`].
    pub incarnation: Option<u64>,
    /// True if the sender asked for the outcome of the message.
    pub receipt: bool,
}

/// Reasons for which no room could be reserved for the outcome of a message. It may still be a
/// retry, which needs none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// There is no place among the device's outcomes.
    Outcomes(OutcomesFull),
    /// There is no memory for it. It needs none if it will be in the store.
    Memory,
    /// As `Memory`, but because all devices without a name together are at their bound.
    AnonymousMemory,
}

/// A connection of the text protocol that waits for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextReplyTo {
    /// Its shard.
    pub shard: ShardId,
    /// The connection.
    pub conn: Conn,
    /// The device on it: the connection may be another device's by the time of the reply.
    pub device: DeviceId,
    /// The device's session, if it has a mailbox: it may have come back, on a connection of the
    /// same number.
    pub session: u32,
    /// Digest of the text, for the duplicate window.
    pub text: Digest,
}

/// Replies of the receiver's shard to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is accepted, and in the mailbox unless it went to a text device.
    Accepted {
        /// Its number in the mailbox; 0 if it went to a text device.
        seq: u64,
        /// The durability that is reached.
        durability: Durability,
        /// True if it was accepted before, and is not delivered again.
        duplicate: bool,
    },
    /// It is not accepted.
    Rejected(RejectCode),
    /// As `Rejected`, because its sender has its share of the mailbox in use.
    OverShare,
    /// As `Rejected`, because the messages of the shard that are in memory only are at their bound.
    MemoryFull,
    /// As `Rejected`, because all devices without a name together are at their bound.
    AnonymousFull,
    /// As `Rejected`, because there is no room for its outcome.
    OutcomesFull(OutcomesFull),
    /// The store is failing: the message waits, and may be accepted later.
    Unknown,
}

/// See [`Envelope::Cancel`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// The receiver.
    pub to: DeviceId,
    /// The message's id.
    pub id: Box<str>,
    /// The session of the sender that waits for the answer.
    pub reply_to: DeviceReplyTo,
}
