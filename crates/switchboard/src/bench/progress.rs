//! A line on the terminal that shows the progress of a load.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

const REFRESH: Duration = Duration::from_millis(100);

/// End of a load.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    /// This many of the counted items.
    Count(u64),
    /// This long after its start.
    Time(Duration),
}

/// Overwrites its own line on a terminal; elsewhere it writes nothing.
pub(super) struct Progress {
    label: &'static str,
    goal: Goal,
    shown: bool,
    began: Instant,
    next: Instant,
}

impl Progress {
    /// Starts the clock; `label` names the items that are counted.
    pub(super) fn new(label: &'static str, goal: Goal) -> Self {
        let began = Instant::now();
        Self { label, goal, shown: stderr().is_terminal(), began, next: began }
    }

    /// Shows `count`, at most ten times a second.
    pub(super) fn at(&mut self, now: Instant, count: u64) {
        if self.shown && now >= self.next {
            self.next = now + REFRESH;
            // A terminal that has gone away does not stop the measurement.
            let _ = write!(stderr(), "\r\x1b[K{}", self.line(now - self.began, count));
        }
    }

    fn line(&self, elapsed: Duration, count: u64) -> String {
        let label = self.label;
        match self.goal {
            Goal::Count(goal) => format!("{label} {count} of {goal}"),
            Goal::Time(goal) => {
                let left = goal.saturating_sub(elapsed).as_secs_f64().ceil();
                format!("{label} {count}, {left} s left")
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_is_left() {
        let second = Duration::from_secs(1);
        let line = |goal, elapsed| Progress::new("sent", goal).line(elapsed, 7);
        assert_eq!(line(Goal::Count(20), second), "sent 7 of 20");
        assert_eq!(line(Goal::Time(second * 5), second * 3 / 2), "sent 7, 4 s left");
        // The load then waits for the messages in flight.
        assert_eq!(line(Goal::Time(second), second * 2), "sent 7, 0 s left");
    }
}
