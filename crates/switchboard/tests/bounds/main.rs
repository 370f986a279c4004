//! All bounds at once: hostile clients drive every bound of a server to its limit for a while.
//! Each of them is told, memory and disk stay flat, and the messages of a well-behaved pair are
//! delivered.
//!
//! A separate test target, so that nothing else runs beside it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod attacks;
mod bystander;
mod client;
mod gauge;
#[allow(dead_code, reason = "the end-to-end tests use all of it")]
#[path = "../it/server.rs"]
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use attacks::ATTACKS;
use bystander::Bystander;
use gauge::Gauge;
use server::Server;

/// Duration of the attack; the variable makes it longer, for manual runs.
const DURATION: Duration = Duration::from_secs(60);
const DURATION_VARIABLE: &str = "BOUNDS_TEST_SECONDS";

/// Small values, so that each bound is reached within seconds.
const SETTINGS: &[&str] = &[
    "shards=2",
    "max_connections=160",
    "max_connections_per_ip=24",
    "devices_max=120",
    "mailbox_max_messages=40",
    "mailbox_max_bytes=2MiB",
    "dedup_ids_max=20000",
    "store_queue_max_bytes=2MiB",
    "store_max_bytes=16MiB",
    "max_message_bytes=64KiB",
    "out_queue_max_bytes=64KiB",
    "out_queue_stall_timeout=1s",
    "out_queues_max_bytes=8MiB",
    "unfinished_messages_max_bytes=1MiB",
    "message_timeout=2s",
    "handshake_timeout=1s",
    "shard_queue_max_bytes=128KiB",
    "http_connections_max=8",
    "close_timeout=1s",
];

/// Memory besides the bounds: the binary, its threads' stacks and buffers, and the allocator's
/// reserve.
const RSS_REST_BYTES: u64 = 64 << 20;
/// Out queues, those of connections that are being closed, the store's queue, and unfinished
/// messages; dedup ids and devices are small here.
const BUDGETS_BYTES: u64 = (8 + 2 + 2 + 1) << 20;
/// `store_max_bytes`, which includes the ballast, and the other files of the data directory.
const DISK_MAX_BYTES: u64 = (16 << 20) + (64 << 10);

/// State shared by the attackers.
struct Attack<'a> {
    server: &'a Server,
    ends_at: Instant,
    /// The errors that they were told, with their counts.
    told: Mutex<BTreeMap<String, u64>>,
}

impl Attack<'_> {
    fn goes_on(&self) -> bool {
        Instant::now() < self.ends_at
    }

    fn is_told(&self, words: impl Into<String>) {
        *self.told.lock().unwrap().entry(words.into()).or_default() += 1;
    }
}

#[test]
fn at_all_bounds_at_once_everybody_is_told_and_nothing_grows() {
    let server = Server::with(SETTINGS);
    let duration = std::env::var(DURATION_VARIABLE).map_or(DURATION, |seconds| {
        Duration::from_secs(seconds.parse().expect("a number of seconds"))
    });
    let mut bystander = Bystander::new(&server);
    let alone = bystander.measure(Instant::now() + duration / 10);
    let attackers: Vec<_> =
        ATTACKS.iter().map(|attack| (attack, (attack.prepare)(&server))).collect();
    let attack =
        Attack { server: &server, ends_at: Instant::now() + duration, told: Mutex::default() };
    let (gauge, attacked) = thread::scope(|scope| {
        let gauge = scope.spawn(|| Gauge::watch(&server, attack.ends_at));
        for (named, actors) in &attackers {
            let attack = &attack;
            scope.spawn(move || {
                while attack.goes_on() {
                    (named.run)(attack, actors);
                }
            });
        }
        let attacked = bystander.measure(attack.ends_at);
        (gauge.join().expect("the gauge reads"), attacked)
    });
    let told = attack.told.into_inner().unwrap();
    println!("told: {told:#?}");
    println!("{gauge:?}");
    println!("bystander: alone {alone:?}, attacked {attacked:?}; {}", attacked.ratio_to(&alone));
    let expected: BTreeSet<&str> =
        ATTACKS.iter().flat_map(|attack| attack.is_told).copied().collect();
    let missing: Vec<_> = expected.iter().filter(|words| !told.contains_key(**words)).collect();
    assert!(missing.is_empty(), "nobody was told {missing:?}");
    gauge.is_flat();
    assert!(gauge.rss_max() <= BUDGETS_BYTES + RSS_REST_BYTES, "{gauge:?}");
    assert!(gauge.disk_max() <= DISK_MAX_BYTES, "{gauge:?}");
    let ended = server.terminate();
    assert!(ended.status.success(), "{}", ended.log);
    assert!(!ended.log.contains("panicked"), "{}", ended.log);
}
