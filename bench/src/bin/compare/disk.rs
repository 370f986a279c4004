//! Speed of the disk for a server that syncs each message by itself: the yardstick for the
//! others.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::statistics::spread;

/// Bytes of a 256-byte message as a store writes it, with its sender and id.
const RECORD_BYTES: usize = 300;

/// Results of one `fdatasync` per message on a growing file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Syncs {
    pub(crate) per_s: f64,
    /// Half of the messages were written and synced within this time.
    pub(crate) p50_us: f64,
}

/// Writes and syncs one message after another for `time`, on the disk of `folder`.
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
