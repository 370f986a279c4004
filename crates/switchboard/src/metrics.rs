//! The server's metrics and their encoding for Prometheus.
//!
//! Each shard has its own counters, written only by its thread: counting costs a plain load and
//! store. They are summed when `/metrics` is requested. docs/operations.md describes every
//! metric under the name used here.

mod process;

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use switchboard_broker::{Directory, Event, Refusal, Stats};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, Durability, Outcome, RejectCode};

use self::process::Process;
use crate::config::Config;
use crate::counters::{ByLabel, LATENCY_BOUNDS_NS, Latency, Number};
use crate::log::{LineLimit, dropped_lines};
use crate::shard::Budget;
use crate::store::Log;
use crate::ws::CloseCode;

/// Label values of `switchboard_messages_total`.
const RESULTS: [&str; 9] = [
    "delivered",
    "forwarded",
    "stored",
    "mailbox_full",
    "duplicate",
    "no_such_device",
    "unknown_command",
    "unreadable",
    "info",
];

/// Label values of `switchboard_config_reloads_total`.
const RELOADS: [&str; 2] = ["applied", "refused"];

/// Result of a message; an index into the label values.
#[derive(Clone, Copy, Debug)]
pub enum MessageResult {
    /// Put into the out queue of a receiver on this shard.
    Delivered,
    /// Forwarded to the shard of its receiver.
    Forwarded,
    /// From a device of the text protocol, stored in a mailbox.
    Stored,
    /// Refused: the receiver's mailbox is at its bound.
    MailboxFull,
    /// Refused as a duplicate.
    Duplicate,
    /// Refused: no device has that id.
    NoSuchDevice,
    /// Refused: the command is not `send`.
    UnknownCommand,
    /// Refused: not a command.
    Unreadable,
    /// Answered with the info text (welcomes too).
    Info,
}

impl From<Refusal> for MessageResult {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Duplicate => MessageResult::Duplicate,
            Refusal::NoSuchDevice => MessageResult::NoSuchDevice,
            Refusal::UnknownCommand => MessageResult::UnknownCommand,
            Refusal::Unreadable => MessageResult::Unreadable,
            Refusal::MailboxFull => MessageResult::MailboxFull,
        }
    }
}

/// Label values of `switchboard_connections_closed_total`. `none`: the connection ended without
/// a close frame; `other`: a code chosen by the client.
const CLOSE_CODES: [&str; 14] = [
    "1000", "1001", "1002", "1007", "1008", "1009", "1013", "4400", "4401", "4408", "4409", "4508",
    "other", "none",
];

/// Returns the index of a close code among the label values.
pub fn close_index(code: Option<CloseCode>) -> usize {
    let Some(CloseCode(code)) = code else { return CLOSE_CODES.len() - 1 };
    let known = CLOSE_CODES.iter().position(|known| known.parse() == Ok(code));
    known.unwrap_or(CLOSE_CODES.len() - 2)
}

/// Label values of `switchboard_handshakes_refused_total`; `tls` is a failed TLS handshake.
const REFUSED: [&str; 9] = ["400", "401", "403", "405", "408", "426", "431", "503", "tls"];

/// Returns the index of an HTTP status (or `tls`) among the label values.
pub fn refused_index(status: &str) -> usize {
    REFUSED.iter().position(|known| *known == status).unwrap_or(0)
}

/// Label values of `switchboard_reader_pauses_total`.
const PAUSES: [&str; 8] = [
    "rate_limit",
    "out_queue",
    "shard_queue",
    "http_pipe",
    "reply",
    "store",
    "welcome",
    "receiver",
];

/// Encodes the sum of several histograms under one name.
fn encode_latency(out: &mut Encoder<'_>, name: &str, help: &str, of: &[&Latency]) -> fmt::Result {
    let sum = |number: &dyn Fn(&Latency) -> u64| of.iter().map(|one| number(one)).sum::<u64>();
    let bounds = LATENCY_BOUNDS_NS.iter().map(|&ns| ns as f64 / 1e9).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds
        .enumerate()
        .map(|(i, bound)| (bound, sum(&|one| one.buckets.at(i).value())))
        .collect();
    let seconds = sum(&|one| one.sum_ns.value()) as f64 / 1e9;
    let count = buckets.iter().map(|(_, count)| count).sum();
    let unit = Some(&Unit::Seconds);
    let mut metric = out.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
    metric.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
}

