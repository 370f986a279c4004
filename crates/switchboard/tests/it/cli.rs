//! The command line from outside: the output of each command, and its exit code.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use switchboard::config::{Config, DEFAULT_TOML, Layer, resolve};
use tempfile::TempDir;

use crate::server::{Server, binary};

mod connecting;
pub(crate) mod damaged;
mod durable;
mod generated;
mod health;
mod killed;
mod lines;
mod results;
mod stopped;

/// The binary in an empty directory, without the machine's variables that it would read.
struct Shell {
    directory: TempDir,
}

impl Shell {
    fn new() -> Shell {
        Shell { directory: tempfile::tempdir().unwrap() }
    }

    fn with_file(self, name: &str, text: &str) -> Shell {
        std::fs::write(self.directory.path().join(name), text).unwrap();
        self
    }

    fn command(&self, line: &str) -> Command {
        let mut command = binary();
        command.args(line.split_whitespace()).current_dir(self.directory.path());
        command
    }

    /// Runs `switchboard <line>` to its end, with `input` on its standard input.
    fn feed(&self, line: &str, input: &str) -> Ran {
        let mut command = self.command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Ran::from(child.wait_with_output().unwrap())
    }

    /// Runs `switchboard <line>` to its end.
    fn run(&self, line: &str) -> Ran {
        Ran::from(self.command(line).stdin(Stdio::null()).output().unwrap())
    }
}

/// Output and exit code of a command.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A connected `switchboard listen`.
struct Listener {
    child: Child,
    /// Its standard output, until the test stops reading.
    lines: Option<Lines<BufReader<ChildStdout>>>,
    id: u64,
}

impl Listener {
    fn start(shell: &Shell, line: &str) -> Listener {
        let mut command = shell.command(line);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let welcome = lines.next().expect("a welcome").unwrap();
        let id = welcome.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
        let id = id.expect("an id in the welcome").parse().unwrap();
        Listener { child, lines: Some(lines), id }
    }

    fn line(&mut self) -> String {
        self.lines.as_mut().and_then(Iterator::next).expect("another line").unwrap()
    }

    fn json(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    fn interrupt(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).unwrap();
    }

    fn end(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        let mut err = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (status, err)
    }
}

/// Leaves no process behind when a test fails.
impl Drop for Listener {
    fn drop(&mut self) {
        // Both fail only if the child has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `send --json`; returns its exit code and its one result.
fn send(shell: &Shell, server: &Server, line: &str) -> (Option<i32>, Value) {
    let ran = shell.run(&format!("send --json --url {} {line}", server.url()));
    let said = serde_json::from_str(&ran.out);
    (ran.code, said.unwrap_or_else(|_| panic!("{}{}", ran.out, ran.err)))
}

/// Writes a token for a device into a file of its name.
fn token(shell: &Shell, server: &Server, name: &str) {
    let data = server.directory.path().join("switchboard-data");
    let ran = shell.run(&format!("token --device {name} --data-dir {}", data.display()));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    std::fs::write(shell.directory.path().join(name), ran.out).unwrap();
}

/// Creates a device that is away.
fn away(shell: &Shell, server: &Server, name: &str) {
    token(shell, server, name);
    drop(durable::Listening::start(shell, server, &format!("--token-file {name}")));
}

fn loaded(text: &str) -> Config {
    resolve([Layer::from_toml(Path::new("printed"), text)]).unwrap().config
}

#[test]
fn config_print_with_nothing_set_is_the_default() {
    let ran = Shell::new().run("config print");
    assert_eq!((ran.code, loaded(&ran.out)), (Some(0), Config::default()));
}

#[test]
fn config_print_default_is_the_described_file() {
    assert_eq!(Shell::new().run("config print --default").out, DEFAULT_TOML);
}

#[test]
fn config_print_says_where_each_value_came_from() {
    let shell = Shell::new()
        .with_file("server.cfg", "[Settings]\nport = 9000\n")
        .with_file("switchboard.toml", "shards = 2\n");
    let output = shell
        .command("config print --set drain=1s")
        .env("SWITCHBOARD_COMPRESSION", "true")
        .output();
    let ran = Ran::from(output.unwrap());
    for line in [
        "listen = \"0.0.0.0:9000\"  # server.cfg:2",
        "shards = 2  # switchboard.toml:1",
        "compression = true  # SWITCHBOARD_COMPRESSION",
        "drain = \"1s\"  # --set",
    ] {
        assert!(ran.out.lines().any(|printed| printed == line), "{line} not in\n{}", ran.out);
    }
}

#[test]
fn config_check_says_ok() {
    let ran = Shell::new().with_file("switchboard.toml", DEFAULT_TOML).run("config check");
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "ok\n", ""));
}

