//! The duplicate window of mailboxes: ids of messages that were accepted, so that a retry is answered
//! as the first attempt was and is not delivered again.

use std::collections::VecDeque;
use std::time::Duration;

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Durability, PublicId};

use super::crowd::{Crowd, Standing};
use super::index::Index;
use crate::shrink::{self, KEPT_BY_SHARD, shrink};
use crate::{Digest, Moment};

/// The ids under which the devices of a shard were sent messages, oldest first.
///
/// A message is identified by its sender, its receiver and its id; the key is a digest of all three.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// Number of the first entry, which is how many entries were ever dropped from the front.
    first: u64,
    entries: VecDeque<Seen>,
    /// Number of entries that are forgotten and still in `entries`, behind others.
    gone: usize,
    /// The low half of the number of each key's entry.
    by_key: Index,
    senders: FxHashMap<DeviceId, Sender>,
    crowd: Crowd,
}

/// The id of one message. Half a million of these are kept: 48 bytes, and 8 in the index, which
/// doubles at three quarters.
///
/// It keeps half of each digest. Two messages with the same half of a key, one case in 2^64, count
/// as one: the second is `id_reused`. It would be lost only if the halves of the bodies were the
/// same, too.
#[derive(Debug)]
pub(crate) struct Seen {
    key: u64,
    /// Digest of the body.
    content: u64,
    from: DeviceId,
    /// The message's number in the receiver's mailbox; 0 if it went to a text device.
    pub(crate) seq: u64,
    /// Time at which it was accepted, in milliseconds, above the flags.
    at_and_flags: u64,
    /// Low half of the number of the next entry of the same sender, if there is one.
    next: u32,
}

const _: () = assert!(size_of::<Seen>() == 48);

/// Bits in `at_and_flags`.
mod flag {
    pub(super) const DURABILITY: u64 = 0b11;
    /// Forgotten before its time, as its sender has too many.
    pub(super) const GONE: u64 = 1 << 2;
    /// Its sender cancelled it.
    pub(super) const CANCELLED: u64 = 1 << 3;
    /// A record of its own is in the store, beside the record of its message.
    pub(super) const HAS_RECORD: u64 = 1 << 4;
    /// The record of its message is not synced.
    pub(super) const UNSYNCED: u64 = 1 << 5;
    pub(super) const BITS: u32 = 6;
}

/// The entries of one sender, as a list from the oldest on.
#[derive(Debug, Default)]
struct Sender {
    /// Low halves of the numbers of its oldest and its newest entry.
    oldest: u32,
    newest: u32,
    len: u32,
    standing: Standing,
}

/// An id that is new, with what is noted of it.
#[derive(Debug)]
pub(crate) struct NewId {
    pub(crate) key: Digest,
    pub(crate) content: Digest,
    pub(crate) from: DeviceId,
    pub(crate) seq: u64,
    pub(crate) at: Moment,
    pub(crate) durability: Durability,
    pub(crate) is_cancelled: bool,
    pub(crate) has_record: bool,
    /// True while the record of its message is not synced: until then its time is never over, and
    /// it begins anew with [`Window::synced`].
    pub(crate) is_unsynced: bool,
}

/// Bounds on a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowMax {
    pub(crate) time: Duration,
    /// Ids of one sender.
    pub(crate) of_one: usize,
    /// Ids of all senders.
    pub(crate) of_all: usize,
}

