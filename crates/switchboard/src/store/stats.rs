//! Counters and gauges of the log.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::counters::Latency;

/// Counters and gauges of the log; written by its threads, readable by any.
#[derive(Debug, Default)]
pub struct Stats {
    /// Records that became durable.
    pub records: AtomicU64,
    /// Batches that became durable.
    pub batches: AtomicU64,
    /// Writes that became durable, each with one sync.
    pub syncs: AtomicU64,
    /// Bytes that became durable, frames included.
    pub synced_bytes: AtomicU64,
    /// Attempts that failed at the disk.
    pub failures: AtomicU64,
    /// Submits that found the queue full.
    pub full: AtomicU64,
    /// Bytes that are submitted and not yet durable.
    pub queue_bytes: AtomicU64,
    /// Free bytes of the file system at the last look, less the log's writes since; 0 if the log
    /// has no bound.
    pub free_bytes: AtomicU64,
    /// Bytes that new messages may take before they are refused; 0 if the log has no bound.
    pub left_bytes: AtomicU64,
    /// Bytes of the ballast.
    pub ballast_bytes: AtomicU64,
    /// 1 while the gate refuses all new messages, because space is short or no segment can be
    /// begun.
    pub is_full: AtomicU64,
    /// 1 while the gate refuses new messages of senders for whom nothing is reserved.
    pub is_full_for_others: AtomicU64,
    /// 1 while no segment can be begun, because the disk takes no more files.
    pub is_out_of_files: AtomicU64,
    /// 1 while the gate refuses new messages of some or all senders, or soon will: compaction
    /// should not wait.
    pub is_tight: AtomicU64,
    /// Records that were submitted.
    pub submitted: AtomicU64,
    /// Durations of the syncs.
    pub sync_duration: Latency,
    /// Time from the submit of a batch until it is durable.
    pub append: Latency,
}

pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Relaxed);
}

pub(super) fn set(gauge: &AtomicU64, n: u64) {
    gauge.store(n, Relaxed);
}
