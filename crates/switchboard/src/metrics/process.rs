//! Metrics of the process, under the names that Prometheus' client libraries agree on, read from
//! `/proc/self`.
//!
//! If `/proc` cannot be read, the metrics are left out rather than shown as 0.

use std::fmt;
use std::fs;

use prometheus_client::metrics::MetricType;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::Encoder;

/// Values that stay the same for the life of the process.
#[derive(Debug)]
pub(super) struct Process {
    start_time_s: Option<f64>,
}

impl Process {
    /// Reads the start time once: it is relative to the boot, whose time moves with the clock.
    pub(super) fn new() -> Process {
        Process { start_time_s: start_time_s() }
    }

    pub(super) fn encode(&self, out: &mut Encoder<'_>) -> fmt::Result {
        if let Some(start) = self.start_time_s {
            let help = "Start of the process, in seconds since 1970";
            out.seconds("process_start_time", help, MetricType::Gauge, start)?;
        }
        if let Some(stat) = Stat::read() {
            stat.encode(out)?;
        }
        if let Some(files) = open_files() {
            out.gauge("process_open_fds", "Open file descriptors", files)?;
        }
        let max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        out.gauge("process_max_fds", "Limit on open file descriptors", max)
    }
}

/// Some fields of `/proc/self/stat`, see proc(5).
#[derive(Debug, PartialEq)]
struct Stat {
    /// Time on a CPU, in user mode and in the kernel.
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn read() -> Option<Stat> {
        Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(line: &str) -> Option<Stat> {
        // The name is in parentheses and may itself contain spaces and parentheses. The third
        // field follows it; the numbers below are those of proc(5).
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }

    fn encode(&self, out: &mut Encoder<'_>) -> fmt::Result {
        let help = "CPU time used, in user mode and in the kernel, by all threads";
        out.seconds("process_cpu", help, MetricType::Counter, seconds(self.cpu_ticks))?;
        let resident = self.resident_pages * page_size() as u64;
        let help = "Resident memory";
        out.bytes("process_resident_memory", help, MetricType::Gauge, resident)?;
        let help = "Virtual memory";
        out.bytes("process_virtual_memory", help, MetricType::Gauge, self.virtual_bytes)?;
        out.gauge("process_threads", "Threads of the process", self.threads)
    }
}

/// Returns the number of open files. Since Linux 6.2 it is the size of the folder; counting the
/// entries takes 0.8 ms for each thousand.
fn open_files() -> Option<u64> {
    const FILES: &str = "/proc/self/fd";
    match fs::metadata(FILES).ok()?.len() {
        // The folder itself is open while it is read.
        0 => Some(fs::read_dir(FILES).ok()?.count().saturating_sub(1) as u64),
        files => Some(files),
    }
}

fn start_time_s() -> Option<f64> {
    let system = fs::read_to_string("/proc/stat").ok()?;
    let booted = system.lines().find_map(|line| line.strip_prefix("btime "))?;
    let booted: u64 = booted.trim().parse().ok()?;
    Some(booted as f64 + seconds(Stat::read()?.start_ticks))
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_end_of_itself() {
        let line = "71 (a) R 1 (b)) S 1 71 71 0 -1 4194304 97 0 0 0 250 50 0 0 20 0 9 0 413679 \
                    3133440 362 18446744073709551615 9450 9451 1407 0 0\n";
        let stat = Stat {
            cpu_ticks: 300,
            threads: 9,
            start_ticks: 413_679,
            virtual_bytes: 3_133_440,
            resident_pages: 362,
        };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("71 (a) S 1 71"), None);
    }
}
