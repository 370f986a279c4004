//! The disk as the log sees it, and its real implementation.

use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dir::{Dir, FileId};
use super::segment::number_of;
use super::{Known, OpenError, Space, StoreError, identify};

/// A directory of files. Names are plain file names.
///
/// A creation or deletion is certain to survive a crash only once [`Disk::sync_dir`] succeeded.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Returns the names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates a file that must not exist.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Deletes a file; where it is open it can still be read.
    fn delete(&self, name: &str) -> io::Result<()>;
    /// Makes creations and deletions durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Returns the space of the file system. An error means that it cannot tell, and bounds
    /// nothing.
    fn space(&self) -> io::Result<Space> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Returns true if a start would find this open file under this name, or if the disk cannot
    /// tell.
    fn finds(&self, _name: &str, _file: &dyn DiskFile) -> io::Result<bool> {
        Ok(true)
    }
    /// Returns a number that is new each time, also after a restart.
    fn fresh_id(&self) -> io::Result<u64>;
}

/// An open file.
///
/// Written bytes are certain to survive a crash only once a sync succeeded. After a sync that
/// failed, nothing is known of what was written since the one before, and a later sync that
/// succeeds says nothing about it.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Returns the length of the file in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Reads at least one byte and returns how many; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all bytes, one slice after the other; only one thread may write. After an error a
    /// first part may have been written.
    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Sets the length of the file.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Allocates blocks for the first `len` bytes, whose content may be lost.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes content, and the length if it grew, durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes all of the file durable, including that it was cut off.
    fn sync_all(&self) -> io::Result<()>;
    /// Returns the identity of the file, for [`Disk::finds`].
    fn id(&self) -> io::Result<FileId> {
        Err(ErrorKind::Unsupported.into())
    }
}

/// The data directory, which one process may open at a time.
///
/// All work in it goes through the descriptors of the first opening. By path, a server whose
/// directory was moved away would work in the one that was put there, with the store of another
/// server.
#[derive(Debug)]
pub struct DataDir {
    /// Has the lock, which ends with the descriptor, and so with the process. It is on the
    /// directory itself, because a lock file could be deleted and made again while it is
    /// locked.
    root: Dir,
    /// The folder of the segments. An error from opening it is reported when the folder is needed.
    log: Result<Dir, Errno>,
    /// Set if files are opened for reading only, which a read-only file system allows.
    is_read_only: bool,
}

const LOG: &str = "log";
/// The server's own state, which is written after the log was made.
const STATE: &str = "state.json";

impl DataDir {
    /// Opens the directory for this process alone, and makes what is missing. A directory that it
    /// makes is for its user alone, and hidden from git; one that exists keeps its mode, as
    /// each file in it has a mode of its own.
    pub fn open(dir: &Path) -> Result<DataDir, OpenError> {
        let is_new = !dir.exists();
        make_dir(dir)?;
        if is_new {
            hide_from_git(dir)?;
        }
        let mut disk = DataDir::open_as_it_is(dir)?;
        if matches!(disk.log, Err(Errno::NOENT)) && disk.has_no_records() {
            let path = dir.join(LOG);
            disk.root.make_dir(LOG).map_err(StoreError::of("create", &path.to_string_lossy()))?;
            disk.log = open_log(&disk.root);
        }
        // The names that lead to the log must be as durable as the log.
        if let Ok(log) = &disk.log {
            sync(log)?;
        }
        sync(&disk.root)?;
        // The parent may belong to another user, so an error is not one of the store.
        drop(disk.root.open_dir("..").and_then(|parent| parent.sync()));
        Ok(disk)
    }

    /// Returns true if no `log/` with records belongs to the directory. If the manifest or the
    /// state shows that one does, it was moved away: the start will be refused, and an empty `log/`
    /// would be in the way when the old one is moved back.
    fn has_no_records(&self) -> bool {
        match identify(self) {
            Ok(Known::Nothing) => self.root.id_of(STATE).is_err(),
            Ok(Known::Listed(log)) => !log.has_segments,
            Ok(Known::Unlisted) | Err(_) => false,
        }
    }

    /// As [`DataDir::open_as_it_is`], for reading only: a write is an error, and the file
    /// system may be read-only.
    pub fn open_to_read(dir: &Path) -> Result<DataDir, OpenError> {
        Ok(DataDir { is_read_only: true, ..DataDir::open_as_it_is(dir)? })
    }

