//! Division of the disk's space, as arithmetic.
//!
//! New messages are refused before the space runs out: the gate closes while there is still
//! room for all that may be queued already. What goes on behind a closed gate (acks, outcomes,
//! records of devices, compaction) has the rest of the room, and the ballast.

use super::writer::{LogOptions, ZEROS_AHEAD};

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its size in bytes.
    pub total: u64,
    /// Bytes that this process may still write.
    pub free: u64,
    /// Set if it counts its files, and takes no more.
    pub is_out_of_inodes: bool,
}

/// Fraction of the file system that is left to others: a twentieth.
const LEFT_FREE_PART: u64 = 20;
/// Largest fraction of the volume that the ballast takes: an eighth.
const BALLAST_PART: u64 = 8;
/// Largest fraction of the volume that is set aside for what may be accepted beyond the queue's
/// bound: with many shards that would take all of a small store. Half of the ballast's part, so
/// that the ballast can hold this and a small queue.
const OVERRUN_PART: u64 = 2 * BALLAST_PART;
/// Fraction of the queue by which records that no message caused may exceed its bound; see
/// `shard/budget`.
const QUEUE_MORE_PART: u64 = 8;
/// Smallest segment that a small volume leads to.
const SEGMENT_BYTES_MIN: u32 = 64 << 10;

/// Fraction of the space for messages that is reserved once the listener asks for it: a quarter.
const RESERVE_PART: u64 = 4;

/// Allowance for smaller segments; see [`Plan::segments_max`].
const SEGMENTS_MORE: u64 = 16;

/// Sizes of the log's parts, which share the space of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Most bytes of the log, with the ballast.
    max_bytes: u64,
    /// Bytes of the file system, or of the quota if that is less.
    pub(super) volume: u64,
    /// Bytes set aside for a full disk: room for all that is queued, and to copy one segment.
    pub(super) ballast_bytes: u64,
    /// Most bytes that are not durable, in the log's queue and before it.
    pub(super) queue_max_bytes: usize,
    /// Most bytes beyond that which may be accepted before the gate closes.
    overrun_bytes: u64,
    pub(super) segment_bytes: u32,
    /// Most zeros ahead of the records.
    pub(super) zeros_ahead: u32,
}

impl LogOptions {
    /// Returns about the most files that the log has open at once; see `Plan::segments_max`.
    pub fn files_max(&self) -> u64 {
        Plan::new(self, None).segments_max()
    }
}

impl Plan {
    /// Divides the space of a file system of `total` bytes. On a small one, or under a small quota,
    /// all parts shrink together: compaction must be able to copy a segment, and the ballast to
    /// take the queue.
    pub(super) fn new(options: &LogOptions, total: Option<u64>) -> Plan {
        let LogOptions { segment_bytes, queue_max_bytes, max_bytes, overrun_bytes } = *options;
        let zeros_ahead = ZEROS_AHEAD.min(segment_bytes);
        let volume = max_bytes.min(total.unwrap_or(u64::MAX));
        if max_bytes == u64::MAX {
            return Plan {
                max_bytes,
                volume,
                ballast_bytes: 0,
                queue_max_bytes,
                overrun_bytes,
                segment_bytes,
                zeros_ahead,
            };
        }
        let wanted = queue_max_bytes as u64 + u64::from(segment_bytes);
        let ballast_bytes = wanted.min(volume / BALLAST_PART);
        let half = ballast_bytes / 2;
        let (queue, segment) = match ballast_bytes == wanted {
            true => (queue_max_bytes, segment_bytes),
            // Half of the ballast is for the queue, including the part by which its bound may
            // be passed; the other half for the copy of a segment, or for `overrun_bytes`.
            false => (
                queue_max_bytes.min((half - half / QUEUE_MORE_PART) as usize),
                segment_bytes.min((half as u32).max(SEGMENT_BYTES_MIN)),
            ),
        };
        Plan {
            max_bytes,
            volume,
            ballast_bytes,
            queue_max_bytes: queue,
            overrun_bytes: overrun_bytes.min(volume / OVERRUN_PART),
            segment_bytes: segment,
            zeros_ahead: zeros_ahead.min(segment),
        }
    }

    /// Returns the most segments that the log has, each with an open file.
    pub(super) fn segments_max(&self) -> u64 {
        // Twice: a segment ends early if the next batch does not fit, but then it and the next one
        // together are larger than a full one. The rest is for the smaller ones of a disk that is
        // full or fails, and for one that begins while another goes.
        2 * (self.max_bytes / u64::from(self.segment_bytes)) + SEGMENTS_MORE
    }

