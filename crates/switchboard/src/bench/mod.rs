//! `switchboard bench`: a load generator for a server on the same machine.
//!
//! One thread with one epoll loop holds both ends of every message. So it knows what is in
//! flight, checks that each message arrives once, in order and unchanged, and costs the machine
//! far less than the server does. Every load is bounded in count and time, and only loopback
//! addresses are accepted.

pub mod connect;
pub mod connection;
pub mod idle;
pub mod latency;
pub mod mailbox;
pub mod pairs;
pub mod process;
pub mod tally;
pub mod target;
pub mod throughput;
pub mod wire;

mod limits;
mod message;
mod pair;
mod progress;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use process::Process;
use target::Target;

/// Put load on a server on this machine and measure it
///
/// Exit code 0 means that every message came once and in order; 1 that the server failed a
/// check; 2 that the load could not be run.
#[derive(Parser, Debug)]
pub struct Args {
    /// The server: ws://ADDR:PORT, or wss:// for TLS (any certificate is accepted)
    #[arg(long, default_value = "ws://127.0.0.1:8080", global = true)]
    pub url: Target,
    /// The server's process id, to measure its CPU time and memory
    #[arg(long, global = true)]
    pub pid: Option<u32>,
    /// Print one JSON object instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// The measurement
    #[command(subcommand)]
    pub mode: Mode,
}

/// Measurements of `switchboard bench`.
#[derive(Subcommand, Debug)]
pub enum Mode {
    /// Maximum rate at which the server relays messages, with a fixed number in flight per pair
    Throughput(throughput::ThroughputOptions),
    /// Delivery times at a fixed rate, counted from when each message was due
    Latency(latency::LatencyOptions),
    /// Memory that the server needs for an idle connection
    Idle(idle::IdleOptions),
    /// Handshakes per second
    Connect(connect::ConnectOptions),
}

/// Runs one measurement and prints the result.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    limits::raise_open_files()?;
    let server = args.pid.map(Process::new).transpose()?;
    let target = &args.url;
    match &args.mode {
        Mode::Throughput(options) if options.protocol == throughput::Protocol::V1 => {
            report::print(&mailbox::measure(target, server, options)?, args.json)
        }
        Mode::Throughput(options) => {
            report::print(&throughput::measure(target, server, options)?, args.json)
        }
        Mode::Latency(options) => {
            report::print(&latency::measure(target, server, options)?, args.json)
        }
        Mode::Idle(options) => {
            let idle = idle::measure(target, server, options, throughput::Protocol::Text)?;
            report::print(&idle, args.json)
        }
        Mode::Connect(options) => {
            report::print(&connect::measure(target, server, options)?, args.json)
        }
    }
}

/// Parses a number of seconds, with or without a fraction, up to an hour.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time <= Duration::from_secs(3600) => Ok(time),
        _ => Err("expected between 0 and 3600 seconds".into()),
    }
}
