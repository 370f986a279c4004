//! Cost of a second shard: CPU per message for pairs on one shard and for pairs across two.
//! Servers use every core here, and the load the last one.

use switchboard::bench::pairs::{self, Pairing};
use switchboard::bench::throughput;

use crate::Contest;
use crate::cpu;
use crate::placement::Cores;
use crate::statistics::spread;
use crate::table;
use crate::workload::Workload;

/// Prints one row per placement of the pairs.
pub(crate) fn compare(contest: &Contest) -> anyhow::Result<()> {
    let columns = ["Switchboard, 64x32x64B", "us (range)", "ratio to one shard", "at most"];
    table::head("Two shards", &columns);
    let mut runs = Vec::new();
    for _ in 0..contest.effort.runs {
        let one = us_per_message(contest, 1, Pairing::Same)?;
        let same = us_per_message(contest, 2, Pairing::Same)?;
        runs.push([one, same, us_per_message(contest, 2, Pairing::Cross)?]);
    }
    let names = [("one shard", ""), ("two shards, pairs on one", "1.18"), ("pairs across", "")];
    for (index, (name, bound)) in names.into_iter().enumerate() {
        let us = spread(runs.iter().map(|run| run[index]));
        let ratio = spread(runs.iter().map(|run| run[index] / run[0]));
        table::row(&[name.into(), table::ranged(us), table::ranged(ratio), bound.into()]);
    }
    Ok(())
}

fn us_per_message(contest: &Contest, shards: u64, pairing: Pairing) -> anyhow::Result<f64> {
    let server = contest.start(Cores::All, &contest.switchboard.with_shards(shards))?;
    let load = Workload::Batched.for_seconds(contest.effort.seconds);
    let pairs = pairs::PairsOptions { pairing, server_shards: shards, ..load.pairs };
    let run = cpu::measure(&server, &throughput::ThroughputOptions { pairs, ..load })?;
    Ok(cpu::us_per_message(&run))
}
