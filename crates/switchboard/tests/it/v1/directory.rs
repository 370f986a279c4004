//! The data directory is moved, replaced or removed under a running server.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::json;

use super::client::{V1, send, with};
use super::faults::{fill_store, retry};
use crate::server::Server;

fn data(server: &Server) -> PathBuf {
    server.directory.path().join("switchboard-data")
}

/// The server went on by path. So it deleted the segments of the server that had been started in the
/// directory's old place, began segments there and replaced its state.json as it ended.
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
    // The first one begins segments, and deletes its oldest.
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
