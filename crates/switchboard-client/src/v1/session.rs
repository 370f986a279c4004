//! A device's life over many connections, from its first to its last.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::backoff::Backoff;
use super::driver::Driver;
use super::kept::Kept;
use super::link::Link;
use super::requests::Requests;
use super::{Ack, Cursor, Device, EVENTS_MAX, Event, OpenError, Options, State, Welcome};

/// A device that is connected, and connects again by itself, until the session is closed.
///
/// Dropped without [`close`](Session::close), it breaks off: what was acked last may come again in
/// the next session, which leaves it out if it was given the [`State`].
#[derive(Debug)]
pub struct Session {
    device: Device,
    events: mpsc::Receiver<Event>,
    welcome: Welcome,
    ack: Ack,
    /// What the application works on, and is acked when it asks for more.
    current: Option<Cursor>,
    task: Option<JoinHandle<()>>,
}

impl Session {
    /// Connects to `url` (`ws://` or `wss://`) as the device that `state` says, and waits for the
    /// welcome. Only this first connection is not tried again by itself.
    pub async fn open(url: &str, options: Options, state: State) -> Result<Session, OpenError> {
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
        // Before anybody asks for the state.
        device.kept.welcomed(&welcome);
        let task = Some(tokio::spawn(driver.run(link, welcome.clone())));
        Ok(Session { device, events, welcome, ack, current: None, task })
    }

    /// Returns what the device does; may be cloned.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The device's id.
    pub fn id(&self) -> &str {
        &self.welcome.device
    }

    /// Returns what the server said on the first connection; later ones come as [`Event::Online`], as does
    /// this.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Returns what the application is to keep; see [`Device::state`].
    pub fn state(&self) -> State {
        self.device.state()
    }

    /// The next event; `None` after [`Event::Closed`]. With [`Ack::OnNext`] it acks the one before.
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.ack_current();
        let event = self.events.recv().await?;
        if self.ack == Ack::OnNext {
            self.current = event.cursor();
        }
        Some(event)
    }

    /// The next event, if it is here already; acks as [`next`](Session::next) does.
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

    /// Says what was acked, ends the connection by the closing handshake, and gives what is to be
    /// kept. With [`Ack::OnNext`] the last event counts as taken. Requests without an answer fail.
    pub async fn close(mut self) -> State {
        self.ack_current();
        self.events.close();
        if let Some(task) = self.task.take() {
            // It fails only by a panic, which was told.
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
