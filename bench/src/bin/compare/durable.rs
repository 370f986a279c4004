//! Cost of storing messages: v1 through mailboxes against the disk's own speed, `JetStream`,
//! mailboxes in memory, and the text protocol.
//!
//! Servers use every core here, and the load the last one: the store writes on a thread of its
//! own.

use std::time::Duration;

use switchboard::bench::mailbox::{self, Asked, Mailboxes, Receiver};
use switchboard::bench::pairs::{self, Pairing};
use switchboard::bench::throughput::{Protocol, ThroughputOptions};

use crate::Contest;
use crate::disk::{self, Syncs};
use crate::jetstream::{self, Acknowledged};
use crate::placement::Cores;
use crate::scrape::Metrics;
use crate::server::{Contender, Server, ensure_clean};
use crate::statistics::{Spread, spread};
use crate::table::bounded as row;
use crate::workload::Workload;
use crate::{callgrind, cpu, table};

const PAIRS: u64 = 64;
const WINDOW: u64 = 32;
const SIZE: u64 = 256;
/// Each message is acked by itself, which costs the most.
const ACK_EVERY: u64 = 1;

/// Prints the tables.
pub(crate) fn compare(contest: &Contest) -> anyhow::Result<()> {
    let runs = (0..contest.effort.runs_of_the_rest)
        .map(|_| Round::run(contest))
        .collect::<anyhow::Result<Vec<_>>>()?;
    print_away(&runs);
    print_alone(&runs);
    print_online(&runs);
    against_text(contest)
}

/// One run of everything that touches the disk: the values to compare are only seconds apart.
struct Round {
    disk: Syncs,
    away: Kept,
    jetstream: Option<Acknowledged>,
    alone: Mailboxes,
    online: Kept,
    online_memory: Mailboxes,
}

/// A run on a server that stores what it accepts, and the work of its store meanwhile.
struct Kept {
    run: Mailboxes,
    records: f64,
    syncs: f64,
    sync_s: f64,
}

impl Round {
    fn run(contest: &Contest) -> anyhow::Result<Self> {
        let time = Duration::from_secs(contest.effort.seconds);
        let folder = contest.folder()?;
        let disk = contest.placement.on(Cores::All, || disk::measure(folder.path(), time))?;
        Ok(Self {
            disk,
            away: kept(contest, &load(contest, PAIRS, WINDOW, Receiver::Away))?,
            jetstream: jetstream_run(contest, time)?,
            alone: kept(contest, &load(contest, 1, 1, Receiver::Away))?.run,
            online: kept(contest, &load(contest, PAIRS, WINDOW, Receiver::Online))?,
            online_memory: in_memory(contest, &load(contest, PAIRS, WINDOW, Receiver::Online))?,
        })
    }
}

fn load(contest: &Contest, pairs: u64, window: u64, receiver: Receiver) -> ThroughputOptions {
    ThroughputOptions {
        pairs: pairs::PairsOptions { pairs, size: SIZE, pairing: Pairing::Same, server_shards: 1 },
        window,
        receiver,
        ..v1(Workload::Batched.for_seconds(contest.effort.seconds))
    }
}

/// Returns the same load in v1.
fn v1(options: ThroughputOptions) -> ThroughputOptions {
    let (protocol, durability) = (Protocol::V1, Asked::Strongest);
    ThroughputOptions { protocol, durability, ack_every: ACK_EVERY, ..options }
}

/// Runs the load on a server with a data directory of its own.
fn kept(contest: &Contest, options: &ThroughputOptions) -> anyhow::Result<Kept> {
    let folder = contest.folder()?;
    let server = start(contest, &contest.switchboard.with_data_dir(folder.path()))?;
    let before = Metrics::of(&server)?;
    let run = measure(&server, options)?;
    anyhow::ensure!(run.durability == "disk", "messages were kept in {}", run.durability);
    let after = Metrics::of(&server)?;
    let grown = |name: &str| Ok::<_, anyhow::Error>(after.value(name)? - before.value(name)?);
    let records = grown("switchboard_store_records_total")?;
    anyhow::ensure!(records >= run.tally.sent as f64, "accepted, and only {records} on disk");
    Ok(Kept {
        run,
        records,
        syncs: grown("switchboard_store_sync_duration_seconds_count")?,
        sync_s: grown("switchboard_store_sync_duration_seconds_sum")?,
    })
}

