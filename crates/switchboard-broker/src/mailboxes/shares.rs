//! Shares of the senders in one mailbox.

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;

use super::entry::Entry;
use crate::shrink::{self, KEPT, shrink};

/// Number of messages that one sender may have in a mailbox, however small its share.
pub(super) const MESSAGES_MIN: usize = 10;

/// Bounds on a mailbox, and on the share of one sender in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: usize,
    /// Share of one sender of what the others leave free, in percent.
    pub(crate) share: usize,
    /// True if senders without names may fill three quarters together, so that strangers cannot
    /// shut out senders with names.
    pub(crate) limits_anonymous: bool,
}

/// Messages in a mailbox, all or those of some senders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// Load of each sender in one mailbox.
///
/// It is counted when the mailbox passes the load up to which no sender can be above its share, and
/// kept until less than half of that load is left. By then at least half of the messages that were
/// counted have left, so counting costs each of these a constant time.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    by_sender: FxHashMap<DeviceId, Load>,
    anonymous: Load,
    /// The load up to which no sender can be above its share.
    free_for_all: Load,
}

impl Load {
    fn add(&mut self, len: usize) {
        self.messages += 1;
        self.bytes += len;
    }

    fn remove(&mut self, len: usize) {
        self.messages -= 1;
        self.bytes -= len;
    }

    /// Returns the load without another one, which is a part of it.
    pub(crate) fn without(self, other: Load) -> Load {
        let messages = self.messages.saturating_sub(other.messages);
        Load { messages, bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

impl Quota {
    /// Returns whether one more message of `len` bytes is within the quota of all senders.
    #[inline]
    pub(crate) fn has_room(&self, load: Load, len: usize) -> bool {
        load.messages < self.messages_max && load.bytes + len <= self.bytes_max
    }

    /// Returns whether no sender can be above its share after a message of `len` bytes is added to
    /// `load`.
    ///
    /// A sender with `o` of `w` messages may add one if `o + 1 <= s * (max - (w - o))`. With a
    /// share `s` of at most 1 the left side grows with `o` at least as fast as the right one, so
    /// it is enough that this is true for `o = w`: that `w + 1 <= s * max`. The same is true for
    /// bytes, and for all anonymous senders together, whose bound is three quarters of `max`.
    #[inline]
    pub(crate) fn is_free_for_all(&self, load: Load, len: usize) -> bool {
        let free = self.free_for_all();
        load.messages < free.messages && load.bytes + len <= free.bytes
    }

    #[inline]
    fn free_for_all(&self) -> Load {
        let part = if self.limits_anonymous { self.share.min(75) } else { self.share };
        Load { messages: self.messages_max * part / 100, bytes: self.bytes_max / 100 * part }
    }

    /// Returns whether a sender that has `own` of `load` may add a message of `len` bytes.
    pub(super) fn is_within_share(&self, load: Load, own: Load, len: usize) -> bool {
        let others = load.without(own);
        let messages = (self.messages_max.saturating_sub(others.messages)) * self.share / 100;
        // Divided first, so that the product cannot overflow.
        let bytes = (self.bytes_max.saturating_sub(others.bytes)) / 100 * self.share;
        // A sender with nothing in the mailbox may have one message of any length: one that is
        // longer than its share would be rejected for ever.
        own.messages < messages.max(MESSAGES_MIN) && (own.bytes == 0 || own.bytes + len <= bytes)
    }

    pub(super) fn is_within_anonymous(&self, anonymous: Load, len: usize) -> bool {
        let (messages, bytes) = (self.messages_max * 3 / 4, self.bytes_max / 4 * 3);
        anonymous.messages < messages && anonymous.bytes + len <= bytes
    }
}

impl Shares {
    /// Counts what waits in a mailbox.
    pub(crate) fn counted<'a>(quota: &Quota, waiting: impl Iterator<Item = &'a Entry>) -> Shares {
        let mut shares = Shares { free_for_all: quota.free_for_all(), ..Shares::default() };
        waiting.filter(|entry| !entry.is_outcome()).for_each(|entry| shares.add(entry));
        shares
    }

    /// Returns whether the mailbox has so little load that shares need not be counted any more.
    #[inline]
    pub(crate) fn is_over(&self, load: Load) -> bool {
        let free = self.free_for_all;
        let is_calm = 2 * load.messages < free.messages && 2 * load.bytes < free.bytes;
        // With a tiny quota nothing is below half of it.
        is_calm || load.messages == 0
    }

    pub(crate) fn add(&mut self, entry: &Entry) {
        let len = entry.len as usize;
        self.by_sender.entry(entry.from).or_default().add(len);
        if entry.from.is_number() {
            self.anonymous.add(len);
        }
    }

    pub(crate) fn remove(&mut self, entry: &Entry) {
        let len = entry.len as usize;
        if let Some(load) = self.by_sender.get_mut(&entry.from) {
            load.remove(len);
            if load.messages == 0 {
                self.by_sender.remove(&entry.from);
                shrink(&mut self.by_sender, KEPT);
            }
        }
        if entry.from.is_number() {
            self.anonymous.remove(len);
        }
    }

    /// Returns whether a sender may add a message of `len` bytes to a mailbox that holds `load`.
    pub(crate) fn may_add(&self, quota: &Quota, load: Load, from: DeviceId, len: usize) -> bool {
        let own = self.by_sender.get(&from).copied().unwrap_or_default();
        quota.is_within_share(load, own, len)
            && (!quota.limits_anonymous
                || !from.is_number()
                || quota.is_within_anonymous(self.anonymous, len))
    }

    /// Fails if a count differs from what waits, or memory is not given back. For tests.
    pub(crate) fn audit<'a>(
        &self,
        load: Load,
        waiting: impl Iterator<Item = &'a Entry>,
    ) -> Result<(), String> {
        if self.is_over(load) {
            return Err(format!("shares are counted of no more than {load:?}"));
        }
        let mut counted = Shares::default();
        waiting.filter(|entry| !entry.is_outcome()).for_each(|entry| counted.add(entry));
        let shares = (&counted.by_sender, counted.anonymous);
        let kept = (&self.by_sender, self.anonymous);
        if shares != kept {
            return Err(format!("shares are {shares:?}, kept {kept:?}"));
        }
        shrink::audit("shares", &self.by_sender, KEPT)
    }
}
