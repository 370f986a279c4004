//! SIGHUP: a running server continues with the new configuration.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::json;

use tungstenite::client::IntoClientRequest;

use super::client::{V1, send};
use super::identity::hs256;
use crate::server::{PATIENCE, Server, without_settings};

/// Starts a server with its settings in a file.
fn start(toml: &str) -> Server {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("switchboard.toml"), toml).unwrap();
    Server::spawn(directory, &[], |_| {})
}

/// Writes this file and has the server reread it; returns true if it was applied.
fn reload(server: &Server, toml: &str) -> bool {
    fs::write(server.directory.path().join("switchboard.toml"), toml).unwrap();
    hang_up(server)
}

fn hang_up(server: &Server) -> bool {
    let [applied, refused] = ["applied", "refused"]
        .map(|result| format!("switchboard_config_reloads_total{{result=\"{result}\"}}"));
    let before = server.metric(&applied) + server.metric(&refused);
    let was_applied = server.metric(&applied);
    server.signal(Signal::HUP);
    server.await_metric(&refused, |now| now + server.metric(&applied) > before);
    server.metric(&applied) > was_applied
}

/// Returns true if a page of this origin may connect.
fn admits(server: &Server, origin: &str) -> bool {
    let mut request = server.url().into_client_request().unwrap();
    request.headers_mut().insert("Origin", origin.parse().unwrap());
    tungstenite::client(request, server.socket()).is_ok()
}

/// Closing the window once left a server behind that kept its port.
#[test]
fn a_hangup_ends_a_server_whose_terminal_is_gone() {
    // The server must not inherit our end of it.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let terminal = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    let server = Server::spawn(tempfile::tempdir().unwrap(), &["drain=0s"], |command| {
        command.stdin(fs::File::options().read(true).write(true).open(terminal).unwrap());
    });
    assert!(hang_up(&server), "a terminal that is there changes nothing");
    drop(ours);
    server.signal(Signal::HUP);
    server.signal(Signal::HUP);
    let ended = server.wait();
    assert!(ended.status.success(), "{}", ended.log);
    assert!(ended.log.contains("its terminal is gone"), "{}", ended.log);
}

/// Key files were once reread, but a second one named meanwhile was not read.
#[test]
fn a_key_file_that_is_named_since_is_trusted() {
    let server = start("shards = 2\n");
    let secret = [7; 32];
    fs::write(server.directory.path().join("secret"), secret).unwrap();
    let token = hs256(&json!({ "sub": "alice" }), &secret);
    let hello = json!({ "token": token });
    let mut refused = V1::open(&server);
    refused.say_hello(hello.clone());
    assert_eq!(refused.end().0, 4401);
    assert!(reload(&server, "shards = 2\nauth_hs256_secret_file = \"secret\"\n"));
    assert_eq!(V1::hello(&server, hello).device(), "alice");
}

/// A configuration from a pipe, and a file that an editor had emptied for a moment, was once read as
/// one without settings: any page could connect, and no limit held.
#[test]
fn a_configuration_that_has_lost_all_its_settings_is_refused() {
    let toml = "shards = 2\nallowed_origins = [\"https://a.example\"]\n";
    let server = start(toml);
    let path = server.directory.path().join("switchboard.toml");
    let is_in_force = || !admits(&server, "https://other.example");
    for lost in ["", "\n  \n"] {
        assert!(!reload(&server, lost) && is_in_force(), "{lost:?}");
    }
    fs::remove_file(&path).unwrap();
    assert!(!hang_up(&server) && is_in_force());
    assert!(reload(&server, toml) && is_in_force());
    // Somebody means it.
    assert!(reload(&server, "# nothing\n"));
    assert!(!is_in_force());
    let log = server.terminate().log;
    assert_eq!(log.matches("switchboard.toml: it is empty or gone").count(), 3, "{log}");
}

/// To open a pipe that nobody writes to waits for ever, and with it the server did.
#[test]
fn a_start_reads_a_pipe_and_a_reload_refuses_it() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe.toml");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let writes = thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(pipe, "allowed_origins = [\"https://a.example\"]\n").unwrap()
    });
    let server = Server::spawn(directory, &[], |command| {
        command.args(["--config", "pipe.toml"]);
    });
    writes.join().unwrap();
    assert!(!hang_up(&server));
    assert!(!admits(&server, "https://other.example"));
    assert!(admits(&server, "https://a.example"));
    // The same for a file that the configuration names.
    fs::remove_file(&pipe).unwrap();
    let secret = server.directory.path().join("secret");
    let toml = "auth_hs256_secret_file = \"secret\"\nallowed_origins = [\"https://a.example\"]\n";
    fs::write(&pipe, toml).unwrap();
    mknodat(CWD, &secret, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    assert!(!hang_up(&server));
    fs::remove_file(&secret).unwrap();
    fs::write(&secret, [7; 32]).unwrap();
    assert!(hang_up(&server));
    let log = server.terminate().log;
    assert_eq!(log.matches("it is no regular file").count(), 2, "{log}");
}

