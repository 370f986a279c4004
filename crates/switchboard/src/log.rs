//! Log lines: readable on a terminal, JSON elsewhere, always on standard error.
//!
//! A separate thread writes them ([`lines`]), so that logging never blocks a shard.

mod lines;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use self::lines::Lines;
use crate::config::{Config, ConfigError, LogFormat};

/// The filter of the running logger.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The queue of the running logger.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Starts logging as configured; a second call in the same process changes nothing.
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
    // Fails only if there is a logger already, which then stays.
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        FILTER.get_or_init(|| handle);
        panic::set_hook(Box::new(report_panic));
    }
    Ok(())
}

/// Logs a panic. The default hook writes to standard error itself, and so never returns if the reader
/// of that hangs: a thread that panicked would neither end nor abort the process.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
    tracing::error!(
        thread = thread.name(),
        backtrace = backtrace.map(tracing::field::display),
        "{panic}"
    );
    flush();
}

/// Writes a last line to standard error as it is, and waits for that as [`flush`] does. Before the
/// logger has started it does nothing and returns false.
pub(crate) fn last_line(line: &str) -> bool {
    let Some(mut lines) = LINES.get() else { return false };
    // What is queued may fill the queue, which would drop the line.
    flush();
    let _: io::Result<()> = lines.write_all(format!("{line}\n").as_bytes());
    flush();
    true
}

/// Waits until all lines are written, at most a second.
pub(crate) fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(Duration::from_secs(1));
    }
}

/// Returns the number of lines dropped because standard error did not take them.
pub(crate) fn dropped_lines() -> u64 {
    LINES.get().map_or(0, Lines::dropped)
}

/// Applies the configured filter from now on.
pub(crate) fn set_filter(config: &Config) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(&config.log_level)?;
    if let Some(handle) = FILTER.get() {
        handle.reload(filter).expect("the logger lives as long as the process");
    }
    Ok(())
}

/// Logs the settings that are ignored.
pub(crate) fn ignored(warnings: &[ConfigError]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// Allows at most one log line of one kind per second, and counts those left out.
///
/// There is one per kind of line, as a `static` or a field; any thread may use it:
/// ```ignore
/// if let Some(left_out) = self.limit.pass() {
///     tracing::warn!(%error, left_out, "a message cannot be read back");
/// }
/// ```
#[derive(Debug, Default)]
pub(crate) struct LineLimit(Mutex<Passed>);

#[derive(Debug, Default)]
struct Passed {
    /// Time at which the last line was allowed.
    at: Option<Instant>,
    left_out: u64,
}

/// Minimum time between two lines of one kind.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

impl LineLimit {
    /// Creates a limit that allows the first line at once.
    pub(crate) const fn new() -> LineLimit {
        LineLimit(Mutex::new(Passed { at: None, left_out: 0 }))
    }

    /// Returns `None` if a line was allowed within the last second, otherwise the number of
    /// lines left out since.
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
