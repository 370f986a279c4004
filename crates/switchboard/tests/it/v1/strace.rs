//! Makes system calls of the store's writer fail or hang under the real binary, by strace.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::server::Server;

/// What a server's command begins with so that its system calls may be tampered with: whoever made
/// a user namespace may trace what is in it, also where else only a parent may trace its child.
pub(super) fn prefix() -> Vec<String> {
    ["unshare", "--user", "--map-root-user"].map(str::to_owned).to_vec()
}

/// As long as it lives, some system calls of the store's writer, and of no other thread, are
/// tampered with.
pub(super) struct Tampering {
    strace: Child,
    /// Kept, as strace says on it that it leaves.
    _stderr: BufReader<ChildStderr>,
}

/// Those that make data durable.
pub(super) const SYNCS: &str = "fdatasync,fsync";

impl Tampering {
    /// From the return of this on, `calls` (names with commas between them) fail with this error
    /// and are not made.
    pub(super) fn fail(server: &Server, calls: &str, error: &str) -> Tampering {
        Tampering::begin(server, calls, &format!("error={error}"))
    }

    /// From the return of this on, `calls` do not even begin.
    pub(super) fn hang(server: &Server, calls: &str) -> Tampering {
        // In microseconds: longer than any test takes.
        Tampering::begin(server, calls, "delay_enter=600000000")
    }

    fn begin(server: &Server, calls: &str, how: &str) -> Tampering {
        let mut strace = Command::new("strace")
            .args(["-o", "/dev/null", "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{how}")])
            .args(["-p", &writer_thread(server)])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect(
                "`strace` makes system calls fail: install it (Debian: apt-get install strace)",
            );
        let mut stderr = BufReader::new(strace.stderr.take().expect("it is piped"));
        let mut said = String::new();
        stderr.read_line(&mut said).unwrap();
        if !said.trim_end().ends_with("attached") {
            stderr.read_to_string(&mut said).unwrap();
            panic!(
                "strace must be allowed to trace (ptrace) a server that the test started: {said}"
            );
        }
        Tampering { strace, _stderr: stderr }
    }

    /// From the return of this on all is as usual; what hung goes on.
    pub(super) fn end(mut self) {
        kill_process(Pid::from_child(&self.strace), Signal::TERM).unwrap();
        self.strace.wait().unwrap();
    }
}

impl Drop for Tampering {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// The thread that writes the log, which the server names so.
fn writer_thread(server: &Server) -> String {
    let tasks = format!("/proc/{}/task", server.pid().as_raw_nonzero());
    let mut tasks = fs::read_dir(tasks).unwrap().map(|task| task.unwrap());
    let writer =
        tasks.find(|task| fs::read_to_string(task.path().join("comm")).unwrap() == "store\n");
    writer.expect("a thread named `store`").file_name().into_string().unwrap()
}
