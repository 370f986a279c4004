//! What the server knows of itself from one run to the next: `state.json` in the data directory.
//!
//! Small and rarely changed, so it is a file of its own, replaced as a whole: written beside,
//! synced, renamed.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use switchboard_broker::DigestKey;
use switchboard_proto::DeviceId;

const FILE: &str = "state.json";
/// Goes up when a file of this version would be misread by an older one.
const VERSION: u32 = 1;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// Drawn when the store was made, and again when it is found to be a copy: mailboxes are named
    /// after it.
    pub(crate) epoch: u64,
    /// What the file system calls the data directory; a copy is called otherwise.
    inode: u64,
    /// Ids of devices below this one may have been given.
    pub(crate) ids_to: u64,
    /// How long the server has run, over all its runs.
    pub(crate) uptime_ms: u64,
    /// The wall clock, and the stamp of records, when that was noted; 0 in the files of servers that
    /// did not note them.
    #[serde(default)]
    pub(crate) wall_ms: u64,
    #[serde(default)]
    pub(crate) stamp_ms: u64,
    /// Under which ids and contents are hashed, in base64.
    digest_key: String,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is not as this server writes it.
    #[error("{path}: {why}; restore it with the rest of the data directory from a backup")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A newer server wrote it.
    #[error("{path} is of version {found}, and this server knows {VERSION}: run a newer one")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The system has no randomness.
    #[error("no randomness from the system: {0}")]
    NoRandomness(getrandom::Error),
}

/// Whether the data directory is where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It did not exist before.
    New,
    /// It is the one that the last run wrote.
    Same,
    /// It was copied, or restored from a backup: what was acked since is not known.
    Copied,
}

impl State {
    /// Reads the state of a data directory, or makes it.
    pub(crate) fn open(dir: &Path) -> Result<(State, Origin), StateError> {
        let path = dir.join(FILE);
        let failed = |source| StateError::Io { path: path.clone(), source };
        let inode = fs::metadata(dir).map_err(failed)?.ino();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let state = State::new(inode)?;
                state.write(dir)?;
                return Ok((state, Origin::New));
            }
            Err(error) => return Err(failed(error)),
        };
        let mut state = State::read(&path, &bytes)?;
        if state.inode == inode {
            return Ok((state, Origin::Same));
        }
        state.inode = inode;
        state.epoch = random()?;
        state.write(dir)?;
        Ok((state, Origin::Copied))
    }

    fn read(path: &Path, bytes: &[u8]) -> Result<State, StateError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |why: String| StateError::Damaged { path: path.to_owned(), why };
        let Version { version } =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if version > VERSION {
            return Err(StateError::Newer { path: path.to_owned(), found: version });
        }
        let state: State =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        state.key_bytes().ok_or_else(|| damaged("digest_key is no key".to_owned()))?;
        Ok(state)
    }

    fn new(inode: u64) -> Result<State, StateError> {
        let mut key = [0; DigestKey::LEN];
        getrandom::fill(&mut key).map_err(StateError::NoRandomness)?;
        Ok(State {
            version: VERSION,
            epoch: random()?,
            inode,
            ids_to: DeviceId::FIRST.get(),
            uptime_ms: 0,
            wall_ms: 0,
            stamp_ms: 0,
            digest_key: STANDARD.encode(key),
        })
    }

    /// Replaces the file; when this returns it is on disk.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), StateError> {
        let path = dir.join(FILE);
        let failed = |source| StateError::Io { path: path.clone(), source };
        let beside = dir.join(format!("{FILE}.new"));
        let bytes = serde_json::to_vec_pretty(self).expect("numbers and text are JSON");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&beside).map_err(failed)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&beside, &path).map_err(failed)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    fn key_bytes(&self) -> Option<[u8; DigestKey::LEN]> {
        STANDARD.decode(&self.digest_key).ok()?.try_into().ok()
    }

    /// The key under which ids and contents are hashed.
    pub(crate) fn digest_key(&self) -> DigestKey {
        DigestKey::new(self.key_bytes().expect("it was checked when it was read"))
    }
}

/// A random number that is not 0.
pub(crate) fn random() -> Result<u64, StateError> {
    getrandom::u64().map(|number| number | 1).map_err(StateError::NoRandomness)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let (mut state, origin) = State::open(dir.path()).unwrap();
        assert_eq!(origin, Origin::New);
        state.ids_to = 100_010_000;
        state.write(dir.path()).unwrap();
        assert_eq!(State::open(dir.path()).unwrap(), (state, Origin::Same));
    }

    #[test]
    fn a_file_that_notes_no_clocks_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (state, _) = State::open(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        let older: String = text
            .lines()
            .filter(|line| !line.contains("\"wall_ms\"") && !line.contains("\"stamp_ms\""))
            .collect();
        assert!(older.len() < text.len() - 20);
        fs::write(dir.path().join(FILE), older).unwrap();
        assert_eq!(State::open(dir.path()).unwrap(), (state, Origin::Same));
    }

    #[test]
    fn a_copied_directory_is_noticed_once_and_gets_a_new_epoch() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (state, _) = State::open(old.path()).unwrap();
        fs::copy(old.path().join(FILE), new.path().join(FILE)).unwrap();
        let (copied, origin) = State::open(new.path()).unwrap();
        assert_eq!(origin, Origin::Copied);
        assert_ne!(copied.epoch, state.epoch);
        assert_eq!(copied.digest_key, state.digest_key);
        assert_eq!(State::open(new.path()).unwrap(), (copied, Origin::Same));
    }

    #[test]
    fn a_newer_or_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (content, words) in
            [("{\"version\": 2}", "version 2"), ("{\"version\": 1}", "missing field"), ("{", "EOF")]
        {
            fs::write(dir.path().join(FILE), content).unwrap();
            let error = State::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
