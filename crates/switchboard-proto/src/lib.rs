//! What may be said to a Switchboard: device ids, the text protocol and the v1 protocol.
//!
//! Nothing here waits, reads a clock or opens a socket; every function is a
//! function of its arguments. `vectors/` holds golden data for other languages.

pub mod device_id;
pub mod text;
pub mod v1;

pub use device_id::DeviceId;
