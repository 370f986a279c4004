//! Places for devices with mailboxes, over all shards.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the devices with a mailbox.
#[derive(Debug, Default)]
pub(crate) struct Places(AtomicUsize);

impl Places {
    /// Takes a place, if fewer than `max` are taken; gives whether it did.
    pub(crate) fn try_take(&self, max: usize) -> bool {
        let taken = self.0.fetch_add(1, Ordering::Relaxed);
        if taken >= max {
            self.give();
        }
        taken < max
    }

    /// Takes a place for a device that the store knows, however many there are.
    pub(crate) fn take(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn give(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
