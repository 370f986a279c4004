//! The operator's keys as the configuration names them, read from their files.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jsonwebtoken::{Algorithm, DecodingKey};

use super::error::KeyError;
use super::keys::{KEYS_MAX, Key};
use super::public;
use crate::config::{Config, KeySet};
use crate::files::{self, Occasion};

/// Maximum bytes of a file of keys; 64 RSA keys of 8192 bits take 100 KiB.
pub(super) const KEYS_BYTES_MAX: u64 = 256 << 10;

/// Minimum bytes of an HS256 secret (RFC 7518 section 3.2).
const SECRET_LEN_MIN: usize = 32;

/// The files that hold the operator's keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    secret: Option<PathBuf>,
    public: Vec<PathBuf>,
    key_set: Option<PathBuf>,
}

impl Files {
    pub(super) fn of(config: &Config) -> Files {
        Files {
            secret: config.auth_hs256_secret_file.clone(),
            public: config.auth_public_keys.clone(),
            key_set: match &config.auth_jwks {
                Some(KeySet::File(path)) => Some(path.clone()),
                _ => None,
            },
        }
    }

    /// Reads all of them.
    pub(super) fn read(&self, occasion: Occasion) -> Result<Vec<Key>, KeyError> {
        let mut keys = Vec::new();
        if let Some(path) = &self.secret {
            keys.push(secret(path, occasion)?);
        }
        for path in &self.public {
            keys.extend(with_problem("auth_public_keys", path, occasion, public::from_pem)?);
        }
        if let Some(path) = &self.key_set {
            keys.extend(with_problem("auth_jwks", path, occasion, public::from_jwks)?);
        }
        match self.public.first().or(self.key_set.as_ref()) {
            Some(path) if keys.len() > KEYS_MAX => Err(KeyError::Unusable {
                key: "auth_public_keys",
                path: path.clone(),
                problem: format!("more than {KEYS_MAX} keys in all files"),
            }),
            _ => Ok(keys),
        }
    }
}

/// Reads the secret: the bytes of the file without one final newline.
fn secret(path: &Path, occasion: Occasion) -> Result<Key, KeyError> {
    const KEY: &str = "auth_hs256_secret_file";
    warn_if_exposed(path);
    with_problem(KEY, path, occasion, |bytes| {
        let secret = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.len() < SECRET_LEN_MIN {
            return Err(format!("an HS256 secret has at least {SECRET_LEN_MIN} bytes"));
        }
        Ok(Key::new(None, Algorithm::HS256, DecodingKey::from_secret(secret)))
    })
}

/// Only warns: platforms that mount secrets make them readable, but in a container of their own.
fn warn_if_exposed(path: &Path) {
    let mode = path.metadata().map(|file| file.permissions().mode()).unwrap_or_default();
    if mode & 0o007 != 0 {
        let path = path.display();
        tracing::warn!(%path, "auth_hs256_secret_file: other users of this machine have access");
    }
}

fn with_problem<T>(
    key: &'static str,
    path: &Path,
    occasion: Occasion,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, KeyError> {
    let failed = |cause| KeyError::File { key, path: path.to_owned(), cause };
    let bytes = files::read(path, KEYS_BYTES_MAX, occasion).map_err(failed)?;
    let parsed = parse(&bytes);
    parsed.map_err(|problem| KeyError::Unusable { key, path: path.to_owned(), problem })
}
