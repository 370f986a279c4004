//! Identity: the keys of tokens, and what a token proves.
//!
//! A token is a JWT (RFC 7519). The server's own key signs those of devices without a name and
//! those of `switchboard token`; the operator's keys belong to other issuers. The two cannot be
//! confused: a token whose `kid` is that of an own key is verified by the own key alone, any
//! other by the operator's keys alone, and only the own key may name a numeric device.

mod claims;
mod crypto;
mod error;
mod fetch;
mod keys;
mod missing;
mod operator;
mod own;
mod patterns;
mod public;
mod refresh;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use switchboard_proto::v1::PublicId;
use tokio::sync::Notify;

pub use claims::Claims;
pub use error::{KeyError, TokenError};
pub use own::OwnKey;
pub use patterns::{PATTERN_LEN_MAX, PATTERNS_MAX, Patterns, PatternsError};
pub use switchboard_proto::v1::TOKEN_LEN_MAX;

use crate::config::{Auth, Config};
use crate::files::Occasion;
use claims::{Rules, SignedBy, read_object};
use keys::{Key, Signed, verify_with};
use operator::Files;
use refresh::Remote;

/// All keys that the server accepts, and its own, which also signs. Shared by all threads;
/// verifying takes a read lock only for the operator's keys, and only while a few pointers are
/// copied.
#[derive(Debug)]
pub struct Keyring {
    own: OwnKey,
    /// True if devices without a name are let in. With `auth = "token"` they are not: every
    /// device that came while the server was open has got a token for its number, and would stay
    /// for ever.
    takes_numbers: bool,
    operator: RwLock<OperatorKeys>,
    /// Notified when a client comes with a `kid` that no key has, or the operator asks for a
    /// fresh key set.
    wants_refresh: Notify,
    /// Notified when the URL may have changed.
    changed: Notify,
}

/// The operator's keys and the configuration's rules for them; a change replaces one field.
#[derive(Clone, Debug)]
struct OperatorKeys {
    rules: Arc<Rules>,
    remote: Option<Arc<Remote>>,
    of_files: Arc<[Key]>,
    /// Keys from the URL of `auth_jwks`; empty until the first fetch has succeeded.
    of_url: Arc<[Key]>,
    /// Number of that set, counted from 1.
    set: u64,
}

/// The parts of a token's header that are read (RFC 7515 section 4.1). A key embedded in the
/// token, or the URL of one, is never used.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    crit: Option<IgnoredAny>,
}

impl Keyring {
    /// Opens the own key of `data_dir`, or makes a random one without `data_dir`, and reads the
    /// operator's keys from their files. The keys of a URL arrive by
    /// [`keep_fresh`](Keyring::keep_fresh).
    pub fn open(config: &Config) -> Result<Keyring, KeyError> {
        let own = match &config.data_dir {
            Some(dir) => OwnKey::open(dir)?,
            None => OwnKey::random()?,
        };
        Ok(Keyring {
            own,
            takes_numbers: config.auth == Auth::Open,
            operator: RwLock::new(OperatorKeys::read(config, Occasion::Start)?),
            wants_refresh: Notify::new(),
            changed: Notify::new(),
        })
    }

    /// Checks that the operator's keys can be used, for `config check`; creates and fetches
    /// nothing.
    pub fn check(config: &Config) -> Result<(), KeyError> {
        OperatorKeys::read(config, Occasion::Start).map(drop)
    }

    /// Takes the operator's keys from this configuration and its files, and has the key set of a
    /// URL fetched soon; the own key stays. On an error all old keys stay. Existing connections
    /// are not verified again.
    pub fn reload(&self, config: &Config) -> Result<(), KeyError> {
        let read = OperatorKeys::read(config, Occasion::Reload)?;
        let mut operator = self.operator.write().unwrap_or_else(PoisonError::into_inner);
        if operator.remote == read.remote {
            operator.rules = read.rules;
            operator.of_files = read.of_files;
        } else {
            *operator = read;
            self.changed.notify_one();
        }
        self.wants_refresh.notify_one();
        Ok(())
    }

    /// Returns the claims that `token` proves at this time, or the reason for refusing it.
    ///
    /// Tokens of the own key are checked by signature and time only; `auth_audience` and
    /// `auth_issuer` apply to the operator's.
    pub fn verify(&self, token: &str, now_unix_s: u64) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_LEN_MAX {
            return Err(TokenError::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::NotJwt)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::NotJwt)?;
        let header = decode(header).ok_or(TokenError::NotJwt)?;
        let header: Header<'_> = read_object(&header).ok_or(TokenError::NotJwt)?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let algorithm = header.alg.parse().map_err(|_| TokenError::WrongAlgorithm)?;
        let kid = header.kid.as_deref();
        let signed_by = self.verify_signature(&Signed { message, signature, algorithm, kid })?;
        let claims = decode(payload).ok_or(TokenError::NotJwt)?;
        let rules = &self.operator_keys().rules;
        let claims = Claims::judge(&claims, signed_by, rules, now_unix_s)?;
        if matches!(claims.device, PublicId::Number(_)) && !self.takes_numbers {
            return Err(TokenError::NoName);
        }
        Ok(claims)
    }

    fn verify_signature(&self, signed: &Signed<'_>) -> Result<SignedBy, TokenError> {
        if signed.kid.is_some_and(own::is_own_kid) {
            return self.own.verify(signed).map(|()| SignedBy::Server);
        }
        let keys = self.operator_keys();
        let verified = verify_with(keys.of_files.iter().chain(&*keys.of_url), signed);
        verified.map_err(|error| self.refusal(&keys, signed, error))?;
        Ok(SignedBy::Operator)
    }

    /// Returns the error for a token that none of these keys has signed: `error`, or
    /// `KeyAwaited` while the next key set may decide. It then requests a fetch: the set may
    /// have a new key, or another one under a known `kid`.
    fn refusal(&self, keys: &OperatorKeys, signed: &Signed<'_>, error: TokenError) -> TokenError {
        let Some(remote) = &keys.remote else { return error };
        if error == TokenError::NotJwt {
            return error;
        }
        self.wants_refresh.notify_one();
        if remote.may_bring(signed.kid, keys.set) { TokenError::KeyAwaited } else { error }
    }

    /// Returns the key that signs the server's own tokens.
    pub fn own(&self) -> &OwnKey {
        &self.own
    }

    fn operator_keys(&self) -> OperatorKeys {
        self.operator.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl OperatorKeys {
    /// Reads the files that the configuration names.
    fn read(config: &Config, occasion: Occasion) -> Result<OperatorKeys, KeyError> {
        let rules =
            Rules { audience: config.auth_audience.clone(), issuer: config.auth_issuer.clone() };
        Ok(OperatorKeys {
            rules: Arc::new(rules),
            remote: Remote::of(config)?.map(Arc::new),
            of_files: Files::of(config).read(occasion)?.into(),
            of_url: Arc::default(),
            set: 0,
        })
    }
}

fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}
