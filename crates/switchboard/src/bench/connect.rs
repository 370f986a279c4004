//! Connection rate of the server: from the TCP connect to the welcome, many at once.

use std::time::{Duration, Instant};

use anyhow::ensure;
use mio::{Events, Poll, Token};
use serde::Serialize;

use super::connection::{Connection, id_in_greeting};
use super::limits;
use super::process::{CpuMeter, Process};
use super::progress::{Goal, Progress};
use super::report::{Report, known, rounded, us_each};
use super::target::Target;
use super::wire::Dialer;

/// Time without a welcome after which the server counts as stopped.
const STALL: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 8 * 1024;

/// Number of connections to open.
#[derive(clap::Args, Clone, Debug)]
pub struct ConnectOptions {
    /// Connections to open; all stay open until the last one is
    #[arg(
        long,
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(1..=1_000_000)
    )]
    pub connections: u64,
    /// Handshakes under way at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub concurrency: u64,
}

/// Result of a connect run.
#[derive(Clone, Debug, Serialize)]
pub struct Connect {
    /// Number of connections that were greeted.
    pub connections: u64,
    /// Time from the first connect to the last welcome.
    pub seconds: f64,
    /// Handshakes per second.
    pub handshakes_per_s: f64,
    /// CPU time that the server spent on a handshake, in microseconds.
    pub server_cpu_us_per_handshake: Option<f64>,
    /// CPU time that this process spent on a handshake, in microseconds.
    pub generator_cpu_us_per_handshake: f64,
}

/// Opens the connections, and closes them at the end.
pub fn measure(
    target: &Target,
    server: Option<Process>,
    options: &ConnectOptions,
) -> anyhow::Result<Connect> {
    let connections = options.connections;
    limits::check_open_files(connections as usize)?;
    let mut rush = Rush::new(*target, connections)?;
    let (meter, start) = (CpuMeter::start(server)?, Instant::now());
    rush.run(connections as usize, options.concurrency as usize)?;
    let (spent, seconds) = (meter.stop()?, start.elapsed().as_secs_f64());
    Ok(Connect {
        connections,
        seconds: rounded(seconds),
        handshakes_per_s: (connections as f64 / seconds).round(),
        server_cpu_us_per_handshake: spent.server_ns.map(|ns| us_each(ns, connections)),
        generator_cpu_us_per_handshake: us_each(spent.generator_ns, connections),
    })
}

/// The connections opened so far, in order.
struct Rush {
    dialer: Dialer,
    poll: Poll,
    input: Vec<u8>,
    guests: Vec<Connection>,
    greeted: usize,
    progress: Progress,
}

impl Rush {
    fn new(target: Target, connections: u64) -> anyhow::Result<Self> {
        Ok(Self {
            dialer: Dialer::new(target),
            poll: Poll::new()?,
            input: vec![0; READ_BYTES],
            guests: Vec::new(),
            greeted: 0,
            progress: Progress::new("connections", Goal::Count(connections)),
        })
    }

    fn run(&mut self, connections: usize, concurrency: usize) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(concurrency);
        while self.greeted < connections {
            while self.guests.len() < connections.min(self.greeted + concurrency) {
                self.begin()?;
            }
            self.poll.poll(&mut events, Some(STALL))?;
            ensure!(!events.is_empty(), "no connection was welcomed for {STALL:?}");
            for event in &events {
                let Token(number) = event.token();
                self.guests[number].read(&mut self.input, |text, _| {
                    self.greeted += 1;
                    id_in_greeting(text).map(drop)
                })?;
            }
            self.progress.at(Instant::now(), self.greeted as u64);
        }
        Ok(())
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let mut guest = Connection::new(self.dialer.dial()?, None);
        guest.write()?;
        guest.register(self.poll.registry(), Token(self.guests.len()))?;
        self.guests.push(guest);
        Ok(())
    }
}

impl Report for Connect {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let generator = format!("{} us", self.generator_cpu_us_per_handshake);
        vec![
            ("handshakes", format!("{} in {} s", self.connections, self.seconds)),
            ("handshakes/s", self.handshakes_per_s.to_string()),
            ("server CPU per handshake", known(self.server_cpu_us_per_handshake, "us")),
            ("generator CPU per handshake", generator),
        ]
    }

    fn passed(&self) -> bool {
        true
    }
}
