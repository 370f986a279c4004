//! The workloads on which the servers are compared.

use std::time::Duration;

use clap::ValueEnum;
use switchboard::bench::pairs::{self, Pairing};
use switchboard::bench::{mailbox, throughput};

/// Named by pairs x messages in flight per pair x bytes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    /// Many messages per read, dominated by the server's own work
    #[value(name = "64x32x64B")]
    Batched,
    /// One message per read, dominated by system calls
    #[value(name = "64x1x64B")]
    Single,
    /// More connections, smaller batches
    #[value(name = "500x8x64B")]
    Many,
    /// Large messages, dominated by copying
    #[value(name = "64x8x4KiB")]
    Large,
    /// 10,000 devices, dominated by cache misses
    #[value(name = "5000x1x64B")]
    Crowd,
}

impl Workload {
    /// Returns its name on the command line and in the tables.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value().expect("no workload is hidden");
        value.get_name().to_owned()
    }

    /// Returns the maximum ratio of CPU time per message, Switchboard to the reference.
    pub(crate) fn bound(self) -> f64 {
        if self == Self::Batched { 1.15 } else { 1.10 }
    }

    /// Returns the load, measured for `seconds`.
    pub(crate) fn for_seconds(self, seconds: u64) -> throughput::ThroughputOptions {
        let (pairs, window, size) = match self {
            Self::Batched => (64, 32, 64),
            Self::Single => (64, 1, 64),
            Self::Many => (500, 8, 64),
            Self::Large => (64, 8, 4096),
            Self::Crowd => (5000, 1, 64),
        };
        throughput::ThroughputOptions {
            pairs: pairs::PairsOptions { pairs, size, pairing: Pairing::Same, server_shards: 1 },
            window,
            seconds: Duration::from_secs(seconds),
            warmup_seconds: Duration::from_millis(500),
            messages: None,
            protocol: throughput::Protocol::Text,
            durability: mailbox::Asked::Strongest,
            receiver: mailbox::Receiver::Online,
            ack_every: 1,
        }
    }

    /// Returns the load with exactly `messages` messages.
    pub(crate) fn with_messages(self, messages: u64) -> throughput::ThroughputOptions {
        throughput::ThroughputOptions { messages: Some(messages), ..self.for_seconds(0) }
    }
}
