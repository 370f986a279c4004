//! Bounds over all shards together: on what is not durable, on incomplete messages, and on out
//! queues.
//!
//! Each bound is on one number that the shards share. A shard collects its changes in a number
//! of its own and publishes them once a turn, or when they are many, so that an ordinary
//! message costs an addition. Therefore a bound may be passed by [`PUBLISHED_AT`] and one
//! message for each shard.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::READ_BYTES;

/// Bytes of a shard's own changes at which they are published.
const PUBLISHED_AT: isize = 256 << 10;
/// Largest fraction of a small budget, an eighth, that all shards together may leave unpublished.
const UNPUBLISHED_PART: usize = 8;

/// Bytes of one kind in all shards, as far as they are published.
#[derive(Debug, Default)]
pub(crate) struct Total(AtomicUsize);

/// One shard's changes of a [`Total`] that are not published.
#[derive(Debug)]
pub(super) struct Share {
    unpublished: isize,
    /// Absolute value at which it is time to publish.
    publish_at: usize,
}

impl Default for Share {
    fn default() -> Share {
        Share { unpublished: 0, publish_at: PUBLISHED_AT as usize }
    }
}

impl Total {
    /// Returns the published total.
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Share {
    /// Notes a change; returns true if it is time to publish.
    #[inline]
    pub(super) fn change(&mut self, bytes: isize) -> bool {
        self.unpublished += bytes;
        self.unpublished.unsigned_abs() >= self.publish_at
    }

    #[inline]
    pub(super) fn is_published(&self) -> bool {
        self.unpublished == 0
    }

    /// Publishes the changes; returns the new total.
    ///
    /// Bytes that one shard adds and another subtracts must be published before they are forwarded,
    /// or the total could pass below 0.
    pub(super) fn publish(&mut self, total: &Total) -> usize {
        let change = std::mem::take(&mut self.unpublished);
        // The cast of a negative change wraps, and so does the addition: together they subtract.
        total.0.fetch_add(change as usize, Ordering::SeqCst).wrapping_add(change as usize)
    }
}

/// Connections that are not read for now, because too much is not durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pause {
    /// None: all are read.
    #[default]
    Nobody,
    /// Those of devices that could send to a mailbox.
    Senders,
    /// All whose frames could make a record, also by a `hello` or an ack.
    All,
}

/// The budget for what is not durable: records that are not synced, the contents of their messages
/// in mailboxes, and messages on their way between shards.
///
/// When it is spent, senders are paused before their next read is carried out. So nothing is
/// refused, and the excess is one read for each sender that was being served. Only syncs free it
/// (a message that moves to another shard stays charged). Acks do not free it, so a device may be
/// paused although its acks wait behind its sends: that does not prolong the pause. Records that no
/// message caused (acks, states of devices) may use an eighth more; then all connections that could
/// cause one are paused.
#[derive(Debug)]
pub(crate) struct Budget {
    total: Total,
    max: usize,
    /// For each shard, set while a connection of it is paused.
    waiting: Vec<AtomicBool>,
}

impl Budget {
    /// Returns a budget of `max` bytes for this many shards.
    pub(crate) fn new(max: usize, shards: usize) -> Budget {
        let waiting = (0..shards).map(|_| AtomicBool::new(false)).collect();
        Budget { total: Total::default(), max, waiting }
    }

    /// Returns the bytes of records by which accepted messages may pass a budget.
    pub(crate) fn overrun_bytes(shards: usize, message_bytes_max: usize) -> u64 {
        // When it is spent, each shard may be in the middle of a read, which may end with a message
        // that was incomplete before. Nothing is added for what a shard has not published yet: the
        // budget charges a message twice, as a record and as content, and only the record goes to
        // disk, so there is space for it.
        shards as u64 * (READ_BYTES + message_bytes_max) as u64
    }

    /// Returns a shard's share of it.
    pub(super) fn share(&self) -> Share {
        let publish_at = self.max / UNPUBLISHED_PART / self.waiting.len().max(1);
        Share { publish_at: publish_at.clamp(1, PUBLISHED_AT as usize), ..Share::default() }
    }

    /// Returns the bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        self.total.bytes()
    }

    /// Returns the connections that are to be paused.
    pub(super) fn pause(&self, is_failing: bool) -> Pause {
        let used = self.bytes();
        // While the store fails, messages are refused at once and take nothing, so senders need
        // not wait for a sync that may not come. Acks and `hello` still make records.
        if used < self.max {
            Pause::Nobody
        } else if used >= self.max + self.max / 8 {
            Pause::All
        } else if is_failing {
            Pause::Nobody
        } else {
            Pause::Senders
        }
    }

    /// Returns true if the paused connections may be read again.
    pub(super) fn has_room(&self) -> bool {
        // Not at the first free byte, or each sync would wake all of them for one message.
        self.bytes() <= self.max - self.max / 4
    }

    /// Publishes a shard's share; returns the shards that are to be woken.
    pub(super) fn publish(&self, share: &mut Share) -> impl Iterator<Item = usize> {
        // First the total, then the flags; a shard that waits sets its flag, then looks at the
        // total. In the one order that SeqCst gives, one of the two sees the other, and no
        // wake-up is lost.
        share.publish(&self.total);
        let has_room = self.has_room();
        let waits = move |shard: &usize| {
            has_room
                && self.waiting[*shard].load(Ordering::SeqCst)
                && self.waiting[*shard].swap(false, Ordering::SeqCst)
        };
        (0..self.waiting.len()).filter(waits)
    }

    /// Asks that the shard be woken when there is room. It must look at the total once more
    /// after this.
    pub(super) fn wait(&self, shard: usize) {
        self.waiting[shard].store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_woken_once_when_a_quarter_is_free() {
        let budget = Budget::new(1_000, 2);
        let (mut a, mut b) = (Share::default(), Share::default());
        a.change(999);
        assert_eq!(budget.publish(&mut a).count(), 0);
        assert_eq!(budget.pause(false), Pause::Nobody);
        a.change(1);
        assert_eq!(budget.publish(&mut a).count(), 0);
        assert_eq!(budget.pause(false), Pause::Senders);
        assert_eq!(budget.pause(true), Pause::Nobody);
        a.change(125);
        assert_eq!(budget.publish(&mut a).count(), 0);
        assert_eq!(budget.pause(true), Pause::All);
        budget.wait(1);
        // What one shard added another may take away.
        b.change(-300);
        assert_eq!(budget.publish(&mut b).count(), 0, "825 of 1,000 are used");
        b.change(-75);
        assert_eq!(budget.publish(&mut b).collect::<Vec<_>>(), [1]);
        assert_eq!(budget.publish(&mut b).count(), 0);
        a.change(-750);
        assert_eq!(budget.publish(&mut a).count(), 0);
        assert_eq!(budget.bytes(), 0);
    }

    /// With 256 KiB for each shard, the budget of a small store was once exceeded several times
    /// over.
    #[test]
    fn the_shards_of_a_small_budget_publish_sooner() {
        assert_eq!(Budget::new(64 << 20, 16).share().publish_at, 256 << 10);
        assert_eq!(Budget::new(448 << 10, 4).share().publish_at, 14 << 10);
        assert!(!Budget::new(1, 4).share().change(0));
    }

    #[test]
    fn large_changes_are_published_early() {
        let mut share = Share::default();
        assert!(!share.change(1));
        assert!(share.change(PUBLISHED_AT));
        let total = Total::default();
        assert_eq!(share.publish(&total), PUBLISHED_AT as usize + 1);
        assert!(share.is_published() && share.change(-PUBLISHED_AT));
    }
}
