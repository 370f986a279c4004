//! The bound on all out queues together: each alone may be long.

use super::Shard;
use super::budget::{Share, Total};
use super::conn::{Key, Phase};
use super::ports::Ports;

/// Fraction of `out_queues_max_bytes`, a quarter, that connections which are being closed may
/// take in addition: they have time to read what waits and the close frame behind it.
const CLOSING_PART: usize = 4;

/// Memory of one shard's out queues that their sockets did not empty.
///
/// Counted only when a socket took less than all, so that it costs nothing while all devices read.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    open: Queues,
    closing: Queues,
    /// Set while something waits, or is not published.
    is_any: bool,
}

/// The queues of one kind, by the connection's index in the slab.
#[derive(Debug, Default)]
struct Queues {
    of: Vec<usize>,
    bytes: usize,
    share: Share,
}

/// Memory of all shards' out queues.
#[derive(Debug, Default)]
pub(crate) struct OutQueues {
    open: Total,
    closing: Total,
}

impl Waiting {
    /// Notes the bytes that the out queue of a connection takes.
    pub(super) fn note(&mut self, index: u32, is_closing: bool, bytes: usize) {
        let (is, other) = match is_closing {
            true => (&mut self.closing, &mut self.open),
            false => (&mut self.open, &mut self.closing),
        };
        is.note(index, bytes);
        // A connection that begins to close changes from one kind to the other.
        other.note(index, 0);
        self.is_any = true;
    }

    /// Forgets a connection that is gone.
    pub(super) fn forget(&mut self, index: u32) {
        self.note(index, false, 0);
    }

    fn publish(&mut self, totals: &OutQueues) {
        self.open.share.publish(&totals.open);
        self.closing.share.publish(&totals.closing);
        self.is_any = self.open.bytes + self.closing.bytes > 0;
    }
}

impl Queues {
    fn note(&mut self, index: u32, bytes: usize) {
        let index = index as usize;
        if self.of.len() <= index {
            if bytes == 0 {
                return;
            }
            self.of.resize(index + 1, 0);
        }
        let had = std::mem::replace(&mut self.of[index], bytes);
        self.bytes = self.bytes - had + bytes;
        self.share.change(bytes as isize - had as isize);
    }

    /// Returns the slab indexes of the queues that wait, the longest last.
    fn by_length(&self) -> Vec<usize> {
        let mut waiting: Vec<usize> = (0..self.of.len()).filter(|at| self.of[*at] > 0).collect();
        waiting.sort_unstable_by_key(|at| self.of[*at]);
        waiting
    }
}

impl Ports {
    /// Counts the memory of an out queue that its socket did not empty.
    pub(super) fn count_waiting(&mut self, key: Key) {
        let Some(conn) = self.conn(key) else { return };
        let (bytes, is_closing) = match conn.phase {
            // The memory, not the length: the written part of a buffer is not free before it is
            // emptied.
            Phase::Open => (conn.out.held_bytes(), false),
            Phase::Closing { .. } => (conn.out.held_bytes(), true),
            // Bounded already: the answer to one request head, or what `Pipe::take` takes at a
            // time.
            Phase::Handshake { .. } | Phase::Piping(_) => (0, false),
        };
        conn.unwritten.set(super::conn::Unwritten::BLOCKED, bytes > 0);
        self.waiting.note(key.index, is_closing, bytes);
    }
}

impl Shard {
    /// Closes the devices with the longest queues while all shards together hold too much, and this
    /// one more than its share. Their queues stay until they are read or `close_timeout` is
    /// over; if those come to too much, the longest are cut off.
    #[inline]
    pub(super) fn bound_out_queues(&mut self) {
        // If all together are over the bound, at least one shard is over its share of it, and
        // closes some. So the bound holds although no shard waits for another.
        if self.ports.waiting.is_any {
            self.bound_waiting();
        }
    }

    #[cold]
    fn bound_waiting(&mut self) {
        let max = self.config.out_queues_max_bytes;
        let shared = std::sync::Arc::clone(&self.shared);
        let totals = &shared.out_queues;
        self.ports.waiting.publish(totals);
        // Before more are closed, so that those have at least until the next turn to read.
        if totals.closing.bytes() > max / CLOSING_PART {
            self.cut_off_longest(totals, max / CLOSING_PART);
        }
        if totals.open.bytes() > max {
            self.close_longest(totals, max);
        }
    }

    fn cut_off_longest(&mut self, totals: &OutQueues, max: usize) {
        let share = max / self.shared.inboxes.len();
        let mut longest = self.ports.waiting.closing.by_length();
        while self.ports.waiting.closing.bytes > share
            && totals.closing.bytes() > max
            && let Some(index) = longest.pop()
        {
            self.remove(self.ports.key(index as u32), "too much waits for those that are closed");
            self.ports.waiting.publish(totals);
        }
    }

    fn close_longest(&mut self, totals: &OutQueues, max: usize) {
        let share = max / self.shared.inboxes.len();
        let mut longest = self.ports.waiting.open.by_length();
        while self.ports.waiting.open.bytes > share
            && totals.open.bytes() > max
            && let Some(index) = longest.pop()
        {
            self.overflow(self.ports.key(index as u32));
            self.ports.waiting.publish(totals);
        }
        // Their senders on other shards are told, and the turn has offered its batches already.
        self.offer_outboxes_late();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_the_sum_over_connections() {
        let (mut waiting, totals) = (Waiting::default(), OutQueues::default());
        waiting.forget(3);
        waiting.publish(&totals);
        assert!(!waiting.is_any);
        waiting.note(3, false, 100);
        waiting.note(1, false, 50);
        waiting.note(3, false, 20);
        assert_eq!((waiting.open.bytes, waiting.open.by_length()), (70, vec![3, 1]));
        waiting.forget(3);
        waiting.publish(&totals);
        assert!(waiting.is_any);
        waiting.forget(1);
        waiting.publish(&totals);
        assert!(!waiting.is_any && totals.open.bytes() == 0);
    }

    /// The queue of a connection that was being closed once counted nowhere.
    #[test]
    fn what_waits_for_one_that_is_being_closed_counts_on() {
        let (mut waiting, totals) = (Waiting::default(), OutQueues::default());
        waiting.note(3, false, 100);
        waiting.note(3, true, 120);
        waiting.publish(&totals);
        assert_eq!((totals.open.bytes(), totals.closing.bytes()), (0, 120));
        waiting.forget(3);
        waiting.publish(&totals);
        assert_eq!(totals.closing.bytes(), 0);
    }
}
