//! Output of results: a table for people, one object for programs.

use std::io::{Write, stdout};
use std::process::ExitCode;

use serde::Serialize;

/// A result that can be printed.
pub(super) trait Report: Serialize {
    /// Returns the rows of the table: a label and a value with its unit.
    fn rows(&self) -> Vec<(&'static str, String)>;

    /// Returns true if the server passed all checks.
    fn passed(&self) -> bool;
}

/// Prints `report` to standard output; the exit code tells whether the server passed.
pub(super) fn print(report: &impl Report, json: bool) -> anyhow::Result<ExitCode> {
    let text = if json { serde_json::to_string(report)? } else { table(report) };
    writeln!(stdout(), "{}", text.trim_end())?;
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(report: &impl Report) -> String {
    let rows = report.rows();
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    rows.iter().map(|(label, value)| format!("{label:width$}  {value}\n")).collect()
}

/// Formats a quantity that is known only if the server's process is.
pub(super) fn known(value: Option<impl ToString>, unit: &str) -> String {
    match value {
        Some(value) => format!("{} {unit}", value.to_string()),
        None => "unknown (give --pid)".into(),
    }
}

/// Returns the microseconds for each of `count`, from the total in nanoseconds.
pub(super) fn us_each(total_ns: u64, count: u64) -> f64 {
    rounded(total_ns as f64 / 1000.0 / count.max(1) as f64)
}

/// Rounds to three decimal places.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
