//! Memory that an idle connection costs the server.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use super::connection::Connection;
use super::limits;
use super::pairs::HELLO;
use super::process::Process;
use super::progress::{Goal, Progress};
use super::report::{Report, rounded};
use super::target::Target;
use super::throughput::Protocol;
use super::wire::Dialer;

/// CPU time in [`REST`] below which the server counts as idle.
const REST_CPU_NS: u64 = 1_000_000;
const REST: Duration = Duration::from_millis(200);
const REST_TRIES: usize = 100;

/// Numbers of connections to hold.
#[derive(clap::Args, Clone, Debug)]
pub struct IdleOptions {
    /// Connections at the second measurement
    #[arg(
        long,
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(2..=1_000_000)
    )]
    pub connections: u64,
    /// Connections at the first measurement
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub from: u64,
}

/// Result of an idle run.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    /// Connections at the first measurement.
    pub from: u64,
    /// The server's resident memory at the first measurement.
    pub from_resident_bytes: u64,
    /// Connections at the second measurement.
    pub connections: u64,
    /// The server's resident memory at the second measurement.
    pub resident_bytes: u64,
    /// The difference in memory divided by the difference in connections.
    pub bytes_per_connection: f64,
}

/// Opens and closes the first number of connections once, to exclude one-time allocations of the
/// server, and then measures at both numbers. Nothing is sent and no ping is answered, so the
/// server's timeouts must be longer than the few seconds that this takes.
pub fn measure(
    target: &Target,
    server: Option<Process>,
    options: &IdleOptions,
    protocol: Protocol,
) -> anyhow::Result<Idle> {
    let server = server.context("idle connections are measured in the server: give --pid")?;
    let (from, connections) = (options.from, options.connections);
    ensure!(from < connections, "--from must be less than --connections");
    limits::check_open_files(connections as usize)?;
    let mut crowd = Crowd::new(*target, connections, protocol);
    crowd.grow_to(from)?;
    crowd.disperse();
    let from_resident_bytes = crowd.measure_at(from, server)?;
    let resident_bytes = crowd.measure_at(connections, server)?;
    let growth = resident_bytes as f64 - from_resident_bytes as f64;
    let bytes_per_connection = rounded(growth / (connections - from) as f64);
    Ok(Idle { from, from_resident_bytes, connections, resident_bytes, bytes_per_connection })
}

/// The open connections.
struct Crowd {
    dialer: Dialer,
    devices: Vec<Connection>,
    hello: Option<&'static str>,
    progress: Progress,
}

impl Crowd {
    fn new(target: Target, connections: u64, protocol: Protocol) -> Self {
        Self {
            dialer: Dialer::new(target),
            devices: Vec::new(),
            hello: (protocol == Protocol::V1).then_some(HELLO),
            progress: Progress::new("connections", Goal::Count(connections)),
        }
    }

    fn grow_to(&mut self, count: u64) -> anyhow::Result<()> {
        while (self.devices.len() as u64) < count {
            let (mut device, _) = Connection::open(&mut self.dialer, self.hello)?;
            device.forget_session();
            self.devices.push(device);
            self.progress.at(Instant::now(), self.devices.len() as u64);
        }
        Ok(())
    }

    fn disperse(&mut self) {
        self.devices.clear();
    }

    fn measure_at(&mut self, count: u64, server: Process) -> anyhow::Result<u64> {
        wait_for_rest(server)?;
        self.grow_to(count)?;
        wait_for_rest(server)?;
        server.resident_bytes()
    }
}

/// Waits until the server has finished its work.
pub fn wait_for_rest(server: Process) -> anyhow::Result<()> {
    for _ in 0..REST_TRIES {
        let before = server.cpu_ns()?;
        thread::sleep(REST);
        if server.cpu_ns()? - before < REST_CPU_NS {
            return Ok(());
        }
    }
    anyhow::bail!("the server does not come to rest; is there other load on it?")
}

impl Report for Idle {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let at = |count, bytes| format!("{} KiB at {count} connections", bytes / 1024);
        vec![
            ("server memory", at(self.from, self.from_resident_bytes)),
            ("", at(self.connections, self.resident_bytes)),
            ("bytes per idle connection", self.bytes_per_connection.to_string()),
        ]
    }

    fn passed(&self) -> bool {
        true
    }
}
