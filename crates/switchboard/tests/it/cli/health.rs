//! `switchboard health`: an exit code and a sentence.

use super::connecting::with_tls;
use super::{Server, Shell, nobody};
use crate::strace::{self, STORE, SYNCS, Tampering};
use crate::v1::client::{V1, send};

fn is_ready(shell: &Shell, line: &str) {
    let ran = shell.run(&format!("health {line}"));
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "ready\n"), "{line}: {}", ran.err);
}

/// Why a server is none to send devices to.
fn is_not_ready(shell: &Shell, line: &str) -> String {
    let ran = shell.run(&format!("health {line}"));
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{line}: {}", ran.err);
    let why = ran.err.strip_prefix("switchboard: ").unwrap_or_else(|| panic!("{}", ran.err));
    why.trim_end().to_owned()
}

#[test]
fn a_server_is_found_by_its_own_configuration() {
    let (server, shell) = (Server::start(), Shell::new());
    let port = server.address.port();
    is_ready(&shell, &format!("--port {port}"));
    let shell = shell.with_file("switchboard.toml", &format!("port = {port}"));
    is_ready(&shell, "");
    is_ready(&shell, &format!("--set port={port} --config switchboard.toml"));
    let ran = shell.command("health").env("SWITCHBOARD_PORT", "1").output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
}

#[test]
fn a_server_is_found_by_its_address() {
    let (server, shell) = (Server::start(), Shell::new());
    let address = server.address;
    for url in [format!("{address}"), format!("http://{address}/"), format!("ws://{address}")] {
        is_ready(&shell, &format!("--url {url}"));
    }
}

#[test]
fn tokens_and_a_port_for_metrics_do_not_matter() {
    let server = Server::with(&["auth=token", "metrics_listen=127.0.0.1:0"]);
    is_ready(&Shell::new(), &format!("--url {}", server.address));
}

#[test]
fn a_server_with_tls_is_asked_by_tls() {
    let (server, shell) = with_tls(|_| {});
    let address = server.address;
    is_ready(&shell, &format!("--url https://{address} --ca cert.pem"));
    assert_eq!(
        is_not_ready(&shell, &format!("--url https://{address}")),
        format!(
            "cannot reach https://{address}: certificate not trusted: use --ca FILE (PEM), with the \
             certificate of the authority that signed it; a self-signed one is its own"
        )
    );
    assert_eq!(
        is_not_ready(&shell, &format!("--url {address}")),
        format!("cannot reach http://{address}: this port speaks TLS: use https://")
    );
    let plain = Server::start();
    let url = format!("https://{}", plain.address);
    assert_eq!(
        is_not_ready(&shell, &format!("--url {url}")),
        format!("cannot reach {url}: this port does not speak TLS: use http://")
    );
}

/// The name in a certificate is the server's in the world, and here it is asked at 127.0.0.1.
#[test]
fn the_own_server_may_have_any_certificate() {
    let name = |params: &mut rcgen::CertificateParams| {
        let named = rcgen::CertificateParams::new(["example.org".to_owned()]).unwrap();
        params.subject_alt_names = named.subject_alt_names;
    };
    let (server, shell) = with_tls(name);
    let own = format!("--port {} --tls-cert cert.pem --tls-key key.pem", server.address.port());
    is_ready(&shell, &own);
    let why = is_not_ready(&shell, &format!("{own} --ca cert.pem"));
    assert!(why.ends_with("is not for 127.0.0.1, but for example.org"), "{why}");
}

#[test]
fn who_is_not_ready_says_why() {
    let server = Server::within(&strace::prefix(), &[]);
    let mut device = V1::anonymous(&server);
    let failing = Tampering::fail(&server, STORE, SYNCS, "EIO");
    device.say(&send(&device.device(), "1"));
    server.await_metric("switchboard_store_failing", |failing| failing == 1.0);
    let why = is_not_ready(&Shell::new(), &format!("--url {}", server.address));
    assert_eq!(why, "not ready: the server answered 503: the store cannot write");
    failing.end();
}

#[test]
fn who_cannot_be_reached_is_not_ready() {
    let shell = Shell::new();
    let nobody = nobody();
    let why = is_not_ready(&shell, &format!("--url {nobody}"));
    assert!(why.ends_with(": the connection was refused: no server listens there"), "{why}");
    let why = is_not_ready(&shell, "--url ftp://localhost");
    assert_eq!(why, "\"ftp://localhost\" is no address; give one such as http://127.0.0.1:8080");
    let why = is_not_ready(&shell, "--port 0");
    assert!(why.contains("give --url"), "{why}");
    let why = is_not_ready(&shell, "--set prot=1");
    assert!(why.contains("did you mean port?"), "{why}");
    // The kernel connects, and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = silent.local_addr().unwrap();
    let why = is_not_ready(&shell, &format!("--url {url} --timeout 100ms"));
    assert_eq!(why, format!("cannot reach http://{url}: no answer within 100ms"));
}
