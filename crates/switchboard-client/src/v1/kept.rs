//! State that a device keeps from one connection to the next, and from one run to the next.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use switchboard_proto::v1::ClientFrame;
use tokio::sync::Notify;

use super::{Cursor, Welcome};
use crate::Ending;

/// The state that makes a device the same again; the application stores it as carefully as a
/// password.
///
/// After a crash at any moment, a message that was acked after this state was stored comes again
/// only if the server did not get the ack.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Proves the device's identity; `None` for a new anonymous device, which is given one.
    pub token: Option<String>,
    /// The mailbox that `last_seq` belongs to.
    pub mailbox: Option<String>,
    /// Everything up to this number is acked.
    pub last_seq: u64,
}

/// Omits the token, which must not end up in logs.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("mailbox", &self.mailbox)
            .field("last_seq", &self.last_seq)
            .finish()
    }
}

/// The state, shared by the session's task and its handles.
#[derive(Debug)]
pub(super) struct Kept {
    inner: Mutex<Inner>,
    acked: Notify,
    end: OnceLock<Ending>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Everything up to this number was passed to the application.
    seen: u64,
    /// Number of mailboxes so far.
    generation: u32,
    /// Refusals that the server has not confirmed: acks must not overtake them.
    refused: BTreeSet<u64>,
}

impl Kept {
    pub(super) fn new(state: State) -> Kept {
        let seen = state.last_seq;
        let inner = Inner { state, seen, generation: 0, refused: BTreeSet::new() };
        Kept { inner: Mutex::new(inner), acked: Notify::new(), end: OnceLock::new() }
    }

    pub(super) fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// Acks everything up to `cursor`.
    pub(super) fn ack(&self, cursor: Cursor) {
        let mut inner = self.lock();
        if inner.generation == cursor.generation && inner.state.last_seq < cursor.seq {
            inner.state.last_seq = cursor.seq;
            drop(inner);
            self.acked.notify_one();
        }
    }

    /// Returns the state as it will be once everything up to `cursor` is acked; a cursor of an
    /// older mailbox changes nothing.
    pub(super) fn state_with(&self, cursor: Cursor) -> State {
        let inner = self.lock();
        let mut state = inner.state.clone();
        if inner.generation == cursor.generation {
            state.last_seq = state.last_seq.max(cursor.seq);
        }
        state
    }

    /// Completes when something has been acked since the last call.
    pub(super) async fn acked(&self) {
        self.acked.notified().await;
    }

    /// Returns the number up to which the application has acked everything.
    pub(super) fn last_seq(&self) -> u64 {
        self.lock().state.last_seq
    }

    /// Returns the first frame of a connection.
    pub(super) fn hello(&self, ephemeral: bool) -> String {
        let inner = self.lock();
        let State { token, mailbox, last_seq } = &inner.state;
        let before_refusals = inner.refused.first().map_or(u64::MAX, |seq| seq - 1);
        frame(&ClientFrame::Hello {
            token: token.as_deref().map(Into::into),
            mailbox: mailbox.as_deref().map(Into::into),
            last_seq: mailbox.as_ref().map(|_| *last_seq.min(&before_refusals)),
            ephemeral,
        })
    }

    /// Stores the parts of a welcome that are kept.
    pub(super) fn welcomed(&self, welcome: &Welcome) {
        let mut inner = self.lock();
        if welcome.token.is_some() {
            inner.state.token.clone_from(&welcome.token);
        }
        if inner.state.mailbox.as_ref() != Some(&welcome.mailbox) {
            inner.state.mailbox = Some(welcome.mailbox.clone());
            (inner.state.last_seq, inner.seen) = (welcome.last_seq, welcome.last_seq);
            inner.generation += 1;
            inner.refused.clear();
        }
    }

    /// Returns the cursor of the entry pushed under this number, or `None` if it was seen
    /// before.
    pub(super) fn see(&self, seq: u64) -> Option<Cursor> {
        let mut inner = self.lock();
        if seq <= inner.seen {
            return None;
        }
        inner.seen = seq;
        Some(Cursor { seq, generation: inner.generation })
    }

    /// Records a refusal that is being sent; returns false if its mailbox is gone, or it is
    /// being refused already.
    pub(super) fn refuse(&self, cursor: Cursor) -> bool {
        let mut inner = self.lock();
        inner.generation == cursor.generation && inner.refused.insert(cursor.seq)
    }

    /// Removes a refusal that the server has confirmed.
    pub(super) fn refused(&self, seq: u64) {
        self.lock().refused.remove(&seq);
    }

    pub(super) fn set_token(&self, token: String) {
        self.lock().state.token = Some(token);
    }

    /// Records how the session ended.
    pub(super) fn end(&self, ending: Ending) {
        // Set only once, by the session's task.
        let _ = self.end.set(ending);
    }

    /// Returns how the session ended.
    pub(super) fn ending(&self) -> Ending {
        self.end.get().cloned().unwrap_or_else(|| Ending::broken("the session was dropped"))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Formats a frame as text.
pub(super) fn frame(frame: &ClientFrame<'_>) -> String {
    let mut bytes = Vec::new();
    frame.write(&mut bytes);
    String::from_utf8(bytes).expect("frames are made of text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome(mailbox: &str, last_seq: u64) -> Welcome {
        Welcome {
            device: "7".to_owned(),
            token: None,
            mailbox: mailbox.to_owned(),
            resumed: true,
            pending: 0,
            last_seq,
            ping_every_ms: 25_000,
            max_message_bytes: 1 << 20,
            durability: super::super::Word::Known(super::super::Durability::Disk),
            server: "test".to_owned(),
        }
    }

    fn kept(mailbox: &str, last_seq: u64) -> Kept {
        let kept = Kept::new(State { mailbox: Some("a".to_owned()), last_seq: 5, token: None });
        kept.welcomed(&welcome(mailbox, last_seq));
        kept
    }

    #[test]
    fn what_was_seen_before_is_left_out() {
        let kept = kept("a", 5);
        assert_eq!(kept.see(5), None);
        assert_eq!(kept.see(7).map(Cursor::seq), Some(7));
        assert_eq!(kept.see(7), None);
        assert_eq!(kept.last_seq(), 5, "seen is not acked");
    }

    #[test]
    fn another_mailbox_begins_anew_and_old_acks_do_not_reach_it() {
        let kept = kept("a", 5);
        let old = kept.see(9).unwrap();
        kept.welcomed(&welcome("b", 0));
        let new = kept.see(1).unwrap();
        assert_eq!(kept.state_with(old).last_seq, 0);
        assert_eq!(kept.state_with(new).last_seq, 1);
        kept.ack(old);
        assert_eq!(kept.last_seq(), 0);
        assert!(!kept.refuse(old));
        kept.ack(new);
        assert_eq!(kept.state().last_seq, 1);
        assert_eq!(kept.state().mailbox.as_deref(), Some("b"));
    }

    #[test]
    fn a_hello_acks_nothing_that_was_refused_and_not_confirmed() {
        let kept = kept("a", 5);
        let (refused, last) = (kept.see(6).unwrap(), kept.see(8).unwrap());
        assert!(kept.refuse(refused));
        kept.ack(last);
        assert!(kept.hello(false).contains("\"last_seq\":5"), "{}", kept.hello(false));
        kept.refused(6);
        assert!(kept.hello(false).contains("\"last_seq\":8"), "{}", kept.hello(false));
    }

    #[test]
    fn a_state_does_not_print_its_token() {
        let state = State { token: Some("secret".to_owned()), ..State::default() };
        assert!(!format!("{state:?}").contains("secret"));
    }
}
