//! Times that outlive the process: the wall clock without its jumps.

use std::time::Duration;

use crate::Moment;

/// Longest time for which a server is taken to have been down. Beyond it the clock is taken to have
/// jumped: a machine without a battery may come up years ahead or behind.
const DOWNTIME_MAX: Duration = Duration::from_secs(7 * 86_400);

/// Shortest step backward that is reported as a jump: a clock that is adjusted all the time makes
/// small ones.
const JUMP_MIN: Duration = Duration::from_secs(1);

/// Turns moments of the server's uptime into stamps, which records can keep, and back.
///
/// A stamp is what the wall clock would show if it had never jumped since the store was made.
/// While the server runs, stamps advance with its uptime; over a stop they advance by the time
/// that it was down, if that is plausible. So no jump of the wall clock makes anything expire,
/// or live longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StampClock {
    /// Difference by which stamps are ahead of the uptime.
    ahead_ms: u64,
}

/// The clocks as a run left them, all at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastRun {
    /// The server's uptime.
    pub uptime: Moment,
    /// Its stamp.
    pub stamp_ms: u64,
    /// Unix time in milliseconds; 0 where nothing was noted.
    pub wall_ms: u64,
}

/// A jump of the wall clock between two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jump {
    /// It shows this much less than in the last run.
    Behind(Duration),
    /// It shows this much more, too long for the server to have been down.
    Ahead(Duration),
}

impl StampClock {
    /// The uptime of a new store begins here: at eleven years, more than the longest time to live.
    /// If it began at zero, a device that was away for longer than the server had ever run would
    /// count as away since moment zero, and so live on after a long downtime.
    pub const UPTIME_FIRST: Moment = Moment::from_ms(11 * 365 * 86_400_000);

    /// Returns the clock of a run that begins at this uptime and wall clock, and the jump of the
    /// wall clock since the last run, if there was one. Then the server is taken not to have
    /// been down.
    pub fn resume(last: LastRun, uptime: Moment, wall_ms: u64) -> (StampClock, Option<Jump>) {
        if last.wall_ms == 0 {
            return (StampClock::at(uptime, wall_ms), None);
        }
        let max_ms = DOWNTIME_MAX.as_millis() as u64;
        let (down_ms, jump) = match wall_ms.checked_sub(last.wall_ms) {
            Some(down_ms) if down_ms <= max_ms => (down_ms, None),
            Some(ahead_ms) => (0, Some(Jump::Ahead(Duration::from_millis(ahead_ms)))),
            None => {
                let behind = Duration::from_millis(last.wall_ms - wall_ms);
                (0, Some(Jump::Behind(behind)).filter(|_| behind >= JUMP_MIN))
            }
        };
        // After a crash the log may know of more uptime than was noted, and that time was no
        // downtime.
        let ran_ms = uptime.since(last.uptime).as_millis() as u64;
        (StampClock::at(uptime, last.stamp_ms.saturating_add(down_ms.max(ran_ms))), jump)
    }

    /// Returns the clock that shows this stamp at this moment; at least the uptime, as on a machine
    /// that comes up in 1970.
    pub fn at(uptime: Moment, stamp_ms: u64) -> StampClock {
        StampClock { ahead_ms: stamp_ms.saturating_sub(uptime.ms()) }
    }

    /// Returns the stamp of a moment.
    pub fn stamp(self, at: Moment) -> u64 {
        at.ms().saturating_add(self.ahead_ms)
    }

    /// Returns the moment of a stamp; the server's first for all stamps before it.
    pub fn moment(self, stamp_ms: u64) -> Moment {
        Moment::from_ms(stamp_ms.saturating_sub(self.ahead_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    const LAST: LastRun = LastRun {
        uptime: Moment::from_ms(50_000),
        stamp_ms: 9_000_000_000,
        wall_ms: 8_000_000_000,
    };

    /// Returns how far stamps have advanced since the end of the last run, if the wall clock and
    /// the uptime have advanced by these times.
    fn resumed(wall_by_ms: i64, uptime_by_ms: u64) -> (u64, Option<Jump>) {
        let uptime = LAST.uptime.after(Duration::from_millis(uptime_by_ms));
        let wall_ms = LAST.wall_ms.saturating_add_signed(wall_by_ms);
        let (clock, jump) = StampClock::resume(LAST, uptime, wall_ms);
        assert_eq!(clock.moment(clock.stamp(uptime)), uptime);
        (clock.stamp(uptime) - LAST.stamp_ms, jump)
    }

    #[test]
    fn a_plausible_downtime_counts_and_a_jump_does_not() {
        let (hour, hour_ms) = (Duration::from_secs(3_600), HOUR_MS as i64);
        assert_eq!(resumed(hour_ms, 0), (HOUR_MS, None));
        assert_eq!(resumed(7 * 24 * hour_ms, 0), (7 * 24 * HOUR_MS, None));
        assert_eq!(resumed(200 * hour_ms, 0), (0, Some(Jump::Ahead(200 * hour))));
        assert_eq!(resumed(-hour_ms, 0), (0, Some(Jump::Behind(hour))));
        assert_eq!(resumed(-500, 0), (0, None));
    }

    #[test]
    fn what_ran_after_the_last_note_is_no_downtime_twice() {
        assert_eq!(resumed(9_000, 4_000), (9_000, None));
        assert_eq!(resumed(-3_600_000, 4_000).0, 4_000);
    }

    #[test]
    fn a_moment_of_a_long_downtime_is_known_to_a_young_store() {
        // The second wall clock is one of a machine that comes up in 1970.
        for wall_ms in [1_700_000_000_000, 9_000] {
            let (uptime, none) = (StampClock::UPTIME_FIRST, LastRun::default());
            let (clock, _) = StampClock::resume(none, uptime, wall_ms);
            let noted = LastRun { uptime, stamp_ms: clock.stamp(uptime), wall_ms };
            let (clock, _) = StampClock::resume(noted, uptime, wall_ms + 24 * HOUR_MS);
            let away_since = clock.moment(noted.stamp_ms);
            assert_eq!(uptime.since(away_since), Duration::from_secs(24 * 3_600));
        }
    }

    #[test]
    fn a_store_without_a_note_begins_by_the_wall_clock() {
        let (clock, jump) = StampClock::resume(LastRun::default(), Moment::from_ms(70), 1_000);
        assert_eq!((clock.stamp(Moment::from_ms(80)), jump), (1_010, None));
    }
}
