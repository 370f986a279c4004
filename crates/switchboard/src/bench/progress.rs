//! A line on the terminal that shows how far a load has come.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

const REFRESH: Duration = Duration::from_millis(100);

/// Writes over its own line on a terminal, and nothing elsewhere.
pub(super) struct Progress {
    label: &'static str,
    shown: bool,
    next: Instant,
}

impl Progress {
    pub(super) fn new(label: &'static str) -> Self {
        Self { label, shown: stderr().is_terminal(), next: Instant::now() }
    }

    /// Shows `count`, at most ten times a second.
    pub(super) fn at(&mut self, now: Instant, count: u64) {
        if self.shown && now >= self.next {
            self.next = now + REFRESH;
            // A terminal that went away is no reason to stop measuring.
            let _ = write!(stderr(), "\r\x1b[K{} {count}", self.label);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
