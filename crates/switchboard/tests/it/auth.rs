//! `switchboard token` from outside: it prints a token that the server's key has signed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::SystemTime;

use tempfile::TempDir;

use switchboard::auth::{Claims, Keyring, Patterns};
use switchboard::config::Config;
use switchboard_proto::v1::PublicId;

use crate::server::{Server, binary};

/// Returns the directory in which a server with this data directory was started once.
fn started_with(data_dir: &str) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let mut server = Server::spawn(home, &[&format!("data_dir={data_dir}")], |_| {});
    server.kill();
    std::mem::replace(&mut server.directory, tempfile::tempdir().unwrap())
}

/// Runs `switchboard token <line>` in `home`.
fn token(home: &Path, line: &str) -> Output {
    let args = ["token"].into_iter().chain(line.split_whitespace());
    binary().args(args).current_dir(home).output().unwrap()
}

/// Returns the claims that the printed token proves to a server with this data directory.
fn claims(output: &Output, data_dir: PathBuf) -> Claims {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stderr, b"", "standard output is no terminal");
    let printed = String::from_utf8(output.stdout.clone()).unwrap();
    let config = Config { data_dir: Some(data_dir), ..Config::default() };
    let keyring = Keyring::open(&config).unwrap();
    keyring.verify(printed.strip_suffix('\n').unwrap(), now_s()).unwrap()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Checks the exit code and the message of a failure.
#[track_caller]
fn refused(output: &Output, code: i32, words: &str) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*output.stdout), (Some(code), &b""[..]), "{err}");
    assert!(err.contains(words), "{err}");
}

#[test]
fn a_token_is_for_the_server_with_the_same_data_directory() {
    let home = started_with("switchboard-data");
    let alice = PublicId::Name("alice".into());
    let expected = Claims { device: alice, expires_at_ms: None, allow_send: None };
    let default = home.path().join("switchboard-data");
    assert_eq!(claims(&token(home.path(), "--device alice"), default), expected);
    let home = started_with("given/deep");
    let given = home.path().join("given/deep");
    let ran = token(home.path(), "--device alice --data-dir given/deep");
    assert_eq!(claims(&ran, given.clone()), expected);
    fs::write(home.path().join("switchboard.toml"), "data_dir = \"given/deep\"").unwrap();
    assert_eq!(claims(&token(home.path(), "--device alice"), given.clone()), expected);
    let key = fs::metadata(given.join("token.key")).unwrap();
    assert_eq!((key.len(), key.permissions().mode() & 0o777), (32, 0o600));
}

/// In another directory than the server's, a key was once silently created, and its token was
/// worthless.
#[test]
fn without_a_servers_data_there_is_no_token_and_nothing_is_made() {
    let home = tempfile::tempdir().unwrap();
    let hint = "start the server once, or name its directory by --data-dir or its file by --config";
    for (line, dir) in [
        ("--device alice", "switchboard-data"),
        ("--device alice --data-dir a/b", "a/b"),
        ("--device alice --data-dir .", "."),
    ] {
        let ran = token(home.path(), line);
        refused(&ran, 2, &format!("cannot make a token: no server's data in {dir}: {hint}"));
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn a_token_may_end_and_may_bound_whom_its_device_sends_to() {
    let home = started_with("switchboard-data");
    let before_ms = now_s() * 1000;
    let ran = token(home.path(), "--device a --ttl 24h --allow-send hub-* --allow-send billing");
    let claims = claims(&ran, home.path().join("switchboard-data"));
    let ttl_ms = 24 * 3600 * 1000;
    let expires_at_ms = claims.expires_at_ms.unwrap();
    assert!((before_ms + ttl_ms..=now_s() * 1000 + ttl_ms).contains(&expires_at_ms));
    assert_eq!(claims.allow_send, Some(Patterns::new(["hub-*", "billing"]).unwrap()));
    // Its `exp` was a number that JavaScript does not have.
    let ran = token(home.path(), "--device a --ttl 999999999years");
    refused(&ran, 2, "--ttl: it ends later than a token can say");
}

#[test]
fn what_is_asked_for_wrongly_is_explained_and_makes_no_key() {
    let home = tempfile::tempdir().unwrap();
    for (line, words) in [
        ("--device 100000000", "numbers are given by the server"),
        ("--device -", "a name is a letter"),
        ("--device a/b", "a name is a letter"),
        ("", "--device"),
        ("--device a --ttl 0s", "at least 1s"),
        ("--device a --ttl soon", "such as 24h"),
        ("--device a --allow-send a/b", "a pattern must be"),
        ("--device a --data-dir=", "keeps no data"),
    ] {
        refused(&token(home.path(), line), 2, words);
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn patterns_that_no_token_can_hold_are_refused() {
    let home = started_with("switchboard-data");
    let patterns: String = (0..64).map(|_| format!(" --allow-send {}", "a".repeat(128))).collect();
    refused(&token(home.path(), &format!("--device a{patterns}")), 2, "too long");
}

#[test]
fn a_key_that_everybody_may_read_signs_nothing() {
    let home = started_with(".");
    fs::set_permissions(home.path().join("token.key"), Permissions::from_mode(0o644)).unwrap();
    refused(&token(home.path(), "--device a --data-dir ."), 1, "chmod 600 ./token.key");
}

#[test]
fn memory_and_a_data_directory_exclude_each_other() {
    let ran = binary().args(["--memory", "--data-dir", "x"]).output().unwrap();
    refused(&ran, 2, "--memory");
    let home = tempfile::tempdir().unwrap();
    for (flags, shown) in [
        (["config", "print", "--memory"], "\"\"  # --memory"),
        (["config", "print", "--data-dir=x"], "\"x\"  # --data-dir"),
    ] {
        let ran = binary().args(flags).current_dir(home.path()).output().unwrap();
        let printed = String::from_utf8(ran.stdout).unwrap();
        let line = format!("data_dir = {shown}");
        assert!(printed.lines().any(|printed| printed == line), "{line} not in\n{printed}");
    }
}

/// The start says once in the log and once on standard output who may connect.
#[test]
fn the_start_says_who_may_connect() {
    for (auth, level, who) in [
        ("open", "WARN", "everybody, from this machine only; so may web pages of any origin"),
        ("token", "INFO", "clients with a token, from this machine only"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let mut server = binary()
            .args(["--listen", "127.0.0.1:0", "--set", &format!("auth={auth}")])
            .current_dir(home.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
        let lines: Vec<String> = lines.take_while(|line| !line.starts_with("  stop ")).collect();
        server.kill().unwrap();
        let log = String::from_utf8(server.wait_with_output().unwrap().stderr).unwrap();
        let greeting = lines.join("\n");
        let paragraph = who.replace("; ", ";\n              ");
        assert!(greeting.contains(&format!("\n  may connect {paragraph}\n")), "{greeting}");
        assert!(lines.iter().all(|line| line.len() <= 100), "{greeting}");
        let said =
            format!("\"level\":\"{level}\",\"message\":\"may connect: {who}; to change it, ");
        assert_eq!(log.matches(&said).count(), 1, "{log}");
        assert_eq!(log.matches("may connect").count(), 1, "{log}");
    }
}
