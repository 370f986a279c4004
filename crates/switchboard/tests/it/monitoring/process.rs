//! The standard metrics of the process, compared with the system's own figures.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::server::Server;
use crate::strace::{self, CONTROL, Tampering};

/// Returns the number after a word in a file of the server's `/proc`.
fn told(server: &Server, file: &str, before: &str) -> f64 {
    let path = format!("/proc/{}/{file}", server.pid().as_raw_nonzero());
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(before)).expect("it is there");
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Memory changes between two readings, and the kernel itself only estimates it.
#[test]
fn the_memory_is_what_the_system_says() {
    let server = Server::start();
    for (metric, field) in
        [("process_resident_memory_bytes", "VmRSS:"), ("process_virtual_memory_bytes", "VmSize:")]
    {
        let (shown, told) = (server.metric(metric), told(&server, "status", field) * 1024.0);
        assert!((0.5..2.0).contains(&(shown / told)), "{metric} {shown}, {field} {told}");
    }
}

#[test]
fn threads_and_the_limit_on_files_are_what_the_system_says() {
    let server = Server::with(&["shards=3"]);
    let files = told(&server, "limits", "Max open files");
    assert_eq!(server.metric("process_max_fds"), files);
    // A further thread comes and goes for blocking work.
    let is_told = |threads| threads > 3.0 && threads == told(&server, "status", "Threads:");
    server.await_metric("process_threads", is_told);
}

/// The number once came from listing the files, which took 7 ms of the HTTP server's thread where
/// there were 9,000. Before Linux 6.2 there is no other way.
#[test]
fn open_files_are_told_without_listing_them() {
    if fs::metadata("/proc/self/fd").unwrap().len() == 0 {
        return;
    }
    let server = Server::within(&strace::prefix(), &[]);
    let _sockets: Vec<_> = (0..50).map(|_| server.socket()).collect();
    let _failing = Tampering::fail(&server, CONTROL, "getdents64", "EIO");
    server.await_metric("process_open_fds", |shown| shown > 50.0);
    let files = fs::read_dir(format!("/proc/{}/fd", server.pid().as_raw_nonzero()));
    let (shown, told) = (server.metric("process_open_fds"), files.unwrap().count() as f64);
    assert!((told - 1.0..=told + 1.0).contains(&shown), "{shown}, and there are {told}");
}

#[test]
fn the_process_tells_its_start_and_its_version() {
    let server = Server::start();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let started = server.metric("process_start_time_seconds");
    assert!(started <= now && now - started < 60.0, "{started} at {now}");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(server.metric(&format!("switchboard_build_info{{version=\"{version}\"}}")), 1.0);
}
