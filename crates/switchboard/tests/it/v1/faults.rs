//! The disk fails under the real binary: it is full, returns errors or hangs, or another process
//! uses it.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::client::{Away, V1, send, token, with};
use super::drain::anonymous_on;
use super::text::bearer;
use crate::device::Device;
use crate::server::{Ended, PATIENCE, Server, binary};
use crate::strace::{self, READER, STORE, SYNCS, Tampering};

/// A file system of a few MiB in a mount namespace of its own, which needs no privileges where
/// user namespaces are allowed. It exists as long as its process, which does nothing else.
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

    /// Returns the prefix of a command that is to see the disk.
    fn prefix(&self) -> Vec<String> {
        let target = format!("--target={}", self.holder.id());
        let begin = "cd \"$1\" && shift && exec \"$@\"";
        let place = self.place.path().to_str().expect("a path in UTF-8");
        let enter = ["nsenter", "--user", "--mount", "--preserve-credentials", &target];
        enter.into_iter().chain(["sh", "-c", begin, "sh", place]).map(str::to_owned).collect()
    }

    /// Returns the disk's path as seen from outside.
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
        // Both fail only if the process has already exited.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Returns the status and body of `/readyz`.
fn readiness(server: &Server) -> (u16, String) {
    let answer = server.raw(b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.lines().last().expect("a body").to_owned();
    (status.expect("a status"), body)
}

#[track_caller]
pub(super) fn is_ready(server: &Server) {
    assert_eq!(readiness(server), (200, "ready".to_owned()));
}

#[track_caller]
pub(super) fn is_not_ready(server: &Server) {
    assert_eq!(readiness(server), (503, "the store cannot write".to_owned()));
}

/// Has a device send itself a message that needs no disk, and receive it.
fn send_itself(device: &mut V1, id: &str) {
    let frame = with(send(&device.device(), id), &json!({"durability": "memory"}));
    device.say(&frame);
    let mut told = [device.hear(), device.hear()].map(|frame| frame["type"].to_string());
    told.sort();
    assert_eq!(told, ["\"accepted\"", "\"message\""]);
}

/// Sends messages until one is rejected; returns its number.
pub(super) fn fill_store(sender: &mut V1, message: impl Fn(u64) -> Value, from: u64) -> u64 {
    (from..)
        .find(|id| {
            sender.say(&message(*id));
            let answer = sender.hear();
            if answer["type"] == "accepted" {
                return false;
            }
            assert_eq!(answer["code"], "store_full");
            refused_id(&answer) == *id
        })
        .expect("the store is full some time")
}

/// Other programs take the last byte. Once, the waiting messages could then not be taken, as no
/// ack could be written, so the disk stayed full; and a restarted server did not start.
#[test]
fn a_full_disk_is_told_and_the_server_goes_on_by_itself_when_it_has_room_again() {
    let disk = SmallDisk::new("8m");
    let settings = ["shards=2", "mailbox_max_messages=10000"];
    let mut server = Server::within(&disk.prefix(), &settings);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let body = json!({"body": "x".repeat(20_000)});
    let message = |id: u64| with(send(&b.device, &id.to_string()), &body);
    is_ready(&server);
    retry(&mut a, &message(0));
    send_itself(&mut a, "m1");
    server.await_metric("switchboard_store_ballast_bytes", |bytes| bytes == f64::from(1 << 20));
    assert!(server.metric("switchboard_store_free_bytes") > 0.0);
    assert!(server.metric("switchboard_store_left_bytes") > 0.0);
    disk.fill();
    // The log has some space that it reserved before.
    let refused = fill_store(&mut a, message, 1);
    server.await_metric("switchboard_store_full", |full| full == 1.0);
    assert_eq!(server.metric("switchboard_store_left_bytes"), 0.0);
    assert!(server.metric("switchboard_rejected_total{code=\"store_full\"}") >= 1.0);
    // Messages that need no disk continue, and so do those paid for by the ballast.
    send_itself(&mut a, "m2");
    let mut device = b.back(&server, 0);
    let seq = device.take("0");
    device.ack(seq);
    let b = device.leave();
    assert_eq!(server.metric("switchboard_store_failing"), 0.0);
    is_ready(&server);
    server.restart();
    a = a.away().back(&server, 0);
    // A start reserves ids on disk before it gives out new ones. A device with a mailbox would
    // take space.
    V1::hello(&server, json!({"ephemeral": true})).leave();
    server.await_metric("switchboard_store_full", |full| full == 1.0);
    disk.free();
    server.await_metric("switchboard_store_full", |full| full == 0.0);
    (refused..refused + 10).for_each(|id| retry(&mut a, &message(id)));
    server.restart();
    let mut device = b.back(&server, seq);
    assert_eq!(device.welcome["pending"], refused + 9);
    (1..refused + 10).for_each(|id| {
        device.take(&id.to_string());
    });
    device.hears_nothing();
}

/// The log never exceeds its quota, and space is freed as devices ack, again and again.
#[test]
fn the_log_keeps_to_its_quota_and_comes_free_as_messages_are_acked() {
    let quota = 8 << 20;
    let settings = ["store_max_bytes=8MiB", "mailbox_max_messages=10000", "dedup_window=1s"];
    let server = Server::with(&settings);
    let (mut a, mut b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let body = json!({"body": "x".repeat(50_000)});
    let mut next = 0;
    for _ in 0..3 {
        let message = |id: u64| with(send(&b.device, &id.to_string()), &body);
        let refused = fill_store(&mut a, message, next);
        // Space is freed little by little, and used at once.
        let least = if next == 0 { 20 } else { 1 };
        assert!(refused - next >= least, "{} messages of 50 kB are not much", refused - next);
        let log = server.directory.path().join("switchboard-data/log");
        let files = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        let bytes = files.map(|file| file.len()).sum::<u64>();
        assert!(bytes <= quota, "{bytes}");
        let mut device = b.back(&server, 0);
        for id in next..refused {
            let seq = device.take(&id.to_string());
            device.ack(seq);
        }
        b = device.leave();
        server.await_metric("switchboard_store_full", |full| full == 0.0);
        next = refused;
    }
}

/// Strangers who stored messages and acked them at once took all space that came free: devices with
/// names were refused in four of five attempts.
#[test]
fn what_is_left_of_the_store_is_for_devices_with_names() {
    let server = Server::with(&["store_max_bytes=8MiB", "dedup_window=1s"]);
    let (mut stranger, away) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let mut named = V1::named(&server, "ann");
    V1::named(&server, "bob").leave();
    let body = json!({"body": "x".repeat(50_000)});
    let message = |id: u64| with(send(&away.device, &id.to_string()), &body);
    let refused = fill_store(&mut stranger, message, 0);
    server.await_metric("switchboard_store_full_for_anonymous", |full| full == 1.0);
    for id in 0..10 {
        named.send_with("bob", &id.to_string(), &body);
    }
    assert_eq!(server.metric("switchboard_store_full"), 0.0);
    let mut device = away.back(&server, 0);
    for id in 0..refused {
        let seq = device.take(&id.to_string());
        device.ack(seq);
    }
    server.await_metric("switchboard_store_full_for_anonymous", |full| full == 0.0);
    retry(&mut stranger, &message(refused));
}

/// Many clients that filled a store of 16 MiB at once made it grow to 25: while the gate was
/// open, shards had accepted far more than the log had space for.
#[test]
fn a_crowd_that_fills_a_small_store_at_once_does_not_bring_it_above_its_quota() {
    let server = Server::with(&["shards=2", "store_max_bytes=16MiB", "mailbox_max_messages=10000"]);
    let receivers: Vec<Away> = (0..16).map(|_| V1::anonymous(&server).leave()).collect();
    let body = json!({"body": "x".repeat(20_000)});
    // One and a half times the capacity of the store.
    let each = 80;
    let crowd = |receiver: &Away| {
        let mut sender = V1::anonymous(&server);
        sender.say_all((0..each).map(|n| with(send(&receiver.device, &n.to_string()), &body)));
        let answers = (0..each).map(|_| sender.hear());
        let accepted = answers.filter(|answer| answer["type"] == "accepted").count();
        sender.leave();
        accepted
    };
    let (mut most, mut accepted) = (0, 0);
    thread::scope(|scope| {
        let senders: Vec<_> =
            receivers.iter().map(|receiver| scope.spawn(|| crowd(receiver))).collect();
        while !senders.iter().all(ScopedJoinHandle::is_finished) {
            most = most.max(data_bytes(&server));
        }
        accepted = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
    });
    assert!(most <= 16 << 20, "{most}");
    assert!(accepted > 250 && accepted < 16 * each, "{accepted} were accepted");
    assert_eq!(server.metric("switchboard_store_failures_total"), 0.0);
}

/// The last records of a shard were once appended after its turn had submitted: nothing woke it
/// afterwards, and the last acks were not recorded.
#[test]
fn a_stop_while_the_store_is_full_ends_in_order() {
    let server = Server::with(&["shards=2", "store_max_bytes=8MiB", "mailbox_max_messages=10000"]);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let body = json!({"body": "x".repeat(50_000)});
    let refused = fill_store(&mut a, |id| with(send(&b.device, &id.to_string()), &body), 0);
    let mut device = b.back(&server, 0);
    for id in 0..refused.min(10) {
        let seq = device.take(&id.to_string());
        device.ack(seq);
    }
    device.leave();
    a.leave();
    let ended = server.terminate();
    assert!(ended.status.success(), "{}", ended.log);
}

/// Idle sockets once took the file descriptors that the store needs for new segments.
#[test]
fn strangers_who_only_open_sockets_leave_the_store_its_files() {
    let prefix = ["sh", "-c", "ulimit -n 300; exec \"$@\"", "sh"].map(str::to_owned);
    let settings = ["shards=2", "store_max_bytes=8MiB", "http_connections_max=8"];
    let settings = [&settings[..], &["mailbox_max_messages=10000"]].concat();
    let server = Server::within(&prefix, &settings);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let body = json!({"body": "x".repeat(50_000)});
    a.send_with(&b.device, "first", &body);
    let strangers: Vec<_> = (0..400).map(|_| server.socket()).collect();
    assert_eq!(server.get("/healthz"), "ok\n", "all before it are in");
    let refused = fill_store(&mut a, |id| with(send(&b.device, &id.to_string()), &body), 0);
    assert!(refused > 20, "{refused}");
    drop(strangers);
    assert_eq!(server.metric("switchboard_store_failures_total"), 0.0);
}

/// A client could once keep the store full, and make it exceed its quota, with nothing but new
/// devices: each wrote a record.
#[test]
fn a_full_store_takes_no_new_devices_until_there_is_space_again() {
    // The one shard is told that the store is full, or no longer full, before the sender is.
    let server = Server::with(&["shards=1", "store_max_bytes=8MiB", "mailbox_max_messages=10000"]);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let body = json!({"body": "x".repeat(50_000)});
    let message = |id: u64| with(send(&b.device, &id.to_string()), &body);
    let refused = fill_store(&mut a, message, 0);
    for hello in [json!({}), json!({"token": token(&server, "cleo", None)})] {
        let mut c = V1::open(&server);
        c.say_hello(hello);
        let (code, reason) = c.end();
        assert_eq!(code, 1013);
        assert!(reason.starts_with("full") && reason.contains("ephemeral"), "{reason}");
    }
    assert_eq!(bearer(&server, &token(&server, "dora", None)).close_code(), 1013);
    // A device without a mailbox is let in, and so is a known one.
    Device::connect(&server);
    V1::hello(&server, json!({"ephemeral": true})).hears_nothing();
    let mut device = b.back(&server, 0);
    for id in 0..refused {
        let seq = device.take(&id.to_string());
        device.ack(seq);
    }
    retry(&mut a, &message(refused));
    V1::anonymous(&server).hears_nothing();
}

/// Sends tiny messages with outcomes as long as possible, to devices that refuse them: more data
/// waits for the sender than was sent.
fn refuse_all(server: &Server, receivers: &[Away]) {
    let reason = "r".repeat(256);
    for away in receivers {
        let mut device = away.back(server, 0);
        for _ in 0..device.welcome["pending"].as_u64().unwrap() {
            let seq = device.expect(json!({"type": "message"}))["seq"].clone();
            device.say(&json!({"type": "refuse", "seq": seq, "reason": reason}));
        }
        device.hears_nothing();
        device.leave();
    }
}

/// Lets senders fill the server with messages that ask for outcomes; returns the senders and the
/// receivers.
fn fill_with_receipts(server: &Server) -> (Vec<V1>, Vec<Away>) {
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    loop {
        let mut sender = V1::anonymous(server);
        for _ in 0..2 {
            let receiver = V1::anonymous(server).leave();
            // Two receivers may use a half and a quarter of one sender's outcomes.
            let of_one = 250;
            sender.say_all((0..of_one).map(|n| {
                let id = format!("{}-{n}", receivers.len());
                with(send(&receiver.device, &id), &json!({"receipt": true}))
            }));
            receivers.push(receiver);
            let answers: Vec<Value> = (0..of_one).map(|_| sender.hear()).collect();
            if let Some(full) = answers.iter().find(|answer| answer["type"] == "rejected") {
                assert_eq!(full["code"], "store_full", "{full}");
                senders.push(sender);
                return (senders, receivers);
            }
        }
        senders.push(sender);
    }
}

fn data_bytes(server: &Server) -> u64 {
    let data = server.directory.path().join("switchboard-data");
    let files = [data.clone(), data.join("log")].map(|dir| fs::read_dir(dir).unwrap());
    // A segment may be deleted meanwhile.
    let sizes = files.into_iter().flatten().filter_map(|entry| entry.unwrap().metadata().ok());
    sizes.filter(fs::Metadata::is_file).map(|metadata| metadata.len()).sum()
}

/// A log of 8 MiB once grew to 31 MB: a record of 70 bytes became one of 500, and a full store
/// did not stop it.
#[test]
fn refusals_with_long_reasons_do_not_bring_the_log_above_its_quota() {
    let server = Server::with(&["shards=2", "store_max_bytes=8MiB"]);
    let (senders, receivers) = fill_with_receipts(&server);
    refuse_all(&server, &receivers);
    let bytes = data_bytes(&server);
    assert!(bytes <= (8 << 20) + (64 << 10), "{bytes}");
    assert_eq!(server.metric("switchboard_store_failing"), 0.0);
    // Every promised outcome arrived.
    drop(senders);
}

#[test]
fn refusals_with_long_reasons_do_not_take_more_memory_than_messages_may() {
    let server = Server::with(&["shards=2", "data_dir=", "memory_messages_max_bytes=1MiB"]);
    let (senders, receivers) = fill_with_receipts(&server);
    refuse_all(&server, &receivers);
    let bytes = server.metric("switchboard_mailbox_memory_bytes");
    assert!(bytes <= f64::from(1 << 20), "{bytes}");
    drop(senders);
}

/// Known devices that came and left once wrote a record each time, and the log grew to three
/// times its quota.
#[test]
fn devices_that_come_and_go_while_the_store_is_full_do_not_make_the_log_grow() {
    let server = Server::with(&["shards=1", "store_max_bytes=8MiB", "mailbox_max_messages=10000"]);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let c = V1::anonymous(&server).leave();
    let body = json!({"body": "x".repeat(50_000)});
    fill_store(&mut a, |id| with(send(&b.device, &id.to_string()), &body), 0);
    let records = "switchboard_store_records_total";
    let mut before = 0.0;
    for round in 0..50 {
        c.back(&server, 0).leave();
        if round == 1 {
            a.hears_nothing();
            before = server.metric(records);
        }
    }
    // Reserved ids and copied records may add some.
    let made = server.metric(records) - before;
    assert!(made < 40.0, "{made} records for 48 comings and goings");
}

/// Changes a byte of the first segment, at the position of `what`.
fn rot(server: &Server, what: &[u8]) {
    let log = server.directory.path().join("switchboard-data/log/00000001.seg");
    let bytes = fs::read(&log).unwrap();
    let at = bytes.windows(what.len()).position(|found| found == what).expect("it is there");
    let file = fs::File::options().write(true).open(&log).unwrap();
    file.write_all_at(b"?", at as u64).unwrap();
}

/// A byte of a waiting message was damaged under a running server. Once, it and everything after
/// it was never delivered, and the log got 110 lines a second.
#[test]
fn a_message_that_rots_is_given_up_its_sender_is_told_and_the_rest_is_delivered() {
    let server = Server::with(&["shards=2"]);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let body = |id: &str| json!({"body": format!("the body of {id}"), "receipt": true});
    ["1", "2", "3"].iter().for_each(|id| a.send_with(&b.device, id, &body(id)));
    rot(&server, b"the body of 2");
    let mut device = b.back(&server, 0);
    device.take("1");
    let seq = device.take("3");
    device.ack(seq);
    let told = a.expect(json!({"type": "outcome", "id": "2", "outcome": "evicted"}));
    assert_eq!(told.get("maybe_seen"), None);
    for _ in 0..2 {
        a.expect(json!({"type": "outcome", "outcome": "delivered"}));
    }
    assert_eq!(server.metric("switchboard_messages_quarantined_total"), 1.0);
    is_ready(&server);
}

/// Compaction once stopped for ever at a damaged record in the oldest segment.
#[test]
fn compaction_gives_up_what_is_damaged_and_deletes_the_rest() {
    let settings = ["store_max_bytes=8MiB", "mailbox_max_messages=10000", "dedup_window=1s"];
    let mut server = Server::with(&settings);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    for id in ["1", "rotten", "3"] {
        let body = json!({"body": format!("the body of {id}"), "receipt": true});
        a.send_with(&b.device, id, &body);
    }
    rot(&server, b"the body of rotten");
    let c = V1::anonymous(&server).leave();
    let body = json!({"body": "x".repeat(50_000)});
    let mut other = V1::anonymous(&server);
    let refused = fill_store(&mut other, |id| with(send(&c.device, &id.to_string()), &body), 0);
    let mut device = c.back(&server, 0);
    for id in 0..refused {
        let seq = device.take(&id.to_string());
        device.ack(seq);
    }
    a.expect(json!({"type": "outcome", "id": "rotten", "outcome": "evicted"}));
    server.await_metric("switchboard_store_full", |full| full == 0.0);
    assert_eq!(server.metric("switchboard_messages_quarantined_total"), 1.0);
    // A start would refuse the damage if it were still there.
    let first = server.directory.path().join("switchboard-data/log/00000001.seg");
    while first.exists() {
        device.hears_nothing();
    }
    server.restart();
    let mut device = b.back(&server, 0);
    device.take("1");
    device.take("3");
    device.hears_nothing();
}

/// A temporary read error of the disk does not mean that the message is damaged.
#[test]
fn what_the_disk_does_not_give_for_a_while_is_delivered_when_it_does() {
    let server = Server::within(&strace::prefix(), &["shards=1"]);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    a.send(&b.device, "1");
    let failing = Tampering::fail(&server, strace::READER, "pread64", "EIO");
    let mut device = b.back(&server, 0);
    server.await_metric("switchboard_store_read_failures_total", |reads| reads >= 3.0);
    failing.end();
    device.take("1");
    assert_eq!(server.metric("switchboard_messages_quarantined_total"), 0.0);
}

/// Returns the id of a message that the store rejected.
#[track_caller]
fn refused_id(answer: &Value) -> u64 {
    assert_eq!(answer["type"], "rejected");
    // A disk without space is full, and the state of what it had taken is unknown.
    let code = answer["code"].as_str().unwrap();
    assert!(["store_unavailable", "store_full"].contains(&code), "{answer}");
    assert!(answer["retry_after_ms"].is_u64(), "{answer}");
    answer["id"].as_str().unwrap().parse().unwrap()
}

/// Sends again until it is accepted: a shard may hear of the recovery slightly later than the
/// metrics.
#[track_caller]
pub(super) fn retry(device: &mut V1, message: &Value) {
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

/// The end of the failure in [`a_disk_fails`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Recovery,
    /// The server is killed during the failure; its next run finds data that was written and not
    /// synced.
    Crash,
}

/// Lets system calls fail for a while under a sender of durable messages.
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
    // Those under way when the failure began may be answered after later ones.
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
            // A batch is timed from its submit, whatever it waits for.
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
    let settings = ["shards=1", "store_queue_max_bytes=1MiB"];
    let mut server = Server::within(&strace::prefix(), &settings);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let hanging = Tampering::hang(&server, STORE, SYNCS);
    // The first leaves some of the budget, so the second is accepted; the queue is too small for
    // both.
    let message =
        |id: u64, len| with(send(&b.device, &id.to_string()), &json!({"body": "x".repeat(len)}));
    a.say(&message(0, 500_000));
    server.await_metric("switchboard_store_queue_bytes", |bytes| bytes >= 500_000.0);
    a.say_all((1..5).map(|id| message(id, 800_000)));
    let held = "switchboard_reader_pauses_total{reason=\"store\"}";
    for sample in ["switchboard_store_queue_full_total", held] {
        server.await_metric(sample, |times| times >= 1.0);
    }
    // It is slow, which is not a failure.
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

/// The disk once paused only senders of the receivers' own shard: those of another shard filled
/// the memory, and a batch of 1 GiB ended the process.
#[test]
fn while_the_disk_hangs_all_shards_together_take_no_more_than_the_budget() {
    const MESSAGES: u64 = 40;
    let settings = ["shards=2", "store_queue_max_bytes=1MiB"];
    let server = Server::within(&strace::prefix(), &settings);
    let away = anonymous_on(&server, 1).leave();
    let (mut a, mut text) = (anonymous_on(&server, 0), Device::connect(&server));
    let hanging = Tampering::hang(&server, STORE, SYNCS);
    let body = json!({"body": "x".repeat(50_000)});
    a.say_all((0..MESSAGES).map(|id| with(send(&away.device, &id.to_string()), &body)));
    let held = "switchboard_reader_pauses_total{reason=\"store\"}";
    server.await_metric(held, |times| times >= 1.0);
    // A text to the mailbox waits, too, and so do those behind it.
    text.say(&format!("send,{},me, too", away.device));
    server.await_metric(held, |times| times >= 2.0);
    text.say("help");
    let used = server.metric("switchboard_store_budget_used_bytes");
    assert!((1_048_576.0..2_000_000.0).contains(&used), "{used}");
    let waits = server.metric("switchboard_mailbox_messages");
    assert!(waits < MESSAGES as f64 / 2.0, "{waits}");
    hanging.end();
    for id in 0..MESSAGES {
        a.expect(json!({"type": "accepted", "id": id.to_string(), "durability": "disk"}));
    }
    assert!(text.hear().starts_with("Your ID: "));
    server.await_metric("switchboard_store_budget_used_bytes", |bytes| bytes == 0.0);
    assert_eq!(away.back(&server, 0).welcome["pending"], MESSAGES + 1);
}

/// Terminates a server whose disk hangs, and which must end all the same. strace is killed only
/// afterwards, because no thread that strace holds can end.
fn terminate(server: Server, hanging: Tampering) -> Ended {
    server.signal(Signal::TERM);
    let stat = format!("/proc/{}/stat", server.pid().as_raw_nonzero());
    let began = Instant::now();
    while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
        assert!(began.elapsed() < PATIENCE, "the server does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(hanging);
    server.wait()
}

/// The reader thread was once not joined, and its state shared with the HTTP server kept that
/// alive.
#[test]
fn a_read_that_hangs_does_not_keep_the_server_from_its_end() {
    let mut server = Server::within(&strace::prefix(), &["shards=1", "drain=0s"]);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    a.say(&with(send(&b.device, "1"), &json!({"body": "x".repeat(2_000)})));
    a.expect(json!({"type": "accepted", "id": "1", "durability": "disk"}));
    server.restart();
    let hanging = Tampering::hang(&server, READER, "pread64,preadv");
    let mut waits = b.back(&server, 0);
    // Once this is answered the message has been requested.
    waits.say(&json!({"type": "ping"}));
    waits.expect(json!({"type": "pong"}));
    let ended = terminate(server, hanging);
    assert!(ended.status.success(), "{}", ended.log);
    assert!(ended.log.contains("the disk does not answer a read"), "{}", ended.log);
}

/// Signals were once not handled while the end of the log was written.
#[test]
fn a_second_signal_ends_it_at_once_also_while_the_disk_hangs() {
    let server = Server::within(&strace::prefix(), &["shards=1", "drain=0s"]);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    let hanging = Tampering::hang(&server, STORE, SYNCS);
    a.say(&send(&b.device, "1"));
    server.await_metric("switchboard_store_queue_bytes", |bytes| bytes > 0.0);
    server.signal(Signal::TERM);
    server.await_refused();
    assert_eq!(a.end().0, 1001);
    let ended = terminate(server, hanging);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.log.contains("stopping at once"), "{}", ended.log);
}

/// The log is closed by then, and no accepted message is lost.
#[test]
fn a_disk_that_does_not_take_the_servers_state_does_not_keep_it_from_its_end() {
    let server = Server::within(&strace::prefix(), &["shards=1", "drain=0s"]);
    let hanging = Tampering::hang_all(&server, "fsync");
    let ended = terminate(server, hanging);
    assert!(ended.status.success(), "{}", ended.log);
    assert!(ended.log.contains("the disk does not take the end of this run"), "{}", ended.log);
}

/// A client waiting for a `welcome` that the store cannot allow once kept a connection, even
/// after it had left, until all were taken and nobody could connect any more.
#[test]
fn while_the_store_fails_known_devices_come_in_and_new_ones_are_told_to_come_back() {
    let server = Server::within(&strace::prefix(), &["shards=2"]);
    let mut known = V1::named(&server, "known");
    let failing = Tampering::fail(&server, STORE, SYNCS, "EIO");
    let mut patient = V1::open(&server);
    patient.say_hello(json!({}));
    for leave in [Shutdown::Write, Shutdown::Both] {
        let mut gone = V1::open(&server);
        gone.say_hello(json!({}));
        gone.socket().get_ref().shutdown(leave).unwrap();
        server.await_metric("switchboard_connections", |count| count == 2.0);
    }
    let token = token(&server, "known", None);
    let mut again = V1::hello(&server, json!({"token": token}));
    assert_eq!(known.end().0, 4409);
    again.hears_nothing();
    let (code, reason) = patient.end();
    assert_eq!(code, 1013);
    assert!(reason.contains("store"), "{reason}");
    failing.end();
    server.await_metric("switchboard_store_failing", |failing| failing == 0.0);
    V1::anonymous(&server).hears_nothing();
}

/// Returns the exit code and log of a server that cannot have this data directory.
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
    let newer = state.replace("\"version\": 3", "\"version\": 4");
    assert_ne!(newer, state);
    fs::write(&path, &newer).unwrap();
    let (code, said) = refused_start(server.directory.path());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("version 4") && said.contains("newer"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
}

/// SIGXFSZ ended the server when a segment, or the log on standard error, reached the limit on the
/// size of files: a crash instead of an error that it could handle.
#[test]
fn a_file_that_reaches_the_limit_on_its_size_is_a_write_that_fails() {
    // In KiB, or half of them, by the shell. A segment grows by a MiB.
    let limited = ["sh", "-c", "ulimit -f 4000; exec \"$@\"", "sh"].map(str::to_owned);
    let server = Server::within(&limited, &[]);
    let mut device = V1::named(&server, "a");
    let body = "x".repeat(60_000);
    let to = device.device();
    for n in 0..100 {
        let id = n.to_string();
        device.say(&json!({"type": "send", "id": id, "to": to, "body": body}));
        let answer = std::iter::repeat_with(|| device.hear()).find(|frame| {
            ["accepted", "rejected"].map(|kind| json!(kind)).contains(&frame["type"])
        });
        assert_eq!(answer.unwrap()["id"], id);
    }
    assert!(server.metric("switchboard_store_failures_total") > 0.0, "the limit is reached");
    assert!(server.terminate().status.success());
}
