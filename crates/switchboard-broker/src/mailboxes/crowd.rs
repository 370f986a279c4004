//! Whose ids are forgotten when all devices together have sent under too many.

use switchboard_proto::DeviceId;

use super::sent::Sent;
use super::{Mailboxes, Now};
use crate::shrink::{self, KEPT, shrink};

/// Devices that are tried before a send goes on with one id too many.
const TRIES_MAX: usize = 8;

/// Ids that are forgotten together: they lie side by side in memory, and the next sends need not
/// look for a device again.
const FORGOTTEN_AT_ONCE: usize = 256;

/// Classes are powers of two, and no device has as many as 2^32 ids.
const CLASSES: usize = 32;

/// The devices that hold ids, in classes by the power of two of how many they hold.
///
/// A device is moved only when it crosses a power of two, so a send mostly costs a comparison. Only
/// the devices of the highest class lose ids: a stranger who sends a million shortens his own window
/// and those of others like him, never that of a device with a few. Devices without a name are a
/// crowd of their own, because anybody can make any number of them: as long as they hold more than
/// half of all ids, the ids of devices with names are left alone.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    named: Classes,
    anonymous: Classes,
}

#[derive(Debug, Default)]
struct Classes {
    /// By class, in no order.
    members: [Vec<DeviceId>; CLASSES],
    /// Ids that they hold.
    ids: usize,
    /// Whose turn it is in the highest class.
    turn: usize,
}

/// Where a device stands in its [`Crowd`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The class, counted from 1; 0 is none.
    class: u8,
    /// The index in it.
    index: u32,
}

/// What a device lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    ids: usize,
    /// It holds too few for its class now.
    changes_class: bool,
}

impl Sent {
    /// Returns what it means for the device's class that this many ids were just dropped.
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

    /// The devices with the most ids, in the crowd that must give way.
    fn fullest(&mut self) -> Option<DeviceId> {
        let is_anonymous = self.anonymous.ids > self.named.ids;
        let classes = if is_anonymous { &mut self.anonymous } else { &mut self.named };
        let members = classes.members.iter().rfind(|members| !members.is_empty())?;
        classes.turn = (classes.turn + 1) % members.len();
        Some(members[classes.turn])
    }
}

/// The class of a device that holds `len` ids, once it has left the one in which it is.
fn class_of(len: usize) -> u8 {
    len.checked_ilog2().map_or(0, |log| log as u8 + 1)
}

/// Returns whether a device that holds `len` ids may stay in its class: one that goes back and forth over
/// a power of two is not moved each time.
fn may_stay(class: u8, len: usize) -> bool {
    let from = 1_usize << class >> 1;
    len > from - from.div_ceil(4) && len < 2 * from
}

impl Mailboxes {
    /// An id was added to those of a device.
    #[inline]
    pub(super) fn id_added(&mut self, id: DeviceId, len: usize) {
        self.stats.sent_ids += 1;
        self.crowd.of(id).ids += 1;
        if len.is_power_of_two() {
            self.stand(id);
        }
    }

    /// Ids of a device were forgotten.
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

    /// A device ends, with all its ids.
    pub(super) fn ids_end(&mut self, id: DeviceId, sent: &Sent) {
        self.stats.sent_ids -= sent.len() as u64;
        self.crowd.of(id).ids -= sent.len();
        self.leave_class(id, sent.standing);
    }

    /// Puts a device into the class that is its own now.
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

    /// Forgets the oldest ids of those who hold the most, until at most `dedup_ids_max` are left.
    ///
    /// One that is not answered yet is never forgotten, nor what was sent behind it: such ids are in
    /// excess until they are answered, and what waits for the store or another shard is bounded.
    pub(super) fn forget_of_fullest(&mut self, now: Now) {
        let max = self.limits.dedup_ids_max;
        let window = self.limits.dedup_window;
        let slack = (max / 8).min(FORGOTTEN_AT_ONCE);
        for _ in 0..TRIES_MAX {
            let excess = (self.stats.sent_ids as usize).saturating_sub(max);
            if excess == 0 {
                return;
            }
            let Some(id) = self.crowd.fullest() else { return };
            let Some(device) = self.devices.get_mut(&id) else { return };
            // No device gives more than half of what it holds before the next one has its turn.
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

    /// Returns whether the standings are what the ids say. For tests.
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
