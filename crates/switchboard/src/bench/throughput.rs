//! Throughput: a fixed number of messages in flight per pair. In the text protocol each arrival
//! releases the next message, in v1 each `accepted`.

use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::ValueEnum;
use serde::Serialize;

use super::mailbox::{self, Acceptance};
use super::pair::{Arrival, V1};
use super::pairs::{self, Pairs};
use super::process::{CpuMeter, CpuSpent, Process};
use super::progress::{Goal, Progress};
use super::report::{Report, known, rounded, us_each};
use super::seconds;
use super::tally::Tally;
use super::target::Target;

/// Time without a delivery after which the server counts as stopped.
const STALL: Duration = Duration::from_secs(10);
/// Maximum wait per turn, which bounds how late the end of the run is noticed.
const TURN: Duration = Duration::from_millis(50);

/// The pairs, and the amount of the load.
#[derive(clap::Args, Clone, Debug)]
pub struct ThroughputOptions {
    /// The pairs.
    #[command(flatten)]
    pub pairs: pairs::PairsOptions,
    /// Messages in flight per pair
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub window: u64,
    /// Seconds to measure
    #[arg(long, default_value = "5", value_parser = seconds, conflicts_with = "messages")]
    pub seconds: Duration,
    /// Seconds before the measurement starts
    #[arg(long, default_value = "0.5", value_parser = seconds, conflicts_with = "messages")]
    pub warmup_seconds: Duration,
    /// Send exactly this many messages instead; the first tenth of them warms up
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..=1_000_000_000))]
    pub messages: Option<u64>,
    /// Protocol of the devices. v1 goes through mailboxes, and the window counts messages that
    /// are not accepted yet
    #[arg(long, value_enum, default_value_t = Protocol::Text)]
    pub protocol: Protocol,
    /// v1: durability to ask for
    #[arg(long, value_enum, default_value_t = mailbox::Asked::Strongest)]
    pub durability: mailbox::Asked,
    /// v1: state of the receivers
    #[arg(long, value_enum, default_value_t = mailbox::Receiver::Online)]
    pub receiver: mailbox::Receiver,
    /// v1: messages per ack
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub ack_every: u64,
}

impl ThroughputOptions {
    /// Returns the end of the load, warm-up included.
    pub(super) fn goal(&self) -> Goal {
        let time = self.warmup_seconds + self.seconds;
        self.messages.map_or(Goal::Time(time), Goal::Count)
    }
}

/// Protocol of the devices.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The text protocol.
    Text,
    /// v1.
    V1,
}

/// Result of a throughput run.
#[derive(Clone, Debug, Serialize)]
pub struct Throughput {
    /// Messages delivered while measuring.
    pub messages: u64,
    /// Length of the measurement.
    pub seconds: f64,
    /// Messages delivered per second.
    pub messages_per_s: f64,
    /// CPU time that the server spent on a message, in microseconds.
    pub server_cpu_us_per_message: Option<f64>,
    /// CPU time that this process spent on a message, in microseconds.
    pub generator_cpu_us_per_message: f64,
    /// The server's resident memory under the load.
    pub server_resident_bytes: Option<u64>,
    /// All messages of the run, warm-up included.
    pub tally: Tally,
}

/// Runs the load in the text protocol and measures it.
pub fn measure(
    target: &Target,
    server: Option<Process>,
    options: &ThroughputOptions,
) -> anyhow::Result<Throughput> {
    let run = measure_by(target, server, options, None)?;
    let (messages, seconds) = (run.delivered, run.seconds);
    Ok(Throughput {
        messages,
        seconds: rounded(seconds),
        messages_per_s: (messages as f64 / seconds).round(),
        server_cpu_us_per_message: run.spent.server_ns.map(|ns| us_each(ns, messages)),
        generator_cpu_us_per_message: us_each(run.spent.generator_ns, messages),
        server_resident_bytes: run.server_resident_bytes,
        tally: run.tally,
    })
}

/// Result of a run, in either protocol.
pub(super) struct Measured {
    /// Messages delivered while measuring.
    pub(super) delivered: u64,
    /// v1: messages accepted while measuring.
    pub(super) accepted: u64,
    pub(super) acceptance: Acceptance,
    pub(super) seconds: f64,
    pub(super) spent: CpuSpent,
    pub(super) server_resident_bytes: Option<u64>,
    pub(super) tally: Tally,
}

