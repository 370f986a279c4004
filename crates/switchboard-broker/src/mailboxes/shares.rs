//! How much of one mailbox each sender takes.

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;

use super::mailbox::Entry;

/// Messages that one sender may have in a mailbox, however full it is.
const MESSAGES_MIN: usize = 10;

/// What a mailbox may hold, and how much of it one sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: usize,
    /// Of what is free without his own messages, in percent.
    pub(crate) share: usize,
    /// Senders without names may fill three quarters of it together, so that strangers cannot shut
    /// out those who have names.
    pub(crate) limits_anonymous: bool,
}

/// What somebody has in a mailbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// Who has how much in one mailbox. It is counted when the mailbox is past the point up to which no
/// sender can be above his share, and kept until it is less than a quarter full: between the two
/// lie as many messages as were counted, so counting costs each of them once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    by_sender: FxHashMap<DeviceId, Load>,
    anonymous: Load,
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

    /// What is left of this without that.
    pub(crate) fn without(self, other: Load) -> Load {
        let messages = self.messages.saturating_sub(other.messages);
        Load { messages, bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

impl Quota {
    /// Whether a message of `len` bytes more is within the whole.
    #[inline]
    pub(crate) fn has_room(&self, load: Load, len: usize) -> bool {
        load.messages < self.messages_max && load.bytes + len <= self.bytes_max
    }

    /// Whether nobody can be above his share where one of `len` bytes is added to `load`.
    ///
    /// A sender with `o` of `w` messages may add one if `o + 1 <= s * (max - (w - o))`. With a share
    /// `s` of at most 1 the left side grows with `o` at least as fast as the right one, so all is
    /// well if it is for `o = w`: if `w + 1 <= s * max`. The same goes for bytes, and for all who are
    /// anonymous together, whose bound is three quarters of `max`.
    #[inline]
    pub(crate) fn is_free_for_all(&self, load: Load, len: usize) -> bool {
        let part = if self.limits_anonymous { self.share.min(75) } else { self.share };
        load.messages < self.messages_max * part / 100
            && load.bytes + len <= self.bytes_max / 100 * part
    }

    /// Whether so little is in the mailbox that counting can begin anew another time.
    pub(crate) fn is_calm(&self, load: Load) -> bool {
        load.messages < self.messages_max / 4 && load.bytes < self.bytes_max / 4
    }

    /// Whether a sender who has `own` of `load` may add `len` bytes.
    fn is_within_share(&self, load: Load, own: Load, len: usize) -> bool {
        let others = load.without(own);
        let messages = (self.messages_max.saturating_sub(others.messages)) * self.share / 100;
        let bytes = (self.bytes_max.saturating_sub(others.bytes)) / 100 * self.share;
        own.messages < messages.max(MESSAGES_MIN) && (own.bytes == 0 || own.bytes + len <= bytes)
    }

    fn is_within_anonymous(&self, anonymous: Load, len: usize) -> bool {
        let (messages, bytes) = (self.messages_max * 3 / 4, self.bytes_max / 4 * 3);
        anonymous.messages < messages && anonymous.bytes + len <= bytes
    }
}

impl Shares {
    /// Counts what waits in a mailbox.
    pub(crate) fn counted<'a>(waiting: impl Iterator<Item = &'a Entry>) -> Shares {
        let mut shares = Shares::default();
        waiting.filter(|entry| !entry.is_outcome()).for_each(|entry| shares.add(entry));
        shares
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
            }
        }
        if entry.from.is_number() {
            self.anonymous.remove(len);
        }
    }

    /// Whether a sender may add a message of `len` bytes to a mailbox that holds `load`.
    pub(crate) fn may_add(&self, quota: &Quota, load: Load, from: DeviceId, len: usize) -> bool {
        let own = self.by_sender.get(&from).copied().unwrap_or_default();
        quota.is_within_share(load, own, len)
            && (!quota.limits_anonymous
                || !from.is_number()
                || quota.is_within_anonymous(self.anonymous, len))
    }
}
