//! The requests that wait for their answers, over as many connections as necessary.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use switchboard_proto::v1::{RejectCode, ServerEvent, Word};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::device::DevicePage;
use super::{Accepted, AskError, CancelError, REQUESTS_MAX, Rejection, SendError};
use crate::Ending;

/// Delay before a retry if the server gives none.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Minimum delay before a retry, whatever the server says.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(50);

/// The caller that waits for the answer, which also determines the kind of request.
#[derive(Debug)]
pub(super) enum ReplyTo {
    Send(oneshot::Sender<Result<Accepted, SendError>>),
    Cancel(oneshot::Sender<Result<(), CancelError>>),
    Devices(oneshot::Sender<Result<DevicePage, AskError>>),
    Watch(oneshot::Sender<Result<(), AskError>>),
    /// For the message with this number; its answer is that of the ping after it.
    Refuse(u64, oneshot::Sender<Result<(), AskError>>),
    Refresh(oneshot::Sender<Result<Option<u64>, AskError>>),
}

/// A request as submitted.
#[derive(Debug)]
pub(super) struct Request {
    /// The id that the answer repeats.
    pub(super) id: String,
    /// The frames to send, one WebSocket message each.
    pub(super) frames: Vec<String>,
    pub(super) reply_to: ReplyTo,
}

/// All requests in the order of submission, in which they are also sent again.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: BTreeMap<u64, Waiting>,
    by_id: HashMap<String, u64>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be sent on this connection; after a `store_unavailable` not before this time.
    Due(Option<Instant>),
    Said,
}

impl Requests {
    /// Returns true if another request may be added.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < REQUESTS_MAX
    }

    /// Adds a request. An id must be unique among those that wait: otherwise an answer would be
    /// ambiguous.
    pub(super) fn add(&mut self, request: Request) {
        if self.by_id.contains_key(&request.id) {
            return request.reply_to.in_flight();
        }
        self.by_id.insert(request.id.clone(), self.next);
        self.waiting.insert(self.next, Waiting { request, state: State::Due(None) });
        self.next += 1;
    }

    /// Returns the frames that are due and marks them as sent. A message that is too long for the
    /// server fails with `TooLarge` instead: if it were sent, it would end this connection and each
    /// one after it.
    pub(super) fn due(&mut self, now: Instant, frame_len_max: u64) -> Vec<String> {
        let mut frames = Vec::new();
        let mut too_long = Vec::new();
        for waiting in self.waiting.values_mut() {
            if !matches!(waiting.state, State::Due(at) if at.is_none_or(|at| at <= now)) {
                continue;
            }
            waiting.state = State::Said;
            let longest = waiting.request.frames.iter().map(String::len).max().unwrap_or(0) as u64;
            if longest > frame_len_max {
                too_long.push((waiting.request.id.clone(), longest));
            } else {
                frames.extend(waiting.request.frames.iter().cloned());
            }
        }
        for (id, len) in too_long {
            if let Some(request) = self.remove(&id) {
                request.reply_to.too_long(len, frame_len_max);
            }
        }
        frames
    }

    /// Returns the time at which the next request is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let times = self.waiting.values().filter_map(|waiting| match waiting.state {
            State::Due(at) => at,
            State::Said => None,
        });
        times.min()
    }

    /// Prepares for a new connection: unanswered requests are sent again, except cancellations. The
    /// second answer to one may be `too_late` although the first one succeeded, if the server was
    /// restarted or had not recorded the first.
    pub(super) fn begin_anew(&mut self) {
        let mut interrupted = Vec::new();
        for waiting in self.waiting.values_mut() {
            if matches!(waiting.request.reply_to, ReplyTo::Cancel(_))
                && waiting.state == State::Said
            {
                interrupted.push(waiting.request.id.clone());
            }
            if waiting.state == State::Said {
                waiting.state = State::Due(None);
            }
        }
        for id in interrupted {
            if let Some(Request { reply_to: ReplyTo::Cancel(answer), .. }) = self.remove(&id) {
                tell(answer, Err(CancelError::Interrupted));
            }
        }
    }

    /// Completes all refusals: their mailbox is gone, so there is nothing left to refuse.
    pub(super) fn forget_refusals(&mut self) {
        let refusals = self.waiting.values().filter_map(|waiting| match waiting.request.reply_to {
            ReplyTo::Refuse(..) => Some(waiting.request.id.clone()),
            _ => None,
        });
        for id in refusals.collect::<Vec<_>>() {
            if let Some(Request { reply_to: ReplyTo::Refuse(_, answer), .. }) = self.remove(&id) {
                tell(answer, Ok(()));
            }
        }
    }

    /// Passes an answer to its caller; returns the number of a message whose refusal is
    /// confirmed.
    pub(super) fn answer(&mut self, event: ServerEvent, now: Instant) -> Option<u64> {
        match event {
            ServerEvent::Accepted { id, durability, duplicate } => {
                if let Some(ReplyTo::Send(answer)) = self.take(&id) {
                    tell(answer, Ok(Accepted { id, durability, duplicate }));
                }
            }
            ServerEvent::Rejected { id, code, message, retry_after_ms, .. } => {
                let retry_after = retry_after_ms.map(Duration::from_millis);
                self.rejected(&id, Rejection { code, message, retry_after }, now);
            }
            ServerEvent::Cancelled { id, .. } => {
                if let Some(ReplyTo::Cancel(answer)) = self.take(&id) {
                    tell(answer, Ok(()));
                }
            }
            ServerEvent::Devices { id, devices, next } => {
                if let Some(ReplyTo::Devices(answer)) = self.take(&id) {
                    tell(answer, Ok(DevicePage { devices, next }));
                }
            }
            ServerEvent::Watching { id } => {
                if let Some(ReplyTo::Watch(answer)) = self.take(&id) {
                    tell(answer, Ok(()));
                }
            }
            ServerEvent::Refreshed { expires_at_ms } => self.refreshed(expires_at_ms),
            ServerEvent::Pong { id: Some(id) } => {
                if let Some(ReplyTo::Refuse(seq, answer)) = self.take(&id) {
                    tell(answer, Ok(()));
                    return Some(seq);
                }
            }
            ServerEvent::Error { message, id: Some(id), .. } => {
                if let Some(reply_to) = self.take(&id) {
                    reply_to.invalid(message);
                }
            }
            _ => {}
        }
        None
    }

    fn rejected(&mut self, id: &str, rejection: Rejection, now: Instant) {
        let Some(number) = self.by_id.get(id) else { return };
        let Some(waiting) = self.waiting.get_mut(number) else { return };
        let is_unknown = rejection.code == Word::Known(RejectCode::StoreUnavailable);
        if is_unknown && matches!(waiting.request.reply_to, ReplyTo::Send(_)) {
            let after = rejection.retry_after.unwrap_or(RETRY_AFTER).max(RETRY_AFTER_MIN);
            waiting.state = State::Due(Some(now + after));
        } else if let Some(reply_to) = self.take(id) {
            reply_to.rejected(rejection);
        }
    }

    /// `refreshed` names no request; the server answers refreshes in order.
    fn refreshed(&mut self, expires_at_ms: Option<u64>) {
        let is_refresh =
            |waiting: &&Waiting| matches!(waiting.request.reply_to, ReplyTo::Refresh(_));
        let first = self.waiting.values().find(is_refresh);
        let Some(id) = first.map(|waiting| waiting.request.id.clone()) else { return };
        if let Some(ReplyTo::Refresh(answer)) = self.take(&id) {
            tell(answer, Ok(expires_at_ms));
        }
    }

    /// Fails all requests: the session has ended.
    pub(super) fn end(&mut self, ending: &Ending) {
        self.by_id.clear();
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            waiting.request.reply_to.ended(ending.clone());
        }
    }

    fn take(&mut self, id: &str) -> Option<ReplyTo> {
        self.remove(id).map(|request| request.reply_to)
    }

    fn remove(&mut self, id: &str) -> Option<Request> {
        let number = self.by_id.remove(id)?;
        self.waiting.remove(&number).map(|waiting| waiting.request)
    }
}