/// The counters and gauges of one shard.
#[derive(Debug, Default)]
pub struct ShardMetrics {
    /// Sockets assigned to this shard.
    pub accepted: Number,
    /// Devices connected now.
    pub connections: Number,
    /// Handshakes refused, by [`refused_index`].
    pub refused: ByLabel<{ REFUSED.len() }>,
    /// Devices disconnected, by [`close_index`].
    pub closed: ByLabel<{ CLOSE_CODES.len() }>,
    /// Messages, by [`MessageResult`].
    pub messages: ByLabel<{ RESULTS.len() }>,
    /// Texts bounced because their receiver was gone when they reached its shard.
    pub returned: Number,
    /// Bytes read from sockets.
    pub received_bytes: Number,
    /// Bytes written to sockets.
    pub sent_bytes: Number,
    /// Devices disconnected because they did not read.
    pub out_queue_overflows: Number,
    /// Read pauses, by reason.
    pub pauses: ByLabel<{ PAUSES.len() }>,
    /// Accepts that failed because no file descriptor was left.
    pub accept_failures: Number,
    /// Time that the loop spent working.
    pub busy_ns: Number,
    /// Turns of the loop.
    pub turns: Number,
    /// Time from reading a text, or pushing a v1 message, to writing it to its receiver's socket.
    pub latency: Latency,
    /// v1 messages accepted, by durability.
    pub accepted_messages: ByLabel<{ Durability::ALL.len() }>,
    /// v1 requests rejected, by code.
    pub rejected: ByLabel<{ RejectCode::ALL.len() }>,
    /// Messages that left a mailbox, by outcome.
    pub outcomes: ByLabel<{ Outcome::ALL.len() }>,
    /// Retries recognised by their id.
    pub duplicates: Number,
    /// Connections that took a device over.
    pub takeovers: Number,
    /// Takeovers that were delayed because clients keep taking one device over from each other.
    pub takeovers_delayed: Number,
    /// Mailbox entries whose records could not be read.
    pub quarantined: Number,
    /// Devices that ended because their time to live was over.
    pub devices_ended: Number,
    /// v1 frames that were invalid.
    pub bad_frames: Number,
    /// Devices with a mailbox.
    pub mailboxes: Number,
    /// Those of them that are connected.
    pub sessions: Number,
    /// Messages that wait in mailboxes.
    pub waiting_messages: Number,
    /// Their bytes.
    pub waiting_bytes: Number,
    /// Bytes of those that are in memory only.
    pub waiting_memory: Number,
    /// Message ids remembered to recognise retries.
    pub ids: Number,
}

/// Rate-limited: two clients can take a device over from each other thousands of times a second.
fn warn_of_flapping(device: DeviceRef<'_>) {
    static LIMIT: LineLimit = LineLimit::new();
    if let Some(left_out) = LIMIT.pass() {
        tracing::warn!(
            %device,
            left_out,
            "clients fight for this device: each takes it over from the other; give each its own"
        );
    }
}

/// Not rate-limited: the first such device makes the ids skip ahead, so this is logged once per
/// rollback.
fn warn_of_rollback(device: DeviceId) {
    tracing::warn!(
        %device,
        "a device came whose id this data directory never gave: it was rolled back to an older state; \
         new ids begin far above those that may have been given since"
    );
}

