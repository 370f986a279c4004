//! Starts a server on a free port, and stops it again.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, PipeReader, pipe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use switchboard::bench::process::Process;
use switchboard::bench::tally::Tally;
use switchboard::bench::target::Target;

const HOST: &str = "127.0.0.1:";

/// A server that can be started. Its settings are environment variables, which the reference
/// ignores, so any binary can take any role.
#[derive(Clone)]
pub(crate) struct Contender {
    binary: PathBuf,
    settings: Vec<(&'static str, OsString)>,
    tls: bool,
}

impl Contender {
    /// Creates a contender for `binary`, a server that listens at `--listen` and prints the
    /// address.
    pub(crate) fn new(binary: PathBuf) -> anyhow::Result<Self> {
        ensure!(binary.exists(), "there is no {}: build it first", binary.display());
        Ok(Self { binary, settings: Vec::new(), tls: false }
            .with_shards(1)
            .with_data_dir(Path::new("")))
    }

    /// Returns the same with mailboxes in this directory; an empty path means memory only.
    pub(crate) fn with_data_dir(&self, dir: &Path) -> Self {
        self.with("SWITCHBOARD_DATA_DIR", dir)
    }

    /// Returns the same with this many shards.
    pub(crate) fn with_shards(&self, shards: u64) -> Self {
        self.with("SWITCHBOARD_SHARDS", shards.to_string())
    }

    /// Returns the same over TLS.
    pub(crate) fn with_tls(&self, cert: &Path, key: &Path) -> Self {
        let contender = self.with("SWITCHBOARD_TLS_CERT", cert).with("SWITCHBOARD_TLS_KEY", key);
        Self { tls: true, ..contender }
    }

    /// Returns the same with a setting.
    pub(crate) fn with(&self, name: &'static str, value: impl Into<OsString>) -> Self {
        let mut contender = self.clone();
        contender.settings.push((name, value.into()));
        contender
    }

    /// Starts it and waits until it prints its address.
    pub(crate) fn start(&self) -> anyhow::Result<Server> {
        self.start_by(Command::new(&self.binary))
    }

    /// Starts it as the last arguments of `wrapper`.
    pub(crate) fn start_under(&self, mut wrapper: Command) -> anyhow::Result<Server> {
        wrapper.arg(&self.binary);
        self.start_by(wrapper)
    }

    fn start_by(&self, mut command: Command) -> anyhow::Result<Server> {
        command.args(["--listen", "127.0.0.1:0"]).envs(self.settings.iter().cloned());
        Server::start(command, self.tls)
    }
}

/// Fails unless every message arrived once and in order.
pub(crate) fn ensure_clean(tally: &Tally) -> anyhow::Result<()> {
    ensure!(tally.is_clean(), "the server failed: {tally:?}");
    Ok(())
}

/// A running server; dropping it kills it.
pub(crate) struct Server {
    child: Child,
    target: Option<Target>,
}

impl Server {
    /// Starts any server that prints the address on which it listens, and waits for that.
    pub(crate) fn start(mut command: Command, tls: bool) -> anyhow::Result<Self> {
        let (output, input) = pipe()?;
        command.stdin(Stdio::null());
        command.stdout(input.try_clone()?).stderr(input);
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        // The command holds the other end of the pipe; the output ends only once that is closed.
        drop(command);
        let mut server = Server { child, target: None };
        server.target = Some(wait_for_address(output, tls)?);
        Ok(server)
    }

    /// Returns the address on which it listens.
    pub(crate) fn target(&self) -> &Target {
        self.target.as_ref().expect("a server is handed out once its address is known")
    }

    /// Returns its process.
    pub(crate) fn process(&self) -> anyhow::Result<Process> {
        Process::new(self.child.id())
    }

    /// Resets the peak that [`Server::peak_bytes`] returns.
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        // The value is described in proc(5).
        Ok(fs::write(self.proc("clear_refs"), "5")?)
    }

    /// Returns its peak resident memory.
    pub(crate) fn peak_bytes(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(self.proc("status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("no VmHWM in its status")?.parse::<u64>()? * 1024)
    }

    fn proc(&self, leaf: &str) -> String {
        format!("/proc/{}/{leaf}", self.child.id())
    }

    /// Asks it to stop and waits until it has.
    pub(crate) fn terminate(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the server's output up to its address, and leaves the rest to a thread that ends with
/// the server: a full pipe would block it.
fn wait_for_address(output: PipeReader, tls: bool) -> anyhow::Result<Target> {
    let mut lines = BufReader::new(output).lines();
    let mut said = String::new();
    for line in lines.by_ref() {
        let line = line?;
        if let Some(port) = find_port(&line) {
            thread::spawn(move || lines.for_each(drop));
            return Ok(Target { address: ([127, 0, 0, 1], port).into(), tls });
        }
        said = said + &line + "\n";
    }
    anyhow::bail!("the server ended without saying where it listens:\n{said}")
}

fn find_port(line: &str) -> Option<u16> {
    let (_, after) = line.split_once(HOST)?;
    let end = after.find(|char: char| !char.is_ascii_digit()).unwrap_or(after.len());
    after[..end].parse().ok().filter(|port| *port != 0)
}
