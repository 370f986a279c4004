//! The end of a drain: the shards end together, since none can know alone that no other needs it.
//!
//! A shard without connections may still have to decide about messages and outcomes of devices on
//! other shards. So it goes on until *all* are at rest: no connection, nothing to forward, no
//! record that is not synced.
//!
//! All are at rest when the number of busy shards is 0. A batch on its way, between a sender that
//! is at rest by now and a receiver that has not seen it, could make this number wrong. So a
//! shard's rest is part of its inbox: it begins only while the inbox is empty, under the inbox's
//! lock, and a thread that puts something in ends it, under the same lock. The sender was busy
//! until then (it had something to forward), so the number does not pass through 0 in between. At 0
//! no shard is left that could make work, so 0 is final: events that the store's threads still send
//! change nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Counts the shards that are not at rest.
#[derive(Debug)]
pub(crate) struct Ending {
    busy: AtomicUsize,
    is_over: AtomicBool,
}

impl Ending {
    /// Returns a count in which all `shards` are busy.
    pub(crate) fn new(shards: usize) -> Ending {
        Ending { busy: AtomicUsize::new(shards), is_over: AtomicBool::new(false) }
    }

    /// Notes that one of them comes to rest.
    pub(super) fn rests(&self) {
        // Noted here, at the moment at which it is 0: read later, the number may have risen again.
        if self.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.is_over.store(true, Ordering::SeqCst);
        }
    }

    /// Notes that one of them has something to do again.
    pub(super) fn stirs(&self) {
        self.busy.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns true once all were at rest at the same time.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }
}
