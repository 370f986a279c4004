//! A mailbox: messages in order under rising numbers, and one cursor for live delivery, resume and
//! catching up.

use std::collections::VecDeque;

use switchboard_proto::DeviceId;

use super::entry::{Entry, Kind, NEVER, State};
use super::expiries::Expiries;
use super::reserved::{OutcomesFull, Reserved};
use super::shares::{Load, Quota, Shares};
use super::totals::{OUTCOME_MEMORY, OfAnonymous, Totals};
use super::{Content, Position};
use crate::shrink::{self, KEPT, shrink};
use crate::{Moment, StampClock};

/// The messages and outcomes that wait for one device.
///
/// An entry leaves by ack, refusal, expiry, cancellation or eviction.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// By rising `seq`; gaps are possible.
    entries: VecDeque<Entry>,
    /// The number that the next entry gets.
    next_seq: u64,
    /// Numbers below this one are reserved in the store: a crash does not give them again, so they
    /// may be shown before a record holds them.
    reserved_to: u64,
    /// The device has acked everything up to here.
    acked_to: u64,
    /// The greatest number that was ever pushed.
    pushed_to: u64,
    /// The greatest number that was pushed in this session.
    cursor: u64,
    /// Number of entries that were pushed in this session and wait for their ack.
    in_flight: usize,
    /// Number of entries that are gone and still in `entries`, behind others.
    gone: usize,
    /// True if its device has no name.
    is_anonymous: bool,
    /// Sums over the entries that wait, with what is set aside for outcomes.
    totals: Totals,
    /// The outcomes among them, which are counted apart: messages from others must not take the
    /// room for them.
    outcomes: Load,
    /// The share of each sender, counted only while the mailbox is so full that it matters.
    shares: Option<Box<Shares>>,
    /// Times at which messages expire.
    expiries: Expiries,
    /// Outcomes that this device asked for and for which room is reserved.
    reserved: Reserved,
    /// Number of outcomes for which memory is set aside, as they may be in memory only.
    reserved_in_memory: usize,
    /// Bytes of contents that are in memory although the store has them too.
    cached: usize,
    /// Length of the longest restored frame that is above `max_message_bytes`, which was greater
    /// when the message was accepted; 0 is none.
    longest: usize,
}

/// Entries for which a mailbox keeps memory while its device is connected. As `shrink` leaves up to
/// twice as many alone, a burst of 64 allocates nothing.
const ENTRIES_KEPT: usize = 32;

/// Next step in pushing to a device that is connected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Push the entry at this index.
    Push(usize),
    /// Fetch the content of the entry at this index, and perhaps of those behind it.
    Fetch(usize),
    /// Nothing: everything is pushed, or something must happen first.
    Wait,
}

impl Mailbox {
    pub(crate) fn new(is_anonymous: bool) -> Mailbox {
        Mailbox {
            entries: VecDeque::new(),
            next_seq: 1,
            reserved_to: 1,
            acked_to: 0,
            pushed_to: 0,
            cursor: 0,
            in_flight: 0,
            gone: 0,
            is_anonymous,
            totals: Totals::default(),
            outcomes: Load::default(),
            shares: None,
            expiries: Expiries::default(),
            reserved: Reserved::default(),
            reserved_in_memory: 0,
            cached: 0,
            longest: 0,
        }
    }

    /// Returns whether it has no entry, and no outcome is asked for.
    pub(crate) fn is_unused(&self) -> bool {
        self.entries.is_empty() && self.reserved.len() == 0
    }

    /// Returns the length of the longest frame above `max_message_bytes` that may be pushed; 0
    /// is none.
    pub(crate) fn longest(&self) -> usize {
        // An upper bound: that frame may have left already. Only an empty mailbox certainly has
        // none.
        if self.entries.is_empty() { 0 } else { self.longest }
    }

    /// Notes that a restored frame of this length is longer than is accepted now.
    pub(crate) fn holds_longer(&mut self, len: usize) {
        self.longest = self.longest.max(len);
    }

    /// Numbers entries from `seq` on.
    pub(crate) fn begin_at(&mut self, seq: u64) {
        self.next_seq = seq;
        self.reserved_to = self.reserved_to.max(seq);
    }

    /// Adds an entry at the end and returns its number, which is also set in the entry.
    pub(crate) fn push(&mut self, mut entry: Entry) -> u64 {
        entry.seq = self.next_seq;
        self.next_seq += 1;
        self.count(&entry);
        let seq = entry.seq;
        if entry.expires_at != NEVER {
            self.expiries.add(entry.expires_at, seq);
        }
        self.entries.push_back(entry);
        seq
    }

