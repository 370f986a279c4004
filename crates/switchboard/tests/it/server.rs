//! The real server as a child process on a free port, ended when dropped.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use switchboard::auth::OwnKey;
use switchboard_proto::v1::DeviceRef;
use tempfile::TempDir;

/// Maximum time for anything in a test; reaching it means a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Returns the binary, without the machine's variables that it would read.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    without_settings(&mut command);
    command
}

pub(crate) fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SWITCHBOARD_") {
            command.env_remove(name);
        }
    }
}

/// A server in a directory of its own, so that no configuration of the machine affects it.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Its working directory.
    pub(crate) directory: TempDir,
    /// Beginning of its command, if that is not the binary itself.
    prefix: Vec<String>,
    settings: Vec<String>,
    child: Child,
    log: Option<JoinHandle<String>>,
}

/// A server that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// All of its log, one JSON object per line.
    pub(crate) log: String,
}

impl Server {
    /// Starts with the defaults.
    pub(crate) fn start() -> Server {
        Server::with(&[])
    }

    /// Starts with these settings, each `key=value`.
    pub(crate) fn with(settings: &[&str]) -> Server {
        Server::spawn(tempfile::tempdir().unwrap(), settings, |_| {})
    }

    /// Starts with the defaults, on a loopback address where no other test has sockets: while it
    /// is down nobody else gets its port.
    pub(crate) fn alone_on(host: &str) -> Server {
        let (directory, settings) = (tempfile::tempdir().unwrap(), Vec::new());
        let (address, child, log) =
            launch_on(&format!("{host}:0"), &directory, &[], &settings, |_| {});
        Server { address, directory, prefix: Vec::new(), settings, child, log: Some(log) }
    }

    /// Like [`Server::with`], in a directory that may contain files, and with changes to the
    /// command.
    pub(crate) fn spawn(
        directory: TempDir,
        settings: &[&str],
        adjust: impl FnOnce(&mut Command),
    ) -> Server {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let (address, child, log) = launch(&directory, &[], &settings, adjust);
        Server { address, directory, prefix: Vec::new(), settings, child, log: Some(log) }
    }

    /// Like [`Server::with`], started through another program, in which it chooses its
    /// directory.
    pub(crate) fn within(prefix: &[String], settings: &[&str]) -> Server {
        let directory = tempfile::tempdir().unwrap();
        let (prefix, settings) = (prefix.to_vec(), settings.iter().map(ToString::to_string));
        let settings: Vec<String> = settings.collect();
        let (address, child, log) = launch(&directory, &prefix, &settings, |_| {});
        Server { address, directory, prefix, settings, child, log: Some(log) }
    }

    /// Sends SIGKILL, like a crash; files on disk stay. May be called twice.
    pub(crate) fn kill(&mut self) {
        // Both fail only if the child has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again in the same directory, with the same settings, on another port; kills it
    /// first if it runs.
    pub(crate) fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// Like [`Server::restart`], with more settings.
    pub(crate) fn restart_with(&mut self, more: &[&str]) {
        self.kill();
        let more = more.iter().map(ToString::to_string);
        let settings: Vec<String> = self.settings.iter().cloned().chain(more).collect();
        let (address, child, log) = launch(&self.directory, &self.prefix, &settings, |_| {});
        (self.address, self.child, self.log) = (address, child, Some(log));
    }

    /// Like [`Server::restart`], at the same address, for clients that reconnect by themselves.
    pub(crate) fn restart_in_place(&mut self) {
        self.kill();
        let (directory, prefix, settings) = (&self.directory, &self.prefix, &self.settings);
        let (_, child, log) =
            launch_on(&self.address.to_string(), directory, prefix, settings, |_| {});
        (self.child, self.log) = (child, Some(log));
    }

    /// Returns the address for devices.
    pub(crate) fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Stops all threads until SIGCONT, and waits until they have stopped: a shard might still read
    /// what a test sends next.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.pid().as_raw_nonzero());
        let runs = |task: io::Result<fs::DirEntry>| {
            let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
            // A thread that has just ended does not run either.
            stat.is_ok_and(|stat| !stat.contains(") T "))
        };
        let began = Instant::now();
        while fs::read_dir(&tasks).unwrap().any(runs) {
            assert!(began.elapsed() < PATIENCE, "it does not stop");
            std::thread::yield_now();
        }
    }

