//! Messages whose senders asked for the outcomes, from when they are sent until the reply comes.

use std::time::Duration;

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;

use crate::shrink::{self, KEPT_BY_SHARD, shrink};
use crate::{Digest, Moment};

/// The room that is reserved for the outcomes of messages whose replies have not come. It is kept
/// by message, so a retry needs no room of its own: the room is released with the last attempt that
/// is refused.
///
/// While the store fails, a reply may be very long in coming. So room that is too old is released:
/// every [`TURN`] the room in `old` is, and `young` becomes `old`.
#[derive(Debug, Default)]
pub(super) struct Asked {
    young: FxHashMap<AskedKey, Reserved>,
    old: FxHashMap<AskedKey, Reserved>,
    turned_at: Moment,
}

/// Time for which room is kept without a reply: at least once this, at most twice.
const TURN: Duration = Duration::from_secs(60);

/// A message, as its sender's shard knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AskedKey {
    pub(super) from: DeviceId,
    /// As [`Deliver::incarnation`](super::Deliver::incarnation).
    pub(super) incarnation: Option<u64>,
    pub(super) to: DeviceId,
    /// Digest of the message's id.
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

/// The room of a message.
#[derive(Debug)]
struct Reserved {
    room: Room,
    /// Number of attempts that share it and have no reply.
    attempts: u32,
}

impl Asked {
    /// Adds an attempt to send a message; returns the room that it shares with earlier ones.
    pub(super) fn share(&mut self, key: &AskedKey) -> Option<Room> {
        let reserved = self.get_mut(key)?;
        reserved.attempts = reserved.attempts.saturating_add(1);
        Some(reserved.room)
    }

    fn get_mut(&mut self, key: &AskedKey) -> Option<&mut Reserved> {
        self.young.get_mut(key).or_else(|| self.old.get_mut(key))
    }

    pub(super) fn add(&mut self, now: Moment, key: AskedKey, room: Room) {
        if self.young.is_empty() && self.old.is_empty() {
            self.turned_at = now;
        }
        self.young.insert(key, Reserved { room, attempts: 1 });
    }

    /// Takes out a message that was accepted.
    pub(super) fn take(&mut self, key: &AskedKey) -> Option<Room> {
        let reserved = self.young.remove(key).or_else(|| self.old.remove(key));
        shrink(&mut self.young, KEPT_BY_SHARD);
        shrink(&mut self.old, KEPT_BY_SHARD);
        reserved.map(|reserved| reserved.room)
    }

    /// Takes out an attempt that was refused; returns the room if it was the last one.
    pub(super) fn refused(&mut self, key: &AskedKey) -> Option<Room> {
        let reserved = self.get_mut(key)?;
        reserved.attempts = reserved.attempts.saturating_sub(1);
        if reserved.attempts > 0 {
            return None;
        }
        self.take(key)
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
        old.into_iter().map(|(key, reserved)| (key, reserved.room)).collect()
    }

    /// Fails if memory is not given back. For tests.
    pub(super) fn audit(&self) -> Result<(), String> {
        shrink::audit("messages that are asked about", &self.young, KEPT_BY_SHARD)?;
        shrink::audit("older ones", &self.old, KEPT_BY_SHARD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_released_with_the_last_attempt_that_is_refused() {
        let (from, to) = (DeviceId::FIRST, DeviceId::FIRST);
        let key = AskedKey { from, incarnation: None, to, id: Digest::default() };
        let mut asked = Asked::default();
        assert_eq!(asked.share(&key), None);
        asked.add(Moment::default(), key, Room::Place);
        assert_eq!(asked.share(&key), Some(Room::Place));
        asked.turn(Moment::from_ms(1));
        assert_eq!(asked.share(&key), Some(Room::Place), "also when it is old");
        assert_eq!([(); 3].map(|()| asked.refused(&key)), [None, None, Some(Room::Place)]);
        assert_eq!(asked.due(), None);
    }
}
