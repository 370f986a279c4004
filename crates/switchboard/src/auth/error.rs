//! Errors of tokens and keys.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Reason for refusing a token. Its text fits into a close frame: at most 123 bytes (RFC 6455
/// section 5.5.1), with nothing copied from the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than [`TOKEN_LEN_MAX`](super::TOKEN_LEN_MAX).
    #[error("the token is longer than {} bytes", super::TOKEN_LEN_MAX)]
    TooLong,
    /// Not three parts in base64url, or not JSON inside.
    #[error("the token is no JWT")]
    NotJwt,
    /// `alg` is `none`, unknown, or not that of the key that `kid` names.
    #[error("the token's algorithm is not accepted; its key decides which is")]
    WrongAlgorithm,
    /// The header asks for an extension by `crit` (RFC 7515 section 4.1.11).
    #[error("the token needs an extension that is not understood here (crit)")]
    Critical,
    /// No key of this server has the token's `kid`.
    #[error("the token is signed with a key that is not known here")]
    UnknownKey,
    /// None of the present keys has signed the token, but the key set that is fetched next may
    /// have the key: the same token may be valid in a moment.
    #[error("the token's key is not known here yet; the key set is being fetched, come back soon")]
    KeyAwaited,
    /// The `kid` is that of a server's own key, but not of this server's.
    #[error(
        "the token is signed with the key of another server or data directory, or an earlier one"
    )]
    OtherServer,
    /// None of the keys that may have signed the token verifies it.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// `exp` has passed.
    #[error("the token expired at {}", utc(*.since_unix_s))]
    Expired {
        /// Value of `exp`.
        since_unix_s: u64,
    },
    /// `nbf` is in the future.
    #[error("the token is not valid before {}", utc(*.before_unix_s))]
    NotYetValid {
        /// Value of `nbf`.
        before_unix_s: u64,
    },
    /// `aud` lacks `auth_audience`.
    #[error("the token is not meant for this server (aud)")]
    WrongAudience,
    /// `iss` is not `auth_issuer`.
    #[error("the token is not from the issuer that is trusted here (iss)")]
    WrongIssuer,
    /// `sub` is missing or not a device id.
    #[error(
        "the token names no device: sub must be a letter, then up to 127 of A-Z a-z 0-9 . _ : @ -"
    )]
    BadSubject,
    /// `sub` is a number, and the key is not this server's own.
    #[error(
        "numeric device ids require a token issued by this server; this key may sign for names"
    )]
    ForeignNumber,
    /// `sub` is a number, and `auth` is `token`.
    #[error("this server requires a token of a device with a name (auth = \"token\")")]
    NoName,
    /// A claim has the wrong type or is out of bounds.
    #[error("the token's claim {0} cannot be read")]
    BadClaim(&'static str),
}

/// Formats a time; the year 9999 stands for all later ones.
fn utc(unix_s: u64) -> humantime::Rfc3339Timestamp {
    /// 9999-12-31T23:59:59Z, the last time that RFC 3339 can write.
    const LAST: u64 = 253_402_300_799;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s.min(LAST));
    humantime::format_rfc3339_seconds(time)
}

impl KeyError {
    /// Returns the I/O error of the own key's file.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        if let KeyError::Own { cause, .. } = self { Some(cause) } else { None }
    }

    /// Returns true if the error is about keys that the configuration names, not the server's
    /// own.
    pub(crate) fn is_of_operator(&self) -> bool {
        matches!(
            self,
            KeyError::File { .. } | KeyError::Unusable { .. } | KeyError::NoAuthorities(_)
        )
    }
}

/// Reason why keys cannot be read or created.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The server's own key cannot be read or written.
    #[error("{path}: {cause}")]
    Own {
        /// The key's file.
        path: PathBuf,
        /// The I/O error. Not called `source`, or error chains would print it twice.
        cause: io::Error,
    },
    /// The own key is lost on disk, or its path is not a file.
    #[error(
        "{path} cannot be read ({cause}); restore it from a backup, or run `switchboard store \
         repair`: it makes a new one, and no token of the old one is valid"
    )]
    OwnLost {
        /// The key's file.
        path: PathBuf,
        /// The I/O error.
        cause: io::Error,
    },
    /// Other users of the machine can read or replace the own key.
    #[error(
        "{path}: other users of this machine have access to the key that proves who a device is \
         (mode {mode:04o}); run `chmod 600 {path}`, or remove it and run `switchboard store \
         repair`: then a new one is made, and no token of the old one is valid"
    )]
    OwnExposed {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file of the own key does not hold a key.
    #[error(
        "{path}: must hold 32 bytes, but does not; restore it from a backup, or run `switchboard \
         store repair`: it makes a new one, and no token of the old one is valid"
    )]
    OwnDamaged {
        /// The key's file.
        path: PathBuf,
    },
    /// There is neither a store nor a key.
    #[error(
        "no server's data in {dir}: start the server once, or name its directory by --data-dir or its \
         file by --config"
    )]
    NoData {
        /// The directory that was searched.
        dir: PathBuf,
    },
    /// There is a store, but its own key is missing.
    #[error(
        "{path} is missing: every token that this server gave would be worthless; restore it from \
         a backup, or run `switchboard store repair`: it makes a new one"
    )]
    OwnMissing {
        /// The key's file.
        path: PathBuf,
    },
    /// The own key is not the one that the store knows.
    #[error(
        "{path} is not the key of this store, or is damaged: no token that this server gave would \
         be valid; restore it from a backup, or run `switchboard store repair`: it makes a new one"
    )]
    OwnForeign {
        /// The key's file.
        path: PathBuf,
    },
    /// The system returned no random bytes.
    #[error("no randomness from the system: {0}")]
    NoRandomness(getrandom::Error),
    /// A file of the operator's keys cannot be read.
    #[error("{key} = \"{path}\": {cause}")]
    File {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The I/O error.
        cause: io::Error,
    },
    /// A file of the operator's keys holds no key that can be used.
    #[error("{key} = \"{path}\": {problem}")]
    Unusable {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The problem, and what would be right.
        problem: String,
    },
    /// No certificate authority to verify the key set's server with.
    #[error("auth_jwks: {0}")]
    NoAuthorities(String),
}
