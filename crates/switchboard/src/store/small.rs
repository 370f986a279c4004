//! Opening the small files of the data directory, in whose place anything may lie.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a file for reading. What is no file is an error, which [counts as damage](super::is_damage),
/// and a pipe is not waited for.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let nonblock = OFlags::NONBLOCK.bits() as i32;
    only_file(File::options().read(true).custom_flags(nonblock).open(path)?)
}

pub(super) fn only_file(file: File) -> io::Result<File> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "it is no file"));
    }
    Ok(file)
}
