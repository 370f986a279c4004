//! A directory that is used through its descriptor.
//!
//! A path leads elsewhere once the directory was moved and another put in its place. The descriptor
//! stays with the directory that was opened, and with the lock on it.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Mode, OFlags, RawMode};
use rustix::io::retry_on_intr;
use rustix::process::geteuid;

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

    /// Opens a file. A file that this creates belongs to the user of the directory's other files,
    /// and nobody else may read or write it.
    pub(crate) fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let open = |flags| open_at(&self.file, Path::new(name), flags);
        if !flags.contains(OFlags::CREATE) {
            return open(flags);
        }
        // With EXCL, which follows no link: `give_to_owner` below must change the owner only of a
        // file that this call made.
        match open(flags | OFlags::EXCL) {
            Err(error)
                if error.kind() == ErrorKind::AlreadyExists && !flags.contains(OFlags::EXCL) =>
            {
                open(flags - OFlags::CREATE)
            }
            Ok(made) => {
                // On a network file system even root may not be allowed to change the owner. Root
                // itself can still open the file.
                self.give_to_owner(&made).ok();
                Ok(made)
            }
            failed => failed.map_err(|error| self.with_cause(error)),
        }
    }

    /// Names the cause of a creation that failed, if the disk takes no more files: "No space left on
    /// device" is no help where `df` shows free bytes.
    fn with_cause(&self, error: io::Error) -> io::Error {
        if error.kind() == ErrorKind::StorageFull && self.is_out_of_inodes() {
            return io::Error::new(ErrorKind::StorageFull, "no inodes are free (see `df -i`)");
        }
        error
    }

    /// Returns true if the file system counts its files and takes no more.
    pub(super) fn is_out_of_inodes(&self) -> bool {
        // One that makes inodes as it needs them, such as Btrfs, has a total of 0.
        fs::fstatvfs(&self.file).is_ok_and(|found| found.f_files > 0 && found.f_favail == 0)
    }

    /// Changes the owner of a file or directory that root has made here to the user of the
    /// directory's other files; otherwise a server that runs as that user could not open it. Does
    /// nothing if the process does not run as root.
    pub(crate) fn give_to_owner(&self, made: &File) -> io::Result<()> {
        self.owner_of_new().map_or(Ok(()), |(user, group)| fchown(made, Some(user), Some(group)))
    }

    /// Returns user and group for new files, if these are not those of the process.
    fn owner_of_new(&self) -> Option<(u32, u32)> {
        if !geteuid().is_root() {
            return None;
        }
        // The directory itself may belong to root, and be accessible to the server by its group.
        let found = ["log", "MANIFEST"].iter().find_map(|name| self.metadata_of(name).ok());
        let owner = found.or_else(|| self.metadata().ok())?;
        Some((owner.uid(), owner.gid())).filter(|&(user, _)| user != 0)
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

    /// Makes a directory that belongs to the user of the other files here; nobody else may enter
    /// it.
    pub(crate) fn make_dir(&self, name: &str) -> io::Result<()> {
        // Looked up first: `owner_of_new` returns the owner of `log/` if there is one, and the
        // `log/` that is made here belongs to root at first.
        let owner = self.owner_of_new();
        fs::mkdirat(&self.file, name, Mode::RWXU)?;
        if let Some((user, group)) = owner {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let made = open_at(&self.file, Path::new(name), flags)?;
            // As in `open_file`.
            fchown(&made, Some(user), Some(group)).ok();
        }
        Ok(())
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
