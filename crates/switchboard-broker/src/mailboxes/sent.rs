//! The ids of messages that a device sent, so that a retry is answered as the first attempt was and
//! is not delivered again.

use std::collections::VecDeque;
use std::time::Duration;

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;
use switchboard_proto::v1::Durability;

use super::MessageKey;
use super::crowd::Standing;
use super::index::Index;
use crate::shrink::{self, KEPT, shrink};
use crate::{Digest, Moment};

/// The ids of one device, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(super) standing: Standing,
    /// Number of the first entry, which is how many entries were ever dropped from the front.
    first: u64,
    entries: VecDeque<SentId>,
    /// The low half of the number of each id's entry.
    by_id: Index,
    /// Answers that are open beside the first ones, by the id. Kept apart, as few ids have any.
    deferred: FxHashMap<u64, Deferred>,
}

/// The id of one message. Half a million of these are kept: 40 bytes, and 8 in the index. Both
/// tables double when they are full, the index at three quarters, so an id takes 51 to 101
/// bytes, about 70 on average; up to 203 bytes when most ids of its device were forgotten (see
/// [`crate::shrink`]).
///
/// It keeps half of each digest. Two ids of one device with the same half, one case in 2^64, count
/// as one: the second message is `id_reused`. It would be lost only if the halves of receiver and
/// body were the same, too.
#[derive(Debug)]
pub(crate) struct SentId {
    id: u64,
    /// Digest of receiver and body.
    content: u64,
    pub(crate) to: DeviceId,
    /// The message's number in the receiver's mailbox; until that is known, the session that asked.
    seq_or_session: u64,
    /// Time at which it was accepted, or asked, in milliseconds, above the flags.
    at_and_flags: u64,
}

const _: () = assert!(size_of::<SentId>() == 40);

/// Bits in `at_and_flags`.
mod flag {
    pub(super) const DURABILITY: u64 = 0b11;
    pub(super) const RECEIPT: u64 = 1 << 2;
    pub(super) const ASKED: u64 = 1 << 3;
    pub(super) const DROPPED: u64 = 1 << 4;
    /// The first answer is open: the one without `duplicate`.
    pub(super) const AWAITS_FIRST: u64 = 1 << 5;
    /// Its sender cancelled it.
    pub(super) const CANCELLED: u64 = 1 << 6;
    /// Memory is set aside for its outcome, which may be in memory only.
    pub(super) const KEEPS_MEMORY: u64 = 1 << 7;
    /// A record of its own is in the store, beside that of its message.
    pub(super) const HAS_RECORD: u64 = 1 << 8;
    pub(super) const BITS: u32 = 9;
}

/// Retries and cancels of a message that is not answered yet.
#[derive(Debug, Default)]
struct Deferred {
    /// Number of retries that wait for their answers.
    duplicates: u16,
    /// Session of the latest `cancel`, which is carried out once the message's number is known.
    cancel_session: u32,
    /// Number of `cancel`s of that session.
    cancels: u16,
}

/// Stages of a message, as its sender's shard knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SentState {
    /// The receiver's shard has not replied.
    Asked,
    /// Accepted under this number of the receiver's mailbox; 0 if it went to a text device.
    Accepted { seq: u64 },
    /// Not accepted: the id may be used again.
    Dropped,
}

/// Result of looking up the id of a message that is being sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// The id is new.
    No,
    /// It stands for the same message.
    Same,
    /// It stands for another receiver or body.
    Other,
}

/// Answers about a message for which its sender waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenAnswers {
    /// True if the first answer is open.
    pub(crate) first: bool,
    /// Number of open answers that say `duplicate`.
    pub(crate) duplicates: u16,
    /// Number of open answers to `cancel`s.
    pub(crate) cancels: u16,
    /// Session that waits for these.
    pub(crate) cancel_session: u32,
    /// The receiver.
    pub(crate) to: DeviceId,
    /// True if the sender asked for an outcome.
    pub(crate) receipt: bool,
    /// True if memory is set aside for the outcome, should it be in memory only.
    pub(crate) keeps_memory: bool,
}

impl OpenAnswers {
    /// Returns the number of answers to the message itself.
    pub(crate) fn answers(&self) -> u32 {
        u32::from(self.first) + u32::from(self.duplicates)
    }
}

