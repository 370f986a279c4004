//! Events of a device.

use std::time::Duration;

use switchboard_proto::v1::{Durability, Outcome, Word};

use super::Welcome;
use crate::Ending;

/// Something that a device receives, or that happens to its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device is connected, for the first time or again.
    Online(Welcome),
    /// Another device, or this one, sent a message.
    Message(Message),
    /// A message of this device that asked for a receipt has its outcome.
    Outcome(Receipt),
    /// A watched device came or went; also sent for each device when a watch begins.
    Presence {
        /// The watched device.
        device: String,
        /// True if it is connected.
        online: bool,
        /// Time of the change, in Unix time.
        at_ms: u64,
    },
    /// The token expires soon: [`Device::refresh`](super::Device::refresh) replaces it.
    Expiring {
        /// Time at which it expires, in Unix time.
        at_ms: u64,
    },
    /// The connection ended, or an attempt to connect failed; the session goes on.
    Offline {
        /// The reason.
        why: String,
        /// Delay before the next attempt.
        retry_in: Duration,
    },
    /// The session ended; no event follows.
    Closed(Ending),
}

impl Event {
    /// Returns the cursor to ack, if this is an event that is acked.
    pub fn cursor(&self) -> Option<Cursor> {
        match self {
            Event::Message(message) => Some(message.cursor),
            Event::Outcome(receipt) => Some(receipt.cursor),
            _ => None,
        }
    }
}

/// Position of a message or an outcome in the mailbox, for acks and refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub(super) seq: u64,
    /// Number of the mailbox within this session; an ack for an older one has no effect.
    pub(super) generation: u32,
}

impl Cursor {
    /// Returns the number in the mailbox.
    pub fn seq(self) -> u64 {
        self.seq
    }
}

/// A message that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Position for [`Device::ack`](super::Device::ack).
    pub cursor: Cursor,
    /// The sender's device id.
    pub from: String,
    /// The id that the sender gave it.
    pub id: String,
    /// Any JSON value, as it was sent.
    pub body: String,
    /// Time at which the server accepted it, in Unix time.
    pub sent_at_ms: u64,
    /// The `id` of the message that it answers.
    pub re: Option<String>,
}

impl Message {
    /// Returns the text that a device of the text protocol would receive: a JSON string without
    /// quotes, anything else as compact JSON.
    pub fn text(&self) -> String {
        let mut text = Vec::with_capacity(self.body.len());
        switchboard_proto::v1::write_text_of_body(&mut text, self.body.as_bytes());
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// The outcome of a message of this device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Position for [`Device::ack`](super::Device::ack).
    pub cursor: Cursor,
    /// The message's id.
    pub id: String,
    /// The receiver's device id.
    pub to: String,
    /// The outcome.
    pub outcome: Word<Outcome>,
    /// Time of the outcome, in Unix time.
    pub at_ms: u64,
    /// True if the receiver may have read the message although it did not ack it.
    pub maybe_seen: bool,
    /// The receiver's reason for a refusal.
    pub reason: Option<String>,
}

/// The server's acceptance of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The message's id.
    pub id: String,
    /// The durability that has been reached.
    pub durability: Word<Durability>,
    /// True if the message had been accepted before; it is not delivered again.
    pub duplicate: bool,
}