#[test]
fn config_check_tells_every_error() {
    let shell = Shell::new().with_file("switchboard.toml", "shard = 2\n");
    let ran = shell.run("config check --port http --set drain=1s");
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert_eq!(
        ran.err,
        "switchboard: cannot use the configuration: 2 errors in the configuration:
  switchboard.toml:1: shard: unknown key; did you mean shards?
  --port: port: got \"http\"; give a whole number from 0 to 65535\n"
    );
}

#[test]
fn config_check_reads_the_certificate() {
    let shell = Shell::new().with_file("c.pem", "none");
    let ran = shell.run("config check --tls-cert c.pem --tls-key k.pem");
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.starts_with("switchboard: cannot use the certificate: "), "{}", ran.err);
    let ran = shell.run("config check --set auth_public_keys=none.pem");
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.starts_with("switchboard: cannot use the keys of tokens: "), "{}", ran.err);
}

/// Its exit code was once 1, which is for failures at run time.
#[test]
fn a_server_does_not_start_with_files_that_cannot_be_used() {
    let shell = Shell::new().with_file("c.pem", "none");
    for options in ["--tls-cert c.pem --tls-key k.pem", "--set auth_public_keys=none.pem"] {
        let ran = shell.run(&format!("--memory --listen 127.0.0.1:0 {options}"));
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert_eq!(
            ran.err.matches("os error").count(),
            usize::from(ran.err.contains("none.pem")),
            "{}",
            ran.err
        );
    }
}

#[test]
fn an_address_that_cannot_be_had_says_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for (address, advice) in [
        (
            address.to_string(),
            "another program listens there: stop it, or give another port by --port",
        ),
        ("192.0.2.1:8080".to_owned(), "no such address"),
    ] {
        let ran = Shell::new().run(&format!("--memory --listen {address}"));
        assert_eq!(ran.code, Some(1));
        assert!(
            ran.err.contains(&format!("cannot listen on {address} (listen, port): ")),
            "{}",
            ran.err
        );
        assert!(ran.err.contains(advice), "{}", ran.err);
    }
}

#[test]
fn a_data_directory_that_is_a_file_is_said_to_be_one() {
    let shell = Shell::new();
    std::fs::write(shell.directory.path().join("data"), "x").unwrap();
    let ran = shell.run("--listen 127.0.0.1:0 --data-dir data");
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("switchboard: data_dir data: it is a file; give a directory"),
        "{}",
        ran.err
    );
}

#[test]
fn a_data_directory_that_cannot_be_had_says_what_to_do() {
    let (server, shell) = (Server::start(), Shell::new().with_file("token.key", "x"));
    let taken = server.directory.path().join("switchboard-data");
    let ran = shell.run(&format!("--listen 127.0.0.1:0 --data-dir {}", taken.display()));
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("is in use by another process: stop it, or give another"),
        "{}",
        ran.err
    );

    let denied = |call: &str, path: &str, command: Command| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-P", path]);
        strace.args(["-e", &format!("inject={call}:error=EACCES")]);
        strace.arg(command.get_program()).args(command.get_args());
        Ran::from(strace.current_dir(shell.directory.path()).output().unwrap())
    };
    let ran = denied("mkdir", "switchboard-data", shell.command("--listen 127.0.0.1:0"));
    assert_eq!(ran.code, Some(1));
    let advice =
        "start the server where its user may write, or give another directory by --data-dir";
    assert!(ran.err.trim_end().ends_with(advice), "{}", ran.err);
    let ran = denied("openat", "./token.key", shell.command("token --device a --data-dir ."));
    assert!(ran.err.contains("run it as the server's user"), "{}", ran.err);
}

#[test]
fn a_server_cfg_with_keys_that_the_original_ignored_starts() {
    let directory = tempfile::tempdir().unwrap();
    let text = "[Settings]\nlocalhost = 1\nport = 9000\n";
    std::fs::write(directory.path().join("server.cfg"), text).unwrap();
    let log = Server::spawn(directory, &[], |_| {}).terminate().log;
    assert!(log.contains("server.cfg:2: localhost: is ignored"), "{log}");
}

#[test]
fn an_error_keeps_the_server_from_starting() {
    let ran = Shell::new().run("--set shards=many");
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.starts_with("switchboard: cannot start: 1 error in the"), "{}", ran.err);
}

#[test]
fn a_port_that_is_taken_is_a_failure() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ran = Shell::new().run(&format!("--listen {}", taken.local_addr().unwrap()));
    assert_eq!(ran.code, Some(1), "{}", ran.err);
}

/// Returns an address where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("ws://{}", listener.local_addr().unwrap())
}

#[test]
fn what_is_sent_is_heard() {
    let (server, shell) = (Server::start(), Shell::new());
    let mut listener = Listener::start(&shell, &format!("listen --url {}", server.url()));
    let to = listener.id;
    let ran = shell.run(&format!("send --wait 10s --url {} {to} a,b", server.url()));
    let heard = listener.line();
    let (from, text) = heard.split_once(": ").unwrap();
    assert_eq!(text, "a,b");
    assert_eq!(
        (ran.code, ran.out, ran.err.as_str()),
        (Some(0), format!("delivered to {to} from {from}\n"), "")
    );
    listener.interrupt();
    assert_eq!(listener.end().0.code(), Some(0));
}

