//! A directory that is used through its descriptor.
//!
//! A path leads elsewhere once the directory was moved and another put in its place. The descriptor
//! stays with the directory that was opened, and with the lock on it.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Mode, OFlags, RawMode};
use rustix::io::retry_on_intr;

/// Identity of a file in its file system: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(u64, u64);

impl FileId {
    pub(super) fn of(file: &File) -> io::Result<FileId> {
        let metadata = file.metadata()?;
        Ok(FileId(metadata.dev(), metadata.ino()))
    }
}

/// An open directory. Names are relative to it.
#[derive(Debug)]
pub(crate) struct Dir {
    file: File,
    path: PathBuf,
}

impl Dir {
    /// Opens the directory that the path leads to now.
    pub(crate) fn open(path: &Path) -> io::Result<Dir> {
        let file = open_at(fs::CWD, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Dir { file, path: path.to_owned() })
    }

    pub(super) fn open_dir(&self, name: &str) -> io::Result<Dir> {
        let file = open_at(&self.file, Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Dir { file, path: self.path.join(name) })
    }

    /// Opens a file; if this creates it, only its user may read or write it.
    pub(crate) fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        open_at(&self.file, Path::new(name), flags)
    }

    /// As [`open_to_read`], for a name in this directory.
    pub(super) fn open_to_read(&self, name: &str) -> io::Result<File> {
        open_to_read_at(&self.file, Path::new(name))
    }

    /// Returns the content of a file, but at most its first `len_max` bytes.
    pub(crate) fn read_file(&self, name: &str, len_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_to_read(name)?.take(len_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Makes a directory that only its user may enter.
    pub(super) fn make_dir(&self, name: &str) -> io::Result<()> {
        Ok(fs::mkdirat(&self.file, name, Mode::RWXU)?)
    }

    /// Renames a file; replaces `to` if it exists.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::renameat(&self.file, from, &self.file, to)?)
    }

    /// Deletes a file.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.file, name, AtFlags::empty())?)
    }

    /// Makes creations, renames and deletions durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Returns the names of all files.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.file)? {
            if let Ok(name) = entry?.file_name().to_str()
                && ![".", ".."].contains(&name)
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Returns the metadata of the directory itself.
    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Returns the metadata of a file in it, which need not be readable.
    pub(crate) fn metadata_of(&self, name: &str) -> io::Result<Metadata> {
        self.open_file(name, OFlags::PATH)?.metadata()
    }

    /// Returns the identity of the file under a name.
    pub(super) fn id_of(&self, name: &str) -> io::Result<FileId> {
        // Not by opening the file: this must also work when no file descriptor is left.
        let found = fs::statat(&self.file, name, AtFlags::empty())?;
        Ok(FileId(found.st_dev, found.st_ino))
    }

    pub(super) fn id(&self) -> io::Result<FileId> {
        FileId::of(&self.file)
    }

    /// Returns the path that led here when it was opened; only for messages to people.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open directory, for its lock.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

/// Opens a file for reading. Anything that is not a regular file is an error, which
/// [counts as damage](super::is_damage).
pub(crate) fn open_to_read(path: &Path) -> io::Result<File> {
    open_to_read_at(fs::CWD, path)
}

fn open_to_read_at(dir: impl std::os::fd::AsFd, path: &Path) -> io::Result<File> {
    // To open a pipe without NONBLOCK would wait for a process that writes to it.
    let file = open_at(dir, path, OFlags::RDONLY | OFlags::NONBLOCK)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "it is no file"));
    }
    Ok(file)
}

fn open_at(dir: impl std::os::fd::AsFd, path: &Path, flags: OFlags) -> io::Result<File> {
    let mode = Mode::from_raw_mode(0o600 as RawMode);
    let opened = retry_on_intr(|| fs::openat(&dir, path, flags | OFlags::CLOEXEC, mode))?;
    Ok(opened.into())
}