    /// Puts an entry of the log back in the order of its number. It cannot expire until
    /// [`Mailbox::expires_by`] is called.
    pub(crate) fn restore(&mut self, entry: Entry) {
        self.next_seq = self.next_seq.max(entry.seq + 1);
        // Copies that compaction made do not come in the order of their numbers.
        match self.entries.binary_search_by_key(&entry.seq, |entry| entry.seq) {
            // A copy that compaction made: the record before it is about to be deleted.
            Ok(index) => self.entries[index].position = entry.position,
            Err(index) => {
                self.count(&entry);
                // By a quarter: a start restores all mailboxes at once. Doubling would take half as
                // much again on average, and `shrink` does not touch a table that is at least a
                // quarter full.
                if self.entries.len() == self.entries.capacity() {
                    self.entries.reserve_exact(self.entries.len() / 4 + 4);
                }
                self.entries.insert(index, entry);
            }
        }
    }

    fn count(&mut self, entry: &Entry) {
        self.totals += entry.totals(self.is_anonymous);
        self.cached += entry.cached_bytes();
        if entry.is_outcome() {
            self.outcomes.messages += 1;
            self.outcomes.bytes += entry.len as usize;
            return;
        }
        if entry.receipt() {
            self.totals += entry.reserve();
        }
        if let Some(shares) = &mut self.shares {
            shares.add(entry);
        }
    }

    /// Returns the load of the messages, which count toward the quota; outcomes do not.
    fn load(&self) -> Load {
        let Totals { messages, bytes, .. } = self.totals;
        Load { messages, bytes }.without(self.outcomes)
    }

    /// Returns whether a message of `len` bytes is within the quota.
    pub(crate) fn has_room(&self, len: usize, quota: &Quota) -> bool {
        quota.has_room(self.load(), len)
    }

    /// Returns whether the message is also within its sender's share of the quota.
    #[inline]
    pub(crate) fn is_within_share(&mut self, from: DeviceId, len: usize, quota: &Quota) -> bool {
        let load = self.load();
        // Nobody can be above a share yet, so nothing needs to be counted.
        if self.shares.is_none() && quota.is_free_for_all(load, len) {
            return true;
        }
        self.judge_share(from, len, load, quota)
    }

    #[cold]
    fn judge_share(&mut self, from: DeviceId, len: usize, load: Load, quota: &Quota) -> bool {
        let entries = &self.entries;
        let shares = self.shares.get_or_insert_with(|| {
            let waiting = entries.iter().filter(|entry| entry.waits());
            Box::new(Shares::counted(quota, waiting))
        });
        let may_add = shares.may_add(quota, load, from, len);
        // Counting may have begun because of one long message, while little waits.
        self.end_shares();
        may_add
    }

    /// Stops counting shares once they do not matter any more.
    #[inline]
    fn end_shares(&mut self) {
        if self.shares.is_some() {
            let load = self.load();
            self.shares.take_if(|shares| shares.is_over(load));
        }
    }

    /// Reserves room for the outcome of a message to `receiver`.
    ///
    /// # Errors
    ///
    /// The bound that leaves no room.
    pub(crate) fn reserve_outcome(
        &mut self,
        receiver: DeviceId,
        quota: &Quota,
    ) -> Result<(), OutcomesFull> {
        self.reserved.try_add(receiver, self.outcomes.messages, quota)
    }

    /// Reserves room for an outcome that will come, whatever the bound.
    pub(crate) fn expect_outcome(&mut self, receiver: DeviceId) {
        self.reserved.add(receiver);
    }

    /// Releases the room reserved for an outcome, or uses it.
    pub(crate) fn release_outcome(&mut self, receiver: DeviceId) {
        self.reserved.remove(receiver);
    }

    /// Sets memory aside for one of the reserved outcomes.
    pub(crate) fn reserve_memory(&mut self) {
        self.reserved_in_memory += 1;
        self.totals += self.memory_of(1);
    }

    /// Releases the memory set aside for an outcome, or uses it.
    pub(crate) fn release_memory(&mut self) {
        // There is none for an outcome that a device of this id asked for before it ended.
        if self.reserved_in_memory > 0 {
            self.reserved_in_memory -= 1;
            self.totals -= self.memory_of(1);
        }
    }

