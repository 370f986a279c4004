//! Choice of the devices that lose ids when all devices together have too many.

use switchboard_proto::DeviceId;

use super::sent::Sent;
use super::{Mailboxes, Now};
use crate::shrink::{self, KEPT, shrink};

/// Number of devices that are tried before a send goes on with one id too many.
const TRIES_MAX: usize = 8;

/// Number of ids that are forgotten together: they lie side by side in memory, and the next sends
/// need not choose a device again.
const FORGOTTEN_AT_ONCE: usize = 256;

/// Classes are powers of two, and no device has as many as 2^32 ids.
const CLASSES: usize = 32;

/// The devices that hold ids, in classes by the power of two of their number of ids.
///
/// A device is moved only when it crosses a power of two, so a send usually costs a comparison.
/// Only the devices of the highest class lose ids: a stranger that sends a million messages
/// shortens its own window and those of others like it, never that of a device with a few.
/// Devices without a name are a crowd of their own, because anybody can make any number of them:
/// as long as they hold more than half of all ids, devices with names lose none.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    named: Classes,
    anonymous: Classes,
}

#[derive(Debug, Default)]
struct Classes {
    /// By class, in no order.
    members: [Vec<DeviceId>; CLASSES],
    /// Number of ids that they hold.
    ids: usize,
    /// Index of the member of the highest class that lost ids last.
    turn: usize,
}

/// Position of a device in its [`Crowd`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The class, counted from 1; 0 is none.
    class: u8,
    /// The index in it.
    index: u32,
}

/// Ids that a device lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    ids: usize,
    /// True if the device holds too few for its class now.
    changes_class: bool,
}

impl Sent {
    /// Returns the loss of ids that were just dropped, and whether the device must change its
    /// class.
    #[inline]
    pub(super) fn dropped(&self, ids: usize) -> Dropped {
        let changes_class = ids > 0 && !may_stay(self.standing.class, self.len());
        Dropped { ids, changes_class }
    }
}

impl Crowd {
    fn of(&mut self, id: DeviceId) -> &mut Classes {
        if id.is_number() { &mut self.anonymous } else { &mut self.named }
    }

    /// Returns a device of the highest class of the crowd that must give way; further calls return
    /// the others in turn.
    fn fullest(&mut self) -> Option<DeviceId> {
        let is_anonymous = self.anonymous.ids > self.named.ids;
        let classes = if is_anonymous { &mut self.anonymous } else { &mut self.named };
        let members = classes.members.iter().rfind(|members| !members.is_empty())?;
        // Also past one that cannot lose any, because its oldest id is not answered.
        classes.turn = (classes.turn + 1) % members.len();
        Some(members[classes.turn])
    }
}

/// Returns the class that a device with `len` ids enters when it leaves its own.
fn class_of(len: usize) -> u8 {
    len.checked_ilog2().map_or(0, |log| log as u8 + 1)
}

/// Returns whether a device with `len` ids may stay in its class.
fn may_stay(class: u8, len: usize) -> bool {
    let from = 1_usize << class >> 1;
    // Down to three quarters of the lower bound, so that a device which goes back and forth over a
    // power of two is not moved each time.
    len > from - from.div_ceil(4) && len < 2 * from
}

impl Mailboxes {
    /// Counts an id that was added to those of a device, which has `len` now.
    #[inline]
    pub(super) fn id_added(&mut self, id: DeviceId, len: usize) {
        self.stats.sent_ids += 1;
        self.crowd.of(id).ids += 1;
        // Only at a power of two can one more id be too many for its class.
        if len.is_power_of_two() {
            self.stand(id);
        }
    }

    /// Counts ids of a device that were forgotten.
    #[inline]
    pub(super) fn ids_dropped(&mut self, id: DeviceId, dropped: Dropped) {
        if dropped.ids > 0 {
            self.stats.sent_ids -= dropped.ids as u64;
            self.crowd.of(id).ids -= dropped.ids;
            if dropped.changes_class {
                self.stand(id);
            }
        }
    }

