//! The v1 protocol: JSON frames, one object to a WebSocket text message.
//!
//! A client opens with `hello` and is answered `welcome`; from then on it has a device id that
//! outlives the connection, and a mailbox. The server reads [`ClientFrame`]s and writes
//! [`ServerFrame`]s. Message bodies pass through as the bytes that the sender wrote.

mod body;
mod client_frame;
pub mod close;
mod device_ref;
mod parse_client;
mod plain;
mod read;
mod scan;
mod server_event;
mod server_frame;
mod words;
mod write;

use std::time::Duration;

pub use body::{body_len_of_text, write_body_of_text, write_text_of_body};
pub use client_frame::{ClientFrame, FrameError, Send};
pub use device_ref::{DeviceRef, PublicId};
pub use parse_client::parse_client;
pub use scan::{BodyFault, check_body};
pub use server_event::{DeviceEvent, NoServerFrame, ServerEvent, WelcomeEvent, Word, parse_server};
pub use server_frame::{DeviceStatus, ServerFrame, Welcome};
pub use words::{Durability, FrameErrorCode, Outcome, RejectCode};
pub use write::{is_short_message, message_len};

/// The WebSocket subprotocol by which a client asks for v1.
pub const SUBPROTOCOL: &str = "switchboard.v1.json";

/// Most bytes in the `id` of a frame, and in `re`; the least is one.
pub const ID_LEN_MAX: usize = 64;

/// Most bytes in a device's name: a letter and 127 more.
pub const NAME_LEN_MAX: usize = 128;

/// Most bytes in the `reason` of a `refuse`, which must be short as it waits in the sender's
/// mailbox.
pub const REASON_LEN_MAX: usize = 256;

/// Most bytes in a `mailbox`. Names that servers make are far shorter.
pub const MAILBOX_LEN_MAX: usize = 64;

/// Most bytes in a token: as many as HTTP servers usually allow for all headers, in which a
/// token of the text protocol comes.
pub const TOKEN_LEN_MAX: usize = 8192;

/// Most devices in one page of the list of devices.
pub const DEVICES_LIMIT_MAX: u32 = 1000;

/// Most devices in one `watch` or `unwatch`, and most that a connection watches.
pub const WATCH_MAX: usize = 1000;

/// Deepest nesting of arrays and objects in a frame, which is itself the first.
///
/// Every parser in use reads that deep; the strictest that we know reads 127.
pub const DEPTH_MAX: usize = 64;

/// The greatest integer in a frame, 2^53 - 1: up to here all implementations agree on the value
/// (RFC 8259, section 6).
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// Time for which the server waits for `hello`.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of bad frames within [`BAD_FRAMES_WINDOW`] that close a connection with
/// [`close::PROTOCOL_ERROR`].
pub const BAD_FRAMES_MAX: u32 = 10;

/// See [`BAD_FRAMES_MAX`].
pub const BAD_FRAMES_WINDOW: Duration = Duration::from_secs(60);