fn in_memory(contest: &Contest, options: &ThroughputOptions) -> anyhow::Result<Mailboxes> {
    measure(&start(contest, &contest.switchboard)?, options)
}

fn start(contest: &Contest, contender: &Contender) -> anyhow::Result<Server> {
    // Enough for receivers that are away for the whole run.
    let contender = contender
        .with("SWITCHBOARD_MAILBOX_MAX_MESSAGES", "10000000")
        .with("SWITCHBOARD_MAILBOX_MAX_BYTES", "16GiB");
    contest.start(Cores::All, &contender)
}

fn measure(server: &Server, options: &ThroughputOptions) -> anyhow::Result<Mailboxes> {
    let run = mailbox::measure(server.target(), Some(server.process()?), options)?;
    ensure_clean(&run.tally)?;
    Ok(run)
}

fn jetstream_run(contest: &Contest, time: Duration) -> anyhow::Result<Option<Acknowledged>> {
    if jetstream::version().is_none() {
        return Ok(None);
    }
    let folder = contest.folder()?;
    let server = contest.placement.on(Cores::All, || jetstream::start(folder.path()))?;
    let (publishers, window, size) = (PAIRS as usize, WINDOW as usize, SIZE as usize);
    let load = jetstream::Load { publishers, window, size, time };
    jetstream::measure(&server, load).map(Some)
}

fn of(runs: &[Round], value: impl Fn(&Round) -> f64) -> Spread {
    spread(runs.iter().map(value))
}

fn print_away(runs: &[Round]) {
    let columns = ["64 senders x 32 in flight x 256 B, receivers away", "", "bound"];
    table::head("Accepted on disk", &columns);
    let rate = |round: &Round| round.away.run.accepted_per_s;
    let ratio = |round: &Round| rate(round) / round.disk.per_s;
    let per_sync = |round: &Round| round.away.records / round.away.syncs;
    let syncs_per_s = |round: &Round| rate(round) / per_sync(round);
    let sync_us = |round: &Round| round.away.sync_s / round.away.syncs * 1e6;
    let count = table::counted;
    row("one `fdatasync` per message, 300 B: messages/s", count(of(runs, |r| r.disk.per_s)), "");
    row("accepted/s", count(of(runs, rate)), ">= 50,000");
    row("accepted/s, ratio to one `fdatasync` per message", table::ranged(of(runs, ratio)), ">= 8");
    row("p50 until accepted, us", count(of(runs, |r| r.away.run.accepted_p50_us)), "");
    row("p99 until accepted, us", count(of(runs, |r| r.away.run.accepted_p99_us)), "<= 50,000");
    row("syncs/s", count(of(runs, syncs_per_s)), "");
    row("records per sync", count(of(runs, per_sync)), "");
    row("time of a sync, us", count(of(runs, sync_us)), "");
    let cpu = |round: &Round| known(&round.away.run);
    row("server CPU per message, us", table::ranged(of(runs, cpu)), "");
    print_jetstream(runs);
}

fn print_jetstream(runs: &[Round]) {
    let Some(version) = jetstream::version() else {
        return row("`JetStream`: no nats-server is installed", String::new(), "");
    };
    let peer: Vec<Acknowledged> = runs.iter().filter_map(|round| round.jetstream).collect();
    let rate = spread(peer.iter().map(|run| run.per_s));
    row(&format!("NATS {version} `JetStream`, acknowledged/s"), table::counted(rate), "");
    let p99 = spread(peer.iter().map(|run| run.p99_us));
    row("p99 until acknowledged, us", table::counted(p99), "");
    let both = runs.iter().zip(&peer);
    let ratio = spread(both.map(|(round, peer)| round.away.run.accepted_per_s / peer.per_s));
    row("accepted/s, ratio to `JetStream`", table::ranged(ratio), "> 1");
}

