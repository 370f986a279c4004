//! Protocols of a Switchboard: device ids, the text protocol and the v1 protocol.
//!
//! Nothing here waits, reads a clock or opens a socket: each result depends on the arguments alone.
//! `vectors/` has golden data for other languages.

pub mod device_id;
pub mod text;
pub mod v1;

pub use device_id::DeviceId;
