//! Connection errors: each has a sentence that says what to do.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

use super::{Server, Shell, Value, json, nobody};

/// Returns the message of `send` and `listen` when they cannot connect, which must be the same.
fn cannot_connect(shell: &Shell, url: &str, more: &str) -> String {
    let run = |command: &str| {
        let ran = shell.run(command);
        assert_eq!((ran.code, ran.out.as_str()), (Some(3), ""), "{command}: {}", ran.err);
        let why = ran.err.strip_prefix(&format!("switchboard: cannot connect to {url}: "));
        why.unwrap_or_else(|| panic!("{command}: {}", ran.err)).trim_end().to_owned()
    };
    let said = run(&format!("send --url {url} {more} 1 hello"));
    assert_eq!(run(&format!("listen --url {url} {more}")), said);
    said
}

/// Starts a server with a certificate, which the shell has as `cert.pem`.
pub(super) fn with_tls(change: impl FnOnce(&mut CertificateParams)) -> (Server, Shell) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    change(&mut params);
    let cert = params.self_signed(&key).unwrap().pem();
    let shell = Shell::new().with_file("cert.pem", &cert);
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("cert.pem"), cert).unwrap();
    std::fs::write(directory.path().join("key.pem"), key.serialize_pem()).unwrap();
    (Server::spawn(directory, &["tls_cert=cert.pem", "tls_key=key.pem"], |_| {}), shell)
}

fn wss(server: &Server) -> String {
    format!("wss://{}", server.address)
}

#[test]
fn an_authority_is_trusted_where_it_is_given() {
    let (server, shell) = with_tls(|_| {});
    let url = wss(&server);
    let ran = shell.run(&format!("send --url {url} --ca cert.pem 1 hello"));
    assert_eq!(ran.code, Some(4), "{}", ran.err);
    let url_of_page = format!("https://{}/", server.address);
    assert_eq!(shell.run(&format!("send --url {url_of_page} --ca cert.pem 1 x")).code, Some(4));
    let said = cannot_connect(&shell, &url, "");
    assert_eq!(
        said,
        "certificate not trusted: use --ca FILE (PEM), with the certificate of the authority that \
         signed it; a self-signed one is its own"
    );
}

/// A machine used to try out TLS has several authorities with the same name.
#[test]
fn an_authority_of_the_same_name_is_not_trusted_for_it() {
    let (server, shell) = with_tls(|_| {});
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let path = shell.directory.path().join("other.pem");
        std::fs::write(path, params.self_signed(&key).unwrap().pem()).unwrap();
        let said = cannot_connect(&shell, &wss(&server), "--ca other.pem");
        assert!(said.starts_with("certificate not trusted: use --ca FILE"), "{said}");
    }
}

#[test]
fn certificates_that_are_wrong_are_told_apart() {
    let (server, shell) = with_tls(|params| {
        params.subject_alt_names =
            CertificateParams::new(["example.org".to_owned()]).unwrap().subject_alt_names;
    });
    assert_eq!(
        cannot_connect(&shell, &wss(&server), "--ca cert.pem"),
        "the server's certificate is not for 127.0.0.1, but for example.org"
    );
    let (server, shell) = with_tls(|params| params.not_after = date_time_ymd(2001, 1, 1));
    assert_eq!(
        cannot_connect(&shell, &wss(&server), "--ca cert.pem"),
        "the server's certificate has expired: it has to be renewed on the server"
    );
    let (server, shell) = with_tls(|params| params.not_before = date_time_ymd(3000, 1, 1));
    let said = cannot_connect(&shell, &wss(&server), "--ca cert.pem");
    assert!(said.contains("is not valid yet"), "{said}");
    let (server, shell) = with_tls(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let said = cannot_connect(&shell, &wss(&server), "--ca cert.pem");
    assert!(said.contains("basicConstraints=CA:FALSE"), "{said}");
}

#[test]
fn the_scheme_of_the_other_kind_of_port_is_named() {
    let (server, shell) = with_tls(|_| {});
    let url = format!("ws://{}", server.address);
    assert_eq!(cannot_connect(&shell, &url, ""), "this port speaks TLS: use wss://");
    let plain = Server::start();
    let said = cannot_connect(&shell, &wss(&plain), "--ca cert.pem");
    assert_eq!(said, "this port does not speak TLS: use ws://");
}

#[test]
fn nobody_there_is_told() {
    let shell = Shell::new();
    let refused = "the connection was refused: no server listens there";
    assert_eq!(cannot_connect(&shell, &nobody(), ""), refused);
    let said = cannot_connect(&shell, "ws://nobody.invalid:1", "");
    assert!(said.starts_with("there is no host nobody.invalid ("), "{said}");
    let ran = shell.run(&format!("send --json --url {} 100000000 hello", nobody()));
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &said["result"]), (Some(3), &json!("not_connected")));
    assert_eq!((&said["to"], &said["from"]), (&json!("100000000"), &Value::Null));
}

#[test]
fn what_is_no_address_is_wrong_usage() {
    let shell = Shell::new();
    // An invalid port was once taken for port 80.
    for (url, address) in [
        ("ftp://localhost", "ftp://localhost"),
        ("ws://", "ws://"),
        ("", "ws://"),
        ("127.0.0.1:99999", "ws://127.0.0.1:99999"),
        ("127.0.0.1:http", "ws://127.0.0.1:http"),
        ("127.0.0.1:", "ws://127.0.0.1:"),
        ("::1", "ws://::1"),
    ] {
        let mut command = shell.command("send 1 hello");
        let ran = super::Ran::from(command.args(["--url", url]).output().unwrap());
        let why = format!("{address:?} is no address; give one such as ws://127.0.0.1:8080");
        assert_eq!((ran.code, ran.err), (Some(2), format!("switchboard: {why}\n")), "{url:?}");
    }
    let ran = Shell::new().run("listen --reconnect --url ftp://localhost");
    assert_eq!(ran.code, Some(2), "{}", ran.err);
}

#[test]
fn the_address_may_be_short_and_come_from_a_variable() {
    let (server, shell) = (Server::start(), Shell::new());
    let address = server.address.to_string();
    assert_eq!(shell.run(&format!("send --url {address} 1 hello")).code, Some(4));
    assert_eq!(shell.run(&format!("send --url http://{address}/ 1 hello")).code, Some(4));
    let output = shell.command("send 1 hello").env("SWITCHBOARD_URL", address).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn what_is_too_large_is_rejected() {
    let (server, shell) = (Server::start(), Shell::new());
    let text = "x".repeat(switchboard::config::Config::default().max_message_bytes * 2);
    let ran = shell.feed(&format!("send --url {} 1 -", server.url()), &text);
    assert_eq!(ran.code, Some(8), "{}", ran.err);
    assert!(ran.err.starts_with("switchboard: rejected for 1: too_large: "), "{}", ran.err);
}
