//! Throughput: a fixed number of messages in flight per pair, each arrival releasing the next.

use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::ValueEnum;
use serde::Serialize;

use super::mailbox;
use super::pairs::{self, Pairs};
use super::process::{CpuMeter, Process};
use super::progress::{Goal, Progress};
use super::report::{Report, known, rounded, us_each};
use super::seconds;
use super::tally::Tally;
use super::target::Target;

/// A server that delivers nothing for this long has stopped.
const STALL: Duration = Duration::from_secs(10);
/// The wait per turn, which bounds how late the end of the run is noticed.
const TURN: Duration = Duration::from_millis(50);

/// How much is sent.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// The pairs.
    #[command(flatten)]
    pub pairs: pairs::Options,
    /// Messages in flight per pair
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub window: u64,
    /// Seconds that are measured
    #[arg(long, default_value = "5", value_parser = seconds, conflicts_with = "messages")]
    pub seconds: Duration,
    /// Seconds before the measurement starts
    #[arg(long, default_value = "0.5", value_parser = seconds, conflicts_with = "messages")]
    pub warmup_seconds: Duration,
    /// Send exactly this many messages instead; the first tenth of them warms up
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..=1_000_000_000))]
    pub messages: Option<u64>,
    /// What the devices speak. v1 goes through mailboxes, and the window counts messages that are
    /// not accepted
    #[arg(long, value_enum, default_value_t = Protocol::Text)]
    pub protocol: Protocol,
    /// v1: what durability to ask for
    #[arg(long, value_enum, default_value_t = mailbox::Asked::Strongest)]
    pub durability: mailbox::Asked,
    /// v1: where the receivers are
    #[arg(long, value_enum, default_value_t = mailbox::Receiver::Online)]
    pub receiver: mailbox::Receiver,
    /// v1: messages per ack
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub ack_every: u64,
}

impl Options {
    /// What ends the load, the warm-up included.
    pub(super) fn goal(&self) -> Goal {
        let time = self.warmup_seconds + self.seconds;
        self.messages.map_or(Goal::Time(time), Goal::Count)
    }
}

/// What the devices speak.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The text protocol.
    Text,
    /// v1.
    V1,
}

/// What a throughput run found.
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

/// Runs the load and measures it.
pub fn measure(
    target: &Target,
    server: Option<Process>,
    options: &Options,
) -> anyhow::Result<Throughput> {
    let mut run = Run::start(Pairs::connect(*target, &options.pairs)?, options);
    run.until(&run.warmed_up(options))?;
    let (meter, start, before) = (CpuMeter::start(server)?, Instant::now(), run.delivered());
    run.until(&run.finished(options))?;
    let (spent, seconds) = (meter.stop()?, start.elapsed().as_secs_f64());
    let messages = run.delivered() - before;
    let server_resident_bytes = server.map(Process::resident_bytes).transpose()?;
    let tally = run.drain()?;
    Ok(Throughput {
        messages,
        seconds: rounded(seconds),
        messages_per_s: (messages as f64 / seconds).round(),
        server_cpu_us_per_message: spent.server_ns.map(|ns| us_each(ns, messages)),
        generator_cpu_us_per_message: us_each(spent.generator_ns, messages),
        server_resident_bytes,
        tally,
    })
}

/// When a phase of the run is over.
enum Until {
    Moment(Instant),
    Delivered(u64),
}

struct Run {
    pairs: Pairs,
    /// Messages that may still be sent.
    unsent: u64,
    /// The pairs of the messages that came this turn.
    arrived: Vec<usize>,
    progress: Progress,
    last_arrival: Instant,
}

impl Run {
    /// Lines up the first window of each pair.
    fn start(pairs: Pairs, options: &Options) -> Self {
        let mut run = Self {
            pairs,
            unsent: options.messages.unwrap_or(u64::MAX),
            arrived: Vec::new(),
            progress: Progress::new("delivered", options.goal()),
            last_arrival: Instant::now(),
        };
        for _ in 0..options.window {
            (0..run.pairs.len()).for_each(|pair| run.release(pair));
        }
        run
    }

    fn warmed_up(&self, options: &Options) -> Until {
        match options.messages {
            Some(messages) => Until::Delivered(messages / 10),
            None => Until::Moment(Instant::now() + options.warmup_seconds),
        }
    }

    fn finished(&self, options: &Options) -> Until {
        match options.messages {
            Some(messages) => Until::Delivered(messages),
            None => Until::Moment(Instant::now() + options.seconds),
        }
    }

    fn delivered(&self) -> u64 {
        self.pairs.tally().delivered
    }

    /// Runs to the end of a phase, or to the first complaint.
    fn until(&mut self, end: &Until) -> anyhow::Result<()> {
        while self.pairs.tally().is_clean() {
            let now = self.turn()?;
            let over = match *end {
                Until::Moment(moment) => now >= moment,
                Until::Delivered(messages) => self.delivered() >= messages,
            };
            if over {
                break;
            }
            ensure!(now - self.last_arrival < STALL, "no message came for {STALL:?}");
        }
        Ok(())
    }

    fn turn(&mut self) -> anyhow::Result<Instant> {
        self.pairs.turn(TURN, |delivery| self.arrived.push(delivery.pair))?;
        let now = Instant::now();
        if !self.arrived.is_empty() {
            self.last_arrival = now;
        }
        for index in 0..self.arrived.len() {
            self.release(self.arrived[index]);
        }
        self.arrived.clear();
        self.progress.at(now, self.pairs.tally().delivered);
        Ok(now)
    }

    fn release(&mut self, pair: usize) {
        if self.unsent > 0 {
            self.unsent -= 1;
            self.pairs.send(pair);
        }
    }

    /// Sends nothing more and waits for what is in flight.
    fn drain(mut self) -> anyhow::Result<Tally> {
        self.unsent = 0;
        while self.pairs.in_flight() > 0 && self.pairs.tally().is_clean() {
            let now = self.turn()?;
            if now - self.last_arrival > STALL {
                break;
            }
        }
        Ok(self.pairs.into_tally())
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
