//! The Rust client of Switchboard.
//!
//! A [`Client`] is one device: it has an id while it is connected, sends text to other ids and
//! receives what they send. It speaks the text protocol. A [`v1::Session`] is a device that keeps its
//! id over connections and restarts, and whose messages wait for it.
//!
//! ```no_run
//! use switchboard_client::{Client, Event};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = Client::connect("ws://127.0.0.1:8080").await?;
//! println!("I am {}", client.id());
//! client.send(client.id(), "hello, me").await?;
//! while let Some(event) = client.next().await {
//!     match event {
//!         Event::Message { from, text } => println!("{from}: {text}"),
//!         Event::Closed(end) => println!("the end: {end}"),
//!         other => println!("{other:?}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod client;
mod connect;
mod event;
pub mod v1;

pub use client::{Client, SILENCE_MAX, SendError, WAITING_EVENTS_MAX};
pub use connect::{CONNECT_TIMEOUT, ConnectError, Options};
pub use event::{Ending, Event, Refusal};
pub use switchboard_proto::DeviceId;
pub use switchboard_proto::text::Info;
pub use switchboard_proto::v1::{Address, DeviceRef};
