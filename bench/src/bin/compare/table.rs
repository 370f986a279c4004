//! Tables in Markdown, so that they can be read here and pasted into docs/performance.md. Rows are
//! printed as they come.

use crate::statistics::Spread;

/// Prints title and column heads.
pub(crate) fn head(title: &str, columns: &[&str]) {
    println!("\n### {title}\n\n| {} |", columns.join(" | "));
    println!("|---{}|", "|--:".repeat(columns.len() - 1));
}

/// Prints a row.
pub(crate) fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// Prints a row of a value and the bound that it has to keep.
pub(crate) fn bounded(name: &str, value: String, bound: &str) {
    row(&[name.into(), value, bound.into()]);
}

/// A median with its range.
pub(crate) fn ranged(spread: Spread) -> String {
    format!("{:.3} ({:.3} - {:.3})", spread.median, spread.min, spread.max)
}

/// A median of counts with its range.
pub(crate) fn counted(spread: Spread) -> String {
    let [median, min, max] = [spread.median, spread.min, spread.max].map(thousands);
    format!("{median} ({min} - {max})")
}

/// A count with its thousands apart.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    let sign = if value <= -0.5 { "-" } else { "" };
    sign.to_owned() + &groups.join(",")
}
