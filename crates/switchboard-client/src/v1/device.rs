//! Requests of a device: send, cancel, ack, refuse, list and watch.

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

/// Handle for a device's requests; may be cloned and used from several tasks.
///
/// Requests outlive connections: those unanswered when one ends are repeated on the next. At
/// most [`REQUESTS_MAX`](super::REQUESTS_MAX) wait for an answer, further ones for their turn. A
/// call that is dropped early is carried out all the same; its answer is lost.
#[derive(Clone, Debug)]
pub struct Device {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) kept: Arc<Kept>,
    pub(super) watched: Arc<Mutex<BTreeSet<String>>>,
}

/// A page of the list of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePage {
    /// The devices, in the order of the list.
    pub devices: Vec<DeviceEvent>,
    /// Start of the next page; `None` at the end.
    pub next: Option<String>,
}

/// A future of the server's reply to a message.
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
    /// Sends a message and waits for the server's reply, over as many connections as necessary.
    ///
    /// `store_unavailable` is retried, with the same id, until the server decides. With
    /// [`receipt`](Outgoing::receipt) the outcome comes later, as
    /// [`Event::Outcome`](super::Event::Outcome). Messages are sent in the order of the calls.
    pub async fn send(&self, message: Outgoing) -> Result<Accepted, SendError> {
        self.begin_send(message).await?.await
    }

    /// Like [`send`](Device::send), without waiting for the server's reply: for many concurrent
    /// messages that keep their order.
    pub async fn begin_send(&self, message: Outgoing) -> Result<Reply, SendError> {
        let frames = vec![message.frame()?];
        let (reply_to, answer) = oneshot::channel();
        self.ask(Request { id: message.id, frames, reply_to: ReplyTo::Send(reply_to) }).await;
        Ok(Reply { answer, kept: Arc::clone(&self.kept) })
    }

    /// Cancels the message to `to` with this id, which was accepted and is not pushed yet.
    pub async fn cancel(&self, to: &str, id: &str) -> Result<(), CancelError> {
        let cancel = ClientFrame::Cancel { id: Cow::Borrowed(id), to: Cow::Borrowed(to) };
        let frames = vec![checked(&cancel).map_err(CancelError::Invalid)?];
        let (reply_to, answer) = oneshot::channel();
        self.ask(Request { id: id.to_owned(), frames, reply_to: ReplyTo::Cancel(reply_to) }).await;
        answer.await.unwrap_or_else(|_| Err(CancelError::Ended(self.kept.ending())))
    }

    /// Acks everything up to `cursor`, which is then not pushed again. Never waits.
    ///
    /// [`state`](Device::state) includes the ack at once.
    pub fn ack(&self, cursor: Cursor) {
        self.kept.ack(cursor);
    }

    /// Refuses one message, whose sender is told `reason`; the others stay. It must not have
    /// been acked. Waits for the server's confirmation.
    pub async fn refuse(&self, cursor: Cursor, reason: Option<&str>) -> Result<(), AskError> {
        let (seq, id) = (cursor.seq, random_id());
        let refuse = ClientFrame::Refuse { seq, reason: reason.map(Cow::Borrowed) };
        let ping = ClientFrame::Ping { id: Some(Cow::Borrowed(&id)) };
        let frames = vec![checked(&refuse).map_err(AskError::Invalid)?, frame(&ping)];
        if !self.kept.refuse(cursor) {
            // Its mailbox is gone, or it is being refused already.
            return Ok(());
        }
        let (reply_to, answer) = oneshot::channel();
        self.ask(Request { id, frames, reply_to: ReplyTo::Refuse(seq, reply_to) }).await;
        answer.await.unwrap_or_else(|_| Err(AskError::Ended(self.kept.ending())))
    }

    /// Returns a page of the list of devices, starting after `after`.
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

    /// Requests an [`Event::Presence`](super::Event::Presence) whenever these devices come or
    /// go: now, at each change, and again on each new connection.
    pub async fn watch(&self, devices: &[&str]) -> Result<(), AskError> {
        for some in devices.chunks(WATCH_MAX) {
            self.watch_frame(some, true).await?;
            self.lock_watched().extend(some.iter().map(|&device| device.to_owned()));
        }
        Ok(())
    }

    /// Ends the watch of these devices.
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

    /// Replaces the token by a newer one of the same device, on this connection and later ones;
    /// returns its expiry in Unix time. A token that the server does not accept ends the
    /// session.
    pub async fn refresh(&self, token: &str) -> Result<Option<u64>, AskError> {
        let text = checked(&ClientFrame::Refresh { token: Cow::Borrowed(token) });
        let frames = vec![text.map_err(AskError::Invalid)?];
        self.kept.set_token(token.to_owned());
        let (reply_to, answer) = oneshot::channel();
        self.ask(Request { id: random_id(), frames, reply_to: ReplyTo::Refresh(reply_to) }).await;
        answer.await.unwrap_or_else(|_| Err(AskError::Ended(self.kept.ending())))
    }

    /// Returns the state for the application to store, so that the next run is the same device
    /// and continues at this position.
    pub fn state(&self) -> State {
        self.kept.state()
    }

    /// Returns the state as it will be once `cursor` is acked. If it is stored together with the
    /// effects of the message, before the ack, no crash makes the application process a message
    /// twice.
    pub fn state_with(&self, cursor: Cursor) -> State {
        self.kept.state_with(cursor)
    }

    /// Passes a request to the session's task. If the task is gone, the request is dropped here,
    /// and its caller gets an error.
    async fn ask(&self, request: Request) {
        let _ = self.requests.send(request).await;
    }

    fn lock_watched(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the frame that begins or ends a watch of devices.
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

/// Returns the frame's text, or why the server could not parse it: its answer to an invalid frame
/// may not name the request.
fn checked(asked: &ClientFrame<'_>) -> Result<String, String> {
    let text = frame(asked);
    match parse_client(text.as_bytes()) {
        Ok(_) => Ok(text),
        Err(error) => Err(error.message),
    }
}
