//! Server CPU per message: the median of paired ratios.

use switchboard::bench::throughput::{self, Throughput};

use crate::Contest;
use crate::server::{Server, ensure_clean};
use crate::statistics::{Spread, spread};
use crate::table;
use crate::workload::Workload;

/// Returns the CPU time per message in microseconds.
pub(crate) fn us_per_message(run: &Throughput) -> f64 {
    run.server_cpu_us_per_message.expect("the server's process is known")
}

/// Puts the load on a server; fails unless every message arrived once and in order.
pub(crate) fn measure(
    server: &Server,
    options: &throughput::ThroughputOptions,
) -> anyhow::Result<Throughput> {
    let run = throughput::measure(server.target(), Some(server.process()?), options)?;
    ensure_clean(&run.tally)?;
    Ok(run)
}

/// Prints one row per workload.
pub(crate) fn compare(contest: &Contest) -> anyhow::Result<()> {
    let columns = [
        "pairs x in flight x size",
        "reference, us",
        "Switchboard, us",
        "ratio (range)",
        "at most",
        "reference, messages/s",
        "Switchboard, messages/s",
    ];
    table::head("Server CPU per message", &columns);
    contest.workloads.iter().try_for_each(|workload| compare_on(contest, *workload))
}

fn compare_on(contest: &Contest, workload: Workload) -> anyhow::Result<()> {
    let options = workload.for_seconds(contest.effort.seconds);
    let runs = contest.in_turn(contest.effort.runs, |server| measure(server, &options))?;
    let reference = |of: fn(&Throughput) -> f64| spread(runs.iter().map(|run| of(&run.reference)));
    let ours = |of: fn(&Throughput) -> f64| spread(runs.iter().map(|run| of(&run.switchboard)));
    let ratios =
        runs.iter().map(|run| us_per_message(&run.switchboard) / us_per_message(&run.reference));
    let us = |spread: Spread| format!("{:.3}", spread.median);
    let rate = |spread: Spread| table::thousands(spread.median);
    table::row(&[
        workload.name(),
        us(reference(us_per_message)),
        us(ours(us_per_message)),
        table::ranged(spread(ratios)),
        format!("{:.2}", workload.bound()),
        rate(reference(|run| run.messages_per_s)),
        rate(ours(|run| run.messages_per_s)),
    ]);
    Ok(())
}
