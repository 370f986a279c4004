//! A device's session over many connections.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::backoff::Backoff;
use super::driver::Driver;
use super::kept::Kept;
use super::link::Link;
use super::requests::Requests;
use super::{Ack, Cursor, Device, EVENTS_MAX, Event, OpenError, SessionOptions, State, Welcome};

/// A device that is connected, and reconnects by itself, until the session is closed.
///
/// If it is dropped without [`close`](Session::close), the connection breaks off: the last acked
/// messages may come again in the next session, which skips them if it was given the [`State`].
#[derive(Debug)]
pub struct Session {
    device: Device,
    events: mpsc::Receiver<Event>,
    welcome: Welcome,
    ack: Ack,
    /// The event that the application works on; acked when it asks for the next.
    current: Option<Cursor>,
    task: Option<JoinHandle<()>>,
}

impl Session {
    /// Connects to `url` (`ws://` or `wss://`) as the device in `state`, and waits for the
    /// welcome. Only this first connection is not retried.
    pub async fn open(
        url: &str,
        options: SessionOptions,
        state: State,
    ) -> Result<Session, OpenError> {
        let kept = Arc::new(Kept::new(state));
        let (link, welcome) =
            Link::open(url, &options.connect, kept.hello(options.ephemeral)).await?;
        let (requests, asked) = mpsc::channel(1);
        let (tell, events) = mpsc::channel(EVENTS_MAX);
        let watched = Arc::new(Mutex::new(BTreeSet::new()));
        let device = Device { requests, kept: Arc::clone(&kept), watched: Arc::clone(&watched) };
        let ack = options.ack;
        let driver = Driver {
            url: url.to_owned(),
            backoff: Backoff::new(options.pause_min, options.pause_max),
            options,
            kept,
            watched,
            asked,
            events: tell,
            requests: Requests::default(),
            come_back_in: None,
        };
        // Before anybody can ask for the state.
        device.kept.welcomed(&welcome);
        let task = Some(tokio::spawn(driver.run(link, welcome.clone())));
        Ok(Session { device, events, welcome, ack, current: None, task })
    }

    /// Returns the handle for the device's requests, which may be cloned.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the device's id.
    pub fn id(&self) -> &str {
        &self.welcome.device
    }

    /// Returns the welcome of the first connection; this one and later ones also come as
    /// [`Event::Online`].
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Returns the state for the application to store; see [`Device::state`].
    pub fn state(&self) -> State {
        self.device.state()
    }

    /// Returns the next event; `None` after [`Event::Closed`]. With [`Ack::OnNext`] it acks the
    /// previous one. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.ack_current();
        let event = self.events.recv().await?;
        if self.ack == Ack::OnNext {
            self.current = event.cursor();
        }
        Some(event)
    }

    /// Returns the next event if there is one already; acks as [`next`](Session::next) does.
    pub fn try_next(&mut self) -> Option<Event> {
        self.ack_current();
        let event = self.events.try_recv().ok()?;
        if self.ack == Ack::OnNext {
            self.current = event.cursor();
        }
        Some(event)
    }

    fn ack_current(&mut self) {
        if let Some(cursor) = self.current.take() {
            self.device.ack(cursor);
        }
    }

    /// Sends the last acks, ends the connection by the closing handshake, and returns the state
    /// to store. With [`Ack::OnNext`] the last event is acked. Requests without an answer fail.
    pub async fn close(mut self) -> State {
        self.ack_current();
        self.events.close();
        if let Some(task) = self.task.take() {
            // It fails only by a panic, which has been printed.
            let _ = task.await;
        }
        self.device.state()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