    /// Counts off a device that ends, with all its ids.
    pub(super) fn ids_end(&mut self, id: DeviceId, sent: &Sent) {
        self.stats.sent_ids -= sent.len() as u64;
        self.crowd.of(id).ids -= sent.len();
        self.leave_class(id, sent.standing);
    }

    /// Moves a device to the class of its number of ids, unless it may stay in its own.
    fn stand(&mut self, id: DeviceId) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        let (before, len) = (device.sent.standing, device.sent.len());
        if may_stay(before.class, len) {
            return;
        }
        let class = class_of(len);
        device.sent.standing = Standing::default();
        self.leave_class(id, before);
        if class > 0 {
            let members = &mut self.crowd.of(id).members[usize::from(class) - 1];
            let index = members.len() as u32;
            members.push(id);
            if let Some(device) = self.devices.get_mut(&id) {
                device.sent.standing = Standing { class, index };
            }
        }
    }

    fn leave_class(&mut self, id: DeviceId, standing: Standing) {
        let Some(class) = usize::from(standing.class).checked_sub(1) else { return };
        let members = &mut self.crowd.of(id).members[class];
        members.swap_remove(standing.index as usize);
        shrink(members, KEPT);
        let moved = members.get(standing.index as usize).copied();
        if let Some(device) = moved.and_then(|moved| self.devices.get_mut(&moved)) {
            device.sent.standing.index = standing.index;
        }
    }

    /// Forgets the oldest ids of the devices that hold the most, until at most `dedup_ids_max` are
    /// left.
    ///
    /// An id that is not answered yet is never forgotten, nor those that were sent after it:
    /// they are in excess until they are answered. What waits for the store or another shard is
    /// bounded.
    pub(super) fn forget_of_fullest(&mut self, now: Now) {
        let max = self.limits.dedup_ids_max;
        let window = self.limits.dedup_window;
        // More than need be, so that not every send has to come here.
        let slack = (max / 8).min(FORGOTTEN_AT_ONCE);
        for _ in 0..TRIES_MAX {
            let excess = (self.stats.sent_ids as usize).saturating_sub(max);
            if excess == 0 {
                return;
            }
            let Some(id) = self.crowd.fullest() else { return };
            let Some(device) = self.devices.get_mut(&id) else { return };
            // At most half of what it holds, before it is the next one's turn.
            let most = (excess + slack).min(device.sent.len().div_ceil(2));
            let mut left = most;
            let dropped = device.sent.drop_front(|sent| {
                let is_one_of_them = left > 0;
                left = left.saturating_sub(1);
                is_one_of_them || now.at.since(sent.at()) >= window
            });
            device.rest_if_away();
            let dropped = device.sent.dropped(dropped);
            self.ids_dropped(id, dropped);
        }
    }

    /// Fails if a standing is not that of the device's number of ids. For tests.
    pub(super) fn audit_crowd(&self) -> Result<(), String> {
        let mut members = 0;
        for (&id, device) in &self.devices {
            let Standing { class, index } = device.sent.standing;
            let len = device.sent.len();
            if (class == 0) != (len == 0) || class > 0 && !may_stay(class, len) {
                return Err(format!("{id:?} has {len} ids and is in class {class}"));
            }
            if class > 0 {
                let crowd = &self.crowd;
                let classes = if id.is_number() { &crowd.anonymous } else { &crowd.named };
                let found = classes.members[usize::from(class) - 1].get(index as usize);
                if found != Some(&id) {
                    return Err(format!("{id:?} is not where it says: {found:?}"));
                }
                members += 1;
            }
        }
        let crowds = [&self.crowd.named, &self.crowd.anonymous];
        for members in crowds.iter().flat_map(|classes| &classes.members) {
            shrink::audit("members of a class", members, KEPT)?;
        }
        let ids: usize = crowds.iter().map(|classes| classes.ids).sum();
        let all: usize =
            crowds.iter().flat_map(|classes| classes.members.iter().map(Vec::len)).sum();
        if (all, ids as u64) != (members, self.stats.sent_ids) {
            return Err(format!("{all} members instead of {members}; {ids} ids"));
        }
        Ok(())
    }
}