impl ShardMetrics {
    /// Counts an event of the broker.
    pub fn count(&self, event: Event, directory: &Directory) {
        match event {
            Event::Accepted(durability) => self.accepted_messages.at(durability as usize).add(1),
            Event::Rejected(code) => self.rejected.at(code as usize).add(1),
            Event::Ended(outcome) => self.outcomes.at(outcome as usize).add(1),
            Event::Duplicate => self.duplicates.add(1),
            Event::Takeover => self.takeovers.add(1),
            Event::Flapping(device) => {
                self.takeovers_delayed.add(1);
                warn_of_flapping(directory.names().show(device).as_ref());
            }
            Event::Quarantined => self.quarantined.add(1),
            Event::RolledBack(device) => warn_of_rollback(device),
            Event::DeviceEnded => self.devices_ended.add(1),
            Event::BadFrame => self.bad_frames.add(1),
        }
    }

    /// Sets the gauges of waiting messages.
    pub fn set_waiting(&self, stats: Stats) {
        self.mailboxes.set(stats.mailboxes);
        self.sessions.set(stats.sessions);
        self.waiting_messages.set(stats.messages);
        self.waiting_bytes.set(stats.bytes);
        self.waiting_memory.set(stats.memory);
        self.ids.set(stats.ids);
    }
}

/// Counters of the store that are not in its own [`Stats`](crate::store::Stats).
#[derive(Debug, Default)]
pub struct StoreMetrics {
    /// Records that could not be read back.
    pub read_failures: Number,
    /// 1 while the store cannot make anything durable.
    pub is_failing: Number,
    /// The log, once it is open; it has counters of its own.
    pub log: OnceLock<Arc<Log>>,
    /// Bytes that are not durable yet, on all shards.
    pub(crate) budget: OnceLock<Arc<Budget>>,
}

/// Settings shown as metrics; once the server runs, only the thread that handles SIGHUP writes
/// them.
#[derive(Debug, Default)]
pub struct Settings {
    /// Reloads, by `RELOADS`.
    pub reloads: ByLabel<{ RELOADS.len() }>,
    max_connections: Number,
    devices_max: Number,
    memory_messages_max_bytes: Number,
}

impl Settings {
    /// Sets the gauges to the bounds of `config`.
    pub(crate) fn set(&self, config: &Config) {
        self.max_connections.set(config.max_connections as u64);
        self.devices_max.set(config.devices_max as u64);
        self.memory_messages_max_bytes.set(config.memory_messages_max_bytes as u64);
    }

    /// The bounds are named after their keys, so that alerts can compare usage with them.
    fn encode(&self, out: &mut Encoder<'_>) -> fmt::Result {
        let help = "Most connections at once (max_connections)";
        out.gauge("switchboard_max_connections", help, self.max_connections.value())?;
        let help = "Most devices with a mailbox (devices_max)";
        out.gauge("switchboard_devices_max", help, self.devices_max.value())?;
        let help =
            "Most that messages may take that are in memory only (memory_messages_max_bytes)";
        let bytes = self.memory_messages_max_bytes.value();
        out.bytes("switchboard_memory_messages_max", help, MetricType::Gauge, bytes)?;
        out.counters(
            "switchboard_config_reloads",
            "Times that SIGHUP had the configuration read again, by what came of it",
            "result",
            RELOADS.into_iter().zip(&self.reloads.0).map(|(label, count)| (label, count.value())),
        )
    }
}

/// All metrics of the server.
#[derive(Debug)]
pub struct Metrics {
    /// One entry for each shard.
    pub shards: Vec<Arc<ShardMetrics>>,
    /// Those of the store.
    pub store: Arc<StoreMetrics>,
    /// Those of the configuration.
    pub settings: Arc<Settings>,
    registry: Registry,
}

