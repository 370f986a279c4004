//! The disk fails under the real binary: it is full, returns errors or hangs, or another process has it.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use super::client::{V1, send, with};
use crate::server::{Server, binary};
use crate::strace::{self, STORE, SYNCS, Tampering};

/// A file system of a few MiB in a mount namespace of its own, which needs no privilege where user
/// namespaces are allowed. It lives as long as its process, which does nothing else.
struct SmallDisk {
    holder: Child,
    place: tempfile::TempDir,
}

impl SmallDisk {
    fn new(size: &str) -> SmallDisk {
        let place = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=$1,mode=700 none \"$2\" && echo mounted && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", size])
            .arg(place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("`unshare` of util-linux is needed for a small file system");
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        if said != "mounted\n" {
            let mut why = String::new();
            holder.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            panic!("no small file system: user namespaces must be allowed here; {why}");
        }
        SmallDisk { holder, place }
    }

    /// What a command must begin with to see the disk.
    fn prefix(&self) -> Vec<String> {
        let target = format!("--target={}", self.holder.id());
        let begin = "cd \"$1\" && shift && exec \"$@\"";
        let place = self.place.path().to_str().expect("a path in UTF-8");
        let enter = ["nsenter", "--user", "--mount", "--preserve-credentials", &target];
        enter.into_iter().chain(["sh", "-c", begin, "sh", place]).map(str::to_owned).collect()
    }

    /// The disk as it is seen from outside.
    fn path(&self) -> PathBuf {
        let inside = self.place.path().strip_prefix("/").unwrap();
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(inside)
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.path().join("filler")).unwrap();
        for chunk in [1 << 20, 4_096, 1] {
            let zeros = vec![0; chunk];
            let error = loop {
                if let Err(error) = file.write_all(&zeros) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull);
        }
    }

    fn free(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The status of `/readyz`, and what it says.
fn readiness(server: &Server) -> (u16, String) {
    let answer = server.raw(b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.lines().last().expect("a body").to_owned();
    (status.expect("a status"), body)
}

#[track_caller]
fn is_ready(server: &Server) {
    assert_eq!(readiness(server), (200, "ready".to_owned()));
}

#[track_caller]
fn is_not_ready(server: &Server) {
    assert_eq!(readiness(server), (503, "the store cannot write".to_owned()));
}

/// A device sends itself a message that needs no disk, and gets it.
fn send_itself(device: &mut V1, id: &str) {
    let frame = with(send(&device.device(), id), &json!({"durability": "memory"}));
    device.say(&frame);
    let mut told = [device.hear(), device.hear()].map(|frame| frame["type"].to_string());
    told.sort();
    assert_eq!(told, ["\"accepted\"", "\"message\""]);
}

#[test]
fn a_full_disk_is_told_and_nothing_is_lost_when_it_has_room_again() {
    let disk = SmallDisk::new("8m");
    let settings = ["shards=2", "mailbox_max_messages=10000"];
    let mut server = Server::within(&disk.prefix(), &settings);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let body = json!({"body": "x".repeat(20_000)});
    let message = |id: u64| with(send(&b.device, &id.to_string()), &body);
    is_ready(&server);
    a.send_with(&b.device, "0", &body);
    // The numbers that messages in memory get are reserved on disk before they are shown.
    send_itself(&mut a, "m1");
    disk.fill();
    // The log has some room that it took before.
    let refused = (1..).find(|id| {
        a.say(&message(*id));
        let answer = a.hear();
        if answer["type"] == "accepted" {
            return false;
        }
        refused_id(&answer) == *id
    });
    let refused = refused.expect("the disk is full some time");
    server.await_metric("switchboard_store_failing", |failing| failing == 1.0);
    assert!(server.metric("switchboard_store_failures_total") >= 1.0);
    let rejected = "switchboard_rejected_total{code=\"store_unavailable\"}";
    assert!(server.metric(rejected) >= 1.0);
    is_not_ready(&server);
    // What needs no disk goes on.
    send_itself(&mut a, "m2");
    disk.free();
    server.await_metric("switchboard_store_failing", |failing| failing == 0.0);
    is_ready(&server);
    (refused..refused + 10).for_each(|id| retry(&mut a, &message(id)));
    server.restart();
    let mut device = b.back(&server, 0);
    assert_eq!(device.welcome["pending"], refused + 10);
    (0..refused + 10).for_each(|id| {
        device.take(&id.to_string());
    });
    device.hears_nothing();
}

/// The id of a message that the store did not take.
#[track_caller]
fn refused_id(answer: &Value) -> u64 {
    assert_eq!(
        (&answer["type"], &answer["code"]),
        (&json!("rejected"), &json!("store_unavailable"))
    );
    assert!(answer["retry_after_ms"].is_u64(), "{answer}");
    answer["id"].as_str().unwrap().parse().unwrap()
}

/// Sends again until it is accepted: a shard may hear of the recovery a moment after the metrics.
#[track_caller]
fn retry(device: &mut V1, message: &Value) {
    loop {
        device.say(message);
        let answer = device.hear();
        if answer["type"] == "accepted" {
            assert_eq!((&answer["id"], &answer["durability"]), (&message["id"], &json!("disk")));
            return;
        }
        refused_id(&answer);
    }
}

/// What ends the failure in [`a_disk_fails`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Recovery,
    /// While it lasts, the server is killed; its next run finds what was written and not synced.
    Crash,
}

/// These system calls fail for a while under a sender of durable messages.
fn a_disk_fails(calls: &str, error: &str, end: End) {
    const BEFORE: u64 = 5;
    const ALL: u64 = 20;
    let mut server = Server::within(&strace::prefix(), &["shards=2"]);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let message = |id: u64| send(&b.device, &id.to_string());
    (0..BEFORE).for_each(|id| a.send(&b.device, &id.to_string()));
    send_itself(&mut a, "m1");
    is_ready(&server);
    assert_eq!(server.metric("switchboard_store_segments"), 1.0);
    let failing = Tampering::fail(&server, STORE, calls, error);
    // Half of them twice: a retry finds that the first one is not synced.
    let ids: Vec<u64> = (BEFORE..ALL).flat_map(|id| vec![id; 1 + id as usize % 2]).collect();
    a.say_all(ids.iter().copied().map(message));
    // Those that were on their way when it began may be told after those that came later.
    let mut refused: Vec<u64> = ids.iter().map(|_| refused_id(&a.hear())).collect();
    let waits_since = Instant::now();
    refused.sort_unstable();
    assert_eq!(refused, ids);
    server.await_metric("switchboard_store_failing", |failing| failing == 1.0);
    is_not_ready(&server);
    send_itself(&mut a, "m2");
    match end {
        End::Recovery => {
            let waited = waits_since.elapsed().as_secs_f64();
            failing.end();
            server.await_metric("switchboard_store_failing", |failing| failing == 0.0);
            is_ready(&server);
            // A batch is timed from its submit, whatever it has to wait for.
            assert!(server.metric("switchboard_store_append_seconds_sum") >= waited);
            assert_eq!(server.metric("switchboard_store_segments"), 2.0);
        }
        End::Crash => {
            server.restart();
            a = a.away().back(&server, 0);
        }
    }
    (BEFORE..ALL).for_each(|id| retry(&mut a, &message(id)));
    server.restart();
    let mut device = b.back(&server, 0);
    assert_eq!(device.welcome["pending"], ALL);
    for id in 0..ALL {
        device.take(&id.to_string());
    }
    device.hears_nothing();
}

#[test]
fn syncs_that_fail_are_told_and_what_they_left_open_is_delivered_once() {
    a_disk_fails(SYNCS, "EIO", End::Recovery);
}

#[test]
fn a_crash_while_syncs_fail_loses_and_doubles_nothing() {
    a_disk_fails(SYNCS, "EIO", End::Crash);
}

#[test]
fn writes_that_fail_are_told_and_what_they_left_open_is_delivered_once() {
    a_disk_fails("writev", "ENOSPC", End::Recovery);
}

#[test]
fn a_crash_while_writes_fail_loses_and_doubles_nothing() {
    a_disk_fails("writev", "ENOSPC", End::Crash);
}

#[test]
fn while_the_disk_hangs_senders_are_held_and_nothing_is_lost() {
    // Two of the messages fit into the queue.
    let settings = ["shards=1", "store_queue_max_bytes=1MiB"];
    let mut server = Server::within(&strace::prefix(), &settings);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let hanging = Tampering::hang(&server, STORE, SYNCS);
    let body = json!({"body": "x".repeat(400_000)});
    a.say_all((0..5).map(|id| with(send(&b.device, &id.to_string()), &body)));
    let held = "switchboard_reader_pauses_total{reason=\"store\"}";
    for sample in ["switchboard_store_queue_full_total", held] {
        server.await_metric(sample, |times| times >= 1.0);
    }
    assert!(server.metric("switchboard_store_queue_bytes") >= 800_000.0);
    // It is slow, which is no failure.
    is_ready(&server);
    hanging.end();
    for id in 0..5 {
        a.expect(json!({"type": "accepted", "id": id.to_string(), "durability": "disk"}));
    }
    server.await_metric("switchboard_store_queue_bytes", |bytes| bytes == 0.0);
    server.restart();
    let mut device = b.back(&server, 0);
    for id in 0..5 {
        device.take(&id.to_string());
    }
    device.hears_nothing();
}

/// How a server ends that cannot have this data directory: its exit code and its log.
fn refused_start(directory: &Path) -> (Option<i32>, String) {
    let ran = binary().args(["--listen", "127.0.0.1:0"]).current_dir(directory).output().unwrap();
    (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
}

#[test]
fn a_second_server_on_the_same_data_is_refused_and_the_first_goes_on() {
    let mut server = Server::start();
    let mut device = V1::anonymous(&server);
    let (code, said) = refused_start(server.directory.path());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("switchboard-data") && said.contains("another"), "{said}");
    device.hears_nothing();
    // A crash leaves no lock behind.
    server.restart();
    V1::anonymous(&server);
}

#[test]
fn data_of_a_newer_version_is_refused_and_left_as_it_is() {
    let mut server = Server::start();
    server.kill();
    let path = server.directory.path().join("switchboard-data/state.json");
    let state = fs::read_to_string(&path).unwrap();
    let newer = state.replace("\"version\": 1", "\"version\": 2");
    assert_ne!(newer, state);
    fs::write(&path, &newer).unwrap();
    let (code, said) = refused_start(server.directory.path());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("version 2") && said.contains("newer"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
}
