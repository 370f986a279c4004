//! Sums over what waits in mailboxes, and what devices without a name may have of it.

use std::ops::{AddAssign, SubAssign};

use switchboard_proto::v1::{Durability, ID_LEN_MAX, REASON_LEN_MAX};

use super::{Limits, Stats};
use crate::Directory;
use crate::broker::Broker;

/// Sums over the entries of one mailbox that wait, with what is set aside for outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// What those take that are in memory only, and what is set aside for outcomes that will be.
    pub(crate) memory: usize,
    /// Messages in the store whose outcomes are asked for and not recorded.
    pub(crate) receipts: usize,
    pub(crate) anonymous: OfAnonymous,
}

/// What devices without a name take: the messages that they sent, and the outcomes for them,
/// also those that will come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OfAnonymous {
    pub(crate) stored: usize,
    pub(crate) memory: usize,
}

/// Returns what an entry of `len` bytes takes that is in memory only, and about what its record
/// does on disk.
pub(crate) const fn memory_of(len: usize) -> usize {
    /// Itself, the head of its content, and what the allocator adds.
    const OVERHEAD: usize = 128;
    OVERHEAD + len
}

/// What the longest outcome takes in memory: set aside before its message is accepted, so that
/// nobody can make much of little by refusing with long reasons.
pub(crate) const OUTCOME_MEMORY: usize = memory_of(ID_LEN_MAX + REASON_LEN_MAX);

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.memory += other.memory;
        self.receipts += other.receipts;
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
        self.anonymous.stored -= other.anonymous.stored;
        self.anonymous.memory -= other.anonymous.memory;
    }
}

impl OfAnonymous {
    /// Returns whether a message of `len` bytes more would be above three quarters of the memory or
    /// of the store, where that is the bound for those without a name: not before a device with a
    /// name has come.
    pub(super) fn is_above(
        self,
        durability: Durability,
        len: usize,
        limits: &Limits,
        directory: &Directory,
    ) -> bool {
        let (used, max) = match durability {
            Durability::Memory => (self.memory, limits.memory_messages_max_bytes),
            _ => (directory.anonymous_stored(), limits.store_bytes_max),
        };
        used + memory_of(len) > max / 4 * 3 && directory.names().has_any()
    }
}

impl Stats {
    /// One of the mailboxes changed.
    pub(super) fn recount(&mut self, before: Totals, after: Totals) {
        self.messages = self.messages + after.messages as u64 - before.messages as u64;
        self.bytes = self.bytes + after.bytes as u64 - before.bytes as u64;
        self.memory = self.memory + after.memory as u64 - before.memory as u64;
    }
}

impl Broker {
    /// One of the mailboxes changed.
    #[inline]
    pub(super) fn recount(&mut self, before: Totals, after: Totals) {
        self.mailboxes.stats.recount(before, after);
        if before.receipts != after.receipts {
            self.directory.recount_receipts(before.receipts, after.receipts);
        }
        let (own, before, after) =
            (&mut self.mailboxes.anonymous, before.anonymous, after.anonymous);
        own.memory = own.memory + after.memory - before.memory;
        if before.stored != after.stored {
            own.stored = own.stored + after.stored - before.stored;
            self.directory.recount_anonymous(before.stored, after.stored);
        }
    }
}