impl Metrics {
    /// Creates metrics at zero for the shards of a server with this configuration.
    pub fn new(config: &Config) -> Metrics {
        let shards: Vec<_> = (0..config.shards).map(|_| Arc::default()).collect();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Shards(shards.clone())));
        let store = Arc::new(StoreMetrics::default());
        registry.register_collector(Box::new(Store(Arc::clone(&store))));
        let settings = Arc::new(Settings::default());
        settings.set(config);
        let process = Process::new();
        registry.register_collector(Box::new(Server { process, settings: Arc::clone(&settings) }));
        Metrics { shards, store, settings, registry }
    }

    /// Returns true while the store cannot make anything durable.
    pub fn store_is_failing(&self) -> bool {
        self.store.is_failing.value() > 0
    }

    /// Returns the sums over the mailboxes of all shards.
    pub fn waiting(&self) -> Stats {
        let sum = |number: fn(&ShardMetrics) -> &Number| {
            self.shards.iter().map(|shard| number(shard).value()).sum()
        };
        Stats {
            mailboxes: sum(|shard| &shard.mailboxes),
            sessions: sum(|shard| &shard.sessions),
            messages: sum(|shard| &shard.waiting_messages),
            bytes: sum(|shard| &shard.waiting_bytes),
            memory: sum(|shard| &shard.waiting_memory),
            ids: sum(|shard| &shard.ids),
        }
    }

    /// Returns the body of `/metrics`.
    pub fn render(&self, format: Format) -> String {
        let mut out = String::new();
        let written = match format {
            Format::Text => prometheus_text::encode(&mut out, &self.registry),
            Format::OpenMetrics => text::encode(&mut out, &self.registry),
        };
        written.expect("writing into a string cannot fail");
        out
    }
}

/// The formats of `/metrics`; the samples have the same names in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The classic text format of Prometheus, which every tool reads.
    Text,
    /// `OpenMetrics`, its successor.
    OpenMetrics,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 2] = [Format::Text, Format::OpenMetrics];

    /// Returns the value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => prometheus_text::CONTENT_TYPE,
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Collects the shards' metrics on request.
#[derive(Debug)]
struct Shards(Vec<Arc<ShardMetrics>>);

/// Collects the store's metrics on request.
#[derive(Debug)]
struct Store(Arc<StoreMetrics>);

/// Metrics that belong neither to a shard nor to the store.
#[derive(Debug)]
struct Server {
    process: Process,
    settings: Arc<Settings>,
}

