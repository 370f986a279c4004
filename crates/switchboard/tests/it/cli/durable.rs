//! `send --durable` and `listen` over v1: what is kept over runs of either side.

use std::path::Path;
use std::process::{ChildStdout, Command};

use super::{
    BufRead, BufReader, Child, Lines, Ran, Server, Shell, Signal, Stdio, Value, json, kill_process,
};
use rustix::process::Pid;

/// A `switchboard listen --json` over v1, after its welcome.
struct Listening {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    welcome: Value,
}

impl Listening {
    fn start(shell: &Shell, server: &Server, line: &str) -> Listening {
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

    fn event(&mut self) -> Value {
        let line = self.lines.next();
        let line = line.unwrap_or_else(|| panic!("the end: {}", self.rest_of_err()));
        serde_json::from_str(&line.unwrap()).unwrap()
    }

    /// The next event of a kind; others are passed over.
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
        // Both fail only for a child that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A token for a device, in a file of its name.
fn token(shell: &Shell, server: &Server, name: &str) {
    let data = server.directory.path().join("switchboard-data");
    let ran = shell.run(&format!("token --device {name} --data-dir {}", data.display()));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    std::fs::write(shell.directory.path().join(name), ran.out).unwrap();
}

fn send(shell: &Shell, server: &Server, line: &str) -> (Option<i32>, Value) {
    let ran = shell.run(&format!("send --json --url {} {line}", server.url()));
    let said = serde_json::from_str(&ran.out);
    (ran.code, said.unwrap_or_else(|_| panic!("{}{}", ran.out, ran.err)))
}

#[test]
fn a_message_waits_for_a_device_that_is_away_and_is_heard_once() {
    let (server, shell) = (Server::start(), Shell::new());
    token(&shell, &server, "alice");
    let line = "--device alice --token-file alice";
    let listener = Listening::start(&shell, &server, line);
    assert_eq!(listener.welcome["id"], "alice");
    assert_eq!(listener.end(Signal::INT), Some(0));

    let (code, said) = send(&shell, &server, "--durable --receipt --state me alice one");
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
    // What was printed and kept is acked: it does not come again, even after a hard end.
    let mut sender = Listening::start(&shell, &server, "--durable --state me");
    assert_eq!(sender.event()["outcome"], "delivered");
    listener.end(Signal::KILL);
    let mut listener = Listening::start(&shell, &server, line);
    send(&shell, &server, "--durable alice two");
    assert_eq!(listener.event()["body"], "two");
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
    let (code, said) = send(&shell, &server, &format!("--durable --wait 10s {id} hello"));
    assert_eq!((code, &said["result"]), (Some(0), &json!("delivered")));
    assert_eq!(listener.event()["body"], "hello");
    assert_eq!(listener.end(Signal::INT), Some(0));
    let listener = Listening::start(&shell, &server, line);
    assert_eq!(listener.welcome["id"], json!(id));
}

#[test]
fn how_a_message_ends_is_told_by_the_exit_code() {
    let (server, shell) = (Server::start(), Shell::new());
    token(&shell, &server, "bob");
    drop(Listening::start(&shell, &server, "--token-file bob"));
    for (line, code, result) in [
        ("--durable bob x", 0, "accepted"),
        ("--durable --wait 10ms bob x", 7, "stored"),
        ("--durable --ttl 1ms --wait 10s bob x", 9, "expired"),
        ("--durable nobody x", 4, "rejected"),
        ("--durable --token-file bob --id i bob x", 0, "accepted"),
        ("--durable --token-file bob --id i bob y", 8, "rejected"),
        ("--durable --body-json bob {", 1, "failed"),
        ("nobody x", 4, "no_such_device"),
        ("bob x", 0, "handed_over"),
    ] {
        let (ended, said) = send(&shell, &server, line);
        assert_eq!((ended, &said["result"]), (Some(code), &json!(result)), "{line}: {said}");
    }
}

#[test]
fn outcomes_wait_for_the_sender_too() {
    let (server, shell) = (Server::start(), Shell::new());
    token(&shell, &server, "carol");
    drop(Listening::start(&shell, &server, "--token-file carol"));
    let (code, said) =
        send(&shell, &server, "--durable --ttl 1ms --receipt --state me --id m carol x");
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
fn people_read_lines() {
    let (server, shell) = (Server::start(), Shell::new());
    let line = format!("listen --url {} --durable --state me", server.url());
    let mut listener = super::Listener::start(&shell, &line);
    let to = listener.id;
    let ran = shell.run(&format!("send --url {} --durable --wait 10s {to} a,b", server.url()));
    let heard = listener.line();
    let (from, text) = heard.split_once(": ").unwrap();
    assert_eq!(text, "a,b");
    assert_eq!((ran.code, ran.out), (Some(0), format!("delivered to {to} from {from}\n")));
    listener.interrupt();
    assert_eq!(listener.end().0.code(), Some(0));
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
    refused("listen --watch bob", 2, "--durable");
    refused("send --durable --receipt erin x", 2, "--state FILE");
    refused("send --ttl 1h erin x", 2, "--durable");
}

#[test]
fn the_default_state_is_the_users_own() {
    let (server, shell) = (Server::start(), Shell::new());
    let home = shell.directory.path().join("home");
    let mut command = shell.command(&format!("listen --json --durable --url {}", server.url()));
    command.env("XDG_STATE_HOME", &home);
    drop(Listening::spawn(&mut command));
    let name = format!("listen-{}.json", server.address.to_string().replace(':', "-"));
    assert!(Path::exists(&home.join("switchboard").join(name)));
}
