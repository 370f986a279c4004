//! What waits in all out queues together is bounded, too: each alone may be long.

use super::Shard;
use super::budget::Share;
use super::conn::{Conn, Key};

/// What the sockets of one shard did not take, by the connection's place in the slab.
///
/// Looked at only when a socket took less than all, so that it costs nothing where all are read.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    of: Vec<usize>,
    bytes: usize,
    share: Share,
}

impl Waiting {
    /// Whether anything waits.
    #[inline]
    pub(super) fn is_any(&self) -> bool {
        self.bytes > 0
    }

    /// So many bytes wait for a connection after it was written to. Those count that belong to
    /// devices; what a connection that is closed still has goes within `close_timeout`.
    pub(super) fn note(&mut self, index: u32, bytes: usize) {
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
}

impl Shard {
    /// Closes the devices with the longest queues while all shards together hold too much, and this
    /// one more than its share. At least one shard does, so the bound is kept.
    #[inline]
    pub(super) fn bound_out_queues(&mut self) {
        let waiting = &mut self.ports.waiting;
        if !waiting.is_any() && waiting.share.is_published() {
            return;
        }
        waiting.share.publish(&self.shared.out_queues);
        if self.shared.out_queues.bytes() > self.shared.config.out_queues_max_bytes {
            self.close_longest_queues();
        }
    }

    #[cold]
    fn close_longest_queues(&mut self) {
        let max = self.shared.config.out_queues_max_bytes;
        let share = max / self.shared.inboxes.len();
        let is_open = |(_, conn): &(usize, &Conn)| conn.is_open();
        let len = |(index, conn): (usize, &Conn)| {
            let key = Key { index: index as u32, generation: conn.generation };
            (self.ports.waiting.of.get(index).copied().unwrap_or_default(), key)
        };
        let mut longest: Vec<(usize, Key)> =
            self.ports.conns.iter().filter(is_open).map(len).filter(|(len, _)| *len > 0).collect();
        longest.sort_unstable();
        while self.ports.waiting.bytes > share
            && self.shared.out_queues.bytes() > max
            && let Some((_, key)) = longest.pop()
        {
            self.overflow(key);
            self.ports.waiting.note(key.index, 0);
            self.ports.waiting.share.publish(&self.shared.out_queues);
        }
        self.hand_over_late();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_the_sum_over_connections() {
        let mut waiting = Waiting::default();
        waiting.note(3, 0);
        assert!(!waiting.is_any() && waiting.share.is_published());
        waiting.note(3, 100);
        waiting.note(1, 50);
        waiting.note(3, 20);
        assert_eq!(waiting.bytes, 70);
        waiting.note(3, 0);
        waiting.note(1, 0);
        assert!(!waiting.is_any() && waiting.share.is_published());
    }
}
