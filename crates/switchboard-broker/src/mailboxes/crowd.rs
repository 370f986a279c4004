//! Choice of the senders that lose ids when all senders together have too many.

use switchboard_proto::DeviceId;

use crate::shrink::{self, KEPT, shrink};

/// Classes are powers of two, and no sender has as many as 2^32 ids.
const CLASSES: usize = 32;

/// The senders that have ids, in classes by the power of two of their number of ids.
///
/// A sender is moved only when it crosses a power of two, so a message usually costs a comparison.
/// Only the senders of the highest class lose ids: a stranger that sends a million messages
/// shortens its own window and the windows of others like it, never the window of a sender with a
/// few. Devices without a name are a crowd of their own, because anybody can make any number of
/// them: as long as they have more than half of all ids, devices with names lose none.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    named: Classes,
    anonymous: Classes,
}

#[derive(Debug, Default)]
struct Classes {
    /// By class, in no order.
    members: [Vec<DeviceId>; CLASSES],
    /// Number of ids that they have.
    ids: usize,
    /// Index of the member of the highest class that lost ids last.
    turn: usize,
}

/// Position of a sender in its [`Crowd`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The class, counted from 1; 0 is none.
    class: u8,
    /// The index in it.
    pub(super) index: u32,
}

impl Standing {
    /// Returns whether a sender with `len` ids may stay in its class.
    #[inline]
    pub(super) fn may_stay(self, len: usize) -> bool {
        let from = 1_usize << self.class >> 1;
        // Down to three quarters of the lower bound, so that a sender which goes back and forth
        // over a power of two is not moved each time.
        len > from - from.div_ceil(4) && len < 2 * from
    }
}

/// Returns the class that a sender with `len` ids enters when it leaves its own.
fn class_of(len: usize) -> u8 {
    len.checked_ilog2().map_or(0, |log| log as u8 + 1)
}

impl Crowd {
    fn of(&mut self, sender: DeviceId) -> &mut Classes {
        if sender.is_number() { &mut self.anonymous } else { &mut self.named }
    }

    /// Counts an id of a sender.
    #[inline]
    pub(super) fn added(&mut self, sender: DeviceId) {
        self.of(sender).ids += 1;
    }

    /// Counts off ids of a sender that were forgotten.
    #[inline]
    pub(super) fn dropped(&mut self, sender: DeviceId, ids: usize) {
        self.of(sender).ids -= ids;
    }

    /// Returns a sender of the highest class of the crowd that must give way; further calls return
    /// the others in turn.
    pub(super) fn fullest(&mut self) -> Option<DeviceId> {
        let is_anonymous = self.anonymous.ids > self.named.ids;
        let classes = if is_anonymous { &mut self.anonymous } else { &mut self.named };
        let members = classes.members.iter().rfind(|members| !members.is_empty())?;
        classes.turn = (classes.turn + 1) % members.len();
        Some(members[classes.turn])
    }

    /// Moves a sender to the class of `len` ids. Returns its standing in the new class. If another
    /// sender took its place in the old class, also returns that sender and its index there.
    pub(super) fn moved(
        &mut self,
        sender: DeviceId,
        from: Standing,
        len: usize,
    ) -> (Standing, Option<(DeviceId, u32)>) {
        let classes = self.of(sender);
        let mut moved = None;
        if let Some(class) = usize::from(from.class).checked_sub(1) {
            let members = &mut classes.members[class];
            members.swap_remove(from.index as usize);
            shrink(members, KEPT);
            moved = members.get(from.index as usize).map(|other| (*other, from.index));
        }
        let class = class_of(len);
        let Some(members) = classes.members.get_mut(usize::from(class).wrapping_sub(1)) else {
            return (Standing::default(), moved);
        };
        members.push(sender);
        (Standing { class, index: members.len() as u32 - 1 }, moved)
    }

    /// Fails if a sender with `len` ids is in the wrong class, or not in its place. For tests.
    pub(super) fn audit_one(
        &self,
        sender: DeviceId,
        standing: Standing,
        len: usize,
    ) -> Result<(), String> {
        let classes = if sender.is_number() { &self.anonymous } else { &self.named };
        let members = classes.members.get(usize::from(standing.class).wrapping_sub(1));
        let found = members.and_then(|members| members.get(standing.index as usize));
        if found != Some(&sender) || !standing.may_stay(len) {
            return Err(format!("{sender:?} with {len} ids is not in its place: {standing:?}"));
        }
        Ok(())
    }

    /// Fails if the numbers of senders and ids differ from these, or memory is not given back. For
    /// tests.
    pub(super) fn audit(&self, senders: usize, ids: usize) -> Result<(), String> {
        let all = [&self.named, &self.anonymous];
        for members in all.iter().flat_map(|classes| &classes.members) {
            shrink::audit("members of a class", members, KEPT)?;
        }
        let members: usize = all.iter().flat_map(|of| of.members.iter().map(Vec::len)).sum();
        let counted: usize = all.iter().map(|classes| classes.ids).sum();
        if (members, counted) != (senders, ids) {
            return Err(format!("{members} of {senders} senders, {counted} of {ids} ids"));
        }
        Ok(())
    }
}
