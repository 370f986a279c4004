//! Appends any number of records to the log of a stopped server.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use switchboard_broker::Record;

use super::data::Problem;
use crate::persistence::record;
use crate::store::{
    self, Batch, Disk, DropError, Full, Listener, Log, LogOptions, StoreError, Synced,
};

/// Bytes after which a batch is submitted. The exact value matters little: the log's writer
/// combines all queued batches into one write.
const BATCH_BYTES: usize = 1 << 20;

/// An open log that must be [closed](Appender::close): before that, nothing is known to be on
/// disk.
///
/// After a crash in between, a prefix of the records may be there.
#[derive(Debug)]
pub(super) struct Appender {
    log: Log,
    batch: Batch,
    told: Receiver<Told>,
}

/// Messages of the log's writer while the queue is full.
#[derive(Debug)]
enum Told {
    Room,
    Failing,
}

impl Appender {
    pub(super) fn open(disk: Arc<dyn Disk>, options: LogOptions) -> Result<Appender, Problem> {
        let recovered = store::open(disk, options, &mut |_, _| Ok(()));
        let (tell, told) = mpsc::channel();
        let log = recovered.map_err(Problem::failed)?.start(Box::new(Teller(tell)));
        Ok(Appender { log: log.map_err(Problem::failed)?, batch: Batch::default(), told })
    }

    /// Appends a record; waits while the queue is full.
    pub(super) fn push(&mut self, record: &Record<'_>) -> Result<(), Problem> {
        self.batch.push_with(|out| record::write(record, out));
        if self.batch.bytes() < BATCH_BYTES { Ok(()) } else { self.submit() }
    }

    /// Appends a record in bytes, as read from another log.
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
            // A server would wait for the disk to recover; a command reports the failure.
            self.log.close().map_err(Problem::failed)?;
            return Err(Problem::failed("the disk failed for a while; run it again"));
        }
        Ok(())
    }

    /// Waits until everything is on disk.
    pub(super) fn close(mut self) -> Result<(), Problem> {
        self.submit()?;
        self.log.close().map_err(Problem::failed)
    }
}

/// Reports the events that end a wait for the queue; [`Log::close`] tells whether everything is
/// on disk.
#[derive(Debug)]
struct Teller(Sender<Told>);

impl Teller {
    fn tell(&self, told: Told) {
        // Once nothing more is appended, nobody receives.
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

    /// Too small for two batches.
    const SMALL: LogOptions = LogOptions {
        segment_bytes: 2 << 20,
        queue_max_bytes: 1 << 20,
        max_bytes: u64::MAX,
        overrun_bytes: 0,
    };

    /// Enough records for several batches.
    const COUNT: u64 = 300_000;

    fn append(disk: impl Disk + 'static) -> Result<(), Problem> {
        let mut appender = Appender::open(Arc::new(disk), SMALL)?;
        let device = DeviceRef::Name("device");
        (0..COUNT).try_for_each(|seq| appender.push(&Record::Acked { device, seq }))?;
        appender.close()
    }

    #[test]
    fn what_does_not_fit_into_one_batch_or_the_queue_is_appended_in_order() {
        let dir = tempfile::tempdir().unwrap();
        append(DataDir::open(dir.path()).unwrap()).unwrap();
        let mut next = 0;
        let found = inspect(&DataDir::open(dir.path()).unwrap(), &mut |_, bytes| {
            let read = record::read(bytes).map_err(|error| error.to_string())?;
            assert!(matches!(read, Record::Acked { seq, .. } if seq == next), "{read:?}");
            next += 1;
            Ok(())
        });
        assert_eq!(next, COUNT);
        assert!(found.unwrap().segments > 1);
    }

    /// An empty directory on a full disk.
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
