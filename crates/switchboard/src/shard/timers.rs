//! When to look at which connection again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use switchboard_broker::Moment;

use super::conn::Key;

/// The deadlines of one shard, earliest first.
///
/// Each connection keeps one entry that counts, at the earliest of its deadlines; when it fires
/// the connection looks which of them are due and asks for the next. A deadline that moves later
/// (every byte received moves two) therefore touches nothing here.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Moment, Key)>>,
}

/// Entries that are not worth compacting.
const SLACK: usize = 64;

impl Timers {
    pub(super) fn add(&mut self, at: Moment, key: Key) {
        self.heap.push(Reverse((at, key)));
    }

    /// The earliest entry's time.
    pub(super) fn next(&self) -> Option<Moment> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Drops entries that no longer count, once they are the most: a connection that a rate limit
    /// holds and releases leaves one behind each time. Keeps the heap at twice the connections.
    pub(super) fn compact(&mut self, conns: usize, counts: impl Fn(Moment, Key) -> bool) {
        if self.heap.len() > 2 * conns + SLACK {
            self.heap.retain(|Reverse((at, key))| counts(*at, *key));
        }
    }

    /// Takes an entry whose time has come.
    pub(super) fn take_due(&mut self, now: Moment) -> Option<(Moment, Key)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}
