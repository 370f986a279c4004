//! The data directory of a stopped server: which one, whether it is in use, and reading its log.

use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use switchboard_broker::Record;

use super::Exit;
use crate::config::{self, Flag};
use crate::files::Occasion;
use crate::persistence::state::{self, ServerState};
use crate::persistence::{self, record};
use crate::store::{self, DataDir, Found, OpenError};

/// The choice of a data directory.
#[derive(clap::Args, Debug)]
#[group(skip)]
pub(super) struct Args {
    /// The data directory of the server [default: as the server would choose]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// The configuration file of the server [default: as the server would choose]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Reason why a command on a data directory failed, and its exit code.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) exit: Exit,
    pub(super) words: String,
}

impl Problem {
    pub(super) fn failed(words: impl ToString) -> Problem {
        Problem { exit: Exit::Failed, words: words.to_string() }
    }

    /// The files could not be read for a reason other than damage, so their content is unknown.
    pub(super) fn unread(words: impl ToString, cause: Option<&io::Error>) -> Problem {
        let is_denied = cause.is_some_and(|cause| cause.kind() == ErrorKind::PermissionDenied);
        let way_on = if is_denied { "; run it as the server's user" } else { "" };
        Problem::failed(format!("{}{way_on}; nothing was changed", words.to_string()))
    }

    pub(super) fn usage(words: impl ToString) -> Problem {
        Problem { exit: Exit::Usage, words: words.to_string() }
    }

    /// Prints the problem and returns the exit code.
    pub(super) fn report(&self, what: &str) -> Exit {
        complain!("switchboard: cannot {what}: {}", self.words);
        self.exit
    }
}

impl Args {
    /// Returns the directory that was given, or that of the server's configuration.
    pub(super) fn resolve(&self) -> Result<PathBuf, Problem> {
        let flag = self.data_dir.clone().map(|value| Flag {
            name: "--data-dir".to_owned(),
            key: "data_dir".to_owned(),
            value,
        });
        let config = self.config.as_deref();
        let loaded =
            config::load(Path::new(""), config, std::env::vars_os(), flag, Occasion::Start);
        let loaded = loaded.map_err(Problem::usage)?;
        let none = || Problem::usage("the server keeps no data (data_dir is empty)");
        loaded.config.data_dir.ok_or_else(none)
    }

    /// Opens and locks the directory for reading, without checking it; fails if a running server
    /// has it.
    pub(super) fn take(&self) -> Result<DataDir, Problem> {
        self.take_by(DataDir::open_to_read)
    }

    fn take_by(&self, open: fn(&Path) -> Result<DataDir, OpenError>) -> Result<DataDir, Problem> {
        let dir = self.resolve()?;
        if !["log", "MANIFEST", state::FILE].iter().any(|name| dir.join(name).exists())
            && !matches!(persistence::interrupted_repair(&dir), Ok(Some(_)))
        {
            return Err(Problem::failed(format!("{} holds no store", dir.display())));
        }
        open(&dir).map_err(|error| match error {
            OpenError::InUse(dir) => Problem::failed(format!(
                "{} is in use: stop the server that runs on it first",
                dir.display()
            )),
            error => Problem::failed(error),
        })
    }

    /// Opens the directory for reading, with a log and a state that belong together.
    pub(super) fn open(&self) -> Result<DataDir, Problem> {
        self.open_by(DataDir::open_to_read)
    }

    /// Like [`open`](Args::open), to append to the log.
    pub(super) fn open_to_append(&self) -> Result<DataDir, Problem> {
        self.open_by(DataDir::open_as_it_is)
    }

    fn open_by(&self, open: fn(&Path) -> Result<DataDir, OpenError>) -> Result<DataDir, Problem> {
        let disk = self.take_by(open)?;
        let known = store::identify(&disk).map_err(Problem::failed)?;
        ServerState::open(disk.root(), known).map_err(Problem::failed)?;
        Ok(disk)
    }
}

/// Interval between updates of the progress line.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Reads every record in order and changes nothing; on a terminal it shows its progress.
pub(super) fn read_all(
    disk: &DataDir,
    mut visit: impl FnMut(&Record<'_>),
) -> Result<Found, OpenError> {
    let mut progress = Progress::new(disk);
    store::inspect(disk, &mut |_, bytes| {
        visit(&record::read(bytes).map_err(|error| error.to_string())?);
        progress.step(bytes);
        Ok(())
    })
}

/// A line on a terminal that shows how much of the log was read; cleared at the end.
#[derive(Debug)]
pub(super) struct Progress {
    is_watched: bool,
    records: u64,
    bytes: u64,
    /// Size of all segments, including the space reserved at the end of the newest.
    bytes_in_all: u64,
    shown_at: Instant,
}

impl Progress {
    pub(super) fn new(disk: &DataDir) -> Progress {
        let segments = fs::read_dir(disk.path().join("log")).into_iter().flatten().flatten();
        Progress {
            is_watched: io::stderr().is_terminal(),
            records: 0,
            bytes: 0,
            bytes_in_all: segments.flat_map(|file| file.metadata()).map(|file| file.len()).sum(),
            shown_at: Instant::now(),
        }
    }

    /// Counts a record that was read.
    pub(super) fn step(&mut self, record: &[u8]) {
        self.records += 1;
        self.bytes += record.len() as u64;
        let is_round = self.records.is_multiple_of(4_096);
        if self.is_watched && is_round && self.shown_at.elapsed() >= PROGRESS_INTERVAL {
            self.shown_at = Instant::now();
            let _ = write!(io::stderr(), "\r\x1b[K{}", self.line());
        }
    }

    fn line(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        let (read, all) = (mib(self.bytes), mib(self.bytes_in_all));
        format!("{} records read, {read} of {all} MiB", self.records)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_watched {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_how_much_of_the_log_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DataDir::open(dir.path()).unwrap();
        for name in ["00000001.seg", "00000002.seg"] {
            fs::write(dir.path().join("log").join(name), vec![0; 2 << 20]).unwrap();
        }
        let mut progress = Progress::new(&disk);
        (0..3).for_each(|_| progress.step(&[0; 512 << 10]));
        assert_eq!(progress.line(), "3 records read, 1 of 4 MiB");
    }
}
