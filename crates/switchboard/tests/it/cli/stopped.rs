//! `mailbox` and `store` on the data directory of a stopped server.

use std::io::Write;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::{Ran, Server, Shell, Value, json};

/// Starts a server with its data in the shell's directory.
pub(super) fn server(shell: &Shell) -> Server {
    let data_dir = shell.directory.path().join("switchboard-data");
    Server::with(&["drain=0s", &format!("data_dir={}", data_dir.display())])
}

/// Creates a device of this name that is known to the server and away.
pub(super) fn device(shell: &Shell, server: &Server, name: &str) {
    let token = shell.run(&format!("token --device {name}")).out;
    std::fs::write(shell.directory.path().join(name), token).unwrap();
    let line = format!("send --url {} --token-file {name} --id x nobody x", server.url());
    assert_eq!(shell.run(&line).code, Some(4));
}

pub(super) fn send(shell: &Shell, server: &Server, line: &str) {
    let ran = shell.run(&format!("send --wait 0s --url {} {line}", server.url()));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

fn rows(ran: &Ran) -> Vec<Value> {
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn mailboxes_are_listed_shown_and_dropped() {
    let shell = Shell::new();
    let running = server(&shell);
    device(&shell, &running, "alice");
    device(&shell, &running, "bob");
    send(&shell, &running, "--token-file bob --id one alice first");
    send(&shell, &running, "--token-file bob --id two --receipt alice second");
    send(&shell, &running, "--token-file alice --id three bob third");
    running.terminate();

    let listed = rows(&shell.run("mailbox list --json"));
    let waiting: Vec<_> = listed.iter().map(|row| (&row["device"], &row["messages"])).collect();
    let [alice, bob, two, one] = [json!("alice"), json!("bob"), json!(2), json!(1)];
    assert_eq!(waiting, [(&alice, &two), (&bob, &one)]);
    assert!(shell.run("mailbox list").out.starts_with("DEVICE"));

    let shown = rows(&shell.run("mailbox show alice --json"));
    let bodies: Vec<_> = shown.iter().map(|row| (&row["id"], &row["body"])).collect();
    assert_eq!(bodies, [(&json!("one"), &json!("first")), (&json!("two"), &json!("second"))]);
    assert_eq!(shown[1]["receipt"], true);
    assert!(shell.run("mailbox show alice").out.contains("from bob  id one"));

    let dropped = shell.run("mailbox drop --yes alice");
    assert_eq!((dropped.code, dropped.err.as_str()), (Some(0), ""));
    assert_eq!(shell.run("mailbox show alice").code, Some(4));
    assert!(
        dropped.out.contains("2 messages") && dropped.out.contains("senders of 1"),
        "{}",
        dropped.out
    );
    assert_eq!(rows(&shell.run("mailbox show bob --json")).len(), 1);

    // The server finds the data as it was left, and continues.
    let running = server(&shell);
    let url = running.url();
    let ran = shell.run(&format!("send --url {url} alice x"));
    assert_eq!(ran.code, Some(4), "{}", ran.err);
    send(&shell, &running, "--token-file alice bob fourth");
    running.terminate();
    let bobs = rows(&shell.run("mailbox show bob --json"));
    let seqs: Vec<_> = bobs.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
    assert_eq!((bobs.len(), &bobs[1]["outcome"]), (3, &json!("evicted")), "{bobs:?}");
    assert!(seqs.is_sorted_by(|one, next| one < next), "{seqs:?}");
}

#[test]
fn a_sound_store_is_told_from_a_damaged_one() {
    let shell = Shell::new();
    let running = server(&shell);
    device(&shell, &running, "alice");
    for text in ["a", "b", "c"] {
        send(&shell, &running, &format!("alice {text}"));
    }
    running.terminate();
    let ran = shell.run("store check");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.starts_with("intact: 1 segments, "), "{}", ran.out);

    let log = shell.directory.path().join("switchboard-data/log");
    let segment = log.join("00000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[90] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let ran = shell.run("store check");
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    let file = segment.file_name().unwrap().to_str().unwrap();
    assert!(ran.err.contains(&format!("{file} is damaged at byte 64")), "{}", ran.err);
}

#[test]
fn the_store_of_a_server_that_runs_is_left_alone() {
    let shell = Shell::new();
    let running = server(&shell);
    device(&shell, &running, "alice");
    for line in ["mailbox list", "mailbox show alice", "mailbox drop --yes alice", "store check"] {
        let ran = shell.run(line);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{line}");
        assert!(ran.err.contains("stop the server"), "{line}: {}", ran.err);
    }
}

#[test]
fn where_no_store_is_none_is_made() {
    let shell = Shell::new();
    for line in ["mailbox list", "store check", "mailbox drop --yes alice --data-dir elsewhere"] {
        let ran = shell.run(line);
        assert_eq!(ran.code, Some(1), "{line}");
        assert!(ran.err.contains("holds no store"), "{line}: {}", ran.err);
    }
    assert_eq!(std::fs::read_dir(shell.directory.path()).unwrap().count(), 0);
}

#[test]
fn a_mailbox_is_dropped_only_by_who_means_it() {
    let shell = Shell::new();
    let running = server(&shell);
    device(&shell, &running, "alice");
    send(&shell, &running, "alice one");
    running.terminate();
    let ran = shell.run("mailbox drop alice");
    assert_eq!(ran.code, Some(2), "nobody can be asked: {}", ran.err);
    assert!(ran.err.contains("--yes"), "{}", ran.err);
    let answered = |answer: &str| {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let stdin = std::fs::File::options().read(true).write(true).open(name).unwrap();
        std::fs::File::from(terminal.try_clone().unwrap()).write_all(answer.as_bytes()).unwrap();
        let mut command = shell.command("mailbox drop alice");
        Ran::from(command.stdin(stdin).output().unwrap())
    };
    let ran = answered("\n");
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "nothing was dropped\n"), "{}", ran.err);
    assert_eq!(ran.err, "End alice with 1 messages? [y/N] ");
    assert_eq!(shell.run("mailbox show alice").code, Some(0));
    assert!(answered("y\n").out.starts_with("dropped alice"));
    assert_eq!(shell.run("mailbox show alice").code, Some(4));
}
