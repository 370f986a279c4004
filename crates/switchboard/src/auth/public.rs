//! The operator's public keys: PEM files (RFC 7468) and JSON Web Key Sets (RFC 7517).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls::pki_types::pem::{self, PemObject, SectionKind};
use serde::Deserialize;
use serde_json::Value;
use spki::der::asn1::UintRef;
use spki::der::{self, Decode, Reader, SliceReader};
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

use super::keys::{KEYS_MAX, Key};
use super::own::is_own_kid;

/// Bits of an RSA modulus that ring accepts.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// An uncompressed point of P-256 (SEC 1 section 2.3.3): 4, then both coordinates.
const P256_POINT_LEN: usize = 65;
const ED25519_POINT_LEN: usize = 32;

/// RFC 8410 section 3; RFC 5480 sections 2.1.1 and 2.1.1.1; RFC 8017 appendix A.1.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Returns the keys of a PEM file, all of them `PUBLIC KEY`. The error says what is wrong.
pub(super) fn from_pem(text: &[u8]) -> Result<Vec<Key>, String> {
    let sections: Result<Vec<(SectionKind, Vec<u8>)>, pem::Error> =
        PemObject::pem_slice_iter(text).collect();
    let sections = sections.map_err(|error| format!("not a PEM file: {error}"))?;
    if sections.is_empty() {
        return Err("no PEM block `PUBLIC KEY` in this file".to_owned());
    }
    if sections.len() > KEYS_MAX {
        return Err(format!("more than {KEYS_MAX} keys"));
    }
    sections.iter().map(|(kind, der)| from_section(*kind, der)).collect()
}

fn from_section(kind: SectionKind, der: &[u8]) -> Result<Key, String> {
    match kind {
        SectionKind::PublicKey => from_spki(der)
            .ok_or_else(|| "not an Ed25519, P-256 or RSA key of 2048 to 8192 bits".to_owned()),
        SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
            Err("holds a private key, which should not be on this machine; give its public half: \
                 `openssl pkey -in private.pem -pubout`"
                .to_owned())
        }
        SectionKind::Certificate => Err("holds a certificate; give its key: \
             `openssl x509 -in cert.pem -noout -pubkey`"
            .to_owned()),
        _ => Err("holds something else than `PUBLIC KEY`".to_owned()),
    }
}

/// Parses a `SubjectPublicKeyInfo` (RFC 5280 section 4.1.2.7): the algorithm, and the key as a
/// bit string.
fn from_spki(der: &[u8]) -> Option<Key> {
    let info = SubjectPublicKeyInfoRef::from_der(der).ok()?;
    let key = info.subject_public_key.as_bytes()?;
    match (info.algorithm.oid, info.algorithm.parameters_oid()) {
        (ED25519, _) => ed25519(None, key),
        (EC_PUBLIC_KEY, Ok(P256)) => p256(None, key),
        (RSA_ENCRYPTION, _) => {
            let mut key = SliceReader::new(key).ok()?;
            let numbers: der::Result<(UintRef<'_>, UintRef<'_>)> =
                key.sequence(|numbers| Ok((numbers.decode()?, numbers.decode()?)));
            let (modulus, exponent) = numbers.ok()?;
            rsa(None, modulus.as_bytes(), exponent.as_bytes())
        }
        _ => None,
    }
}

fn ed25519(kid: Option<&str>, point: &[u8]) -> Option<Key> {
    (point.len() == ED25519_POINT_LEN)
        .then(|| Key::new(kid, Algorithm::EdDSA, DecodingKey::from_ed_der(point)))
}

fn p256(kid: Option<&str>, point: &[u8]) -> Option<Key> {
    (point.len() == P256_POINT_LEN && point[0] == 4)
        .then(|| Key::new(kid, Algorithm::ES256, DecodingKey::from_ec_der(point)))
}

