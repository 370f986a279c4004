//! When a device must be looked at.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use switchboard_proto::DeviceId;

use crate::Moment;

/// Why a device is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// A message may have expired.
    Expiry,
    /// The session's token ends soon, or has ended.
    Token,
    /// A newcomer has waited long enough.
    Waiting,
    /// It may have been away for its time to live.
    Away,
}

/// Alarms in the order in which they are due. One that no longer counts finds nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Timers(BinaryHeap<Reverse<(Moment, Alarm, DeviceId)>>);

impl Timers {
    pub(crate) fn add(&mut self, at: Moment, alarm: Alarm, device: DeviceId) {
        self.0.push(Reverse((at, alarm, device)));
    }

    pub(crate) fn next(&self) -> Option<Moment> {
        self.0.peek().map(|Reverse((at, _, _))| *at)
    }

    pub(crate) fn take_due(&mut self, now: Moment) -> Option<(Alarm, DeviceId)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse((_, alarm, device))| (alarm, device))
    }
}
