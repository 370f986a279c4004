//! The server's own state from one run to the next: `state.json` in the data directory.
//!
//! It is small and rarely changed, so it is a file of its own and replaced as a whole: written
//! under another name, synced, renamed. Then the log's manifest notes its generation. So after
//! a crash the file may be one generation ahead of the manifest, and is never behind.

use std::cmp::Ordering;
use std::fs::Metadata;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use switchboard_broker::{DigestKey, StampClock};
use switchboard_proto::DeviceId;

use crate::store::{Dir, Identity, Known, OlderFormat, StateOf, is_damage, is_no_space};

/// The file's name.
pub(crate) const FILE: &str = "state.json";
const MANIFEST: &str = "MANIFEST";
/// Most bytes that are read; the file has less than a tenth of that.
const LEN_MAX: u64 = 64 << 10;
/// The format version that is written, and the only one that is read.
const VERSION: u32 = 3;

/// The `unsure_to` of a log whose end is not noted yet: all that it has.
const ALL: u64 = u64::MAX;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerState {
    version: u32,
    /// The id of the log that it belongs to.
    pub(crate) store: u64,
    /// Rises each time that the file is replaced.
    pub(super) generation: u64,
    /// Random number from which mailboxes get their names. Drawn when the store is made, and again
    /// when it is found to be a copy.
    pub(crate) epoch: u64,
    /// Inode of the data directory; a copy has another.
    inode: u64,
    /// Inode and birth time of the manifest, which is written in place and never replaced:
    /// files that a backup put into the same directory have others.
    manifest: Option<String>,
    /// Position in the log before which everything counts as pushed: the end of the log when it was
    /// found to be a copy, or was repaired; [`ALL`] until the next start notes that end. 0 if
    /// neither ever happened.
    pub(crate) unsure_to: u64,
    /// Ids of devices below this one may have been given.
    pub(crate) ids_to: u64,
    /// Time that the server has run, over all its runs, counted from [`StampClock::UPTIME_FIRST`].
    pub(crate) uptime_ms: u64,
    /// The wall clock when the uptime was noted; 0 before that.
    pub(crate) wall_ms: u64,
    /// The stamp of records at the same time; 0 likewise.
    pub(crate) stamp_ms: u64,
    /// Key under which ids and contents are hashed, in base64.
    digest_key: String,
    /// Fingerprint of `token.key`.
    pub(crate) token_key: Option<String>,
    /// CRC-32C of all fields but itself and `uptime_ms`, which may be set by hand.
    checksum: u32,
}

/// Reason why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// It cannot be read or written.
    #[error("{path}: {cause}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// It is missing, or not as this server wrote it last.
    #[error(
        "{path} {why}; restore the whole data directory from a backup, or run `switchboard store \
         repair`, which keeps what is intact"
    )]
    Wrong {
        /// Path of the file.
        path: PathBuf,
        /// The fault.
        why: String,
    },
    /// A server wrote it whose format is no longer read.
    #[error(transparent)]
    Older(#[from] OlderFormat),
    /// A newer server wrote it.
    #[error("{path} is of version {found}, and this server knows {VERSION}: run a newer one")]
    Newer {
        /// Path of the file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The system has no randomness.
    #[error("no randomness from the system: {0}")]
    NoRandomness(getrandom::Error),
}

impl StateError {
    /// Returns true if the file has lost something; any other error, such as too many open files,
    /// says nothing about it.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            StateError::Wrong { .. } => true,
            StateError::Io { cause, .. } => is_damage(cause),
            StateError::Older(_) | StateError::Newer { .. } | StateError::NoRandomness(_) => false,
        }
    }

    /// Returns the system's error, if there is one.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        if let StateError::Io { cause, .. } = self { Some(cause) } else { None }
    }

    /// Returns true if the disk, or a quota on it, is full.
    pub(crate) fn is_no_space(&self) -> bool {
        matches!(self, StateError::Io { cause, .. } if is_no_space(cause))
    }
}

/// Origin of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirOrigin {
    /// It is new.
    New,
    /// The last run wrote it.
    Same,
    /// It was copied, or restored from a backup: acks and ids since then are not known.
    Copied,
}