fn print_alone(runs: &[Round]) {
    let columns = ["1 sender x 1 in flight x 256 B", "us (range)", "bound"];
    table::head("Accepted on disk, one at a time", &columns);
    let alone = |round: &Round| round.alone.accepted_p50_us;
    row("one write and `fdatasync`, p50", table::counted(of(runs, |r| r.disk.p50_us)), "");
    row("accepted, p50", table::counted(of(runs, alone)), "");
    let more = of(runs, |round| alone(round) - round.disk.p50_us);
    row("more than the `fdatasync`", table::counted(more), "<= 150");
    row("accepted, p99", table::counted(of(runs, |r| r.alone.accepted_p99_us)), "");
}

fn print_online(runs: &[Round]) {
    let columns = ["64 pairs x 32 in flight x 256 B, both online", "", "bound"];
    table::head("Delivered and acked", &columns);
    let disk = |round: &Round| round.online.run.delivered_per_s;
    let memory = |round: &Round| round.online_memory.delivered_per_s;
    row("disk: delivered/s", table::counted(of(runs, disk)), ">= 40,000");
    row("memory: delivered/s", table::counted(of(runs, memory)), "");
    let ratio = of(runs, |round| disk(round) / memory(round));
    row("disk, ratio to memory", table::ranged(ratio), ">= 0.4");
    let per_sync = of(runs, |round| round.online.records / round.online.syncs);
    row("disk: records per sync", table::counted(per_sync), "");
    let cpu = of(runs, |round| known(&round.online.run));
    row("disk: server CPU per message, us", table::ranged(cpu), "");
    let cpu = of(runs, |round| known(&round.online_memory));
    row("memory: server CPU per message, us", table::ranged(cpu), "");
}

fn known(run: &Mailboxes) -> f64 {
    run.server_cpu_us_per_message.expect("the server's process is known")
}

/// Compares sending, accepting, delivering and acking in memory with relaying a text; one core
/// each.
fn against_text(contest: &Contest) -> anyhow::Result<()> {
    let columns = [
        "pairs x in flight x size",
        "text, us",
        "v1, us",
        "in the kernel, us",
        "ratio (range)",
        "at most",
        "text, instructions",
        "v1, instructions",
        "ratio",
    ];
    table::head("v1 in memory against the text protocol, server CPU per message", &columns);
    [Workload::Batched, Workload::Many, Workload::Single]
        .iter()
        .try_for_each(|workload| text_row(contest, *workload))
}

fn text_row(contest: &Contest, workload: Workload) -> anyhow::Result<()> {
    let options = workload.for_seconds(contest.effort.seconds);
    let by_v1 = v1(options.clone());
    let mut us = Vec::new();
    for _ in 0..contest.effort.runs_of_the_rest {
        let start = || contest.start(Cores::First, &contest.switchboard);
        let text = cpu::us_per_message(&cpu::measure(&start()?, &options)?);
        let server = start()?;
        let ours = known(&measure(&server, &by_v1)?);
        us.push([text, ours, ours * server.process()?.kernel_share()?]);
    }
    let median = |at: usize| format!("{:.3}", spread(us.iter().map(|us| us[at])).median);
    let [text, ours, kernel] = [0, 1, 2].map(median);
    let ratio = table::ranged(spread(us.iter().map(|[text, ours, _]| ours / text)));
    let mut cells = vec![workload.name(), text, ours, kernel, ratio, "2.5".into()];
    cells.extend(instructions(contest, workload)?);
    table::row(&cells);
    Ok(())
}

fn instructions(contest: &Contest, workload: Workload) -> anyhow::Result<[String; 3]> {
    let contender = &contest.switchboard;
    let text = callgrind::instructions_per_text(contest, contender, workload)?;
    let ours = callgrind::instructions_per_message(contest, contender, &|server, messages| {
        measure(server, &v1(workload.with_messages(messages))).map(drop)
    })?;
    Ok([table::thousands(text), table::thousands(ours), format!("{:.3}", ours / text)])
}