/// Result of looking up a message that is being sent.
#[derive(Debug)]
pub(crate) enum Known<'a> {
    /// The id is new.
    No,
    /// It stands for the same message.
    Same(&'a Seen),
    /// It stands for another body.
    Other(&'a Seen),
}

/// Makes room for more entries: by a quarter, not twice as many. The window is as full as it may be
/// for most of its time, with some forgotten entries on top, and all its memory is used in turn.
#[cold]
fn grow(entries: &mut VecDeque<Seen>) {
    entries.reserve_exact((entries.len() / 4).max(KEPT_BY_SHARD));
}

/// Number of ids that are forgotten together: the next sends need not choose a sender again.
const FORGOTTEN_AT_ONCE: usize = 256;

impl Seen {
    fn new(new: &NewId) -> Seen {
        let flag = |is_set: bool, flag: u64| if is_set { flag } else { 0 };
        Seen {
            key: new.key.half(),
            content: new.content.half(),
            from: new.from,
            seq: new.seq,
            at_and_flags: new.at.ms() << flag::BITS
                | new.durability as u64
                | flag(new.is_cancelled, flag::CANCELLED)
                | flag(new.has_record, flag::HAS_RECORD)
                | flag(new.is_unsynced, flag::UNSYNCED),
            next: 0,
        }
    }

    fn has(&self, flag: u64) -> bool {
        self.at_and_flags & flag != 0
    }

    #[inline]
    fn is_over(&self, now: Moment, time: Duration) -> bool {
        // A retry waits for the record, however long that takes.
        now.since(self.at()) >= time && !self.has(flag::UNSYNCED)
    }

    #[inline]
    fn at(&self) -> Moment {
        Moment::from_ms(self.at_and_flags >> flag::BITS)
    }

    pub(crate) fn durability(&self) -> Durability {
        Durability::ALL[(self.at_and_flags & flag::DURABILITY) as usize]
    }

    /// Returns whether its sender cancelled it.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.has(flag::CANCELLED)
    }
}