/// Runs the load, in v1 if given, and measures it.
pub(super) fn measure_by(
    target: &Target,
    server: Option<Process>,
    options: &ThroughputOptions,
    v1: Option<V1>,
) -> anyhow::Result<Measured> {
    let mut run = Run::start(Pairs::connect(*target, &options.pairs, v1)?, options, v1);
    run.until(&run.warmed_up(options))?;
    run.acceptance.times.reset();
    let (meter, start) = (CpuMeter::start(server)?, Instant::now());
    let [delivered, accepted] = [run.delivered, run.accepted];
    run.until(&run.finished(options))?;
    let (spent, seconds) = (meter.stop()?, start.elapsed().as_secs_f64());
    let [delivered, accepted] = [run.delivered - delivered, run.accepted - accepted];
    let server_resident_bytes = server.map(Process::resident_bytes).transpose()?;
    run.drain()?;
    let Run { acceptance, pairs, .. } = run;
    let tally = pairs.into_tally();
    Ok(Measured { delivered, accepted, acceptance, seconds, spent, server_resident_bytes, tally })
}

/// End of a phase of the run.
enum Until {
    Moment(Instant),
    Released(u64),
}

struct Run {
    pairs: Pairs,
    is_v1: bool,
    /// Number of messages that may still be sent.
    unsent: u64,
    delivered: u64,
    accepted: u64,
    acceptance: Acceptance,
    progress: Progress,
    last_release: Instant,
}

impl Run {
    /// Queues the first window of each pair.
    fn start(pairs: Pairs, options: &ThroughputOptions, v1: Option<V1>) -> Self {
        let label = if v1.is_some() { "accepted" } else { "delivered" };
        let mut run = Self {
            pairs,
            is_v1: v1.is_some(),
            unsent: options.messages.unwrap_or(u64::MAX),
            delivered: 0,
            accepted: 0,
            acceptance: Acceptance::default(),
            progress: Progress::new(label, options.goal()),
            last_release: Instant::now(),
        };
        for _ in 0..options.window {
            (0..run.pairs.len()).for_each(|pair| run.send(pair));
        }
        run
    }

    fn warmed_up(&self, options: &ThroughputOptions) -> Until {
        match options.messages {
            Some(messages) => Until::Released(messages / 10),
            None => Until::Moment(Instant::now() + options.warmup_seconds),
        }
    }

    fn finished(&self, options: &ThroughputOptions) -> Until {
        match options.messages {
            Some(messages) => Until::Released(messages),
            None => Until::Moment(Instant::now() + options.seconds),
        }
    }

    /// Returns the number of events so far that release the next message.
    fn released(&self) -> u64 {
        if self.is_v1 { self.accepted } else { self.delivered }
    }

    /// Runs to the end of a phase, or to the first error.
    fn until(&mut self, end: &Until) -> anyhow::Result<()> {
        while self.pairs.tally().is_clean() {
            let now = self.turn()?;
            let over = match *end {
                Until::Moment(moment) => now >= moment,
                Until::Released(messages) => self.released() >= messages,
            };
            if over {
                break;
            }
            let missing = if self.is_v1 { "was accepted" } else { "came" };
            ensure!(now - self.last_release < STALL, "no message {missing} for {STALL:?}");
        }
        Ok(())
    }

    fn turn(&mut self) -> anyhow::Result<Instant> {
        let before = self.released();
        let Self { pairs, is_v1, unsent, delivered, accepted, acceptance, .. } = self;
        pairs.turn(TURN, |_, arrival| {
            let is_release = match arrival {
                Arrival::Delivered(_) => {
                    *delivered += 1;
                    !*is_v1
                }
                Arrival::Accepted { after, durability } => {
                    *accepted += 1;
                    acceptance.note(after, durability);
                    true
                }
            };
            let sends_next = is_release && *unsent > 0;
            *unsent -= u64::from(sends_next);
            sends_next
        })?;
        let now = Instant::now();
        if self.released() > before {
            self.last_release = now;
        }
        self.progress.at(now, self.released());
        Ok(now)
    }

    fn send(&mut self, pair: usize) {
        if self.unsent > 0 {
            self.unsent -= 1;
            self.pairs.send(pair);
        }
    }

    /// Sends nothing more and waits for the messages in flight.
    fn drain(&mut self) -> anyhow::Result<()> {
        self.unsent = 0;
        let mut last_arrival = Instant::now();
        while self.pairs.in_flight() > 0 && self.pairs.tally().is_clean() {
            let before = self.pairs.tally().delivered;
            let now = self.turn()?;
            if self.pairs.tally().delivered > before {
                last_arrival = now;
            } else if now - last_arrival > STALL {
                break;
            }
        }
        Ok(())
    }
}

impl Report for Throughput {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let rss = self.server_resident_bytes.map(|bytes| bytes / 1024);
        let mut rows = vec![
            ("messages", self.messages.to_string()),
            ("messages/s", self.messages_per_s.to_string()),
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
