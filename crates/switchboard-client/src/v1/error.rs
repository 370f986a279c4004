//! What can go wrong, by operation.

use std::time::Duration;

use switchboard_proto::v1::{RejectCode, Word};

use crate::{ConnectError, Ending};

/// Why no session was opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No connection came about.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server ended the connection instead of a welcome: with 4401, the token is not accepted.
    #[error("{0}")]
    Closed(Ending),
}

/// The server's no to a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}", if message.is_empty() { String::new() } else { format!(": {message}") })]
pub struct Rejection {
    /// Why, for programs.
    pub code: Word<RejectCode>,
    /// Why, for people.
    pub message: String,
    /// When to try again, if that could help.
    pub retry_after: Option<Duration>,
}

/// Why a message was not, or perhaps not, accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The server refused it: it is delivered to nobody.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// It is longer than the server takes, and was not sent.
    #[error("a frame of {len} bytes is more than the {max} that the server takes")]
    TooLarge {
        /// Bytes of the frame.
        len: u64,
        /// What the server takes.
        max: u64,
    },
    /// It makes no valid frame, and was not sent.
    #[error("{0}")]
    Invalid(String),
    /// Another message with this id waits for its answer; this one was not sent.
    #[error("a message with this id is on its way")]
    InFlight,
    /// The session ended before the answer: whether it was accepted is unknown, unless it was
    /// called after the end. Another session of the device may send it again under the same id.
    #[error("{0}; whether it was accepted is unknown")]
    Ended(Ending),
}

/// Why a message was not, or perhaps not, taken back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CancelError {
    /// The server refused: `too_late` when it was pushed, or is gone.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The id is none.
    #[error("{0}")]
    Invalid(String),
    /// Such a request is on its way, or the message itself has no answer yet.
    #[error("a message or cancellation with this id waits for its answer")]
    InFlight,
    /// The connection ended before the answer. The message's outcome tells, if it was asked for.
    #[error("the connection ended; whether it was cancelled is unknown")]
    Interrupted,
    /// The session ended before the answer.
    #[error("{0}; whether it was cancelled is unknown")]
    Ended(Ending),
}

/// Why the session did not get what it asked for: a list, a watch, a refusal, a new token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The server refused.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The request makes no valid frame, and was not sent.
    #[error("{0}")]
    Invalid(String),
    /// The session ended before the answer.
    #[error("{0}")]
    Ended(Ending),
}
