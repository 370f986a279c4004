//! The text protocol: commands of a device, one a message, and the answers to them.
//!
//! A device sends `help` or `send,<id>,<text>`. It is answered with an info text, with one of five
//! error texts, or not at all: the sender is told nothing of a message that is delivered, and the
//! other device gets it as `<sender>:<text>`.

mod command;
mod decimal_digits;
mod python;
mod reply;

use std::time::Duration;

pub use command::{Command, parse};
pub use reply::{Sender, delivery_len, write_delivery, write_info, write_list};

/// Answers a text that the same device had delivered less than [`DUPLICATE_WINDOW`] ago.
pub const DUPLICATE_MESSAGE: &str = "Duplicate message";

/// Answers a `send` to an id that no connected device has, and no device with a mailbox.
pub const INVALID_DESTINATION: &str = "Invalid destinationId";

/// Answers a readable message whose command is not `send`.
pub const INVALID_COMMAND: &str = "Invalid Command";

/// Answers a message that cannot be read as a command.
pub const UNREADABLE: &str = "Error reading the command";

/// Answers a `send` to a device with a mailbox that does not take the text: the one text that the
/// original does not have.
pub const MAILBOX_FULL: &str = "Mailbox full";

/// Time after a delivery in which the same text of the same sender counts as a duplicate.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(5);
