//! A mailbox: messages in order under rising numbers, and one cursor for live delivery, resume and
//! what came while the device was away.

use std::collections::VecDeque;

use switchboard_proto::DeviceId;

use super::expiries::Expiries;
use super::reserved::{OutcomesFull, Reserved};
use super::shares::{Load, Quota, Shares};
use super::totals::{OUTCOME_MEMORY, OfAnonymous, Totals, memory_of};
use super::{Content, Position};
use crate::shrink::{self, KEPT, shrink};
use crate::{Moment, RECEIPT_BYTES, StampClock};

/// What waits for one device.
///
/// An entry leaves by ack, refusal, expiry or cancellation. One whose sender asked for an outcome
/// stays, *awaiting its outcome*, until that is recorded.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// By rising `seq`; gaps are possible.
    entries: VecDeque<Entry>,
    /// The number that the next entry gets.
    next_seq: u64,
    /// Numbers below this one may be shown though no record holds them: they are not given again.
    reserved_to: u64,
    /// The device has acked everything up to here.
    acked_to: u64,
    /// The greatest number that was ever pushed.
    pushed_to: u64,
    /// The greatest number that was pushed in this session.
    cursor: u64,
    /// Entries that were pushed in this session and wait for their ack.
    in_flight: usize,
    /// Entries that are gone and wait for those before them.
    gone: usize,
    /// Its device has no name.
    is_anonymous: bool,
    /// Entries that wait for the device, and what is set aside for outcomes.
    totals: Totals,
    /// Those of them that are outcomes, which count by themselves: what others send leaves the room
    /// for them alone.
    outcomes: Load,
    /// Who sent what waits, while the mailbox is so full that it matters.
    shares: Option<Box<Shares>>,
    /// Which messages expire when.
    expiries: Expiries,
    /// Outcomes that this device asked for and that have room reserved.
    reserved: Reserved,
    /// Those of them whose outcomes will be in memory only.
    reserved_in_memory: usize,
    /// Bytes of what is here although the store has it too.
    cached: usize,
    /// The longest frame that was restored and is above `max_message_bytes`, which was greater when
    /// it was accepted; 0 is none.
    longest: usize,
}

/// One message, or one outcome of a message that this device sent. A million of these may wait: 56
/// bytes.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    /// The sender of a message.
    pub(crate) from: DeviceId,
    /// Where its record lies; nowhere while it is not synced, and for what is in memory only.
    pub(crate) position: Position,
    /// By the server's uptime, which no clock jump moves.
    pub(crate) expires_at: Moment,
    pub(crate) len: u32,
    pub(crate) state: State,
    pub(crate) kind: Kind,
    pub(crate) kept: Kept,
    /// It was pushed in this session.
    pub(crate) is_in_flight: bool,
    pub(crate) content: Option<Content>,
}

const _: () = assert!(size_of::<Entry>() == 56);

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message.
    Message,
    /// A message whose sender asked for its outcome.
    WithReceipt,
    /// The same, of an ephemeral sender: its outcome is not for the next device of that id.
    ReceiptOfEphemeral,
    /// An outcome.
    Outcome,
}

impl Kind {
    /// Of a message; of its sender's ids only those of an ephemeral one are not kept, where a
    /// `receipt` can be asked for.
    pub(crate) fn message(receipt: bool, keeps_id: bool) -> Kind {
        match (receipt, keeps_id) {
            (false, _) => Kind::Message,
            (true, true) => Kind::WithReceipt,
            (true, false) => Kind::ReceiptOfEphemeral,
        }
    }
}

/// Where an entry is beside this mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nowhere.
    Here,
    /// Its record is or will be in the store.
    Stored,
    /// And was copied to the end of the log, perhaps behind what says that it is gone.
    Moved,
}

impl Kept {
    pub(crate) fn stored(is_stored: bool) -> Kept {
        if is_stored { Kept::Stored } else { Kept::Here }
    }
}

/// How far an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its record is not synced: must not be seen.
    Unsynced,
    /// May be pushed.
    Ready,
    /// Out of the mailbox for the device; its outcome is not recorded yet.
    AwaitsOutcome,
    /// Out of the mailbox, never pushed, and the record that says so is not synced. Nothing behind
    /// it may be seen: a crash could bring it back, and it would come too late.
    Leaving,
    /// Gone; waits for those before it.
    Gone,
}

/// Entries that a mailbox keeps memory for while its device is there: bursts of twice as many that are
/// acked at once allocate nothing.
const ENTRIES_KEPT: usize = 32;

