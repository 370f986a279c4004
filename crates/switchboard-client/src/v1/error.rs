//! Errors, by operation.

use std::time::Duration;

use switchboard_proto::v1::{RejectCode, Word};

use crate::{ConnectError, Ending};

/// Reason why no session was opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The connection failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server closed the connection instead of sending a welcome: with 4401, the token is
    /// not accepted.
    #[error("{0}")]
    Closed(Ending),
}

/// The server's rejection of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}", if message.is_empty() { String::new() } else { format!(": {message}") })]
pub struct Rejection {
    /// Reason for programs.
    pub code: Word<RejectCode>,
    /// Reason for people.
    pub message: String,
    /// Delay before a retry, if that could help.
    pub retry_after: Option<Duration>,
}

/// Reason why a message was not, or perhaps not, accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The server rejected the message: nobody receives it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// It is longer than the server accepts, and was not sent.
    #[error("a frame of {len} bytes is more than the {max} that the server takes")]
    TooLarge {
        /// Length of the frame in bytes.
        len: u64,
        /// Maximum that the server accepts.
        max: u64,
    },
    /// It does not make a valid frame, and was not sent.
    #[error("{0}")]
    Invalid(String),
    /// Another message with this id waits for its answer; this one was not sent.
    #[error("a message with this id is on its way")]
    InFlight,
    /// The session ended before the answer. It is unknown whether the message was accepted,
    /// unless `send` was called after the end. Another session of the device may send it again
    /// under the same id.
    #[error("{0}; whether it was accepted is unknown")]
    Ended(Ending),
}

/// Reason why a message was not, or perhaps not, cancelled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CancelError {
    /// The server rejected it: `too_late` if the message was already pushed, is gone, or was never
    /// sent to this device.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The id is invalid.
    #[error("{0}")]
    Invalid(String),
    /// A cancellation with this id is under way, or a message with it has no answer yet, whoever
    /// its receiver is.
    #[error("a message or cancellation with this id waits for its answer")]
    InFlight,
    /// The connection ended before the answer. The message's outcome will tell, if it was
    /// requested. A repeated cancellation is usually answered as the first.
    #[error("the connection ended; whether it was cancelled is unknown")]
    Interrupted,
    /// The session ended before the answer.
    #[error("{0}; whether it was cancelled is unknown")]
    Ended(Ending),
}

/// Reason why a request for a list, a watch, a refusal or a new token failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The server rejected it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The request does not make a valid frame, and was not sent.
    #[error("{0}")]
    Invalid(String),
    /// The session ended before the answer.
    #[error("{0}")]
    Ended(Ending),
}
