//! Room that is reserved for the outcomes that a device asked for, by the receivers of its
//! messages.

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;

use super::shares::{Load, MESSAGES_MIN, Quota};
use crate::shrink::{self, KEPT, shrink};

/// Outcomes that a device asked for and that are pending.
///
/// A receiver decides how long an outcome is pending, and could take all room by not acking. So
/// each has a share of the room, as each sender has of a mailbox. Receivers are counted at all
/// times: when room is short it is too late to count, because the server keeps no list of the
/// messages that a device sent.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    all: usize,
    receivers: Option<Box<Receivers>>,
}

#[derive(Debug, Default)]
struct Receivers {
    /// Number of pending outcomes by receiver. A receiver at 0 stays in the table, as it is usually
    /// sent to again, until the receivers at 0 outnumber the others.
    pending: FxHashMap<DeviceId, usize>,
    /// Number of receivers with pending outcomes.
    used: usize,
    /// Number of outcomes that are pending at receivers without a name.
    anonymous: usize,
}

/// Reasons for not reserving room for one more outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomesFull {
    /// All room is in use: by outcomes that are pending, and by those that wait for the device.
    All {
        /// Number of outcomes that are pending.
        pending: usize,
        /// Number of outcomes that wait for the device.
        waiting: usize,
    },
    /// The share of this receiver is in use, by outcomes of messages to it that are pending.
    Receiver {
        /// Their number.
        pending: usize,
    },
    /// The share of devices without a name is in use, by outcomes of messages to them that are
    /// pending.
    Anonymous {
        /// Their number.
        pending: usize,
    },
}

impl Reserved {
    pub(super) fn len(&self) -> usize {
        self.all
    }

    /// Reserves room for the outcome of a message, beside `waiting` outcomes that wait for the
    /// device.
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
            // Ten at least, as for one receiver, however small the quota is.
            let is_limited = quota.limits_anonymous
                && receiver.is_number()
                && anonymous >= MESSAGES_MIN
                && !quota.is_within_anonymous(messages(anonymous), 0);
            if is_limited { Err(OutcomesFull::Anonymous { pending: anonymous }) } else { Ok(()) }
        })?;
        self.all += 1;
        Ok(())
    }

    /// Reserves room, whatever the quota.
    pub(super) fn add(&mut self, receiver: DeviceId) {
        let added = self.receivers.get_or_insert_default().try_add(receiver, |_, _| Ok(()));
        self.all += usize::from(added.is_ok());
    }

    /// Releases the room for one outcome.
    pub(super) fn remove(&mut self, receiver: DeviceId) {
        let receivers = self.receivers.as_mut();
        // Nothing may be reserved for it: the message may have been sent before the server started,
        // or by an earlier device with this id.
        if receivers.is_some_and(|receivers| receivers.remove(receiver)) {
            self.all -= 1;
        }
    }

    /// Gives back the memory that is kept for what may come, as the device is away.
    pub(super) fn rest(&mut self) {
        if self.all == 0 {
            self.receivers = None;
        } else if let Some(receivers) = &mut self.receivers {
            receivers.forget_unused(0);
        }
    }

    /// Fails if a count differs, or memory is not given back. For tests.
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
            // The look-up has added the receiver, although nothing is pending there.
            self.forget_unused(KEPT);
        }
        may_add
    }

    /// Counts off an outcome that is not pending any more; returns whether one was.
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
