//! Frames of v1 that a server writes.

use super::{DeviceRef, Durability, FrameErrorCode, Outcome, RejectCode};

/// A frame from the server.
///
/// Fields that are `None` are not written, nor `duplicate` and `maybe_seen` while they are false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFrame<'a> {
    /// Answers `hello`.
    Welcome(Welcome<'a>),
    /// Answers `send`: the message has reached this durability.
    Accepted {
        /// Id of the message.
        id: &'a str,
        /// The durability that is reached.
        durability: Durability,
        /// True if it was accepted before, and is not delivered again.
        duplicate: bool,
    },
    /// Answers a request that was not carried out.
    Rejected {
        /// Id of the request.
        id: &'a str,
        /// The `to` of a `cancel`, as the client wrote it; `None` for other requests.
        to: Option<&'a str>,
        /// Reason, for programs.
        code: RejectCode,
        /// Reason, for people.
        message: &'a str,
        /// Time after which the client may try again.
        retry_after_ms: Option<u64>,
    },
    /// Answers `cancel`.
    Cancelled {
        /// Id of the message.
        id: &'a str,
        /// The receiver of the message.
        to: DeviceRef<'a>,
    },
    /// Pushes a message.
    Message {
        /// Its number in the receiver's mailbox.
        seq: u64,
        /// The sender.
        from: DeviceRef<'a>,
        /// The sender's id for it.
        id: &'a str,
        /// Its body: valid JSON, written as it is.
        body: &'a [u8],
        /// Time at which the server took it, in Unix time.
        sent_at_ms: u64,
        /// Id of the message that it answers.
        re: Option<&'a str>,
    },
    /// Pushes the outcome of a message that was sent with `receipt`.
    Outcome {
        /// The outcome's number in the sender's mailbox.
        seq: u64,
        /// Id of the message.
        id: &'a str,
        /// The receiver of the message.
        to: DeviceRef<'a>,
        /// Kind of its end.
        outcome: Outcome,
        /// Time of its end, in Unix time.
        at_ms: u64,
        /// True if the receiver may have seen it although it did not ack it.
        maybe_seen: bool,
        /// Reason that the receiver gave when it refused it.
        reason: Option<&'a str>,
    },
    /// Answers `devices`.
    Devices {
        /// Id of the request.
        id: &'a str,
        /// One page of devices.
        devices: &'a [DeviceStatus<'a>],
        /// The `after` of the next page; `None` on the last.
        next: Option<DeviceRef<'a>>,
    },
    /// Answers `watch` and `unwatch`.
    Watching {
        /// Id of the request.
        id: &'a str,
    },
    /// Tells that a watched device came or went, or how it stands when the watch begins.
    Presence {
        /// The device.
        device: DeviceRef<'a>,
        /// True if it is connected.
        online: bool,
        /// Time since which it is so, in Unix time.
        at_ms: u64,
    },
    /// Answers `refresh`.
    Refreshed {
        /// Time at which the new token expires, in Unix time; `None` is never.
        expires_at_ms: Option<u64>,
    },
    /// Tells that the token expires soon.
    Expiring {
        /// Time at which it does, in Unix time.
        at_ms: u64,
    },
    /// Answers `ping`.
    Pong {
        /// Id of the ping.
        id: Option<&'a str>,
    },
    /// Tells that the connection is about to be closed as planned.
    Bye {
        /// Time after which the client is to connect again.
        reconnect_in_ms: u64,
        /// Reason, for people.
        reason: &'a str,
    },
    /// Answers a frame that cannot be obeyed.
    Error {
        /// Reason, for programs.
        code: FrameErrorCode,
        /// Reason, for people.
        message: &'a str,
        /// Id of the frame, if it had a valid one.
        id: Option<&'a str>,
    },
}

/// Answer to `hello`, when the session opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// Id of the device.
    pub device: DeviceRef<'a>,
    /// Token with which an anonymous device proves its id later; only for a new one.
    pub token: Option<&'a str>,
    /// Name of the mailbox. A name other than before means that its contents were lost.
    pub mailbox: &'a str,
    /// True if nothing that was promised to survive was lost since `last_seq`.
    pub resumed: bool,
    /// Number of messages and outcomes that wait.
    pub pending: u64,
    /// The number up to which everything is acked.
    pub last_seq: u64,
    /// Interval of the server's pings, within which the client may expect to hear from it.
    pub ping_every_ms: u64,
    /// Length of the longest frame that the server reads, and usually of the longest that it
    /// pushes.
    pub max_message_bytes: u64,
    /// The strongest durability that this server has.
    pub durability: Durability,
    /// The server's name and version.
    pub server: &'a str,
}

/// A device in the list of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStatus<'a> {
    /// The device.
    pub device: DeviceRef<'a>,
    /// True if it is connected.
    pub online: bool,
    /// Time since which it is so, in Unix time.
    pub since_ms: u64,
}
