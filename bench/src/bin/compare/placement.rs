//! Which core does what: the servers on the first, the load on the last.

use std::io;

use anyhow::ensure;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores of this machine, shared out. Made once, it moves this process to its core.
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

    /// Runs `start`, and what it starts inherits the servers' core.
    pub(crate) fn on_server_core<T>(&self, start: impl FnOnce() -> T) -> io::Result<T> {
        self.on(&self.server, start)
    }

    /// Runs `start`, and what it starts may use every core.
    pub(crate) fn on_all_cores<T>(&self, start: impl FnOnce() -> T) -> io::Result<T> {
        self.on(&self.all, start)
    }

    fn on<T>(&self, cores: &CpuSet, start: impl FnOnce() -> T) -> io::Result<T> {
        sched_setaffinity(None, cores)?;
        let started = start();
        sched_setaffinity(None, &self.load)?;
        Ok(started)
    }
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}
