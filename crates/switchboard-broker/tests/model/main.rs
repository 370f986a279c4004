//! Brokers of several shards against a naive reference of the original server's rules.
//!
//! A schedule is a list of steps drawn at random: devices connect, send and leave on any shard,
//! time passes, and what one shard forwards to another arrives at any later step, in order per
//! pair of shards. After each step the effects must be those of the reference; at the end every
//! text that was accepted must have been delivered or refused. A schedule that fails is shrunk
//! and printed; the seed is fixed.

mod original;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngSeed};

use world::World;

/// One step of a schedule. Each index chooses among what there is at that moment.
#[derive(Clone, Debug)]
enum Step {
    Connect {
        shard: Index,
    },
    Disconnect {
        who: Index,
    },
    Say {
        who: Index,
        what: Say,
    },
    /// The next envelope from one shard reaches another.
    Carry {
        queue: Index,
    },
    /// The receiver of a text leaves while it is under way.
    Miss {
        envelope: Index,
    },
    Pass {
        ms: u64,
    },
}

/// Messages that a device sends.
#[derive(Clone, Debug)]
enum Say {
    Help,
    /// To a device that is connected.
    Send {
        to: Index,
        text: &'static str,
    },
    /// To a device that has left, or never was.
    SendToNone {
        id: Index,
        text: &'static str,
    },
    Other(&'static str),
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<Index>;
    prop_oneof![
        3 => at().prop_map(|shard| Step::Connect { shard }),
        2 => at().prop_map(|who| Step::Disconnect { who }),
        12 => (at(), say()).prop_map(|(who, what)| Step::Say { who, what }),
        6 => at().prop_map(|queue| Step::Carry { queue }),
        1 => at().prop_map(|envelope| Step::Miss { envelope }),
        3 => select(vec![0, 1, 1_000, 2_500, 4_999, 5_000, 5_001]).prop_map(|ms| Step::Pass { ms }),
    ]
}

fn say() -> impl Strategy<Value = Say> {
    // Few texts, so that the same comes again.
    let text = || select(vec!["a", "b", "", "a,b", " a", "größer 😀"]);
    let other = select(vec![
        "",
        "help,",
        " help",
        "HELP",
        "send",
        "send,",
        ",,",
        "foo,1,x",
        "SEND,100000000,x",
        "send,100000000",
        "send,x,y",
        "send,1.0,x",
        "send,-1,x",
        "send,99999999999999999999999,x",
    ]);
    prop_oneof![
        1 => Just(Say::Help),
        10 => (any::<Index>(), text()).prop_map(|(to, text)| Say::Send { to, text }),
        1 => (any::<Index>(), text()).prop_map(|(id, text)| Say::SendToNone { id, text }),
        1 => other.prop_map(Say::Other),
    ]
}

fn config() -> Config {
    Config {
        cases: 2_000,
        rng_seed: RngSeed::Fixed(100_000_000),
        failure_persistence: None,
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn brokers_keep_the_originals_rules_over_any_number_of_shards(
        shards in 1usize..=4,
        list_max in select(vec![0usize, 1, 3, 256]),
        steps in vec(step(), 0..120),
    ) {
        let mut world = World::new(shards, list_max);
        for step in &steps {
            world.step(step);
        }
        world.settle();
    }
}
