//! The reader of the log stalls.

use std::fs::OpenOptions;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

use crate::server::Server;
use crate::v1::client::V1;

/// Shards once wrote their lines themselves. A pipe that nobody read stopped all of them, and
/// SIGTERM, whose line is logged first, could not end the server.
#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("log");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _nobody_reads = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let command = format!("exec \"$0\" \"$@\" 2> {}", pipe.display());
    let prefix = ["sh".to_owned(), "-c".to_owned(), command];
    let mut server = Server::within(&prefix, &["log_level=debug", "shards=2"]);
    let dropped = "switchboard_log_lines_dropped_total";
    while server.metric(dropped) == 0.0 {
        for _ in 0..100 {
            server.raw(b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\n\r\n");
        }
    }
    let mut device = V1::anonymous(&server);
    let to = device.device();
    device.send(&to, "1");
    device.take("1");
    server.signal(Signal::TERM);
    assert!(server.await_end().success());
}
