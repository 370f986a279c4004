//! What the disk gives to a server that syncs each message alone: the yardstick of the others.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::statistics::spread;

/// A message of 256 bytes as a store writes it, with who sent it and its id.
const RECORD_BYTES: usize = 300;

/// One `fdatasync` per message on a file that grows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Syncs {
    pub(crate) per_s: f64,
    /// Half of the messages were written and synced within this time.
    pub(crate) p50_us: f64,
}

/// Writes and syncs one message after the other for so long, on the disk of `folder`.
pub(crate) fn measure(folder: &Path, time: Duration) -> anyhow::Result<Syncs> {
    let path = folder.join("fdatasync");
    let mut file = File::create(&path)?;
    let mut times_us = Vec::new();
    let start = Instant::now();
    let mut before = start;
    while before - start < time {
        file.write_all(&[b'm'; RECORD_BYTES])?;
        file.sync_data()?;
        let now = Instant::now();
        times_us.push((now - before).as_secs_f64() * 1e6);
        before = now;
    }
    std::fs::remove_file(path)?;
    let per_s = times_us.len() as f64 / (before - start).as_secs_f64();
    Ok(Syncs { per_s, p50_us: spread(times_us.into_iter()).median })
}
