//! Throughput by v1: messages through mailboxes, with a fixed number per sender that are not yet
//! accepted. Each `accepted` releases the next.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use mio::{Events, Poll, Token};
use serde::Serialize;
use switchboard_proto::v1::{ServerEvent, Word, parse_server};

use super::device::{read_welcome, request_upgrade_v1};
use super::end::End;
use super::frame;
use super::limits;
use super::message::{STAMP_BYTES, stamp};
use super::process::{CpuMeter, Process};
use super::progress::Progress;
use super::report::{Report, known, rounded, us_each};
use super::tally::Tally;
use super::target::Target;
use super::throughput;
use super::wire::Dialer;

/// A server that accepts nothing for this long has stopped.
const STALL: Duration = Duration::from_secs(10);
const TURN: Duration = Duration::from_millis(50);
const INPUT_BYTES: usize = 256 << 10;
const EVENTS_PER_TURN: usize = 1_024;
/// Times above this are counted as this.
const SLOWEST_NS: u64 = 60 * 1_000_000_000;

/// What is asked of the server for each message.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The strongest that it has.
    Strongest,
    /// Memory only.
    Memory,
}

/// Where the receivers are.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// Connected, and acking.
    Online,
    /// Away: messages wait. The server's mailboxes must hold them (`mailbox_max_messages`).
    Away,
}

/// What a run by v1 found.
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
    /// What the server said that it had reached.
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
    /// All messages of the run, warm-up included; for receivers that are away `delivered` counts
    /// what was accepted.
    pub tally: Tally,
}

/// A sender, its receiver, and what is under way.
struct Pair {
    number: u32,
    sender: End,
    receiver: Option<End>,
    to: String,
    sent: u64,
    accepted: u64,
    expected: u64,
    /// When each message that is not accepted was lined up.
    lined_up: VecDeque<Instant>,
    unacked: u64,
}

struct Run<'o> {
    options: &'o throughput::Options,
    poll: Poll,
    events: Events,
    input: Vec<u8>,
    pairs: Vec<Pair>,
    filler: String,
    times: Histogram<u64>,
    durability: String,
    accepted: u64,
    delivered: u64,
    unsent: u64,
    tally: Tally,
    progress: Progress,
    last_accepted: Instant,
}

/// Runs the load and measures it.
pub fn measure(
    target: &Target,
    server: Option<Process>,
    options: &throughput::Options,
) -> anyhow::Result<Mailboxes> {
    let mut run = Run::connect(*target, options)?;
    run.start()?;
    let warm = Instant::now() + options.warmup_seconds;
    let warm_count = options.messages.map(|messages| messages / 10);
    run.until(|run| warm_count.map_or(Instant::now() >= warm, |count| run.accepted >= count))?;
    run.times.reset();
    let (meter, start) = (CpuMeter::start(server)?, Instant::now());
    let (accepted, delivered) = (run.accepted, run.delivered);
    let end = start + options.seconds;
    let count = options.messages;
    run.until(|run| count.map_or(Instant::now() >= end, |count| run.accepted >= count))?;
    let (spent, seconds) = (meter.stop()?, start.elapsed().as_secs_f64());
    let (accepted, delivered) = (run.accepted - accepted, run.delivered - delivered);
    let server_resident_bytes = server.map(Process::resident_bytes).transpose()?;
    run.drain()?;
    let us = |quantile: f64| rounded(run.times.value_at_quantile(quantile) as f64 / 1_000.0);
    Ok(Mailboxes {
        accepted,
        delivered,
        seconds: rounded(seconds),
        accepted_per_s: (accepted as f64 / seconds).round(),
        delivered_per_s: (delivered as f64 / seconds).round(),
        accepted_p50_us: us(0.5),
        accepted_p99_us: us(0.99),
        accepted_max_us: us(1.0),
        durability: run.durability.clone(),
        server_cpu_us_per_message: spent.server_ns.map(|ns| us_each(ns, accepted)),
        generator_cpu_us_per_message: us_each(spent.generator_ns, accepted),
        server_resident_bytes,
        tally: run.tally,
    })
}