#[test]
fn what_is_sent_as_json_is_heard_as_json() {
    let (server, shell) = (Server::start(), Shell::new());
    let url = server.url();
    let mut listener = Listener::start(&shell, &format!("listen --json --url {url}"));
    let to = listener.id.to_string();
    let ran = shell.run(&format!("send --json --wait 10s --url {url} {to} hello"));
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    let (id, from) = (&said["id"], &said["from"]);
    let heard = listener.json();
    assert!(from.is_string() && heard["sent_at_ms"].is_u64(), "{said} {heard}");
    assert_eq!(
        said,
        json!({
            "result": "delivered", "id": id, "to": to, "from": from, "durability": "memory",
            "duplicate": false, "code": null, "reason": null, "maybe_seen": false,
        })
    );
    assert_eq!(
        heard,
        json!({
            "event": "message", "seq": 1, "from": from, "id": id, "body": "hello",
            "sent_at_ms": heard["sent_at_ms"], "re": null,
        })
    );
}

#[test]
fn send_reads_standard_input() {
    let (server, shell) = (Server::start(), Shell::new());
    let url = server.url();
    let mut listener = Listener::start(&shell, &format!("listen --json --url {url}"));
    let ran =
        shell.feed(&format!("send --wait 10s --url {url} {} -", listener.id), "two\nlines\n\n");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(listener.json()["body"], "two\nlines\n");
}

/// A device once sent a newline, a number and a colon, which looked like another device's
/// message.
#[test]
fn no_message_looks_like_another_line() {
    let (server, shell) = (Server::start(), Shell::new());
    let url = server.url();
    let mut listener = Listener::start(&shell, &format!("listen --url {url}"));
    let line = format!("send --wait 10s --url {url} {} -", listener.id);
    shell.feed(&line, "one\n100000000: two\r\u{1b}[2J\u{2028}x\n");
    assert!(listener.line().ends_with(": one"));
    assert_eq!(listener.line(), "    100000000: two\\r\\u{1b}[2J\\u{2028}x");
}

#[test]
fn a_body_that_is_not_json_is_refused_before_anything_is_sent() {
    let shell = Shell::new();
    let line = format!("send --url {} --body-json alice", nobody());
    for (body, why) in [
        ("{lamp", "expected a string at line 1, column 2"),
        ("{\"a\":\n [1,}", "line 2, column 5"),
        ("\"ä\" 1", "something follows it at line 1, column 5"),
    ] {
        let ran = Ran::from(shell.command(&line).arg(body).output().unwrap());
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{}", ran.err);
        assert!(ran.err.starts_with("switchboard: the message is not JSON: "), "{}", ran.err);
        assert!(ran.err.contains(why), "{}", ran.err);
    }
}

#[test]
fn listen_ends_quietly_when_its_reader_leaves() {
    let (server, shell) = (Server::start(), Shell::new());
    let mut listener = Listener::start(&shell, &format!("listen --url {}", server.url()));
    listener.lines = None;
    let (status, err) = listener.end();
    assert_eq!((status.code(), err.as_str()), (Some(0), ""));
}

#[test]
fn listen_ends_with_the_server_and_says_so() {
    let (server, shell) = (Server::with(&["drain=0s"]), Shell::new());
    let url = server.url();
    let mut listener = Listener::start(&shell, &format!("listen --json --url {url}"));
    server.terminate();
    let closed = listener.json();
    assert_eq!((&closed["event"], &closed["code"]), (&json!("closed"), &json!(1001)));
    let (status, err) = listener.end();
    assert_eq!(status.code(), Some(6), "{err}");
    assert!(err.starts_with(&format!("switchboard: no longer connected to {url}: ")), "{err}");
    assert!(err.contains("the device ended with its connection"), "{err}");
}

#[test]
fn listen_connects_again_where_that_is_asked() {
    let shell = Shell::new();
    let data_dir = format!("data_dir={}", shell.directory.path().join("data").display());
    let server = Server::with(&["drain=0s", &data_dir]);
    let line = format!("listen --json --reconnect --url {}", server.url());
    let (address, mut listener) = (server.address, Listener::start(&shell, &line));
    server.terminate();
    assert_eq!(listener.json()["event"], "offline");
    let _again = Server::with(&[&format!("listen={address}"), &data_dir]);
    let again = loop {
        let event = listener.json();
        if event["event"] != "offline" {
            break event;
        }
    };
    let id = listener.id.to_string();
    assert_eq!((&again["event"], &again["id"]), (&json!("welcome"), &json!(id)));
    listener.interrupt();
    assert_eq!(listener.end().0.code(), Some(0));
}
