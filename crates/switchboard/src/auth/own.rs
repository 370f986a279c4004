//! The server's own key: created on the first start and kept in the data directory. It signs and
//! verifies.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::Serialize;
use switchboard_proto::v1::DeviceRef;

use super::error::{KeyError, TokenError};
use super::keys::{Key, Signed};
use super::{Patterns, crypto};
use crate::store::{Dir, is_damage, open_to_read};

/// The `kid` of tokens of earlier versions, which did not distinguish own keys. Today a hyphen
/// and the key's fingerprint follow.
const OWN_KID: &str = "switchboard";

/// Number of digits of a fingerprint.
const FINGERPRINT_LEN: usize = 16;

/// Name of the key's file in the data directory.
pub(super) const KEY_FILE: &str = "token.key";

/// Length of the output of HS256 (RFC 7518 section 3.2).
const KEY_LEN: usize = 32;

/// The server's own key, HS256. Only its tokens may name a numeric device.
pub struct OwnKey {
    header: Header,
    signing: EncodingKey,
    verifying: Key,
}

/// Omits the key itself.
impl std::fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnKey").finish_non_exhaustive()
    }
}

/// The claims of a token that this server issues.
#[derive(Serialize)]
struct Minted<'a> {
    sub: &'a str,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_send: Option<Vec<&'a str>>,
}

impl OwnKey {
    /// Opens the key in the data directory `dir`, and never creates one: tokens signed with a
    /// key that no server has would be worthless, and a new key for a store that lost its own
    /// would invalidate every token.
    ///
    /// A key that every user of the machine can read or write is rejected. Access by a group is
    /// accepted: container platforms give the files of a volume to a group.
    pub fn open(dir: &Path) -> Result<OwnKey, KeyError> {
        let path = dir.join(KEY_FILE);
        match read(&path) {
            Err(error) if is_missing(&error) && has_store(dir) => {
                Err(KeyError::OwnMissing { path })
            }
            Err(error) if is_missing(&error) => Err(KeyError::NoData { dir: dir.to_owned() }),
            read => read,
        }
        .map(OwnKey::from_bytes)
    }

    /// Checks the key against the fingerprint that the store knows, and returns its fingerprint.
    ///
    /// `known` is the fingerprint returned earlier. With `may_make` a missing key is created and
    /// synced to disk. Two processes that create one at the same time get the same key.
    pub(crate) fn check(
        dir: &Path,
        known: Option<&str>,
        may_make: bool,
    ) -> Result<String, KeyError> {
        let path = dir.join(KEY_FILE);
        let bytes = match read(&path) {
            Err(error) if is_missing(&error) && may_make => make(dir, &path)?,
            Err(error) if is_missing(&error) => return Err(KeyError::OwnMissing { path }),
            read => read?,
        };
        let found = fingerprint(&bytes);
        if known.is_some_and(|known| known != found) {
            return Err(KeyError::OwnForeign { path });
        }
        Ok(found)
    }

    /// Returns a key that lasts as long as the process.
    pub fn random() -> Result<OwnKey, KeyError> {
        random_bytes().map(OwnKey::from_bytes)
    }

    fn from_bytes(bytes: [u8; KEY_LEN]) -> OwnKey {
        crypto::install();
        let kid = format!("{OWN_KID}-{}", fingerprint(&bytes));
        let key = DecodingKey::from_secret(&bytes);
        OwnKey {
            verifying: Key::new(Some(&kid), Algorithm::HS256, key),
            header: Header { kid: Some(kid), ..Header::new(Algorithm::HS256) },
            signing: EncodingKey::from_secret(&bytes),
        }
    }

    /// Verifies a token whose `kid` [is an own key's](is_own_kid).
    pub(super) fn verify(&self, signed: &Signed<'_>) -> Result<(), TokenError> {
        if signed.kid == Some(OWN_KID) || self.verifying.is_named(signed.kid) {
            return self.verifying.verify(signed);
        }
        Err(TokenError::OtherServer)
    }

