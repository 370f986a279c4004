//! What may be said to a Switchboard: device ids and the text protocol.
//!
//! Nothing here waits, reads a clock or opens a socket; every function is a
//! function of its arguments. `vectors/` holds golden data for other languages.

pub mod device_id;
pub mod text;

pub use device_id::DeviceId;
