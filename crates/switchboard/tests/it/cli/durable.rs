//! Devices kept over runs of `send` and `listen`: with a token, or a state file.

use std::path::Path;
use std::process::{ChildStdout, Command};

use super::{
    BufRead, BufReader, Child, Lines, Ran, Server, Shell, Signal, Stdio, Value, away, json,
    kill_process, send, token,
};
use rustix::process::Pid;

/// A running `switchboard listen --json`, after its welcome.
pub(super) struct Listening {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub(super) welcome: Value,
}

impl Listening {
    pub(super) fn start(shell: &Shell, server: &Server, line: &str) -> Listening {
        let url = server.url();
        let mut command = shell.command(&format!("listen --json --url {url} {line}"));
        Listening::spawn(&mut command)
    }

    fn spawn(command: &mut Command) -> Listening {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut listening = Listening { child, lines, welcome: Value::Null };
        listening.welcome = listening.event();
        assert_eq!(listening.welcome["event"], "welcome");
        listening
    }

    pub(super) fn event(&mut self) -> Value {
        let line = self.lines.next();
        let line = line.unwrap_or_else(|| panic!("the end: {}", self.rest_of_err()));
        serde_json::from_str(&line.unwrap()).unwrap()
    }

    /// Returns the next event of a kind; others are skipped.
    fn await_event(&mut self, kind: &str) -> Value {
        loop {
            let event = self.event();
            if event["event"] == kind {
                return event;
            }
        }
    }

    fn rest_of_err(&mut self) -> String {
        let mut err = String::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            std::io::Read::read_to_string(&mut pipe, &mut err).unwrap();
        }
        err
    }

    fn end(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Both fail only if the child has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_message_waits_for_a_device_that_is_away_and_is_heard_once() {
    let (server, shell) = (Server::start(), Shell::new());
    token(&shell, &server, "alice");
    let line = "--device alice --token-file alice";
    let listener = Listening::start(&shell, &server, line);
    assert_eq!(listener.welcome["id"], "alice");
    assert_eq!(listener.end(Signal::INT), Some(0));

    let (code, said) = send(&shell, &server, "--wait 0s --receipt --state me alice one");
    assert_eq!((code, &said["result"]), (Some(0), &json!("accepted")));
    assert_eq!(said["durability"], "disk");

    let mut listener = Listening::start(&shell, &server, line);
    assert_eq!(
        (&listener.welcome["resumed"], &listener.welcome["pending"]),
        (&json!(true), &json!(1))
    );
    let heard = listener.event();
    assert_eq!((&heard["event"], &heard["body"]), (&json!("message"), &json!("one")));
    assert_eq!((&heard["from"], &heard["id"]), (&said["from"], &said["id"]));
    // Printed and saved events are acked: they do not come again, even after a kill.
    let mut sender = Listening::start(&shell, &server, "--durable --state me");
    assert_eq!(sender.event()["outcome"], "delivered");
    listener.end(Signal::KILL);
    let mut listener = Listening::start(&shell, &server, line);
    send(&shell, &server, "alice two");
    assert_eq!(listener.event()["body"], "two");
}

/// A server with other data refuses the token that the device keeps, although the user has given
/// none.
#[test]
fn a_kept_token_that_is_refused_is_named_by_its_file() {
    let (first, second, shell) = (Server::start(), Server::start(), Shell::new());
    drop(Listening::start(&shell, &first, "--durable --state me"));
    let refused = shell.run(&format!("listen --durable --state me --url {}", second.url()));
    assert_eq!(refused.code, Some(3));
    assert!(refused.err.contains("another server or data directory"), "{}", refused.err);
    let hint = "the device's token is in me: delete that file to be a new device, or start the server \
                with the data directory that it had";
    assert!(refused.err.trim_end().ends_with(hint), "{}", refused.err);
    let sent = shell.run(&format!("send --state me --url {} nobody x", second.url()));
    assert!(sent.err.trim_end().ends_with(hint), "{}", sent.err);
}

#[test]
fn a_listener_comes_back_by_itself_and_resumes() {
    let shell = Shell::new();
    let data_dir = format!("data_dir={}", shell.directory.path().join("data").display());
    let server = Server::with(&["drain=0s", &data_dir]);
    let line = "--durable --state deep/state";
    let mut listener = Listening::start(&shell, &server, line);
    let id = listener.welcome["id"].as_str().unwrap().to_owned();
    let address = format!("listen={}", server.address);
    server.terminate();
    let server = Server::with(&[&address, &data_dir]);
    let again = listener.await_event("welcome");
    assert_eq!((&again["id"], &again["resumed"]), (&json!(id), &json!(true)));
    let (code, said) = send(&shell, &server, &format!("--wait 10s {id} hello"));
    assert_eq!((code, &said["result"]), (Some(0), &json!("delivered")));
    assert_eq!(listener.event()["body"], "hello");
    assert_eq!(listener.end(Signal::INT), Some(0));
    let listener = Listening::start(&shell, &server, line);
    assert_eq!(listener.welcome["id"], json!(id));
}

#[test]
fn outcomes_wait_for_the_sender_too() {
    let (server, shell) = (Server::start(), Shell::new());
    away(&shell, &server, "carol");
    let (code, said) =
        send(&shell, &server, "--wait 0s --ttl 1ms --receipt --state me --id m carol x");
    assert_eq!(code, Some(0), "{said}");
    let mut listener = Listening::start(&shell, &server, "--durable --state me");
    assert_eq!(listener.welcome["id"], said["from"]);
    let outcome = listener.event();
    assert_eq!((&outcome["event"], &outcome["outcome"]), (&json!("outcome"), &json!("expired")));
    assert_eq!((&outcome["id"], &outcome["to"]), (&json!("m"), &json!("carol")));
}

#[test]
fn presence_is_told_where_it_is_asked() {
    let (server, shell) = (Server::start(), Shell::new());
    token(&shell, &server, "dave");
    let dave = Listening::start(&shell, &server, "--token-file dave");
    let mut listener = Listening::start(&shell, &server, "--durable --state me --watch dave");
    let presence = |listener: &mut Listening| {
        let event = listener.await_event("presence");
        assert_eq!(event["device"], "dave");
        event["online"].as_bool().unwrap()
    };
    assert!(presence(&mut listener));
    dave.end(Signal::INT);
    assert!(!presence(&mut listener));
}

#[test]
fn two_that_are_one_device_do_not_fight() {
    let (server, shell) = (Server::start(), Shell::new());
    let mut first = Listening::start(&shell, &server, "--durable --state me");
    let _second = Listening::start(&shell, &server, "--durable --state me");
    assert_eq!(first.await_event("closed")["code"], 4409);
    assert_eq!(first.child.wait().unwrap().code(), Some(6));
    assert!(first.rest_of_err().contains("taken the device over"));
}

#[test]
fn wrong_tokens_are_explained() {
    let (server, shell) = (Server::start(), Shell::new());
    token(&shell, &server, "erin");
    let shell = shell.with_file("bad", "no token").with_file("empty", "");
    let url = server.url();
    let refused = |line: &str, code: i32, words: &str| {
        let Ran { code: ended, err, .. } = shell.run(&format!("{line} --url {url}"));
        assert_eq!(ended, Some(code), "{line}: {err}");
        assert!(err.contains(words), "{line}: {err}");
    };
    refused("listen --token-file bad", 3, "does not accept the token");
    refused("listen --token-file empty", 1, "it is empty");
    refused("listen --token-file none", 1, "No such file");
    refused("listen --device bob --token-file erin", 2, "the token is that of erin");
    refused("listen --device bob", 2, "--device bob requires its token");
    refused("send --receipt erin x", 2, "--state FILE");
    let state = shell.run(&format!("send --wait 0s --state kept --url {url} erin x"));
    assert_eq!(state.code, Some(0), "{}", state.err);
    refused("send --state kept --token-file erin erin x", 1, "another device's");
}

#[test]
fn the_default_state_is_the_users_own() {
    let (server, shell) = (Server::start(), Shell::new());
    let home = shell.directory.path().join("home");
    let address = server.address;
    let mut command = shell.command(&format!("listen --json --durable --url {address}"));
    let listener = Listening::spawn(command.env("XDG_STATE_HOME", &home));
    let to = listener.welcome["id"].as_str().unwrap().to_owned();
    // The sender is another device, the same in every run, and does not disconnect the listener.
    let send = || {
        let line = format!("send --json --wait 10s --durable --url {address} {to} x");
        let output = shell.command(&line).env("XDG_STATE_HOME", &home).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["result"], "delivered", "{said}");
        said["from"].as_str().unwrap().to_owned()
    };
    let from = send();
    assert_eq!(send(), from);
    assert_ne!(from, to);
    for command in ["listen", "send"] {
        let name = format!("{command}-{}.json", address.to_string().replace(':', "-"));
        assert!(Path::exists(&home.join("switchboard").join(name)), "{command}");
    }
}

