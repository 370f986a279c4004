//! What a device does: sends, takes back, acks, refuses, and asks who is there.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use switchboard_proto::v1::{ClientFrame, DeviceEvent, WATCH_MAX, parse_client};
use tokio::sync::{mpsc, oneshot};

use super::kept::{Kept, frame};
use super::outgoing::random_id;
use super::requests::{ReplyTo, Request};
use super::{Accepted, AskError, CancelError, Cursor, Outgoing, SendError, State};

/// What a device does; the handle may be cloned and used from several tasks.
///
/// Requests outlive connections: what has no answer when one ends is asked again on the next. At
/// most [`REQUESTS_MAX`](super::REQUESTS_MAX) wait for an answer, further ones for their turn. A
/// call that is given up early is carried out all the same; its answer is lost.
#[derive(Clone, Debug)]
pub struct Device {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) kept: Arc<Kept>,
    pub(super) watched: Arc<Mutex<BTreeSet<String>>>,
}

/// A page of the list of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePage {
    /// In the order of the list.
    pub devices: Vec<DeviceEvent>,
    /// Where the next page begins; none at the end.
    pub next: Option<String>,
}

/// The server's reply to a message, once it comes.
#[derive(Debug)]
pub struct Reply {
    answer: oneshot::Receiver<Result<Accepted, SendError>>,
    kept: Arc<Kept>,
}

impl Future for Reply {
    type Output = Result<Accepted, SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        Poll::Ready(answer.unwrap_or_else(|_| Err(SendError::Ended(self.kept.ending()))))
    }
}

impl Device {
    /// Sends a message and waits for the server's reply, over as many connections as it takes.
    ///
    /// `store_unavailable` is retried, with the same id, until the server knows. With
    /// [`receipt`](Outgoing::receipt) how it ends comes later, as
    /// [`Event::Outcome`](super::Event::Outcome). Messages are sent in the order of the calls.
    pub async fn send(&self, message: Outgoing) -> Result<Accepted, SendError> {
        self.begin_send(message).await?.await
    }

    /// As [`send`](Device::send), without waiting for the server's reply: for many messages on their
    /// way at once that keep their order.
    pub async fn begin_send(&self, message: Outgoing) -> Result<Reply, SendError> {
        let frames = vec![message.frame()?];
        let (reply_to, answer) = oneshot::channel();
        self.ask(Request { id: message.id, frames, reply_to: ReplyTo::Send(reply_to) }).await;
        Ok(Reply { answer, kept: Arc::clone(&self.kept) })
    }

    /// Takes a message back that was accepted and not pushed yet.
    pub async fn cancel(&self, id: &str) -> Result<(), CancelError> {
        let frames = checked(&ClientFrame::Cancel { id: Cow::Borrowed(id) });
        let frames = vec![frames.map_err(CancelError::Invalid)?];
        let (reply_to, answer) = oneshot::channel();
        self.ask(Request { id: id.to_owned(), frames, reply_to: ReplyTo::Cancel(reply_to) }).await;
        answer.await.unwrap_or_else(|_| Err(CancelError::Ended(self.kept.ending())))
    }

    /// Acks everything up to here; it is not pushed again. Never waits.
    ///
    /// What is then to be kept is in [`state`](Device::state) at once.
    pub fn ack(&self, cursor: Cursor) {
        self.kept.ack(cursor);
    }

    /// Refuses one message, whose sender is told `reason`; the others stay. It must not have been
    /// acked. Waits until the server has heard it.
    pub async fn refuse(&self, cursor: Cursor, reason: Option<&str>) -> Result<(), AskError> {
        let (seq, id) = (cursor.seq, random_id());
        let refuse = ClientFrame::Refuse { seq, reason: reason.map(Cow::Borrowed) };
        let ping = ClientFrame::Ping { id: Some(Cow::Borrowed(&id)) };
        let frames = vec![checked(&refuse).map_err(AskError::Invalid)?, frame(&ping)];
        if !self.kept.refuse(cursor) {
            // Its mailbox is gone, or it is being refused.
            return Ok(());
        }
        let (reply_to, answer) = oneshot::channel();
        self.ask(Request { id, frames, reply_to: ReplyTo::Refuse(seq, reply_to) }).await;
        answer.await.unwrap_or_else(|_| Err(AskError::Ended(self.kept.ending())))
    }

