//! A file that takes space while there is some, and gives it up when others took the last of it.
//!
//! A log on a full disk could not write the acks that would make segments of it dead, and so would
//! stay full. The ballast pays for them. It is given up in pieces, as whoever filled the disk may
//! also take what becomes free.

use std::io::ErrorKind;
use std::sync::Arc;

use super::{Disk, DiskFile, StoreError};

/// Its name in the data directory.
const NAME: &str = "ballast";
/// A piece is at least one part in so many.
const PIECES: u64 = 8;

/// Space that is set aside.
#[derive(Debug)]
pub(super) struct Ballast {
    disk: Arc<dyn Disk>,
    file: Option<Box<dyn DiskFile>>,
    target: u64,
    len: u64,
    /// This run has seen to it that all of the file has blocks. A copy of it may be sparse.
    is_allocated: bool,
}

impl Ballast {
    /// Finds what an earlier run set aside.
    pub(super) fn find(disk: Arc<dyn Disk>, target: u64) -> Ballast {
        let file = disk.open(NAME).ok();
        let len = file.as_ref().and_then(|file| file.size().ok()).unwrap_or(0);
        Ballast { disk, file, target, len, is_allocated: false }
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Returns what is missing of it.
    pub(super) fn lacking(&self) -> u64 {
        self.target.saturating_sub(self.len)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.target == 0 || (self.is_allocated && self.lacking() == 0)
    }

    /// Makes it whole. On an error it is what it was.
    pub(super) fn fill(&mut self) -> Result<(), StoreError> {
        let file = match &self.file {
            Some(file) => file,
            None => {
                let made = match self.disk.open(NAME) {
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        self.disk.create(NAME).map_err(StoreError::of("create", NAME))
                    }
                    opened => opened.map_err(StoreError::of("open", NAME)),
                };
                self.file.insert(made?)
            }
        };
        let filled = file.allocate(self.target).and_then(|()| file.truncate(self.target));
        if let Err(error) = filled {
            // What was taken of a disk that is too full is needed more elsewhere.
            file.truncate(self.len).ok();
            return Err(StoreError::new("allocate", NAME, error));
        }
        (self.len, self.is_allocated) = (self.target, true);
        Ok(())
    }

    /// Gives up a piece, at least `bytes` if there are so many; `false` when nothing is left.
    pub(super) fn give_up(&mut self, bytes: u64) -> bool {
        let Some(file) = self.file.as_ref().filter(|_| self.len > 0) else { return false };
        let len = self.len.saturating_sub(bytes.max(self.len.max(self.target) / PIECES));
        if file.truncate(len).is_err() {
            return false;
        }
        self.len = len;
        true
    }

    /// Does without: this disk cannot have one.
    pub(super) fn forgo(&mut self) {
        self.target = 0;
    }
}

/// Gives up all of it, so that a start on a full disk can repair what it must.
pub(super) fn give_up_all(disk: &dyn Disk) -> bool {
    disk.open(NAME).is_ok_and(|file| file.truncate(0).is_ok())
}

#[cfg(test)]
mod tests {
    use super::super::DataDir;
    use super::*;

    /// "File exists" was what the log said.
    #[test]
    fn a_ballast_that_cannot_be_opened_is_said_to_be_that() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(NAME)).unwrap();
        let disk = Arc::new(DataDir::open(dir.path()).unwrap());
        let error = Ballast::find(disk, 100).fill().unwrap_err().to_string();
        assert!(error.starts_with("cannot open ballast: Is a directory"), "{error}");
    }
}
