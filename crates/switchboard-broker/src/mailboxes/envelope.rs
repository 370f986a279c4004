//! Envelopes, which the brokers of two shards send each other about devices with mailboxes.

use std::borrow::Cow;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Durability, RejectCode};

use super::{MessageKey, MessageOutcome};
use crate::{Conn, Digest, Moment, ShardId};

/// An envelope from one shard's broker to another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// A message, for the shard of its receiver.
    Deliver(Box<Deliver<'static>>),
    /// The reply to it, for the shard of its sender.
    Reply {
        /// The sender.
        to: DeviceId,
        /// Digest of the message's id.
        digest: Digest,
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
        /// The sender.
        to: DeviceId,
        /// The message's id.
        id: Box<str>,
        /// The message's receiver.
        receiver: DeviceId,
        /// The session that asked.
        session: u32,
        /// The message that is cancelled, or the reason for which it is not.
        result: Result<MessageKey, RejectCode>,
    },
    /// The outcome of a message, for the shard of its sender, which asked for it.
    Outcome {
        /// The sender.
        to: DeviceId,
        /// The message's id.
        id: Box<str>,
        /// The outcome.
        outcome: MessageOutcome,
        /// The sender's session whose `cancel` this also answers.
        answers_cancel: Option<u32>,
        /// True if the sender was ephemeral: another device of its id is not told.
        is_of_ephemeral: bool,
    },
    /// The outcome of a message is recorded; for the shard of its receiver.
    Settled(MessageKey),
    /// Nobody is to be told the outcome of a message, as its sender has ended; for the shard of
    /// its receiver.
    Unwanted(MessageKey),
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
            Envelope::TextReply { .. }
            | Envelope::Settled(_)
            | Envelope::Unwanted(_)
            | Envelope::Presence { .. } => 0,
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
    /// Digest under which the sender's shard keeps the id.
    pub digest: Digest,
    /// Raw JSON.
    pub body: Cow<'a, [u8]>,
    /// Id of the message that it answers.
    pub re: Option<Cow<'a, str>>,
    /// Time at which the sender's shard took it, by the wall clock.
    pub sent_at_ms: u64,
    /// The same by the server's uptime.
    pub at: Moment,
    /// Time at which it expires, as a stamp of [`crate::StampClock`]; `None` is never.
    pub expires_at_ms: Option<u64>,
    /// The durability that was asked for; `None` is the strongest that there is.
    pub durability: Option<Durability>,
    /// True if the sender asked for an outcome.
    pub receipt: bool,
    /// True if the sender's shard has memory set aside for the outcome, should it be in memory
    /// only.
    pub has_outcome_memory: bool,
    /// True if its id counts for duplicates, even after a restart. Not if the server makes it,
    /// nor if the sender is ephemeral, with which it ends.
    pub keeps_id: bool,
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

    /// Returns the bytes that count toward those of a mailbox, under this id: its own, or one
    /// that the server made.
    pub(crate) fn len_under(&self, id: &str) -> usize {
        self.body.len() + id.len() + self.re.as_ref().map_or(0, |re| re.len())
    }
}

/// Destination of the reply to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyTo {
    /// A v1 device on this shard.
    Device(ShardId),
    /// A connection of the text protocol.
    Text(TextReplyTo),
}

/// A connection of the text protocol that waits for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextReplyTo {
    /// Its shard.
    pub shard: ShardId,
    /// The connection.
    pub conn: Conn,
    /// The device on it: the connection may be another device's by then.
    pub device: DeviceId,
    /// Its session, if it has a mailbox: it may have come back, on a connection of the same number.
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
    },
    /// It is not accepted.
    Rejected(RejectCode),
    /// The same, because its sender has its share of the mailbox in use.
    OverShare,
    /// The same, because the messages of the shard that are in memory only are at their bound.
    MemoryFull,
    /// The same, because all devices without a name together are at their bound.
    AnonymousFull,
    /// The store is failing: the message waits, and may be accepted later.
    Unknown,
}

/// See [`Envelope::Cancel`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// The sender.
    pub from: DeviceId,
    /// The receiver.
    pub to: DeviceId,
    /// The message's number in the receiver's mailbox.
    pub seq: u64,
    /// The message's id.
    pub id: Box<str>,
    /// The session of the sender that asked.
    pub session: u32,
}
