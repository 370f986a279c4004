//! Memory and disk of a server, sampled while it is attacked.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::server::Server;

/// Samples in bytes.
#[derive(Debug)]
pub(crate) struct Gauge {
    rss: Vec<u64>,
    disk: Vec<u64>,
}

const INTERVAL: Duration = Duration::from_millis(250);
/// Maximum growth from the first half of the time to the second.
const SLACK_BYTES: u64 = 16 << 20;

impl Gauge {
    /// Samples until `ends_at`.
    pub(crate) fn watch(server: &Server, ends_at: Instant) -> Gauge {
        let mut gauge = Gauge { rss: Vec::new(), disk: Vec::new() };
        while Instant::now() < ends_at {
            gauge.rss.push(rss(server));
            gauge.disk.push(disk_usage(&server.directory.path().join("switchboard-data")));
            thread::sleep(INTERVAL);
        }
        gauge
    }

    pub(crate) fn rss_max(&self) -> u64 {
        max(&self.rss)
    }

    pub(crate) fn disk_max(&self) -> u64 {
        max(&self.disk)
    }

    /// Checks that neither is higher in the second half than in the first.
    pub(crate) fn is_flat(&self) {
        for samples in [&self.rss, &self.disk] {
            let (first, second) = samples.split_at(samples.len() / 2);
            assert!(max(second) <= max(first) + SLACK_BYTES, "it grows: {self:?}");
        }
    }
}

fn max(samples: &[u64]) -> u64 {
    samples.iter().copied().max().expect("a sample")
}

fn rss(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero()));
    let status = status.expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Returns the bytes of all files below `dir`; files that vanish meanwhile do not count.
fn disk_usage(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_usage(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
