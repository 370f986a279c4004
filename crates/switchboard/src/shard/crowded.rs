//! Receivers whose out queue passed [`OVERFLOW_FACTOR`] times its bound, and the senders that are
//! paused meanwhile.
//!
//! A queue can be that long although its device reads all the time: a few senders finish a large
//! message each in the same turn, before anything is written. So the queue is written first. If the
//! socket does not take enough, the device has [`GRACE`] to read, and each sender on this shard is
//! paused for the rest of that time after its next text to the device. So the queue can still grow
//! by one text of each of these senders; a device that does not read stops them for no longer than
//! that.

use std::collections::BTreeMap;
use std::time::Duration;

use switchboard_broker::Moment;

use super::Shard;
use super::conn::{Conn, Key, ReadPause};
use super::ports::OVERFLOW_FACTOR;

/// Time in which a queue that passed [`OVERFLOW_FACTOR`] times its bound must come down to half of
/// that length.
///
/// Half, so that its senders are not paused again by every small message: between two pauses the
/// device must have read twice `out_queue_max_bytes`, and must have been sent as much.
const GRACE: Duration = Duration::from_secs(1);

/// Multiple of its bound at which a queue is closed without [`GRACE`]. It is filled so far only by
/// senders that are not paused yet: those on other shards, and each one on this shard until it has
/// sent one text to the queue.
const OVERFLOW_FACTOR_MAX: usize = 4 * OVERFLOW_FACTOR;

/// The receivers whose queue is too long, each with the senders that wait for it. Usually empty.
#[derive(Debug, Default)]
pub(super) struct Crowds(BTreeMap<Key, Crowd>);

#[derive(Debug)]
struct Crowd {
    ends_at: Moment,
    /// The senders that wait. Each waits for one receiver at most, since it is not read.
    senders: Vec<Key>,
}

impl Crowds {
    /// Returns the time at which the grace of the next one ends.
    pub(super) fn next(&self) -> Option<Moment> {
        self.0.values().map(|crowd| crowd.ends_at).min()
    }

    fn due(&self, now: Moment) -> Vec<Key> {
        let due = self.0.iter().filter(|(_, crowd)| crowd.ends_at <= now);
        due.map(|(&key, _)| key).collect()
    }
}

impl Shard {
    /// Handles an out queue that passed [`OVERFLOW_FACTOR`] times its bound; `sender` is the
    /// connection of this shard whose text did it, if there is one.
    pub(super) fn outgrown(&mut self, key: Key, sender: Option<Key>) {
        // Written before its length is looked at: all of it may have come in this turn, in which
        // nothing was written yet.
        self.flush_early(key);
        let now = self.ports.now;
        let max = self.config.out_queue_max_bytes;
        let Some(conn) = self.ports.conn(key).filter(|conn| conn.is_open()) else { return };
        if !conn.is_over(OVERFLOW_FACTOR, max) {
            return;
        }
        if conn.is_over(OVERFLOW_FACTOR_MAX, max) {
            return self.overflow(key);
        }
        // An existing entry keeps its end: texts of other shards must not prolong the grace.
        let crowd = Crowd { ends_at: now.after(GRACE), senders: Vec::new() };
        let crowd = self.crowds.0.entry(key).or_insert(crowd);
        if let Some(sender) = sender {
            crowd.senders.push(sender);
            self.ports.pause_reading(sender, ReadPause::Receiver);
        }
    }

    /// Closes the connections whose queue is still too long after [`GRACE`].
    pub(super) fn judge_crowded(&mut self) {
        if self.crowds.0.is_empty() {
            return;
        }
        for key in self.crowds.due(self.ports.now) {
            // The queue is still too long: its entry is removed as soon as a write brings it down to
            // half of the length.
            self.overflow(key);
            // `overflow` does this only for a connection that is open.
            self.disperse(key);
        }
    }

    /// Lets the senders that wait for a connection go on if its queue, which was just written, is
    /// down to half of the length at which they were paused.
    #[inline]
    pub(super) fn disperse_if_written(&mut self, key: Key) {
        if self.crowds.0.is_empty() {
            return;
        }
        let max = self.config.out_queue_max_bytes;
        if self.ports.conn(key).is_none_or(|conn| !conn.is_over(OVERFLOW_FACTOR / 2, max)) {
            self.disperse(key);
        }
    }

    /// Lets the senders that wait for a connection go on. Either its queue has room, or it is gone,
    /// and they are told so when they send again.
    pub(super) fn disperse(&mut self, key: Key) {
        let Some(Crowd { senders, .. }) = self.crowds.0.remove(&key) else { return };
        for sender in senders {
            self.resume(sender, ReadPause::Receiver);
        }
    }
}

impl Conn {
    fn is_over(&self, factor: usize, out_queue_max_bytes: usize) -> bool {
        self.out.len() > out_queue_max_bytes.saturating_mul(factor)
    }
}
