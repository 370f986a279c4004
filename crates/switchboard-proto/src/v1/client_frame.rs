//! What a client says in v1.

use std::borrow::Cow;

use super::{Durability, FrameErrorCode};

/// A frame from a client, borrowed from its text.
///
/// Strings are borrowed unless they hold escapes. Numbers are at most
/// [`INTEGER_MAX`](super::INTEGER_MAX).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame<'a> {
    /// Opens the session; the first frame, and only the first.
    Hello {
        /// Proves who the device is. None: a new anonymous device.
        token: Option<Cow<'a, str>>,
        /// The mailbox that `last_seq` is about, as the last `welcome` called it.
        mailbox: Option<Cow<'a, str>>,
        /// Acks all up to here, if `mailbox` is still the device's.
        last_seq: Option<u64>,
        /// A new device ends with its connection, and leaves no mailbox.
        ephemeral: bool,
    },
    /// A message to another device.
    Send(Send<'a>),
    /// Acks every message up to `seq`.
    Ack {
        /// The last one that needs not be pushed again.
        seq: u64,
    },
    /// Refuses one message; those before and behind it stay.
    Refuse {
        /// The message.
        seq: u64,
        /// What its sender is told, at most [`REASON_LEN_MAX`](super::REASON_LEN_MAX) bytes.
        reason: Option<Cow<'a, str>>,
    },
    /// Takes a message back that was not pushed yet.
    Cancel {
        /// The `id` under which it was sent.
        id: Cow<'a, str>,
    },
    /// Asks for a page of the list of devices.
    Devices {
        /// Comes back with the answer.
        id: Cow<'a, str>,
        /// The `next` of the page before; none for the first page.
        after: Option<Cow<'a, str>>,
        /// At most so many, 1 to [`DEVICES_LIMIT_MAX`](super::DEVICES_LIMIT_MAX).
        limit: Option<u32>,
    },
    /// Asks to be told when these devices come and go, beside those already watched.
    Watch {
        /// Comes back with the answer.
        id: Cow<'a, str>,
        /// At most [`WATCH_MAX`](super::WATCH_MAX).
        devices: Vec<Cow<'a, str>>,
    },
    /// Asks to be told no more; answered `watching`, as is `watch`.
    Unwatch {
        /// Comes back with the answer.
        id: Cow<'a, str>,
        /// At most [`WATCH_MAX`](super::WATCH_MAX); none for all that are watched.
        devices: Option<Vec<Cow<'a, str>>>,
    },
    /// Replaces the connection's token before it ends, by one for the same device.
    Refresh {
        /// The new token.
        token: Cow<'a, str>,
    },
    /// Asks for a `pong`.
    Ping {
        /// Comes back with the answer.
        id: Option<Cow<'a, str>>,
    },
}

/// A message to another device, as its sender hands it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send<'a> {
    /// The sender's name for it, 1 to [`ID_LEN_MAX`](super::ID_LEN_MAX) bytes.
    pub id: Cow<'a, str>,
    /// The receiver's id, for [`DeviceRef::parse`](super::DeviceRef::parse).
    ///
    /// A string that is no id makes no bad frame: a person who mistypes an id gets `rejected`, not
    /// an `error` that counts toward the end of the connection.
    pub to: Cow<'a, str>,
    /// Any JSON value, valid and exactly as it was sent, without the white space around it.
    pub body: &'a [u8],
    /// How long it may wait for an ack; none: as long as the mailbox lives.
    pub ttl_ms: Option<u64>,
    /// The `id` of the message that this one answers, 1 to [`ID_LEN_MAX`](super::ID_LEN_MAX) bytes.
    pub re: Option<Cow<'a, str>>,
    /// What `accepted` shall mean, never [`Durability::None`]; none: the strongest there is.
    pub durability: Option<Durability>,
    /// Whether the sender wants an `outcome`.
    pub receipt: bool,
}

/// Why a client's frame cannot be obeyed; it becomes an `error` frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// The kind of error.
    pub code: FrameErrorCode,
    /// What was wrong and what would be right, for the person who wrote the client.
    pub message: String,
    /// The frame's `id`, if the frame is well-formed JSON and has a valid one.
    pub id: Option<String>,
}
