//! Runs installed commands.

use std::env;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Maximum time for anything here; reaching it means a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than the npm command takes to notice that npm has gone.
const GOES_ON: Duration = Duration::from_secs(2);

/// Runs a program, which must succeed, and returns its output.
pub(crate) fn output(command: &mut Command) -> String {
    without_settings(command);
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}{complained}", output.status);
    said.into_owned()
}

/// Starts a server with this command, and sends a message through it.
pub(crate) fn assert_serves(switchboard: &dyn Fn() -> Command) {
    let mut command = switchboard();
    let place = tempfile::tempdir().unwrap();
    command.args(["--memory", "--listen", "127.0.0.1:0"]).current_dir(place.path());
    let server = Running::start(&mut command, "Switchboard is listening on ");
    assert_delivers(switchboard, &server);
    assert!(server.terminate().success());
}

/// Sends a message to a device of this server.
pub(crate) fn assert_delivers(switchboard: &dyn Fn() -> Command, server: &Running) {
    let url = format!("ws://{}", server.said);
    let device = Running::start(switchboard().args(["listen", "--url", &url]), "your id is ");
    let sent = output(switchboard().args(["send", "--url", &url, &device.said, "hello"]));
    assert!(sent.starts_with(&format!("delivered to {}", device.said)), "{sent}");
    let came = device.lines.recv_timeout(PATIENCE).unwrap();
    assert!(came.ends_with(": hello"), "{came}");
}

/// A process that is killed when dropped, together with its children.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    /// The rest of the line that its start waited for.
    pub(crate) said: String,
}

impl Running {
    /// Starts the process and waits for a line of its output with this beginning.
    pub(crate) fn start(command: &mut Command, beginning: &str) -> Running {
        without_settings(command);
        let mut child =
            command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            // Both fail once nobody listens any more.
            let _ = stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
        });
        let mut running = Running { child, lines, said: String::new() };
        while running.said.is_empty() {
            let line = running.lines.recv_timeout(PATIENCE).expect("it says how it stands");
            running.said = line.strip_prefix(beginning).unwrap_or_default().to_owned();
        }
        running
    }

    /// Asks it to stop, and waits for that.
    pub(crate) fn terminate(self) -> ExitStatus {
        self.end_by(Signal::TERM)
    }

    /// Sends a signal to the process alone, and waits until all its children have ended: the
    /// pipe that all of them have as standard output ends with the last one.
    pub(crate) fn end_by(mut self, signal: Signal) -> ExitStatus {
        kill_process(self.pid(), signal).unwrap();
        let end = loop {
            if let Err(end) = self.lines.recv_timeout(PATIENCE) {
                break end;
            }
        };
        assert_eq!(end, RecvTimeoutError::Disconnected, "it does not end");
        self.child.wait().unwrap()
    }

    /// Sends a signal to the process alone; returns true if a child is still running some
    /// seconds later.
    pub(crate) fn goes_on_after(self, signal: Signal) -> bool {
        kill_process(self.pid(), signal).unwrap();
        loop {
            if let Err(end) = self.lines.recv_timeout(GOES_ON) {
                return end == RecvTimeoutError::Timeout;
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Removes the machine's settings, and keeps log lines out of the output of the tests.
fn without_settings(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("SWITCHBOARD_") {
            command.env_remove(name);
        }
    }
    command.env("SWITCHBOARD_LOG_LEVEL", "error");
}
