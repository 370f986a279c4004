//! When a drain is over: the shards end together, since none can know alone that nobody needs it.
//!
//! A shard without connections may still be asked by another one's devices, whose messages and
//! outcomes it decides about. So it goes on until *all* are at rest: no connection, nothing to hand
//! over, no record that is not synced.
//!
//! The number of busy shards tells. What could make it wrong is a batch on its way between a sender
//! that is at rest by now and a receiver that has not seen it. So a shard's rest is part of its
//! inbox: it begins only while the inbox is empty, under the inbox's lock, and whoever puts
//! something in ends it, under the same lock. The sender was busy until then (it had something to
//! forward), so the number does not pass through 0 in between. At 0 nobody is left who could make
//! work, and that is kept: what the store's threads still say changes nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Counts the shards that are not at rest.
#[derive(Debug)]
pub(crate) struct Ending {
    busy: AtomicUsize,
    is_over: AtomicBool,
}

impl Ending {
    /// All `shards` are busy.
    pub(crate) fn new(shards: usize) -> Ending {
        Ending { busy: AtomicUsize::new(shards), is_over: AtomicBool::new(false) }
    }

    /// One of them comes to rest.
    pub(super) fn rests(&self) {
        if self.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.is_over.store(true, Ordering::SeqCst);
        }
    }

    /// One of them has something to do again.
    pub(super) fn stirs(&self) {
        self.busy.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns whether all were at rest at the same time.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }
}
