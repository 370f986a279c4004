//! The session's task: serves one connection after another until the session ends.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use switchboard_proto::v1::{ClientFrame, ServerEvent, WATCH_MAX, close};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::backoff::Backoff;
use super::device::watch_text;
use super::kept::{Kept, frame};
use super::link::Link;
use super::outgoing::random_id;
use super::requests::{Request, Requests};
use super::{Event, Message, OpenError, Receipt, SessionOptions, TakenOver, Welcome};
use crate::Ending;

/// A connection that lasted this long was useful: the next delay is short.
const USEFUL_AFTER: Duration = Duration::from_secs(10);

/// State of the task.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) url: String,
    pub(super) options: SessionOptions,
    pub(super) kept: Arc<Kept>,
    pub(super) watched: Arc<Mutex<BTreeSet<String>>>,
    pub(super) asked: mpsc::Receiver<Request>,
    /// Closed when the application ends the session.
    pub(super) events: mpsc::Sender<Event>,
    pub(super) requests: Requests,
    pub(super) backoff: Backoff,
    /// Delay before the next connection, if the server asked for one in its `bye`.
    pub(super) come_back_in: Option<Duration>,
}

impl Driver {
    /// Serves until the application ends the session, or the server ends it for good.
    pub(super) async fn run(mut self, link: Link, welcome: Welcome) {
        let ending = self.serve_all(link, welcome).await;
        self.kept.end(ending.clone());
        self.requests.end(&ending);
        self.asked.close();
        while let Ok(request) = self.asked.try_recv() {
            drop(request);
        }
        self.tell(Event::Closed(ending)).await;
    }

    async fn serve_all(&mut self, mut link: Link, mut welcome: Welcome) -> Ending {
        loop {
            let Some(ending) = self.serve(&mut link, welcome).await else {
                link.close().await;
                return ended_here();
            };
            if self.is_final(&ending) {
                return ending;
            }
            if link.opened_at.elapsed() >= USEFUL_AFTER {
                self.backoff.reset();
            }
            self.requests.begin_anew();
            // Dropped now, not when the next one is open: a server that shuts down waits for
            // this.
            drop(link);
            (link, welcome) = match self.connect_again(ending.to_string()).await {
                Ok(opened) => opened,
                Err(ending) => return ending,
            };
        }
    }

    /// Returns true if connecting again would change nothing, or make it worse.
    fn is_final(&self, ending: &Ending) -> bool {
        if !self.options.reconnect {
            return true;
        }
        match ending.code {
            close::NOT_AUTHENTICATED | close::PROTOCOL_ERROR => true,
            close::TAKEN_OVER => self.options.taken_over == TakenOver::End,
            _ => false,
        }
    }

    /// Connects until it succeeds; `Err` is the reason why the session ends instead.
    async fn connect_again(&mut self, mut why: String) -> Result<(Link, Welcome), Ending> {
        loop {
            let retry_in = self.backoff.pause(self.come_back_in.take());
            self.tell(Event::Offline { why, retry_in }).await;
            let opened = async {
                sleep(retry_in).await;
                let hello = self.kept.hello(self.options.ephemeral);
                Link::open(&self.url, &self.options.connect, hello).await
            };
            let opened = tokio::select! {
                opened = opened => opened,
                () = self.events.closed() => return Err(ended_here()),
            };
            match opened {
                Ok(opened) => return Ok(opened),
                Err(OpenError::Closed(ending)) if self.is_final(&ending) => return Err(ending),
                Err(error) => why = error.to_string(),
            }
        }
    }

    /// Serves one connection; returns how it ended, or `None` if the application ended the
    /// session.
    async fn serve(&mut self, link: &mut Link, welcome: Welcome) -> Option<Ending> {
        self.welcomed(welcome).await;
        if let Err(ending) = self.watch_again(link).await {
            return Some(ending);
        }
        loop {
            if let Err(ending) = self.write_due(link).await {
                return Some(ending);
            }
            let due = self.requests.next_due();
            tokio::select! {
                () = self.events.closed() => {
                    // Tries to send the last acks; if they get lost, the messages come again and
                    // are skipped.
                    let _ = self.write_due(link).await;
                    return None;
                }
                heard = link.hear() => match heard {
                    Ok(event) => self.heard(event).await,
                    Err(ending) => return Some(ending),
                },
                Some(request) = self.asked.recv(), if self.requests.has_room() => {
                    self.requests.add(request);
                }
                () = self.kept.acked() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    async fn welcomed(&mut self, welcome: Welcome) {
        let mailbox = self.kept.state().mailbox;
        self.kept.welcomed(&welcome);
        if mailbox.as_ref() != Some(&welcome.mailbox) {
            self.requests.forget_refusals();
        }
        self.tell(Event::Online(welcome)).await;
    }

    /// Repeats the watches: a new connection has none.
    async fn watch_again(&self, link: &mut Link) -> Result<(), Ending> {
        let watched: Vec<String> = {
            let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.iter().cloned().collect()
        };
        // They were validated when they were first requested.
        let frame =
            |some: &[String]| watch_text(&random_id(), some.iter().map(String::as_str), true).ok();
        let frames: Vec<String> = watched.chunks(WATCH_MAX).filter_map(frame).collect();
        if frames.is_empty() { Ok(()) } else { link.write(frames).await }
    }

    /// Sends the requests that are due, and after them the acks, which must not overtake
    /// refusals.
    async fn write_due(&mut self, link: &mut Link) -> Result<(), Ending> {
        let mut frames = self.requests.due(Instant::now(), link.frame_len_max);
        let seq = self.kept.last_seq();
        if seq > link.acked_to {
            link.acked_to = seq;
            frames.push(frame(&ClientFrame::Ack { seq }));
        }
        if frames.is_empty() { Ok(()) } else { link.write(frames).await }
    }

    async fn heard(&mut self, event: ServerEvent) {
        if !matches!(event, ServerEvent::Bye { .. }) {
            // More than a welcome came: the connection was useful, however short it was.
            self.backoff.reset();
        }
        match event {
            ServerEvent::Message { seq, from, id, body, sent_at_ms, re } => {
                if let Some(cursor) = self.kept.see(seq) {
                    let message = Message { cursor, from, id, body, sent_at_ms, re };
                    self.tell(Event::Message(message)).await;
                }
            }
            ServerEvent::Outcome { seq, id, to, outcome, at_ms, maybe_seen, reason } => {
                if let Some(cursor) = self.kept.see(seq) {
                    let receipt = Receipt { cursor, id, to, outcome, at_ms, maybe_seen, reason };
                    self.tell(Event::Outcome(receipt)).await;
                }
            }
            ServerEvent::Presence { device, online, at_ms } => {
                self.tell(Event::Presence { device, online, at_ms }).await;
            }
            ServerEvent::Expiring { at_ms } => self.tell(Event::Expiring { at_ms }).await,
            ServerEvent::Bye { reconnect_in_ms, .. } => {
                self.come_back_in = Some(Duration::from_millis(reconnect_in_ms));
            }
            answer => {
                if let Some(seq) = self.requests.answer(answer, Instant::now()) {
                    self.kept.refused(seq);
                }
            }
        }
    }

    /// Passes an event to the application; waits for it at [`EVENTS_MAX`](super::EVENTS_MAX).
    async fn tell(&self, event: Event) {
        // An application that has ended the session receives nothing more.
        let _ = self.events.send(event).await;
    }
}

/// Returns the ending for a session that the application ended.
fn ended_here() -> Ending {
    Ending { code: 1000, reason: "ended by this side".to_owned() }
}
