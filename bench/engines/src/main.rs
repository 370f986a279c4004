//! The store's log against embedded engines, on the same job: messages of 256 bytes, each with a
//! row for its id, made durable in batches. Prints the table of docs/decisions/0001-store.md.
//!
//! `cargo run --release`, in this folder, on a machine that does nothing else. Takes minutes and up
//! to 2 GiB beside the binary. Two rows want more: a full disk wants the right to mount a tmpfs, a
//! sync that fails wants strace; without them the row says so.

mod churn;
mod engine;
mod fjall;
mod full;
mod log;
mod redb;
mod speed;
mod sqlite;
mod sync;
mod torn;

use std::path::{Path, PathBuf};

use crate::engine::Kind;

/// What is measured: the name of a row and what fills a cell.
type Row = (&'static str, fn(Kind, &Path) -> anyhow::Result<String>);

const ROWS: [Row; 6] = [
    ("batches of 1: messages/s (ratio)", |kind, folder| speed::row(kind, folder, 1)),
    ("batches of 64", |kind, folder| speed::row(kind, folder, 64)),
    ("batches of 1,024", |kind, folder| speed::row(kind, folder, 1_024)),
    ("a write that was torn", torn::row),
    ("a full disk", full::row),
    ("a sync that fails", sync::row),
];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, child, kind, folder] = arguments.as_slice()
        && child == sync::CHILD
    {
        return sync::child(Kind::named(kind)?, Path::new(folder));
    }
    let folder = tempfile::Builder::new().prefix("engines-").tempdir_in(beside_the_binary()?)?;
    let folder = folder.path();
    let alone = speed::one_sync_each(&folder.join("alone"))?;
    println!("One fdatasync per message of 300 bytes, growing file: {alone:.0}/s\n");
    println!("| | {} |", Kind::ALL.map(Kind::name).join(" | "));
    println!("|---{}|", "|---".repeat(Kind::ALL.len()));
    for (name, of) in ROWS {
        let cells = Kind::ALL.map(|kind| {
            let place = folder.join("one");
            let cell =
                std::fs::create_dir(&place).map_err(Into::into).and_then(|()| of(kind, &place));
            std::fs::remove_dir_all(&place).ok();
            cell.unwrap_or_else(|error| format!("failed: {error:#}"))
        });
        println!("| {name} | {} |", cells.join(" | "));
    }
    churn::rows(folder)
}

fn beside_the_binary() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(""))
}
