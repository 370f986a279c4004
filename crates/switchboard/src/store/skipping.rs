//! A view of a disk in which lost sectors read as zeros, for repair and compaction: zeros are no
//! record, so the intact records behind them are found.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Disk, DiskFile, is_damage};

/// Unit in which a disk loses data: no disk in use has larger sectors.
pub(crate) const SECTOR: u64 = 4096;

/// A disk whose lost sectors read as zeros.
#[derive(Debug)]
pub(super) struct SkippingDisk<'a>(pub(super) &'a dyn Disk);

/// A file whose lost sectors read as zeros, and so do bytes behind its end.
#[derive(Debug)]
pub(super) struct SkippingFile {
    file: Arc<dyn DiskFile>,
    lost: Mutex<Lost>,
}

/// The sectors known to be lost. Each is asked for twice at most, since a disk may take many
/// seconds to fail a read.
#[derive(Debug, Default)]
struct Lost {
    sectors: BTreeSet<u64>,
    /// End of a longer read that failed: up to here sectors are read one by one.
    single_to: u64,
}

impl SkippingFile {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> SkippingFile {
        SkippingFile { file, lost: Mutex::default() }
    }
}

impl Lost {
    /// Returns how many of `len` bytes at `offset` may be read at once.
    fn readable(&self, offset: u64, len: usize) -> usize {
        let sector = offset / SECTOR;
        let most = match self.sectors.range(sector + 1..).next() {
            _ if offset < self.single_to => to_sector_end(offset),
            Some(lost) => lost * SECTOR - offset,
            None => u64::MAX,
        };
        len.min(usize::try_from(most).unwrap_or(usize::MAX))
    }
}

/// Returns the bytes from `offset` to the end of its sector.
pub(super) fn to_sector_end(offset: u64) -> u64 {
    SECTOR - offset % SECTOR
}

impl Disk for SkippingDisk<'_> {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.0.create(name)
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SkippingFile::new(self.0.open(name)?.into())))
    }
    fn delete(&self, name: &str) -> io::Result<()> {
        self.0.delete(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
    fn fresh_id(&self) -> io::Result<u64> {
        self.0.fresh_id()
    }
}

impl DiskFile for SkippingFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let in_sector = buffer.len().min(to_sector_end(offset) as usize);
        while !lost.sectors.contains(&(offset / SECTOR)) {
            let len = lost.readable(offset, buffer.len());
            match self.file.read_at(&mut buffer[..len], offset) {
                // Within one sector: this is the lost one.
                Err(error) if is_damage(&error) && len <= in_sector => {
                    lost.sectors.insert(offset / SECTOR);
                }
                Err(error) if is_damage(&error) => lost.single_to = offset + len as u64,
                // Behind the end: the caller believes a length that the file no longer has.
                Ok(0) => break,
                read => return read,
            }
        }
        buffer[..in_sector].fill(0);
        Ok(in_sector)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_at(slices, offset)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A file of three sectors, of which the second cannot be read; counts the reads that included
    /// the second.
    #[derive(Debug, Default)]
    struct BadSector(AtomicUsize);

    impl DiskFile for BadSector {
        fn size(&self) -> io::Result<u64> {
            Ok(3 * SECTOR)
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let end = (offset + buffer.len() as u64).min(3 * SECTOR);
            if offset < 2 * SECTOR && end > SECTOR {
                self.0.fetch_add(1, Ordering::Relaxed);
                return Err(rustix::io::Errno::IO.into());
            }
            buffer.fill(7);
            Ok(end.saturating_sub(offset) as usize)
        }
        fn write_at(&self, _: &mut [IoSlice<'_>], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn truncate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn allocate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
        fn sync_all(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A single sector that cannot be read once made a repair give up all of the log.
    #[test]
    fn what_cannot_be_read_is_zeros_and_the_rest_is_what_it_was() {
        let disk = Arc::new(BadSector::default());
        let file = SkippingFile::new(disk.clone());
        let read = |len: usize, offset| {
            let mut read = vec![1; len];
            super::super::segment::read_exact_at(&file, "a file", &mut read, offset).unwrap();
            read
        };
        let expected = [7, 0, 7, 0].map(|byte| vec![byte; SECTOR as usize]).concat();
        assert_eq!(read(4 * SECTOR as usize, 0), expected);
        for (from, to) in [(10, 20), (4_000, 8_300), (5_000, 5_001), (9_000, 16_384)] {
            assert_eq!(read(to - from, from as u64), expected[from..to]);
        }
        assert_eq!(disk.0.load(Ordering::Relaxed), 2, "it is not asked for again");
    }
}
