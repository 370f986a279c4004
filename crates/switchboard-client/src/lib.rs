//! The Rust client of Switchboard.
//!
//! A [`v1::Session`] is a device: it sends messages to other devices and receives theirs, keeps
//! its id over connections and restarts, and its messages wait for it while it is away.

mod connect;
mod ending;
mod ready;
mod tls;
pub mod v1;

pub use connect::{CONNECT_TIMEOUT, ConnectError, ConnectOptions};
pub use ending::Ending;
pub use ready::{Trust, ready};
pub use tls::{TlsError, config_for_anyone};
