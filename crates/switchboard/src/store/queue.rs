//! The queue between the shards, which submit, and the writer.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::stats::add;
use super::{Batch, Stats};

/// Returns a batch because the queue is at its bound, or the log is closed. The listener's `room`
/// tells the shard when to submit it again.
#[derive(Debug)]
pub struct Full(pub Batch);

/// A task for the writer.
#[derive(Debug)]
pub(super) enum Entry {
    Batch {
        shard: usize,
        batch: Batch,
        submitted: Instant,
    },
    /// Begin a segment.
    Roll,
    /// Look at the file system.
    Look,
    /// Delete a segment, which must be the oldest.
    Drop {
        segment: u32,
    },
}

/// The writer's tasks, oldest first. Bounded in bytes of batches, which count until they are
/// durable.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Notified when there is an entry, and at closing.
    changed: Condvar,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Entry>,
    /// Bytes of the entries' batches, and of those that the writer has taken.
    bytes: usize,
    /// Shards that found the queue full.
    waiting: Vec<usize>,
    closing: bool,
}

impl Queue {
    pub(super) fn new(max_bytes: usize) -> Queue {
        Queue { state: Mutex::default(), changed: Condvar::new(), max_bytes }
    }

    /// Takes the batch, or returns it if it would pass the bound.
    pub(super) fn submit(&self, shard: usize, batch: Batch, stats: &Stats) -> Result<(), Full> {
        let mut state = self.lock();
        let bytes = state.bytes + batch.bytes();
        // An empty queue takes any batch: one that is larger than the bound would wait for ever.
        if state.closing || (state.bytes > 0 && bytes > self.max_bytes) {
            if !state.waiting.contains(&shard) {
                state.waiting.push(shard);
            }
            add(&stats.full, 1);
            return Err(Full(batch));
        }
        state.bytes = bytes;
        add(&stats.submitted, batch.len());
        stats.queue_bytes.store(bytes as u64, Relaxed);
        self.push(state, Entry::Batch { shard, batch, submitted: Instant::now() });
        Ok(())
    }

    /// Takes the batch of a shard that ends, whatever the bound: it has no later turn in which it
    /// could submit it again.
    pub(super) fn submit_last(&self, shard: usize, batch: Batch, stats: &Stats) {
        let mut state = self.lock();
        state.bytes += batch.bytes();
        add(&stats.submitted, batch.len());
        self.push(state, Entry::Batch { shard, batch, submitted: Instant::now() });
    }

    pub(super) fn ask(&self, entry: Entry) {
        self.push(self.lock(), entry);
    }

    fn push(&self, mut state: MutexGuard<'_, State>, entry: Entry) {
        state.entries.push_back(entry);
        drop(state);
        self.changed.notify_one();
    }

    /// Appends all entries to `entries`.
    pub(super) fn take(&self, entries: &mut VecDeque<Entry>) {
        entries.append(&mut self.lock().entries);
    }

    /// Notes that this many bytes are durable; returns the shards that wait, if there is room now.
    pub(super) fn release(&self, bytes: usize, stats: &Stats) -> Vec<usize> {
        let mut state = self.lock();
        // Only now, and not when the writer took the batches: it keeps them in memory until they
        // are durable.
        state.bytes -= bytes;
        stats.queue_bytes.store(state.bytes as u64, Relaxed);
        if state.bytes < self.max_bytes { std::mem::take(&mut state.waiting) } else { Vec::new() }
    }

    /// Closes the queue: `submit` takes nothing any more, and the writer ends once all is written.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_one();
    }

    /// Waits for an entry; false if the queue is closed and has none.
    pub(super) fn wait(&self) -> bool {
        let idle = |state: &mut State| state.entries.is_empty() && !state.closing;
        let state = self.changed.wait_while(self.lock(), idle);
        !state.unwrap_or_else(PoisonError::into_inner).entries.is_empty()
    }

    /// Waits for an entry or for closing, at most this long; false if neither came.
    pub(super) fn wait_at_most(&self, at_most: Duration) -> bool {
        let idle = |state: &mut State| state.entries.is_empty() && !state.closing;
        let waited = self.changed.wait_timeout_while(self.lock(), at_most, idle);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Waits this long, or until closing; true if the queue is closed.
    pub(super) fn wait_for_close(&self, at_most: Duration) -> bool {
        let open = |state: &mut State| !state.closing;
        let waited = self.changed.wait_timeout_while(self.lock(), at_most, open);
        waited.unwrap_or_else(PoisonError::into_inner).0.closing
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
