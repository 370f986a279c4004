//! WebSocket (RFC 6455) without sockets: bytes in, events out; frames in, bytes out.
//!
//! Nothing here reads a clock or a socket, so a test can feed any split of any stream. The shard
//! drives it with its read buffer; the load generator and `examples/echo.rs` do so with theirs.

mod close;
mod decoder;
mod deflate;
mod frame;
mod handshake;
mod mask;

pub use close::{CloseCode, write_close};
pub use decoder::{CloseFrame, Decoded, Decoder, Event, Role, Violation};
pub use deflate::{Deflate, DeflateOffer, InflateError, Negotiated};
pub use frame::{
    Opcode, write_client_frame, write_header, write_header_reserved, write_server_frame,
    write_server_frame_with,
};
pub use handshake::{Parsed, PlainRequest, Refusal, Request, Upgrade, accept_key, parse_request};
pub use mask::mask;
