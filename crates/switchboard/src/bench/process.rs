//! Resources used by a process, from Linux' /proc: CPU time in nanoseconds and resident memory.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

/// A running process.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pid: u32,
}

impl Process {
    /// Fails if no process has this id.
    pub fn new(pid: u32) -> anyhow::Result<Self> {
        let process = Self { pid };
        ensure!(process.path("task").exists(), "there is no process {pid}");
        Ok(process)
    }

    /// Returns the current process.
    pub fn this() -> Self {
        Self { pid: std::process::id() }
    }

    /// Returns the CPU time of its living threads, kernel included, in nanoseconds. The kernel
    /// updates the time of a running thread once per tick, so it lags by up to 4 ms.
    pub fn cpu_ns(self) -> anyhow::Result<u64> {
        let tasks = fs::read_dir(self.path("task"))
            .with_context(|| format!("process {} has ended", self.pid))?;
        let mut total = 0;
        for task in tasks {
            // A thread that ended after the listing is no longer counted.
            if let Ok(schedstat) = fs::read_to_string(task?.path().join("schedstat")) {
                total += first_number(&schedstat).context("unreadable schedstat")?;
            }
        }
        Ok(total)
    }

    /// Returns the share of the kernel in its CPU time so far. The kernel samples it once per
    /// tick, so it is meaningful only over seconds.
    pub fn kernel_share(self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(self.path("stat"))
            .with_context(|| format!("process {} has ended", self.pid))?;
        // The name may contain anything. After it, user time is the 12th field, and kernel time
        // the next.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_ascii_whitespace());
        let ticks: Vec<f64> = fields
            .into_iter()
            .flat_map(|fields| fields.skip(11).take(2))
            .map_while(|field| field.parse().ok())
            .collect();
        let [user, kernel] = ticks[..] else { bail!("unreadable stat of process {}", self.pid) };
        Ok(kernel / (user + kernel))
    }

    /// Returns the resident memory in bytes, counted page by page: the cheaper `VmRSS` is off by
    /// up to 64 pages per core.
    pub fn resident_bytes(self) -> anyhow::Result<u64> {
        let path = self.path("smaps_rollup");
        let rollup =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let resident = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
        let kib = resident.and_then(first_number).context("no Rss in smaps_rollup")?;
        Ok(kib * 1024)
    }

    fn path(self, leaf: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{leaf}", self.pid))
    }
}

fn first_number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// CPU time spent between two points in time, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct CpuSpent {
    /// By the server, if its process is known.
    pub server_ns: Option<u64>,
    /// By this process.
    pub generator_ns: u64,
}

/// The CPU times at the start of a measurement.
pub(super) struct CpuMeter {
    server: Option<Process>,
    start: CpuSpent,
}

impl CpuMeter {
    pub(super) fn start(server: Option<Process>) -> anyhow::Result<Self> {
        Ok(Self { server, start: Self::now(server)? })
    }

    pub(super) fn stop(&self) -> anyhow::Result<CpuSpent> {
        let end = Self::now(self.server)?;
        let server_ns = end.server_ns.zip(self.start.server_ns).map(|(end, start)| end - start);
        Ok(CpuSpent { server_ns, generator_ns: end.generator_ns - self.start.generator_ns })
    }

    fn now(server: Option<Process>) -> anyhow::Result<CpuSpent> {
        Ok(CpuSpent {
            server_ns: server.map(Process::cpu_ns).transpose()?,
            generator_ns: Process::this().cpu_ns()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_is_seen_to_work() {
        let before = Process::this().cpu_ns().unwrap();
        let mut sum = 0u64;
        while Process::this().cpu_ns().unwrap() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(Process::this().resident_bytes().unwrap() > 100_000);
        let share = loop {
            // NaN before the first tick.
            let share = Process::this().kernel_share().unwrap();
            if !share.is_nan() {
                break share;
            }
        };
        assert!((0.0..=1.0).contains(&share), "{share}");
    }

    #[test]
    fn a_process_that_is_not_there_is_said_to_be_missing() {
        let error = Process::new(u32::MAX).unwrap_err();
        assert_eq!(error.to_string(), "there is no process 4294967295");
    }
}