/// The moment that never comes.
pub(crate) const NEVER: Moment = Moment::from_ms(u64::MAX);

/// What to do next for a device that is there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Push the entry at this index.
    Push(usize),
    /// Its content, and perhaps that of those behind it, must be fetched first.
    Fetch(usize),
    /// Nothing: all is pushed, or something must happen first.
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

    /// Returns whether nothing waits, no outcome is asked for and none is to be recorded.
    pub(crate) fn is_unused(&self) -> bool {
        self.entries.is_empty() && self.reserved.len() == 0
    }

    /// See the field.
    pub(crate) fn longest(&self) -> usize {
        if self.entries.is_empty() { 0 } else { self.longest }
    }

    /// Notes that a restored frame is longer than any may be now.
    pub(crate) fn holds_longer(&mut self, len: usize) {
        self.longest = self.longest.max(len);
    }

    /// Begins to number here.
    pub(crate) fn begin_at(&mut self, seq: u64) {
        self.next_seq = seq;
        self.reserved_to = self.reserved_to.max(seq);
    }

    /// Adds an entry at the end; returns its number. `entry.seq` is set here.
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

    /// Puts an entry back where its number says; one with this number takes the new place. None of them
    /// expires before [`Mailbox::expires_by`].
    pub(crate) fn restore(&mut self, entry: Entry) {
        self.next_seq = self.next_seq.max(entry.seq + 1);
        match self.entries.binary_search_by_key(&entry.seq, |entry| entry.seq) {
            Ok(index) => self.entries[index].position = entry.position,
            Err(index) => {
                self.count(&entry);
                // A start restores all mailboxes at once: doubling would take half as much again,
                // and give little of it back.
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

    /// The messages that count toward the quota.
    fn load(&self) -> Load {
        let Totals { messages, bytes, .. } = self.totals;
        Load { messages, bytes }.without(self.outcomes)
    }

    /// Returns whether a message of `len` bytes is within the quota.
    pub(crate) fn has_room(&self, len: usize, quota: &Quota) -> bool {
        quota.has_room(self.load(), len)
    }

    /// Returns whether it is also within its sender's share of the quota.
    #[inline]
    pub(crate) fn is_within_share(&mut self, from: DeviceId, len: usize, quota: &Quota) -> bool {
        let load = self.load();
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
        // One long message was judged, and little waits.
        self.end_shares();
        may_add
    }

    /// Stops counting who sent what waits, once it does not matter any more.
    #[inline]
    fn end_shares(&mut self) {
        if self.shares.is_some() {
            let load = self.load();
            self.shares.take_if(|shares| shares.is_over(load));
        }
    }

    /// Reserves room for the outcome of a message to `receiver`, if there is some.
    pub(crate) fn reserve_outcome(
        &mut self,
        receiver: DeviceId,
        quota: &Quota,
    ) -> Result<(), OutcomesFull> {
        self.reserved.try_add(receiver, self.outcomes.messages, quota)
    }

    /// The same, however much there is.
    pub(crate) fn restore_reserved(&mut self, receiver: DeviceId) {
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

    /// Gives it back, or uses it. There is none for an outcome that a device of this id asked for
    /// before it ended.
    pub(crate) fn release_memory(&mut self) {
        if self.reserved_in_memory > 0 {
            self.reserved_in_memory -= 1;
            self.totals -= self.memory_of(1);
        }
    }

    /// Memory set aside for this many reserved outcomes.
    fn memory_of(&self, reserved: usize) -> Totals {
        let memory = reserved * OUTCOME_MEMORY;
        let of_anonymous = if self.is_anonymous { memory } else { 0 };
        let anonymous = OfAnonymous { stored: 0, memory: of_anonymous };
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

    /// Takes a waiting entry out. One with a receipt stays until its outcome is recorded; returns whether it is one.
    ///
    /// Nothing happens to an entry that is already out.
    pub(crate) fn take(&mut self, seq: u64) -> Option<Taken> {
        let index = self.index_of(seq)?;
        let taken = self.take_at(index)?;
        self.tidy();
        Some(taken)
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
        let content = entry.content.as_ref().filter(|_| entry.receipt());
        let id = content.map(|content| content.id().into());
        let is_stored = entry.is_stored();
        self.cached -= entry.cached_bytes();
        let may_be_seen = entry.seq <= self.cursor.max(self.acked_to);
        entry.state = match entry.receipt() {
            true => State::AwaitsOutcome,
            false if entry.is_stored() && !may_be_seen => State::Leaving,
            false => State::Gone,
        };
        self.gone += usize::from(entry.state == State::Gone);
        if !entry.receipt() {
            entry.content = None;
        }
        let receipt = entry.receipt();
        let is_outcome = entry.is_outcome();
        let is_of_ephemeral = entry.is_of_ephemeral();
        Some(Taken { seq, from, id, receipt, maybe_seen, is_stored, is_outcome, is_of_ephemeral })
    }

    /// It is recorded that an entry is out, and how it ended: it is gone. Returns whether a copy of
    /// its record may lie behind that of the outcome.
    pub(crate) fn settle(&mut self, seq: u64) -> bool {
        let mut is_moved = false;
        if let Some(index) = self.index_of(seq)
            && let Some(entry) = self.entries.get_mut(index)
            && matches!(entry.state, State::AwaitsOutcome | State::Leaving)
        {
            if entry.state == State::AwaitsOutcome {
                self.totals -= entry.reserve();
            }
            entry.state = State::Gone;
            entry.content = None;
            is_moved = entry.kept == Kept::Moved;
            self.gone += 1;
        }
        self.tidy();
        is_moved
    }

    /// Nobody waits for the outcome of this entry any more. Returns whether its record must be taken out.
    pub(crate) fn unwanted(&mut self, seq: u64) -> bool {
        let Some(index) = self.index_of(seq) else { return false };
        let entry = &mut self.entries[index];
        if entry.state != State::AwaitsOutcome || !entry.is_stored() {
            return false;
        }
        self.totals -= entry.reserve();
        entry.state = State::Leaving;
        true
    }

    /// Drops what is gone at the front, and in the middle when it is most.
    #[inline]
    fn tidy(&mut self) {
        if self.gone > 0 {
            self.drop_gone();
        }
        shrink(&mut self.entries, ENTRIES_KEPT);
        self.end_shares();
        self.expiries.prune(self.totals.messages, |seq| waits(&self.entries, seq));
    }

    /// Its device is away: nothing is kept for what may come.
    pub(crate) fn rest(&mut self) {
        shrink(&mut self.entries, 0);
        self.expiries.shrink(0);
        self.reserved.rest();
    }

    fn drop_gone(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.state == State::Gone) {
            self.entries.pop_front();
            self.gone -= 1;
        }
        if self.gone > 2 * KEPT && 2 * self.gone > self.entries.len() {
            self.entries.retain(|entry| entry.state != State::Gone);
            self.gone = 0;
        }
    }

    /// Takes out everything up to `seq`; returns what was taken with a receipt.
    pub(crate) fn ack(&mut self, seq: u64) -> Acked {
        let mut acked = Acked::default();
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

    /// As [`Mailbox::ack`], for as long as what is at the front was just pushed and has no receipt:
    /// mostly that is all.
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

    /// The entry to push next, with at most `in_flight_max` ahead of the acks.
    ///
    /// A device of the text protocol is shown no outcomes: they wait for it to come by v1.
    pub(crate) fn next(&self, in_flight_max: usize, is_text: bool) -> Next {
        if self.in_flight >= in_flight_max {
            return Next::Wait;
        }
        let from = self.unpushed_from();
        for (index, entry) in self.entries.range(from..).enumerate() {
            let index = from + index;
            match entry.state {
                State::Gone => {}
                State::AwaitsOutcome if !entry.is_stored() || entry.seq <= self.acked_to => {}
                State::AwaitsOutcome | State::Leaving => return Next::Wait,
                _ if is_text && entry.is_outcome() => {}
                State::Unsynced => return Next::Wait,
                State::Ready if !entry.is_stored() && entry.seq >= self.reserved_to => {
                    return Next::Wait;
                }
                State::Ready if entry.has_content() => return Next::Push(index),
                State::Ready => return Next::Fetch(index),
            }
        }
        Next::Wait
    }

    /// The index of the first entry behind the cursor; mostly it is the last, or there is none.
    #[inline]
    fn unpushed_from(&self) -> usize {
        let is_pushed = |entry: &Entry| entry.seq <= self.cursor;
        let last = self.entries.len().saturating_sub(1);
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

    /// The entries from `index` on whose content is to be fetched: at most `entries_max`, and
    /// stopping at `bytes_max`.
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

    /// The messages that were pushed in this session and wait for their ack.
    pub(crate) fn pushed_messages(&self) -> Vec<u64> {
        let is_pushed = |entry: &&Entry| entry.seq <= self.cursor;
        self.entries
            .iter()
            .take_while(is_pushed)
            .filter(|entry| entry.is_in_flight && !entry.is_outcome())
            .map(|entry| entry.seq)
            .collect()
    }

    /// Returns the waiting entries whose time is over, and when the next one's is. They are named once.
    pub(crate) fn expired(&mut self, now: Moment) -> (Vec<u64>, Option<Moment>) {
        let mut over = Vec::new();
        while let Some(seq) = self.expiries.take_over(now) {
            // One that is not synced is judged when it is.
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

    /// A session begins: everything that waits is pushed again.
    pub(crate) fn rewind(&mut self) {
        self.cursor = 0;
        self.in_flight = 0;
        for entry in &mut self.entries {
            entry.is_in_flight = false;
        }
    }

    /// Entries that wait for the device.
    pub(crate) fn waiting(&self) -> usize {
        self.totals.messages
    }

    /// Sums over them.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// An entry's record is being copied.
    pub(crate) fn moves(&mut self, seq: u64) {
        if let Some(entry) = self.find_mut(seq) {
            entry.kept = Kept::Moved;
        }
    }

    /// An entry's record was copied.
    pub(crate) fn moved(&mut self, seq: u64, position: Position) {
        if let Some(entry) = self.find_mut(seq) {
            entry.position = position;
        }
    }

    /// Entries that were acked and whose outcome is not recorded, as they were taken.
    pub(crate) fn awaiting_outcome(&self) -> impl Iterator<Item = Taken> {
        self.entries.iter().filter(|entry| entry.state == State::AwaitsOutcome).map(|entry| Taken {
            seq: entry.seq,
            from: entry.from,
            id: entry.content.as_ref().map(|content| content.id().into()),
            receipt: true,
            maybe_seen: true,
            is_stored: entry.is_stored(),
            is_outcome: false,
            is_of_ephemeral: entry.is_of_ephemeral(),
        })
    }

    /// The record of an entry is synced: it may be seen, and lies at `place`.
    pub(crate) fn synced(&mut self, seq: u64, position: Position) -> Option<&Entry> {
        let index = self.index_of(seq)?;
        let entry = &mut self.entries[index];
        self.cached -= entry.cached_bytes();
        if entry.is_stored() {
            entry.position = position;
        }
        if entry.state == State::Unsynced {
            entry.state = State::Ready;
        }
        self.cached += entry.cached_bytes();
        self.entries.get(index)
    }

    /// What was fetched of an entry that still waits.
    pub(crate) fn fetched(&mut self, seq: u64, content: Content) {
        let Some(index) = self.index_of(seq) else { return };
        let entry = &mut self.entries[index];
        if entry.state == State::Ready && !entry.has_content() {
            entry.content = Some(content);
            self.cached += entry.cached_bytes();
        }
    }

    /// Forgets what the store has too of an entry.
    pub(crate) fn drop_content(&mut self, seq: u64) {
        if let Some(index) = self.index_of(seq) {
            self.drop_content_at(index);
        }
    }

    /// See [`Mailbox::drop_content`].
    #[inline]
    pub(crate) fn drop_content_at(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        if entry.is_stored() {
            self.cached -= entry.cached_bytes();
            entry.drop_content();
            self.cached += entry.cached_bytes();
        }
    }

    /// Forgets all that the store has too.
    pub(crate) fn drop_contents(&mut self) {
        for index in 0..self.entries.len() {
            self.drop_content_at(index);
        }
    }

    /// Bytes of what is here although the store has it too.
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

    /// Sets the marks as a record has them.
    pub(crate) fn restore_marks(&mut self, reserved_to: u64, acked_to: u64, pushed_to: u64) {
        self.reserved_to = self.reserved_to.max(reserved_to);
        self.next_seq = self.next_seq.max(reserved_to);
        self.acked_to = self.acked_to.max(acked_to);
        self.pushed_to = self.pushed_to.max(pushed_to);
    }

    /// What a crash leaves unknown: everything that is here may have been pushed.
    pub(crate) fn all_may_have_been_pushed(&mut self) {
        self.pushed_to = self.pushed_to.max(self.next_seq - 1);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Outcomes that wait, and those that are reserved.
    pub(crate) fn outcomes(&self) -> usize {
        self.outcomes.messages + self.reserved.len()
    }

    /// A replay leaves stamps where moments belong.
    pub(crate) fn expires_by(&mut self, clock: StampClock) {
        let expire = |entry: &&mut Entry| entry.expires_at != NEVER && entry.waits();
        let expiring = self.entries.iter_mut().filter(expire);
        self.expiries = Expiries::of(expiring.map(|entry| {
            entry.expires_at = clock.moment(entry.expires_at.ms());
            (entry.expires_at, entry.seq)
        }));
    }

    /// Counts what waits anew; says where a sum that is kept differs.
    pub(crate) fn audit(&self) -> Result<Totals, String> {
        let waits = |entry: &&Entry| entry.waits();
        let outcomes = self.entries.iter().filter(waits).filter(|entry| entry.is_outcome()).count();
        let mut totals = Totals::default();
        for entry in self.entries.iter().filter(waits) {
            totals += entry.totals(self.is_anonymous);
        }
        let is_owing = |entry: &&Entry| entry.waits() || entry.state == State::AwaitsOutcome;
        for entry in self.entries.iter().filter(is_owing).filter(|entry| entry.receipt()) {
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

    /// Gives back memory that a replay left over.
    pub(crate) fn shrink(&mut self) {
        self.entries.retain(|entry| entry.state != State::Gone);
        self.gone = 0;
        self.entries.shrink_to_fit();
    }
}

/// Returns the index of an entry: mostly there are no gaps, and it follows from its number.
#[inline]
fn index_of(entries: &VecDeque<Entry>, seq: u64) -> Option<usize> {
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
    /// Known where an outcome is awaited.
    pub(crate) id: Option<Box<str>>,
    pub(crate) receipt: bool,
    pub(crate) maybe_seen: bool,
    pub(crate) is_stored: bool,
    pub(crate) is_outcome: bool,
    /// Its sender was ephemeral, where an outcome is awaited.
    pub(crate) is_of_ephemeral: bool,
}

/// What an ack took out.
#[derive(Debug, Default)]
pub(crate) struct Acked {
    pub(crate) messages: usize,
    /// How many of them were outcomes.
    pub(crate) outcomes: usize,
    pub(crate) any_stored: bool,
    pub(crate) with_receipt: Vec<Taken>,
}

impl Entry {
    /// Returns whether its sender asked for an outcome.
    pub(crate) fn receipt(&self) -> bool {
        matches!(self.kind, Kind::WithReceipt | Kind::ReceiptOfEphemeral)
    }

    fn is_of_ephemeral(&self) -> bool {
        self.kind == Kind::ReceiptOfEphemeral
    }

    pub(crate) fn is_outcome(&self) -> bool {
        self.kind == Kind::Outcome
    }

    /// Returns whether it is in the mailbox for the device.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.state, State::Ready | State::Unsynced)
    }

    /// Returns whether its record is or will be in the store.
    pub(crate) fn is_stored(&self) -> bool {
        self.kept != Kept::Here
    }

    /// Returns the amount it adds to [`Mailbox::totals`] while it waits; an outcome is for account of the
    /// mailbox's device.
    #[inline]
    fn totals(&self, is_devices_anonymous: bool) -> Totals {
        let takes = memory_of(self.len as usize);
        let (stored, memory) = if self.is_stored() { (takes, 0) } else { (0, takes) };
        let is_anonymous =
            if self.is_outcome() { is_devices_anonymous } else { self.from.is_number() };
        let anonymous =
            if is_anonymous { OfAnonymous { stored, memory } } else { OfAnonymous::default() };
        Totals { messages: 1, bytes: self.len as usize, memory, receipts: 0, anonymous }
    }

    /// Returns the amount it adds to [`Mailbox::totals`], if its sender asked for an outcome, until that
    /// is recorded: what the outcome's records may take in the store.
    fn reserve(&self) -> Totals {
        if !self.is_stored() {
            return Totals::default();
        }
        let stored = if self.from.is_number() { RECEIPT_BYTES } else { 0 };
        let anonymous = OfAnonymous { stored, memory: 0 };
        Totals { receipts: 1, anonymous, ..Totals::default() }
    }

    /// Returns whether what it says is here, and not only in the store.
    pub(crate) fn has_content(&self) -> bool {
        self.content.as_ref().is_some_and(|content| !content.is_bodiless())
    }

    /// Returns the amount it adds to [`Mailbox::cached`].
    fn cached_bytes(&self) -> usize {
        let counts =
            !self.position.is_nowhere() && self.has_content() && self.state == State::Ready;
        if counts { self.len as usize } else { 0 }
    }

    /// Forgets what the store has too; the id stays where an outcome will name it.
    fn drop_content(&mut self) {
        if !self.is_stored() || self.position.is_nowhere() {
            return;
        }
        if !self.receipt() {
            self.content = None;
        } else if let Some(content) = &mut self.content {
            content.drop_body();
        }
    }
}
