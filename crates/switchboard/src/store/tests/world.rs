//! Random schedules of submits, failures, drops and crashes against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;

use super::crash_disk::{CrashDisk, Loss};
use super::random::Random;
use super::{Ears, Told, reopen};
use crate::store::queue::Entry;
use crate::store::writer::Turn;
use crate::store::{Admits, Batch, Disk, LogOptions, OpenError, Position, Recovered};

/// Seeds of the schedules that run each time; `STORE_SEEDS=from..to` runs others.
const SEEDS: std::ops::Range<u64> = 0..1500;

/// Options for a start whose options do not matter, as it is refused.
const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 3000,
    queue_max_bytes: 20_000,
    max_bytes: u64::MAX,
    overrun_bytes: 0,
};

/// Model of the log's content, over all of its incarnations.
struct World {
    random: Random,
    disk: CrashDisk,
    /// All records ever submitted, in order, but for those that a crash took.
    submitted: Vec<Vec<u8>>,
    /// Number of them that were reported as synced.
    synced: usize,
    /// Indexes into `submitted` by reported position.
    positions: BTreeMap<Position, usize>,
    /// Number of them that are certainly dropped.
    dropped: usize,
    /// Number of them that may be dropped.
    drop_wanted: usize,
    /// Things that the owner wants to keep, each in its newest record; true if that is synced.
    wanted: BTreeMap<u64, bool>,
    next_thing: u64,
    is_failing: bool,
    is_full: bool,
}

/// One incarnation of the log, from opening to the crash.
struct Incarnation {
    recovered: Recovered,
    ears: Ears,
    drop_pending: bool,
}

#[test]
fn what_was_told_as_synced_survives_every_schedule() {
    let seeds = std::env::var("STORE_SEEDS").ok().map_or(SEEDS, |seeds| {
        let (from, to) = seeds.split_once("..").expect("STORE_SEEDS=from..to");
        from.parse().unwrap()..to.parse().unwrap()
    });
    for seed in seeds {
        let shown = ShownOnPanic(seed);
        World::new(seed).run();
        std::mem::forget(shown);
    }
}

struct ShownOnPanic(u64);

