//! Valid and invalid tokens of every algorithm, made with real keys independently of the
//! library.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use ring::{hmac, rsa};
use serde_json::{Value, json};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, PublicId};

use super::*;
use crate::config::KeySet;

/// Some day in November 2026.
const NOW: u64 = 1_795_000_000;

/// Made once for these tests with `openssl genpkey -algorithm RSA`; it protects nothing.
const RSA_PEM: &str = include_str!("tests/rsa.pem");

const SECRET: &[u8] = b"a secret that the operator made: 0123456789";

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// An issuer of tokens.
pub(super) struct Issuer {
    pub(super) algorithm: &'static str,
    sign: Sign,
    /// The public half, as PEM and as JWK; or the secret.
    pub(super) public: Option<(String, Value)>,
}

impl Issuer {
    pub(super) fn ed25519() -> Issuer {
        let made = rcgen::KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(&made.serialize_der()).unwrap();
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(made.der_bytes()) });
        let sign = move |message: &[u8]| key.sign(message).as_ref().to_vec();
        Issuer::with_public("EdDSA", &made, jwk, sign)
    }

    pub(super) fn p256() -> Issuer {
        let made = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = EcdsaKeyPair::from_pkcs8(algorithm, &made.serialize_der(), &random).unwrap();
        let (x, y) = made.der_bytes()[1..].split_at(32);
        let jwk = json!({ "kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y), "use": "sig" });
        let sign = move |message: &[u8]| key.sign(&random, message).unwrap().as_ref().to_vec();
        Issuer::with_public("ES256", &made, jwk, sign)
    }

    fn rsa() -> Issuer {
        let made = rcgen::KeyPair::from_pem(RSA_PEM).unwrap();
        let key = RsaKeyPair::from_pkcs8(&made.serialize_der()).unwrap();
        let rsa::PublicKeyComponents::<Vec<u8>> { n, e } = key.public().into();
        let jwk = json!({ "kty": "RSA", "n": b64(&n), "e": b64(&e), "alg": "RS256" });
        let sign = move |message: &[u8]| {
            let mut signature = vec![0; key.public().modulus_len()];
            key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        };
        Issuer::with_public("RS256", &made, jwk, sign)
    }

    fn hs256(secret: &[u8]) -> Issuer {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let sign = move |message: &[u8]| hmac::sign(&key, message).as_ref().to_vec();
        Issuer { algorithm: "HS256", sign: Box::new(sign), public: None }
    }

    fn with_public(
        algorithm: &'static str,
        key: &rcgen::KeyPair,
        jwk: Value,
        sign: impl Fn(&[u8]) -> Vec<u8> + 'static,
    ) -> Issuer {
        let public = Some((key.public_key_pem(), jwk));
        Issuer { algorithm, sign: Box::new(sign), public }
    }

    fn all() -> [Issuer; 4] {
        [Issuer::ed25519(), Issuer::p256(), Issuer::rsa(), Issuer::hs256(SECRET)]
    }

    /// Returns a token with exactly this header and these claims.
    fn signs(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = b64((self.sign)(message.as_bytes()));
        format!("{message}.{signature}")
    }

    pub(super) fn token(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut header = json!({ "typ": "JWT", "alg": self.algorithm });
        if let Some(kid) = kid {
            header["kid"] = kid.into();
        }
        self.signs(&header, claims)
    }

    /// Returns the public key as an entry of a key set.
    pub(super) fn jwk(&self, kid: Option<&str>) -> Value {
        let (_, mut jwk) = self.public.clone().expect("a public key");
        if let Some(kid) = kid {
            jwk["kid"] = kid.into();
        }
        jwk
    }
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A configuration in memory, and the directory of its files.
struct Operator {
    dir: tempfile::TempDir,
    config: Config,
}

impl Operator {
    fn new() -> Operator {
        let config = Config { data_dir: None, ..Config::default() };
        Operator { dir: tempfile::tempdir().unwrap(), config }
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Returns a configuration that trusts the issuer by a file of its own.
    fn trusting(issuer: &Issuer) -> Operator {
        let mut operator = Operator::new();
        match &issuer.public {
            Some((pem, _)) => {
                operator.config.auth_public_keys = vec![operator.file("key.pem", pem)];
            }
            None => {
                operator.config.auth_hs256_secret_file = Some(operator.file("secret", SECRET));
            }
        }
        operator
    }

    fn with_key_set(keys: &[Value]) -> Operator {
        let mut operator = Operator::new();
        let path = operator.file("jwks.json", json!({ "keys": keys }).to_string());
        operator.config.auth_jwks = Some(KeySet::File(path));
        operator
    }

    fn keyring(&self) -> Keyring {
        Keyring::open(&self.config).unwrap()
    }
}

fn name(name: &str) -> PublicId {
    PublicId::Name(name.into())
}

fn device(keyring: &Keyring, token: &str) -> Result<PublicId, TokenError> {
    keyring.verify(token, NOW).map(|claims| claims.device)
}

#[test]
fn a_good_token_of_each_algorithm_proves_its_device() {
    for issuer in Issuer::all() {
        let keyring = Operator::trusting(&issuer).keyring();
        let claims =
            json!({ "sub": "alice", "exp": NOW + 60, "nbf": NOW - 60, "iat": NOW, "x": 1 });
        for kid in [None, Some("any")] {
            let claims = keyring.verify(&issuer.token(kid, &claims), NOW).unwrap();
            // The leeway of 30 s is part of the time.
            let expires_at_ms = Some((NOW + 90) * 1000);
            let expected = Claims { device: name("alice"), expires_at_ms, allow_send: None };
            assert_eq!(claims, expected, "{}", issuer.algorithm);
        }
    }
}

#[test]
fn a_bad_token_of_each_algorithm_is_refused_with_the_reason() {
    use TokenError::*;
    let bad: &[(Value, TokenError)] = &[
        (json!({ "sub": "a", "exp": NOW - 30 }), Expired { since_unix_s: NOW - 30 }),
        (json!({ "sub": "a", "exp": 0.5 }), Expired { since_unix_s: 0 }),
        (json!({ "sub": "a", "nbf": NOW + 31 }), NotYetValid { before_unix_s: NOW + 31 }),
        (json!({ "sub": "a", "nbf": 1e300 }), NotYetValid { before_unix_s: u64::MAX }),
        (json!({ "sub": "100000000" }), ForeignNumber),
        (json!({ "sub": "" }), BadSubject),
        (json!({ "sub": "a b" }), BadSubject),
        (json!({ "sub": "9223372036854775808" }), BadSubject),
        (json!({ "sub": 100_000_000 }), BadSubject),
        (json!({ "sub": null }), BadSubject),
        (json!({}), BadSubject),
        (json!({ "sub": "a", "exp": null }), BadClaim("exp")),
        (json!({ "sub": "a", "exp": "never" }), BadClaim("exp")),
        (json!({ "sub": "a", "exp": -1 }), BadClaim("exp")),
        (json!({ "sub": "a", "nbf": [] }), BadClaim("nbf")),
        (json!({ "sub": "a", "aud": 7 }), BadClaim("aud")),
        (json!({ "sub": "a", "iss": ["x"] }), BadClaim("iss")),
        (json!({ "sub": "a", "allow_send": "*" }), BadClaim("allow_send")),
        (json!({ "sub": "a", "allow_send": [1] }), BadClaim("allow_send")),
        (json!({ "sub": "a", "allow_send": ["a b"] }), BadClaim("allow_send")),
        (json!({ "sub": "a", "allow_send": vec!["*"; 65] }), BadClaim("allow_send")),
        (json!(["alice"]), NotJwt),
        (json!("a"), NotJwt),
    ];
    for issuer in Issuer::all() {
        let keyring = Operator::trusting(&issuer).keyring();
        for (claims, error) in bad {
            let refused = keyring.verify(&issuer.token(None, claims), NOW);
            assert_eq!(refused, Err(*error), "{} {claims}", issuer.algorithm);
        }
    }
}

#[test]
fn a_token_that_was_changed_is_refused() {
    for issuer in Issuer::all() {
        let keyring = Operator::trusting(&issuer).keyring();
        let token = issuer.token(None, &json!({ "sub": "alice" }));
        let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else {
            panic!()
        };
        let other = b64(json!({ "sub": "mallory" }).to_string());
        // The first letter, because the last one contains unused bits, which would make it
        // invalid base64.
        let flipped = if signature.starts_with('A') { "B" } else { "A" };
        for (changed, error) in [
            (format!("{header}.{other}.{signature}"), TokenError::BadSignature),
            (format!("{header}.{payload}.{flipped}{}", &signature[1..]), TokenError::BadSignature),
            (format!("{header}.{payload}."), TokenError::BadSignature),
            (format!("{header}.{payload}.{}", &signature[4..]), TokenError::BadSignature),
            (format!("{header}.{payload}.{signature}="), TokenError::NotJwt),
            (format!("{header}.{payload}"), TokenError::NotJwt),
            (format!(".{token}"), TokenError::NotJwt),
            (format!(" {token}"), TokenError::NotJwt),
            (format!("{token}\n"), TokenError::NotJwt),
        ] {
            let refused = device(&keyring, &changed);
            assert_eq!(refused, Err(error), "{} {changed}", issuer.algorithm);
        }
    }
}

#[test]
fn the_key_decides_the_algorithm() {
    let claims = json!({ "sub": "mallory" });
    for issuer in Issuer::all() {
        let keyring = Operator::trusting(&issuer).keyring();
        for algorithm in ["none", "None", "", "HS256", "HS512", "ES256", "EdDSA", "RS256", "PS256"]
        {
            if algorithm == issuer.algorithm {
                continue;
            }
            // Signed with the right key, and not signed at all.
            let token = issuer.signs(&json!({ "alg": algorithm }), &claims);
            let (message, _) = token.rsplit_once('.').unwrap();
            for token in [&token, &format!("{message}.")] {
                let refused = device(&keyring, token);
                assert_eq!(refused, Err(TokenError::WrongAlgorithm), "{token}");
            }
        }
    }
}

#[test]
fn a_public_key_is_no_secret() {
    for issuer in [Issuer::ed25519(), Issuer::p256(), Issuer::rsa()] {
        let (pem, jwk) = issuer.public.clone().unwrap();
        let point = URL_SAFE_NO_PAD.decode(jwk["x"].as_str().unwrap_or_default()).unwrap();
        for secret in [pem.as_bytes(), pem.trim_end().as_bytes(), &point, b""] {
            let forged = Issuer::hs256(secret).token(None, &json!({ "sub": "mallory" }));
            let keyring = Operator::trusting(&issuer).keyring();
            assert_eq!(device(&keyring, &forged), Err(TokenError::WrongAlgorithm));
        }
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let keyring = Operator::new().keyring();
    let header = |header: &str| format!("{}.e30.e30", b64(header));
    for (text, error) in [
        (String::new(), TokenError::NotJwt),
        ("..".to_owned(), TokenError::NotJwt),
        ("a.b.c".to_owned(), TokenError::NotJwt),
        (header("{}"), TokenError::NotJwt),
        (header(r#"["HS256","a"]"#), TokenError::NotJwt),
        (header(r#"{"alg":7}"#), TokenError::NotJwt),
        (header(r#"{"alg":"HS256","alg":"none"}"#), TokenError::NotJwt),
        (header(r#"{"alg":"HS256","crit":["exp"]}"#), TokenError::Critical),
        (header(r#"{"alg":"HS256"}"#), TokenError::UnknownKey),
        ("a".repeat(TOKEN_LEN_MAX), TokenError::NotJwt),
        ("a".repeat(TOKEN_LEN_MAX + 1), TokenError::TooLong),
    ] {
        assert_eq!(device(&keyring, &text), Err(error), "{text}");
    }
}

#[test]
fn a_key_that_the_token_brings_along_is_not_used() {
    let (trusted, other) = (Issuer::p256(), Issuer::p256());
    let keyring = Operator::trusting(&trusted).keyring();
    let header = json!({ "alg": "ES256", "jwk": other.jwk(None), "jku": "https://example.org" });
    let token = other.signs(&header, &json!({ "sub": "mallory" }));
    assert_eq!(device(&keyring, &token), Err(TokenError::BadSignature));
}

#[test]
fn audience_and_issuer_are_asked_for_where_they_are_set() {
    let issuer = Issuer::ed25519();
    let mut operator = Operator::trusting(&issuer);
    operator.config.auth_audience = Some("here".to_owned());
    operator.config.auth_issuer = Some("them".to_owned());
    let strict = operator.keyring();
    let lax = Operator::trusting(&issuer).keyring();
    for (aud, iss, expected) in [
        (json!("here"), json!("them"), Ok(name("a"))),
        (json!(["there", "here"]), json!("them"), Ok(name("a"))),
        (json!("there"), json!("them"), Err(TokenError::WrongAudience)),
        (json!([]), json!("them"), Err(TokenError::WrongAudience)),
        (json!("here"), json!("others"), Err(TokenError::WrongIssuer)),
    ] {
        let token = issuer.token(None, &json!({ "sub": "a", "aud": aud, "iss": iss }));
        assert_eq!(device(&strict, &token), expected, "{aud} {iss}");
        assert_eq!(device(&lax, &token), Ok(name("a")));
    }
    for (claims, error) in [
        (json!({ "sub": "a", "iss": "them" }), TokenError::WrongAudience),
        (json!({ "sub": "a", "aud": "here" }), TokenError::WrongIssuer),
    ] {
        assert_eq!(device(&strict, &issuer.token(None, &claims)), Err(error));
    }
}

#[test]
fn what_is_minted_is_verified() {
    let keyring = Operator::new().keyring();
    let patterns = Patterns::new(["hub-*", "100000007"]).unwrap();
    let number = DeviceRef::Number(DeviceId::new(100_000_000));
    for (device, ttl, allow_send) in [
        (number, None, None),
        (number, Some(Duration::from_secs(60)), Some(&patterns)),
        (DeviceRef::Name("alice"), None, Some(&patterns)),
        (DeviceRef::Name("alice"), Some(Duration::from_secs(1)), None),
    ] {
        let token = keyring.own().mint(device, ttl, allow_send, NOW);
        let expected = Claims {
            device: device.into(),
            expires_at_ms: ttl.map(|ttl| (NOW + ttl.as_secs()) * 1000),
            allow_send: allow_send.cloned(),
        };
        assert_eq!(keyring.verify(&token, NOW), Ok(expected));
        // Its clock is ours: there is no leeway.
        if let Some(ttl) = ttl {
            let since_unix_s = NOW + ttl.as_secs();
            let expired = Err(TokenError::Expired { since_unix_s });
            assert_eq!(keyring.verify(&token, since_unix_s), expired);
        }
    }
}

#[test]
fn the_own_keys_tokens_need_no_audience_and_no_issuer() {
    let mut operator = Operator::new();
    operator.config.auth_audience = Some("here".to_owned());
    operator.config.auth_issuer = Some("them".to_owned());
    let keyring = operator.keyring();
    let token = keyring.own().mint(DeviceRef::Name("alice"), None, None, NOW);
    assert_eq!(device(&keyring, &token), Ok(name("alice")));
}

#[test]
fn own_and_operators_keys_are_never_confused() {
    // This holds even if the operator has the very secret that the server has.
    let mut operator = Operator::new();
    let data = tempfile::tempdir().unwrap();
    operator.config.data_dir = Some(data.path().to_owned());
    OwnKey::check(data.path(), None, true).unwrap();
    let own = data.path().join(own::KEY_FILE);
    operator.config.auth_hs256_secret_file = Some(operator.file("other", SECRET));
    let keyring = operator.keyring();
    let same = Issuer::hs256(&std::fs::read(own).unwrap());
    let other = Issuer::hs256(SECRET);
    let number = json!({ "sub": "100000000" });
    let elsewhere = Some("switchboard-0123456789abcdef");
    for (token, error) in [
        (other.token(elsewhere, &number), TokenError::OtherServer),
        (same.token(elsewhere, &number), TokenError::OtherServer),
        (Issuer::p256().token(elsewhere, &number), TokenError::OtherServer),
        (other.token(Some("switchboard"), &number), TokenError::BadSignature),
        (other.token(None, &number), TokenError::ForeignNumber),
        (same.token(None, &number), TokenError::BadSignature),
        (same.token(Some("Switchboard"), &number), TokenError::BadSignature),
        (Issuer::p256().token(Some("switchboard"), &number), TokenError::WrongAlgorithm),
    ] {
        assert_eq!(device(&keyring, &token), Err(error), "{token}");
    }
    let number = Ok(PublicId::Number(DeviceId::new(100_000_000)));
    assert_eq!(
        device(&keyring, &same.token(Some("switchboard"), &json!({ "sub": "100000000" }))),
        number
    );
}

#[test]
fn the_own_key_outlives_the_process_and_a_random_one_does_not() {
    let mut operator = Operator::new();
    let token = |keyring: &Keyring| keyring.own().mint(DeviceRef::Name("a"), None, None, NOW);
    assert_eq!(
        device(&operator.keyring(), &token(&operator.keyring())),
        Err(TokenError::OtherServer)
    );
    operator.config.data_dir = Some(operator.dir.path().to_owned());
    OwnKey::check(operator.dir.path(), None, true).unwrap();
    assert_eq!(device(&operator.keyring(), &token(&operator.keyring())), Ok(name("a")));
}

#[test]
fn where_a_token_is_wanted_numbers_do_not_count() {
    let mut operator = Operator::new();
    operator.config.data_dir = Some(operator.dir.path().to_owned());
    OwnKey::check(operator.dir.path(), None, true).unwrap();
    let open = operator.keyring();
    operator.config.auth = Auth::Token;
    let closed = operator.keyring();
    let number = DeviceRef::Number(DeviceId::new(100_000_000));
    let [number, alice] =
        [number, DeviceRef::Name("alice")].map(|device| open.own().mint(device, None, None, NOW));
    assert!(device(&open, &number).is_ok());
    assert_eq!(device(&closed, &number), Err(TokenError::NoName));
    assert_eq!(device(&closed, &alice), Ok(name("alice")));
}

#[test]
fn a_key_set_holds_several_keys() {
    let issuers = BTreeMap::from([
        ("one", Issuer::ed25519()),
        ("two", Issuer::p256()),
        ("three", Issuer::rsa()),
        ("four", Issuer::p256()),
    ]);
    let keys: Vec<Value> = issuers.iter().map(|(kid, issuer)| issuer.jwk(Some(kid))).collect();
    let keyring = Operator::with_key_set(&keys).keyring();
    let claims = json!({ "sub": "alice" });
    for (kid, issuer) in &issuers {
        assert_eq!(device(&keyring, &issuer.token(Some(kid), &claims)), Ok(name("alice")), "{kid}");
        for (other, error) in
            [(None, TokenError::UnknownKey), (Some("five"), TokenError::UnknownKey)]
        {
            assert_eq!(device(&keyring, &issuer.token(other, &claims)), Err(error), "{kid}");
        }
    }
    let swapped = issuers["two"].token(Some("four"), &claims);
    assert_eq!(device(&keyring, &swapped), Err(TokenError::BadSignature));
    let swapped = issuers["two"].token(Some("one"), &claims);
    assert_eq!(device(&keyring, &swapped), Err(TokenError::WrongAlgorithm));
}

#[test]
fn keys_without_a_kid_verify_tokens_with_any() {
    let issuers = [Issuer::ed25519(), Issuer::p256(), Issuer::p256()];
    let keys: Vec<Value> = issuers.iter().map(|issuer| issuer.jwk(None)).collect();
    let keyring = Operator::with_key_set(&keys).keyring();
    for issuer in &issuers {
        for kid in [None, Some("x")] {
            let token = issuer.token(kid, &json!({ "sub": "alice" }));
            assert_eq!(device(&keyring, &token), Ok(name("alice")), "{}", issuer.algorithm);
        }
    }
}

#[test]
fn reload_takes_the_new_keys_or_keeps_the_old() {
    let (old, new) = (Issuer::p256(), Issuer::ed25519());
    let operator = Operator::trusting(&old);
    let keyring = operator.keyring();
    let claims = json!({ "sub": "alice" });
    let [of_old, of_new] = [&old, &new].map(|issuer| issuer.token(None, &claims));
    let own = keyring.own().mint(DeviceRef::Name("own"), None, None, NOW);
    operator.file("key.pem", "no key");
    let error = keyring.reload(&operator.config).unwrap_err().to_string();
    assert!(error.starts_with("auth_public_keys = \"") && error.contains("key.pem"), "{error}");
    assert_eq!(device(&keyring, &of_old), Ok(name("alice")));
    operator.file("key.pem", &new.public.unwrap().0);
    keyring.reload(&operator.config).unwrap();
    assert_eq!(device(&keyring, &of_new), Ok(name("alice")));
    assert_eq!(device(&keyring, &of_old), Err(TokenError::WrongAlgorithm));
    assert_eq!(device(&keyring, &own), Ok(name("own")));
}

#[test]
fn a_secret_is_long_and_its_final_new_line_does_not_count() {
    let mut operator = Operator::new();
    let issuer = Issuer::hs256(SECRET);
    for end in ["", "\n", "\r\n"] {
        let secret = [SECRET, end.as_bytes()].concat();
        operator.config.auth_hs256_secret_file = Some(operator.file("secret", secret));
        let token = issuer.token(None, &json!({ "sub": "alice" }));
        assert_eq!(device(&operator.keyring(), &token), Ok(name("alice")), "{end:?}");
    }
    operator.file("secret", &SECRET[..31]);
    let error = Keyring::check(&operator.config).unwrap_err().to_string();
    assert!(error.ends_with("an HS256 secret has at least 32 bytes"), "{error}");
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_key() {
    let mut operator = Operator::new();
    operator.config.auth_jwks = Some(KeySet::File(operator.dir.path().join("none.json")));
    let error = Keyring::check(&operator.config).unwrap_err().to_string();
    assert!(error.starts_with("auth_jwks = \"") && error.contains("No such file"), "{error}");
    operator.config.auth_jwks = None;
    let long = operator.file("long.pem", vec![b'\n'; (256 << 10) + 1]);
    operator.config.auth_public_keys = vec![long];
    let error = Keyring::check(&operator.config).unwrap_err().to_string();
    assert!(error.ends_with("longer than 256 KiB"), "{error}");
}

#[test]
fn every_refusal_fits_a_close_frame() {
    use TokenError::*;
    let (since_unix_s, before_unix_s) = (NOW, u64::MAX);
    for error in [
        TooLong,
        NotJwt,
        WrongAlgorithm,
        Critical,
        UnknownKey,
        KeyAwaited,
        OtherServer,
        BadSignature,
        Expired { since_unix_s },
        NotYetValid { before_unix_s },
        WrongAudience,
        WrongIssuer,
        BadSubject,
        ForeignNumber,
        NoName,
        BadClaim("allow_send"),
    ] {
        let reason = error.to_string();
        assert!(reason.len() <= 123, "{} bytes: {reason}", reason.len());
    }
    assert_eq!(Expired { since_unix_s }.to_string(), "the token expired at 2026-11-18T11:06:40Z");
}
