//! The real server as a child process on a free port, killed when dropped.

use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

const START_MAX: Duration = Duration::from_secs(20);

/// A server in a directory of its own, so that no configuration of the machine affects it.
pub(crate) struct Server {
    directory: TempDir,
    running: Option<Running>,
    port: u16,
}

impl Server {
    /// Starts on a port that the system picks.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let running = Running::start(&directory, 0);
        let port = running.port;
        Self { directory, running: Some(running), port }
    }

    /// Kills the server, as a crash would.
    pub(crate) fn stop(&mut self) {
        self.running = None;
    }

    /// Starts on the same port as before.
    pub(crate) fn start_again(&mut self) {
        self.running = Some(Running::start(&self.directory, self.port));
    }

    /// Returns the page's address.
    pub(crate) fn page(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Returns the address for devices.
    pub(crate) fn socket(&self) -> String {
        format!("ws://127.0.0.1:{}/", self.port)
    }
}

struct Running {
    child: Child,
    port: u16,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    fn start(directory: &TempDir, port: u16) -> Self {
        let (output, writer) = std::io::pipe().expect("a pipe");
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SWITCHBOARD_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .current_dir(directory.path())
            .stdout(writer.try_clone().expect("a second end of the pipe"))
            .stderr(writer)
            .spawn()
            .expect("the server starts");
        // The command holds the writing ends: without this the reader would never see the end.
        drop(command);
        let (found, port) = mpsc::channel();
        let reader = std::thread::spawn(move || read(output, &found));
        let mut running = Self { child, port: 0, reader: Some(reader) };
        running.port = port.recv_timeout(START_MAX).expect("the server says where it listens");
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the child has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Reads the output to its end, reports the port when it first occurs, and copies everything to
/// the test's own output.
fn read(output: PipeReader, found: &mpsc::Sender<u16>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        eprintln!("server: {line}");
        if let Some(port) = port_in(&line) {
            // The receiver is gone after the first.
            let _ = found.send(port);
        }
    }
}

/// Returns the port in a line such as `... http://127.0.0.1:41234/ ...`.
fn port_in(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once("127.0.0.1:")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok().filter(|&port| port != 0)
}
