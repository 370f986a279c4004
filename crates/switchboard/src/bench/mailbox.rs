//! Throughput by v1: messages through mailboxes, with a fixed number per sender waiting to be
//! accepted.

use std::time::Duration;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::Serialize;
use switchboard_proto::v1::Durability;

use super::pair::V1;
use super::process::Process;
use super::report::{Report, known, rounded, us_each};
use super::tally::Tally;
use super::target::Target;
use super::throughput;

/// Higher times are counted as this.
const SLOWEST_NS: u64 = 60 * 1_000_000_000;

/// Durability requested for each message.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The strongest that the server offers.
    Strongest,
    /// Memory only.
    Memory,
}

/// State of the receivers.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// Connected, and acking.
    Online,
    /// Disconnected: messages wait. The server's mailboxes must hold them
    /// (`mailbox_max_messages`).
    Away,
}

/// Result of a v1 run.
#[derive(Clone, Debug, Serialize)]
pub struct Mailboxes {
    /// Messages accepted while measuring.
    pub accepted: u64,
    /// Messages delivered while measuring.
    pub delivered: u64,
    /// Length of the measurement.
    pub seconds: f64,
    /// Messages accepted per second.
    pub accepted_per_s: f64,
    /// Messages delivered per second.
    pub delivered_per_s: f64,
    /// The durability that the server reported.
    pub durability: String,
    /// Half of the messages were accepted within this time.
    pub accepted_p50_us: f64,
    /// 99 % were.
    pub accepted_p99_us: f64,
    /// The slowest.
    pub accepted_max_us: f64,
    /// CPU time that the server spent on an accepted message, in microseconds.
    pub server_cpu_us_per_message: Option<f64>,
    /// CPU time that this process spent on it, in microseconds.
    pub generator_cpu_us_per_message: f64,
    /// The server's resident memory under the load.
    pub server_resident_bytes: Option<u64>,
    /// All messages of the run, warm-up included; for disconnected receivers `delivered` counts
    /// accepted messages.
    pub tally: Tally,
}

/// Times and durability of accepted messages.
pub(super) struct Acceptance {
    pub(super) times: Histogram<u64>,
    /// The first durability that the server reported.
    durability: Option<Durability>,
}

impl Default for Acceptance {
    fn default() -> Self {
        let times =
            Histogram::new_with_bounds(1, SLOWEST_NS, 3).expect("these bounds are in range");
        Self { times, durability: None }
    }
}

impl Acceptance {
    pub(super) fn note(&mut self, after: Duration, durability: Option<Durability>) {
        self.times.saturating_record(after.as_nanos() as u64);
        self.durability = self.durability.or(durability);
    }
}

/// Runs the v1 load and measures it.
pub fn measure(
    target: &Target,
    server: Option<Process>,
    options: &throughput::ThroughputOptions,
) -> anyhow::Result<Mailboxes> {
    let throughput::ThroughputOptions { durability, receiver, ack_every, .. } = *options;
    let v1 = V1 { durability, receiver, ack_every };
    let run = throughput::measure_by(target, server, options, Some(v1))?;
    let times = &run.acceptance.times;
    let us = |quantile: f64| rounded(times.value_at_quantile(quantile) as f64 / 1_000.0);
    let per_s = |count: u64| (count as f64 / run.seconds).round();
    let durability = run.acceptance.durability.map_or("", Durability::as_str);
    Ok(Mailboxes {
        accepted: run.accepted,
        delivered: run.delivered,
        seconds: rounded(run.seconds),
        accepted_per_s: per_s(run.accepted),
        delivered_per_s: per_s(run.delivered),
        accepted_p50_us: us(0.5),
        accepted_p99_us: us(0.99),
        accepted_max_us: us(1.0),
        durability: durability.to_owned(),
        server_cpu_us_per_message: run.spent.server_ns.map(|ns| us_each(ns, run.accepted)),
        generator_cpu_us_per_message: us_each(run.spent.generator_ns, run.accepted),
        server_resident_bytes: run.server_resident_bytes,
        tally: run.tally,
    })
}

impl Report for Mailboxes {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let rss = self.server_resident_bytes.map(|bytes| bytes / 1024);
        let times = format!(
            "{} / {} / {} us",
            self.accepted_p50_us, self.accepted_p99_us, self.accepted_max_us
        );
        let mut rows = vec![
            ("durability", self.durability.clone()),
            ("accepted/s", self.accepted_per_s.to_string()),
            ("delivered/s", self.delivered_per_s.to_string()),
            ("accepted p50 / p99 / max", times),
            ("server CPU per message", known(self.server_cpu_us_per_message, "us")),
            ("generator CPU per message", format!("{} us", self.generator_cpu_us_per_message)),
            ("server memory", known(rss, "KiB")),
        ];
        rows.extend(self.tally.rows());
        rows
    }

    fn passed(&self) -> bool {
        self.tally.is_clean()
    }
}