    /// Returns true if there is no bound: then free space is not looked at, and there is no
    /// ballast.
    pub(super) fn is_unbounded(&self) -> bool {
        self.max_bytes == u64::MAX
    }

    /// Returns the bytes that may be written although the gate is closed: all that is queued, zeros
    /// ahead of it, and the copy of a segment that compaction will drop.
    pub(super) fn headroom(&self) -> u64 {
        // The copy lies beside its segment until that is dropped; without room for both the log
        // would pass its quota.
        self.queued() + u64::from(self.segment_bytes)
    }

    /// Returns the bytes that are left to the senders for whom they are reserved, above the
    /// headroom.
    pub(super) fn reserve(&self) -> u64 {
        self.volume.saturating_sub(self.ballast_bytes + self.headroom()) / RESERVE_PART
    }

    /// Returns the most bytes that may be queued, with the shards and with the log, and zeros ahead
    /// of them.
    fn queued(&self) -> u64 {
        let queue = self.queue_max_bytes as u64;
        queue + queue / QUEUE_MORE_PART + self.overrun_bytes + u64::from(self.zeros_ahead)
    }

    /// Returns the bytes that the log may still grow by, if it has `used` bytes.
    pub(super) fn left(&self, used: u64, space: Option<Space>) -> u64 {
        let quota = self.max_bytes.saturating_sub(used);
        // A file system that cannot be asked bounds nothing; a write that fails will tell.
        let disk = space.map_or(u64::MAX, |Space { total, free, .. }| {
            free.saturating_sub(total / LEFT_FREE_PART)
        });
        quota.min(disk)
    }

    /// Returns true if the ballast may take the bytes that it lacks.
    pub(super) fn may_refill(&self, lacking: u64, space: Option<Space>) -> bool {
        // All that is queued must still fit, or the ballast would be given up again at once.
        space.is_none_or(|space| space.free >= lacking + self.queued())
    }
}

/// Senders whose new messages are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admits {
    /// All.
    #[default]
    All,
    /// Those for whom the space that is left is reserved.
    Reserved,
    /// None.
    Nobody,
}

/// Gate for new messages. It opens at more free space than it closes at, so that it does not flap.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gate {
    pub(super) admits: Admits,
    /// Set while space is so short that compaction should not wait.
    pub(super) is_tight: bool,
}

impl Gate {
    /// Opens or closes the gate, for a log that may grow by `left` bytes; `reserve` of them are
    /// reserved. Returns true if the gate changes. `is_short` says that the log's ballast is not
    /// whole, or that it cannot begin a segment.
    pub(super) fn judge(&mut self, plan: &Plan, left: u64, reserve: u64, is_short: bool) -> bool {
        let headroom = plan.headroom();
        let more_to_open = |is_closed: bool| if is_closed { headroom / 2 } else { 0 };
        // Without its ballast the log counts as full, however much is free: what is accepted
        // now could not be written if the disk were full again.
        let is_full = is_short || left < headroom + more_to_open(self.is_full());
        let is_kept = left < headroom + reserve + more_to_open(self.admits != Admits::All);
        let admits = match (is_full, reserve > 0 && is_kept) {
            (true, _) => Admits::Nobody,
            (false, true) => Admits::Reserved,
            (false, false) => Admits::All,
        };
        // Obsolete records must not keep the gate closed for senders that may not use the reserve.
        self.is_tight = admits != Admits::All || left < reserve + 2 * headroom;
        std::mem::replace(&mut self.admits, admits) != admits
    }

