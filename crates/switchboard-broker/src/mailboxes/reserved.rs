//! Room that a device has reserved for outcomes, by the receivers of the messages.

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;

use super::shares::{Load, MESSAGES_MIN, Quota};
use crate::shrink::{self, KEPT, shrink};

/// Outcomes that a device asked for and that are pending.
///
/// A receiver decides how long one stays so, and could keep all room for as long as it does not ack:
/// so each has a share, as a sender has of a mailbox. Which receivers they are is always counted, for
/// the ids of the messages may be forgotten long before.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    all: usize,
    receivers: Option<Box<Receivers>>,
}

#[derive(Debug, Default)]
struct Receivers {
    /// A receiver at which nothing is pending any more stays, as long as such are not the most: mostly
    /// it is sent to again.
    pending: FxHashMap<DeviceId, usize>,
    /// Those at which something is.
    used: usize,
    /// What is pending at those without a name.
    anonymous: usize,
}

/// Why no room is reserved for one more outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutcomesFull {
    /// All room is in use: by outcomes that are pending, and by those that wait for the device.
    All { pending: usize, waiting: usize },
    /// So many are pending of messages to this receiver.
    Receiver { pending: usize },
    /// So many are pending of messages to devices without a name.
    Anonymous { pending: usize },
}

impl Reserved {
    pub(super) fn len(&self) -> usize {
        self.all
    }

    /// Reserves room for the outcome of a message, beside `waiting` outcomes that came.
    pub(super) fn try_add(
        &mut self,
        receiver: DeviceId,
        waiting: usize,
        quota: &Quota,
    ) -> Result<(), OutcomesFull> {
        let load = messages(self.all + waiting);
        if !quota.has_room(load, 0) {
            return Err(OutcomesFull::All { pending: self.all, waiting });
        }
        self.receivers.get_or_insert_default().try_add(receiver, |own, anonymous| {
            if !quota.is_within_share(load, messages(own), 0) {
                return Err(OutcomesFull::Receiver { pending: own });
            }
            let is_limited = quota.limits_anonymous
                && receiver.is_number()
                && anonymous >= MESSAGES_MIN
                && !quota.is_within_anonymous(messages(anonymous), 0);
            if is_limited { Err(OutcomesFull::Anonymous { pending: anonymous }) } else { Ok(()) }
        })?;
        self.all += 1;
        Ok(())
    }

    /// Reserves room however much there is.
    pub(super) fn add(&mut self, receiver: DeviceId) {
        let added = self.receivers.get_or_insert_default().try_add(receiver, |_, _| Ok(()));
        self.all += usize::from(added.is_ok());
    }

    /// Releases the room for one outcome. There is none for a message that a device of this id sent
    /// before it ended.
    pub(super) fn remove(&mut self, receiver: DeviceId) {
        let receivers = self.receivers.as_mut();
        if receivers.is_some_and(|receivers| receivers.remove(receiver)) {
            self.all -= 1;
        }
    }

    /// The device is away: memory is kept only for what is there.
    pub(super) fn rest(&mut self) {
        if self.all == 0 {
            self.receivers = None;
        } else if let Some(receivers) = &mut self.receivers {
            receivers.forget_unused(0);
        }
    }

    /// Says where the counts differ, or memory is not given back. For tests.
    pub(super) fn audit(&self) -> Result<(), String> {
        let counted =
            self.receivers.as_ref().map_or(0, |receivers| receivers.pending.values().sum());
        if counted != self.all {
            return Err(format!("{} outcomes are reserved, {counted} by receiver", self.all));
        }
        self.receivers.as_ref().map_or(Ok(()), |receivers| receivers.audit())
    }
}

impl Receivers {
    #[inline]
    fn try_add(
        &mut self,
        receiver: DeviceId,
        may_add: impl FnOnce(usize, usize) -> Result<(), OutcomesFull>,
    ) -> Result<(), OutcomesFull> {
        let own = self.pending.entry(receiver).or_default();
        let may_add = may_add(*own, self.anonymous);
        if may_add.is_ok() {
            self.used += usize::from(*own == 0);
            *own += 1;
            self.anonymous += usize::from(receiver.is_number());
        } else if self.has_too_many_unused() {
            self.forget_unused(KEPT);
        }
        may_add
    }

    /// Returns whether something was pending there.
    #[inline]
    fn remove(&mut self, receiver: DeviceId) -> bool {
        let Some(own) = self.pending.get_mut(&receiver).filter(|own| **own > 0) else {
            return false;
        };
        *own -= 1;
        self.anonymous -= usize::from(receiver.is_number());
        if *own == 0 {
            self.used -= 1;
            if self.has_too_many_unused() {
                self.forget_unused(KEPT);
            }
        }
        true
    }

    #[inline]
    fn has_too_many_unused(&self) -> bool {
        self.pending.len() > 2 * (self.used + KEPT)
    }

    #[cold]
    fn forget_unused(&mut self, kept: usize) {
        self.pending.retain(|_, own| *own > 0);
        shrink(&mut self.pending, kept);
    }

    fn audit(&self) -> Result<(), String> {
        let used = self.pending.values().filter(|own| **own > 0).count();
        let anonymous = self.pending.iter().filter(|(receiver, _)| receiver.is_number());
        let anonymous: usize = anonymous.map(|(_, own)| own).sum();
        if (used, anonymous) != (self.used, self.anonymous) {
            return Err(format!("{used} receivers, {anonymous} anonymous: {self:?}"));
        }
        if self.has_too_many_unused() {
            return Err(format!("{} receivers, {used} used", self.pending.len()));
        }
        shrink::audit("receivers", &self.pending, KEPT)
    }
}

fn messages(messages: usize) -> Load {
    Load { messages, bytes: 0 }
}
