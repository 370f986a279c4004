//! A disk that hangs.

use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::crash_disk::CrashDisk;
use super::{Ears, batch};
use crate::store::{Disk, DiskFile, Log, LogOptions, open};

/// A disk on which syncs return only once the door is open.
#[derive(Clone, Debug)]
struct HangingDisk {
    disk: CrashDisk,
    door: Arc<(Mutex<bool>, Condvar)>,
}

#[derive(Debug)]
struct HangingFile {
    file: Box<dyn DiskFile>,
    door: Arc<(Mutex<bool>, Condvar)>,
}

impl HangingDisk {
    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(HangingFile { file, door: self.door.clone() })
    }

    /// A disk that does not hang yet.
    fn new() -> HangingDisk {
        HangingDisk { disk: CrashDisk::new(1), door: Arc::new((Mutex::new(true), Condvar::new())) }
    }

    /// Opens a log on it.
    fn log(&self) -> Log {
        let disk = Arc::new(self.clone());
        let recovered = open(disk, LogOptions::default(), &mut |_, _| Ok(())).unwrap();
        recovered.start(Box::new(Ears::default())).unwrap()
    }

    fn shut_door(&self) {
        *self.door.0.lock().unwrap() = false;
    }

    fn open_door(&self) {
        *self.door.0.lock().unwrap() = true;
        self.door.1.notify_all();
    }
}

impl Disk for HangingDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.disk.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.disk.open(name)?))
    }
    fn delete(&self, name: &str) -> io::Result<()> {
        self.disk.delete(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
    fn fresh_id(&self) -> io::Result<u64> {
        self.disk.fresh_id()
    }
}

impl DiskFile for HangingFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_at(slices, offset)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        let (is_open, changed) = &*self.door;
        drop(changed.wait_while(is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
        self.file.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// A stop once waited for the disk for ever, and said nothing.
#[test]
fn the_end_gives_up_on_a_disk_that_hangs_and_says_what_is_lost() {
    let disk = HangingDisk::new();
    let log = disk.log();
    disk.shut_door();
    log.submit(0, batch(&[b"one", b"two"])).unwrap();
    let error = log.close_within(Duration::from_millis(10)).unwrap_err();
    assert_eq!(error.records, 2);
    let said = error.to_string();
    assert!(said.starts_with("2 records could not be made durable"), "{said}");
    assert!(said.contains("does not answer"), "{said}");
    disk.open_door();
}

/// A stop at which only `MANIFEST` hung once ended with "0 records could not be made durable".
#[test]
fn an_end_that_cannot_be_noted_loses_nothing_and_says_so() {
    let disk = HangingDisk::new();
    let log = disk.log();
    disk.shut_door();
    let error = log.close_within(Duration::from_millis(10)).unwrap_err();
    assert_eq!(error.records, 0);
    assert!(error.to_string().starts_with("all records are durable"), "{error}");
    disk.open_door();
}

#[test]
fn the_batch_of_a_shard_that_ends_is_taken_by_a_full_queue() {
    let disk = CrashDisk::new(1);
    let options = LogOptions { queue_max_bytes: 10, ..LogOptions::default() };
    let recovered = open(Arc::new(disk.clone()), options, &mut |_, _| Ok(())).unwrap();
    recovered.shared.queue.submit(0, batch(&[b"one"]), &recovered.shared.stats).unwrap();
    recovered.shared.queue.submit(0, batch(&[b"two"]), &recovered.shared.stats).unwrap_err();
    let log = recovered.start(Box::new(Ears::default())).unwrap();
    log.submit_last(0, batch(&[b"two"]));
    log.close().unwrap();
    let mut count = 0;
    let count_all = &mut |_, _: &[u8]| {
        count += 1;
        Ok(())
    };
    open(Arc::new(disk), options, count_all).unwrap();
    assert_eq!(count, 2);
}
