//! The exchange of outcomes between two partitions: a numbered outbox on one side, and a watermark
//! on the other.
//!
//! The receiver's partition writes an outcome together with the end of the message, and sends it to
//! the sender's partition under the next number of this pair of partitions. The sender's partition
//! applies it exactly once, in the order of the numbers; when that is recorded, the outcome is
//! settled. Only then does the receiver's partition forget it. So neither needs a record of the
//! other.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;
use switchboard_proto::v1::PublicId;

use super::totals::{OfAnonymous, Totals};
use super::{ExchangeRecord, MessageOutcome, Position};
use crate::directory::RECEIPT_BYTES;
use crate::shrink::{self, KEPT, KEPT_BY_SHARD, shrink};
use crate::{Moment, PartitionId};

/// The exchanges of the partitions of a shard, each with all other partitions, and with itself.
#[derive(Debug, Default)]
pub(crate) struct Exchanges(FxHashMap<Pair, Exchange>);

/// Two partitions, of which one owns the state of the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) own: PartitionId,
    pub(crate) other: PartitionId,
}

/// The state of an exchange as one of the two partitions knows it. Numbers begin at 1.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// Outcomes for the other partition that are not settled, by their numbers.
    outbox: BTreeMap<u64, Pending>,
    /// The number that the next outcome for the other partition gets.
    next: u64,
    /// Number of the first outcome whose record is not synced.
    unsynced: u64,
    /// Outcomes below this number are settled.
    settled_to: u64,
    /// Outcomes of the other partition below this number are applied here.
    applied_to: u64,
    /// Numbers of those among them whose records are not synced, in order.
    applying: VecDeque<u64>,
    /// Time at which the first outcomes are sent again, unless some are settled before; `None` while
    /// all that were sent are settled.
    resend_at: Option<Moment>,
    /// Number of times that they were sent again without any being settled.
    tries: u32,
    /// Outcomes below this number were sent again. Once they are settled, the next ones are sent
    /// again, too.
    resent_to: Option<u64>,
    /// The `settled_to` in the last record of the state.
    recorded_settled_to: u64,
    /// Position of that record; nowhere if there is none.
    recorded_at: Position,
}

/// An outcome on its way to the partition of the sender.
#[derive(Debug)]
pub(crate) struct Pending {
    /// The sender.
    pub(crate) to: DeviceId,
    /// The message's id.
    pub(crate) id: Box<str>,
    pub(crate) outcome: MessageOutcome,
    /// Position of its record; nowhere while that is not synced.
    pub(crate) position: Position,
}

/// An outcome in its exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// The partition that sends it.
    pub source: PartitionId,
    /// Its number.
    pub number: u64,
    /// Number of the one before it that is not settled; 0 if there is none.
    pub before: u64,
}

/// Ways of taking an outcome from another partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is the next one, to be applied now.
    Next,
    /// It was applied before, or others before it are missing: the source is to be told how far
    /// this side is.
    NotNext,
}

/// Time after which outcomes are sent again for the first time. It doubles each time, as the other
/// side may only be waiting for its store.
const RESEND_AFTER: Duration = Duration::from_secs(1);
const RESEND_AFTER_MAX: Duration = Duration::from_secs(64);
/// Most outcomes that are sent again together; the next ones follow when the other side has settled
/// these.
const RESENT_AT_ONCE: usize = 64;

/// Number of settled outcomes after which the state of an exchange is recorded, so that a start
/// does not send them all again.
const SETTLED_UNRECORDED_MAX: u64 = 64;

impl Default for Exchange {
    fn default() -> Exchange {
        Exchange {
            outbox: BTreeMap::new(),
            next: 1,
            unsynced: 1,
            settled_to: 1,
            applied_to: 1,
            applying: VecDeque::new(),
            resend_at: None,
            tries: 0,
            resent_to: None,
            recorded_settled_to: 1,
            recorded_at: Position::NOWHERE,
        }
    }
}

impl Exchanges {
    pub(crate) fn of(&mut self, pair: Pair) -> &mut Exchange {
        self.0.entry(pair).or_default()
    }

    pub(crate) fn find(&self, pair: Pair) -> Option<&Exchange> {
        self.0.get(&pair)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Pair, &Exchange)> {
        self.0.iter().map(|(pair, exchange)| (*pair, exchange))
    }

    /// Returns the pairs whose outcomes are to be sent again, in order.
    pub(crate) fn to_resend(&self, now: Moment) -> Vec<Pair> {
        let is_due = |(pair, exchange): (&Pair, &Exchange)| {
            exchange.resend_at.is_some_and(|at| at <= now).then_some(*pair)
        };
        let mut pairs: Vec<Pair> = self.0.iter().filter_map(is_due).collect();
        pairs.sort_unstable();
        pairs
    }