impl SentId {
    fn new(new: &NewId) -> SentId {
        let (state, seq_or_session) = match new.state {
            SentState::Asked => (flag::ASKED | flag::AWAITS_FIRST, u64::from(new.session)),
            SentState::Accepted { seq } => (0, seq),
            SentState::Dropped => (flag::DROPPED, 0),
        };
        let mut sent = SentId {
            id: new.id.half(),
            content: new.content.half(),
            to: new.to,
            seq_or_session,
            at_and_flags: state
                | if new.receipt { flag::RECEIPT } else { 0 }
                | if new.keeps_memory { flag::KEEPS_MEMORY } else { 0 }
                | if new.has_record { flag::HAS_RECORD } else { 0 },
        };
        sent.stand(new.at, new.durability);
        sent
    }

    fn has(&self, flag: u64) -> bool {
        self.at_and_flags & flag != 0
    }

    /// Sets the time from which the window counts, and the durability.
    fn stand(&mut self, at: Moment, durability: Durability) {
        let flags = self.at_and_flags & ((1 << flag::BITS) - 1) & !flag::DURABILITY;
        self.at_and_flags = at.ms() << flag::BITS | flags | durability as u64;
    }

    pub(crate) fn at(&self) -> Moment {
        Moment::from_ms(self.at_and_flags >> flag::BITS)
    }

    pub(crate) fn durability(&self) -> Durability {
        Durability::ALL[(self.at_and_flags & flag::DURABILITY) as usize]
    }

    pub(crate) fn state(&self) -> SentState {
        if self.has(flag::DROPPED) {
            SentState::Dropped
        } else if self.has(flag::ASKED) {
            SentState::Asked
        } else {
            SentState::Accepted { seq: self.seq_or_session }
        }
    }

    /// Returns whether its sender cancelled it.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.has(flag::CANCELLED)
    }

    fn is_asked(&self) -> bool {
        self.has(flag::ASKED)
    }
}

impl Sent {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Looks up an id under which its device sends now.
    #[inline]
    pub(crate) fn judge(
        &self,
        id: Digest,
        content: Digest,
        is_over: impl FnOnce(&SentId) -> bool,
    ) -> Known {
        match self.find(id) {
            None => Known::No,
            // Its window is over, and it is kept only because an older id is not answered yet.
            Some(sent) if !sent.is_asked() && is_over(sent) => Known::No,
            Some(sent) if sent.content == content.half() => Known::Same,
            Some(_) => Known::Other,
        }
    }

    /// Notes a message that is being sent.
    #[inline]
    pub(crate) fn add(&mut self, new: &NewId) {
        let number = self.first + self.entries.len() as u64;
        let sent = SentId::new(new);
        let id = sent.id;
        self.entries.push_back(sent);
        // In place of an older entry of the same id, whose window is over.
        let (entries, first) = (&self.entries, self.first);
        self.by_id.set(id, number as u32, |low| entries[index_of(low, first)].id == id);
    }

    #[inline]
    fn index(&self, id: Digest) -> Option<usize> {
        let id = id.half();
        let is_it = |low| self.entries[index_of(low, self.first)].id == id;
        Some(index_of(self.by_id.find(id, is_it)?, self.first))
    }

    #[inline]
    pub(crate) fn find(&self, id: Digest) -> Option<&SentId> {
        self.entries.get(self.index(id)?)
    }

    #[inline]
    fn find_mut(&mut self, id: Digest) -> Option<&mut SentId> {
        let index = self.index(id)?;
        self.entries.get_mut(index)
    }

    /// Notes a retry of a message that is not answered yet: `session` waits for the answer, too.
    pub(crate) fn ask_again(&mut self, id: Digest, session: u32) {
        let Some(sent) = self.find_mut(id).filter(|sent| sent.is_asked()) else { return };
        let is_new = sent.seq_or_session != u64::from(session);
        if is_new {
            // The session that asked first is over, and nobody reads its answers.
            sent.seq_or_session = u64::from(session);
            sent.at_and_flags &= !flag::AWAITS_FIRST;
        }
        let deferred = self.deferred.entry(id.half()).or_default();
        deferred.duplicates = if is_new { 1 } else { deferred.duplicates.saturating_add(1) };
    }