impl Drop for ShownOnPanic {
    fn drop(&mut self) {
        eprintln!("replay with STORE_SEEDS={}..{}", self.0, self.0 + 1);
    }
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: Random::new(seed),
            disk: CrashDisk::new(!seed),
            submitted: Vec::new(),
            synced: 0,
            positions: BTreeMap::new(),
            dropped: 0,
            drop_wanted: 0,
            wanted: BTreeMap::new(),
            next_thing: 0,
            is_failing: false,
            is_full: false,
        }
    }

    fn run(&mut self) {
        for _ in 0..2 + self.random.below(8) {
            let mut incarnation = self.open();
            for _ in 0..self.random.below(60) {
                self.act(&mut incarnation);
                self.hear(&mut incarnation);
            }
            self.end(incarnation);
        }
        self.open();
    }

    fn options(&mut self) -> LogOptions {
        let segment_bytes = [600, 3000, 20_000][self.random.below(3) as usize];
        let max_bytes = [u64::MAX, 60_000, 1 << 20][self.random.below(3) as usize];
        LogOptions { segment_bytes, queue_max_bytes: 20_000, max_bytes, overrun_bytes: 0 }
    }

    /// Opens the log, if need be after crashes during the start, and compares it with the model.
    fn open(&mut self) -> Incarnation {
        if self.random.below(3) == 0 {
            self.disk.freeze_after(Some(self.random.below(6)));
        }
        loop {
            let options = self.options();
            let salvaged = crate::store::salvage(&self.disk, None, &mut |_| {}).unwrap();
            assert_eq!(salvaged.faults, [""; 0], "nothing is wrong with it");
            match reopen(&self.disk, options) {
                Ok((recovered, records)) => {
                    self.compare(&records);
                    assert_eq!(recovered.found.foreign, [""; 0], "the log left them itself");
                    self.miss_one(&recovered);
                    self.disk.freeze_after(None);
                    (self.is_failing, self.is_full) = (false, false);
                    return Incarnation { recovered, ears: Ears::default(), drop_pending: false };
                }
                Err(OpenError::Io(_)) if self.disk.is_frozen() => self.crash(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Checks that the log is refused without any one of its segments.
    fn miss_one(&mut self, recovered: &Recovered) {
        let segments = recovered.shared.segments.read().unwrap();
        let count = segments.len() as u64;
        if count == 0 || self.random.below(4) > 0 {
            return;
        }
        let nth = self.random.below(count) as usize;
        let disk = self.disk.crash(Loss::Process);
        disk.delete(&segments.values().nth(nth).unwrap().name).unwrap();
        assert!(matches!(reopen(&disk, OPTIONS), Err(OpenError::Wrong { .. })), "one is missing");
    }

    /// Checks that the log has a run of the submitted records: from a requested drop on, and at
    /// least to the last synced one.
    fn compare(&mut self, records: &[(Position, Vec<u8>)]) {
        let first = records.first().map(|(_, first)| {
            self.submitted.iter().position(|record| record == first).expect("it was submitted")
        });
        let first = first.unwrap_or(self.submitted.len().min(self.drop_wanted));
        assert!((self.dropped..=self.drop_wanted).contains(&first), "{first} is the first");
        let end = first + records.len();
        assert!(end >= self.synced, "{end} records of {} synced ones", self.synced);
        for ((_, found), submitted) in records.iter().zip(&self.submitted[first..]) {
            assert_eq!(found, submitted);
        }
        assert!(end <= self.submitted.len());
        self.submitted.truncate(end);
        (self.synced, self.dropped, self.drop_wanted) = (end, first, first);
        self.positions = records.iter().map(|(position, _)| *position).zip(first..).collect();
        let found: BTreeSet<u64> = records.iter().map(|(_, record)| thing_of(record)).collect();
        self.wanted.retain(|thing, is_synced| {
            assert!(!*is_synced || found.contains(thing), "thing {thing} is lost");
            found.contains(thing)
        });
        self.wanted.values_mut().for_each(|is_synced| *is_synced = true);
    }

    fn act(&mut self, incarnation: &mut Incarnation) {
        match self.random.below(20) {
            0..6 => self.submit_new(incarnation),
            6..13 => self.step(incarnation),
            13 => self.disk.fail_one_in(Some(1 + self.random.below(8))),
            14 => self.disk.fail_one_in(None),
            15 => self.read(incarnation),
            16 => self.compact(incarnation),
            17 => incarnation.recovered.shared.queue.ask(Entry::Roll),
            18 => drop(self.wanted.pop_first()),
            19 if self.random.below(2) == 0 => self.change_space(incarnation),
            _ if self.random.below(10) == 0 => {
                self.disk.freeze_after(Some(self.random.below(8)));
            }
            _ => {}
        }
    }

    /// Fills the disk for others, or frees some of it, and may have the log look at it.
    fn change_space(&mut self, incarnation: &mut Incarnation) {
        let free = [None, Some(0), Some(500), Some(20_000)][self.random.below(4) as usize];
        self.disk.leave_free(free);
        if self.random.below(2) == 0 {
            incarnation.recovered.shared.queue.ask(Entry::Look);
        }
    }

    fn submit_new(&mut self, incarnation: &mut Incarnation) {
        let things = (0..1 + self.random.below(4)).map(|at| self.next_thing + at).collect();
        if self.submit(incarnation, &things) {
            self.next_thing += things.len() as u64;
            self.wanted.extend(things.into_iter().map(|thing| (thing, false)));
        }
    }

    /// Submits a record for each thing; false if the queue is full.
    fn submit(&mut self, incarnation: &mut Incarnation, things: &Vec<u64>) -> bool {
        let mut records = Vec::new();
        for thing in things {
            let mut record = thing.to_le_bytes().to_vec();
            record.extend(self.random.next().to_le_bytes());
            let len = [0, 100, 300, 2500][self.random.below(4) as usize];
            record.resize(record.len() + len, self.random.next() as u8);
            records.push(record);
        }
        let mut batch = Batch::default();
        records.iter().for_each(|record| batch.push(record));
        let (queue, stats) =
            (&incarnation.recovered.shared.queue, &incarnation.recovered.shared.stats);
        let is_taken = queue.submit(self.random.below(3) as usize, batch, stats).is_ok();
        if is_taken {
            self.submitted.extend(records);
        }
        is_taken
    }

    fn step(&mut self, incarnation: &mut Incarnation) {
        incarnation.recovered.writer.step(&incarnation.ears);
    }

    fn hear(&mut self, incarnation: &mut Incarnation) {
        let told = incarnation.ears.take();
        let mut synced = Vec::new();
        for told in told {
            match told {
                Told::Synced(_, records) => {
                    assert!(!self.is_failing, "synced while failing");
                    synced.extend(records);
                }
                Told::Failing => assert!(!std::mem::replace(&mut self.is_failing, true)),
                Told::Healthy => assert!(std::mem::replace(&mut self.is_failing, false)),
                Told::Dropped(_, result) => {
                    incarnation.drop_pending = false;
                    if result.is_ok() {
                        self.dropped = self.drop_wanted;
                        self.positions.retain(|_, at| *at >= self.dropped);
                    }
                }
                Told::Admits(admits) => {
                    let is_full = admits == Admits::Nobody;
                    assert_ne!(std::mem::replace(&mut self.is_full, is_full), is_full);
                }
                Told::Room(_) => {}
            }
        }
        // Each shard is told by itself; together they are the order of the log.
        synced.sort();
        for (position, record) in synced {
            assert_eq!(record, self.submitted[self.synced]);
            self.wanted.entry(thing_of(&record)).and_modify(|is_synced| *is_synced = true);
            let last = self.positions.last_key_value();
            assert!(last.is_none_or(|(&last, _)| last < position), "positions rise");
            self.positions.insert(position, self.synced);
            self.synced += 1;
        }
    }

    fn read(&mut self, incarnation: &Incarnation) {
        let count = self.positions.len() as u64;
        if count == 0 {
            return;
        }
        let nth = self.random.below(count) as usize;
        let (&position, &at) = self.positions.iter().nth(nth).unwrap();
        let mut found = vec![1, 2, 3];
        let segment = incarnation.recovered.shared.segment(position.segment()).unwrap();
        segment.read(position.offset(), &mut found).unwrap();
        assert_eq!(found, self.submitted[at]);
    }

    /// Appends the wanted things of the oldest segment again, and drops it.
    fn compact(&mut self, incarnation: &mut Incarnation) {
        let shared = incarnation.recovered.shared.clone();
        let Some(oldest) = shared.oldest() else { return };
        if oldest.is_newest || incarnation.drop_pending {
            return;
        }
        let (mut things, mut count) = (Vec::new(), 0);
        let visit = &mut |_: Position, record: &[u8]| {
            count += 1;
            things.push(thing_of(record));
        };
        let mut next = None;
        loop {
            next = shared.read_segment(oldest.number, next, visit).unwrap();
            if next.is_none() {
                break;
            }
        }
        things.retain(|thing| self.wanted.contains_key(thing));
        things.dedup();
        if things.is_empty() || self.submit(incarnation, &things) {
            match things.is_empty() {
                true => shared.dead.store(oldest.number, Relaxed),
                false => shared.queue.ask(Entry::Drop { segment: oldest.number }),
            }
            // After a drop that failed the same segment is tried again.
            self.drop_wanted = self.dropped + count;
            incarnation.drop_pending = true;
        }
    }

    fn end(&mut self, mut incarnation: Incarnation) {
        if self.random.below(3) == 0 {
            self.disk.fail_one_in(None);
            self.disk.freeze_after(None);
            self.disk.leave_free(None);
            while !matches!(incarnation.recovered.writer.step(&incarnation.ears), Turn::Idle) {}
            self.hear(&mut incarnation);
            assert_eq!(self.synced, self.submitted.len(), "all is synced at a clean end");
            if self.random.below(2) == 0 {
                incarnation.recovered.shared.manifest().close().unwrap();
            }
        }
        self.crash();
    }

    fn crash(&mut self) {
        let loss = if self.random.below(2) == 0 { Loss::Process } else { Loss::Power };
        self.disk = self.disk.crash(loss);
    }
}

fn thing_of(record: &[u8]) -> u64 {
    u64::from_le_bytes(record[..8].try_into().unwrap())
}