impl ServerState {
    /// Reads the state of a data directory and checks it against its log; returns a new one if
    /// there is neither. Changes nothing.
    pub(crate) fn open(dir: &Dir, log: Known) -> Result<(ServerState, DirOrigin), StateError> {
        let read = ServerState::read(dir)?;
        let wrong = |file: &str, why: &str| {
            Err(StateError::Wrong { path: dir.path().join(file), why: why.to_owned() })
        };
        let (state, log) = match (read, log) {
            (None, Known::Nothing) => return Ok((ServerState::new()?, DirOrigin::New)),
            // A crash came before it was written for the first time. Nothing was accepted yet.
            (None, Known::Listed(Identity { state_generation: 0, has_segments: false, .. })) => {
                return Ok((ServerState::new()?, DirOrigin::New));
            }
            (None, _) => return wrong(FILE, "is missing, and there is a log that it belongs to"),
            (Some(_), Known::Nothing | Known::Unlisted) => {
                return wrong(MANIFEST, "is missing or damaged");
            }
            (Some(state), Known::Listed(log)) => (state, log),
        };
        if state.store != log.store {
            return wrong(FILE, "belongs to another store than MANIFEST");
        }
        if state.generation < log.state_generation {
            return wrong(FILE, "is older than the log: it was copied from a backup by itself");
        }
        // A crash between the rename and the manifest's note leaves the state one ahead.
        if state.generation > log.state_generation + 1 {
            return wrong(MANIFEST, "is older than state.json: it was copied from a backup");
        }
        if state.has_moved(dir)? {
            return Ok((state.of_another_log()?, DirOrigin::Copied));
        }
        Ok((state, DirOrigin::Same))
    }

    /// Reads the file; `None` if there is none.
    pub(crate) fn read(dir: &Dir) -> Result<Option<ServerState>, StateError> {
        let path = dir.path().join(FILE);
        let bytes = match dir.read_file(FILE, LEN_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if is_damage(&error) => {
                return Err(StateError::Wrong { path, why: format!("cannot be read ({error})") });
            }
            Err(cause) => return Err(StateError::Io { path, cause }),
        };
        let damaged = |why: String| StateError::Wrong {
            path: path.clone(),
            why: format!("is damaged ({why})"),
        };
        let json = |error: serde_json::Error| damaged(error.to_string());
        let value: Value = serde_json::from_slice(&bytes).map_err(json)?;
        // Checked before the fields: a newer version may have others.
        let version = value["version"].as_u64().unwrap_or_default() as u32;
        match version.cmp(&VERSION) {
            Ordering::Less => {
                let file = path.display().to_string();
                return Err(OlderFormat { file, found: version }.into());
            }
            Ordering::Equal => {}
            Ordering::Greater => return Err(StateError::Newer { path, found: version }),
        }
        let checksum = checksum(&value);
        let state: ServerState = serde_json::from_value(value).map_err(json)?;
        state.key_bytes().ok_or_else(|| damaged("digest_key is no key".to_owned()))?;
        if state.checksum != checksum {
            return Err(damaged("its checksum does not fit".to_owned()));
        }
        Ok(Some(state))
    }

    /// Reads the file; `None` if it is missing or damaged.
    pub(crate) fn read_intact(dir: &Dir) -> Result<Option<ServerState>, StateError> {
        match ServerState::read(dir) {
            Err(StateError::Wrong { .. }) => Ok(None),
            read => read,
        }
    }

    /// Returns the log that it says it belongs to.
    pub(crate) fn of_log(&self) -> StateOf {
        StateOf { store: self.store, generation: self.generation }
    }

    /// Returns a new state, which is not written yet.
    pub(crate) fn new() -> Result<ServerState, StateError> {
        let mut key = [0; DigestKey::LEN];
        getrandom::fill(&mut key).map_err(StateError::NoRandomness)?;
        Ok(ServerState {
            version: VERSION,
            store: 0,
            generation: 0,
            epoch: random()?,
            inode: 0,
            manifest: None,
            unsure_to: 0,
            ids_to: DeviceId::FIRST.get(),
            uptime_ms: StampClock::UPTIME_FIRST.ms(),
            wall_ms: 0,
            stamp_ms: 0,
            digest_key: STANDARD.encode(key),
            token_key: None,
            checksum: 0,
        })
    }

    /// Returns the same state for another store: all mailboxes get new names.
    pub(crate) fn for_store(self, store: u64) -> Result<ServerState, StateError> {
        Ok(ServerState { store, generation: 0, ..self.of_another_log()? })
    }

    /// Returns the same state for a log that lacks records: devices may have read and acked more than
    /// the log says. The mailboxes get new names (`epoch`), so that devices forget the numbers they
    /// have seen; otherwise they would take new messages for old ones. And everything in the log
    /// counts as possibly read (`unsure_to`).
    fn of_another_log(self) -> Result<ServerState, StateError> {
        Ok(ServerState { epoch: random()?, unsure_to: ALL, ..self })
    }

