//! Changes of presence whose watchers are still to be told, and the rate at which they are.
//!
//! One device may have as many watchers as there are connections, and coming and going costs the
//! device next to nothing. So its watchers are told in portions, at a rate, in turn with those of
//! other devices; if it changes meanwhile, the rest are told the latest state alone.

use std::collections::VecDeque;
use std::time::Duration;

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;

use crate::Moment;
use crate::shrink::{self, KEPT_BY_SHARD, shrink};

/// Watchers told in one millisecond, for the whole shard. Each takes a frame and a system call,
/// together about 5 us on one core, so all take at most about a tenth of the shard's time.
const TOLD_PER_MS: usize = 16;
/// Watchers told at once after a rest: a device with few of them is announced without delay.
const TOLD_AT_ONCE_MAX: usize = 256;
/// Watchers of one device told before it is the next one's turn.
const PORTION: usize = 16;

/// Changes whose watchers are not all told yet; at most one for each device.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    /// The devices, in the order in which it is their turn.
    turns: VecDeque<DeviceId>,
    changes: FxHashMap<DeviceId, Change>,
    /// Watchers that may be told now, as of `filled_at`.
    allowance: usize,
    filled_at: Moment,
}

/// The latest state of a device, and how far the walk through its watchers has come.
///
/// Watchers are told in the order of their ids. If the state changes when only some of them were
/// told, the walk does not start over, or the last watcher of a device that changes all the time
/// would never be told. It continues to the end of the list, and then from the first watcher to
/// where it was at the change.
#[derive(Clone, Copy, Debug)]
struct Change {
    online: bool,
    at_ms: u64,
    /// The watcher that was told last; `None` before the first.
    last: Option<DeviceId>,
    /// The last one to be told after the walk has started over; `None` if it ends with the list.
    until: Option<DeviceId>,
}

/// Some of the watchers of a device, which are to be told now.
#[derive(Debug, PartialEq)]
pub(super) struct Portion {
    /// The device.
    pub(super) device: DeviceId,
    pub(super) online: bool,
    pub(super) at_ms: u64,
    /// The watchers behind this one, in the order of their ids; `None` for the first ones.
    pub(super) behind: Option<DeviceId>,
    /// Maximum number of watchers.
    pub(super) limit: usize,
}

impl Announcements {
    /// Notes the state of a device, which its watchers are to be told.
    pub(super) fn add(&mut self, device: DeviceId, online: bool, at_ms: u64) {
        let new = Change { online, at_ms, last: None, until: None };
        let Some(change) = self.changes.get_mut(&device) else {
            self.changes.insert(device, new);
            self.turns.push_back(device);
            return;
        };
        *change = Change { last: change.last, until: change.last, ..new };
    }

    /// Returns the time at which more watchers may be told; `None` if none are to be.
    #[inline]
    pub(super) fn due(&self) -> Option<Moment> {
        let is_waiting = !self.turns.is_empty();
        is_waiting.then(|| self.filled_at.after(Duration::from_millis(1)))
    }

    /// Returns the next portion, if one may be told now. [`Announcements::told`] must follow.
    pub(super) fn next(&mut self, now: Moment) -> Option<Portion> {
        self.refill(now);
        if self.allowance == 0 {
            return None;
        }
        let &device = self.turns.front()?;
        let &Change { online, at_ms, last: behind, .. } = self.changes.get(&device)?;
        Some(Portion { device, online, at_ms, behind, limit: PORTION.min(self.allowance) })
    }

    /// Notes the number of watchers that a portion had, and the last of them.
    pub(super) fn told(&mut self, portion: &Portion, count: usize, last: Option<DeviceId>) {
        // A device without watchers costs a look.
        self.allowance -= count.max(1);
        self.turns.pop_front();
        let is_at_end = count < portion.limit;
        let Some(change) = self.changes.get_mut(&portion.device) else { return };
        // Only after the walk has started over does it come to watchers before `until`.
        let is_second_half = change.last < change.until;
        let is_over = match change.until {
            None => is_at_end,
            until => is_second_half && (is_at_end || last >= until),
        };
        if is_over {
            self.changes.remove(&portion.device);
            shrink(&mut self.changes, KEPT_BY_SHARD);
            shrink(&mut self.turns, KEPT_BY_SHARD);
            return;
        }
        change.last = if is_at_end { None } else { last };
        self.turns.push_back(portion.device);
    }

    fn refill(&mut self, now: Moment) {
        let ms = now.since(self.filled_at).as_millis().min(TOLD_AT_ONCE_MAX as u128) as usize;
        self.allowance = (self.allowance + TOLD_PER_MS * ms).min(TOLD_AT_ONCE_MAX);
        self.filled_at = now;
    }

    /// Fails if the two tables disagree, or have more memory than they need. For tests.
    pub(super) fn audit(&self) -> Result<(), String> {
        let (turns, changes) = (self.turns.len(), self.changes.len());
        if turns != changes {
            return Err(format!("{turns} devices are to be announced, {changes} changes are kept"));
        }
        shrink::audit("turns of announcements", &self.turns, KEPT_BY_SHARD)?;
        shrink::audit("changes of presence", &self.changes, KEPT_BY_SHARD)
    }
}
