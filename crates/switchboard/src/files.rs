//! Reading of the files that an operator names: configuration, keys, certificates.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use crate::store::open_to_read;

/// Occasion on which a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The process starts: a file may be a pipe, as in `--config <(...)`.
    Start,
    /// A running server reads its files again: a pipe was read to its end at the start, and to
    /// open one may wait for ever. So only regular files are read.
    Reload,
}

/// Returns the content of a file that has at most `len_max` bytes.
pub(crate) fn read(path: &Path, len_max: u64, occasion: Occasion) -> io::Result<Vec<u8>> {
    let file = match occasion {
        Occasion::Start => File::open(path)?,
        Occasion::Reload => open_to_read(path).map_err(|error| match error.kind() {
            ErrorKind::IsADirectory => io::Error::new(
                ErrorKind::InvalidInput,
                "it is no regular file; a pipe or a device can be read only when the server starts",
            ),
            _ => error,
        })?,
    };
    let mut bytes = Vec::new();
    file.take(len_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > len_max {
        let words = format!("it is longer than {} KiB", len_max >> 10);
        return Err(io::Error::new(ErrorKind::FileTooLarge, words));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_file_has_a_bound_and_a_reload_waits_for_no_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let [file, pipe] = ["file", "pipe"].map(|name| dir.path().join(name));
        std::fs::write(&file, [7; 1_024]).unwrap();
        mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for occasion in [Occasion::Start, Occasion::Reload] {
            assert_eq!(read(&file, 1_024, occasion).unwrap().len(), 1_024);
            let error = read(&file, 1_023, occasion).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        }
        // Without end.
        let error = read(Path::new("/dev/zero"), 1_024, Occasion::Start).unwrap_err();
        assert_eq!(error.to_string(), "it is longer than 1 KiB");
        for path in [&pipe, Path::new("/dev/zero"), dir.path()] {
            let error = read(path, 1_024, Occasion::Reload).unwrap_err();
            assert!(error.to_string().contains("no regular file"), "{error}");
        }
    }
}