    /// Returns true while no new messages are taken.
    pub(super) fn is_full(&self) -> bool {
        self.admits == Admits::Nobody
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const OPTIONS: LogOptions = LogOptions {
        segment_bytes: 64 << 20,
        queue_max_bytes: 64 << 20,
        max_bytes: 10 << 30,
        overrun_bytes: 0,
    };

    #[test]
    fn a_large_disk_changes_nothing_and_a_small_one_shrinks_all_parts() {
        let plan = Plan::new(&OPTIONS, Some(100 << 30));
        assert_eq!(plan.ballast_bytes, 128 * MIB);
        assert_eq!((plan.queue_max_bytes, plan.segment_bytes), (64 << 20, 64 << 20));
        let plan = Plan::new(&OPTIONS, Some(8 * MIB));
        assert_eq!(plan.ballast_bytes, MIB);
        assert_eq!((plan.queue_max_bytes, plan.segment_bytes), (448 << 10, 512 << 10));
        // A small quota on a large disk is a small disk.
        let quota = LogOptions { max_bytes: 8 * MIB, ..OPTIONS };
        assert_eq!(Plan::new(&quota, Some(100 << 30)).headroom(), plan.headroom());
        assert!(plan.queued() <= plan.ballast_bytes, "the ballast takes all that is queued");
        let copied = plan.headroom() - plan.queued();
        assert_eq!(copied, u64::from(plan.segment_bytes), "the quota has room to copy a segment");
    }

    /// Shards could once hold 64 MiB of accepted records for a small disk, which then had no room
    /// for them.
    #[test]
    fn the_ballast_takes_also_what_passes_the_bound_of_the_queue() {
        for mib in [8, 16, 64, 300, 1_000, 2_000, 10_240] {
            let options = LogOptions { overrun_bytes: 64 * MIB, ..OPTIONS };
            let plan = Plan::new(&options, Some(mib * MIB));
            // None are written when space is short.
            let queued = plan.queued() - u64::from(plan.zeros_ahead);
            assert!(queued >= plan.queue_max_bytes as u64 + plan.overrun_bytes, "{plan:?}");
            assert!(mib > 1_000 || queued <= plan.ballast_bytes, "{plan:?}");
            assert!(plan.headroom() < mib * MIB * 3 / 8, "{plan:?}");
        }
    }

    #[test]
    fn the_last_twentieth_of_a_disk_is_never_left_for_messages() {
        let plan = Plan::new(&OPTIONS, Some(100 * MIB));
        let space =
            |free| Some(Space { total: 100 * MIB, free: free * MIB, is_out_of_inodes: false });
        assert_eq!(plan.left(0, space(25)), 20 * MIB);
        assert_eq!(plan.left(0, space(5)), 0);
        assert_eq!(plan.left(0, space(1)), 0);
        assert_eq!(plan.left((10 << 30) - 7, space(90)), 7);
        assert_eq!(plan.left(11 << 30, space(90)), 0);
        assert_eq!(plan.left(0, None), 10 << 30, "a disk that cannot be asked bounds nothing");
    }

    #[test]
    fn the_gate_closes_before_the_queue_could_pass_the_quota_and_opens_later() {
        let plan = Plan::new(&OPTIONS, None);
        let headroom = plan.headroom();
        let mut gate = Gate::default();
        assert!(!gate.judge(&plan, 2 * headroom, 0, false));
        assert!(!gate.is_tight);
        assert!(!gate.judge(&plan, headroom, 0, false));
        assert!(gate.is_tight && !gate.is_full());
        assert!(gate.judge(&plan, headroom - 1, 0, false));
        assert!(!gate.judge(&plan, headroom + 1, 0, false), "it does not flap");
        assert!(gate.is_full());
        assert!(gate.judge(&plan, 2 * headroom, 0, false));
        assert!(!gate.is_full());
        assert!(gate.judge(&plan, u64::MAX, 0, true), "without ballast it is full");
    }

    /// Space that came free went to whoever asked next: those for whom a quarter was meant were
    /// refused in four of five attempts while others stored messages and acked them at once.
    #[test]
    fn the_gate_leaves_a_quarter_to_those_for_whom_it_is_reserved() {
        for mib in [8, 64, 1_000, 10_240] {
            let plan = Plan::new(&OPTIONS, Some(mib * MIB));
            let (headroom, reserve) = (plan.headroom(), plan.reserve());
            let of_messages = mib * MIB - plan.ballast_bytes - headroom;
            assert_eq!(reserve, of_messages / 4);
            let mut gate = Gate::default();
            let mut admits = |left| {
                gate.judge(&plan, left, reserve, false);
                gate.admits
            };
            let at = headroom + reserve;
            assert_eq!(admits(at), Admits::All);
            assert_eq!(admits(at - 1), Admits::Reserved);
            assert_eq!(admits(at + headroom / 2 - 1), Admits::Reserved, "it does not flap");
            assert_eq!(admits(at + headroom / 2), Admits::All);
            assert_eq!(admits(headroom), Admits::Reserved);
            assert_eq!(admits(headroom - 1), Admits::Nobody);
            assert_eq!(admits(headroom + headroom / 2), Admits::Reserved, "they come first");
            // Compaction does not wait until the gate is closed to anybody.
            admits(u64::MAX);
            assert!(!gate.is_tight);
            gate.judge(&plan, at + headroom - 1, reserve, false);
            assert!(gate.is_tight && gate.admits == Admits::All);
            assert!(gate.judge(&plan, at - 1, reserve, false));
            assert!(gate.judge(&plan, at - 1, 0, false), "nothing is reserved any more");
        }
    }
}