impl<'o> Run<'o> {
    fn connect(target: Target, options: &'o throughput::Options) -> anyhow::Result<Run<'o>> {
        let count = options.pairs.pairs as usize;
        limits::check_open_files(2 * count)?;
        let mut dialer = Dialer::new(target)?;
        let poll = Poll::new()?;
        let mut pairs = Vec::with_capacity(count);
        for number in 0..count {
            let mut open = || {
                let mut wire = request_upgrade_v1(&mut dialer)?;
                let device = read_welcome(&mut wire)?;
                Ok::<_, anyhow::Error>((device, End::new(wire)))
            };
            let (_, mut sender) = open()?;
            let (to, mut receiver) = open()?;
            sender.wire.register(poll.registry(), Token(2 * number))?;
            let receiver = match options.receiver {
                Receiver::Online => {
                    receiver.wire.register(poll.registry(), Token(2 * number + 1))?;
                    Some(receiver)
                }
                Receiver::Away => None,
            };
            pairs.push(Pair {
                number: number as u32,
                sender,
                receiver,
                to,
                sent: 0,
                accepted: 0,
                expected: 0,
                lined_up: VecDeque::new(),
                unacked: 0,
            });
        }
        Ok(Run {
            options,
            poll,
            events: Events::with_capacity(EVENTS_PER_TURN),
            input: vec![0; INPUT_BYTES],
            pairs,
            filler: ".".repeat(options.pairs.size as usize - STAMP_BYTES),
            times: Histogram::new_with_bounds(1, SLOWEST_NS, 3).context("no histogram")?,
            durability: String::new(),
            accepted: 0,
            delivered: 0,
            unsent: options.messages.unwrap_or(u64::MAX),
            tally: Tally::default(),
            progress: Progress::new("accepted", options.goal()),
            last_accepted: Instant::now(),
        })
    }

    fn start(&mut self) -> anyhow::Result<()> {
        for pair in 0..self.pairs.len() {
            for _ in 0..self.options.window {
                self.line_up(pair);
            }
            self.pairs[pair].sender.write()?;
        }
        Ok(())
    }

    /// Appends the next message of a pair to its sender's output.
    fn line_up(&mut self, pair: usize) {
        if self.unsent == 0 {
            return;
        }
        self.unsent -= 1;
        let pair = &mut self.pairs[pair];
        let stamp = stamp(pair.number, pair.sent);
        let stamp = std::str::from_utf8(&stamp).expect("hexadecimal digits are text");
        let durability = match self.options.durability {
            Asked::Strongest => "",
            Asked::Memory => ",\"durability\":\"memory\"",
        };
        let (to, filler) = (&pair.to, &self.filler);
        let text = format!(
            "{{\"type\":\"send\",\"id\":\"{stamp}\",\"to\":\"{to}\",\"body\":\"{stamp}{filler}\"{durability}}}"
        );
        pair.sender.out.extend_from_slice(&frame::encode(frame::TEXT, text.as_bytes()).0);
        pair.sent += 1;
        pair.lined_up.push_back(Instant::now());
        self.tally.sent += 1;
    }

    fn until(&mut self, is_over: impl Fn(&Run<'_>) -> bool) -> anyhow::Result<()> {
        while self.tally.is_clean() && !is_over(self) {
            self.turn()?;
            ensure!(self.last_accepted.elapsed() < STALL, "no message was accepted for {STALL:?}");
        }
        Ok(())
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(TURN)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        let tokens: Vec<(usize, bool, bool)> = self
            .events
            .iter()
            .map(|event| (event.token().0, event.is_readable(), event.is_writable()))
            .collect();
        for (token, readable, writable) in tokens {
            let is_sender = token % 2 == 0;
            if is_sender {
                self.serve_sender(token / 2, readable, writable)?;
            } else {
                self.serve_receiver(token / 2, readable, writable)?;
            }
        }
        self.progress.at(Instant::now(), self.accepted);
        Ok(())
    }

    fn serve_sender(&mut self, at: usize, readable: bool, writable: bool) -> anyhow::Result<()> {
        let pair = &mut self.pairs[at];
        if writable {
            pair.sender.write()?;
        }
        if !readable {
            return Ok(());
        }
        let now = Instant::now();
        let (mut accepted, mut failed) = (0, None);
        let (lined_up, times, durability) =
            (&mut pair.lined_up, &mut self.times, &mut self.durability);
        pair.sender.read(&mut self.input, |text| match parse_server(text) {
            Ok(ServerEvent::Accepted { durability: reached, duplicate: false, .. }) => {
                accepted += 1;
                if let Some(since) = lined_up.pop_front() {
                    times.saturating_record((now - since).as_nanos() as u64);
                }
                if durability.is_empty()
                    && let Word::Known(reached) = reached
                {
                    reached.as_str().clone_into(durability);
                }
            }
            _ => failed = failed.take().or(Some(text.to_vec())),
        })?;
        if let Some(text) = failed {
            self.tally.refused += 1;
            self.tally.complain(&text);
        }
        pair.accepted += accepted;
        self.accepted += accepted;
        if pair.receiver.is_none() {
            self.tally.delivered += accepted;
        }
        if accepted > 0 {
            self.last_accepted = now;
        }
        for _ in 0..accepted {
            self.line_up(at);
        }
        self.pairs[at].sender.write()?;
        Ok(())
    }

    fn serve_receiver(&mut self, at: usize, readable: bool, writable: bool) -> anyhow::Result<()> {
        let (ack_every, filler) = (self.options.ack_every, self.filler.as_bytes());
        let pair = &mut self.pairs[at];
        let Some(receiver) = &mut pair.receiver else { return Ok(()) };
        if writable {
            receiver.write()?;
        }
        if !readable {
            return Ok(());
        }
        let (number, expected, unacked) = (pair.number, &mut pair.expected, &mut pair.unacked);
        let (tally, mut delivered) = (&mut self.tally, 0);
        let mut acks = Vec::new();
        receiver.read(&mut self.input, |text| match parse_server(text) {
            Ok(ServerEvent::Message { seq, body, .. }) => {
                let is_next = body_is(body.as_bytes(), &stamp(number, *expected), filler);
                if is_next {
                    *expected += 1;
                    delivered += 1;
                } else {
                    tally.foreign += 1;
                    tally.complain(text);
                }
                *unacked += 1;
                if *unacked >= ack_every {
                    *unacked = 0;
                    let ack = format!("{{\"type\":\"ack\",\"seq\":{seq}}}");
                    acks.extend_from_slice(&frame::encode(frame::TEXT, ack.as_bytes()).0);
                }
            }
            _ => {
                tally.foreign += 1;
                tally.complain(text);
            }
        })?;
        receiver.out.append(&mut acks);
        receiver.write()?;
        self.delivered += delivered;
        self.tally.delivered += delivered;
        Ok(())
    }

    /// Sends nothing more and waits for what is under way.
    fn drain(&mut self) -> anyhow::Result<()> {
        self.unsent = 0;
        let begun = Instant::now();
        while self.tally.is_clean() && self.tally.delivered < self.tally.sent {
            if begun.elapsed() > STALL {
                self.tally.lost = self.tally.sent - self.tally.delivered;
                break;
            }
            self.turn()?;
        }
        if self.pairs.iter().any(|pair| pair.accepted > pair.sent) {
            bail!("more was accepted than sent");
        }
        Ok(())
    }
}

/// Whether a body is the JSON string of a stamp and the filler.
fn body_is(body: &[u8], stamp: &[u8], filler: &[u8]) -> bool {
    let inner = body.strip_prefix(b"\"").and_then(|body| body.strip_suffix(b"\""));
    inner.and_then(|inner| inner.strip_prefix(stamp)) == Some(filler)
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
