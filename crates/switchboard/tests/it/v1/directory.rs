//! The data directory is moved, replaced or removed under a running server.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::json;

use super::client::{V1, send, with};
use super::faults::{fill_store, is_not_ready, is_ready, retry};
use crate::server::Server;

fn data(server: &Server) -> PathBuf {
    server.directory.path().join("switchboard-data")
}

/// The server once continued by path. So it deleted the segments of the server started in the
/// directory's old place, created segments there, and replaced its state.json at the end.
#[test]
fn a_directory_that_is_moved_is_served_on_and_what_takes_its_place_is_left_alone() {
    let settings = ["store_max_bytes=8MiB", "mailbox_max_messages=10000", "dedup_window=1s"];
    let mut first = Server::with(&settings);
    let (mut a, b) = (V1::anonymous(&first), V1::anonymous(&first).leave());
    a.send(&b.device, "before");
    let (data, moved) = (data(&first), first.directory.path().join("moved"));
    fs::rename(&data, &moved).unwrap();
    let mut second = Server::with(&[&format!("data_dir={}", data.display())]);
    let (mut c, d) = (V1::anonymous(&second), V1::anonymous(&second).leave());
    c.send(&d.device, "other");
    // The first server creates segments, and deletes its oldest.
    let body = json!({"body": "x".repeat(50_000)});
    let message = |id: u64| with(send(&b.device, &id.to_string()), &body);
    let refused = fill_store(&mut a, message, 0);
    let mut device = b.back(&first, 0);
    let mut seq = device.take("before");
    for id in 0..refused {
        seq = device.take(&id.to_string());
        device.ack(seq);
    }
    while moved.join("log/00000001.seg").exists() {
        device.hears_nothing();
    }
    let b = device.leave();
    retry(&mut a, &send(&b.device, "9000"));
    first.signal(Signal::TERM);
    assert!(first.await_end().success());
    second.restart();
    let mut device = d.back(&second, 0);
    device.take("other");
    device.hears_nothing();
    first.restart_with(&["data_dir=moved"]);
    let mut device = b.back(&first, seq);
    device.take("9000");
    device.hears_nothing();
}

/// Checks that the server notices a missing file, accepts nothing more, and logs it once.
#[track_caller]
fn notices(server: &Server, device: &mut V1, remove: impl FnOnce()) {
    is_ready(server);
    remove();
    server.await_metric("switchboard_store_failing", |failing| failing == 1.0);
    is_not_ready(server);
    let to = device.device();
    device.ask(send(&to, "late"), json!({"type": "rejected", "code": "store_unavailable"}));
}

#[track_caller]
fn says_once(log: &str, file: &str) {
    let said = format!("cannot find {file}: it, or the directory that it was in, was removed");
    let lines = log.lines().filter(|line| line.contains("the store cannot write"));
    let lines: Vec<&str> = lines.collect();
    assert!(matches!(lines[..], [line] if line.contains(&said)), "{log}");
}

/// Messages were once accepted on disk into files that were already deleted.
#[test]
fn a_directory_that_is_removed_is_noticed() {
    let server = Server::with(&["shards=1"]);
    let mut a = V1::anonymous(&server);
    notices(&server, &mut a, || fs::remove_dir_all(data(&server)).unwrap());
    says_once(&server.terminate().log, "MANIFEST");
}

#[test]
fn a_segment_that_is_gone_is_noticed_and_so_is_that_it_is_back() {
    let server = Server::with(&["shards=1"]);
    let (mut a, b) = (V1::anonymous(&server), V1::anonymous(&server).leave());
    a.send(&b.device, "1");
    let segment = data(&server).join("log/00000001.seg");
    let aside = server.directory.path().join("aside");
    let rename = |from: &Path, to: &Path| fs::rename(from, to).unwrap();
    notices(&server, &mut a, || rename(&segment, &aside));
    rename(&aside, &segment);
    server.await_metric("switchboard_store_failing", |failing| failing == 0.0);
    is_ready(&server);
    retry(&mut a, &send(&b.device, "2"));
    let mut device = b.back(&server, 0);
    device.take("1");
    device.take("2");
    says_once(&server.terminate().log, "00000001.seg");
}
