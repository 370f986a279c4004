//! The ids under which a device sent: so that a retry is told what became of the first, and
//! delivers nothing again.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;
use switchboard_proto::v1::Durability;

use crate::{Digest, Moment};

/// The ids of one device, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Counts the entries that were ever dropped from the front.
    first: u64,
    entries: VecDeque<SentId>,
    by_id: FxHashMap<Digest, u64>,
}

/// One id that was sent under.
#[derive(Debug)]
pub(crate) struct SentId {
    id: Digest,
    /// Stands for receiver and body.
    content: Digest,
    pub(crate) to: DeviceId,
    pub(crate) at: Moment,
    pub(crate) durability: Durability,
    pub(crate) receipt: bool,
    pub(crate) state: SentState,
    /// The session that waits for an answer, and how many answers it waits for.
    pub(crate) session: u32,
    /// The first answer is owed: the one that says no `duplicate`.
    pub(crate) owes_first: bool,
    pub(crate) owes_duplicates: u16,
    /// The sender wants it back as soon as it is known where it is: the session that asked last,
    /// and how often.
    pub(crate) cancel_session: u32,
    pub(crate) owes_cancels: u16,
}

/// How far the message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SentState {
    /// The receiver's side has not answered.
    Asked,
    /// Accepted under this number of the receiver's mailbox.
    Accepted { seq: u64 },
    /// Not accepted: the id may be used again.
    Dropped,
}

/// What an id is to a device that sends under it now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// New.
    No,
    /// It stands for the same message.
    Same,
    /// It stands for another receiver or body.
    Other,
}

impl Sent {
    /// An empty list that counts from here on.
    pub(crate) fn counting_from(first: u64) -> Sent {
        Sent { first, ..Sent::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What an id is to its sender. One whose window is over is new, also where it is still kept
    /// because an older one is not answered yet.
    pub(crate) fn judge(
        &self,
        id: Digest,
        content: Digest,
        is_over: impl FnOnce(&SentId) -> bool,
    ) -> Known {
        match self.find(id) {
            None => Known::No,
            Some(sent) if sent.state != SentState::Asked && is_over(sent) => Known::No,
            Some(sent) if sent.content == content => Known::Same,
            Some(_) => Known::Other,
        }
    }

    /// Notes a message that is being sent; gives its number in this list.
    pub(crate) fn add(&mut self, sent: NewId) -> u64 {
        let index = self.first + self.entries.len() as u64;
        self.by_id.insert(sent.id, index);
        self.entries.push_back(SentId {
            id: sent.id,
            content: sent.content,
            to: sent.to,
            at: sent.at,
            durability: sent.durability,
            receipt: sent.receipt,
            state: sent.state,
            session: sent.session,
            owes_first: sent.state == SentState::Asked,
            owes_duplicates: 0,
            cancel_session: 0,
            owes_cancels: 0,
        });
        index
    }

    pub(crate) fn find(&self, id: Digest) -> Option<&SentId> {
        let index = *self.by_id.get(&id)?;
        self.entries.get((index - self.first) as usize)
    }

    pub(crate) fn find_mut(&mut self, id: Digest) -> Option<&mut SentId> {
        let index = *self.by_id.get(&id)?;
        self.entries.get_mut((index - self.first) as usize)
    }

    /// Forgets an id: its message was not accepted. Gives how many are remembered less.
    pub(crate) fn drop_id(&mut self, id: Digest) -> usize {
        if let Some(sent) = self.find_mut(id) {
            sent.state = SentState::Dropped;
            self.by_id.remove(&id);
        }
        let before = self.entries.len();
        // Mostly it is the last one; who is rejected all the time must not push out what he sent.
        while self.entries.back().is_some_and(|sent| sent.state == SentState::Dropped) {
            self.entries.pop_back();
        }
        let popped = before - self.entries.len();
        popped + self.drop_front(|_| false)
    }

    /// Forgets from the oldest on while `is_over` says so; one that is still asked stays, and
    /// those behind it.
    pub(crate) fn drop_front(&mut self, mut is_over: impl FnMut(&SentId) -> bool) -> usize {
        let mut dropped = 0;
        while let Some(front) = self.entries.front() {
            let is_dropped = front.state == SentState::Dropped;
            if !is_dropped && (front.state == SentState::Asked || !is_over(front)) {
                break;
            }
            // The id may have been used again after the window.
            if self.by_id.get(&front.id) == Some(&self.first) {
                self.by_id.remove(&front.id);
            }
            self.entries.pop_front();
            self.first += 1;
            dropped += 1;
        }
        if self.entries.is_empty() && self.entries.capacity() > 16 {
            self.entries = VecDeque::new();
            self.by_id = FxHashMap::default();
        }
        dropped
    }

    /// The number that the next entry gets.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Whether the entry of this number is still here.
    pub(crate) fn has(&self, number: u64) -> bool {
        (self.first..self.next()).contains(&number)
    }
}

/// What is noted of a message when it is sent.
#[derive(Debug)]
pub(crate) struct NewId {
    pub(crate) id: Digest,
    pub(crate) content: Digest,
    pub(crate) to: DeviceId,
    pub(crate) at: Moment,
    pub(crate) durability: Durability,
    pub(crate) receipt: bool,
    pub(crate) state: SentState,
    pub(crate) session: u32,
}
