//! The claims of a token whose signature is verified.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use switchboard_proto::v1::{DeviceRef, PublicId};

use super::error::TokenError;
use super::patterns::Patterns;

/// The rights that a valid token grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The device that the token identifies.
    pub device: PublicId,
    /// Time at which it expires, leeway included; `None` means never.
    pub expires_at_ms: Option<u64>,
    /// The devices that it may send to; `None` means all.
    pub allow_send: Option<Patterns>,
}

/// Owner of the key that signed a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignedBy {
    /// This server: it may name numbers, and needs no leeway.
    Server,
    /// The operator, by a key that the configuration names.
    Operator,
}

/// Maximum difference in seconds between an issuer's clock and ours, in either direction. RFC
/// 7519 section 4.1.4 allows a few minutes; clocks set over the network are closer.
const LEEWAY_S: u64 = 30;

/// Requirements of the configuration for tokens of the operator.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    pub(super) audience: Option<String>,
    pub(super) issuer: Option<String>,
}

/// The claims that are read (RFC 7519 section 4.1); all others are ignored. A claim that is
/// present must have its type: were `null` taken for an absent claim, an issuer's bug could make
/// a token last for ever.
#[derive(Deserialize)]
struct RawClaims {
    #[serde(default, deserialize_with = "present")]
    sub: Option<String>,
    #[serde(default, deserialize_with = "present")]
    exp: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    aud: Option<Audience>,
    #[serde(default, deserialize_with = "present")]
    iss: Option<String>,
    #[serde(default, deserialize_with = "present")]
    allow_send: Option<Vec<Box<str>>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// Parses a JSON object. An array is rejected: serde would take its items for the fields in
/// order.
pub(super) fn read_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    let is_object = json.trim_ascii_start().starts_with(b"{");
    if is_object { serde_json::from_slice(json).ok() } else { None }
}

impl Claims {
    /// Parses and checks the claims in `payload`, the JSON of a token whose signature is
    /// verified.
    pub(super) fn judge(
        payload: &[u8],
        signed_by: SignedBy,
        rules: &Rules,
        now_unix_s: u64,
    ) -> Result<Claims, TokenError> {
        let raw: RawClaims = read_object(payload).ok_or_else(|| misread(payload))?;
        // Our own tokens are checked against the same clock that issued them.
        let leeway_s = match signed_by {
            SignedBy::Server => 0,
            SignedBy::Operator => {
                rules.judge(&raw)?;
                LEEWAY_S
            }
        };
        let expires_at_s = raw.in_force(leeway_s, now_unix_s)?;
        let device = raw.sub.as_deref().and_then(DeviceRef::parse);
        let device = PublicId::from(device.ok_or(TokenError::BadSubject)?);
        if signed_by == SignedBy::Operator && matches!(device, PublicId::Number(_)) {
            return Err(TokenError::ForeignNumber);
        }
        // Numbers are given by this server: an issuer that could name them could be any such
        // device.
        let allow_send = raw.allow_send.map(Patterns::new).transpose();
        Ok(Claims {
            device,
            expires_at_ms: expires_at_s.map(|at_s| at_s.saturating_mul(1000)),
            allow_send: allow_send.map_err(|_| TokenError::BadClaim("allow_send"))?,
        })
    }
}

impl Rules {
    fn judge(&self, claims: &RawClaims) -> Result<(), TokenError> {
        if self.audience.as_ref().is_some_and(|wanted| !claims.is_for(wanted)) {
            return Err(TokenError::WrongAudience);
        }
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err(TokenError::WrongIssuer);
        }
        Ok(())
    }
}

impl RawClaims {
    fn is_for(&self, audience: &String) -> bool {
        match &self.aud {
            None => false,
            Some(Audience::One(one)) => one == audience,
            Some(Audience::Many(many)) => many.contains(audience),
        }
    }

    /// Returns the time in seconds at which the token expires, or an error if `now_unix_s` is
    /// outside its validity.
    fn in_force(&self, leeway_s: u64, now_unix_s: u64) -> Result<Option<u64>, TokenError> {
        let whole = |claim: Option<f64>, name| match claim {
            Some(seconds) if seconds < 0.0 => Err(TokenError::BadClaim(name)),
            // The cast saturates for a date in the far future.
            seconds => Ok(seconds.map(|seconds| seconds as u64)),
        };
        if let Some(before_unix_s) = whole(self.nbf, "nbf")?
            && before_unix_s > now_unix_s.saturating_add(leeway_s)
        {
            return Err(TokenError::NotYetValid { before_unix_s });
        }
        let Some(since_unix_s) = whole(self.exp, "exp")? else { return Ok(None) };
        let end_s = since_unix_s.saturating_add(leeway_s);
        if now_unix_s >= end_s {
            return Err(TokenError::Expired { since_unix_s });
        }
        Ok(Some(end_s))
    }
}

/// Returns the error for the claim that made `payload` unreadable.
fn misread(payload: &[u8]) -> TokenError {
    let Some(claims) = read_object::<Map<String, Value>>(payload) else {
        return TokenError::NotJwt;
    };
    let is_bad = |name: &str| {
        let Some(value) = claims.get(name) else { return false };
        let is_text = |value: &Value| value.is_string();
        let is_texts = || value.as_array().is_some_and(|items| items.iter().all(is_text));
        match name {
            "exp" | "nbf" => !value.is_number(),
            "aud" => !is_text(value) && !is_texts(),
            "allow_send" => !is_texts(),
            _ => !is_text(value),
        }
    };
    match ["sub", "exp", "nbf", "aud", "iss", "allow_send"].into_iter().find(|name| is_bad(name)) {
        Some("sub") => TokenError::BadSubject,
        Some(name) => TokenError::BadClaim(name),
        // A claim is present twice.
        None => TokenError::NotJwt,
    }
}
