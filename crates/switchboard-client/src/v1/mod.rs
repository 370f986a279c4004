//! The v1 protocol: a device that keeps its id, and whose messages wait for it.
//!
//! A [`Session`] is what happens to the device, a [`Device`] is what it does. The session keeps
//! itself alive: it connects again when the connection ends, resumes where it was, leaves out what
//! was seen, and sends unanswered requests again under the same ids, so that a message is
//! delivered once.
//!
//! ```no_run
//! use switchboard_client::v1::{Event, Options, Outgoing, Session, State};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let state = State { token: Some("ey...".to_owned()), ..State::default() };
//! let mut session = Session::open("ws://127.0.0.1:8080", Options::default(), state).await?;
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

/// Events that may wait for [`Session::next`].
///
/// At this many the connection is not read, so that answers wait, too. Servers push at most
/// `in_flight_max` (256) messages ahead of their acks, so only a server with a larger one, or very
/// many watched devices that come and go, gets here.
pub const EVENTS_MAX: usize = 1024;

/// Requests without an answer; further ones wait for their turn.
pub const REQUESTS_MAX: usize = 256;

/// How a session behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How to connect.
    pub connect: crate::Options,
    /// A device that does not exist yet ends with each connection and leaves no mailbox: for programs
    /// that only send. What is on its way to it then is evicted, and after a lost connection a retry
    /// may be delivered twice.
    pub ephemeral: bool,
    /// Who says what is acked.
    pub ack: Ack,
    /// What to do when a newer connection takes the device over (4409).
    pub taken_over: TakenOver,
    /// Connects again when the connection ends. Else the session ends with it.
    pub reconnect: bool,
    /// The pause before connecting again, doubled after each failure. A random part of it, up to a
    /// half, is left out, so that devices that were cut at once do not come back at once.
    pub pause_min: Duration,
    /// The pause stops growing here.
    pub pause_max: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect: crate::Options::default(),
            ephemeral: false,
            ack: Ack::OnNext,
            taken_over: TakenOver::End,
            reconnect: true,
            pause_min: Duration::from_millis(500),
            pause_max: Duration::from_secs(30),
        }
    }
}

/// Who says what is acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// A message is acked when the application asks for the next event.
    OnNext,
    /// The application calls [`Device::ack`].
    ByHand,
}

/// What to do when a newer connection takes the device over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenOver {
    /// The session ends: two clients with one token would kick each other without end.
    End,
    /// The session takes the device back.
    TakeBack,
}
