//! What the log counts.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::counters::Latency;

/// What the log counts; written by its threads, read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Records that became durable.
    pub records: AtomicU64,
    /// Batches that became durable.
    pub batches: AtomicU64,
    /// Writes that became durable, each with one sync.
    pub syncs: AtomicU64,
    /// Bytes that became durable, with their frames.
    pub synced_bytes: AtomicU64,
    /// Attempts that the disk refused.
    pub failures: AtomicU64,
    /// Submits that found the queue full.
    pub full: AtomicU64,
    /// Submitted and not yet durable, now.
    pub queue_bytes: AtomicU64,
    /// Free on the file system, as far as is known; 0 where nothing bounds the log.
    pub free_bytes: AtomicU64,
    /// What new messages may take before they are refused; 0 where nothing bounds the log.
    pub left_bytes: AtomicU64,
    /// Set aside.
    pub ballast_bytes: AtomicU64,
    /// 1 while there is no space for new messages.
    pub is_full: AtomicU64,
    /// 1 while there will be none soon.
    pub is_tight: AtomicU64,
    /// Records that were submitted.
    pub submitted: AtomicU64,
    /// Durations of the syncs.
    pub sync_duration: Latency,
    /// From the submit of a batch until it is durable.
    pub append: Latency,
}

pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Relaxed);
}

pub(super) fn set(gauge: &AtomicU64, n: u64) {
    gauge.store(n, Relaxed);
}