#[test]
fn a_token_opens_a_server_that_asks_for_one() {
    let (server, shell) = (Server::with(&["auth=token"]), Shell::new());
    token(&shell, &server, "alice");
    token(&shell, &server, "cron");
    let url = server.url();
    for command in [format!("listen --url {url}"), format!("send --url {url} alice x")] {
        let ran = shell.run(&command);
        assert_eq!(ran.code, Some(3), "{}", ran.err);
        assert!(
            ran.err.contains("give one by --token-file FILE or SWITCHBOARD_TOKEN"),
            "{}",
            ran.err
        );
    }
    let secret = |name: &str| std::fs::read_to_string(shell.directory.path().join(name)).unwrap();
    let mut command = shell.command(&format!("listen --json --url {url}"));
    let mut listener = Listening::spawn(command.env("SWITCHBOARD_TOKEN", secret("alice")));
    assert_eq!(listener.welcome["id"], "alice");
    let (code, said) = send(&shell, &server, "--wait 10s --token-file cron alice one");
    assert_eq!((code, &said["from"]), (Some(0), &json!("cron")));
    assert_eq!(listener.event()["from"], "cron");
    let mut command = shell.command(&format!("send --url {url} alice two"));
    let ran = Ran::from(command.env("SWITCHBOARD_TOKEN", secret("cron")).output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let mut command = shell.command(&format!("send --durable --url {url} alice two"));
    let ran = Ran::from(command.env("SWITCHBOARD_TOKEN", secret("cron")).output().unwrap());
    assert_eq!(ran.code, Some(2), "{}", ran.err);
}