impl Window {
    /// Returns the number of ids.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.gone
    }

    /// Looks up a message that is being sent.
    #[inline]
    pub(crate) fn judge(
        &self,
        now: Moment,
        key: Digest,
        content: Digest,
        max: &WindowMax,
    ) -> Known<'_> {
        match self.find(now, key, max) {
            None => Known::No,
            Some(seen) if seen.content == content.half() => Known::Same(seen),
            Some(seen) => Known::Other(seen),
        }
    }

    /// Returns the entry of a key, unless its time is over.
    #[inline]
    pub(crate) fn find(&self, now: Moment, key: Digest, max: &WindowMax) -> Option<&Seen> {
        // One whose time is over may be left behind one that is not synced, or was synced later.
        self.entries.get(self.index(key)?).filter(|seen| !seen.is_over(now, max.time))
    }

    #[inline]
    fn index(&self, key: Digest) -> Option<usize> {
        let key = key.half();
        let is_it = |low| self.entries[index_of(low, self.first)].key == key;
        Some(index_of(self.by_key.find(key, is_it)?, self.first))
    }

    /// Adds the id of a message that was accepted, and forgets others if there are too many.
    #[inline]
    pub(crate) fn add(&mut self, now: Moment, new: &NewId, max: &WindowMax) {
        self.forget(now, max.time);
        let len = self.append(Seen::new(new));
        self.crowd.added(new.from);
        // Only at a power of two can one more id be too many for its class.
        if len.is_power_of_two() {
            self.stand(new.from);
        }
        if len > max.of_one {
            self.forget_of(new.from, len - max.of_one);
        }
        if self.len() > max.of_all {
            self.forget_of_fullest(max.of_all);
        }
    }

    /// Adds an entry behind all others; returns how many its sender has.
    #[inline]
    fn append(&mut self, seen: Seen) -> usize {
        let number = (self.first + self.entries.len() as u64) as u32;
        // In place of an older entry of the same key, whose time is over.
        let (entries, first, key) = (&self.entries, self.first, seen.key);
        self.by_key.set(key, number, |low| entries[index_of(low, first)].key == key);
        let sender = self.senders.entry(seen.from).or_default();
        if sender.len == 0 {
            sender.oldest = number;
        } else {
            self.entries[index_of(sender.newest, first)].next = number;
        }
        sender.newest = number;
        sender.len += 1;
        if self.entries.len() == self.entries.capacity() {
            grow(&mut self.entries);
        }
        self.entries.push_back(seen);
        sender.len as usize
    }

    /// Notes that the record of a message is synced: its time begins.
    #[inline]
    pub(crate) fn synced(&mut self, now: Moment, key: Digest, seq: u64) {
        let Some(index) = self.index(key) else { return };
        let seen = &mut self.entries[index];
        if seen.seq == seq && seen.has(flag::UNSYNCED) {
            let flags = seen.at_and_flags & ((1 << flag::BITS) - 1) & !flag::UNSYNCED;
            seen.at_and_flags = now.ms() << flag::BITS | flags;
        }
    }

    /// Notes that a message was cancelled: another `cancel` of it, as the answer may have been
    /// lost, is told the same.
    pub(crate) fn cancelled(&mut self, key: Digest, seq: u64) {
        self.note(key, seq, flag::CANCELLED);
    }

    /// Notes that an id has a record of its own; returns false if it had one before, or is
    /// forgotten.
    pub(crate) fn note_record(&mut self, key: Digest, seq: u64) -> bool {
        self.note(key, seq, flag::HAS_RECORD)
    }

    /// Sets a flag of the message that has this number; returns whether that is a change.
    fn note(&mut self, key: Digest, seq: u64, flag: u64) -> bool {
        let Some(index) = self.index(key) else { return false };
        let seen = &mut self.entries[index];
        // The id may stand for another message by now.
        let is_change = seen.seq == seq && !seen.has(flag);
        if is_change {
            seen.at_and_flags |= flag;
        }
        is_change
    }

    /// Forgets ids whose time is over.
    #[inline]
    pub(crate) fn forget(&mut self, now: Moment, time: Duration) {
        while self.entries.front().is_some_and(|seen| seen.is_over(now, time)) {
            self.drop_front();
        }
    }

    /// Returns the time at which the oldest message was accepted; `None` also if its record is not
    /// synced, as its time has not begun.
    pub(crate) fn oldest_at(&self) -> Option<Moment> {
        self.entries.front().filter(|seen| !seen.has(flag::UNSYNCED)).map(Seen::at)
    }

    /// Drops the first entry, which is the oldest of its sender.
    fn drop_front(&mut self) {
        let number = self.first as u32;
        let Some(seen) = self.entries.pop_front() else { return };
        self.first += 1;
        if seen.has(flag::GONE) {
            self.gone -= 1;
        } else {
            // By its number, as the id may have been used again after its time.
            self.by_key.remove(seen.key, number);
            self.took_oldest(seen.from, 1, seen.next);
        }
        shrink(&mut self.entries, KEPT_BY_SHARD);
        shrink(&mut self.by_key, KEPT_BY_SHARD);
    }

    /// Forgets the oldest `count` ids of a sender.
    #[cold]
    fn forget_of(&mut self, from: DeviceId, count: usize) {
        let Some(sender) = self.senders.get(&from) else { return };
        let mut number = sender.oldest;
        for _ in 0..count {
            let seen = &mut self.entries[index_of(number, self.first)];
            // A record that is not synced does not matter any more.
            seen.at_and_flags = (seen.at_and_flags | flag::GONE) & !flag::UNSYNCED;
            self.by_key.remove(seen.key, number);
            number = seen.next;
        }
        self.gone += count;
        self.took_oldest(from, count as u32, number);
        while self.entries.front().is_some_and(|seen| seen.has(flag::GONE)) {
            self.drop_front();
        }
        // Half at least, so that looking at all of them costs each that is forgotten a constant
        // time.
        if 2 * self.gone > self.entries.len() {
            self.drop_gone();
        }
    }

    /// Counts off the oldest ids of a sender, of which `next` is the oldest that is left.
    fn took_oldest(&mut self, from: DeviceId, count: u32, next: u32) {
        let Some(sender) = self.senders.get_mut(&from) else { return };
        sender.oldest = next;
        sender.len -= count;
        let (standing, len) = (sender.standing, sender.len as usize);
        self.crowd.dropped(from, count as usize);
        if !standing.may_stay(len) {
            self.stand(from);
        }
        if len == 0 {
            self.senders.remove(&from);
            shrink(&mut self.senders, KEPT_BY_SHARD);
        }
    }

    /// Drops entries that are gone in the middle, and numbers the others anew.
    fn drop_gone(&mut self) {
        let mut left = std::mem::take(&mut self.entries);
        left.retain(|seen| !seen.has(flag::GONE));
        self.gone = 0;
        self.by_key = Index::default();
        self.senders.values_mut().for_each(|sender| sender.len = 0);
        for seen in left {
            self.append(seen);
        }
    }

    /// Forgets ids of the senders that have the most, until at most `max` are left.
    #[cold]
    fn forget_of_fullest(&mut self, max: usize) {
        // More than necessary, so that not every send has to come here.
        let slack = (max / 8).min(FORGOTTEN_AT_ONCE);
        while let Some(excess) = self.len().checked_sub(max).filter(|excess| *excess > 0) {
            let Some(from) = self.crowd.fullest() else { return };
            let has = self.senders.get(&from).map_or(0, |sender| sender.len as usize);
            // At most half of what it has, before it is the next one's turn.
            self.forget_of(from, (excess + slack).min(has.div_ceil(2)));
        }
    }

    /// Moves a sender to the class of its number of ids, unless it may stay in its own.
    fn stand(&mut self, from: DeviceId) {
        let Some(sender) = self.senders.get_mut(&from) else { return };
        let len = sender.len as usize;
        if sender.standing.may_stay(len) {
            return;
        }
        let (standing, moved) = self.crowd.moved(from, sender.standing, len);
        sender.standing = standing;
        if let Some((other, index)) = moved
            && let Some(other) = self.senders.get_mut(&other)
        {
            other.standing.index = index;
        }
    }

    /// Describes each id, naming devices as on the wire. For tests.
    pub(crate) fn describe(
        &self,
        show: impl Fn(DeviceId) -> PublicId,
    ) -> impl Iterator<Item = String> {
        let left = self.entries.iter().filter(|seen| !seen.has(flag::GONE));
        left.map(move |seen| {
            let Seen { key, content, from, seq, at_and_flags, .. } = seen;
            format!("id {key} {content} {:?} {seq} {at_and_flags}", show(*from))
        })
    }

    /// Fails if a list, a count or a standing is wrong, or memory is not given back. For tests.
    pub(crate) fn audit(&self, max: &WindowMax) -> Result<(), String> {
        let gone = self.entries.iter().filter(|seen| seen.has(flag::GONE)).count();
        let len: usize = self.senders.values().map(|sender| sender.len as usize).sum();
        if gone != self.gone || len != self.len() || len > max.of_all {
            return Err(format!("{len} ids, {gone} gone, kept {} and {}", self.len(), self.gone));
        }
        for (from, sender) in &self.senders {
            let mut number = sender.oldest;
            for at in 1..=sender.len {
                let seen = &self.entries[index_of(number, self.first)];
                if seen.from != *from || seen.has(flag::GONE) {
                    return Err(format!("{from:?} is said to have sent {seen:?}"));
                }
                if at == sender.len && number != sender.newest {
                    return Err(format!("{number} is the newest of {from:?}: {sender:?}"));
                }
                number = seen.next;
            }
            if sender.len as usize > max.of_one {
                return Err(format!("{from:?} has {} ids", sender.len));
            }
            self.crowd.audit_one(*from, sender.standing, sender.len as usize)?;
        }
        self.crowd.audit(self.senders.len(), len)?;
        shrink::audit("ids", &self.entries, KEPT_BY_SHARD)?;
        shrink::audit("index of ids", &self.by_key, KEPT_BY_SHARD)?;
        shrink::audit("senders", &self.senders, KEPT_BY_SHARD)
    }
}

/// Returns the index of the entry whose number has this low half, in a list that begins with
/// `first`.
#[inline]
fn index_of(low: u32, first: u64) -> usize {
    // The low half is enough: there are never as many as 2^32 entries.
    low.wrapping_sub(first as u32) as usize
}
