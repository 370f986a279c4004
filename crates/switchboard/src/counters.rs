//! Numbers that are counted where things happen. The store and the shards keep them; `metrics` reads
//! them and knows their names.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Adds; only the thread that owns the number may call it.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Replaces; only the thread that owns the number may call it.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Numbers by the value of one label, all values known beforehand.
#[derive(Debug)]
pub struct ByLabel<const N: usize>(pub(crate) [Number; N]);

impl<const N: usize> Default for ByLabel<N> {
    fn default() -> Self {
        ByLabel(std::array::from_fn(|_| Number::default()))
    }
}

impl<const N: usize> ByLabel<N> {
    /// The number at a label's index.
    #[inline]
    pub fn at(&self, index: usize) -> &Number {
        &self.0[index]
    }
}

/// Upper bounds of the latency histogram's buckets in nanoseconds: 1-2.5-5 from 10 us to 1 s.
pub(crate) const LATENCY_BOUNDS_NS: [u64; 16] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
];

/// How long messages take inside the server.
#[derive(Debug, Default)]
pub struct Latency {
    pub(crate) buckets: ByLabel<{ LATENCY_BOUNDS_NS.len() + 1 }>,
    pub(crate) sum_ns: Number,
}

impl Latency {
    /// Counts `messages` that took `latency`.
    #[inline]
    pub fn observe(&self, latency: Duration, messages: u64) {
        let ns = latency.as_nanos() as u64;
        let bucket = LATENCY_BOUNDS_NS.partition_point(|&bound| bound < ns);
        self.buckets.at(bucket).add(messages);
        self.sum_ns.add(ns * messages);
    }
}
