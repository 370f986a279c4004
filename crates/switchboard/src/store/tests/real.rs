//! The log on the real disk, with its thread.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::{Told, batch};
use crate::store::queue::Entry;
use crate::store::writer::Turn;
use crate::store::{
    DataDir, Disk, DropError, Full, Listener, Log, LogOptions, OpenError, Position, Recovered,
    StoreError, Synced, inspect, open,
};

/// A listener that passes on synced batches; no other call comes on a disk that works.
struct Ears(Sender<(usize, Vec<Synced>)>);

impl Listener for Ears {
    fn synced(&self, shard: usize, batches: Vec<Synced>) {
        self.0.send((shard, batches)).ok();
    }
    fn room(&self, _shard: usize) {}
    fn failing(&self, error: &StoreError) {
        panic!("{error}");
    }
    fn healthy(&self) {}
    fn dropped(&self, _segment: u32, _result: Result<(), DropError>) {}
}

fn start(dir: &Path, options: LogOptions) -> (Log, Receiver<(usize, Vec<Synced>)>, u64) {
    let disk = Arc::new(DataDir::open(dir).unwrap());
    let recovered = open(disk, options, &mut |_, _| Ok(())).unwrap();
    let (sender, receiver) = channel();
    let records = recovered.found.records;
    (recovered.start(Box::new(Ears(sender))).unwrap(), receiver, records)
}

#[test]
fn two_shards_append_read_back_and_find_all_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
    let (log, synced, _) = start(dir.path(), options);
    thread::scope(|scope| {
        for shard in 0..2u8 {
            let log = &log;
            scope.spawn(move || {
                for n in 0..500u32 {
                    let record = [&[shard][..], &n.to_le_bytes(), &[9; 300]].concat();
                    log.submit(shard.into(), batch(&[&record])).unwrap();
                }
            });
        }
    });
    log.close().unwrap();
    let mut next = [0u32; 2];
    for (shard, batches) in synced.try_iter() {
        for synced in &batches {
            for (position, record) in synced.positions().zip(synced.batch.records()) {
                assert_eq!(record[..5], [&[shard as u8][..], &next[shard].to_le_bytes()].concat());
                next[shard] += 1;
                let mut read = Vec::new();
                log.read(position, &mut read).unwrap();
                assert_eq!(read, record);
            }
        }
    }
    assert_eq!(next, [500; 2]);
    assert!(log.usage().segments > 3);
    let Full(_) = log.submit(0, batch(&[b"late"])).expect_err("the log is closed");
    drop(log);
    assert_eq!(start(dir.path(), options).2, 1000);
}

#[test]
fn a_second_process_is_refused_until_the_first_ends() {
    let dir = tempfile::tempdir().unwrap();
    let first = DataDir::open(dir.path()).unwrap();
    let error = DataDir::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    drop(first);
    DataDir::open(dir.path()).unwrap();
}

/// The names once led into the directory that had replaced the locked one.
#[test]
fn a_directory_that_was_moved_is_the_one_that_is_worked_in() {
    let home = tempfile::tempdir().unwrap();
    let (here, moved) = (home.path().join("data"), home.path().join("moved"));
    let first = DataDir::open(&here).unwrap();
    first.create("00000001.seg").unwrap();
    std::fs::rename(&here, &moved).unwrap();
    let second = DataDir::open(&here).unwrap();
    for name in ["00000001.seg", "00000002.seg", "MANIFEST"] {
        second.create(name).unwrap();
    }
    assert_eq!(first.list().unwrap(), ["00000001.seg"]);
    first.create("MANIFEST").unwrap();
    first.create("00000003.seg").unwrap();
    first.delete("00000001.seg").unwrap();
    first.sync_dir().unwrap();
    first.open("00000002.seg").unwrap_err();
    let names = |dir: &Path| {
        let names = std::fs::read_dir(dir.join("log")).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&moved), ["00000003.seg"]);
    assert_eq!(names(&here), ["00000001.seg", "00000002.seg"]);
}