    /// Waits for an end with another cause; returns the exit status.
    pub(crate) fn await_end(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Like [`Server::await_end`], with the log of the run.
    pub(crate) fn wait(mut self) -> Ended {
        let status = self.await_end();
        let log = self.log.take().expect("it is taken once").join().unwrap();
        Ended { status, log }
    }

    /// Sends SIGTERM and returns the result.
    pub(crate) fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits until no connection is accepted any more.
    pub(crate) fn await_refused(&self) {
        let began = Instant::now();
        loop {
            match TcpStream::connect(self.address) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
                _ => assert!(began.elapsed() < PATIENCE, "it still accepts"),
            }
        }
    }

    /// Opens a TCP connection with a timeout, which fails a test rather than hang it.
    pub(crate) fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// Sends raw bytes and reads until the server closes.
    pub(crate) fn raw(&self, request: &[u8]) -> String {
        let mut socket = self.socket();
        socket.write_all(request).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// Returns the body of a GET.
    pub(crate) fn get(&self, path: &str) -> String {
        let answer = self.raw(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
        answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
    }

    /// Returns all metrics, with a token if the server asks for one.
    fn metrics(&self) -> String {
        let token = match self.settings.iter().any(|setting| setting == "auth=token") {
            true => format!("Authorization: Bearer {}\r\n", token(self, "metrics", None)),
            false => String::new(),
        };
        let answer =
            self.raw(format!("GET /metrics HTTP/1.1\r\nHost: test\r\n{token}\r\n").as_bytes());
        answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
    }

    /// Returns the value of a sample in `/metrics`, named with its labels:
    /// `name{label="value"}`.
    pub(crate) fn metric(&self, sample: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{sample} in\n{text}")).parse().unwrap()
    }

    /// Waits until the value of a sample meets a condition.
    pub(crate) fn await_metric(&self, sample: &str, holds: impl Fn(f64) -> bool) {
        let began = Instant::now();
        loop {
            let value = self.metric(sample);
            if holds(value) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{sample} stays {value}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the binary on a free port.
fn launch(
    directory: &TempDir,
    prefix: &[String],
    settings: &[String],
    adjust: impl FnOnce(&mut Command),
) -> (SocketAddr, Child, JoinHandle<String>) {
    launch_on("127.0.0.1:0", directory, prefix, settings, adjust)
}

/// Starts the binary and reads the address from its greeting.
fn launch_on(
    listen: &str,
    directory: &TempDir,
    prefix: &[String],
    settings: &[String],
    adjust: impl FnOnce(&mut Command),
) -> (SocketAddr, Child, JoinHandle<String>) {
    let mut command = match prefix {
        [] => binary(),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(env!("CARGO_BIN_EXE_switchboard"));
            command
        }
    };
    command.args(["--listen", listen]).current_dir(directory.path()).stdin(Stdio::null());
    for setting in settings {
        command.args(["--set", setting]);
    }
    adjust(&mut command);
    without_settings(&mut command);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the server starts");
    let mut stderr = child.stderr.take().expect("it is piped");
    let log = std::thread::spawn(move || {
        let mut log = String::new();
        stderr.read_to_string(&mut log).expect("log lines are UTF-8");
        log
    });
    let mut greeting = String::new();
    let stdout = child.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut greeting).unwrap();
    let address = greeting.trim().rsplit(' ').next().and_then(|word| word.parse().ok());
    let Some(address) = address else {
        panic!("no address in {greeting:?}; log: {}", log.join().unwrap())
    };
    (address, child, log)
}

/// Returns a token for a device by its name, signed with the server's own key.
pub(crate) fn token(server: &Server, name: &str, ttl: Option<Duration>) -> String {
    let key = OwnKey::open(&server.directory.path().join("switchboard-data")).unwrap();
    key.mint(DeviceRef::Name(name), ttl, None, now_s())
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
