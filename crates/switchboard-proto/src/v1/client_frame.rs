//! Frames of v1 that a client writes.

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
        /// Token that proves which device it is; `None` asks for a new anonymous device.
        token: Option<Cow<'a, str>>,
        /// Name of the mailbox that `last_seq` is about, from the last `welcome`.
        mailbox: Option<Cow<'a, str>>,
        /// Acks everything up to here, if the device still has that mailbox.
        last_seq: Option<u64>,
        /// True if the device, should it be new, is to end with its connection and leave no
        /// mailbox.
        ephemeral: bool,
    },
    /// A message to another device.
    Send(Send<'a>),
    /// Acks every message up to `seq`.
    Ack {
        /// The greatest number that need not be pushed again.
        seq: u64,
    },
    /// Refuses one message; those before and behind it stay.
    Refuse {
        /// Number of the message.
        seq: u64,
        /// Reason that its sender is told, at most [`REASON_LEN_MAX`](super::REASON_LEN_MAX) bytes.
        reason: Option<Cow<'a, str>>,
    },
    /// Cancels a message that was not pushed yet.
    Cancel {
        /// Id of the message.
        id: Cow<'a, str>,
        /// The receiver of the message; any string, as in [`Send::to`].
        to: Cow<'a, str>,
    },
    /// Asks for a page of the list of devices.
    Devices {
        /// Id of the request, which comes back with the answer.
        id: Cow<'a, str>,
        /// The `next` of the page before; `None` asks for the first page.
        after: Option<Cow<'a, str>>,
        /// Number of devices in the page at most, 1 to
        /// [`DEVICES_LIMIT_MAX`](super::DEVICES_LIMIT_MAX).
        limit: Option<u32>,
    },
    /// Asks to be told when these devices come and go, beside those already watched.
    Watch {
        /// Id of the request, which comes back with the answer.
        id: Cow<'a, str>,
        /// At most [`WATCH_MAX`](super::WATCH_MAX) devices.
        devices: Vec<Cow<'a, str>>,
    },
    /// Asks to be told no more of these devices; answered `watching`, as is `watch`.
    Unwatch {
        /// Id of the request, which comes back with the answer.
        id: Cow<'a, str>,
        /// At most [`WATCH_MAX`](super::WATCH_MAX) devices; `None` stands for all that are watched.
        devices: Option<Vec<Cow<'a, str>>>,
    },
    /// Replaces the connection's token before it expires, by one for the same device.
    Refresh {
        /// The new token.
        token: Cow<'a, str>,
    },
    /// Asks for a `pong`.
    Ping {
        /// Id of the request, which comes back with the answer.
        id: Option<Cow<'a, str>>,
    },
}

/// A message to another device, as its sender wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send<'a> {
    /// The sender's id for it, 1 to [`ID_LEN_MAX`](super::ID_LEN_MAX) bytes.
    pub id: Cow<'a, str>,
    /// The receiver's id, for [`DeviceRef::parse`](super::DeviceRef::parse).
    ///
    /// A string that is no id makes no bad frame: a mistyped id is answered with `rejected`, and
    /// not with an `error`, which would count toward closing the connection.
    pub to: Cow<'a, str>,
    /// Any JSON value, valid and exactly as it was sent, without the white space around it.
    pub body: &'a [u8],
    /// Time for which it may wait for an ack; `None` is as long as the mailbox exists.
    pub ttl_ms: Option<u64>,
    /// Id of the message that it answers, 1 to [`ID_LEN_MAX`](super::ID_LEN_MAX) bytes.
    pub re: Option<Cow<'a, str>>,
    /// Durability that `accepted` must mean, never [`Durability::None`]; `None` is the strongest
    /// that there is.
    pub durability: Option<Durability>,
    /// True if the sender asks for an `outcome`.
    pub receipt: bool,
}

/// Reason for which a client's frame cannot be obeyed; it becomes an `error` frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// The kind of error.
    pub code: FrameErrorCode,
    /// Text for the author of the client: what was wrong, and what would be right.
    pub message: String,
    /// The frame's `id`, if the frame is well-formed JSON and has a valid one.
    pub id: Option<String>,
}