    /// Notes a `cancel` of a message that is not answered yet.
    pub(crate) fn cancel(&mut self, id: Digest, session: u32) {
        let deferred = self.deferred.entry(id.half()).or_default();
        if deferred.cancel_session != session {
            // The earlier session is over, and nobody reads its answers.
            (deferred.cancel_session, deferred.cancels) = (session, 0);
        }
        deferred.cancels = deferred.cancels.saturating_add(1);
    }

    /// Notes that a message was cancelled: another `cancel` of it, as the answer may have been
    /// lost, is told the same.
    pub(crate) fn cancelled(&mut self, id: Digest, of: MessageKey) {
        // The id may stand for another message by now.
        let state = SentState::Accepted { seq: of.seq };
        let is_it = |sent: &&mut SentId| sent.to == of.device && sent.state() == state;
        if let Some(sent) = self.find_mut(id).filter(is_it) {
            sent.at_and_flags |= flag::CANCELLED;
        }
    }

    /// Notes that a message was accepted, under which number and with which durability. Returns the
    /// answers that are open in `session`.
    #[inline]
    pub(crate) fn accepted(
        &mut self,
        id: Digest,
        session: u32,
        (at, seq, durability): (Moment, u64, Durability),
    ) -> Option<OpenAnswers> {
        let index = self.index(id)?;
        // Before the number takes the place of the session that asked.
        let mut open = self.answered_at(index, session);
        (open.cancels, open.cancel_session) = self.take_cancels(id);
        let sent = &mut self.entries[index];
        sent.at_and_flags &= !flag::ASKED;
        sent.seq_or_session = seq;
        sent.stand(at, durability);
        Some(open)
    }

    /// Notes that the id of this message has a record of its own; returns whether it had one
    /// before.
    pub(crate) fn note_record(&mut self, id: Digest, of: MessageKey) -> bool {
        let state = SentState::Accepted { seq: of.seq };
        let is_it = |sent: &&mut SentId| sent.to == of.device && sent.state() == state;
        let Some(sent) = self.find_mut(id).filter(is_it) else { return false };
        let had_one = sent.has(flag::HAS_RECORD);
        sent.at_and_flags |= flag::HAS_RECORD;
        had_one
    }

    fn take_cancels(&mut self, id: Digest) -> (u16, u32) {
        if self.deferred.is_empty() {
            return (0, 0);
        }
        let deferred = self.deferred.remove(&id.half());
        shrink(&mut self.deferred, KEPT);
        deferred.map_or((0, 0), |deferred| (deferred.cancels, deferred.cancel_session))
    }

    /// Closes the open answers of a message, whether or not it is known what became of it. Returns
    /// those that `session` waits for.
    pub(crate) fn answered(&mut self, id: Digest, session: u32) -> Option<OpenAnswers> {
        let index = self.index(id)?;
        Some(self.answered_at(index, session))
    }

    #[inline]
    fn answered_at(&mut self, index: usize, session: u32) -> OpenAnswers {
        let sent = &mut self.entries[index];
        // Nobody reads answers to a session that is over.
        let asks = sent.is_asked() && sent.seq_or_session == u64::from(session);
        let mut open = OpenAnswers {
            first: asks && sent.has(flag::AWAITS_FIRST),
            duplicates: 0,
            cancels: 0,
            cancel_session: 0,
            to: sent.to,
            receipt: sent.has(flag::RECEIPT),
            keeps_memory: sent.has(flag::KEEPS_MEMORY),
        };
        sent.at_and_flags &= !flag::AWAITS_FIRST;
        if !self.deferred.is_empty()
            && let Some(deferred) = self.deferred.get_mut(&sent.id)
        {
            open.duplicates = if asks { deferred.duplicates } else { 0 };
            deferred.duplicates = 0;
        }
        open
    }

