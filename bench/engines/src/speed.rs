//! Durable appends per second.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::engine::Kind;

const TIME: Duration = Duration::from_secs(3);
/// A message with its id.
const RECORD: [u8; 300] = [b'm'; 300];
/// What one sync per message gives; known once it was measured.
static ALONE: OnceLock<f64> = OnceLock::new();

/// One `fdatasync` per message, on a file that grows.
pub(crate) fn one_sync_each(path: &Path) -> anyhow::Result<f64> {
    let mut file = File::create(path)?;
    let per_s = repeat(1, |_| {
        file.write_all(&RECORD)?;
        Ok(file.sync_data()?)
    })?;
    std::fs::remove_file(path)?;
    Ok(*ALONE.get_or_init(|| per_s))
}

/// Messages per second in batches, and the ratio to one sync per message.
pub(crate) fn row(kind: Kind, folder: &Path, batch: u64) -> anyhow::Result<String> {
    let mut engine = kind.open(folder)?;
    let per_s = repeat(batch, |first| engine.append(first, batch))?;
    let alone = ALONE.get().copied().unwrap_or(f64::NAN);
    Ok(format!("{per_s:.0} ({:.1})", per_s / alone))
}

fn repeat(batch: u64, mut commit: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        commit(count)?;
        count += batch;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
