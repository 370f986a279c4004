//! A disk that others fill, and the ballast.

use super::crash_disk::{CrashDisk, Loss};
use super::{Ears, Told, batch, reopen};
use crate::store::queue::Entry;
use crate::store::writer::Turn;
use crate::store::{Admits, Batch, LogOptions, Recovered};

const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 8_000,
    queue_max_bytes: 8_000,
    max_bytes: 120_000,
    overrun_bytes: 0,
};

struct Fixture {
    disk: CrashDisk,
    log: Recovered,
    ears: Ears,
}

fn fixture(options: LogOptions) -> Fixture {
    let disk = CrashDisk::new(1);
    let (log, _) = reopen(&disk, options).unwrap();
    let mut it = Fixture { disk, log, ears: Ears::default() };
    it.look();
    assert_eq!(it.told(), [""; 0]);
    it
}

impl Fixture {
    fn submit(&self, batch: Batch) {
        self.log.shared.queue.submit(0, batch, &self.log.shared.stats).unwrap();
    }

    fn look(&mut self) {
        self.log.shared.queue.ask(Entry::Look);
        while !matches!(self.log.writer.step(&self.ears), Turn::Idle) {}
    }

    /// Writes this many records, one at a time.
    fn write(&mut self, count: usize) {
        for _ in 0..count {
            self.submit(batch(&[&[7; 2_000]]));
            self.log.writer.step(&self.ears);
        }
    }

    fn told(&self) -> Vec<&'static str> {
        let told = self.ears.take().into_iter();
        told.map(|told| match told {
            Told::Synced(..) => "synced",
            Told::Failing => "failing",
            Told::Healthy => "healthy",
            Told::Admits(Admits::Nobody) => "full",
            Told::Admits(Admits::Reserved) => "reserved",
            Told::Admits(Admits::All) => "not full",
            Told::Dropped(..) => "dropped",
            Told::Room(_) => "room",
        })
        .collect()
    }

    fn ballast(&self) -> usize {
        self.disk.content("ballast").len()
    }
}

/// Other processes take the last byte. Accepted records are written into the space of the ballast,
/// and no more are accepted until that is whole again.
#[test]
fn the_ballast_pays_for_what_is_queued_when_others_fill_the_disk() {
    let mut it = fixture(OPTIONS);
    assert_eq!(it.ballast(), 15_000, "an eighth of the quota");
    it.write(1);
    assert_eq!(it.told(), ["synced"]);
    it.disk.leave_free(Some(0));
    // All that the queue may hold, by single batches.
    for _ in 0..4 {
        it.submit(batch(&[&[7; 1_600]]));
    }
    while !matches!(it.log.writer.step(&it.ears), Turn::Idle) {}
    let told = it.told();
    assert!(told.contains(&"full") && !told.contains(&"failing"), "{told:?}");
    assert!(it.ballast() < 15_000);
    // Somebody still has all the space.
    it.look();
    assert_eq!(it.told(), [""; 0]);
    it.disk.leave_free(None);
    it.look();
    assert_eq!((it.told(), it.ballast()), (vec!["not full"], 15_000));
    let (_, records) = reopen(&it.disk.crash(Loss::Power), OPTIONS).unwrap();
    assert_eq!(records.len(), 5);
}

/// The ballast, which is bytes, was once given up for want of an inode, and then nothing was written
/// any more.
#[test]
fn without_inodes_the_newest_segment_grows_and_the_ballast_stays() {
    let mut it = fixture(OPTIONS);
    it.write(1);
    it.disk.leave_files(Some(0));
    it.write(10);
    let told = it.told();
    assert!(told.contains(&"full") && !told.contains(&"failing"), "{told:?}");
    assert_eq!(told.iter().filter(|&&told| told == "synced").count(), 11, "{told:?}");
    it.look();
    assert_eq!((it.told(), it.ballast()), (vec![], 15_000));
    let (log, records) = reopen(&it.disk.crash(Loss::Power), OPTIONS).unwrap();
    assert_eq!((records.len(), log.found.segments), (11, 1));
    it.disk.leave_files(Some(1));
    it.look();
    assert_eq!(it.told(), ["not full"]);
    it.write(1);
    let (log, records) = reopen(&it.disk.crash(Loss::Power), OPTIONS).unwrap();
    assert_eq!((records.len(), log.found.segments), (12, 2));
}

/// After a failed sync the newest segment is not written any more, so the next one must be made.
#[test]
fn the_ballast_gives_its_inode_where_nothing_is_written_without() {
    let mut it = fixture(OPTIONS);
    it.write(1);
    it.disk.leave_files(Some(0));
    it.disk.fail_syncs(true);
    it.write(1);
    it.disk.fail_syncs(false);
    while !matches!(it.log.writer.step(&it.ears), Turn::Idle) {}
    assert_eq!(it.told(), ["synced", "failing", "full", "healthy", "synced"]);
    it.look();
    assert_eq!(it.told(), [""; 0]);
    it.disk.leave_files(Some(1));
    it.look();
    assert_eq!((it.told(), it.ballast()), (vec!["not full"], 15_000));
    let (_, records) = reopen(&it.disk.crash(Loss::Power), OPTIONS).unwrap();
    assert_eq!(records.len(), 2);
}