/// Sends the answer; the caller may have given up, which is fine.
fn tell<T>(answer: oneshot::Sender<T>, what: T) {
    let _ = answer.send(what);
}

impl ReplyTo {
    fn in_flight(self) {
        match self {
            ReplyTo::Send(answer) => tell(answer, Err(SendError::InFlight)),
            ReplyTo::Cancel(answer) => tell(answer, Err(CancelError::InFlight)),
            other => other.invalid("a request with this id waits for its answer".to_owned()),
        }
    }

    fn too_long(self, len: u64, max: u64) {
        match self {
            ReplyTo::Send(answer) => tell(answer, Err(SendError::TooLarge { len, max })),
            other => other.invalid(format!("a frame of {len} bytes; the server takes {max}")),
        }
    }

    fn rejected(self, rejection: Rejection) {
        match self {
            ReplyTo::Send(answer) => tell(answer, Err(rejection.into())),
            ReplyTo::Cancel(answer) => tell(answer, Err(rejection.into())),
            ReplyTo::Devices(answer) => tell(answer, Err(rejection.into())),
            ReplyTo::Watch(answer) | ReplyTo::Refuse(_, answer) => {
                tell(answer, Err(rejection.into()));
            }
            ReplyTo::Refresh(answer) => tell(answer, Err(rejection.into())),
        }
    }

    fn invalid(self, why: String) {
        match self {
            ReplyTo::Send(answer) => tell(answer, Err(SendError::Invalid(why))),
            ReplyTo::Cancel(answer) => tell(answer, Err(CancelError::Invalid(why))),
            ReplyTo::Devices(answer) => tell(answer, Err(AskError::Invalid(why))),
            ReplyTo::Watch(answer) | ReplyTo::Refuse(_, answer) => {
                tell(answer, Err(AskError::Invalid(why)));
            }
            ReplyTo::Refresh(answer) => tell(answer, Err(AskError::Invalid(why))),
        }
    }

    fn ended(self, ending: Ending) {
        match self {
            ReplyTo::Send(answer) => tell(answer, Err(SendError::Ended(ending))),
            ReplyTo::Cancel(answer) => tell(answer, Err(CancelError::Ended(ending))),
            ReplyTo::Devices(answer) => tell(answer, Err(AskError::Ended(ending))),
            ReplyTo::Watch(answer) | ReplyTo::Refuse(_, answer) => {
                tell(answer, Err(AskError::Ended(ending)));
            }
            ReplyTo::Refresh(answer) => tell(answer, Err(AskError::Ended(ending))),
        }
    }
}
