//! Keys that verify tokens, and the choice of a key for a token.

use jsonwebtoken::{Algorithm, DecodingKey};

use super::error::TokenError;

/// Maximum number of the operator's keys in all files and the key set together.
pub(super) const KEYS_MAX: usize = 64;

/// A key, and the one algorithm that it verifies.
#[derive(Clone)]
pub(super) struct Key {
    kid: Option<Box<str>>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Omits the key itself.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// A token split into its parts, none of them trusted yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signed<'a> {
    /// Header and claims, as signed.
    pub(super) message: &'a str,
    pub(super) signature: &'a str,
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<&'a str>,
}

impl Key {
    pub(super) fn new(kid: Option<&str>, algorithm: Algorithm, key: DecodingKey) -> Key {
        Key { kid: kid.map(Box::from), algorithm, key }
    }

    /// Returns true if this key has the token's `kid`.
    pub(super) fn is_named(&self, kid: Option<&str>) -> bool {
        kid.is_some() && self.kid.as_deref() == kid
    }

    /// Verifies with the key's own algorithm, never with the one that the token asks for.
    pub(super) fn verify(&self, signed: &Signed<'_>) -> Result<(), TokenError> {
        if signed.algorithm != self.algorithm {
            return Err(TokenError::WrongAlgorithm);
        }
        let Signed { message, signature, .. } = signed;
        match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &self.key, self.algorithm)
        {
            Ok(true) => Ok(()),
            Ok(false) => Err(TokenError::BadSignature),
            // The signature is not base64url.
            Err(_) => Err(TokenError::NotJwt),
        }
    }

    /// Returns true if the token may be signed with this key. A key with a `kid` verifies only
    /// tokens with that `kid`. One without, as from a PEM file, may have signed any token; but a
    /// token that has a `kid` and another algorithm means another key.
    fn may_have_signed(&self, signed: &Signed<'_>) -> bool {
        match self.kid {
            Some(_) => self.is_named(signed.kid),
            None => signed.kid.is_none() || signed.algorithm == self.algorithm,
        }
    }
}

/// Verifies with each key that may have signed the token. If none has, the error is that of the
/// key that got furthest.
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
