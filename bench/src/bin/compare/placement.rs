//! Assignment of cores: the servers on the first, the load on the last.

use anyhow::ensure;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Cores that a server may use.
#[derive(Clone, Copy)]
pub(crate) enum Cores {
    /// The first core, reserved for the servers.
    First,
    /// Every core; the load stays on the last.
    All,
}

/// The assignment of this machine's cores. Creating it moves this process to its core.
pub(crate) struct Placement {
    all: CpuSet,
    server: CpuSet,
    load: CpuSet,
}

impl Placement {
    /// Fails on a machine with a single core.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let all = sched_getaffinity(None)?;
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).collect();
        ensure!(cores.len() > 1, "a comparison needs a core for the server and one for the load");
        let placement = Self { all, server: only(cores[0]), load: only(cores[cores.len() - 1]) };
        sched_setaffinity(None, &placement.load)?;
        Ok(placement)
    }

    /// Runs `start`; processes that it starts inherit these cores.
    pub(crate) fn on<T>(
        &self,
        cores: Cores,
        start: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let cores = match cores {
            Cores::First => &self.server,
            Cores::All => &self.all,
        };
        sched_setaffinity(None, cores)?;
        let started = start();
        sched_setaffinity(None, &self.load)?;
        started
    }
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}
