//! One function per fuzz target: any bytes in, and a panic where a promise is broken.
//!
//! `cargo xtask fuzz` hands them to libFuzzer; `tests/brief` runs them on mutated seeds.

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
