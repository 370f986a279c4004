//! A million messages: how long a start takes, and what is left on disk when most have gone.

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;

use crate::engine::Kind;
use crate::torn::files;

const MESSAGES: u64 = 1_000_000;
const BATCH: u64 = 1_000;
/// One in so many stays.
const STAYS: u64 = 10;

/// What was found of one engine, in the order of [`NAMES`].
type Cells = [String; 6];

const NAMES: [&str; 6] = [
    "1,000,000 messages on disk, MiB",
    "start with them: open and index, s",
    "90 % removed, on disk, MiB",
    "after compaction, MiB",
    "compaction took, s",
    "start with the 100,000 left, s",
];

/// Prints the rows.
pub(crate) fn rows(folder: &Path) -> anyhow::Result<()> {
    let cells = Kind::ALL.map(|kind| {
        let place = folder.join("churn");
        let cells =
            std::fs::create_dir(&place).map_err(Into::into).and_then(|()| measure(kind, &place));
        std::fs::remove_dir_all(&place).ok();
        cells.unwrap_or_else(|error| NAMES.map(|_| format!("failed: {error:#}")))
    });
    for (at, name) in NAMES.into_iter().enumerate() {
        let row: Vec<&str> = cells.iter().map(|cells| cells[at].as_str()).collect();
        println!("| {name} | {} |", row.join(" | "));
    }
    Ok(())
}

fn measure(kind: Kind, folder: &Path) -> anyhow::Result<Cells> {
    let mut engine = kind.open(folder)?;
    for first in (0..MESSAGES).step_by(BATCH as usize) {
        engine.append(first, BATCH)?;
    }
    drop(engine);
    let full = mib(folder)?;
    let start = start(kind, folder, MESSAGES)?;
    let mut engine = kind.open(folder)?;
    for first in (0..MESSAGES).step_by(BATCH as usize) {
        let gone = (first..first + BATCH).filter(|number| number % STAYS != 0);
        engine.remove(&gone.collect::<Vec<_>>())?;
    }
    let removed = mib(folder)?;
    let begun = Instant::now();
    engine.compact()?;
    let took = begun.elapsed().as_secs_f64();
    drop(engine);
    let compacted = mib(folder)?;
    let again = self::start(kind, folder, MESSAGES / STAYS)?;
    let s = |seconds: f64| format!("{seconds:.2}");
    Ok([full, s(start), removed, compacted, s(took), s(again)])
}

/// Seconds until the store is open and its messages are known.
fn start(kind: Kind, folder: &Path, expected: u64) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let count = kind.open(folder)?.index()?;
    ensure!(count == expected, "{count} messages of {expected} are there");
    Ok(begun.elapsed().as_secs_f64())
}

/// What the folder takes on disk.
fn mib(folder: &Path) -> anyhow::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let mut blocks = 0;
    for path in files(folder)? {
        blocks += std::fs::metadata(path)?.blocks();
    }
    Ok(format!("{:.0}", blocks as f64 * 512.0 / f64::from(1 << 20)))
}