    /// A page of the list of devices, from behind `after` on.
    pub async fn devices(
        &self,
        after: Option<&str>,
        limit: Option<u32>,
    ) -> Result<DevicePage, AskError> {
        let id = random_id();
        let after = after.map(Cow::Borrowed);
        let text = checked(&ClientFrame::Devices { id: Cow::Borrowed(&id), after, limit });
        let frames = vec![text.map_err(AskError::Invalid)?];
        let (reply_to, answer) = oneshot::channel();
        self.ask(Request { id, frames, reply_to: ReplyTo::Devices(reply_to) }).await;
        answer.await.unwrap_or_else(|_| Err(AskError::Ended(self.kept.ending())))
    }

    /// Asks to be told, by [`Event::Presence`](super::Event::Presence), when these devices come
    /// and go: now, at each change, and again on each new connection.
    pub async fn watch(&self, devices: &[&str]) -> Result<(), AskError> {
        for some in devices.chunks(WATCH_MAX) {
            self.watch_frame(some, true).await?;
            self.lock_watched().extend(some.iter().map(|&device| device.to_owned()));
        }
        Ok(())
    }

    /// Asks to be told no more.
    pub async fn unwatch(&self, devices: &[&str]) -> Result<(), AskError> {
        for some in devices.chunks(WATCH_MAX) {
            for device in some {
                self.lock_watched().remove(*device);
            }
            self.watch_frame(some, false).await?;
        }
        Ok(())
    }

    async fn watch_frame(&self, devices: &[&str], is_watch: bool) -> Result<(), AskError> {
        let id = random_id();
        let text = watch_text(&id, devices.iter().copied(), is_watch);
        let frames = vec![text.map_err(AskError::Invalid)?];
        let (reply_to, answer) = oneshot::channel();
        self.ask(Request { id, frames, reply_to: ReplyTo::Watch(reply_to) }).await;
        answer.await.unwrap_or_else(|_| Err(AskError::Ended(self.kept.ending())))
    }

    /// Replaces the token by a newer one of the same device, on this connection and those to come;
    /// gives when that one ends, in Unix time. A token that the server does not accept ends the
    /// session.
    pub async fn refresh(&self, token: &str) -> Result<Option<u64>, AskError> {
        let text = checked(&ClientFrame::Refresh { token: Cow::Borrowed(token) });
        let frames = vec![text.map_err(AskError::Invalid)?];
        self.kept.set_token(token.to_owned());
        let (reply_to, answer) = oneshot::channel();
        self.ask(Request { id: random_id(), frames, reply_to: ReplyTo::Refresh(reply_to) }).await;
        answer.await.unwrap_or_else(|_| Err(AskError::Ended(self.kept.ending())))
    }

    /// Returns what the application is to keep, so that the next run is the same device and goes on where
    /// this one is now.
    pub fn state(&self) -> State {
        self.kept.state()
    }

    /// Returns what is to be kept once `cursor` is acked: kept before the ack, nothing is pushed again that
    /// was taken, wherever a crash comes between.
    pub fn state_with(&self, cursor: Cursor) -> State {
        self.kept.state_with(cursor)
    }

    /// Hands a request to the session's task. Where that is gone, the request is dropped here, and
    /// who waits for its answer finds out.
    async fn ask(&self, request: Request) {
        let _ = self.requests.send(request).await;
    }

    fn lock_watched(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The frame that watches devices, or ends that.
pub(super) fn watch_text<'a>(
    id: &str,
    devices: impl Iterator<Item = &'a str>,
    is_watch: bool,
) -> Result<String, String> {
    let (id, devices) = (Cow::Borrowed(id), devices.map(Cow::Borrowed));
    let devices = devices.collect();
    checked(&if is_watch {
        ClientFrame::Watch { id, devices }
    } else {
        ClientFrame::Unwatch { id, devices: Some(devices) }
    })
}

/// The frame's text, if the server can read it: else nothing would be answered under its id.
fn checked(asked: &ClientFrame<'_>) -> Result<String, String> {
    let text = frame(asked);
    match parse_client(text.as_bytes()) {
        Ok(_) => Ok(text),
        Err(error) => Err(error.message),
    }
}
