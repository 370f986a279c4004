//! Log lines: readable on a terminal, JSON elsewhere, always on standard error.
//!
//! A thread of its own writes them ([`lines`]).

mod lines;

use std::io::{self, IsTerminal};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use self::lines::Lines;
use crate::config::{Config, ConfigError, LogFormat};

/// The filter of the logger that was started.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Where the lines of the logger that was started wait.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Starts logging as configured; a second call in one process changes nothing.
pub(crate) fn start(config: &Config) -> Result<(), ParseError> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(&config.log_level)?);
    let is_terminal = io::stderr().is_terminal();
    let queue = LINES.get_or_init(|| Lines::to(io::stderr()));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(move || queue)
        .with_ansi(is_terminal)
        .with_target(false);
    let is_text = match config.log_format {
        LogFormat::Auto => is_terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let lines = if is_text { lines.boxed() } else { lines.json().flatten_event(true).boxed() };
    // Only a logger that is there already can fail it, and then it stays.
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        FILTER.get_or_init(|| handle);
    }
    Ok(())
}

/// Waits until all lines are written, for at most a second.
pub(crate) fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(Duration::from_secs(1));
    }
}

/// Returns how many lines were dropped because standard error took no more.
pub(crate) fn dropped_lines() -> u64 {
    LINES.get().map_or(0, Lines::dropped)
}

/// Goes by the configured filter from now on.
pub(crate) fn set_filter(config: &Config) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(&config.log_level)?;
    if let Some(handle) = FILTER.get() {
        handle.reload(filter).expect("the logger lives as long as the process");
    }
    Ok(())
}

/// Says what of the configuration is not read.
pub(crate) fn ignored(warnings: &[ConfigError]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// Lets through at most one log line a second of one kind, and counts those that it left out.
///
/// One per kind of line, as a `static` or a field; any thread may ask:
/// ```ignore
/// if let Some(left_out) = self.limit.pass() {
///     tracing::warn!(%error, left_out, "a message cannot be read back");
/// }
/// ```
#[derive(Debug, Default)]
pub(crate) struct LineLimit(Mutex<Passed>);

#[derive(Debug, Default)]
struct Passed {
    /// When the last line was let through.
    at: Option<Instant>,
    left_out: u64,
}

/// Time between two lines of one kind.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

impl LineLimit {
    /// Allows the first line at once.
    pub(crate) const fn new() -> LineLimit {
        LineLimit(Mutex::new(Passed { at: None, left_out: 0 }))
    }

    /// `None` when a line was logged within the last second; else how many were left out since.
    pub(crate) fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if passed.at.is_some_and(|at| now.duration_since(at) < LINE_INTERVAL) {
            passed.left_out += 1;
            return None;
        }
        passed.at = Some(now);
        Some(std::mem::take(&mut passed.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_passes_and_the_rest_is_counted() {
        let limit = LineLimit::new();
        let begin = Instant::now();
        let pass = |ms| limit.pass_at(begin + Duration::from_millis(ms));
        assert_eq!(pass(0), Some(0));
        assert_eq!(pass(1), None);
        assert_eq!(pass(999), None);
        assert_eq!(pass(1_000), Some(2));
        assert_eq!(pass(1_999), None);
        assert_eq!(pass(9_000), Some(1));
    }
}