    /// Returns true if the directory, or the manifest in it, is not the one for which this was
    /// written.
    fn has_moved(&self, dir: &Dir) -> Result<bool, StateError> {
        let (inode, manifest) = (inode(dir)?, manifest(dir)?);
        Ok(self.inode != inode || self.manifest.as_ref().is_some_and(|was| *was != manifest))
    }

    /// Replaces the file by its next generation; when this returns it is on disk.
    ///
    /// Returns the generation.
    pub(crate) fn write(&mut self, dir: &Dir) -> Result<u64, StateError> {
        self.write_for(dir, dir)
    }

    /// As [`ServerState::write`], to a directory with a manifest; both files will be moved to `home`.
    pub(crate) fn write_for(&mut self, home: &Dir, dir: &Dir) -> Result<u64, StateError> {
        (self.inode, self.manifest) = (inode(home)?, Some(manifest(dir)?));
        self.generation += 1;
        let value = serde_json::to_value(&*self).expect("numbers and text are JSON");
        self.checksum = checksum(&value);
        let path = dir.path().join(FILE);
        let name = format!("{FILE}.new");
        let failed = |cause| StateError::Io { path: path.clone(), cause };
        let not_beside = |cause| StateError::Io { path: dir.path().join(&name), cause };
        let bytes = serde_json::to_vec_pretty(self).expect("numbers and text are JSON");
        // A crash may have left one. Anything else that lies there, such as a pipe, which an
        // open would wait for, goes as well.
        match dir.remove(&name) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(not_beside(error)),
            _ => {}
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = dir.open_file(&name, flags).map_err(not_beside)?;
        // The content is durable before the name leads to it, or a crash could leave an empty
        // file in place of the old one; then the directory, as a rename alone may be undone.
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(not_beside)?;
        dir.rename(&name, FILE).and_then(|()| dir.sync()).map_err(failed)?;
        Ok(self.generation)
    }

    fn key_bytes(&self) -> Option<[u8; DigestKey::LEN]> {
        STANDARD.decode(&self.digest_key).ok()?.try_into().ok()
    }

    /// Returns the key under which ids and contents are hashed.
    pub(crate) fn digest_key(&self) -> DigestKey {
        DigestKey::new(self.key_bytes().expect("it was checked when it was read"))
    }
}

/// Returns the checksum of the fields as JSON values: white space and order do not count, so
/// that the file may be edited by hand.
fn checksum(state: &Value) -> u32 {
    let mut fields: Vec<_> = state.as_object().into_iter().flatten().collect();
    fields.retain(|(name, _)| !["checksum", "uptime_ms"].contains(&name.as_str()));
    fields.sort_by_key(|(name, _)| *name);
    fields.iter().fold(0, |sum, (name, value)| {
        crc32c::crc32c_append(sum, format!("{name}={value}\n").as_bytes())
    })
}

/// Returns the manifest's inode and birth time.
fn manifest(dir: &Dir) -> Result<String, StateError> {
    let manifest = known(dir.path().join(MANIFEST), dir.metadata_of(MANIFEST))?;
    // An inode number is used again after a file is deleted, so it is not enough. Not every file
    // system has a birth time.
    let born = manifest.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let born = born.map_or(0, |at| at.as_nanos());
    Ok(format!("{}:{born}", manifest.ino()))
}

fn inode(dir: &Dir) -> Result<u64, StateError> {
    known(dir.path().to_owned(), dir.metadata()).map(|metadata| metadata.ino())
}

fn known(path: PathBuf, metadata: io::Result<Metadata>) -> Result<Metadata, StateError> {
    metadata.map_err(|cause| StateError::Io { path, cause })
}

