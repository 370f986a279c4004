//! The systemd unit, and the notifications of the real binary, received on a socket of the test
//! in place of systemd.

use std::fs;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

use crate::device::Device;
use crate::server::{PATIENCE, Server, binary};
use crate::strace::{self, STORE, SYNCS, Tampering};
use crate::v1::client::{V1, send};

const UNIT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/systemd/switchboard.service");

/// Value of `WatchdogSec`: long enough that a busy machine does not look like a server that
/// hangs.
const WATCHDOG: Duration = Duration::from_secs(3);

/// Receiver of a server's notifications.
struct Manager {
    socket: UnixDatagram,
    /// The value of `NOTIFY_SOCKET`.
    address: String,
    _directory: TempDir,
}

impl Manager {
    fn with_path() -> Manager {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager::new(socket, path.to_str().unwrap().to_owned(), directory)
    }

    fn with_abstract_name() -> Manager {
        let directory = tempfile::tempdir().unwrap();
        // Named after the directory, so that no other test has this name.
        let name = directory.path().to_str().unwrap().to_owned();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Manager::new(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"), directory)
    }

    fn new(socket: UnixDatagram, address: String, directory: TempDir) -> Manager {
        Manager { socket, address, _directory: directory }
    }

    /// Starts a server that has this manager's variables and may be traced.
    fn start(&self, settings: &[&str]) -> Server {
        let variables = [
            "env".to_owned(),
            format!("NOTIFY_SOCKET={}", self.address),
            format!("WATCHDOG_USEC={}", WATCHDOG.as_micros()),
        ];
        Server::within(&[&strace::prefix()[..], &variables].concat(), settings)
    }

    /// Returns the next datagram; `None` if there is none within `time`.
    fn next_within(&self, time: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut datagram = [0; 4096];
        match self.socket.recv(&mut datagram) {
            Ok(len) => Some(String::from_utf8(datagram[..len].to_vec()).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn next(&self) -> String {
        self.next_within(PATIENCE).expect("another datagram")
    }

    /// Returns the next datagram that is not a keep-alive.
    fn news(&self) -> String {
        std::iter::repeat_with(|| self.next()).find(|said| said != "WATCHDOG=1").unwrap()
    }

    /// Checks that keep-alives arrive as often as systemd requires.
    fn hears_keep_alives(&self) {
        for _ in 0..5 {
            let said = self.next_within(WATCHDOG);
            assert_eq!(said.as_deref(), Some("WATCHDOG=1"));
        }
    }

    /// Waits until no keep-alive has come for as long as makes systemd restart the server.
    fn hears_no_more(&self) {
        let began = Instant::now();
        while self.next_within(WATCHDOG).is_some() {
            assert!(began.elapsed() < PATIENCE, "the keep-alives go on");
        }
    }
}

fn tells_all_of_its_life(manager: &Manager) {
    let server = manager.start(&[]);
    assert_eq!(manager.news(), "STATUS=Reading what the last run left");
    let listening = format!(
        "READY=1\nSTATUS=Listening on {}; may connect: everybody, from this machine only; so may web \
         pages of any origin",
        server.address
    );
    assert_eq!(manager.news(), listening);
    assert_eq!(server.get("/readyz"), "ready\n");
    let before = monotonic_us();
    server.signal(Signal::HUP);
    reloads(manager, before);
    assert_eq!(manager.news(), listening);
    fs::write(server.directory.path().join("switchboard.toml"), "prot = 1").unwrap();
    server.signal(Signal::HUP);
    reloads(manager, before);
    let refused = "; the last reload was refused and changed nothing, see the log";
    assert_eq!(manager.news(), format!("{listening}{refused}"));
    server.signal(Signal::TERM);
    let stopping = manager.news();
    let (said, at_most_us) = stopping.split_once("\nEXTEND_TIMEOUT_USEC=").unwrap();
    assert_eq!(said, "STOPPING=1\nSTATUS=Going down: devices are told to come back");
    let at_most = Duration::from_micros(at_most_us.parse().unwrap());
    let in_unit = format!("\nTimeoutStopSec={}s\n", at_most.as_secs());
    assert!(fs::read_to_string(UNIT).unwrap().contains(&in_unit), "{in_unit}");
    assert!(server.wait().status.success());
}

/// Checks that a reload is announced with the time at which it began.
fn reloads(manager: &Manager, not_before_us: i64) {
    let said = manager.news();
    let (reloading, rest) = said.split_once("\nMONOTONIC_USEC=").unwrap();
    assert_eq!(reloading, "RELOADING=1");
    let at_us = rest.lines().next().unwrap().parse::<i64>().unwrap();
    assert!((not_before_us..=monotonic_us()).contains(&at_us), "{at_us}");
}

fn monotonic_us() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[test]
fn systemd_is_told_start_reload_and_stop() {
    tells_all_of_its_life(&Manager::with_path());
}

/// A reload read its files in the task that waits for signals: while a network file system did not
/// answer, SIGTERM and SIGINT did nothing.
#[test]
fn a_reload_that_hangs_delays_neither_the_next_nor_the_end() {
    let manager = Manager::with_path();
    let server = manager.start(&["drain=0s"]);
    manager.news();
    let ready = manager.news();
    let before = monotonic_us();
    let hanging = Tampering::hang_path(&server, "openat", "switchboard.toml");
    server.signal(Signal::HUP);
    reloads(&manager, before);
    server.signal(Signal::HUP);
    strace::wait_until_signals_are_taken(&server);
    hanging.end();
    assert_eq!(manager.news(), ready);
    // The files may have changed while they were read: the second signal counts as well.
    reloads(&manager, before);
    assert_eq!(manager.news(), ready);

    let hanging = Tampering::hang_path(&server, "openat", "switchboard.toml");
    server.signal(Signal::HUP);
    reloads(&manager, before);
    server.signal(Signal::TERM);
    assert!(manager.news().starts_with("STOPPING=1\n"));
    // A traced process is not gone before its tracer has let it go.
    hanging.end();
    assert!(server.wait().status.success());
    manager.socket.set_nonblocking(true).unwrap();
    let mut datagram = [0; 4096];
    assert!(manager.socket.recv(&mut datagram).is_err(), "nothing follows STOPPING");
}

#[test]
fn the_address_may_be_an_abstract_name() {
    tells_all_of_its_life(&Manager::with_abstract_name());
}

#[test]
fn a_server_that_cannot_listen_is_not_ready() {
    let manager = Manager::with_path();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ran = binary()
        .args(["--memory", "--listen", &address])
        .env("NOTIFY_SOCKET", &manager.address)
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(1));
    manager.socket.set_nonblocking(true).unwrap();
    while let Some(said) = manager.next_within(PATIENCE) {
        assert!(!said.contains("READY"), "{said}");
    }
}

/// Returns both ends of a pipe that takes no more bytes.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    // The last write takes what the ones before it left.
    for len in [4096, 1] {
        while writer.write(&[b'x'; 4096][..len]).is_ok() {}
    }
    ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// The greeting was written by the thread that handles signals: when the reader of standard output
/// hung, devices were served, but the server could be neither reloaded nor stopped, the page did not
/// answer, and systemd heard nothing.
#[test]
fn a_hanging_reader_of_the_output_delays_nothing() {
    for has_stderr in [true, false] {
        let manager = Manager::with_path();
        let (_reader, stdout) = full_pipe();
        let directory = tempfile::tempdir().unwrap();
        let mut command = binary();
        command.args(["--listen", "127.0.0.1:0", "--set", "drain=0s"]);
        command.current_dir(directory.path()).env("NOTIFY_SOCKET", &manager.address);
        command.stderr(if has_stderr { Stdio::null() } else { stdout.try_clone().unwrap().into() });
        let mut child = command.stdout(stdout).spawn().unwrap();
        manager.news();
        let ready = manager.news();
        let (_, address) = ready.split_once("Listening on ").unwrap();
        let mut socket = TcpStream::connect(address.split_once(';').unwrap().0).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
        assert!(manager.news().starts_with("RELOADING=1\n"));
        assert_eq!(manager.news(), ready);
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert!(manager.news().starts_with("STOPPING=1\n"));
        assert!(child.wait().unwrap().success());
    }
}

/// The error was written by the main thread, which never ended: nobody started the server again.
#[test]
fn a_hanging_reader_of_standard_error_does_not_keep_a_failed_server() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (_reader, stderr) = full_pipe();
    let ran = binary().args(["--memory", "--listen", &address]).stderr(stderr).status().unwrap();
    assert_eq!(ran.code(), Some(1));
}

#[test]
fn idle_shards_keep_the_watchdog_quiet() {
    let manager = Manager::with_path();
    let _server = manager.start(&["shards=3"]);
    manager.news();
    manager.news();
    manager.hears_keep_alives();
}

#[test]
fn busy_shards_keep_the_watchdog_quiet() {
    let manager = Manager::with_path();
    let server = manager.start(&["shards=2"]);
    manager.news();
    manager.news();
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut device = Device::connect(&server);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    (0..100).for_each(|_| device.send(device.id, "me"));
                    (0..100).for_each(|_| drop(device.hear()));
                }
            });
        }
        manager.hears_keep_alives();
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_shard_that_hangs_is_no_longer_vouched_for() {
    let manager = Manager::with_path();
    let server = manager.start(&["shards=2"]);
    manager.news();
    manager.news();
    for shard in ["shard-0", "shard-1"] {
        manager.hears_keep_alives();
        let hanging = Tampering::hang(&server, shard, "all");
        manager.hears_no_more();
        hanging.end();
    }
    manager.hears_keep_alives();
}

#[test]
fn a_disk_that_hangs_is_no_shard_that_does() {
    let manager = Manager::with_path();
    let server = manager.start(&["shards=2"]);
    manager.news();
    manager.news();
    let mut device = V1::anonymous(&server);
    let hanging = Tampering::hang(&server, STORE, SYNCS);
    device.say(&send(&device.device(), "1"));
    server.await_metric("switchboard_store_queue_bytes", |bytes| bytes > 0.0);
    manager.hears_keep_alives();
    hanging.end();
}

#[test]
fn the_unit_gives_the_server_no_more_than_it_needs() {
    let judged = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", UNIT])
        .output()
        .expect("`systemd-analyze` judges the unit: install it (Debian: apt-get install systemd)");
    let said = String::from_utf8(judged.stdout).unwrap();
    let (_, level) = said.split_once("Overall exposure level for switchboard.service: ").unwrap();
    let level: f64 = level.split_whitespace().next().unwrap().parse().unwrap();
    assert!(level <= 1.5, "{said}");
}
