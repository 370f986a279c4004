//! The reference and the load generator against each other: the measurement itself must be
//! right.

#![allow(clippy::unwrap_used, reason = "the lint knows tests but not their helpers")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use switchboard::bench::pairs::{self, Pairing};
use switchboard::bench::process::Process;
use switchboard::bench::target::Target;
use switchboard::bench::{connect, idle, latency, mailbox, throughput};

struct Reference {
    child: Child,
    target: Target,
}

impl Reference {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reference"));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        Self { child, target: address.parse().unwrap() }
    }

    fn process(&self) -> Process {
        Process::new(self.child.id()).unwrap()
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn pairs(pairs: u64, size: u64) -> pairs::PairsOptions {
    pairs::PairsOptions { pairs, size, pairing: Pairing::Same, server_shards: 1 }
}

#[test]
fn every_message_comes_once_and_in_order() {
    let reference = Reference::start();
    for (count, window, size) in [(1, 1, 16), (8, 32, 64), (4, 8, 4096), (2, 2, 1 << 20)] {
        let options = throughput::ThroughputOptions {
            pairs: pairs(count, size),
            window,
            seconds: Duration::ZERO,
            warmup_seconds: Duration::ZERO,
            messages: Some(200),
            protocol: throughput::Protocol::Text,
            durability: mailbox::Asked::Strongest,
            receiver: mailbox::Receiver::Online,
            ack_every: 1,
        };
        let server = Some(reference.process());
        let run = throughput::measure(&reference.target, server, &options).unwrap();
        assert!(run.tally.is_clean(), "{:?}", run.tally);
        assert_eq!((run.tally.sent, run.tally.delivered), (200, 200));
        assert!(run.server_resident_bytes.unwrap() > 0);
    }
}

#[test]
fn a_latency_run_measures_what_was_due_after_the_warmup() {
    let reference = Reference::start();
    let options = latency::LatencyOptions {
        pairs: pairs(4, 64),
        rate: 10_000,
        seconds: Duration::from_millis(100),
        warmup_seconds: Duration::from_millis(20),
    };
    let run = latency::measure(&reference.target, None, &options).unwrap();
    assert!(run.tally.is_clean(), "{:?}", run.tally);
    assert_eq!((run.tally.delivered, run.messages), (1_200, 1_000));
    assert!(0.0 < run.p50_us && run.p50_us <= run.p999_us && run.p999_us <= run.max_us);
}

#[test]
fn connections_are_opened_and_their_memory_is_seen() {
    let reference = Reference::start();
    let options = connect::ConnectOptions { connections: 100, concurrency: 16 };
    let run = connect::measure(&reference.target, None, &options).unwrap();
    assert_eq!(run.connections, 100);
    let options = idle::IdleOptions { from: 10, connections: 400 };
    let protocol = throughput::Protocol::Text;
    let idle =
        idle::measure(&reference.target, Some(reference.process()), &options, protocol).unwrap();
    assert!(idle.resident_bytes >= idle.from_resident_bytes);
}