    /// Issues a token that proves to be `device`, valid from `now_unix_s` for `ttl`, or for as
    /// long as the key exists. With `allow_send` the device may send to those only.
    ///
    /// Many long patterns make a token longer than [`TOKEN_LEN_MAX`](super::TOKEN_LEN_MAX),
    /// which every server rejects.
    pub fn mint(
        &self,
        device: DeviceRef<'_>,
        ttl: Option<Duration>,
        allow_send: Option<&Patterns>,
        now_unix_s: u64,
    ) -> String {
        let claims = Minted {
            sub: &device.to_string(),
            iat: now_unix_s,
            exp: ttl.map(|ttl| now_unix_s.saturating_add(ttl.as_secs())),
            allow_send: allow_send.map(|patterns| patterns.iter().collect()),
        };
        jsonwebtoken::encode(&self.header, &claims, &self.signing)
            .expect("HS256 signs anything, and these claims are JSON")
    }
}

/// Returns true if `kid` is that of a server's own key, this server's or another's. No key of
/// the operator may have such a one.
pub(super) fn is_own_kid(kid: &str) -> bool {
    let Some(rest) = kid.strip_prefix(OWN_KID) else { return false };
    let Some(fingerprint) = rest.strip_prefix('-') else { return rest.is_empty() };
    fingerprint.len() == FINGERPRINT_LEN
        && fingerprint.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_missing(error: &KeyError) -> bool {
    matches!(error, KeyError::Own { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
}

fn has_store(dir: &Path) -> bool {
    ["MANIFEST", "state.json"].iter().any(|file| dir.join(file).exists())
}

/// Returns a name for the key that reveals nothing of it: 64 of the 256 bits of a digest.
fn fingerprint(key: &[u8; KEY_LEN]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(b"switchboard token.key fingerprint");
    context.update(key);
    let digest = context.finish();
    digest.as_ref()[..FINGERPRINT_LEN / 2].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random_bytes() -> Result<[u8; KEY_LEN], KeyError> {
    let mut bytes = [0; KEY_LEN];
    getrandom::fill(&mut bytes).map_err(KeyError::NoRandomness)?;
    Ok(bytes)
}

fn read(path: &Path) -> Result<[u8; KEY_LEN], KeyError> {
    let failed = |cause| match is_damage(&cause) {
        true => KeyError::OwnLost { path: path.to_owned(), cause },
        false => KeyError::Own { path: path.to_owned(), cause },
    };
    let file = open_to_read(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(KeyError::OwnExposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    // One byte more than a key, to detect a longer file.
    file.take(KEY_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    bytes.try_into().map_err(|_| KeyError::OwnDamaged { path: path.to_owned() })
}

/// Creates the key under another name, syncs it, and renames it to `path` unless that exists by
/// then. Only the server's user can read and write the file from the moment it exists.
fn make(dir: &Path, path: &Path) -> Result<[u8; KEY_LEN], KeyError> {
    let failed = |cause| KeyError::Own { path: path.to_owned(), cause };
    let bytes = random_bytes()?;
    let written =
        tempfile::Builder::new().prefix(".token.key.").tempfile_in(dir).and_then(|mut file| {
            file.write_all(&bytes)?;
            // As in `Dir::open_file`.
            Dir::open(dir)?.give_to_owner(file.as_file()).ok();
            file.as_file().sync_all()?;
            Ok(file)
        });
    match written.map_err(failed)?.persist_noclobber(path) {
        Ok(_) => {}
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => return read(path),
        Err(e) => return Err(failed(e.error)),
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Returns the key of a server that has been started there.
    fn made(dir: &Path) -> OwnKey {
        OwnKey::check(dir, None, true).unwrap();
        OwnKey::open(dir).unwrap()
    }

    fn token(key: &OwnKey) -> String {
        key.mint(DeviceRef::Name("a"), None, None, 0)
    }

    #[test]
    fn the_key_is_made_once_and_for_its_user_alone() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let made = made(dir);
        let mode = fs::metadata(dir.join(KEY_FILE)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600);
        assert_eq!(token(&OwnKey::open(dir).unwrap()), token(&made));
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "nothing else is left there");
    }

    /// A lost key was once silently replaced, which invalidated every token.
    #[test]
    fn the_key_of_a_store_is_not_made_anew_nor_exchanged() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(KEY_FILE);
        let known = OwnKey::check(home.path(), None, true).unwrap();
        assert_eq!(OwnKey::check(home.path(), Some(&known), false).unwrap(), known);
        fs::write(home.path().join("MANIFEST"), "").unwrap();
        let key = fs::read(&path).unwrap();
        // Written in place, so that the file keeps its mode.
        fs::write(&path, [7; KEY_LEN]).unwrap();
        let error = OwnKey::check(home.path(), Some(&known), false).unwrap_err();
        assert!(matches!(error, KeyError::OwnForeign { .. }), "{error}");
        fs::write(&path, key).unwrap();
        OwnKey::check(home.path(), Some(&known), false).unwrap();
        fs::remove_file(&path).unwrap();
        let error = OwnKey::check(home.path(), Some(&known), false).unwrap_err();
        assert!(matches!(error, KeyError::OwnMissing { .. }), "{error}");
        let error = OwnKey::open(home.path()).unwrap_err();
        assert!(matches!(error, KeyError::OwnMissing { .. }), "{error}");
        assert!(!path.exists());
    }

    /// The error chain once repeated the cause.
    #[test]
    fn an_error_says_its_cause_once() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(KEY_FILE);
        for error in [
            read(&path).unwrap_err(),
            KeyError::File { key: "auth_jwks_file", path, cause: io::ErrorKind::NotFound.into() },
        ] {
            let said = format!("{:#}", anyhow::Error::new(error));
            assert_eq!(
                said.matches("not found").count() + said.matches("No such").count(),
                1,
                "{said}"
            );
        }
    }

    #[test]
    fn two_that_make_the_key_at_once_get_the_same() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let other = made(dir);
        // As if the other process had created the key after this one had looked.
        let late = make(dir, &dir.join(KEY_FILE)).map(OwnKey::from_bytes).unwrap();
        assert_eq!(token(&late), token(&other));
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_everybody_may_read_or_write_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(KEY_FILE);
        made(home.path());
        for (mode, is_refused) in [
            (0o600, false),
            (0o400, false),
            (0o660, false),
            (0o604, true),
            (0o602, true),
            (0o644, true),
            (0o777, true),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let opened = OwnKey::open(home.path());
            assert_eq!(matches!(opened, Err(KeyError::OwnExposed { .. })), is_refused, "{mode:o}");
        }
    }

    #[test]
    fn a_damaged_key_is_refused_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(KEY_FILE);
        made(home.path());
        for len in [0, 31, 33, 5000] {
            fs::write(&path, vec![7; len]).unwrap();
            let error = OwnKey::open(home.path()).unwrap_err();
            assert!(matches!(error, KeyError::OwnDamaged { .. }), "{len}: {error}");
            assert_eq!(fs::metadata(&path).unwrap().len(), len as u64);
        }
    }

    #[test]
    fn only_a_servers_key_has_its_kid() {
        let key = OwnKey::random().unwrap();
        for (kid, is_own) in [
            (key.header.kid.as_deref().unwrap(), true),
            ("switchboard", true),
            ("switchboard-0123456789abcdef", true),
            ("switchboard-0123456789ABCDEF", false),
            ("switchboard-0123456789abcde", false),
            ("switchboard-prod", false),
            ("switchboard-", false),
            ("switchboards", false),
            ("", false),
        ] {
            assert_eq!(is_own_kid(kid), is_own, "{kid}");
        }
    }
}
