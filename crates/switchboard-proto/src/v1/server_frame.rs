//! What a server says in v1.

use super::{DeviceRef, Durability, FrameErrorCode, Outcome, RejectCode};

/// A frame from the server.
///
/// What is `None` or, for `duplicate` and `maybe_seen`, false is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFrame<'a> {
    /// Answers `hello`.
    Welcome(Welcome<'a>),
    /// Answers `send`: the message has reached this durability.
    Accepted {
        /// The message's.
        id: &'a str,
        /// What has been reached.
        durability: Durability,
        /// Whether it was accepted before and is not delivered again.
        duplicate: bool,
    },
    /// Answers a request that was not done.
    Rejected {
        /// The request's.
        id: &'a str,
        /// Why, for programs.
        code: RejectCode,
        /// Why, for people.
        message: &'a str,
        /// When to try again.
        retry_after_ms: Option<u64>,
    },
    /// Answers `cancel`.
    Cancelled {
        /// The message's.
        id: &'a str,
    },
    /// Pushes a message.
    Message {
        /// Its place in the receiver's mailbox.
        seq: u64,
        /// Who sent it.
        from: DeviceRef<'a>,
        /// The sender's name for it.
        id: &'a str,
        /// Valid JSON, written as it is.
        body: &'a [u8],
        /// When the server took it, in Unix time.
        sent_at_ms: u64,
        /// The `id` of the message that it answers.
        re: Option<&'a str>,
    },
    /// Pushes how a message ended that asked for a receipt.
    Outcome {
        /// Its place in the sender's mailbox.
        seq: u64,
        /// The message's.
        id: &'a str,
        /// To whom it was sent.
        to: DeviceRef<'a>,
        /// How it ended.
        outcome: Outcome,
        /// When, in Unix time.
        at_ms: u64,
        /// Whether the receiver may have read it although it did not ack it.
        maybe_seen: bool,
        /// Why the receiver refused it.
        reason: Option<&'a str>,
    },
    /// Answers `devices`.
    Devices {
        /// The request's.
        id: &'a str,
        /// One page.
        devices: &'a [DeviceStatus<'a>],
        /// The `after` of the next page; none at the end.
        next: Option<DeviceRef<'a>>,
    },
    /// Answers `watch` and `unwatch`.
    Watching {
        /// The request's.
        id: &'a str,
    },
    /// Tells whether a watched device is there.
    Presence {
        /// Which device.
        device: DeviceRef<'a>,
        /// Whether it is connected.
        online: bool,
        /// Since when, in Unix time.
        at_ms: u64,
    },
    /// Answers `refresh`.
    Refreshed {
        /// When the new token ends, in Unix time; none: never.
        expires_at_ms: Option<u64>,
    },
    /// Tells that the token ends soon.
    Expiring {
        /// When, in Unix time.
        at_ms: u64,
    },
    /// Answers `ping`.
    Pong {
        /// The ping's.
        id: Option<&'a str>,
    },
    /// Tells that the connection is about to be closed as planned.
    Bye {
        /// When to come back.
        reconnect_in_ms: u64,
        /// Why, for people.
        reason: &'a str,
    },
    /// Answers a frame that cannot be obeyed.
    Error {
        /// Why, for programs.
        code: FrameErrorCode,
        /// Why, for people.
        message: &'a str,
        /// The frame's, if it had a valid one.
        id: Option<&'a str>,
    },
}

/// What a device learns when its session opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// Its id.
    pub device: DeviceRef<'a>,
    /// Proves the id later; for anonymous devices.
    pub token: Option<&'a str>,
    /// The mailbox's name; another one than before means that its contents were lost.
    pub mailbox: &'a str,
    /// Whether nothing that was promised to survive was lost since `last_seq`.
    pub resumed: bool,
    /// How many messages and outcomes wait.
    pub pending: u64,
    /// Up to where all is acked.
    pub last_seq: u64,
    /// How often the server pings, and how often the client may expect to hear from it.
    pub ping_every_ms: u64,
    /// The longest frame that the server reads.
    pub max_message_bytes: u64,
    /// The strongest durability that this server has.
    pub durability: Durability,
    /// The server's name and version.
    pub server: &'a str,
}

/// A device in the list of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStatus<'a> {
    /// Which device.
    pub device: DeviceRef<'a>,
    /// Whether it is connected.
    pub online: bool,
    /// Since when it is or is not, in Unix time.
    pub since_ms: u64,
}
