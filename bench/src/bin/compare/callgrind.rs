//! Instructions per message in user space, counted by valgrind: unlike times, they are
//! reproducible.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::Contest;
use crate::cpu;
use crate::placement::Cores;
use crate::server::{Contender, Server};
use crate::table;
use crate::workload::Workload;

/// Puts a load of exactly this many messages on a server.
type Load<'a> = &'a dyn Fn(&Server, u64) -> anyhow::Result<()>;

/// Lengths of the two runs: the slope between them excludes start-up and connecting.
const MESSAGES: [u64; 2] = [20_000, 80_000];

/// Prints one row per workload.
pub(crate) fn compare(contest: &Contest) -> anyhow::Result<()> {
    let columns = ["pairs x in flight x size", "reference", "Switchboard", "ratio"];
    table::head("Instructions per message (user space)", &columns);
    for workload in &contest.workloads {
        let reference = instructions_per_text(contest, &contest.reference, *workload)?;
        let ours = instructions_per_text(contest, &contest.switchboard, *workload)?;
        let ratio = format!("{:.3}", ours / reference);
        let counts = [reference, ours].map(table::thousands);
        let [reference, ours] = counts;
        table::row(&[workload.name(), reference, ours, ratio]);
    }
    Ok(())
}

/// Returns the instructions per message of a workload in the text protocol.
pub(crate) fn instructions_per_text(
    contest: &Contest,
    contender: &Contender,
    workload: Workload,
) -> anyhow::Result<f64> {
    instructions_per_message(contest, contender, &|server, messages| {
        cpu::measure(server, &workload.with_messages(messages)).map(drop)
    })
}

/// Returns the instructions per message of a load.
pub(crate) fn instructions_per_message(
    contest: &Contest,
    contender: &Contender,
    load: Load<'_>,
) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let [short, long] = MESSAGES;
    let few = count(contest, contender, load, short, &folder.path().join("short"))?;
    let many = count(contest, contender, load, long, &folder.path().join("long"))?;
    Ok((many - few) / (long - short) as f64)
}

/// Returns the instructions of a whole run.
fn count(
    contest: &Contest,
    contender: &Contender,
    load: Load<'_>,
    messages: u64,
    out: &Path,
) -> anyhow::Result<f64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--quiet"]);
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    let start = || contender.start_under(valgrind);
    let server = contest.placement.on(Cores::First, start)?;
    load(&server, messages)?;
    server.terminate()?;
    let profile = fs::read_to_string(out).context("callgrind wrote no profile")?;
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.context("no totals in callgrind's profile")?.trim().parse()?)
}
