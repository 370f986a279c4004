//! Messages whose senders asked for the outcomes, from when they are sent until the reply comes.

use std::time::Duration;

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;

use crate::shrink::{self, KEPT_BY_SHARD, shrink};
use crate::{Digest, Moment};

/// The room that is reserved for the outcomes of messages whose replies have not come. It is kept
/// by message, so a retry needs no room of its own.
///
/// While the store fails, a reply may be very long in coming. So room that is too old is released:
/// every [`TURN`] the room in `old` is, and `young` becomes `old`.
#[derive(Debug, Default)]
pub(super) struct Asked {
    young: FxHashMap<AskedKey, Room>,
    old: FxHashMap<AskedKey, Room>,
    turned_at: Moment,
}

/// Time for which room is kept without a reply: at least once this, at most twice.
const TURN: Duration = Duration::from_secs(60);

/// A message, as its sender's shard knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AskedKey {
    pub(super) from: DeviceId,
    pub(super) to: DeviceId,
    /// Digest of the message's id and, if the sender is ephemeral, of its incarnation.
    pub(super) id: Digest,
}

/// Room that is reserved for the outcome of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// A place among the device's outcomes.
    Place,
    /// A place, and memory, should the outcome be in memory only.
    PlaceAndMemory,
}

impl Asked {
    pub(super) fn has(&self, key: &AskedKey) -> bool {
        self.young.contains_key(key) || self.old.contains_key(key)
    }

    pub(super) fn add(&mut self, now: Moment, key: AskedKey, room: Room) {
        if self.young.is_empty() && self.old.is_empty() {
            self.turned_at = now;
        }
        self.young.insert(key, room);
    }

    /// Takes out a message whose reply has come.
    pub(super) fn take(&mut self, key: &AskedKey) -> Option<Room> {
        let room = self.young.remove(key).or_else(|| self.old.remove(key));
        shrink(&mut self.young, KEPT_BY_SHARD);
        shrink(&mut self.old, KEPT_BY_SHARD);
        room
    }

    /// Returns the time of the next turn.
    pub(super) fn due(&self) -> Option<Moment> {
        let is_empty = self.young.is_empty() && self.old.is_empty();
        (!is_empty).then(|| self.turned_at.after(TURN))
    }

    /// Begins the next turn; returns the messages whose room is too old, and is to be released.
    pub(super) fn turn(&mut self, now: Moment) -> Vec<(AskedKey, Room)> {
        self.turned_at = now;
        let old = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        old.into_iter().collect()
    }

    /// Fails if memory is not given back. For tests.
    pub(super) fn audit(&self) -> Result<(), String> {
        shrink::audit("messages that are asked about", &self.young, KEPT_BY_SHARD)?;
        shrink::audit("older ones", &self.old, KEPT_BY_SHARD)
    }
}