fn rsa(kid: Option<&str>, modulus: &[u8], exponent: &[u8]) -> Option<Key> {
    let [modulus, exponent] = [modulus, exponent].map(without_leading_zeros);
    let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
    let key = || DecodingKey::from_rsa_raw_components(modulus, exponent);
    RSA_BITS.contains(&bits).then(|| Key::new(kid, Algorithm::RS256, key()))
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

/// Returns the keys of a JSON Web Key Set that use an accepted algorithm; at least one. Other
/// keys are skipped, as RFC 7517 section 5 asks. The error says what is wrong with the set.
pub(super) fn from_jwks(text: &[u8]) -> Result<Vec<Key>, String> {
    let set: KeySet = serde_json::from_slice(text)
        .map_err(|error| format!("not a JSON Web Key Set ({{\"keys\": [...]}}): {error}"))?;
    if set.keys.len() > KEYS_MAX {
        return Err(format!("more than {KEYS_MAX} keys"));
    }
    let keys: Vec<Key> = set.keys.into_iter().filter_map(from_jwk).collect();
    if keys.is_empty() {
        return Err("no key for signatures in the set that is Ed25519 (EdDSA), P-256 (ES256) or \
                    RSA of 2048 to 8192 bits (RS256)"
            .to_owned());
    }
    Ok(keys)
}

/// Returns `None` for a key that is not accepted. A symmetric key (`oct`) is skipped as well: a
/// secret has no place among public keys.
fn from_jwk(value: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    let common = &jwk.common;
    let kid = common.key_id.as_deref();
    let is_for_signatures =
        common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let verifies =
        common.key_operations.as_ref().is_none_or(|them| them.contains(&KeyOperations::Verify));
    // A token with such a `kid` is verified by the own key alone.
    if !is_for_signatures || !verifies || kid.is_some_and(is_own_kid) {
        return None;
    }
    let is = |algorithm| common.key_algorithm.is_none_or(|given| given == algorithm);
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    match &jwk.algorithm {
        AlgorithmParameters::RSA(key) if is(KeyAlgorithm::RS256) => {
            rsa(kid, &bytes(&key.n)?, &bytes(&key.e)?)
        }
        AlgorithmParameters::EllipticCurve(key)
            if is(KeyAlgorithm::ES256) && key.curve == EllipticCurve::P256 =>
        {
            p256(kid, &[&[4], bytes(&key.x)?.as_slice(), bytes(&key.y)?.as_slice()].concat())
        }
        AlgorithmParameters::OctetKeyPair(key)
            if is(KeyAlgorithm::EdDSA) && key.curve == EllipticCurve::Ed25519 =>
        {
            ed25519(kid, &bytes(&key.x)?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData};

    use super::*;

    proptest! {
        #[test]
        fn damaged_der_is_no_key_and_no_panic(at in 0usize..91, byte: u8, len in 0usize..=91) {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
            let mut der = key.subject_public_key_info();
            prop_assert_eq!(der.len(), 91);
            der[at] = byte;
            let read = from_spki(&der[..len]);
            prop_assert!(read.is_none() || len == 91);
        }
    }

    #[test]
    fn a_pem_file_may_hold_several_keys_and_text() {
        let pem = |algorithm| KeyPair::generate_for(algorithm).unwrap().public_key_pem();
        let text = format!("first\n{0}second\n{0}", pem(&PKCS_ECDSA_P256_SHA256));
        assert_eq!(from_pem(text.as_bytes()).unwrap().len(), 2);
        let text = format!("{}{}", pem(&PKCS_ECDSA_P256_SHA256), pem(&PKCS_ECDSA_P384_SHA384));
        assert!(from_pem(text.as_bytes()).unwrap_err().contains("P-256"));
    }

    #[test]
    fn what_else_is_in_a_pem_file_is_named() {
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        for (text, problem) in [
            (made.signing_key.serialize_pem(), "holds a private key"),
            (made.cert.pem(), "holds a certificate"),
            (String::new(), "no PEM block"),
            ("-----BEGIN PUBLIC KEY-----\nAA".to_owned(), "not a PEM file"),
        ] {
            let error = from_pem(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(problem), "{error}");
        }
    }

    #[test]
    fn keys_of_a_set_that_are_for_something_else_are_passed_over() {
        let x = URL_SAFE_NO_PAD.encode([9; 32]);
        let n = |len| URL_SAFE_NO_PAD.encode(vec![0xff; len]);
        let good = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","kid":"good"}}"#);
        assert_eq!(from_jwks(format!(r#"{{"keys":[{good}]}}"#).as_bytes()).unwrap().len(), 1);
        for other in [
            good.replace("}", r#","use":"enc"}"#),
            good.replace("}", r#","key_ops":["sign"]}"#),
            good.replace("}", r#","alg":"ES256"}"#),
            good.replace("\"good\"", "\"switchboard\""),
            good.replace("\"good\"", "7"),
            good.replace("Ed25519", "Ed448"),
            good.replace(&x, &x[1..]),
            format!(r#"{{"kty":"oct","k":"{x}"}}"#),
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{x}","y":"AAAA"}}"#),
            format!(r#"{{"kty":"EC","crv":"P-384","x":"{x}","y":"{x}"}}"#),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, n(255)),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, n(1025)),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB","alg":"PS256"}}"#, n(256)),
            r#"{"kty":"quantum"}"#.to_owned(),
            "7".to_owned(),
        ] {
            let alone = format!(r#"{{"keys":[{other}]}}"#);
            assert!(from_jwks(alone.as_bytes()).is_err(), "{other}");
            let beside = format!(r#"{{"keys":[{other},{good}]}}"#);
            assert_eq!(from_jwks(beside.as_bytes()).unwrap().len(), 1, "{other}");
        }
    }

    #[test]
    fn a_set_that_is_none_is_refused() {
        let many = format!(r#"{{"keys":[{}0]}}"#, "0,".repeat(KEYS_MAX));
        for text in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[]}"#, &many] {
            assert!(from_jwks(text.as_bytes()).is_err(), "{text}");
        }
    }
}
