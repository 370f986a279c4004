//! Handshakes per second.

use switchboard::bench::connect::{self, Connect, ConnectOptions};

use crate::Contest;
use crate::statistics::spread;
use crate::table;

/// Prints one row per server.
pub(crate) fn compare(contest: &Contest) -> anyhow::Result<()> {
    let options = ConnectOptions { connections: 10_000, concurrency: 64 };
    let runs = contest.in_turn(contest.effort.runs_of_the_rest, |server| {
        connect::measure(server.target(), Some(server.process()?), &options)
    })?;
    let columns = ["server", "handshakes/s", "server CPU per handshake, us (range)"];
    table::head("Connecting", &columns);
    print("reference", runs.iter().map(|run| &run.reference));
    print("Switchboard", runs.iter().map(|run| &run.switchboard));
    Ok(())
}

fn print<'a>(name: &str, runs: impl Iterator<Item = &'a Connect> + Clone) {
    let rate = spread(runs.clone().map(|run| run.handshakes_per_s)).median;
    let cpu = runs.map(|run| run.server_cpu_us_per_handshake.expect("the process is known"));
    table::row(&[name.into(), table::thousands(rate), table::ranged(spread(cpu))]);
}
