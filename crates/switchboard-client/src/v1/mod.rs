//! The v1 protocol: a device that keeps its id, and whose messages wait for it.
//!
//! A [`Session`] delivers the device's events, a [`Device`] performs its requests. The session
//! keeps itself alive: it reconnects when the connection ends, resumes at its position, skips
//! messages seen before, and sends unanswered requests again under the same ids, so that a
//! message is delivered once.
//!
//! ```no_run
//! use switchboard_client::v1::{Event, SessionOptions, Outgoing, Session, State};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let state = State { token: Some("ey...".to_owned()), ..State::default() };
//! let mut session = Session::open("ws://127.0.0.1:8080", SessionOptions::default(), state).await?;
//! let accepted = session.device().send(Outgoing::text("alice", "hello")).await?;
//! println!("reached: {}", accepted.durability);
//! while let Some(event) = session.next().await {
//!     if let Event::Message(message) = event {
//!         println!("{}: {}", message.from, message.body);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod backoff;
mod device;
mod driver;
mod error;
mod event;
mod kept;
mod link;
mod outgoing;
mod requests;
mod session;

use std::time::Duration;

pub use device::{Device, DevicePage, Reply};
pub use error::{AskError, CancelError, OpenError, Rejection, SendError};
pub use event::{Accepted, Cursor, Event, Message, Receipt};
pub use kept::State;
pub use outgoing::Outgoing;
pub use session::Session;
pub use switchboard_proto::v1::{
    DeviceEvent, Durability, Outcome, RejectCode, WelcomeEvent as Welcome, Word,
};

/// Maximum number of events that wait for [`Session::next`].
///
/// At this number the connection is not read, so answers wait, too. Servers push at most
/// `in_flight_max` (256) messages ahead of their acks, so this is reached only with a server
/// that has a larger one, or with very many watched devices that come and go.
pub const EVENTS_MAX: usize = 1024;

/// Maximum number of requests without an answer; further ones wait for their turn.
pub const REQUESTS_MAX: usize = 256;

/// Options of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Options of the connection.
    pub connect: crate::ConnectOptions,
    /// True for a new device that ends with each connection, together with its mailbox: for
    /// programs that only send. Messages on their way to it are then evicted, and after a lost
    /// connection a retry may be delivered twice.
    pub ephemeral: bool,
    /// The way in which messages are acked.
    pub ack: Ack,
    /// Reaction to a newer connection that takes the device over (4409).
    pub taken_over: TakenOver,
    /// True if the session reconnects when the connection ends; otherwise it ends with it.
    pub reconnect: bool,
    /// Delay before the first reconnection, doubled after each failure. A random part of up to a
    /// half is left out, so that devices disconnected at the same moment do not return at the
    /// same moment.
    pub pause_min: Duration,
    /// Maximum delay.
    pub pause_max: Duration,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions {
            connect: crate::ConnectOptions::default(),
            ephemeral: false,
            ack: Ack::OnNext,
            taken_over: TakenOver::End,
            reconnect: true,
            pause_min: Duration::from_millis(500),
            pause_max: Duration::from_secs(30),
        }
    }
}

/// The way in which messages are acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// A message is acked when the application asks for the next event.
    OnNext,
    /// The application calls [`Device::ack`].
    ByHand,
}

/// Reaction to a newer connection that takes the device over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenOver {
    /// The session ends: two clients with one token would otherwise disconnect each other for
    /// ever.
    End,
    /// The session takes the device back.
    TakeBack,
}
