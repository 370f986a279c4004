//! Counters that are updated where things happen, by the store and the shards. `metrics` reads
//! them and knows their names.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that one thread writes and all threads read.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Adds `n`. Only the thread that owns the number may call this: load and store are not one
    /// atomic operation.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Sets the value. Only the thread that owns the number may call this.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One number for each value of a label; all values are known beforehand.
#[derive(Debug)]
pub struct ByLabel<const N: usize>(pub(crate) [Number; N]);

impl<const N: usize> Default for ByLabel<N> {
    fn default() -> Self {
        ByLabel(std::array::from_fn(|_| Number::default()))
    }
}

impl<const N: usize> ByLabel<N> {
    /// Returns the number at the index of a label value.
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

/// Histogram of the time that messages spend inside the server.
#[derive(Debug, Default)]
pub struct Latency {
    pub(crate) buckets: ByLabel<{ LATENCY_BOUNDS_NS.len() + 1 }>,
    pub(crate) sum_ns: Number,
}

impl Latency {
    /// Counts `messages` that each took `latency`.
    #[inline]
    pub fn observe(&self, latency: Duration, messages: u64) {
        let ns = latency.as_nanos() as u64;
        let bucket = LATENCY_BOUNDS_NS.partition_point(|&bound| bound < ns);
        self.buckets.at(bucket).add(messages);
        self.sum_ns.add(ns * messages);
    }
}
