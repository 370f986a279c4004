//! Latency in an open loop: messages are sent at times fixed in advance, whatever the server
//! does, and each is timed from when it was due. So a server that stalls is charged for every
//! message that had to wait, not only for the one that it stalled on ("coordinated omission").

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::pair::Arrival;
use super::pairs::{self, Pairs};
use super::process::{CpuMeter, Process};
use super::progress::{Goal, Progress};
use super::report::{Report, known, rounded, us_each};
use super::seconds;
use super::tally::Tally;
use super::target::Target;

/// Time for the messages still in flight at the end.
const DRAIN: Duration = Duration::from_secs(10);
/// Higher times are counted as this; no run lasts longer.
const SLOWEST_NS: u64 = 2 * 3600 * 1_000_000_000;

/// The pairs, and the rate and duration of the load.
#[derive(clap::Args, Clone, Debug)]
pub struct LatencyOptions {
    /// The pairs.
    #[command(flatten)]
    pub pairs: pairs::PairsOptions,
    /// Messages per second over all pairs
    #[arg(
        long,
        default_value_t = 50_000,
        value_parser = clap::value_parser!(u64).range(1..=10_000_000)
    )]
    pub rate: u64,
    /// Seconds to measure
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub seconds: Duration,
    /// Seconds before the measurement starts
    #[arg(long, default_value = "0.5", value_parser = seconds)]
    pub warmup_seconds: Duration,
}

/// Result of a latency run. Times are in microseconds, from when a message was due until its
/// receiver read it.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyReport {
    /// Number of messages measured.
    pub messages: u64,
    /// Messages due per second.
    pub rate: u64,
    /// Half of the messages took at most this long.
    pub p50_us: f64,
    /// Nine tenths took at most this long.
    pub p90_us: f64,
    /// 99 % took at most this long.
    pub p99_us: f64,
    /// 99.9 % took at most this long.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// 99 % were written within this time of when they were due: the generator's own share.
    pub send_delay_p99_us: f64,
    /// CPU time that the server spent on a message, in microseconds.
    pub server_cpu_us_per_message: Option<f64>,
    /// All messages of the run, warm-up included.
    pub tally: Tally,
}

/// Runs the load and measures it. The generator polls without sleeping, because the kernel's
/// sleep is coarser than the times measured: it keeps one core busy.
pub fn measure(
    target: &Target,
    server: Option<Process>,
    options: &LatencyOptions,
) -> anyhow::Result<LatencyReport> {
    let pairs = Pairs::connect(*target, &options.pairs, None)?;
    let mut run = Run::start(pairs, options);
    run.until_sent(run.plan.warmup)?;
    let meter = CpuMeter::start(server)?;
    run.until_sent(run.plan.total)?;
    let spent = meter.stop()?;
    run.drain()?;
    let (times, delays) = (&run.times, &run.delays);
    let at = |quantile| us(times.value_at_quantile(quantile));
    Ok(LatencyReport {
        messages: times.len(),
        rate: options.rate,
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: us(times.max()),
        send_delay_p99_us: us(delays.value_at_quantile(0.99)),
        server_cpu_us_per_message: spent
            .server_ns
            .map(|ns| us_each(ns, run.plan.total - run.plan.warmup)),
        tally: run.pairs.into_tally(),
    })
}

fn us(ns: u64) -> f64 {
    rounded(ns as f64 / 1000.0)
}

/// The schedule: when each message is due. Message `n` goes to pair `n % pairs`.
#[derive(Clone, Copy, Debug)]
struct Plan {
    start: Instant,
    rate: u64,
    pairs: u64,
    /// Number of messages that are sent but not measured.
    warmup: u64,
    /// Number of messages of the run.
    total: u64,
}

impl Plan {
    fn due(&self, message: u64) -> Instant {
        let ns = u128::from(message) * 1_000_000_000 / u128::from(self.rate);
        self.start + Duration::from_nanos(ns as u64)
    }

    fn number(&self, pair: usize, sequence: u64) -> u64 {
        sequence * self.pairs + pair as u64
    }
}

struct Run {
    pairs: Pairs,
    plan: Plan,
    sent: u64,
    times: Histogram<u64>,
    delays: Histogram<u64>,
    progress: Progress,
}

impl Run {
    fn start(pairs: Pairs, options: &LatencyOptions) -> Self {
        let count = |time: Duration| (time.as_secs_f64() * options.rate as f64) as u64;
        let warmup = count(options.warmup_seconds);
        let plan = Plan {
            start: Instant::now(),
            rate: options.rate,
            pairs: pairs.len() as u64,
            warmup,
            total: warmup + count(options.seconds).max(1),
        };
        let histogram =
            || Histogram::new_with_bounds(1, SLOWEST_NS, 3).expect("these bounds are in range");
        let (times, delays) = (histogram(), histogram());
        let progress = Progress::new("sent", Goal::Count(plan.total));
        Self { pairs, plan, sent: 0, times, delays, progress }
    }

    fn until_sent(&mut self, messages: u64) -> anyhow::Result<()> {
        while self.sent < messages && self.pairs.tally().is_clean() {
            self.send_what_is_due(messages);
            self.turn()?;
        }
        Ok(())
    }

    fn send_what_is_due(&mut self, messages: u64) {
        let now = Instant::now();
        while self.sent < messages && self.plan.due(self.sent) <= now {
            if self.sent >= self.plan.warmup {
                let delay = now - self.plan.due(self.sent);
                self.delays.saturating_record(delay.as_nanos() as u64);
            }
            self.pairs.send((self.sent % self.plan.pairs) as usize);
            self.sent += 1;
        }
        self.progress.at(now, self.sent);
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let (plan, times) = (self.plan, &mut self.times);
        self.pairs.turn(Duration::ZERO, |pair, arrival| {
            if let Arrival::Delivered(sequence) = arrival {
                let number = plan.number(pair, sequence);
                if number >= plan.warmup {
                    times.saturating_record(plan.due(number).elapsed().as_nanos() as u64);
                }
            }
            // The next message goes when it is due, not when this one arrives.
            false
        })
    }

    fn drain(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + DRAIN;
        while self.pairs.in_flight() > 0 && self.pairs.tally().is_clean() && Instant::now() < end {
            self.turn()?;
        }
        Ok(())
    }
}

impl Report for LatencyReport {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![
            ("messages", format!("{} at {}/s", self.messages, self.rate)),
            ("p50", format!("{} us", self.p50_us)),
            ("p90", format!("{} us", self.p90_us)),
            ("p99", format!("{} us", self.p99_us)),
            ("p99.9", format!("{} us", self.p999_us)),
            ("max", format!("{} us", self.max_us)),
            ("p99 of the generator's delay", format!("{} us", self.send_delay_p99_us)),
            ("server CPU per message", known(self.server_cpu_us_per_message, "us")),
        ];
        rows.extend(self.tally.rows());
        rows
    }

    fn passed(&self) -> bool {
        self.tally.is_clean()
    }
}
