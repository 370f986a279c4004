//! Keys that verify tokens, and how one is chosen for a token.

use jsonwebtoken::{Algorithm, DecodingKey};

use super::error::TokenError;

/// Keys of the operator, those of files and those of a key set together, that are looked at.
pub(super) const KEYS_MAX: usize = 64;

/// A key, and the one algorithm that it verifies.
#[derive(Clone)]
pub(super) struct Key {
    kid: Option<Box<str>>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Without the key.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// A token in its parts, before anything of it is believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signed<'a> {
    /// Header and claims as they were signed.
    pub(super) message: &'a str,
    pub(super) signature: &'a str,
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<&'a str>,
}

impl Key {
    pub(super) fn new(kid: Option<&str>, algorithm: Algorithm, key: DecodingKey) -> Key {
        Key { kid: kid.map(Box::from), algorithm, key }
    }

    /// Returns whether this key has the token's `kid`.
    pub(super) fn is_named(&self, kid: Option<&str>) -> bool {
        kid.is_some() && self.kid.as_deref() == kid
    }

    /// Verifies with the key's own algorithm, whatever the token would like.
    pub(super) fn verify(&self, signed: &Signed<'_>) -> Result<(), TokenError> {
        if signed.algorithm != self.algorithm {
            return Err(TokenError::WrongAlgorithm);
        }
        let Signed { message, signature, .. } = signed;
        match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &self.key, self.algorithm)
        {
            Ok(true) => Ok(()),
            Ok(false) => Err(TokenError::BadSignature),
            // The signature is no base64url.
            Err(_) => Err(TokenError::NotJwt),
        }
    }

    /// A key with a `kid` is for tokens with that `kid`. One without, as from a PEM file, may have
    /// signed any token; but where that says `kid` and has another algorithm, another key is meant.
    fn may_have_signed(&self, signed: &Signed<'_>) -> bool {
        match self.kid {
            Some(_) => self.is_named(signed.kid),
            None => signed.kid.is_none() || signed.algorithm == self.algorithm,
        }
    }
}

/// Verifies with each of the keys that may have signed the token. The error is that of the key that
/// came furthest.
pub(super) fn verify_with<'a>(
    keys: impl IntoIterator<Item = &'a Key>,
    signed: &Signed<'_>,
) -> Result<(), TokenError> {
    let mut refusal = TokenError::UnknownKey;
    for key in keys.into_iter().filter(|key| key.may_have_signed(signed)) {
        match key.verify(signed) {
            Ok(()) => return Ok(()),
            Err(TokenError::WrongAlgorithm) if refusal != TokenError::UnknownKey => {}
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}
