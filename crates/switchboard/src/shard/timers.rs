//! The timers of a shard's connections.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use switchboard_broker::Moment;

use super::conn::Key;

/// The deadlines of one shard, earliest first.
///
/// Each connection has one entry that counts, at the earliest of its deadlines. When it fires the
/// connection checks which of them are due and asks for the next. So a deadline that moves
/// later, as two do with every byte received, touches nothing here.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Moment, Key)>>,
}

/// Number of entries that are not worth compacting.
const SLACK: usize = 64;

impl Timers {
    /// Adds an entry. Those of the same connection stay: the heap cannot remove them, and they no
    /// longer count.
    pub(super) fn add(&mut self, at: Moment, key: Key) {
        self.heap.push(Reverse((at, key)));
    }

    /// Returns the earliest entry's time.
    pub(super) fn next(&self) -> Option<Moment> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Drops entries that no longer count, once they are the majority. Keeps the heap at about
    /// twice the number of connections.
    pub(super) fn compact(&mut self, conns: usize, counts: impl Fn(Moment, Key) -> bool) {
        // A connection that a rate limit pauses again and again leaves one behind each time.
        if self.heap.len() > 2 * conns + SLACK {
            self.heap.retain(|Reverse((at, key))| counts(*at, *key));
        }
    }

    /// Removes and returns the first entry if its time has come.
    pub(super) fn take_due(&mut self, now: Moment) -> Option<(Moment, Key)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}
