//! `switchboard health`: an exit code and a sentence.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use super::connecting::with_tls;
use super::{Server, Shell, nobody};
use crate::strace::{self, STORE, SYNCS, Tampering};
use crate::v1::client::{V1, send};

fn is_ready(shell: &Shell, line: &str) {
    let ran = shell.run(&format!("health {line}"));
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "ready\n"), "{line}: {}", ran.err);
}

/// Returns the reason why a server is not ready.
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
fn an_address_may_come_from_the_variable_of_the_clients() {
    let (server, shell) = (Server::start(), Shell::new());
    let ask = |line: &str, url: &str| {
        shell.command(&format!("health {line}")).env("SWITCHBOARD_URL", url).output().unwrap()
    };
    assert_eq!(ask("", &server.url()).status.code(), Some(0));
    let port = server.address.port();
    for (line, code) in
        [("", 1), (&*format!("--port {port}"), 0), (&*format!("--url 127.0.0.1:{port}"), 0)]
    {
        assert_eq!(ask(line, &nobody()).status.code(), Some(code), "{line}");
    }
}

/// Answers one request with `answer`; returns the request.
fn answering(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(socket.try_clone().unwrap()).lines().map(Result::unwrap);
        let first = lines.next().unwrap();
        assert!(lines.any(|line| line.is_empty()), "a request ends with an empty line");
        socket.write_all(answer.as_bytes()).unwrap();
        first
    });
    (address, asked)
}

/// Behind a proxy that serves it below a path, the server was once asked at the root of the
/// site: that path says nothing about it, and a 200 of the proxy was taken for its own.
#[test]
fn a_server_on_a_path_is_asked_there() {
    for (given, path) in [
        ("", "/readyz"),
        ("/", "/readyz"),
        ("/switchboard/", "/switchboard/readyz"),
        ("/a/switchboard", "/a/switchboard/readyz"),
        ("/a/readyz", "/a/readyz"),
    ] {
        let (address, asked) = answering("HTTP/1.1 200 OK\r\n\r\nready\n");
        is_ready(&Shell::new(), &format!("--url http://{address}{given}"));
        assert_eq!(asked.join().unwrap(), format!("GET {path} HTTP/1.1"), "{given}");
    }
}

#[test]
fn an_answer_that_is_not_the_servers_is_no_ready() {
    let another = "another program answers there, or a proxy that does not know this path";
    for (answer, why) in [
        ("200 OK\r\n\r\n", another),
        ("200 OK\r\n\r\n<html>already there</html>", another),
        ("404 Not Found\r\n\r\n<html>\r\n<head>", "the server answered 404"),
        ("301 Moved\r\nLocation: http://h/a/\r\n\r\n", "the server answered 301: use http://h/a/"),
        ("503 Busy\r\n\r\ngoing down\n", "the server answered 503: going down"),
    ] {
        let (address, asked) = answering(Box::leak(format!("HTTP/1.1 {answer}").into()));
        let said = is_not_ready(&Shell::new(), &format!("--url {address}"));
        assert!(said.starts_with("not ready: ") && said.ends_with(why), "{said}");
        asked.join().unwrap();
    }
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nready\n\r\n0\r\n\r\n";
    is_ready(&Shell::new(), &format!("--url {}", answering(chunked).0));
}

/// 2 is reserved in a HEALTHCHECK.
#[test]
fn wrong_usage_is_exit_code_1_too() {
    let shell = Shell::new();
    for (line, why) in [
        ("--timeout 0s", "above 0s"),
        ("--no-such-option", "unexpected argument"),
        ("--url localhost --port 8080", "cannot be used with"),
        ("--ca none.pem", "--ca is for https://"),
    ] {
        let ran = shell.run(&format!("health {line}"));
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{line}");
        assert!(ran.err.contains(why), "{}", ran.err);
    }
    assert_eq!(shell.run("health --help").code, Some(0));
    assert_eq!(shell.run("listen --no-such-option").code, Some(2));
}

/// The server's options are accepted, so that the same command line can be used.
#[test]
fn options_that_do_not_say_where_the_server_is_are_taken_and_not_listed() {
    let (server, shell) = (Server::start(), Shell::new());
    let port = server.address.port();
    is_ready(&shell, &format!("--port {port} --shards 1 --memory --log-level debug"));
    let help = shell.run("health --help").out;
    assert!(help.contains("--listen") && !help.contains("--shards"), "{help}");
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

/// The certificate is for the server's public name, but here it is asked at 127.0.0.1.
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
    // The kernel accepts the connection, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = silent.local_addr().unwrap();
    let why = is_not_ready(&shell, &format!("--url {url} --timeout 100ms"));
    assert_eq!(why, format!("cannot reach http://{url}: no answer within 100ms"));
}
