//! What the brokers of two shards say to each other about devices with mailboxes.

use std::borrow::Cow;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Durability, RejectCode};

use super::{MessageKey, MessageOutcome};
use crate::{Conn, Digest, Moment, ShardId};

/// From one shard's broker to another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// A message, to the shard of its receiver.
    Deliver(Box<Deliver<'static>>),
    /// What became of it, to the shard of its sender.
    Reply {
        /// The sender.
        to: DeviceId,
        /// Stands for the message's id.
        digest: Digest,
        /// The message's id.
        id: Box<str>,
        /// What became of it.
        reply: Reply,
    },
    /// As [`Envelope::Reply`], to a device of the text protocol.
    TextReply {
        /// Who waits for it.
        reply_to: TextReplyTo,
        /// `Err`: it is told so.
        reply: Result<(), RejectCode>,
    },
    /// The sender wants a message back.
    Cancel(Cancel),
    /// What became of that.
    CancelReply {
        /// The sender.
        to: DeviceId,
        /// The message's id.
        id: Box<str>,
        /// The session that asked.
        session: u32,
        /// Which one is cancelled, or why none is.
        result: Result<MessageKey, RejectCode>,
    },
    /// A message met its outcome, to the shard of its sender, who asked to know.
    Outcome {
        /// The sender.
        to: DeviceId,
        /// The message's id.
        id: Box<str>,
        /// How it ended.
        outcome: MessageOutcome,
        /// The session whose `cancel` this also answers.
        answers_cancel: Option<u32>,
        /// The sender was ephemeral: another device of its id is not told.
        is_of_ephemeral: bool,
    },
    /// The outcome of a message is recorded, to the shard of its receiver.
    Settled(MessageKey),
    /// The sender of a message is no more: nobody is to be told of its outcome.
    Unwanted(MessageKey),
    /// A watched device came or went.
    Presence {
        /// Who watches.
        to: DeviceId,
        /// Which device.
        device: DeviceId,
        /// Whether it is connected.
        online: bool,
        /// Since when, wall clock.
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
    /// Who sent it.
    pub from: DeviceId,
    /// Who shall get it.
    pub to: DeviceId,
    /// The sender's id for it; empty where the server is to make one.
    pub id: Cow<'a, str>,
    /// Stands for the id.
    pub digest: Digest,
    /// Raw JSON.
    pub body: Cow<'a, [u8]>,
    /// The id that it answers.
    pub re: Option<Cow<'a, str>>,
    /// When it was taken, wall clock.
    pub sent_at_ms: u64,
    /// The same by the server's uptime.
    pub at: Moment,
    /// When it expires, by the clock that records are stamped by.
    pub expires_at_ms: Option<u64>,
    /// What was asked for; none: the strongest there is.
    pub durability: Option<Durability>,
    /// Whether the sender asked for an outcome.
    pub receipt: bool,
    /// Whether the sender's shard has memory set aside for the outcome, should it be in memory
    /// only.
    pub has_outcome_memory: bool,
    /// Whether its id counts for duplicates also after a restart: not one that the server makes,
    /// nor one of an ephemeral sender, with which it ends.
    pub keeps_id: bool,
    /// Who waits for the reply.
    pub reply_to: ReplyTo,
}

impl Deliver<'_> {
    /// As it can leave the thread.
    pub(crate) fn into_owned(self) -> Deliver<'static> {
        Deliver {
            id: Cow::Owned(self.id.into_owned()),
            body: Cow::Owned(self.body.into_owned()),
            re: self.re.map(|re| Cow::Owned(re.into_owned())),
            ..self
        }
    }

    /// Returns what counts toward a mailbox's bytes, under this id: its own, or one that the
    /// server made.
    pub(crate) fn len_under(&self, id: &str) -> usize {
        self.body.len() + id.len() + self.re.as_ref().map_or(0, |re| re.len())
    }
}

/// Who waits for a reply.
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
    /// The device on it, in case that the connection is another's by then.
    pub device: DeviceId,
    /// Its session, if it has a mailbox: it may be there again, on the same connection.
    pub session: u32,
    /// Stands for the text, for the duplicate window.
    pub text: Digest,
}

/// What the receiver's side says to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is in the mailbox under this number (0: it went to a text device) with this durability.
    Accepted {
        /// The number.
        seq: u64,
        /// What has been reached.
        durability: Durability,
    },
    /// It is nowhere.
    Rejected(RejectCode),
    /// The same, because its sender has as much in the mailbox as one sender may.
    OverShare,
    /// The same, because the shard has as many messages in memory only as it may.
    MemoryFull,
    /// The same, because devices without a name have as much as they may in all.
    AnonymousFull,
    /// The store is in trouble; the message waits, and may be accepted later.
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
    /// The sender's session that asked.
    pub session: u32,
}
