//! One function per fuzz target: it takes any bytes, and panics if a promise is broken.
//!
//! `cargo xtask fuzz` runs them with libFuzzer; `tests/brief` runs them on mutated seeds.

mod codec;
mod handshake;
mod store_reader;
mod text_command;
mod v1_frame;

pub use codec::codec;
pub use handshake::handshake;
pub use store_reader::store_reader;
pub use text_command::text_command;
pub use v1_frame::v1_frame;
