//! Sums over the entries that wait in mailboxes, and the bound on what devices without a name use.

use std::ops::{AddAssign, SubAssign};

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{ID_LEN_MAX, REASON_LEN_MAX};

use super::mailbox::Mailbox;
use super::{Limits, Stats};
use crate::Directory;
use crate::broker::Broker;

/// Sums over the entries of one mailbox that wait, with what is set aside for outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// Bytes of memory taken by entries that are in memory only, and set aside for outcomes that
    /// may be in memory only.
    pub(crate) memory: usize,
    /// Number of messages in the store whose outcomes are asked for and not recorded.
    pub(crate) receipts: usize,
    pub(crate) anonymous: OfAnonymous,
}

/// Bytes taken by devices without a name: by the messages that they sent and the outcomes for them,
/// those that will come included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OfAnonymous {
    pub(crate) messages: usize,
    pub(crate) stored: usize,
    pub(crate) memory: usize,
}

/// Returns the bytes of memory that an entry of `len` bytes takes. Its record on disk takes about
/// as many.
pub(crate) const fn memory_of(len: usize) -> usize {
    OVERHEAD + len
}

/// Bytes of memory of an entry besides its content: the entry itself in a table that doubles, the
/// head of its content, and what the allocator adds. An entry that is on disk takes all of this
/// except the head.
const OVERHEAD: usize = 128;

/// Returns the number of messages that may wait, in memory or on disk, if they may take `memory`
/// bytes of memory: as many as would fit if none had any content.
pub(super) const fn messages_max(memory: usize) -> usize {
    memory / OVERHEAD
}

/// Bytes of memory of the longest outcome. They are set aside before its message is accepted, so
/// that nobody can turn small messages into large outcomes by refusing them with long reasons.
pub(crate) const OUTCOME_MEMORY: usize = memory_of(ID_LEN_MAX + REASON_LEN_MAX);

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.memory += other.memory;
        self.receipts += other.receipts;
        self.anonymous.messages += other.anonymous.messages;
        self.anonymous.stored += other.anonymous.stored;
        self.anonymous.memory += other.anonymous.memory;
    }
}

impl SubAssign for Totals {
    fn sub_assign(&mut self, other: Totals) {
        self.messages -= other.messages;
        self.bytes -= other.bytes;
        self.memory -= other.memory;
        self.receipts -= other.receipts;
        self.anonymous.messages -= other.anonymous.messages;
        self.anonymous.stored -= other.anonymous.stored;
        self.anonymous.memory -= other.anonymous.memory;
    }
}

impl OfAnonymous {
    /// Returns whether a message that takes `stored` bytes of the store and `memory` bytes of
    /// memory would bring devices without a name above three quarters of the memory, of the store
    /// or of all messages. Always false before a device with a name has come: until then they may
    /// use everything.
    pub(super) fn is_above(
        self,
        (stored, memory): (usize, usize),
        limits: &Limits,
        directory: &Directory,
    ) -> bool {
        let is_above = |used: usize, more: usize, max: usize| more > 0 && used + more > max / 4 * 3;
        let memory_max = limits.memory_messages_max_bytes;
        // An open server where nobody has a name loses nothing.
        let is_above = is_above(self.memory, memory, memory_max)
            || is_above(directory.anonymous_stored(), stored, limits.store_bytes_max)
            || self.messages >= messages_max(memory_max) / 4 * 3;
        is_above && directory.names().has_any()
    }
}

impl Stats {
    /// Changes the sums by a change of one mailbox.
    pub(super) fn recount(&mut self, before: Totals, after: Totals) {
        self.messages = self.messages + after.messages as u64 - before.messages as u64;
        self.bytes = self.bytes + after.bytes as u64 - before.bytes as u64;
        self.memory = self.memory + after.memory as u64 - before.memory as u64;
    }
}

impl Broker {
    /// Changes a mailbox, and all sums with it.
    pub(super) fn change_mailbox(&mut self, id: DeviceId, change: impl FnOnce(&mut Mailbox)) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let before = device.mailbox.totals();
        change(&mut device.mailbox);
        let after = device.mailbox.totals();
        self.recount(before, after);
    }

    /// Changes all sums by a change of one mailbox, whose totals were `before` and are `after`.
    #[inline]
    pub(super) fn recount(&mut self, before: Totals, after: Totals) {
        self.mailboxes.stats.recount(before, after);
        // The directory is shared: its cache lines are left alone where nothing of it changes.
        if before.receipts != after.receipts {
            self.directory.recount_receipts(before.receipts, after.receipts);
        }
        let (own, before, after) =
            (&mut self.mailboxes.anonymous, before.anonymous, after.anonymous);
        own.messages = own.messages + after.messages - before.messages;
        own.memory = own.memory + after.memory - before.memory;
        if before.stored != after.stored {
            own.stored = own.stored + after.stored - before.stored;
            self.directory.recount_anonymous(before.stored, after.stored);
        }
    }
}
