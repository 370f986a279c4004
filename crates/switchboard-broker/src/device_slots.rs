//! Slots for devices with mailboxes, over all shards.

use std::sync::atomic::{AtomicUsize, Ordering};

use switchboard_proto::DeviceId;

/// Counts the devices with a mailbox.
#[derive(Debug, Default)]
pub(crate) struct DeviceSlots {
    named: AtomicUsize,
    anonymous: AtomicUsize,
}

/// Bounds on the devices with a mailbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceSlotsMax {
    pub(crate) all: usize,
    /// Those without a name.
    pub(crate) anonymous: usize,
}

impl DeviceSlots {
    /// Takes a slot if one is free; returns whether it did.
    pub(crate) fn try_take(&self, id: DeviceId, max: DeviceSlotsMax) -> bool {
        // Taken before it is judged, as other shards take slots at the same time: two may both be
        // refused the last one, but never both get it.
        self.take(id);
        let is_within_own = !id.is_number() || self.anonymous() <= max.anonymous;
        let is_within = is_within_own && self.taken() <= max.all;
        if !is_within {
            self.release(id);
        }
        is_within
    }

    /// Takes a slot for a device that the store knows, whatever the bound.
    pub(crate) fn take(&self, id: DeviceId) {
        self.of(id).fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn release(&self, id: DeviceId) {
        self.of(id).fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of slots taken.
    pub(crate) fn taken(&self) -> usize {
        self.named.load(Ordering::Relaxed) + self.anonymous()
    }

    fn anonymous(&self) -> usize {
        self.anonymous.load(Ordering::Relaxed)
    }

    fn of(&self, id: DeviceId) -> &AtomicUsize {
        if id.is_number() { &self.anonymous } else { &self.named }
    }
}