#[test]
fn without_ballast_a_full_disk_fails_and_recovers_without_loss() {
    let mut it = fixture(OPTIONS);
    it.disk.leave_free(Some(0));
    for _ in 0..20 {
        let records = [&[7; 1_700][..]];
        if it.log.shared.queue.submit(0, batch(&records), &it.log.shared.stats).is_err() {
            break;
        }
        it.log.writer.step(&it.ears);
        it.disk.leave_free(Some(0));
    }
    let told = it.told();
    assert!(told.contains(&"full") && told.contains(&"failing"), "{told:?}");
    it.disk.leave_free(None);
    it.look();
    let told = it.told();
    assert_eq!((told[0], told[told.len() - 1]), ("healthy", "not full"), "{told:?}");
    let submitted = it.log.shared.stats.submitted.load(std::sync::atomic::Ordering::Relaxed);
    let (_, records) = reopen(&it.disk.crash(Loss::Power), OPTIONS).unwrap();
    assert_eq!(records.len() as u64, submitted);
}

/// Records that are taken even when the log is full have their room from the moment at which they
/// are promised.
#[test]
fn the_gate_closes_for_what_is_promised_and_opens_when_it_is_not_any_more() {
    struct Promised(Ears, u64, bool);
    impl crate::store::Listener for Promised {
        fn synced(&self, shard: usize, batches: Vec<crate::store::Synced>) {
            self.0.synced(shard, batches);
        }
        fn room(&self, _: usize) {}
        fn failing(&self, _: &crate::store::StoreError) {}
        fn healthy(&self) {}
        fn admits(&self, admits: Admits) {
            self.0.admits(admits);
        }
        fn has_reserve(&self) -> bool {
            self.2
        }
        fn promised(&self, left: u64, reserve: u64) -> u64 {
            assert!(left > 60_000, "{left}");
            assert_eq!(reserve > 0, self.2);
            self.1
        }
        fn dropped(&self, _: u32, _: Result<(), crate::store::DropError>) {}
    }
    let mut it = fixture(OPTIONS);
    for (promised, has_reserve, told) in [
        (0, false, vec![]),
        (90_000, false, vec!["full"]),
        (100, false, vec!["not full"]),
        (100, true, vec![]),
        (65_000, false, vec![]),
        (65_000, true, vec!["reserved"]),
        (90_000, true, vec!["full"]),
        (100, true, vec!["not full"]),
    ] {
        let ears = Promised(it.ears.clone(), promised, has_reserve);
        it.log.shared.queue.ask(Entry::Look);
        while !matches!(it.log.writer.step(&ears), Turn::Idle) {}
        assert_eq!(it.told(), told);
    }
}

#[test]
fn the_quota_closes_before_it_is_passed_and_opens_when_segments_are_dropped() {
    let mut it = fixture(OPTIONS);
    let mut full_at = None;
    for written in 0..100 {
        it.write(1);
        if it.told().contains(&"full") {
            full_at = Some(written);
            break;
        }
    }
    assert!(full_at.is_some_and(|written| written > 10), "{full_at:?}");
    let used = it.log.shared.usage().bytes + it.ballast() as u64;
    assert!(used <= OPTIONS.max_bytes, "{used}");
    for _ in 0..5 {
        let oldest = it.log.shared.oldest().unwrap().number;
        it.log.shared.queue.ask(Entry::Drop { segment: oldest });
        it.look();
    }
    assert!(it.told().contains(&"not full"));
}

#[test]
fn what_an_earlier_run_set_aside_is_found_again_and_a_start_on_a_full_disk_works() {
    let mut it = fixture(OPTIONS);
    it.write(3);
    it.disk.leave_free(Some(0));
    let disk = it.disk.crash(Loss::Process);
    let (log, records) = reopen(&disk, OPTIONS).unwrap();
    assert_eq!(records.len(), 3);
    let mut next = Fixture { disk, log, ears: Ears::default() };
    next.submit(batch(&[&[8; 6_000]]));
    while !matches!(next.log.writer.step(&next.ears), Turn::Idle) {}
    let told = next.told();
    assert!(told.contains(&"synced") && !told.contains(&"failing"), "{told:?}");
}

#[test]
fn a_rolled_segment_can_be_dropped_before_anything_is_written_behind_it() {
    let mut it = fixture(OPTIONS);
    it.write(1);
    it.log.shared.queue.ask(Entry::Roll);
    it.log.shared.queue.ask(Entry::Drop { segment: 1 });
    it.look();
    assert_eq!(it.told(), ["synced", "dropped"]);
    let oldest = it.log.shared.oldest().unwrap();
    assert_eq!((oldest.number, oldest.is_newest), (2, true));
    let (log, records) = reopen(&it.disk.crash(Loss::Power), OPTIONS).unwrap();
    assert_eq!((records.len(), log.found.segments), (0, 1));
}
