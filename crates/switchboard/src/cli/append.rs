//! Appends to the log of a stopped server, however much it is.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use switchboard_broker::Record;

use super::data::Problem;
use crate::persistence::record;
use crate::store::{
    self, Batch, Disk, DropError, Full, Listener, Log, Options, StoreError, Synced,
};

/// Bytes after which a batch is submitted. It is as good as any: the writer puts into one write
/// what is queued.
const BATCH_BYTES: usize = 1 << 20;

/// An open log, to be [closed](Appender::close): before that, nothing is known to be on disk.
///
/// After a crash in between, a first part of the records may be there.
#[derive(Debug)]
pub(super) struct Appender {
    log: Log,
    batch: Batch,
    told: Receiver<Told>,
}

/// What the log's writer says while the queue is full.
#[derive(Debug)]
enum Told {
    Room,
    Failing,
}

impl Appender {
    pub(super) fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Appender, Problem> {
        let recovered = store::open(disk, options, &mut |_, _| Ok(()));
        let (tell, told) = mpsc::channel();
        let log = recovered.map_err(Problem::failed)?.start(Box::new(Teller(tell)));
        Ok(Appender { log: log.map_err(Problem::failed)?, batch: Batch::default(), told })
    }

    /// Appends a record behind all others; waits while the queue is full.
    pub(super) fn push(&mut self, record: &Record<'_>) -> Result<(), Problem> {
        self.batch.push_with(|out| record::write(record, out));
        if self.batch.bytes() < BATCH_BYTES { Ok(()) } else { self.submit() }
    }

    /// Appends a record that was read from another log.
    pub(super) fn push_bytes(&mut self, record: &[u8]) -> Result<(), Problem> {
        self.batch.push(record);
        if self.batch.bytes() < BATCH_BYTES { Ok(()) } else { self.submit() }
    }

    fn submit(&mut self) -> Result<(), Problem> {
        let mut batch = std::mem::take(&mut self.batch);
        while let Err(Full(back)) = self.log.submit(0, batch) {
            batch = back;
            if let Ok(Told::Room) = self.told.recv() {
                continue;
            }
            // A server would wait for the disk to recover. Who runs a command is told.
            self.log.close().map_err(Problem::failed)?;
            return Err(Problem::failed("the disk failed for a while; run it again"));
        }
        Ok(())
    }

    /// Everything is on disk when this returns.
    pub(super) fn close(mut self) -> Result<(), Problem> {
        self.submit()?;
        self.log.close().map_err(Problem::failed)
    }
}

/// Passes on what ends a wait; [`Log::close`] says whether all is on disk.
#[derive(Debug)]
struct Teller(Sender<Told>);

impl Teller {
    fn tell(&self, told: Told) {
        // Once nothing more is appended, nobody waits.
        self.0.send(told).ok();
    }
}

impl Listener for Teller {
    fn synced(&self, _: usize, _: Vec<Synced>) {}

    fn room(&self, _: usize) {
        self.tell(Told::Room);
    }

    fn failing(&self, _: &StoreError) {
        self.tell(Told::Failing);
    }

    fn healthy(&self) {}

    fn dropped(&self, _: u32, _: Result<(), DropError>) {}
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind};

    use switchboard_proto::v1::DeviceRef;

    use super::*;
    use crate::store::{DataDir, DiskFile, inspect};

    /// Two batches do not fit.
    const SMALL: Options = Options {
        segment_bytes: 2 << 20,
        queue_max_bytes: 1 << 20,
        max_bytes: u64::MAX,
        overrun_bytes: 0,
    };

    /// The records of several batches.
    const COUNT: u64 = 300_000;

    fn append(disk: impl Disk + 'static) -> Result<(), Problem> {
        let mut appender = Appender::open(Arc::new(disk), SMALL)?;
        let device = DeviceRef::Name("device");
        (0..COUNT).try_for_each(|seq| appender.push(&Record::Removed { device, seq }))?;
        appender.close()
    }

    #[test]
    fn what_does_not_fit_into_one_batch_or_the_queue_is_appended_in_order() {
        let dir = tempfile::tempdir().unwrap();
        append(DataDir::open(dir.path()).unwrap()).unwrap();
        let mut next = 0;
        let found = inspect(&DataDir::open(dir.path()).unwrap(), true, &mut |_, bytes| {
            let read = record::read(bytes).map_err(|error| error.to_string())?;
            assert!(matches!(read, Record::Removed { seq, .. } if seq == next), "{read:?}");
            next += 1;
            Ok(())
        });
        assert_eq!(next, COUNT);
        assert!(found.unwrap().segments > 1);
    }

    /// An empty directory of a disk that is full.
    #[derive(Debug)]
    struct FullDisk;

    impl Disk for FullDisk {
        fn list(&self) -> io::Result<Vec<String>> {
            Ok(Vec::new())
        }

        fn create(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
            Err(ErrorKind::StorageFull.into())
        }

        fn open(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
            Err(ErrorKind::NotFound.into())
        }

        fn delete(&self, _: &str) -> io::Result<()> {
            Err(ErrorKind::NotFound.into())
        }

        fn sync_dir(&self) -> io::Result<()> {
            Ok(())
        }

        fn fresh_id(&self) -> io::Result<u64> {
            Ok(1)
        }
    }

    #[test]
    fn a_disk_that_fails_is_told_and_not_waited_for() {
        let problem = append(FullDisk).unwrap_err();
        assert!(problem.words.contains("no storage space"), "{problem:?}");
    }
}