    /// Opens the directory for this process alone, and makes nothing.
    pub fn open_as_it_is(dir: &Path) -> Result<DataDir, OpenError> {
        let root = Dir::open(dir).map_err(StoreError::of("open", &dir.to_string_lossy()))?;
        root.file().try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse(dir.to_owned()),
            TryLockError::Error(error) => {
                StoreError::new("lock", &dir.to_string_lossy(), error).into()
            }
        })?;
        let log = open_log(&root);
        Ok(DataDir { root, log, is_read_only: false })
    }

    /// Returns the path that led to the directory when it was opened.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Returns the directory, for files beside the log.
    pub(crate) fn root(&self) -> &Dir {
        &self.root
    }

    fn log(&self) -> io::Result<&Dir> {
        Ok(self.log.as_ref().map_err(|errno| *errno)?)
    }

    /// Returns the folder that a file belongs to: `log/` for segments, else the data directory.
    fn folder_of(&self, name: &str) -> io::Result<&Dir> {
        // The manifest lies beside the folder so that it can tell that the folder is gone; the
        // ballast so that a copy of the folder does not have it.
        if number_of(name).is_some() { self.log() } else { Ok(&self.root) }
    }
}

fn open_log(root: &Dir) -> Result<Dir, Errno> {
    root.open_dir(LOG).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Returns true if this file has the name.
fn is_at(dir: &Dir, name: &str, id: FileId) -> io::Result<bool> {
    match dir.id_of(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        found => Ok(found? == id),
    }
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(StoreError::of("create", &dir.to_string_lossy()))
}

/// Keeps the key and all messages out of a git repository in which a server is tried.
fn hide_from_git(dir: &Path) -> Result<(), StoreError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let made = Dir::open(dir).and_then(|dir| dir.open_file(".gitignore", flags));
    let written = made.and_then(|mut file| file.write_all(b"*\n"));
    written.map_err(StoreError::of("create", &dir.join(".gitignore").to_string_lossy()))
}

fn sync(dir: &Dir) -> Result<(), StoreError> {
    dir.sync().map_err(StoreError::of("sync", &dir.path().to_string_lossy()))
}

impl Disk for DataDir {
    fn list(&self) -> io::Result<Vec<String>> {
        match self.log() {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            log => log?.names(),
        }
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(Box::new(self.folder_of(name)?.open_file(name, flags)?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        // To open a pipe for reading would wait for a process that writes to it; with RDWR,
        // Linux does not wait.
        let flags = match self.is_read_only {
            true => OFlags::RDONLY | OFlags::NONBLOCK,
            false => OFlags::RDWR,
        };
        Ok(Box::new(self.folder_of(name)?.open_file(name, flags)?))
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        self.folder_of(name)?.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        // Both, as the manifest and the ballast are made in the data directory itself.
        self.log()?.sync()?;
        self.root.sync()
    }

    fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::fstatvfs(self.root.file())?;
        let is_out_of_inodes = self.root.is_out_of_inodes();
        let [total, free] = [found.f_blocks, found.f_bavail].map(|blocks| blocks * found.f_frsize);
        Ok(Space { total, free, is_out_of_inodes })
    }

    fn finds(&self, name: &str, file: &dyn DiskFile) -> io::Result<bool> {
        let folder = self.folder_of(name)?;
        // The folder's own name counts as well: it may have been moved with all that is in it.
        let is_found = number_of(name).is_none() || is_at(&self.root, LOG, folder.id()?)?;
        Ok(is_found && is_at(folder, name, file.id()?)?)
    }

    fn fresh_id(&self) -> io::Result<u64> {
        getrandom::u64().map_err(io::Error::other)
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn write_at(&self, mut slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        // std has no stable vectored write at an offset. Readers use `pread`, which does not
        // look at the file's position, so only a second writer could move it.
        let mut file = self;
        file.seek(SeekFrom::Start(offset))?;
        while !slices.is_empty() {
            // Often a part: std passes at most IOV_MAX (1,024) slices, Linux writes at most 2
            // GiB, and a disk that becomes full takes the bytes for which it has blocks.
            match file.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => IoSlice::advance_slices(&mut slices, len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(self, FallocateFlags::empty(), 0, len) {
            // NFS before 4.2, for example: only written blocks are certain to be there.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(self, len),
            allocated => Ok(allocated?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }

    fn id(&self) -> io::Result<FileId> {
        FileId::of(self)
    }
}

/// Writes `len` zeros from the beginning of the file on.
pub(super) fn write_zeros(file: &dyn DiskFile, len: u64) -> io::Result<()> {
    let zeros = [0; 64 << 10];
    let mut offset = 0;
    while offset < len {
        let piece = &zeros[..(len - offset).min(zeros.len() as u64) as usize];
        file.write_at(&mut [IoSlice::new(piece)], offset)?;
        offset += piece.len() as u64;
    }
    Ok(())
}
