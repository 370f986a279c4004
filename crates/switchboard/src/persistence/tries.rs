//! When a read that failed is tried again, and when it is given up, as arithmetic.

use std::time::{Duration, Instant};

/// After a read that failed for the first time; the pauses double.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A disk that takes long to refuse is left alone for so many times as long: one thread reads for all
/// devices, and most of its time must be theirs.
const PAUSE_PER_TIME: u32 = 4;
/// A record that is damaged is read once more before it is given up.
const DAMAGED_TRIES: u32 = 2;
/// A disk that does not give a record is asked for three minutes: 0.2 + 0.4 + ... + 25.6 s, then
/// every 30 s. One that is slow to refuse is asked less often in that time.
const DISK_TRIES: u32 = 14;
const DISK_PATIENCE: Duration = Duration::from_secs(180);

/// Reads of one place, all of which failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tries {
    pub(super) count: u32,
    /// When the first one began.
    since: Instant,
    /// When the last one ended.
    last: Instant,
    /// When it is read again.
    pub(super) due: Instant,
}

impl Tries {
    /// The tries so far and one more, which began at `started` and has failed now.
    pub(super) fn another(before: Option<Tries>, started: Instant, now: Instant) -> Tries {
        let (count, since) = before.map_or((1, started), |it| (it.count + 1, it.since));
        let doubled = RETRY.saturating_mul(1 << (count - 1).min(16)).min(RETRY_MAX);
        let took = now.saturating_duration_since(started);
        let due = now + doubled.max(took.saturating_mul(PAUSE_PER_TIME));
        Tries { count, since, last: now, due }
    }

    /// Whether to give up what was read and is damaged.
    pub(super) fn suffice_for_damage(&self) -> bool {
        self.count >= DAMAGED_TRIES
    }

    /// Whether to give up what the disk refuses.
    pub(super) fn suffice_for_disk(&self) -> bool {
        let took = self.last.saturating_duration_since(self.since);
        self.count >= DISK_TRIES || (self.count > 1 && took >= DISK_PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads that take so long until they are given up: their number, and how long it took in all.
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

    /// A sector that answered after 5 s kept the only reader from everybody, and for ever.
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
