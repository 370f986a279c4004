//! The file that keeps the identity of a device of the command line between runs.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use switchboard_client::v1::State;

/// Content of the file; fields of later versions are ignored.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    /// Only for a device with a number; others have their token in a file or variable of their
    /// own.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    mailbox: Option<String>,
    last_seq: u64,
}

/// Source of a device's token.
#[derive(Clone, Debug)]
pub(super) enum TokenSource {
    File(PathBuf),
    /// The token itself, from the environment.
    Variable(String),
}

impl TokenSource {
    /// Reads the current token.
    pub(super) fn read(&self) -> Result<String, StateFileError> {
        match self {
            TokenSource::File(path) => token_in(path),
            TokenSource::Variable(token) => Ok(token.trim().to_owned()),
        }
    }
}

/// The file for a device's state, and the source of its token.
#[derive(Clone, Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    token: Option<TokenSource>,
}

/// Reason why the state cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {why}", path.display())]
pub(super) struct StateFileError {
    doing: &'static str,
    path: PathBuf,
    why: String,
}

impl StateFile {
    pub(super) fn new(path: PathBuf, token: Option<TokenSource>) -> StateFile {
        StateFile { path, token }
    }

    /// Returns the file next to a token file.
    pub(super) fn beside(token: &Path) -> StateFile {
        StateFile::new(beside(token, ".state"), Some(TokenSource::File(token.to_owned())))
    }

    /// Returns the file in the user's state directory for this server and command.
    pub(super) fn of_user(command: &str, url: &str) -> Result<StateFile, StateFileError> {
        let name = format!("{command}-{}.json", file_name_of(url));
        Ok(StateFile::new(users_states()?.join(name), None))
    }

    /// Loads the state; a new device has an empty one.
    pub(super) fn load(&self) -> Result<State, StateFileError> {
        let content = match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| self.error("read", e))?,
            Err(e) if e.kind() == ErrorKind::NotFound => Content::default(),
            Err(e) => return Err(self.error("read", e)),
        };
        let token = match (self.token()?, content.token) {
            // Saving would overwrite the other token for good.
            (Some(_), Some(_)) => {
                return Err(self.error("use", "it is another device's than the given token's"));
            }
            (given, kept) => given.or(kept),
        };
        Ok(State { token, mailbox: content.mailbox, last_seq: content.last_seq })
    }

    /// Reads the current token from its source.
    pub(super) fn token(&self) -> Result<Option<String>, StateFileError> {
        self.token.as_ref().map(TokenSource::read).transpose()
    }

    /// Returns the file's path if the token is in it, rather than in a file or variable of its
    /// own.
    pub(super) fn path_of_token(&self) -> Option<&Path> {
        let has_token = self.token.is_none() && self.load().is_ok_and(|it| it.token.is_some());
        has_token.then_some(&*self.path)
    }

    /// Replaces the file atomically; it is on disk when this returns.
    pub(super) fn save(&self, state: &State) -> Result<(), StateFileError> {
        let token = if self.token.is_none() { state.token.clone() } else { None };
        let content = Content { token, mailbox: state.mailbox.clone(), last_seq: state.last_seq };
        let bytes = serde_json::to_vec(&content).expect("numbers and text are JSON");
        self.replace(&bytes).map_err(|e| self.error("write", e))
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let new = beside(&self.path, ".new");
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(directory)?.sync_all()
    }

    fn error(&self, doing: &'static str, why: impl ToString) -> StateFileError {
        StateFileError { doing, path: self.path.clone(), why: why.to_string() }
    }
}

/// Reads the token in a file, without white space around it.
fn token_in(file: &Path) -> Result<String, StateFileError> {
    let error = |why: &dyn ToString| StateFileError {
        doing: "read the token in",
        path: file.to_owned(),
        why: why.to_string(),
    };
    let text = fs::read_to_string(file).map_err(|e| error(&e))?;
    let token = text.trim();
    if token.is_empty() { Err(error(&"it is empty")) } else { Ok(token.to_owned()) }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Returns the directory for the state of a user's programs (XDG Base Directory Specification
/// 0.8).
fn users_states() -> Result<PathBuf, StateFileError> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let states = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    states.map(|states| states.join("switchboard")).ok_or_else(|| StateFileError {
        doing: "choose",
        path: "a state file".into(),
        why: "HOME is not set; give --state FILE".to_owned(),
    })
}

/// Converts an address into a part of a file name.
fn file_name_of(url: &str) -> String {
    let address = url.split_once("://").map_or(url, |(_, rest)| rest).trim_matches('/');
    address.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn state(token: Option<&str>, last_seq: u64) -> State {
        State { token: token.map(str::to_owned), mailbox: Some("m".to_owned()), last_seq }
    }

    #[test]
    fn a_state_comes_back_and_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state");
        let file = StateFile::new(path.clone(), None);
        assert_eq!(file.load().unwrap(), State::default());
        for seq in [1, 2] {
            file.save(&state(Some("t"), seq)).unwrap();
            assert_eq!(file.load().unwrap(), state(Some("t"), seq));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "{").unwrap();
        assert!(file.load().unwrap_err().to_string().contains("EOF"));
    }

    #[test]
    fn a_token_that_has_its_own_file_stays_there() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("alice.token");
        fs::write(&token, "abc\n").unwrap();
        let file = StateFile::beside(&token);
        file.save(&state(Some("abc"), 3)).unwrap();
        let path = dir.path().join("alice.token.state");
        assert!(!fs::read_to_string(path).unwrap().contains("abc"));
        assert_eq!(file.load().unwrap(), state(Some("abc"), 3));
        let other = StateFile::new(token.with_extension("other"), None);
        other.save(&state(Some("def"), 1)).unwrap();
        let mixed = StateFile::new(other.path, Some(TokenSource::File(token.clone())));
        assert!(mixed.load().unwrap_err().to_string().contains("another device's"));
        fs::write(&token, " \n").unwrap();
        assert!(file.load().unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn each_server_has_its_own_file() {
        assert_eq!(file_name_of("wss://example.org:8443/a?b"), "example.org-8443-a-b");
    }
}
