//! Errors of the log, one type for each operation.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::{Disk, DiskFile};

/// Reason why the log cannot be opened. Only an attempt that ends in [`OpenError::Io`] may have
/// changed something on disk.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another running process holds the lock on the directory.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The log was written by a newer version of this program.
    #[error("{file} has format version {found}, and this program knows versions up to {known}")]
    Newer {
        /// Name of the file, `MANIFEST` or a segment.
        file: String,
        /// Its format version.
        found: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// The log was written by a version whose format is no longer read.
    #[error(transparent)]
    Older(#[from] OlderFormat),
    /// A synced part of the log cannot be read any more.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Damaged {
        /// Name of the segment's file.
        file: String,
        /// Offset at which the damage begins.
        offset: u64,
        /// The finding, for the operator.
        what: &'static str,
    },
    /// A part of the log is gone, or belongs to another log.
    #[error("{file} {what}")]
    Wrong {
        /// Name of the file.
        file: String,
        /// The finding; completes a sentence that begins with the name.
        what: &'static str,
    },
    /// The replay did not understand a record.
    #[error("{file} has a record at byte {offset} that cannot be used: {reason}")]
    Record {
        /// Name of the segment's file.
        file: String,
        /// Offset at which the record begins.
        offset: u64,
        /// The replay's error.
        reason: String,
    },
    /// The disk failed an operation.
    #[error(transparent)]
    Io(#[from] StoreError),
}

impl OpenError {
    /// Returns true if the log has lost something, so that another attempt is of no use. Any other
    /// error, such as too many open files or missing permissions, says nothing about what the disk
    /// holds.
    pub fn is_damage(&self) -> bool {
        match self {
            OpenError::InUse(_) | OpenError::Newer { .. } | OpenError::Older(_) => false,
            OpenError::Damaged { .. } | OpenError::Wrong { .. } | OpenError::Record { .. } => true,
            OpenError::Io(error) => error.is_damage() || error.is_missing(),
        }
    }
}

/// A file is of a format that is no longer read.
#[derive(Debug, Error)]
#[error(
    "{file} has format version {found}, which only versions of 0.1 from before its first release wrote: \
     start with an empty data directory, or run the version that wrote it"
)]
pub struct OlderFormat {
    /// Its name, or its path.
    pub file: String,
    /// Its format version.
    pub found: u32,
}

/// An operation that the disk failed.
#[derive(Debug, Error)]
#[error("cannot {doing} {file}{}: {cause}", at(*offset))]
pub struct StoreError {
    pub(super) doing: &'static str,
    pub(super) file: String,
    /// Offset in the file of a read that failed.
    pub(super) offset: Option<u64>,
    // Not called `source`: the message contains it, and a printed chain of causes would repeat it.
    pub(super) cause: io::Error,
}

/// Advice about a file that no name leads to any more.
const GONE: &str = "it, or the directory that it was in, was removed or replaced while the server ran; \
                    move that very file back, and the server goes on; or stop the server, put a copy of \
                    the file in its place, restore the whole data directory from a backup or run \
                    `switchboard store repair`, which keeps what is intact, and start it";

fn at(offset: Option<u64>) -> String {
    offset.map_or_else(String::new, |offset| format!(" at byte {offset}"))
}

impl StoreError {
    pub(super) fn new(doing: &'static str, file: &str, cause: io::Error) -> StoreError {
        StoreError { doing, file: file.to_owned(), offset: None, cause }
    }

    /// A read of the file at `offset` that failed.
    pub(super) fn reading(file: &str, offset: u64, cause: io::Error) -> StoreError {
        StoreError { offset: Some(offset), ..StoreError::new("read", file, cause) }
    }

    /// Fails if a start would not find this open file under its name.
    pub(super) fn unless_found(
        disk: &dyn Disk,
        name: &str,
        file: &dyn DiskFile,
    ) -> Result<(), StoreError> {
        if disk.finds(name, file).map_err(StoreError::of("look for", name))? {
            return Ok(());
        }
        Err(StoreError::new("find", name, io::Error::new(io::ErrorKind::NotFound, GONE)))
    }

    /// For `map_err`: names what was attempted.
    pub(super) fn of<'a>(
        doing: &'static str,
        file: &'a str,
    ) -> impl FnOnce(io::Error) -> StoreError + use<'a> {
        move |cause| StoreError::new(doing, file, cause)
    }

    /// Returns true if the disk, or a quota on it, is full.
    pub fn is_no_space(&self) -> bool {
        is_no_space(&self.cause)
    }

    /// Returns true if the disk, or a quota on it, takes no more files. There may be space.
    pub(super) fn is_no_file(&self) -> bool {
        self.doing == "create" && self.is_no_space()
    }

    /// Returns true if the disk does not return what was written: another attempt is of no use.
    pub fn is_damage(&self) -> bool {
        // EIO from a write or a sync says nothing about what is already stored.
        ["open", "read", "list"].contains(&self.doing) && is_damage(&self.cause)
    }

    /// Returns true if a name leads to no file.
    fn is_missing(&self) -> bool {
        self.doing == "open" && self.cause.kind() == io::ErrorKind::NotFound
    }

    /// Returns the offset in the file of a read that failed.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// Returns the operating system's error.
    pub fn io(&self) -> &io::Error {
        &self.cause
    }
}

/// Returns true for an error that says that the disk, or a quota on it, is full.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Returns true for a read error that means damage: a sector or a block of the file system is lost
/// (see read(2), and what ext4, XFS and dm-integrity return for a wrong checksum), or something
/// other than a file is in its place.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const DAMAGE: [Errno; 9] = [
        Errno::IO,
        Errno::NODATA,
        Errno::UCLEAN,
        Errno::BADMSG,
        Errno::ILSEQ,
        Errno::ISDIR,
        Errno::NOTDIR,
        Errno::LOOP,
        Errno::NXIO,
    ];
    error.kind() == io::ErrorKind::IsADirectory
        || Errno::from_io_error(error).is_some_and(|errno| DAMAGE.contains(&errno))
}

/// Reason why a record cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The segment was dropped, or there never was one.
    #[error("segment {0} is gone")]
    Gone(u32),
    /// There is no intact record at that offset.
    #[error("{file} holds no intact record at byte {offset}")]
    Damaged {
        /// Name of the segment's file.
        file: String,
        /// Offset at which a record was expected.
        offset: u32,
    },
    /// The disk failed an operation.
    #[error(transparent)]
    Io(#[from] StoreError),
}

/// Reason why a segment was not dropped.
#[derive(Debug, Error)]
pub enum DropError {
    /// It is not the oldest one.
    #[error("segment {0} is not the oldest")]
    NotOldest(u32),
    /// It is the newest one with synced records.
    #[error("segment {0} is the newest")]
    Newest(u32),
    /// The disk failed an operation. The segment may or may not be gone; the drop can be retried.
    #[error(transparent)]
    Io(#[from] StoreError),
}

/// The log could not be closed in order.
#[derive(Debug, Error)]
#[error("{}: {error}", not_closed(*records))]
pub struct CloseError {
    /// Number of records that never became durable. If it is 0 nothing is lost, and the next start
    /// recovers as after a crash.
    pub records: usize,
    /// The error of the last attempt.
    pub error: StoreError,
}

fn not_closed(records: usize) -> String {
    match records {
        0 => "all records are durable, but that the log is closed could not be noted, and the next start \
              takes it for a crash"
            .to_owned(),
        _ => format!("{records} records could not be made durable, none of which had been accepted"),
    }
}
