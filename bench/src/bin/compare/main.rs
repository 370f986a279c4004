//! Compares Switchboard with the reference relay: the same load on both in turn, each on a core
//! of its own, and the median of the paired ratios. Prints the tables of docs/performance.md.
//!
//! Build both first: `cargo build --release -p switchboard -p switchboard-bench`.

mod callgrind;
mod connect;
mod cpu;
mod crowd;
mod disk;
mod durable;
mod idle;
mod jetstream;
mod latency;
mod mailboxes;
mod placement;
mod scrape;
mod server;
mod shards;
mod statistics;
mod table;
mod workload;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, ValueEnum};

use crate::placement::{Cores, Placement};
use crate::server::{Contender, Server};
use crate::workload::Workload;

/// Compares Switchboard with the reference relay on this machine.
#[derive(Parser)]
struct Args {
    /// Comparisons to run; all of them if none is named
    #[arg(value_enum)]
    topics: Vec<Topic>,
    /// Run only these workloads (of `cpu` and `callgrind`)
    #[arg(long = "workload", value_enum)]
    workloads: Vec<Workload>,
    /// Do a third of the runs, and shorter ones
    #[arg(long)]
    quick: bool,
    /// The Switchboard binary [default: the one built beside this one]
    #[arg(long)]
    switchboard: Option<PathBuf>,
    /// The reference binary [default: the one built beside this one]
    #[arg(long)]
    reference: Option<PathBuf>,
    /// A folder on the disk to measure, for the servers' data [default: that of the binaries]
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// One table of the output.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Topic {
    /// Server CPU per message
    Cpu,
    /// Instructions per message, counted by valgrind
    Callgrind,
    /// Handshakes per second
    Connect,
    /// Memory per idle connection
    Idle,
    /// Delivery times at 50,000 messages/s
    Latency,
    /// CPU per message with two shards
    Shards,
    /// Messages kept on disk, against the disk itself and `JetStream`
    Durable,
    /// Many mailboxes: start, memory, everybody back at once
    Mailboxes,
}

/// Everything that a comparison needs.
struct Contest {
    reference: Contender,
    switchboard: Contender,
    placement: Placement,
    workloads: Vec<Workload>,
    effort: Effort,
    folder: PathBuf,
}

/// Number and length of the runs.
#[derive(Clone, Copy)]
struct Effort {
    /// Paired runs of CPU time.
    runs: usize,
    /// Paired runs of everything else.
    runs_of_the_rest: usize,
    /// Seconds measured per run.
    seconds: u64,
}

const FULL: Effort = Effort { runs: 9, runs_of_the_rest: 7, seconds: 2 };
const QUICK: Effort = Effort { runs: 3, runs_of_the_rest: 3, seconds: 1 };

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let contest = Contest::new(&args)?;
    warn_of_other_load();
    for topic in Topic::value_variants() {
        if args.topics.is_empty() || args.topics.contains(topic) {
            topic.compare(&contest)?;
        }
    }
    Ok(())
}

impl Topic {
    fn compare(self, contest: &Contest) -> anyhow::Result<()> {
        match self {
            Self::Cpu => cpu::compare(contest),
            Self::Callgrind => callgrind::compare(contest),
            Self::Connect => connect::compare(contest),
            Self::Idle => idle::compare(contest),
            Self::Latency => latency::compare(contest),
            Self::Shards => shards::compare(contest),
            Self::Durable => durable::compare(contest),
            Self::Mailboxes => mailboxes::compare(contest),
        }
    }
}

impl Contest {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let beside = |name| Ok::<_, anyhow::Error>(std::env::current_exe()?.with_file_name(name));
        let given = |path: &Option<PathBuf>, name| path.clone().map_or_else(|| beside(name), Ok);
        let mut workloads = args.workloads.clone();
        if workloads.is_empty() {
            workloads.extend(Workload::value_variants());
        }
        Ok(Self {
            reference: Contender::new(given(&args.reference, "reference")?)?,
            switchboard: Contender::new(given(&args.switchboard, "switchboard")?)?,
            placement: Placement::new()?,
            workloads,
            effort: if args.quick { QUICK } else { FULL },
            folder: given(&args.folder, "")?,
        })
    }

    /// Creates a folder for a server's data; removed when dropped.
    fn folder(&self) -> anyhow::Result<tempfile::TempDir> {
        Ok(tempfile::Builder::new().prefix("compare-").tempdir_in(&self.folder)?)
    }

    /// Starts a server on these cores.
    fn start(&self, cores: Cores, contender: &Contender) -> anyhow::Result<Server> {
        self.placement.on(cores, || contender.start())
    }

    /// Runs `measure` on both servers, `runs` times, each time on a fresh server, and alternates
    /// which one goes first.
    fn in_turn<T>(
        &self,
        runs: usize,
        measure: impl Fn(&Server) -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<Pair<T>>> {
        let measure = |contender| measure(&self.start(Cores::First, contender)?);
        (0..runs)
            .map(|run| {
                if run.is_multiple_of(2) {
                    let reference = measure(&self.reference)?;
                    Ok(Pair { reference, switchboard: measure(&self.switchboard)? })
                } else {
                    let switchboard = measure(&self.switchboard)?;
                    Ok(Pair { reference: measure(&self.reference)?, switchboard })
                }
            })
            .collect()
    }
}

/// Results of one run on each server.
struct Pair<T> {
    reference: T,
    switchboard: T,
}

/// Warns of other load: CPU times can be compared only on an otherwise idle machine.
fn warn_of_other_load() {
    let load = std::fs::read_to_string("/proc/loadavg").context("no load average");
    let load = load.ok().and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    if let Some(load) = load.filter(|load| *load > 0.5) {
        eprintln!("warning: other processes keep this machine busy (load {load}): expect noise");
    }
}
