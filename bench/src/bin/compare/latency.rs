//! Delivery times at a fixed rate.

use std::time::Duration;

use switchboard::bench::latency::{self, LatencyOptions, LatencyReport};
use switchboard::bench::pairs::{self, Pairing};

use crate::server::ensure_clean;
use crate::statistics::spread;
use crate::{Contest, Pair, table};

/// A percentile's name, its value in a run, and the maximum ratio.
type Percentile = (&'static str, fn(&LatencyReport) -> f64, &'static str);

const PERCENTILES: [Percentile; 5] = [
    ("p50", |run| run.p50_us, "1.15"),
    ("p90", |run| run.p90_us, "1.15"),
    ("p99", |run| run.p99_us, ""),
    ("p99.9", |run| run.p999_us, ""),
    ("max", |run| run.max_us, ""),
];

/// Prints one row per percentile.
pub(crate) fn compare(contest: &Contest) -> anyhow::Result<()> {
    let options = LatencyOptions {
        pairs: pairs::PairsOptions {
            pairs: 64,
            size: 64,
            pairing: Pairing::Same,
            server_shards: 1,
        },
        rate: 50_000,
        seconds: Duration::from_secs(2 * contest.effort.seconds),
        warmup_seconds: Duration::from_millis(500),
    };
    let runs = contest.in_turn(contest.effort.runs_of_the_rest, |server| {
        let run = latency::measure(server.target(), Some(server.process()?), &options)?;
        ensure_clean(&run.tally)?;
        Ok(run)
    })?;
    let columns = ["", "reference, us (range)", "Switchboard, us (range)", "ratio", "at most"];
    table::head("Delivery times at 50,000 messages/s", &columns);
    PERCENTILES.iter().for_each(|percentile| print(*percentile, &runs));
    Ok(())
}

fn print((name, of, bound): Percentile, runs: &[Pair<LatencyReport>]) {
    let ratios = runs.iter().map(|run| of(&run.switchboard) / of(&run.reference));
    table::row(&[
        name.into(),
        table::ranged(spread(runs.iter().map(|run| of(&run.reference)))),
        table::ranged(spread(runs.iter().map(|run| of(&run.switchboard)))),
        table::ranged(spread(ratios)),
        bound.into(),
    ]);
}
