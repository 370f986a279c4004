//! At the limit on open files the server keeps its connections, and reports the limit.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use super::wire::{Wire, read_head};
use crate::device::Device;
use crate::server::Server;

const FAILURES: &str = "switchboard_accept_failures_total";

/// Lets the server open `more` files than it has now.
pub(super) fn limit_files(server: &Server, more: usize) {
    let folder = format!("/proc/{}/fd", server.pid().as_raw_nonzero());
    let used: BTreeSet<u64> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    // The limit is on the number of the descriptor, and an inherited one may be far above the
    // others.
    let max = (0..).filter(|number| !used.contains(number)).nth(more).unwrap();
    let limit = Rlimit { current: Some(max), maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Some(server.pid()), Resource::Nofile, limit).unwrap();
}

#[test]
fn without_file_descriptors_it_serves_whom_it_has_and_turns_others_away() {
    let server = Server::with(&["shards=2"]);
    let (mut a, mut b) = (Device::connect(&server), Device::connect(&server));
    limit_files(&server, 10);
    let mut inside: Vec<Wire> = (0..10).map(|_| Wire::open(&server)).collect();
    for n in 0..20 {
        let mut rejected = server.socket();
        let answer = read_head(&mut rejected);
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After"), "{answer}");
        a.send(b.id, &format!("still here {n}"));
        assert_eq!(b.hear(), format!("{}:still here {n}", a.id));
    }
    for wire in &mut inside {
        assert!(wire.ask("help").starts_with("Your ID: "));
    }
    // A connection that leaves frees a file.
    let left = inside.len();
    inside.truncate(5);
    let room = left - inside.len();
    let back: Vec<Wire> = (0..room - 1).map(|_| Wire::open_patiently(&server)).collect();
    let failures = server.metric(FAILURES);
    assert!(failures >= 20.0, "{failures}");
    drop((inside, back, a, b));
    let log = server.terminate().log;
    let complaints = log.lines().filter(|line| line.contains("no file descriptor is left")).count();
    assert_eq!(complaints, 1, "{log}");
}

/// accept(2) reports the lack of a file descriptor before it checks whether anybody waits, so an
/// empty backlog once looked like an endless crowd, and the loop never slept again.
#[test]
fn at_the_limit_with_nobody_waiting_it_sleeps() {
    let server = Server::with(&["shards=1"]);
    // From here on the shard has all the files that it needs for itself.
    let first = Wire::open(&server);
    limit_files(&server, 10);
    let inside: Vec<Wire> = (0..10).map(|_| Wire::open(&server)).collect();
    let rejected: Vec<String> = (0..3).map(|_| read_head(&mut server.socket())).collect();
    assert!(rejected.iter().all(|answer| answer.starts_with("HTTP/1.1 503 ")));
    limit_files(&server, 100);
    assert_eq!(server.metric(FAILURES), 3.0);
    drop((first, inside));
}

/// Started with a low limit, it reduces `max_connections` so that it can still reject.
#[test]
fn a_low_hard_limit_bounds_the_connections() {
    let settings = ["http_connections_max=8", "shards=1", "store_max_bytes=8MiB"];
    let server = Server::spawn(tempfile::tempdir().unwrap(), &settings, |command| {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "ulimit -n 280; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(command.get_current_dir().unwrap());
        *command = shell;
    });
    assert_eq!(server.metric("process_max_fds"), 280.0);
    // 280 less 64 for other purposes, 64 for connections to reject, 19 of the shard, 48 segments
    // and 16 for HTTP.
    let inside: Vec<Wire> = (0..69).map(|_| Wire::open(&server)).collect();
    let answer = server.raw(super::wire::REQUEST.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(server.get("/healthz"), "ok\n");
    drop(inside);
    let log = server.terminate().log;
    assert!(log.contains("\"effective\":69"), "{log}");
}

#[test]
fn the_soft_limit_is_raised_at_start() {
    let server = Server::spawn(tempfile::tempdir().unwrap(), &[], |command| {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "ulimit -Sn 64; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(command.get_current_dir().unwrap());
        *command = shell;
    });
    let hard = getrlimit(Resource::Nofile).maximum.unwrap();
    assert_eq!(server.metric("process_max_fds"), hard as f64);
    let sockets: Vec<TcpStream> = (0..100).map(|_| server.socket()).collect();
    assert_eq!(server.get("/healthz"), "ok\n");
    drop(sockets);
}
