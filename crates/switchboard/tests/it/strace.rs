//! Makes system calls of one thread of the real binary fail or hang, with strace.

use std::fs::{self, DirEntry};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::server::Server;

/// Returns the prefix of a server's command that allows tampering with its system calls: the
/// creator of a user namespace may trace the processes in it, even where otherwise only a parent
/// may trace its child.
pub(crate) fn prefix() -> Vec<String> {
    ["unshare", "--user", "--map-root-user"].map(str::to_owned).to_vec()
}

/// Tampers with some system calls of one of the server's threads while it exists.
pub(crate) struct Tampering {
    strace: Child,
    /// Kept open, because strace prints to it when it detaches.
    _stderr: BufReader<ChildStderr>,
}

/// The thread that writes the log.
pub(crate) const STORE: &str = "store";
/// The thread that reads the store.
pub(crate) const READER: &str = "store-reader";
/// The thread of the HTTP server.
pub(crate) const CONTROL: &str = "control";

/// In microseconds: longer than any test takes.
const HANG: &str = "delay_enter=600000000";

/// The calls that make data durable.
pub(crate) const SYNCS: &str = "fdatasync,fsync";

impl Tampering {
    /// Once this returns, `calls` (names separated by commas) fail with this error and are not
    /// executed.
    pub(crate) fn fail(server: &Server, thread: &str, calls: &str, error: &str) -> Tampering {
        Tampering::begin(&["-p", &thread_id(server, thread)], calls, &format!("error={error}"))
    }

    /// Once this returns, `calls` do not even begin.
    pub(crate) fn hang(server: &Server, thread: &str, calls: &str) -> Tampering {
        Tampering::begin(&["-p", &thread_id(server, thread)], calls, HANG)
    }

    /// Like [`Tampering::hang`], in all threads, including those that start later.
    pub(crate) fn hang_all(server: &Server, calls: &str) -> Tampering {
        Tampering::begin(&["-f", "-p", &server.pid().to_string()], calls, HANG)
    }

    /// Like [`Tampering::hang_all`], only for calls that name this path.
    pub(crate) fn hang_path(server: &Server, calls: &str, path: &str) -> Tampering {
        Tampering::begin(&["-f", "-P", path, "-p", &server.pid().to_string()], calls, HANG)
    }

    fn begin(whom: &[&str], calls: &str, how: &str) -> Tampering {
        let mut strace = Command::new("strace")
            .args(["-o", "/dev/null", "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{how}")])
            .args(whom)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect(
                "`strace` makes system calls fail: install it (Debian: apt-get install strace)",
            );
        let mut stderr = BufReader::new(strace.stderr.take().expect("it is piped"));
        let mut said = String::new();
        stderr.read_line(&mut said).unwrap();
        if !said.contains(" attached") {
            stderr.read_to_string(&mut said).unwrap();
            panic!(
                "strace must be allowed to trace (ptrace) a server that the test started: {said}"
            );
        }
        Tampering { strace, _stderr: stderr }
    }

    /// Once this returns all is as usual; calls that hung continue.
    pub(crate) fn end(mut self) {
        kill_process(Pid::from_child(&self.strace), Signal::TERM).unwrap();
        self.strace.wait().unwrap();
    }
}

impl Drop for Tampering {
    fn drop(&mut self) {
        // Both fail only if the process has already exited.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// Waits until a traced server has taken all signals that it was sent. One that strace has in hand
/// while it ends may be lost.
pub(crate) fn wait_until_signals_are_taken(server: &Server) {
    let tasks = format!("/proc/{}/task", server.pid().as_raw_nonzero());
    let are_taken = || {
        let mut stopped = 0;
        for task in fs::read_dir(&tasks).unwrap() {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let is_pending = status
                .lines()
                .filter(|line| line.starts_with("SigPnd:") || line.starts_with("ShdPnd:"))
                .any(|line| !line.ends_with("0000000000000000"));
            stopped += usize::from(status.contains("State:\tt"));
            if is_pending {
                return false;
            }
        }
        // The one whose call hangs.
        stopped <= 1
    };
    // Twice, as a signal is neither pending nor has stopped its thread for a moment.
    for _ in 0..2 {
        while !are_taken() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Returns the id of the thread that has this name in the server.
fn thread_id(server: &Server, name: &str) -> String {
    let tasks = format!("/proc/{}/task", server.pid().as_raw_nonzero());
    let mut tasks = fs::read_dir(tasks).unwrap().map(|task| task.unwrap());
    let is_named =
        |task: &DirEntry| fs::read_to_string(task.path().join("comm")).unwrap().trim_end() == name;
    let thread = tasks.find(is_named).unwrap_or_else(|| panic!("no thread is named {name}"));
    thread.file_name().into_string().unwrap()
}
