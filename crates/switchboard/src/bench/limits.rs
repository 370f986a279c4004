//! Limits of this process that a load may reach.

use anyhow::ensure;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files besides the sockets: the standard three, epoll, /proc.
const OTHER_FILES: u64 = 32;

/// Raises the soft limit of open files to the hard one.
pub(super) fn raise_open_files() -> anyhow::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(())
}

/// Fails with an explanation if this process may not open `connections` sockets.
pub(super) fn check_open_files(connections: usize) -> anyhow::Result<()> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    ensure!(
        connections as u64 + OTHER_FILES <= limit,
        "{connections} connections need more open files than the limit of {limit} (ulimit -n)"
    );
    Ok(())
}
