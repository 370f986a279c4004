//! Single turns of the writer: what is told, and when.

use std::time::Duration;

use super::crash_disk::{CrashDisk, Loss};
use super::{Ears, Told, batch, reopen};
use crate::store::queue::Entry;
use crate::store::writer::Turn;
use crate::store::{Batch, Disk, DropError, Full, LogOptions, ReadError, Recovered};

const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 4096,
    queue_max_bytes: 1000,
    max_bytes: u64::MAX,
    overrun_bytes: 0,
};

struct Fixture {
    disk: CrashDisk,
    log: Recovered,
    ears: Ears,
}

fn fixture() -> Fixture {
    let disk = CrashDisk::new(1);
    let (log, _) = reopen(&disk, OPTIONS).unwrap();
    Fixture { disk, log, ears: Ears::default() }
}

impl Fixture {
    fn submit(&self, shard: usize, batch: Batch) -> Result<(), Full> {
        self.log.shared.queue.submit(shard, batch, &self.log.shared.stats)
    }

    fn step(&mut self) -> Turn {
        self.log.writer.step(&self.ears)
    }

    fn ask(&mut self, entry: Entry) -> Vec<Told> {
        self.log.shared.queue.ask(entry);
        assert!(matches!(self.step(), Turn::Worked));
        self.ears.take()
    }

    /// Writes one batch durably; returns the number of its segment.
    fn write(&mut self, record: &[u8]) -> u32 {
        self.submit(0, batch(&[record])).unwrap();
        assert!(matches!(self.step(), Turn::Worked));
        let told = self.ears.take();
        let [.., Told::Synced(0, records)] = &told[..] else { panic!("{told:?}") };
        records[0].0.segment()
    }
}

#[test]
fn one_turn_syncs_what_all_shards_submitted_and_tells_each_once() {
    let mut it = fixture();
    for (shard, record) in [(0, b"a"), (1, b"b"), (0, b"c")] {
        it.submit(shard, batch(&[record, b""])).unwrap();
    }
    assert!(matches!(it.step(), Turn::Worked));
    assert!(matches!(it.step(), Turn::Idle));
    let told = it.ears.take();
    let [Told::Synced(0, first), Told::Synced(1, second)] = &told[..] else { panic!("{told:?}") };
    let records: Vec<_> = first.iter().map(|(_, record)| &record[..]).collect();
    assert_eq!(records, [b"a", &b""[..], b"c", b""]);
    assert!(first[1].0 < second[0].0 && second[1].0 < first[2].0, "in the order of submits");
}

#[test]
fn a_full_queue_gives_the_batch_back_and_tells_when_there_is_room() {
    let mut it = fixture();
    it.submit(0, batch(&[&[1; 2000]])).expect("an empty queue takes any batch");
    let Full(back) = it.submit(2, batch(&[b"later"])).unwrap_err();
    assert_eq!(back.records().collect::<Vec<_>>(), [b"later"]);
    it.step();
    assert!(matches!(it.ears.take()[..], [Told::Synced(0, _), Told::Room(2)]));
    it.submit(2, back).unwrap();
}

#[test]
fn a_failure_is_told_once_and_tried_again_ever_more_rarely() {
    let mut it = fixture();
    let old = it.write(b"before");
    it.submit(0, batch(&[b"kept"])).unwrap();
    it.disk.fail_one_in(Some(1));
    for wait_ms in [50, 100, 200, 400, 800, 1000, 1000] {
        let Turn::Failed(wait, _) = it.step() else { panic!("the disk refused") };
        assert_eq!(wait, Duration::from_millis(wait_ms));
    }
    assert!(matches!(it.ears.take()[..], [Told::Failing]));
    it.disk.fail_one_in(None);
    it.step();
    let told = it.ears.take();
    let [Told::Healthy, Told::Synced(0, records)] = &told[..] else { panic!("{told:?}") };
    assert!(records[0].0.segment() > old, "the log goes on in a fresh segment");
    assert_eq!(it.disk.list().unwrap().len(), 3, "failed attempts leave no files");
    let (_, records) = reopen(&it.disk.crash(Loss::Power), OPTIONS).unwrap();
    assert_eq!(
        records.iter().map(|(_, it)| &it[..]).collect::<Vec<_>>(),
        [&b"before"[..], b"kept"]
    );
}

