//! Retries of reads that failed: when to try again and when to give up, as arithmetic.

use std::time::{Duration, Instant};

/// Pause after the first read that failed; each further pause is twice as long.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Least pause as a multiple of the time that the read took to fail: one thread reads for all
/// devices, and a bad sector must not take most of its time.
const PAUSE_PER_TIME: u32 = 4;
/// Reads of a damaged record before it is given up: one more, as the first may have been damaged on
/// its way from the disk.
const DAMAGED_TRIES: u32 = 2;
/// Reads of a record that the disk refuses before it is given up. With pauses of 0.2, 0.4, ...
/// 25.6 s and then 30 s they take three minutes. A disk that is slow to fail is asked less often
/// in that time.
const DISK_TRIES: u32 = 14;
const DISK_PATIENCE: Duration = Duration::from_secs(180);

/// Reads of one place, all of which failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tries {
    pub(super) count: u32,
    /// Time at which the first one began.
    since: Instant,
    /// Time at which the last one ended.
    last: Instant,
    /// Time of the next one.
    pub(super) due: Instant,
}

impl Tries {
    /// Returns the tries so far and one more, which began at `started` and failed at `now`.
    pub(super) fn another(before: Option<Tries>, started: Instant, now: Instant) -> Tries {
        let (count, since) = before.map_or((1, started), |it| (it.count + 1, it.since));
        // 2^16 is far beyond `RETRY_MAX`; a larger shift could overflow.
        let doubled = RETRY.saturating_mul(1 << (count - 1).min(16)).min(RETRY_MAX);
        let took = now.saturating_duration_since(started);
        let due = now + doubled.max(took.saturating_mul(PAUSE_PER_TIME));
        Tries { count, since, last: now, due }
    }

    /// Returns true if a damaged record should be given up.
    pub(super) fn suffice_for_damage(&self) -> bool {
        self.count >= DAMAGED_TRIES
    }

    /// Returns true if a record that the disk refuses should be given up.
    pub(super) fn suffice_for_disk(&self) -> bool {
        let took = self.last.saturating_duration_since(self.since);
        // At least two: a single read that hangs for minutes proves nothing about the sector.
        self.count >= DISK_TRIES || (self.count > 1 && took >= DISK_PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads, each of which takes this long, until they are given up: their number, and the time in
    /// all.
    fn tried(took: Duration) -> (u32, Duration) {
        let start = Instant::now();
        let (mut now, mut tries) = (start, None);
        loop {
            let it = Tries::another(tries, now, now + took);
            if it.suffice_for_disk() {
                return (it.count, it.last - start);
            }
            assert!(it.due - it.last >= PAUSE_PER_TIME * took);
            (now, tries) = (it.due, Some(it));
        }
    }

    /// A sector that failed after 5 s each time once kept the only reader busy for ever.
    #[test]
    fn what_a_disk_refuses_is_given_up_after_three_minutes_however_long_it_takes_to_refuse() {
        for (took_ms, tries) in [(0, 14), (100, 14), (5_000, 8), (30_000, 2), (600_000, 2)] {
            let took = Duration::from_millis(took_ms);
            let (count, lasted) = tried(took);
            assert_eq!(count, tries, "{took:?}");
            assert!(lasted >= Duration::from_secs(170), "{took:?}: {lasted:?}");
            let at_most = Duration::from_secs(220).max(6 * took);
            assert!(lasted <= at_most, "{took:?}: {lasted:?}");
        }
    }
}
