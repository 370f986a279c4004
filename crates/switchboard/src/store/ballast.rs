//! A file that takes space while there is some, and gives it up when others took the last of it.
//!
//! A log on a full disk could not write the acks that make its segments dead, and so would stay
//! full. The ballast makes room for them. It is given up in pieces, as the process that filled the
//! disk may also take what becomes free.

use std::io::ErrorKind;
use std::sync::Arc;

use super::{Disk, DiskFile, StoreError};

/// Its name in the data directory.
const NAME: &str = "ballast";
/// A piece is at least this fraction of the ballast.
const PIECES: u64 = 8;

/// Space that is set aside.
#[derive(Debug)]
pub(super) struct Ballast {
    disk: Arc<dyn Disk>,
    file: Option<Box<dyn DiskFile>>,
    target: u64,
    len: u64,
    /// Set once this run has allocated all blocks of the file: a copy of it may be sparse.
    is_allocated: bool,
}

impl Ballast {
    /// Returns the ballast that an earlier run set aside, whole or not.
    pub(super) fn find(disk: Arc<dyn Disk>, target: u64) -> Ballast {
        // An error shows again in `fill`, which reports it.
        let file = disk.open(NAME).ok();
        let len = file.as_ref().and_then(|file| file.size().ok()).unwrap_or(0);
        Ballast { disk, file, target, len, is_allocated: false }
    }

    /// Returns the bytes of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Returns the bytes that are missing.
    pub(super) fn lacking(&self) -> u64 {
        self.target.saturating_sub(self.len)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.target == 0 || (self.is_allocated && self.lacking() == 0)
    }

    /// Makes it whole. After an error it is as large as before.
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
        // `fallocate` never shrinks a file: one of a larger target must be cut down as well.
        let filled = file.allocate(self.target).and_then(|()| file.truncate(self.target));
        if let Err(error) = filled {
            // A `fallocate` that fails with ENOSPC may keep the blocks that it got (ext4), and
            // on a disk that is this full others need them more.
            file.truncate(self.len).ok();
            return Err(StoreError::new("allocate", NAME, error));
        }
        (self.len, self.is_allocated) = (self.target, true);
        Ok(())
    }

    /// Gives up a piece, of at least `bytes` if it is large enough; false if nothing is left.
    pub(super) fn give_up(&mut self, bytes: u64) -> bool {
        let Some(file) = self.file.as_ref().filter(|_| self.len > 0) else { return false };
        // Parts of the whole, not of what is left: those would become ever smaller and never end.
        let len = self.len.saturating_sub(bytes.max(self.len.max(self.target) / PIECES));
        if file.truncate(len).is_err() {
            return false;
        }
        self.len = len;
        true
    }

    /// Gives up the file itself, whose inode lets another file be made; false if there is none.
    pub(super) fn give_up_file(&mut self) -> bool {
        (self.file, self.len, self.is_allocated) = (None, 0, false);
        self.disk.delete(NAME).is_ok()
    }

    /// Gives up filling it: this disk cannot have one.
    pub(super) fn forgo(&mut self) {
        self.target = 0;
    }
}

/// Gives up all of it, with its inode, so that a start on a full disk can repair what it must.
pub(super) fn give_up_all(disk: &dyn Disk) -> bool {
    // First, as a deletion may need space itself.
    let is_given_up = disk.open(NAME).is_ok_and(|file| file.truncate(0).is_ok());
    disk.delete(NAME).is_ok() || is_given_up
}

#[cfg(test)]
mod tests {
    use super::super::DataDir;
    use super::*;

    /// The error was once "File exists".
    #[test]
    fn a_ballast_that_cannot_be_opened_is_said_to_be_that() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(NAME)).unwrap();
        let disk = Arc::new(DataDir::open(dir.path()).unwrap());
        let error = Ballast::find(disk, 100).fill().unwrap_err().to_string();
        assert!(error.starts_with("cannot open ballast: Is a directory"), "{error}");
    }
}
