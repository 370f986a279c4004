//! The simulated world: brokers, a store that loses what it did not sync, and clients that vanish,
//! retry, take over and ack late, over seeded schedules that hold against what the protocol
//! promises.
//!
//! A failing seed prints how to replay it with its trace. `SWITCHBOARD_WORLD_SEEDS=1000000` runs
//! so many, best with `--release`; `SWITCHBOARD_WORLD_FROM` begins elsewhere,
//! `SWITCHBOARD_WORLD_GO_ON=1` does not stop at the first that fails.

mod client;
mod config;
mod done;
mod ledger;
mod oracle;
mod random;
mod schedule;
mod stop;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::World;

const SEEDS: u64 = 10_000;

#[test]
fn the_world_keeps_its_promises() {
    if let Some(seed) = number("SWITCHBOARD_WORLD_SEED") {
        return World::new(seed, true).run();
    }
    let from = number("SWITCHBOARD_WORLD_FROM").unwrap_or(1);
    let seeds = number("SWITCHBOARD_WORLD_SEEDS").unwrap_or(SEEDS);
    let goes_on = number("SWITCHBOARD_WORLD_GO_ON").is_some();
    let mut failed = 0;
    for seed in from..from + seeds {
        if seeds > SEEDS && seed % 10_000 == 0 {
            println!("seed {seed}, {failed} failed");
        }
        let world = AssertUnwindSafe(|| World::new(seed, false).run());
        if let Err(fault) = catch_unwind(world) {
            failed += 1;
            let again = "cargo test -p switchboard-broker --test world";
            println!("replay: SWITCHBOARD_WORLD_SEED={seed} {again}");
            if !goes_on {
                std::panic::resume_unwind(fault);
            }
        }
    }
    assert_eq!(failed, 0, "seeds failed");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}
