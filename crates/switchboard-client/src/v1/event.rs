//! What happens to a device.

use std::time::Duration;

use switchboard_proto::v1::{Durability, Outcome, Word};

use super::Welcome;
use crate::Ending;

/// Something that a device is told, or that happens to its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device is connected, for the first time or again.
    Online(Welcome),
    /// Another device, or this one, sent a message.
    Message(Message),
    /// A message of this device that asked for a receipt met its fate.
    Outcome(Receipt),
    /// A watched device came or went; said for each when it begins to be watched.
    Presence {
        /// Which device.
        device: String,
        /// Whether it is connected.
        online: bool,
        /// Since when, in Unix time.
        at_ms: u64,
    },
    /// The token ends soon: [`Device::refresh`](super::Device::refresh) replaces it.
    Expiring {
        /// When, in Unix time.
        at_ms: u64,
    },
    /// The connection ended, or could not be had again; the session goes on.
    Offline {
        /// Why.
        why: String,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// The session ended; nothing follows.
    Closed(Ending),
}

impl Event {
    /// Returns what an ack of this event names, if it is one that is acked.
    pub fn cursor(&self) -> Option<Cursor> {
        match self {
            Event::Message(message) => Some(message.cursor),
            Event::Outcome(receipt) => Some(receipt.cursor),
            _ => None,
        }
    }
}

/// Where a message or an outcome is in the mailbox; what is acked or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub(super) seq: u64,
    /// Which of the mailboxes that this session has seen; an ack for an older one acks nothing.
    pub(super) generation: u32,
}

impl Cursor {
    /// Its number in the mailbox.
    pub fn seq(self) -> u64 {
        self.seq
    }
}

/// A message that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Names it for [`Device::ack`](super::Device::ack).
    pub cursor: Cursor,
    /// The sender's device id.
    pub from: String,
    /// The sender's id for it.
    pub id: String,
    /// Any JSON value, as it was sent.
    pub body: String,
    /// When the server took it, in Unix time.
    pub sent_at_ms: u64,
    /// The `id` of the message that it answers.
    pub re: Option<String>,
}

impl Message {
    /// Returns what a device of the text protocol would see: a string bare, anything else as compact JSON.
    pub fn text(&self) -> String {
        let mut text = Vec::with_capacity(self.body.len());
        switchboard_proto::v1::write_text_of_body(&mut text, self.body.as_bytes());
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// How a message of this device ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Names it for [`Device::ack`](super::Device::ack).
    pub cursor: Cursor,
    /// The message's id.
    pub id: String,
    /// To whom it was sent.
    pub to: String,
    /// How it ended.
    pub outcome: Word<Outcome>,
    /// When, in Unix time.
    pub at_ms: u64,
    /// Whether the receiver may have read it although it did not ack it.
    pub maybe_seen: bool,
    /// Why the receiver refused it.
    pub reason: Option<String>,
}

/// The server's yes to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The message's id.
    pub id: String,
    /// What has been reached.
    pub durability: Word<Durability>,
    /// Whether it had been accepted before, and is not delivered again.
    pub duplicate: bool,
}