/// Each retry once left a segment, because the manifest could not be synced to give it up either:
/// one a second, until the volume was full.
#[test]
fn retries_on_a_disk_that_syncs_nothing_leave_one_file_at_most() {
    let mut it = fixture();
    it.write(b"before");
    it.submit(0, batch(&[b"kept"])).unwrap();
    it.disk.fail_syncs(true);
    let before = it.disk.list().unwrap().len();
    for _ in 0..20 {
        assert!(matches!(it.step(), Turn::Failed(..)));
        assert!(it.disk.list().unwrap().len() <= before + 1);
    }
    let crashed = it.disk.crash(Loss::Process);
    assert_eq!(reopen(&crashed, OPTIONS).unwrap().0.found.abandoned.len(), 1);
    it.disk.fail_syncs(false);
    it.step();
    assert!(matches!(it.ears.take()[..], [Told::Failing, Told::Healthy, Told::Synced(..)]));
    assert_eq!(it.disk.list().unwrap().len(), before + 1, "and the one that is written");
    let first = it.disk.content("00000001.seg");
    let end = it.log.shared.segment(1).unwrap().end();
    assert_eq!(first.len(), end as usize, "nothing is left behind its last record");
    let (_, records) = reopen(&it.disk.crash(Loss::Power), OPTIONS).unwrap();
    assert_eq!(records.len(), 2);
}

#[test]
fn a_batch_longer_than_a_segment_has_one_of_its_own() {
    let mut it = fixture();
    let segments = [&[1; 100][..], &[2; 9000], &[3; 100]].map(|record| it.write(record));
    assert_eq!(segments, [1, 2, 3]);
    let (recovered, records) = reopen(&it.disk.crash(Loss::Power), OPTIONS).unwrap();
    assert_eq!(records.iter().map(|(_, it)| it.len()).collect::<Vec<_>>(), [100, 9000, 100]);
    assert_eq!(recovered.found.segments, 3);
}

#[test]
fn only_the_oldest_segment_is_dropped_and_never_the_newest() {
    let mut it = fixture();
    let first = it.write(b"1");
    let told = it.ask(Entry::Drop { segment: first });
    assert!(matches!(told[..], [Told::Dropped(1, Err(DropError::Newest(1)))]));
    it.ask(Entry::Roll);
    let second = it.write(b"2");
    assert_eq!((first, second), (1, 2));
    let told = it.ask(Entry::Drop { segment: second });
    assert!(matches!(told[..], [Told::Dropped(2, Err(DropError::NotOldest(2)))]));
    let told = it.ask(Entry::Drop { segment: first });
    assert!(matches!(told[..], [Told::Dropped(1, Ok(()))]));
    assert!(matches!(it.log.shared.segment(1), Err(ReadError::Gone(1))));
    assert_eq!(it.log.shared.oldest().unwrap().number, 2);
}

#[test]
fn the_end_waits_for_what_was_submitted_and_gives_up_on_a_broken_disk() {
    for is_broken in [false, true] {
        let it = fixture();
        it.submit(0, batch(&[b"one", b"two"])).unwrap();
        it.disk.fail_one_in(is_broken.then_some(1));
        it.log.shared.queue.close();
        let ended = it.log.writer.run(&it.ears);
        assert_eq!(ended.map_err(|error| error.records), if is_broken { Err(2) } else { Ok(()) });
    }
}

#[test]
fn a_segment_is_read_in_pieces() {
    let disk = CrashDisk::new(1);
    let (mut log, _) = reopen(&disk, LogOptions::default()).unwrap();
    let mut batch = Batch::default();
    (0..50_000u32).for_each(|n| batch.push(&n.to_le_bytes().repeat(1 + n as usize % 20)));
    batch.push(&[7; 3 << 20]);
    batch.push(b"last");
    let expected: Vec<_> = batch.records().map(<[u8]>::to_vec).collect();
    log.shared.queue.submit(0, batch, &log.shared.stats).unwrap();
    log.writer.step(&Ears::default());
    let (mut found, mut next, mut pieces) = (Vec::new(), None, 0);
    loop {
        let visit = &mut |position, record: &[u8]| found.push((position, record.to_vec()));
        next = log.shared.read_segment(1, next, visit).unwrap();
        pieces += 1;
        if next.is_none() {
            break;
        }
    }
    assert!(pieces > 3);
    assert!(found.iter().map(|(_, record)| record).eq(&expected));
    assert!(found.is_sorted_by_key(|(position, _)| *position));
    let (_, replayed) = reopen(&disk, LogOptions::default()).unwrap();
    assert_eq!(replayed, found);
}
