//! Tables in Markdown, readable on the terminal and ready for docs/performance.md. Rows are
//! printed as soon as they are known.

use crate::statistics::Spread;

/// Prints a title and column headings.
pub(crate) fn head(title: &str, columns: &[&str]) {
    println!("\n### {title}\n\n| {} |", columns.join(" | "));
    println!("|---{}|", "|--:".repeat(columns.len() - 1));
}

/// Prints a row.
pub(crate) fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// Prints a row with a value and its bound.
pub(crate) fn bounded(name: &str, value: String, bound: &str) {
    row(&[name.into(), value, bound.into()]);
}

/// Formats a median with its range.
pub(crate) fn ranged(spread: Spread) -> String {
    format!("{:.3} ({:.3} - {:.3})", spread.median, spread.min, spread.max)
}

/// Formats a median of counts with its range.
pub(crate) fn counted(spread: Spread) -> String {
    let [median, min, max] = [spread.median, spread.min, spread.max].map(thousands);
    format!("{median} ({min} - {max})")
}

/// Formats a count with thousands separators.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    let sign = if value <= -0.5 { "-" } else { "" };
    sign.to_owned() + &groups.join(",")
}