    /// Returns all pairs, in order.
    pub(crate) fn pairs(&self) -> Vec<Pair> {
        let mut pairs: Vec<Pair> = self.0.keys().copied().collect();
        pairs.sort_unstable();
        pairs
    }

    /// Ends a replay: everything that is in the outboxes is synced.
    pub(crate) fn replayed(&mut self) {
        self.0.values_mut().for_each(|exchange| exchange.unsynced = exchange.next);
    }

    /// Returns the sums over all that is not settled.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for pending in self.0.values().flat_map(|exchange| exchange.outbox.values()) {
            totals += pending.totals();
        }
        totals
    }

    /// Fails if memory is not given back. For tests.
    pub(crate) fn audit(&self) -> Result<(), String> {
        for exchange in self.0.values() {
            shrink::audit("outcomes that are applied", &exchange.applying, KEPT)?;
        }
        shrink::audit("exchanges", &self.0, KEPT_BY_SHARD)
    }
}

impl Exchange {
    /// Adds an outcome for the other partition, and returns its number.
    pub(crate) fn add(&mut self, pending: Pending) -> u64 {
        let number = self.next;
        self.next += 1;
        self.outbox.insert(number, pending);
        number
    }

    /// Notes that the oldest record of an outcome that was not synced until now is synced, at
    /// `position`.
    pub(crate) fn synced(&mut self, position: Position) -> Option<(u64, u64, &Pending)> {
        let number = self.unsynced;
        self.unsynced += 1;
        let before = self.before(number);
        let pending = self.outbox.get_mut(&number)?;
        pending.position = position;
        Some((number, before, pending))
    }

    /// Returns the number of the outcome before this one that is not settled; 0 if there is none.
    fn before(&self, number: u64) -> u64 {
        self.outbox.range(..number).next_back().map_or(0, |(before, _)| *before)
    }

    /// Returns the first outcomes that are not settled: number, the number before, and the outcome.
    pub(crate) fn to_resend(&self) -> impl Iterator<Item = (u64, u64, &Pending)> {
        let mut before = 0;
        let sent = self.outbox.range(..self.unsynced).take(RESENT_AT_ONCE);
        sent.map(move |(number, pending)| {
            (*number, std::mem::replace(&mut before, *number), pending)
        })
    }

    /// Notes that an outcome is sent for the first time; returns the time at which it is sent again.
    pub(crate) fn sent(&mut self, now: Moment) -> Moment {
        *self.resend_at.get_or_insert(now.after(RESEND_AFTER))
    }

    /// Notes that outcomes below this number are sent again; returns the time of the next attempt.
    pub(crate) fn resent(&mut self, now: Moment, to: u64) -> Moment {
        self.resent_to = Some(to);
        let after = RESEND_AFTER.saturating_mul(1 << self.tries.min(31)).min(RESEND_AFTER_MAX);
        self.tries += 1;
        *self.resend_at.insert(now.after(after))
    }

    /// Returns the time at which what is not settled is sent again.
    pub(crate) fn resend_at(&self) -> Option<Moment> {
        self.resend_at
    }

    /// Forgets outcomes below this number, which the other partition has recorded; returns their
    /// sums, and whether the next ones are to be sent again.
    pub(crate) fn settle(&mut self, now: Moment, to: u64) -> (Totals, bool) {
        let mut totals = Totals::default();
        // Nothing that is not synced was sent, whatever the other side says.
        let to = to.min(self.unsynced);
        if to <= self.settled_to {
            return (totals, false);
        }
        while let Some(first) = self.outbox.first_entry().filter(|first| *first.key() < to) {
            totals += first.remove().totals();
        }
        (self.settled_to, self.tries) = (to, 0);
        let is_left = self.outbox.range(..self.unsynced).next().is_some();
        self.resend_at = is_left.then(|| now.after(RESEND_AFTER));
        let is_over = self.resent_to.is_some_and(|resent_to| resent_to <= to);
        if is_over {
            self.resent_to = None;
        }
        (totals, is_over && is_left)
    }

    /// Returns whether enough outcomes were settled since its last record for another one.
    pub(crate) fn is_worth_recording(&self) -> bool {
        self.settled_to - self.recorded_settled_to >= SETTLED_UNRECORDED_MAX
    }

    /// Returns an outcome that is not settled.
    pub(crate) fn pending(&self, number: u64) -> Option<&Pending> {
        self.outbox.get(&number)
    }

