//! The text protocol: what a device may say in one message, and what it is answered.
//!
//! A device says `help` or `send,<id>,<text>`. It is answered with an info text,
//! with one of four error texts, or not at all: a delivered message is silent for
//! its sender and reaches the other device as `<sender>:<text>`.

mod command;
mod decimal_digits;
mod python;
mod reply;

use std::time::Duration;

pub use command::{Command, parse};
pub use reply::{Sender, delivery_len, write_delivery, write_info, write_list};

/// Answers a text that the same device had delivered less than [`DUPLICATE_WINDOW`] ago.
pub const DUPLICATE_MESSAGE: &str = "Duplicate message";

/// Answers a `send` whose id no connected device holds.
pub const INVALID_DESTINATION: &str = "Invalid destinationId";

/// Answers a readable message whose command is not `send`.
pub const INVALID_COMMAND: &str = "Invalid Command";

/// Answers a message that cannot be read as a command.
pub const UNREADABLE: &str = "Error reading the command";

/// Answers a `send` to a device whose mailbox is at its bound: the one text that the original does
/// not know.
pub const MAILBOX_FULL: &str = "Mailbox full";

/// How long after a delivery the same text of the same sender counts as a duplicate.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(5);
