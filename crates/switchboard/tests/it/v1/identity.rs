//! Tokens: whose are accepted, for how long, and what they allow.

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::client::{V1, now_s, send, token};
use super::text::bearer;
use crate::device::Device;
use crate::server::{Server, binary};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

/// An issuer of tokens with an Ed25519 key.
pub(super) struct Signer {
    kid: &'static str,
    key: Ed25519KeyPair,
}

impl Signer {
    /// Creates a signer; another `seed` makes another key.
    pub(super) fn new(kid: &'static str, seed: u8) -> Signer {
        Signer { kid, key: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap() }
    }

    pub(super) fn sign(&self, claims: &Value) -> String {
        let sign = |bytes: &[u8]| self.key.sign(bytes).as_ref().to_vec();
        jwt(&json!({"alg": "EdDSA", "kid": self.kid}), claims, sign)
    }

    /// Returns the public key as an entry of a key set.
    pub(super) fn jwk(&self) -> Value {
        let x = base64(self.key.public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": self.kid, "x": x})
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns a JWT (RFC 7519) with a given signature.
fn jwt(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
    let signature = base64(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

pub(super) fn hs256(claims: &Value, secret: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let sign = |bytes: &[u8]| hmac::sign(&key, bytes).as_ref().to_vec();
    jwt(&json!({"alg": "HS256", "typ": "JWT"}), claims, sign)
}

fn ed25519(claims: &Value) -> String {
    Signer::new("k1", 7).sign(claims)
}

/// Starts a server with an operator's secret and key set in files.
fn with_operator_keys(settings: &[&str]) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    write("secret", SECRET);
    let keys = json!({"keys": [Signer::new("k1", 7).jwk()]});
    write("keys.json", keys.to_string().as_bytes());
    let keys = ["auth_hs256_secret_file=secret", "auth_jwks=keys.json"];
    let settings: Vec<&str> = keys.iter().chain(settings).copied().collect();
    Server::spawn(directory, &settings, |_| {})
}

/// Returns the reason with which a server refuses a token.
fn refusal(server: &Server, token: &str) -> String {
    let mut device = V1::open(server);
    device.say_hello(json!({"token": token}));
    let (code, reason) = device.end();
    assert_eq!(code, 4401, "{reason}");
    reason
}

#[test]
fn an_anonymous_token_is_the_same_device_after_a_restart_and_ids_are_not_given_twice() {
    let mut server = Server::with(&["shards=3"]);
    let first = V1::anonymous(&server).leave();
    let text = Device::connect(&server).id;
    server.restart();
    let second = V1::anonymous(&server).device();
    let ids: Vec<u64> = [&first.device, &second].map(|id| id.parse().unwrap()).into();
    assert!(ids[0] < text && text < ids[1], "{ids:?} {text}");
    let back = first.back(&server, 0);
    assert_eq!((back.device(), &back.welcome["resumed"]), (first.device.clone(), &json!(true)));
    assert_eq!(back.welcome.get("token"), None);
}

#[test]
fn in_memory_nothing_outlives_the_process() {
    let mut server = Server::with(&["data_dir="]);
    let away = V1::anonymous(&server).leave();
    server.restart();
    assert!(refusal(&server, &away.token).contains("an earlier one"));
}

#[test]
fn a_token_of_another_server_is_told_apart_from_a_forged_one() {
    let [one, other] = [Server::start(), Server::start()];
    let foreign = token(&other, "alice", None);
    assert_eq!(
        refusal(&one, &foreign),
        "the token is signed with the key of another server or data directory, or an earlier one"
    );
    let own = token(&one, "alice", None);
    let ((message, _), (_, signature)) =
        (own.rsplit_once('.').unwrap(), foreign.rsplit_once('.').unwrap());
    let forged = format!("{message}.{signature}");
    assert_eq!(refusal(&one, &forged), "the token's signature is wrong");
}

#[test]
fn the_command_line_mints_what_a_server_with_the_same_directory_takes() {
    let server = Server::with(&["auth=token"]);
    let mint = |line: &str| {
        let args = ["token"].into_iter().chain(line.split(' '));
        let ran = binary().args(args).current_dir(server.directory.path()).output().unwrap();
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    };
    let mut device = V1::hello(&server, json!({"token": mint("--device hub.1")}));
    assert_eq!(device.device(), "hub.1");
    let bounded = mint("--device s1 --allow-send hub.* --ttl 1h");
    let mut bounded = V1::hello(&server, json!({"token": bounded}));
    bounded.send("hub.1", "1");
    device.take("1");
    let not_allowed = json!({"type": "rejected", "code": "not_allowed"});
    bounded.ask(send("s1", "2"), not_allowed.clone());
    // Devices that do not exist got another answer: a stranger could learn so which ids exist.
    for unknown in ["s2", "100000000"] {
        bounded.ask(send(unknown, &format!("to {unknown}")), not_allowed.clone());
    }
    bounded.ask(send("hub.2", "3"), json!({"type": "rejected", "code": "no_such_device"}));
}

#[test]
fn a_server_that_wants_tokens_has_no_anonymous_devices() {
    let server = Server::with(&["auth=token"]);
    let mut device = V1::open(&server);
    device.say_hello(json!({}));
    let (code, reason) = device.end();
    assert_eq!(code, 4401);
    assert!(reason.contains("token"), "{reason}");
    let refused = Device::try_connect(&server, server.url());
    let Err(tungstenite::Error::Http(answer)) = refused else { panic!("it is let in") };
    assert_eq!(answer.status(), 401);
    assert_eq!(V1::named(&server, "a").device(), "a");
}

/// A device that came while the server was open had got a token, and would have been let in for
/// ever.
#[test]
fn where_tokens_are_wanted_those_of_anonymous_devices_do_not_count() {
    let mut server = Server::start();
    let number = V1::anonymous(&server).leave().token;
    server.restart_with(&["auth=token"]);
    let wanted = "this server requires a token of a device with a name (auth = \"token\")";
    assert_eq!(refusal(&server, &number), wanted);
    let frame = bearer(&server, &number).close_frame().unwrap();
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4401, wanted));
    let metrics = |token: &str| {
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\n\r\n");
        server.raw(request.as_bytes())
    };
    assert!(metrics(&number).starts_with("HTTP/1.1 401 "));
    let named = token(&server, "alice", None);
    assert!(metrics(&named).starts_with("HTTP/1.1 200 "));
    let mut device = V1::named(&server, "alice");
    device.say(&json!({"type": "refresh", "token": number}));
    assert_eq!(device.end(), (4401, wanted.to_owned()));
}

#[test]
fn keys_of_the_operator_prove_names() {
    let server = with_operator_keys(&["auth_audience=switchboard", "auth_issuer=me"]);
    let claims = |name: &str| json!({"sub": name, "exp": now_s() + 60, "aud": ["x", "switchboard"], "iss": "me"});
    for (name, token) in [
        ("by-secret", hs256(&claims("by-secret"), SECRET)),
        ("by-key", ed25519(&claims("by-key"))),
        // `auth_audience` does not apply to the server's own key.
        ("by-server", token(&server, "by-server", None)),
    ] {
        assert_eq!(V1::hello(&server, json!({"token": token})).device(), name);
    }
}

#[test]
fn what_proves_nothing_is_refused_with_the_reason() {
    let server = with_operator_keys(&["auth_audience=switchboard"]);
    let claims = |more: Value| {
        let all = json!({"sub": "a", "aud": "switchboard"});
        super::client::with(all, &more)
    };
    let none = jwt(&json!({"alg": "none"}), &claims(json!({})), |_| Vec::new());
    let hour = 3_600;
    for (token, words) in [
        (none, "algorithm"),
        ("what".to_owned(), "no JWT"),
        (hs256(&claims(json!({})), b"another secret of thirty-two bytes"), "signature"),
        (hs256(&claims(json!({"exp": now_s() - hour})), SECRET), "expired"),
        (hs256(&claims(json!({"nbf": now_s() + hour})), SECRET), "not valid before"),
        (hs256(&claims(json!({"aud": "other"})), SECRET), "aud"),
        (hs256(&json!({"sub": "a"}), SECRET), "aud"),
        (hs256(&claims(json!({"sub": "100000000"})), SECRET), "numeric"),
        (hs256(&claims(json!({"sub": "no/body"})), SECRET), "sub"),
        (ed25519(&claims(json!({"exp": "soon"}))), "exp"),
    ] {
        let reason = refusal(&server, &token);
        assert!(reason.contains(words), "{reason:?} has no {words:?}");
    }
}

/// Each is a signature to verify, and one read may hold hundreds.
#[test]
fn one_read_does_not_have_more_tokens_verified_in_a_turn_than_the_bound() {
    const TURNS: &str = "switchboard_shard_turns_total{shard=\"0\"}";
    let server = Server::with(&["shards=1"]);
    let token = token(&server, "a", None);
    let mut device = V1::hello(&server, json!({"token": token}));
    let before = server.metric(TURNS);
    device.say_all((0..320).map(|_| json!({"type": "refresh", "token": token})));
    for _ in 0..320 {
        device.expect(json!({"type": "refreshed"}));
    }
    let turns = server.metric(TURNS) - before;
    assert!(turns >= 20.0, "{turns} turns for 320 tokens, 16 in each");
}

#[test]
fn a_token_that_ends_is_announced_and_ends_the_connection() {
    let server = Server::with(&["shards=3"]);
    let token = token(&server, "a", Some(Duration::from_secs(2)));
    let mut device = V1::hello(&server, json!({"token": token}));
    let at_ms = device.expect(json!({"type": "expiring"}))["at_ms"].as_u64().unwrap();
    assert!((at_ms / 1_000).abs_diff(now_s() + 2) <= 1, "{at_ms}");
    assert_eq!(device.end().0, 4401);
    // The clocks of server and test may round differently.
    assert!(now_s() + 1 >= at_ms / 1_000);
    assert!(refusal(&server, &token).contains("expired"));
}

#[test]
fn a_token_can_be_replaced_before_it_ends() {
    let server = Server::with(&["shards=3"]);
    let minted = |name: &str, ttl_s| token(&server, name, Some(Duration::from_secs(ttl_s)));
    let mut device = V1::hello(&server, json!({"token": minted("a", 2)}));
    device.expect(json!({"type": "expiring"}));
    let refresh = |token: String| json!({"type": "refresh", "token": token});
    let refreshed = device.ask(refresh(minted("a", 300)), json!({"type": "refreshed"}));
    let ends_s = refreshed["expires_at_ms"].as_u64().unwrap() / 1_000;
    assert!(ends_s.abs_diff(now_s() + 300) <= 2, "{ends_s}");
    let forever = device.ask(refresh(token(&server, "a", None)), json!({"type": "refreshed"}));
    assert_eq!(forever.get("expires_at_ms"), None);
    // Another device's token, and no token at all.
    device.say(&refresh(minted("b", 300)));
    assert_eq!(device.end().0, 4401);
    let mut device = V1::named(&server, "a");
    device.say(&refresh("what".to_owned()));
    let (code, reason) = device.end();
    assert_eq!(code, 4401);
    assert!(reason.contains("JWT"), "{reason}");
}

#[test]
fn the_data_directory_is_for_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::start();
    let data = server.directory.path().join("switchboard-data");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("token.key")), 0o600);
    assert_eq!(mode(&data.join("state.json")), 0o600);
    // Somebody who runs it in a repository and adds all files must not commit the key.
    assert_eq!(fs::read_to_string(data.join(".gitignore")).unwrap(), "*\n");
}

#[test]
fn a_directory_that_was_there_stays_as_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("switchboard-data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    let _server = Server::spawn(home, &[], |_| {});
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(!data.join(".gitignore").exists());
}