/// Encodes one descriptor and its values.
struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    fn bytes(&mut self, name: &str, help: &str, kind: MetricType, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, Some(&Unit::Bytes), kind)?;
        match kind {
            MetricType::Counter => ConstCounter::new(value).encode(metric),
            _ => ConstGauge::new(value).encode(metric),
        }
    }

    fn seconds(&mut self, name: &str, help: &str, kind: MetricType, value: f64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), kind)?;
        match kind {
            MetricType::Counter => ConstCounter::new(value).encode(metric),
            _ => ConstGauge::new(value).encode(metric),
        }
    }

    fn counters<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, count) in values {
            let labels = [(label, value)];
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Shards {
    fn sum(&self, number: impl Fn(&ShardMetrics) -> &Number) -> u64 {
        self.0.iter().map(|shard| number(shard).value()).sum()
    }

    fn sums<'v, const N: usize>(
        &self,
        labels: &'v [&'v str; N],
        numbers: impl Fn(&ShardMetrics) -> &ByLabel<N>,
    ) -> impl Iterator<Item = (&'v str, u64)> {
        (0..N).map(move |i| (labels[i], self.sum(|shard| numbers(shard).at(i))))
    }

    fn encode_connections(&self, out: &mut Encoder<'_>) -> fmt::Result {
        out.gauge(
            "switchboard_connections",
            "Devices connected now",
            self.sum(|shard| &shard.connections),
        )?;
        out.counter(
            "switchboard_sockets_accepted",
            "Sockets accepted, whatever came of them: devices, HTTP requests, probes",
            self.sum(|shard| &shard.accepted),
        )?;
        out.counter(
            "switchboard_accept_failures",
            "Sockets rejected because no file descriptor was left",
            self.sum(|shard| &shard.accept_failures),
        )?;
        out.counters(
            "switchboard_handshakes_refused",
            "Handshakes refused, by HTTP status; tls is a TLS handshake that failed",
            "status",
            self.sums(&REFUSED, |shard| &shard.refused),
        )?;
        out.counters(
            "switchboard_connections_closed",
            "Devices gone, by WebSocket close code; none is an end without a close frame, other a \
             code of the client's own",
            "code",
            self.sums(&CLOSE_CODES, |shard| &shard.closed),
        )
    }

    fn encode_messages(&self, out: &mut Encoder<'_>) -> fmt::Result {
        out.counters(
            "switchboard_messages",
            "Messages of the text protocol, and pushes of v1 (delivered), by what became of them; \
             forwarded went to another shard and are counted again there",
            "result",
            self.sums(&RESULTS, |shard| &shard.messages),
        )?;
        out.counter(
            "switchboard_messages_returned",
            "Messages of the text protocol whose receiver left while they were on their way to its \
             shard; the sender was told",
            self.sum(|shard| &shard.returned),
        )?;
        out.counter(
            "switchboard_out_queue_overflows",
            "Devices closed with 4508 because they read too slowly",
            self.sum(|shard| &shard.out_queue_overflows),
        )?;
        out.counters(
            "switchboard_reader_pauses",
            "Times that a connection was not read for a while, by reason",
            "reason",
            self.sums(&PAUSES, |shard| &shard.pauses),
        )
    }

    fn encode_mailboxes(&self, out: &mut Encoder<'_>) -> fmt::Result {
        for (name, help, value) in [
            ("switchboard_mailboxes", "Devices with a mailbox", self.sum(|shard| &shard.mailboxes)),
            (
                "switchboard_sessions",
                "Devices with a mailbox that are connected",
                self.sum(|shard| &shard.sessions),
            ),
            (
                "switchboard_mailbox_messages",
                "Messages and outcomes that wait in mailboxes",
                self.sum(|shard| &shard.waiting_messages),
            ),
            (
                "switchboard_dedup_ids",
                "Message ids remembered to recognise retries",
                self.sum(|shard| &shard.ids),
            ),
        ] {
            out.gauge(name, help, value)?;
        }
        let help = "Bytes of the messages that wait in mailboxes";
        let bytes = self.sum(|shard| &shard.waiting_bytes);
        out.bytes("switchboard_mailbox", help, MetricType::Gauge, bytes)?;
        let help = "What the messages take that wait in memory only";
        let bytes = self.sum(|shard| &shard.waiting_memory);
        out.bytes("switchboard_mailbox_memory", help, MetricType::Gauge, bytes)
    }

    fn encode_v1(&self, out: &mut Encoder<'_>) -> fmt::Result {
        out.counters(
            "switchboard_accepted",
            "v1 messages accepted, by the durability that was reached",
            "durability",
            self.words(Durability::ALL, Durability::as_str, |shard| &shard.accepted_messages),
        )?;
        out.counters(
            "switchboard_rejected",
            "v1 requests rejected, by code",
            "code",
            self.words(RejectCode::ALL, RejectCode::as_str, |shard| &shard.rejected)
                // The protocol has it; this server never says it, and reads a fast sender slowly.
                .filter(|(code, _)| *code != RejectCode::RateLimited.as_str()),
        )?;
        out.counters(
            "switchboard_outcomes",
            "Messages that left a mailbox, by how they ended",
            "outcome",
            self.words(Outcome::ALL, Outcome::as_str, |shard| &shard.outcomes),
        )?;
        for (name, help, value) in [
            (
                "switchboard_duplicates",
                "v1 sends recognised as retries by their id, and not delivered again",
                self.sum(|shard| &shard.duplicates),
            ),
            (
                "switchboard_takeovers",
                "Connections that took a device over from another that was still there",
                self.sum(|shard| &shard.takeovers),
            ),
            (
                "switchboard_takeovers_delayed",
                "Takeovers that had to wait: clients fight for one device",
                self.sum(|shard| &shard.takeovers_delayed),
            ),
            (
                "switchboard_messages_quarantined",
                "Messages and outcomes whose records could not be read back and that were given up",
                self.sum(|shard| &shard.quarantined),
            ),
            (
                "switchboard_devices_ended",
                "Devices that ended after their time to live",
                self.sum(|shard| &shard.devices_ended),
            ),
            (
                "switchboard_bad_frames",
                "v1 frames that could not be obeyed",
                self.sum(|shard| &shard.bad_frames),
            ),
            (
                "switchboard_log_lines_dropped",
                "Log lines dropped because whoever reads standard error is too slow",
                dropped_lines(),
            ),
        ] {
            out.counter(name, help, value)?;
        }
        Ok(())
    }

    /// Returns the counts by a closed list of label values.
    fn words<'v, W: Copy, const N: usize>(
        &'v self,
        words: &'static [W],
        word: fn(W) -> &'static str,
        numbers: fn(&ShardMetrics) -> &ByLabel<N>,
    ) -> impl Iterator<Item = (&'v str, u64)> {
        (0..N).map(move |i| (word(words[i]), self.sum(|shard| numbers(shard).at(i))))
    }

    fn encode_bytes(&self, out: &mut Encoder<'_>) -> fmt::Result {
        for (name, help, sum) in [
            (
                "switchboard_received",
                "Bytes read by the shards; with TLS, decrypted",
                self.sum(|shard| &shard.received_bytes),
            ),
            (
                "switchboard_sent",
                "Bytes written by the shards; with TLS, encrypted",
                self.sum(|shard| &shard.sent_bytes),
            ),
        ] {
            out.bytes(name, help, MetricType::Counter, sum)?;
        }
        Ok(())
    }

    fn encode_loops(&self, out: &mut Encoder<'_>) -> fmt::Result {
        let help = "Time a shard's loop spent working; 1 s per second is a full core";
        let mut metric = out.0.encode_descriptor(
            "switchboard_shard_busy",
            help,
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        for (shard, numbers) in self.0.iter().enumerate() {
            let labels = [("shard", shard.to_string())];
            let seconds = numbers.busy_ns.value() as f64 / 1e9;
            ConstCounter::new(seconds).encode(metric.encode_family(&labels)?)?;
        }
        let mut metric = out.0.encode_descriptor(
            "switchboard_shard_turns",
            "Turns of a shard's loop",
            None,
            MetricType::Counter,
        )?;
        for (shard, numbers) in self.0.iter().enumerate() {
            let labels = [("shard", shard.to_string())];
            ConstCounter::new(numbers.turns.value()).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Shards {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Encoder(encoder);
        self.encode_connections(out)?;
        self.encode_messages(out)?;
        self.encode_v1(out)?;
        self.encode_mailboxes(out)?;
        self.encode_bytes(out)?;
        self.encode_loops(out)?;
        let latencies: Vec<_> = self.0.iter().map(|shard| &shard.latency).collect();
        let help = "Time from reading a text, or pushing a v1 message, to writing it to its receiver's socket";
        encode_latency(out, "switchboard_delivery_latency", help, &latencies)
    }
}

impl Collector for Store {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Encoder(encoder);
        // Without a data directory there is no log, and nothing to show.
        let Some(log) = self.0.log.get() else { return Ok(()) };
        self.encode_health(out, log)?;
        encode_log(out, log)
    }
}

impl Store {
    fn encode_health(&self, out: &mut Encoder<'_>, log: &Log) -> fmt::Result {
        let help =
            "Bytes of messages and records that are not durable, wherever they are in memory";
        let budget = self.0.budget.get().map_or(0, |budget| budget.bytes() as u64);
        out.bytes("switchboard_store_budget_used", help, MetricType::Gauge, budget)?;
        out.gauge(
            "switchboard_store_failing",
            "1 while nothing becomes durable",
            self.0.is_failing.value(),
        )?;
        let full = log.stats().is_full.load(Relaxed);
        out.gauge("switchboard_store_full", "1 while there is no space for new messages", full)?;
        out.gauge(
            "switchboard_store_full_for_anonymous",
            "1 while there is no space for new messages from devices without a name",
            log.stats().is_full_for_others.load(Relaxed),
        )?;
        let help = "Bytes that are free on the file system of the data directory";
        let free = log.stats().free_bytes.load(Relaxed);
        out.bytes("switchboard_store_free", help, MetricType::Gauge, free)?;
        let help = "Bytes that new messages may take before they are refused";
        let left = log.stats().left_bytes.load(Relaxed);
        out.bytes("switchboard_store_left", help, MetricType::Gauge, left)?;
        let help = "Bytes that are set aside for acks on a full disk";
        let ballast = log.stats().ballast_bytes.load(Relaxed);
        out.bytes("switchboard_store_ballast", help, MetricType::Gauge, ballast)?;
        for (name, help, value) in [
            (
                "switchboard_store_failures",
                "Attempts to write that the disk refused",
                log.stats().failures.load(Relaxed),
            ),
            (
                "switchboard_store_read_failures",
                "Records that could not be read back",
                self.0.read_failures.value(),
            ),
            (
                "switchboard_store_queue_full",
                "Times that a shard found the store's queue full",
                log.stats().full.load(Relaxed),
            ),
        ] {
            out.counter(name, help, value)?;
        }
        Ok(())
    }
}

fn encode_log(out: &mut Encoder<'_>, log: &Log) -> fmt::Result {
    let (stats, usage) = (log.stats(), log.usage());
    let records = stats.records.load(Relaxed);
    out.counter("switchboard_store_records", "Records that became durable", records)?;
    let batches = stats.batches.load(Relaxed);
    let help = "Batches of records that became durable, each what one shard had in one turn";
    out.counter("switchboard_store_batches", help, batches)?;
    let synced = stats.synced_bytes.load(Relaxed);
    out.bytes(
        "switchboard_store_synced",
        "Bytes that became durable",
        MetricType::Counter,
        synced,
    )?;
    let help = "Bytes submitted to the store and not yet durable";
    let queue = stats.queue_bytes.load(Relaxed);
    out.bytes("switchboard_store_queue", help, MetricType::Gauge, queue)?;
    let help = "Bytes of the log, dead records included";
    out.bytes("switchboard_store_log", help, MetricType::Gauge, usage.bytes)?;
    out.gauge("switchboard_store_segments", "Files of the log", usage.segments as u64)?;
    let help = "Time that the disk took to make a write durable, one observation for each write";
    encode_latency(out, "switchboard_store_sync_duration", help, &[&stats.sync_duration])?;
    let help = "Time from when a shard submitted a batch until it was durable, one observation for each \
                batch";
    encode_latency(out, "switchboard_store_append", help, &[&stats.append])
}

impl Collector for Server {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Encoder(encoder);
        let mut metric = out.0.encode_descriptor(
            "switchboard_build_info",
            "Always 1; the label is the version",
            None,
            MetricType::Gauge,
        )?;
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        ConstGauge::new(1i64).encode(metric.encode_family(&labels)?)?;
        self.settings.encode(&mut out)?;
        self.process.encode(&mut out)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_text_names_units_and_adds_up_shards() {
        let metrics = Metrics::new(&Config { shards: 2, ..Config::default() });
        for shard in &metrics.shards {
            shard.connections.set(3);
            shard.messages.at(MessageResult::Delivered as usize).add(2);
            shard.latency.observe(Duration::from_micros(20), 2);
            shard.received_bytes.add(7);
        }
        let text = metrics.render(Format::OpenMetrics);
        for line in [
            "switchboard_connections 6",
            "switchboard_messages_total{result=\"delivered\"} 4",
            "switchboard_received_bytes_total 14",
            "switchboard_delivery_latency_seconds_bucket{le=\"0.00001\"} 0",
            "switchboard_delivery_latency_seconds_bucket{le=\"0.000025\"} 4",
            "switchboard_delivery_latency_seconds_bucket{le=\"+Inf\"} 4",
            "switchboard_delivery_latency_seconds_count 4",
            "switchboard_max_connections 100000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn a_close_code_without_a_label_is_other() {
        assert_eq!(CLOSE_CODES[close_index(Some(CloseCode(1009)))], "1009");
        assert_eq!(CLOSE_CODES[close_index(Some(CloseCode(3123)))], "other");
        assert_eq!(CLOSE_CODES[close_index(None)], "none");
    }
}
