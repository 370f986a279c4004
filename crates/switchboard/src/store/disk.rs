//! What the log needs of a disk, and the real one.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::segment::number_of;
use super::{OpenError, Space, StoreError};

/// A directory of files. Names are plain file names.
///
/// What is created or deleted is certain to have been so after a crash only once
/// [`Disk::sync_dir`] succeeded.
pub trait Disk: Send + Sync + fmt::Debug {
    /// The names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates a file that must not exist.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Deletes a file; those that hold it open still read it.
    fn delete(&self, name: &str) -> io::Result<()>;
    /// Makes creations and deletions durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// The file system below it. One that cannot tell bounds nothing.
    fn space(&self) -> io::Result<Space> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// A number that is new each time, also after a restart.
    fn fresh_id(&self) -> io::Result<u64>;
}

/// An open file.
///
/// What is written is certain to be there after a crash only once a sync succeeded. After a sync
/// that failed, nothing is known of what was written since the one before, and a later sync that
/// succeeds says nothing about it.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Bytes of the file.
    fn size(&self) -> io::Result<u64>;
    /// Reads some bytes; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all bytes, one slice after the other; only one thread may write. On an error some
    /// may have been written.
    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Cuts the file off.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes the first `len` bytes take space on the disk; what they held may be gone.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes content, and the length if it grew, durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes all of the file durable, also that it was cut off.
    fn sync_all(&self) -> io::Result<()>;
}

/// The data directory, which one process holds at a time.
#[derive(Debug)]
pub struct DataDir {
    dir: PathBuf,
    log: PathBuf,
    /// Held, not read: the lock ends with the file, and so with the process. It is on the directory
    /// itself, because a file could be deleted and made again while it is locked.
    _lock: File,
    /// The file that versions before lock, so that none of them runs beside this one.
    _old_lock: Option<File>,
}

impl DataDir {
    /// Opens the directory, making what is missing, for this process alone. One that it makes is for
    /// its user alone, and not for git; what is there keeps its mode, as every file has its own.
    pub fn open(dir: &Path) -> Result<DataDir, OpenError> {
        let log = dir.join("log");
        let is_new = !dir.exists();
        make_dir(dir)?;
        if is_new {
            hide_from_git(dir)?;
        }
        let (lock, old_lock) = locks(dir, true)?;
        // What is there and no folder is refused when it is read.
        if !log.exists() {
            make_dir(&log)?;
        }
        // The way to the log must be as durable as the log. The parent may be somebody else's.
        sync_dir(&log)?;
        sync_dir(dir)?;
        let parent = fs::canonicalize(dir).ok().and_then(|dir| dir.parent().map(Path::to_owned));
        if let Some(parent) = parent {
            drop(File::open(parent).and_then(|parent| parent.sync_all()));
        }
        Ok(DataDir { dir: dir.to_owned(), log, _lock: lock, _old_lock: old_lock })
    }

    /// Opens the directory for this process alone, and makes nothing.
    pub fn open_as_it_is(dir: &Path) -> Result<DataDir, OpenError> {
        let (lock, old_lock) = locks(dir, false)?;
        let log = dir.join("log");
        Ok(DataDir { dir: dir.to_owned(), log, _lock: lock, _old_lock: old_lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Segments lie in the log's folder, manifest and ballast beside it: the manifest must tell that
    /// the folder is gone, and a copy of the folder needs no ballast.
    fn path_of(&self, name: &str) -> PathBuf {
        let folder = if number_of(name).is_some() { &self.log } else { &self.dir };
        folder.join(name)
    }
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(StoreError::of("create", &dir.to_string_lossy()))
}

/// Keeps the key and everybody's messages out of a repository in which a server is tried.
fn hide_from_git(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join(".gitignore");
    let made = options().create(true).truncate(true).open(&path);
    let written = made.and_then(|mut file| file.write_all(b"*\n"));
    written.map_err(StoreError::of("create", &path.to_string_lossy()))
}

/// Takes the lock on the directory, and that on `LOCK` in it, if it is there or to be made.
fn locks(dir: &Path, is_made: bool) -> Result<(File, Option<File>), OpenError> {
    let lock = File::open(dir).map_err(StoreError::of("open", &dir.to_string_lossy()))?;
    take_lock(dir, &lock)?;
    let path = dir.join("LOCK");
    let old = match options().create(is_made).open(&path) {
        Ok(file) => file,
        Err(_) if !is_made => return Ok((lock, None)),
        Err(error) => return Err(StoreError::new("open", &path.to_string_lossy(), error).into()),
    };
    take_lock(dir, &old)?;
    Ok((lock, Some(old)))
}

fn take_lock(dir: &Path, file: &File) -> Result<(), OpenError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => OpenError::InUse(dir.to_owned()),
        TryLockError::Error(error) => StoreError::new("lock", &dir.to_string_lossy(), error).into(),
    })
}

fn sync_dir(dir: &Path) -> Result<File, StoreError> {
    let synced = File::open(dir).and_then(|file| file.sync_all().map(|()| file));
    synced.map_err(StoreError::of("sync", &dir.to_string_lossy()))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Disk for DataDir {
    fn list(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<io::Result<Vec<_>>>()?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(options().create_new(true).open(self.path_of(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(options().open(self.path_of(name))?))
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path_of(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.log)?.sync_all()?;
        File::open(&self.dir)?.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::statvfs(&self.dir)?;
        Ok(Space { total: found.f_blocks * found.f_frsize, free: found.f_bavail * found.f_frsize })
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
        let mut file = self;
        file.seek(SeekFrom::Start(offset))?;
        while !slices.is_empty() {
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
        use rustix::io::Errno;
        match fallocate(self, FallocateFlags::empty(), 0, len) {
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
}

/// Writes so many zeros from the beginning on.
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
