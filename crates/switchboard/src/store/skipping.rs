//! A disk with sectors that cannot be read, as a repair must take it: they read as zeros, which is no
//! record, and so what lies behind them is found.

use std::io::{self, IoSlice};

use super::{Disk, DiskFile, is_damage};

/// The unit in which a disk loses what it held, on all that are in use.
const SECTOR: u64 = 4096;

/// Reads zeros where the disk cannot read.
#[derive(Debug)]
pub(super) struct SkippingDisk<'a>(pub(super) &'a dyn Disk);

#[derive(Debug)]
struct SkippingFile(Box<dyn DiskFile>);

impl Disk for SkippingDisk<'_> {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.0.create(name)
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SkippingFile(self.0.open(name)?)))
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
        self.0.size()
    }

    /// As far as the end of a sector, so that only what cannot be read is skipped.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let first = match self.0.read_at(buffer, offset) {
            Err(error) if is_damage(&error) => error,
            read => return read,
        };
        let to_end = (SECTOR - offset % SECTOR).min(self.0.size()?.saturating_sub(offset));
        let len = buffer.len().min(to_end as usize);
        match self.0.read_at(&mut buffer[..len], offset) {
            Err(error) if is_damage(&error) && len > 0 => {
                buffer[..len].fill(0);
                Ok(len)
            }
            Err(_) if len == 0 => Err(first),
            read => read,
        }
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.0.write_at(slices, offset)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of three sectors, of which the second cannot be read.
    #[derive(Debug)]
    struct BadSector;

    impl DiskFile for BadSector {
        fn size(&self) -> io::Result<u64> {
            Ok(3 * SECTOR)
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let end = (offset + buffer.len() as u64).min(3 * SECTOR);
            if offset < 2 * SECTOR && end > SECTOR {
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

    /// One sector that cannot be read made a repair give up all of the log.
    #[test]
    fn what_cannot_be_read_is_zeros_and_the_rest_is_what_it_was() {
        let file = SkippingFile(Box::new(BadSector));
        let mut all = vec![1; 3 * SECTOR as usize];
        super::super::segment::read_exact_at(&file, "a file", &mut all, 0).unwrap();
        let expected = [7, 0, 7].map(|byte| vec![byte; SECTOR as usize]).concat();
        assert_eq!(all, expected);
    }
}
