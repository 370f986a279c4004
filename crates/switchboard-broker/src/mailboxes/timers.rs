//! Alarms: times at which something of a device is due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;

use crate::Moment;
use crate::shrink::{self, KEPT_BY_SHARD, shrink};

/// Reasons for looking at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Alarm {
    /// A message may have expired.
    Expiry,
    /// The session's token expires soon, or has expired.
    Token,
    /// A newcomer has waited long enough.
    Waiting,
    /// The device may have been away for its time to live.
    Away,
}

impl Alarm {
    /// Every alarm that may be set for a device.
    const ALL: [Alarm; 4] = [Alarm::Expiry, Alarm::Token, Alarm::Waiting, Alarm::Away];

    /// Returns whether it ends messages, which may be any number at once and make records.
    pub(crate) fn ends_messages(self) -> bool {
        matches!(self, Alarm::Expiry | Alarm::Away)
    }
}

/// Alarms in the order in which they are due: at most one per device and reason.
///
/// An alarm is only ever moved earlier. If its deadline moves later, it goes off early and its
/// handler sets it again: a device that reconnects all the time keeps one entry. An alarm that
/// is moved earlier leaves a stale entry in the heap; those are dropped once they are most.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Moment, Alarm, DeviceId)>>,
    /// The entries of `heap` that count.
    due: FxHashMap<(DeviceId, Alarm), Moment>,
}

/// Number of stale entries that are not worth pruning.
const SLACK: usize = 64;

impl Timers {
    /// Sets an alarm to go off at `at`, unless it goes off earlier anyway.
    pub(crate) fn set(&mut self, at: Moment, alarm: Alarm, device: DeviceId) {
        let due = self.due.entry((device, alarm)).or_insert(Moment::from_ms(u64::MAX));
        if at >= *due {
            return;
        }
        *due = at;
        self.heap.push(Reverse((at, alarm, device)));
        self.prune();
    }

    /// Forgets all alarms of a device that ended.
    pub(crate) fn clear(&mut self, device: DeviceId) {
        for alarm in Alarm::ALL {
            self.due.remove(&(device, alarm));
        }
        shrink(&mut self.due, KEPT_BY_SHARD);
        self.prune();
    }

    /// Returns the moment of the first entry, which may be a stale one.
    pub(crate) fn next(&self) -> Option<Moment> {
        self.heap.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Takes out an alarm that is due.
    pub(crate) fn take_due(&mut self, now: Moment) -> Option<(Alarm, DeviceId)> {
        while self.next()? <= now {
            let Reverse((at, alarm, device)) = self.heap.pop()?;
            shrink(&mut self.heap, KEPT_BY_SHARD);
            // Otherwise it is stale: the alarm was moved earlier, or its device has ended.
            if self.due.get(&(device, alarm)) == Some(&at) {
                self.due.remove(&(device, alarm));
                shrink(&mut self.due, KEPT_BY_SHARD);
                return Some((alarm, device));
            }
        }
        None
    }

    /// Drops stale entries once they are most.
    fn prune(&mut self) {
        if self.heap.len() > 2 * self.due.len() + SLACK {
            let due = &self.due;
            self.heap
                .retain(|Reverse((at, alarm, device))| due.get(&(*device, *alarm)) == Some(at));
            shrink(&mut self.heap, KEPT_BY_SHARD);
        }
    }

    /// Fails if there are more alarms, or more memory for them, than `devices` may have. For tests.
    pub(crate) fn audit(&self, devices: usize) -> Result<(), String> {
        let (entries, set) = (self.heap.len(), self.due.len());
        // One for each reason to look at a device.
        if entries > 2 * set + SLACK || set > 4 * devices {
            return Err(format!("{entries} alarms, of which {set} count, for {devices} devices"));
        }
        shrink::audit("alarms", &self.heap, KEPT_BY_SHARD)?;
        shrink::audit("alarms that count", &self.due, KEPT_BY_SHARD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_ms(ms)
    }

    /// Messages with shorter and shorter `ttl_ms` once left an entry each for as long as the
    /// longest of them: 40 bytes a message from one device, for years.
    #[test]
    fn alarms_that_move_earlier_leave_nothing_behind() {
        let (mut timers, device) = (Timers::default(), DeviceId::FIRST);
        for ms in (1..100_000).rev() {
            timers.set(at(ms), Alarm::Expiry, device);
            assert!(timers.heap.len() <= 2 + SLACK);
        }
        assert_eq!(timers.take_due(at(1)), Some((Alarm::Expiry, device)));
        assert_eq!(timers.take_due(at(100_000)), None);
    }

    /// Each reconnect once left an entry of 24 bytes until the device's time to live was over.
    #[test]
    fn an_alarm_that_moves_later_stays_where_it_is() {
        let (mut timers, device) = (Timers::default(), DeviceId::FIRST);
        for ms in 1..1_000 {
            timers.set(at(ms), Alarm::Away, device);
        }
        assert_eq!(timers.heap.len(), 1);
        assert_eq!(timers.take_due(at(1)), Some((Alarm::Away, device)));
        timers.set(at(5), Alarm::Away, device);
        timers.clear(device);
        assert_eq!(timers.take_due(at(5)), None);
    }
}
