//! Receivers whose out queue passed its last bound, and the senders that are not read meanwhile.
//!
//! A queue can be that long although its device reads all the time: a few senders finish a large message
//! each in the same turn, before anything is written. So the queue is written first. What the socket does not
//! take then gives the device [`GRACE`] to read, in which those who send to it are paused; so it cannot be
//! pushed over a bound by others, and a device that does not read stops nobody for longer than that.

use std::collections::BTreeMap;
use std::time::Duration;

use switchboard_broker::Moment;

use super::Shard;
use super::conn::{Conn, Key, ReadPause};
use super::ports::OVERFLOW_FACTOR;

/// In this time a queue that passed [`OVERFLOW_FACTOR`] times its bound must come to half of that.
///
/// To half, so that a device that reads just enough to stay cannot have its senders paused again with each
/// small message: between two pauses it has read, and been sent, twice `out_queue_max_bytes`.
const GRACE: Duration = Duration::from_secs(1);

/// At this multiple of its bound a queue is not given that time either: other shards, whose devices are
/// not paused, filled it.
const OVERFLOW_FACTOR_MAX: usize = 4 * OVERFLOW_FACTOR;

/// The receivers, each with those who wait for it. There is none where all are read.
#[derive(Debug, Default)]
pub(super) struct Crowds(BTreeMap<Key, Crowd>);

#[derive(Debug)]
struct Crowd {
    ends_at: Moment,
    /// Each connection waits for one receiver at most, since it is not read.
    senders: Vec<Key>,
}

impl Crowds {
    /// When the next of them has had its time.
    pub(super) fn next(&self) -> Option<Moment> {
        self.0.values().map(|crowd| crowd.ends_at).min()
    }

    fn due(&self, now: Moment) -> Vec<Key> {
        let due = self.0.iter().filter(|(_, crowd)| crowd.ends_at <= now);
        due.map(|(&key, _)| key).collect()
    }
}

impl Shard {
    /// The out queue of a connection passed [`OVERFLOW_FACTOR`] times its bound; `sender` is the connection
    /// of this shard whose text did it.
    pub(super) fn outgrown(&mut self, key: Key, sender: Option<Key>) {
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
            // The others were dispersed when they were written to.
            self.overflow(key);
            self.disperse(key);
        }
    }

    /// The queue of a connection was written to: whoever waits for it goes on once it is at half of what is
    /// too much.
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

    /// Those who wait for a connection go on: it has room, or is gone, of which they are told when they
    /// send again.
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