/// Returns a random number that is not 0.
pub(crate) fn random() -> Result<u64, StateError> {
    getrandom::u64().map(|number| number | 1).map_err(StateError::NoRandomness)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::{Flag, Layer, resolve};

    fn opened(dir: &Path, log: Known) -> Result<(ServerState, DirOrigin), StateError> {
        ServerState::open(&Dir::open(dir).unwrap(), log)
    }

    fn write(state: &mut ServerState, dir: &Path) -> u64 {
        state.write(&Dir::open(dir).unwrap()).unwrap()
    }

    fn listed(store: u64, state_generation: u64) -> Known {
        Known::Listed(Identity {
            store,
            state_generation,
            ids_to: 0,
            has_segments: true,
            is_half: false,
        })
    }

    /// A directory with a state of store 5, in its first generation.
    fn directory() -> (tempfile::TempDir, ServerState) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("MANIFEST"), "").unwrap();
        let mut state = ServerState { store: 5, ..ServerState::new().unwrap() };
        state.ids_to = 100_010_000;
        assert_eq!(write(&mut state, dir.path()), 1);
        (dir, state)
    }

    /// The uptime of a new store began at 0: over a downtime longer than that a device that was away
    /// did not end, as no moment is negative.
    #[test]
    fn the_uptime_of_a_new_store_reaches_further_back_than_any_time_to_live() {
        let begun = Duration::from_millis(ServerState::new().unwrap().uptime_ms);
        let allows = |ttl: Duration| {
            let value = format!("{}s", ttl.as_secs());
            let (name, key) = ("--set".to_owned(), "named_device_ttl".to_owned());
            resolve([Layer::from_flags([Flag { name, key, value }])]).is_ok()
        };
        assert!(allows(begun / 2) && !allows(begun), "{begun:?}");
    }

    #[test]
    fn a_state_comes_back_as_it_was_written() {
        let (dir, state) = directory();
        for generation in [0, 1] {
            let opened = opened(dir.path(), listed(5, generation)).unwrap();
            assert_eq!(opened, (state.clone(), DirOrigin::Same));
        }
    }

    #[test]
    fn a_copied_directory_is_noticed_once_and_gets_a_new_epoch() {
        let (old, state) = directory();
        let new = tempfile::tempdir().unwrap();
        for file in [FILE, "MANIFEST"] {
            fs::copy(old.path().join(file), new.path().join(file)).unwrap();
        }
        let (mut copied, origin) = opened(new.path(), listed(5, 1)).unwrap();
        assert_eq!(origin, DirOrigin::Copied);
        assert_ne!(copied.epoch, state.epoch);
        assert_eq!((state.unsure_to, copied.unsure_to), (0, ALL));
        assert_eq!(copied.digest_key, state.digest_key);
        write(&mut copied, new.path());
        assert_eq!(opened(new.path(), listed(5, 1)).unwrap(), (copied, DirOrigin::Same));
    }

    /// The inode of the directory stays the same when a backup is put into it. It was once all that
    /// was compared.
    #[test]
    fn files_put_back_into_the_same_directory_are_a_copy() {
        let (dir, _) = directory();
        fs::copy(dir.path().join("MANIFEST"), dir.path().join("new")).unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("MANIFEST")).unwrap();
        assert_eq!(opened(dir.path(), listed(5, 1)).unwrap().1, DirOrigin::Copied);
    }

    #[test]
    fn a_state_and_a_log_that_do_not_belong_together_are_refused() {
        let (dir, mut state) = directory();
        let said = |log| opened(dir.path(), log).map(|_| ()).unwrap_err().to_string();
        assert!(said(listed(6, 1)).contains("another store"));
        assert!(said(listed(5, 2)).contains("state.json is older"));
        for log in [Known::Nothing, Known::Unlisted] {
            assert!(said(log).contains("MANIFEST is missing"));
        }
        write(&mut state, dir.path());
        write(&mut state, dir.path());
        assert!(said(listed(5, 1)).contains("MANIFEST is older"));
        fs::remove_file(dir.path().join(FILE)).unwrap();
        for log in [listed(5, 3), listed(5, 0), Known::Unlisted] {
            assert!(said(log).contains("state.json is missing"), "{log:?}");
        }
        let unborn = Identity {
            store: 5,
            state_generation: 0,
            ids_to: 0,
            has_segments: false,
            is_half: false,
        };
        for log in [Known::Nothing, Known::Listed(unborn)] {
            assert_eq!(opened(dir.path(), log).unwrap().1, DirOrigin::New);
        }
    }

    #[test]
    fn only_the_uptime_may_be_set_by_hand() {
        let (dir, state) = directory();
        let path = dir.path().join(FILE);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        value["uptime_ms"] = 7_000.into();
        fs::write(&path, value.to_string()).unwrap();
        let (changed, _) = opened(dir.path(), listed(5, 1)).unwrap();
        assert_eq!(changed, ServerState { uptime_ms: 7_000, ..state });
        value["ids_to"] = 7.into();
        fs::write(&path, value.to_string()).unwrap();
        let error = opened(dir.path(), listed(5, 1)).unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
    }

    #[test]
    fn a_file_of_another_version_or_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (content, words) in [
            ("{\"version\": 4}", "run a newer one"),
            ("{\"version\": 2}", "start with an empty data directory"),
            ("{\"version\": 3}", "missing field"),
            ("{", "EOF"),
        ] {
            fs::write(dir.path().join(FILE), content).unwrap();
            let error = opened(dir.path(), Known::Nothing).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