#[test]
fn a_look_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, synced, _) = start(dir.path(), LogOptions::default());
    log.submit(0, batch(&[b"one"])).unwrap();
    synced.recv().unwrap();
    let manifest = std::fs::read(dir.path().join("MANIFEST")).unwrap();
    log.close().unwrap();
    drop(log);
    // As if it had not been closed.
    std::fs::write(dir.path().join("MANIFEST"), manifest).unwrap();
    let segment = dir.path().join("log/00000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[64 + 12 + 3 + 100] = 1;
    std::fs::write(&segment, &bytes).unwrap();
    let mut positions: Vec<Position> = Vec::new();
    let disk = DataDir::open(dir.path()).unwrap();
    let found = inspect(&disk, &mut |position, _| {
        positions.push(position);
        Ok(())
    });
    assert_eq!(found.unwrap().cut.unwrap().bytes, 101);
    assert_eq!(
        positions
            .iter()
            .map(|position| (position.segment(), position.offset()))
            .collect::<Vec<_>>(),
        [(1, 64)]
    );
    assert!(std::fs::read(&segment).unwrap() == bytes);
}

/// Messages that were accepted after the file was removed were once lost with the process.
#[test]
fn a_file_that_is_gone_fails_the_log_until_it_is_back() {
    let home = tempfile::tempdir().unwrap();
    let aside = home.path().join("aside");
    let dir = home.path().join("data");
    let disk = Arc::new(DataDir::open(&dir).unwrap());
    let options = LogOptions { segment_bytes: 4096, ..LogOptions::default() };
    let mut log = open(disk, options, &mut |_, _| Ok(())).unwrap();
    let ears = super::Ears::default();
    let submit = |log: &Recovered| {
        log.shared.queue.submit(0, batch(&[&[1; 3000]]), &log.shared.stats).unwrap();
    };
    // More segments than one look looks for.
    for _ in 0..70 {
        submit(&log);
        assert!(matches!(log.writer.step(&ears), Turn::Worked));
    }
    ears.take();
    // The first is the one that is written.
    let files = ["log/00000070.seg", "MANIFEST", "log", "log/00000001.seg", "log/00000040.seg"];
    for name in files {
        let looks = |log: &mut Recovered| {
            for _ in 0..4 {
                log.shared.queue.ask(Entry::Look);
                assert!(matches!(log.writer.step(&ears), Turn::Worked));
            }
            ears.take()
        };
        assert!(looks(&mut log).is_empty(), "all is there");
        std::fs::rename(dir.join(name), &aside).unwrap();
        assert!(matches!(looks(&mut log)[..], [Told::Failing]), "{name} is gone");
        submit(&log);
        let Turn::Failed(_, error) = log.writer.step(&ears) else { panic!("{name} is gone") };
        assert!(error.to_string().starts_with("cannot find "), "{error}");
        std::fs::rename(&aside, dir.join(name)).unwrap();
        assert!(matches!(log.writer.step(&ears), Turn::Worked));
        assert!(matches!(ears.take()[..], [Told::Healthy, Told::Synced(..)]), "{name} is back");
    }
    let mut found = 0;
    drop(log);
    open(Arc::new(DataDir::open(&dir).unwrap()), options, &mut |_, _| {
        found += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(found, 70 + files.len());
}

/// A listener that passes on failures.
struct Failures(Sender<String>);

impl Listener for Failures {
    fn synced(&self, _shard: usize, _batches: Vec<Synced>) {}
    fn room(&self, _shard: usize) {}
    fn failing(&self, error: &StoreError) {
        self.0.send(error.to_string()).ok();
    }
    fn healthy(&self) {}
    fn dropped(&self, _segment: u32, _result: Result<(), DropError>) {}
}

/// The reader's thread asked for the looks. While a read hung, messages were accepted into a log
/// whose `MANIFEST` was gone.
#[test]
fn a_file_that_is_gone_is_noticed_though_nobody_asks_for_a_look() {
    let home = tempfile::tempdir().unwrap();
    let disk = Arc::new(DataDir::open(home.path()).unwrap());
    let recovered = open(disk, LogOptions::default(), &mut |_, _| Ok(())).unwrap();
    let (sender, failures) = channel();
    let log = recovered.start(Box::new(Failures(sender))).unwrap();
    let manifest = home.path().join("MANIFEST");
    std::fs::rename(&manifest, home.path().join("aside")).unwrap();
    let error = failures.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    assert!(error.starts_with("cannot find MANIFEST"), "{error}");
    std::fs::rename(home.path().join("aside"), &manifest).unwrap();
    log.close().unwrap();
}