    /// Notes the position of the copy of an outcome's record.
    pub(crate) fn moved(&mut self, number: u64, position: Position) {
        if let Some(pending) = self.outbox.get_mut(&number) {
            pending.position = position;
        }
    }

    /// Takes an outcome of the other partition.
    pub(crate) fn take(&mut self, numbered: Numbered) -> Taken {
        let Numbered { number, before, .. } = numbered;
        if number < self.applied_to || before >= self.applied_to {
            return Taken::NotNext;
        }
        self.applied_to = number + 1;
        Taken::Next
    }

    /// Notes that the outcome that was taken last is being recorded.
    pub(crate) fn applies(&mut self) {
        self.applying.push_back(self.applied_to - 1);
    }

    /// Returns whether records of outcomes that were taken are not synced.
    pub(crate) fn is_applying(&self) -> bool {
        !self.applying.is_empty()
    }

    /// Notes that the record of the oldest of those is synced.
    pub(crate) fn applied(&mut self) {
        self.applying.pop_front();
        shrink(&mut self.applying, KEPT);
    }

    /// Returns the number below which all outcomes of the other partition are recorded here.
    pub(crate) fn recorded_to(&self) -> u64 {
        self.applying.front().copied().unwrap_or(self.applied_to)
    }

    /// Describes it, naming devices as on the wire. For tests.
    pub(crate) fn describe(&self, show: impl Fn(DeviceId) -> PublicId) -> String {
        let outbox: Vec<_> = self
            .outbox
            .iter()
            .map(|(number, Pending { to, id, outcome, position })| {
                let MessageOutcome { of, kind, at_ms, maybe_seen, reason } = outcome;
                let of = (show(of.device), of.seq);
                (number, show(*to), id, position, (of, kind, at_ms, maybe_seen, reason))
            })
            .collect();
        let marks = (self.next, self.settled_to, self.applied_to, self.recorded_at);
        format!("{marks:?} {outbox:?}")
    }

    // ---- replay and compaction ----

    /// Puts an outcome of the log back.
    pub(crate) fn restore(&mut self, number: u64, pending: Pending) {
        self.next = self.next.max(number + 1);
        if number >= self.settled_to {
            self.outbox.insert(number, pending);
        }
    }

    /// Notes that an outcome of the other partition is in the log.
    pub(crate) fn restore_applied(&mut self, number: u64) {
        self.applied_to = self.applied_to.max(number + 1);
    }

    /// Applies a record of its state.
    pub(crate) fn restore_state(&mut self, record: &ExchangeRecord, position: Position) {
        self.next = self.next.max(record.next);
        self.settled_to = self.settled_to.max(record.settled_to);
        self.applied_to = self.applied_to.max(record.applied_to);
        self.outbox = self.outbox.split_off(&self.settled_to);
        self.recorded_at = position;
        self.recorded_settled_to = self.settled_to;
    }

    /// Returns the outcomes that are not settled and whose records are in a part of the store.
    pub(crate) fn recorded_in(
        &self,
        part: &Range<Position>,
    ) -> impl Iterator<Item = (u64, &Pending)> {
        let pending = self.outbox.iter().map(|(number, pending)| (*number, pending));
        pending.filter(|(_, pending)| part.contains(&pending.position))
    }

    /// Returns whether its last record lies at or before this position. If so, its state may be
    /// known only from records up to there, and must be recorded again before they are deleted.
    pub(crate) fn is_recorded_before(&self, position: Position) -> bool {
        self.recorded_at <= position
    }

    /// Returns the record of its state, which is about to be appended.
    pub(crate) fn record(&mut self, pair: Pair) -> ExchangeRecord {
        // Somewhere behind all that is in the log now, until it is synced.
        self.recorded_at = Position(u64::MAX);
        self.recorded_settled_to = self.settled_to;
        ExchangeRecord {
            partition: pair.own,
            with: pair.other,
            next: self.next,
            settled_to: self.settled_to,
            // Including outcomes whose records are not synced: they come before this record.
            applied_to: self.applied_to,
        }
    }

    /// Notes the position of the record of its state.
    pub(crate) fn recorded(&mut self, position: Position) {
        self.recorded_at = position;
    }
}

impl Pending {
    /// Returns the amount that it adds to the sums of its shard: the most that the records still to
    /// come take in the store.
    pub(crate) fn totals(&self) -> Totals {
        let stored = if self.to.is_number() { RECEIPT_BYTES } else { 0 };
        let anonymous = OfAnonymous { stored, ..OfAnonymous::default() };
        Totals { receipts: 1, anonymous, ..Totals::default() }
    }
}