/// It once ended the server, because signals were not handled before the store was open.
#[test]
fn a_hangup_while_the_server_starts_does_not_end_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("strace");
    // It takes its lock late; strace detaches, so that the child is the server.
    command.args(["-D", "-o", "/dev/null", "-e", "trace=flock"]);
    command.args(["-e", "inject=flock:delay_enter=500000:when=1"]);
    command.arg(env!("CARGO_BIN_EXE_switchboard")).args(["--listen", "127.0.0.1:0"]);
    without_settings(&mut command);
    command.current_dir(directory.path()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = command.spawn().unwrap();
    let began = Instant::now();
    while !directory.path().join("switchboard-data").exists() {
        assert!(began.elapsed() < PATIENCE, "it does not start");
    }
    kill_process(Pid::from_child(&server), Signal::HUP).unwrap();
    let mut greeting = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut greeting).unwrap();
    assert!(greeting.contains("is listening"), "{greeting:?}, {:?}", server.try_wait());
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    assert!(server.wait().unwrap().success());
}

#[test]
fn what_may_change_live_holds_on_every_shard_at_once() {
    let server = start("shards = 3\n");
    let mut inside = V1::anonymous(&server);
    assert!(admits(&server, "https://other.example"));
    let changed = "shards = 3\nallowed_origins = [\"https://a.example\"]\nmailbox_max_messages = 2\n\
                   mailbox_sender_share = 100\nmax_message_bytes = 1000\n";
    assert!(reload(&server, changed));
    // Connected devices stay.
    inside.hears_nothing();
    for _ in 0..6 {
        assert!(!admits(&server, "https://other.example"));
        assert!(admits(&server, "https://a.example"));
    }
    assert!(reload(&server, &changed.replace("https://a.example", "https://b.example")));
    assert!(!admits(&server, "https://a.example"));
    assert!(reload(&server, &changed.replace("allowed_origins", "#allowed_origins")));
    // One on each shard.
    for away in (0..3).map(|_| V1::anonymous(&server).leave()) {
        let ids = [1, 2, 3].map(|n| format!("{n}-{}", away.device));
        ids[..2].iter().for_each(|id| inside.send(&away.device, id));
        let full = json!({ "type": "rejected", "code": "mailbox_full" });
        inside.ask(send(&away.device, &ids[2]), full);
    }
}

/// Alerts compare with the value that is in force.
#[test]
fn the_bounds_among_the_metrics_are_those_in_force() {
    let server = start("max_connections = 70\ndevices_max = 80\n");
    assert_eq!(server.metric("switchboard_max_connections"), 70.0);
    assert_eq!(server.metric("switchboard_devices_max"), 80.0);
    assert!(reload(&server, "max_connections = 71\nmemory_messages_max_bytes = \"2 MiB\"\n"));
    assert_eq!(server.metric("switchboard_max_connections"), 71.0);
    assert_eq!(server.metric("switchboard_devices_max"), 1_000_000.0);
    assert_eq!(server.metric("switchboard_memory_messages_max_bytes"), f64::from(2 << 20));
}

#[test]
fn what_needs_a_restart_is_named_and_stays() {
    let server = start("");
    assert!(reload(&server, "shards = 7\nlist_devices = \"none\"\nping_interval = \"1s\"\n"));
    let mut watcher = V1::anonymous(&server);
    let other = V1::anonymous(&server);
    watcher.say(&json!({ "type": "watch", "id": "w", "devices": [other.device()] }));
    watcher.expect(json!({ "type": "watching" }));
    watcher.expect(json!({ "type": "presence", "device": other.device(), "online": true }));
    drop((watcher, other));
    let log = server.terminate().log;
    assert!(log.contains("\"keys\":\"shards, list_devices\""), "{log}");
    assert!(log.contains("\"in_force\":\"shards = "), "{log}");
    assert!(log.contains(", list_devices = \\\"all\\\"\""), "{log}");
    assert!(log.contains("\"changed\":\"ping_interval\""), "{log}");
}

/// An error, or an unusable file, must not leave a mixture of old and new settings.
#[test]
fn a_bad_configuration_is_refused_as_a_whole() {
    let server = start("");
    for bad in [
        "allowed_origins = [\"https://a.example\"]\nshard = 1\n",
        "allowed_origins = [\"https://a.example\"]\nauth_public_keys = [\"none.pem\"]\n",
        "allowed_origins = [\"https://a.example\"]\nlog_level = \"loud!\"\n",
        "allowed_origins = [\n",
    ] {
        assert!(!reload(&server, bad), "{bad}");
        assert!(admits(&server, "https://other.example"), "{bad}");
    }
    assert!(reload(&server, "allowed_origins = [\"https://a.example\"]\n"));
    assert!(!admits(&server, "https://other.example"));
    let log = server.terminate().log;
    assert!(log.contains("did you mean shards?") && log.contains("none.pem"), "{log}");
}

#[test]
fn the_log_level_changes_while_it_runs() {
    let server = start("");
    drop(V1::anonymous(&server));
    assert!(reload(&server, "log_level = \"debug\"\n"));
    drop(V1::anonymous(&server));
    assert!(reload(&server, "log_level = \"info\"\n"));
    drop(V1::anonymous(&server));
    let log = server.terminate().log;
    assert_eq!(log.matches("device connected").count(), 1, "{log}");
}