    /// Notes that a message was not accepted, and forgets its id. Returns the answers that are
    /// open in `session`, and the number of entries dropped.
    pub(crate) fn rejected(&mut self, id: Digest, session: u32) -> Option<(OpenAnswers, usize)> {
        let index = self.index(id)?;
        let mut open = self.answered_at(index, session);
        (open.cancels, open.cancel_session) = self.take_cancels(id);
        // Marked, and removed only at the ends of the list: the index knows entries by their
        // positions.
        self.entries[index].at_and_flags |= flag::DROPPED;
        self.entries[index].at_and_flags &= !flag::ASKED;
        self.by_id.remove(id.half(), (self.first + index as u64) as u32);
        let before = self.entries.len();
        // Usually the newest id; popping it keeps a stream of rejections from evicting accepted
        // ids.
        while self.entries.back().is_some_and(|sent| sent.has(flag::DROPPED)) {
            self.entries.pop_back();
        }
        let popped = before - self.entries.len();
        let dropped = popped + self.drop_front(|_| false);
        self.shrink(KEPT);
        Some((open, dropped))
    }

    /// Forgets from the oldest on while `is_over` returns true; one that is not answered stays,
    /// and so do those behind it. Returns the number of entries dropped.
    #[inline]
    pub(crate) fn drop_front(&mut self, mut is_over: impl FnMut(&SentId) -> bool) -> usize {
        let mut dropped = 0;
        while let Some(front) = self.entries.front() {
            // An id that is not answered must stay: the answer would not find the session that
            // waits, and a retry would be delivered again.
            if !front.has(flag::DROPPED) && (front.is_asked() || !is_over(front)) {
                break;
            }
            // By its number, as the id may have been used again after the window.
            self.by_id.remove(front.id, self.first as u32);
            self.entries.pop_front();
            self.first += 1;
            dropped += 1;
        }
        if dropped > 0 {
            self.shrink(KEPT);
        }
        dropped
    }

    /// Gives back memory that is not needed any more; keeps some for `kept` ids.
    #[inline]
    pub(crate) fn shrink(&mut self, kept: usize) {
        shrink(&mut self.entries, kept);
        shrink(&mut self.by_id, kept);
    }

    /// Gives back the memory that is kept for what it may send, as its device is away.
    pub(crate) fn rest(&mut self) {
        self.shrink(0);
        shrink(&mut self.deferred, 0);
    }

    /// See [`shrink::audit`].
    pub(crate) fn audit(&self) -> Result<(), String> {
        shrink::audit("ids", &self.entries, KEPT)?;
        shrink::audit("index of ids", &self.by_id, KEPT)?;
        shrink::audit("deferred answers", &self.deferred, KEPT)
    }

    /// Forgets ids older than the window, and the oldest if there are still `max`. Returns the
    /// number of entries dropped.
    #[inline]
    pub(crate) fn forget(&mut self, now: Moment, window: Duration, max: usize) -> usize {
        let dropped = self.drop_front(|sent| now.since(sent.at()) >= window);
        if self.len() < max {
            return dropped;
        }
        // Room for the one that is about to be sent.
        let mut one = true;
        dropped + self.drop_front(|_| std::mem::take(&mut one))
    }

    /// Returns the time at which the oldest id was accepted, or asked.
    pub(crate) fn oldest_at(&self) -> Option<Moment> {
        self.entries.front().map(SentId::at)
    }
}

/// Returns the index of the entry whose number has this low half, in a list that begins with
/// `first`.
#[inline]
fn index_of(low: u32, first: u64) -> usize {
    // The low half is enough: there are never as many as 2^32 entries.
    low.wrapping_sub(first as u32) as usize
}

/// The id of a message that is being sent, or was in an earlier run, with what is noted of it.
#[derive(Debug)]
pub(crate) struct NewId {
    pub(crate) id: Digest,
    pub(crate) content: Digest,
    pub(crate) to: DeviceId,
    pub(crate) at: Moment,
    pub(crate) durability: Durability,
    pub(crate) receipt: bool,
    pub(crate) keeps_memory: bool,
    pub(crate) has_record: bool,
    pub(crate) state: SentState,
    pub(crate) session: u32,
}

impl NewId {
    /// Returns the note of a message that was accepted on disk in an earlier run.
    pub(crate) fn in_log(id: Digest, content: Digest, to: DeviceId, at: Moment, seq: u64) -> NewId {
        NewId {
            id,
            content,
            to,
            at,
            durability: Durability::Disk,
            receipt: false,
            keeps_memory: false,
            has_record: false,
            state: SentState::Accepted { seq },
            session: 0,
        }
    }
}