    /// Returns the memory set aside for this many reserved outcomes.
    fn memory_of(&self, reserved: usize) -> Totals {
        let memory = reserved * OUTCOME_MEMORY;
        let of_anonymous = if self.is_anonymous { memory } else { 0 };
        let anonymous = OfAnonymous { memory: of_anonymous, ..OfAnonymous::default() };
        Totals { memory, anonymous, ..Totals::default() }
    }

    #[inline]
    fn index_of(&self, seq: u64) -> Option<usize> {
        index_of(&self.entries, seq)
    }

    pub(crate) fn find(&self, seq: u64) -> Option<&Entry> {
        find(&self.entries, seq)
    }

    pub(crate) fn find_mut(&mut self, seq: u64) -> Option<&mut Entry> {
        let index = self.index_of(seq)?;
        self.entries.get_mut(index)
    }

    /// Takes a waiting entry out of the mailbox and returns it; `None` if it is out already.
    pub(crate) fn take(&mut self, seq: u64) -> Option<Taken> {
        let index = self.index_of(seq)?;
        let taken = self.take_at(index)?;
        self.tidy();
        Some(taken)
    }

    /// Takes out everything that waits.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Taken> {
        (0..self.entries.len()).filter_map(|index| self.take_at(index))
    }

    fn take_at(&mut self, index: usize) -> Option<Taken> {
        let entry = &mut self.entries[index];
        if !entry.waits() {
            return None;
        }
        self.totals -= entry.totals(self.is_anonymous);
        if entry.is_outcome() {
            self.outcomes.messages -= 1;
            self.outcomes.bytes -= entry.len as usize;
        } else if let Some(shares) = &mut self.shares {
            shares.remove(entry);
        }
        if entry.is_in_flight {
            entry.is_in_flight = false;
            self.in_flight -= 1;
        }
        let maybe_seen = entry.seq <= self.pushed_to;
        let (seq, from) = (entry.seq, entry.from);
        let receipt = entry.receipt();
        if receipt {
            self.totals -= entry.reserve();
        }
        let content = entry.content.as_ref().filter(|_| receipt);
        let id = content.map(|content| content.id().into());
        let is_stored = entry.is_stored();
        // Before the state changes, on which this depends.
        self.cached -= entry.cached_bytes();
        // One that was pushed in this session need not hold back what lies behind it, which may be
        // pushed already. Should a crash bring it back, the client acks it by its `last_seq`.
        let may_be_seen = entry.seq <= self.cursor.max(self.acked_to);
        entry.state = if is_stored && !may_be_seen { State::Leaving } else { State::Gone };
        self.gone += usize::from(entry.state == State::Gone);
        entry.content = None;
        let is_outcome = entry.is_outcome();
        let is_of_ephemeral = entry.is_of_ephemeral();
        Some(Taken { seq, from, id, receipt, maybe_seen, is_stored, is_outcome, is_of_ephemeral })
    }

    /// Notes that the record of an entry's removal is synced: the entry is gone.
    pub(crate) fn settle(&mut self, seq: u64) {
        if let Some(index) = self.index_of(seq)
            && let Some(entry) = self.entries.get_mut(index)
            && entry.state == State::Leaving
        {
            entry.state = State::Gone;
            self.gone += 1;
        }
        self.tidy();
    }

    /// Drops entries that are gone, and memory that is not needed any more.
    #[inline]
    fn tidy(&mut self) {
        if self.gone > 0 {
            self.drop_gone();
        }
        shrink(&mut self.entries, ENTRIES_KEPT);
        self.end_shares();
        self.expiries.prune(self.totals.messages, |seq| waits(&self.entries, seq));
    }

    /// Gives back the memory that is kept for what may come, as its device is away.
    pub(crate) fn rest(&mut self) {
        shrink(&mut self.entries, 0);
        self.expiries.shrink(0);
        self.reserved.rest();
    }

    /// Drops what is gone at the front, and in the middle once it is most.
    fn drop_gone(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.state == State::Gone) {
            self.entries.pop_front();
            self.gone -= 1;
        }
        // At least half of the entries, so that looking at all of them costs a constant time for
        // each that is dropped.
        if self.gone > 2 * KEPT && 2 * self.gone > self.entries.len() {
            self.entries.retain(|entry| entry.state != State::Gone);
            self.gone = 0;
        }
    }

    /// Takes out everything up to `seq`; returns what that was.
    pub(crate) fn ack(&mut self, seq: u64) -> Acked {
        let mut acked = Acked::default();
        // First: `take_at` asks how far the device has acked.
        self.acked_to = self.acked_to.max(seq);
        self.ack_plain(seq, &mut acked);
        for index in 0..self.entries.len() {
            if self.entries[index].seq > seq {
                break;
            }
            if let Some(taken) = self.take_at(index) {
                acked.messages += 1;
                acked.outcomes += usize::from(taken.is_outcome);
                acked.any_stored |= taken.is_stored;
                if taken.receipt {
                    acked.with_receipt.push(taken);
                }
            }
        }
        self.tidy();
        acked
    }

    /// Acks entries from the front up to `seq`, as [`Mailbox::ack`] does, as long as they are in
    /// flight and have no receipt: usually this is true of all.
    #[inline]
    fn ack_plain(&mut self, seq: u64, acked: &mut Acked) {
        while let Some(entry) = self.entries.front() {
            let is_plain = entry.is_in_flight && entry.kind == Kind::Message;
            if entry.seq > seq || !is_plain || entry.state != State::Ready {
                break;
            }
            self.totals -= entry.totals(self.is_anonymous);
            self.cached -= entry.cached_bytes();
            self.in_flight -= 1;
            if let Some(shares) = &mut self.shares {
                shares.remove(entry);
            }
            acked.messages += 1;
            acked.any_stored |= entry.is_stored();
            self.entries.pop_front();
        }
    }

    /// Returns what to do next, with at most `in_flight_max` entries ahead of the acks.
    ///
    /// A device of the text protocol is shown no outcomes: they wait until it connects by v1.
    pub(crate) fn next(&self, in_flight_max: usize, is_text: bool) -> Next {
        if self.in_flight >= in_flight_max {
            return Next::Wait;
        }
        let from = self.unpushed_from();
        for (index, entry) in self.entries.range(from..).enumerate() {
            let index = from + index;
            match entry.state {
                State::Gone => {}
                // A crash could still bring it back. Then it would come after the entries behind
                // it, or never: an ack of one of those covers its number, too.
                State::Leaving => return Next::Wait,
                _ if is_text && entry.is_outcome() => {}
                // Not passed over: messages come in the order of their numbers, and an ack covers
                // all numbers below its own.
                State::Unsynced => return Next::Wait,
                // After a crash the number could be given to another message.
                State::Ready if !entry.is_stored() && entry.seq >= self.reserved_to => {
                    return Next::Wait;
                }
                State::Ready if entry.has_content() => return Next::Push(index),
                State::Ready => return Next::Fetch(index),
            }
        }
        Next::Wait
    }

    /// Returns the index of the first entry behind the cursor.
    #[inline]
    fn unpushed_from(&self) -> usize {
        let is_pushed = |entry: &Entry| entry.seq <= self.cursor;
        let last = self.entries.len().saturating_sub(1);
        // Usually there is none, or it is the last entry: no need to search.
        if self.entries.back().is_none_or(is_pushed) {
            return self.entries.len();
        }
        if last == 0 || is_pushed(&self.entries[last - 1]) {
            return last;
        }
        self.entries.partition_point(is_pushed)
    }

    /// Returns whether everything was pushed in this session.
    #[inline]
    pub(crate) fn is_all_pushed(&self) -> bool {
        self.entries.back().is_none_or(|entry| entry.seq <= self.cursor)
    }

    /// Returns the entries from `index` on whose contents are to be fetched: at most `entries_max`,
    /// and none after `bytes_max` bytes.
    pub(crate) fn to_fetch(
        &self,
        index: usize,
        entries_max: usize,
        bytes_max: usize,
    ) -> impl Iterator<Item = &Entry> {
        let mut bytes = 0;
        self.entries
            .iter()
            .skip(index)
            .filter(|entry| entry.state == State::Ready && !entry.has_content())
            .take(entries_max)
            .take_while(move |entry| {
                // The sum without the entry's own length: the first one is fetched however long it
                // is.
                let had = bytes;
                bytes += entry.len as usize;
                had < bytes_max
            })
    }

    pub(crate) fn at(&self, index: usize) -> &Entry {
        &self.entries[index]
    }

    /// Notes that the entry at `index` was pushed.
    pub(crate) fn pushed(&mut self, index: usize) {
        self.entries[index].is_in_flight = true;
        self.cursor = self.entries[index].seq;
        self.pushed_to = self.pushed_to.max(self.cursor);
        self.in_flight += 1;
    }

    /// Returns the messages that were pushed in this session and wait for their ack.
    pub(crate) fn pushed_messages(&self) -> Vec<u64> {
        let is_pushed = |entry: &&Entry| entry.seq <= self.cursor;
        self.entries
            .iter()
            .take_while(is_pushed)
            .filter(|entry| entry.is_in_flight && !entry.is_outcome())
            .map(|entry| entry.seq)
            .collect()
    }

    /// Returns waiting entries whose time is over, at most `max` and each only once, and when the
    /// next one expires.
    pub(crate) fn expired(&mut self, now: Moment, max: usize) -> (Vec<u64>, Option<Moment>) {
        let mut over = Vec::new();
        while over.len() < max
            && let Some(seq) = self.expiries.take_over(now)
        {
            // One that is not synced is judged when it is (`entry_synced`).
            if self.find(seq).is_some_and(|entry| entry.state == State::Ready) {
                over.push(seq);
            }
        }
        (over, self.next_expiry())
    }

    /// Returns when the next of the waiting entries expires.
    pub(crate) fn next_expiry(&mut self) -> Option<Moment> {
        self.expiries.next(|seq| waits(&self.entries, seq))
    }

    /// Forgets what was pushed in the session that ended: the next one is pushed everything again.
    pub(crate) fn rewind(&mut self) {
        self.cursor = 0;
        self.in_flight = 0;
        for entry in &mut self.entries {
            entry.is_in_flight = false;
        }
    }

    /// Returns the number of entries that wait for the device.
    pub(crate) fn waiting(&self) -> usize {
        self.totals.messages
    }

    /// Returns the sums over the entries that wait, with what is set aside for outcomes.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// Notes the position of the copy of an entry's record.
    pub(crate) fn moved(&mut self, seq: u64, position: Position) {
        if let Some(entry) = self.find_mut(seq) {
            entry.position = position;
        }
    }

    /// Notes that the record of an entry is synced and lies at `position`: the entry may be seen.
    pub(crate) fn synced(&mut self, seq: u64, position: Position) -> Option<&Entry> {
        let index = self.index_of(seq)?;
        let entry = &mut self.entries[index];
        // Counted anew below: it depends on state and position.
        self.cached -= entry.cached_bytes();
        entry.position = position;
        if entry.state == State::Unsynced {
            entry.state = State::Ready;
        }
        self.cached += entry.cached_bytes();
        self.entries.get(index)
    }

    /// Gives an entry its content, if it still waits and has none.
    pub(crate) fn fetched(&mut self, seq: u64, content: Content) {
        let Some(index) = self.index_of(seq) else { return };
        let entry = &mut self.entries[index];
        if entry.state == State::Ready && !entry.has_content() {
            entry.content = Some(content);
            self.cached += entry.cached_bytes();
        }
    }

    /// Drops the content of an entry, if the store has it too.
    pub(crate) fn drop_content(&mut self, seq: u64) {
        if let Some(index) = self.index_of(seq) {
            self.drop_content_at(index);
        }
    }

    /// As [`Mailbox::drop_content`], by index.
    #[inline]
    pub(crate) fn drop_content_at(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        if entry.is_stored() {
            self.cached -= entry.cached_bytes();
            entry.drop_content();
            self.cached += entry.cached_bytes();
        }
    }

    /// Drops all contents that the store has too.
    pub(crate) fn drop_contents(&mut self) {
        for index in 0..self.entries.len() {
            self.drop_content_at(index);
        }
    }

    /// Returns the bytes of contents that are in memory although the store has them too.
    pub(crate) fn cached(&self) -> usize {
        self.cached
    }

    pub(crate) fn acked_to(&self) -> u64 {
        self.acked_to
    }

    pub(crate) fn pushed_to(&self) -> u64 {
        self.pushed_to
    }

    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub(crate) fn reserved_to(&self) -> u64 {
        self.reserved_to
    }

    pub(crate) fn reserve_to(&mut self, seq: u64) {
        self.reserved_to = self.reserved_to.max(seq);
    }

    /// Raises the marks to the ones in a record.
    pub(crate) fn restore_marks(&mut self, reserved_to: u64, acked_to: u64, pushed_to: u64) {
        self.reserved_to = self.reserved_to.max(reserved_to);
        // Any number below it may have been shown under a message that was in memory only.
        self.next_seq = self.next_seq.max(reserved_to);
        self.acked_to = self.acked_to.max(acked_to);
        self.pushed_to = self.pushed_to.max(pushed_to);
    }

    /// Resolves pessimistically what is not known: everything that is here may have been pushed.
    pub(crate) fn all_may_have_been_pushed(&mut self) {
        self.pushed_to = self.pushed_to.max(self.next_seq - 1);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Returns the number of outcomes that wait or are reserved.
    pub(crate) fn outcomes(&self) -> usize {
        self.outcomes.messages + self.reserved.len()
    }

    /// Turns the stamps that a replay left in the entries into moments, at which they expire.
    pub(crate) fn expires_by(&mut self, clock: StampClock) {
        let expire = |entry: &&mut Entry| entry.expires_at != NEVER && entry.waits();
        let expiring = self.entries.iter_mut().filter(expire);
        self.expiries = Expiries::of(expiring.map(|entry| {
            entry.expires_at = clock.moment(entry.expires_at.ms());
            (entry.expires_at, entry.seq)
        }));
    }

    /// Counts the entries anew; returns the totals, or the first sum that is kept and differs.
    pub(crate) fn audit(&self) -> Result<Totals, String> {
        let waits = |entry: &&Entry| entry.waits();
        let outcomes = self.entries.iter().filter(waits).filter(|entry| entry.is_outcome()).count();
        let mut totals = Totals::default();
        for entry in self.entries.iter().filter(waits) {
            totals += entry.totals(self.is_anonymous);
        }
        for entry in self.entries.iter().filter(waits).filter(|entry| entry.receipt()) {
            totals += entry.reserve();
        }
        totals += self.memory_of(self.reserved_in_memory);
        let in_flight = self.entries.iter().filter(|entry| entry.is_in_flight).count();
        let cached: usize = self.entries.iter().map(Entry::cached_bytes).sum();
        let counted = (totals, in_flight, cached);
        let kept = (self.totals, self.in_flight, self.cached);
        if counted != kept {
            return Err(format!("totals, in flight, cached: {counted:?}, kept {kept:?}"));
        }
        if outcomes != self.outcomes.messages {
            return Err(format!("{outcomes} outcomes, kept {:?}", self.outcomes));
        }
        self.expiries.audit(self.totals.messages)?;
        self.reserved.audit()?;
        shrink::audit("entries", &self.entries, ENTRIES_KEPT)?;
        if self.gone > 2 * KEPT && 2 * self.gone > self.entries.len() {
            return Err(format!("{} of {} entries are gone", self.gone, self.entries.len()));
        }
        if let Some(shares) = &self.shares {
            shares.audit(self.load(), self.entries.iter().filter(waits))?;
        }
        Ok(totals)
    }

    /// Gives back memory that a replay has left over.
    pub(crate) fn shrink(&mut self) {
        self.entries.retain(|entry| entry.state != State::Gone);
        self.gone = 0;
        self.entries.shrink_to_fit();
    }
}

