//! Times at which the messages of a mailbox expire, the soonest first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Moment;
use crate::shrink::{self, KEPT, shrink};

/// Numbers of messages, by the time at which they expire.
///
/// When a message leaves its mailbox otherwise it is not searched for here: its number stays until
/// its time comes, or until most numbers are of messages that have left.
#[derive(Debug, Default)]
pub(super) struct Expiries(BinaryHeap<Reverse<(Moment, u64)>>);

/// Numbers of messages that have left and are not worth pruning.
const SLACK: usize = 8;

impl Expiries {
    /// Returns the times of all messages of a mailbox, which come in any order.
    pub(super) fn of(expiring: impl Iterator<Item = (Moment, u64)>) -> Expiries {
        Expiries(expiring.map(Reverse).collect())
    }

    pub(super) fn add(&mut self, at: Moment, seq: u64) {
        self.0.push(Reverse((at, seq)));
    }

    /// Takes out the message that expires first, if its time has come. It may have left the
    /// mailbox.
    pub(super) fn take_over(&mut self, now: Moment) -> Option<u64> {
        let Reverse((at, seq)) = *self.0.peek()?;
        if at > now {
            return None;
        }
        self.0.pop();
        self.shrink(KEPT);
        Some(seq)
    }

    /// Gives back memory that is not needed any more; keeps some for `kept` numbers.
    #[inline]
    pub(super) fn shrink(&mut self, kept: usize) {
        shrink(&mut self.0, kept);
    }

    /// Returns the time at which the next of the waiting messages expires.
    pub(super) fn next(&mut self, waits: impl Fn(u64) -> bool) -> Option<Moment> {
        loop {
            let Reverse((at, seq)) = *self.0.peek()?;
            if waits(seq) {
                return Some(at);
            }
            self.0.pop();
            self.shrink(KEPT);
        }
    }

    /// Drops numbers of messages that have left, once they are the majority. `waiting` is the
    /// number of messages that still wait.
    #[inline]
    pub(super) fn prune(&mut self, waiting: usize, waits: impl Fn(u64) -> bool) {
        // At least half of the numbers are obsolete then, so looking at all costs a constant time
        // for each that is dropped.
        let max = 2 * waiting + SLACK;
        if self.0.len() > max {
            self.0.retain(|Reverse((_, seq))| waits(*seq));
            self.shrink(KEPT);
        }
    }

    /// Fails if there are more numbers than `waiting` messages may have, or more memory. For tests.
    pub(super) fn audit(&self, waiting: usize) -> Result<(), String> {
        let (len, max) = (self.0.len(), 2 * waiting + SLACK);
        if len > max {
            return Err(format!("{len} expiries of at most {max}"));
        }
        shrink::audit("expiries", &self.0, KEPT)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// All messages of a mailbox were once looked at each time that one of them expired: with
    /// 100,000 that expired 1 ms after each other, this took a third of a core for as long.
    #[test]
    fn what_does_not_expire_yet_is_not_looked_at() {
        const COUNT: u64 = 100_000;
        let looked_at = Cell::new(0);
        let waits = |_| {
            looked_at.set(looked_at.get() + 1);
            true
        };
        // The last one expires first.
        let mut expiries = Expiries::default();
        (1..=COUNT).for_each(|seq| expiries.add(Moment::from_ms(COUNT + 1 - seq), seq));
        for ms in 1..=COUNT {
            let now = Moment::from_ms(ms);
            assert_eq!(expiries.take_over(now), Some(COUNT + 1 - ms));
            assert_eq!(expiries.take_over(now), None);
            let next = (ms < COUNT).then(|| Moment::from_ms(ms + 1));
            assert_eq!(expiries.next(waits), next);
        }
        assert_eq!(looked_at.get(), COUNT - 1);
    }

    #[test]
    fn what_left_is_forgotten_at_a_cost_that_is_shared_by_all_that_left() {
        const COUNT: u64 = 10_000;
        let mut expiries = Expiries::of((0..COUNT).map(|seq| (Moment::from_ms(seq), seq)));
        let looked_at = Cell::new(0);
        for left in 1..=COUNT {
            let waiting = (COUNT - left) as usize;
            expiries.prune(waiting, |seq| {
                looked_at.set(looked_at.get() + 1);
                seq >= left
            });
            expiries.audit(waiting).unwrap();
        }
        assert!(looked_at.get() <= 2 * COUNT, "{looked_at:?}");
        assert_eq!(expiries.next(|_| false), None);
    }
}
