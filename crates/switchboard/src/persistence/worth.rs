//! Decides if the oldest segment is worth compacting, as arithmetic.

use std::time::{Duration, Instant};

/// A log up to this size, or up to a quarter of the volume if that is less, is left alone while
/// there is space.
const SMALL_BYTES: u64 = 192 << 20;
/// Size from which on a log of a single segment is compacted while space is short.
const SINGLE_BYTES_MIN: u64 = 64 << 10;
/// Rest after a round through all segments in which nothing was gained. It ends early if the log
/// grew by an eighth, or by half a segment: then there are new records, which may be dead soon, and
/// a full log has no room for a minute of them.
const REST: Duration = Duration::from_secs(60);

/// Sizes of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Log {
    pub(super) bytes: u64,
    pub(super) segments: usize,
    /// Estimated bytes of records that still count.
    pub(super) live_bytes: u64,
    pub(super) oldest_bytes: u64,
    /// Bytes of the file system, or of the quota if that is less.
    pub(super) volume: u64,
    /// True if space is short.
    pub(super) is_tight: bool,
}

/// Decides by the sizes of the log, and by the results of earlier compactions.
#[derive(Debug, Default)]
pub(super) struct Worth {
    /// Number of segments in a row of which more than three quarters had to be copied.
    futile: usize,
    /// The end of a rest, and the log's size when it began.
    rest: Option<(Instant, u64)>,
}

impl Worth {
    /// Returns true if the oldest segment, or the only one, should be compacted.
    pub(super) fn is_compacted(&mut self, log: &Log, now: Instant) -> bool {
        if !log.is_tight {
            // If the log is twice as large as what is live in it, one copied byte frees about one
            // dead byte.
            let small = SMALL_BYTES.min(log.volume / 4);
            return log.segments > 1 && log.bytes >= small.max(2 * log.live_bytes);
        }
        let dead = log.bytes.saturating_sub(log.live_bytes);
        // A single segment cannot be dropped before another begins, so all that lives in it is
        // copied at once: only if more than half of it is dead.
        if log.segments == 1 {
            return log.bytes >= SINGLE_BYTES_MIN && 2 * dead > log.bytes;
        }
        // Copying all that is live costs at most eight times what it frees.
        let least = (log.bytes / 8).max(log.oldest_bytes / 2);
        if let Some((until, bytes)) = self.rest
            && now < until
            && log.bytes < bytes + least
        {
            return false;
        }
        if self.futile > log.segments {
            // A whole round was copied: the estimate of what lives is too low, and another
            // round would only wear the disk.
            (self.futile, self.rest) = (0, Some((now + REST, log.bytes)));
            return false;
        }
        self.rest = None;
        dead >= least
    }

    /// Notes the result of a compaction: of a segment of `bytes`, `copied_bytes` had to be copied.
    pub(super) fn compacted(&mut self, bytes: u64, copied_bytes: u64) {
        let is_futile = copied_bytes > bytes / 4 * 3;
        self.futile = if is_futile { self.futile + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn log(segments: u64, live: u64, is_tight: bool) -> Log {
        Log {
            bytes: segments * 16 * MIB,
            segments: segments as usize,
            live_bytes: live * MIB,
            oldest_bytes: 16 * MIB,
            volume: 10 << 30,
            is_tight,
        }
    }

    #[test]
    fn while_there_is_space_a_small_log_is_left_alone_and_a_large_one_if_half_of_it_counts() {
        let now = Instant::now();
        let mut worth = Worth::default();
        assert!(!worth.is_compacted(&log(11, 0, false), now));
        assert!(worth.is_compacted(&log(12, 0, false), now));
        assert!(!worth.is_compacted(&log(20, 161, false), now));
        let small = Log { volume: 300 * MIB, ..log(5, 0, false) };
        assert!(worth.is_compacted(&small, now));
    }

    /// A volume of 512 MiB was once full before the log was thought large enough to look at.
    #[test]
    fn where_space_is_short_whatever_is_dead_is_compacted() {
        let now = Instant::now();
        let mut worth = Worth::default();
        assert!(worth.is_compacted(&log(2, 0, true), now));
        assert!(worth.is_compacted(&log(10, 130, true), now));
        assert!(!worth.is_compacted(&log(10, 150, true), now), "nearly all of it counts");
        assert!(worth.is_compacted(&log(1, 1, true), now));
        assert!(!worth.is_compacted(&log(1, 9, true), now));
    }

    #[test]
    fn a_round_that_gained_nothing_is_followed_by_a_rest() {
        let now = Instant::now();
        let mut worth = Worth::default();
        let sizes = log(4, 0, true);
        for _ in 0..5 {
            assert!(worth.is_compacted(&sizes, now));
            worth.compacted(16 * MIB, 15 * MIB);
        }
        assert!(!worth.is_compacted(&sizes, now));
        assert!(!worth.is_compacted(&sizes, now + REST / 2));
        let grown = Log { segments: 5, bytes: sizes.bytes + 16 * MIB, ..sizes };
        let mut other = Worth { rest: worth.rest, ..Worth::default() };
        assert!(other.is_compacted(&grown, now + REST / 2), "it grew for all that");
        assert!(worth.is_compacted(&sizes, now + REST));
        worth.compacted(16 * MIB, 0);
        assert!(worth.is_compacted(&sizes, now + REST));
    }
}