/// Returns the index of an entry.
#[inline]
fn index_of(entries: &VecDeque<Entry>, seq: u64) -> Option<usize> {
    // Usually there are no gaps, and it follows from the number.
    let index = seq.checked_sub(entries.front()?.seq)? as usize;
    if entries.get(index).is_some_and(|entry| entry.seq == seq) {
        return Some(index);
    }
    entries.binary_search_by_key(&seq, |entry| entry.seq).ok()
}

fn find(entries: &VecDeque<Entry>, seq: u64) -> Option<&Entry> {
    entries.get(index_of(entries, seq)?)
}

fn waits(entries: &VecDeque<Entry>, seq: u64) -> bool {
    find(entries, seq).is_some_and(Entry::waits)
}

/// An entry that left the mailbox.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) seq: u64,
    pub(crate) from: DeviceId,
    /// The message's id, if its sender asked for its outcome.
    pub(crate) id: Option<Box<str>>,
    pub(crate) receipt: bool,
    pub(crate) maybe_seen: bool,
    pub(crate) is_stored: bool,
    pub(crate) is_outcome: bool,
    /// True if its sender asked for its outcome and is ephemeral.
    pub(crate) is_of_ephemeral: bool,
}

/// The entries that an ack took out.
#[derive(Debug, Default)]
pub(crate) struct Acked {
    /// Number of entries.
    pub(crate) messages: usize,
    /// Number of outcomes among them.
    pub(crate) outcomes: usize,
    pub(crate) any_stored: bool,
    pub(crate) with_receipt: Vec<Taken>,
}
