//! Delays between attempts to connect.

use std::time::Duration;

use super::outgoing::random;

/// Exponential backoff with jitter.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max: max.max(min), failures: 0 }
    }

    /// Makes the next delay short again, after a useful connection.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the next delay; if the server asked for one, `asked` is added to it.
    pub(super) fn pause(&mut self, asked: Option<Duration>) -> Duration {
        self.pause_with(asked, random())
    }

    fn pause_with(&mut self, asked: Option<Duration>, random: u64) -> Duration {
        let doubled = self.min.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        let whole = doubled.min(self.max);
        // A random number from 0 to below a half; an f64 holds 32 bits exactly.
        let share = (random >> 32) as f64 / (1_u64 << 32) as f64 / 2.0;
        asked.unwrap_or_default() + whole.mul_f64(1.0 - share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_lose_up_to_a_half() {
        let [min, max] = [100, 1_000].map(Duration::from_millis);
        let mut backoff = Backoff::new(min, max);
        for whole_ms in [100, 200, 400, 800, 1_000, 1_000] {
            let failures = backoff.failures;
            let whole = Duration::from_millis(whole_ms);
            assert_eq!(backoff.pause_with(None, 0), whole);
            backoff.failures = failures;
            let shortest = backoff.pause_with(None, u64::MAX);
            assert!((whole / 2..whole.mul_f64(0.51)).contains(&shortest), "{shortest:?}");
        }
        backoff.reset();
        assert_eq!(backoff.pause_with(Some(max), 0), max + min);
    }
}
