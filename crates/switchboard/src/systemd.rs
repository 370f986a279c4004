//! Notifications to systemd, the datagrams of `sd_notify(3)`. If systemd does not ask for them
//! (`NOTIFY_SOCKET`, `WATCHDOG_USEC`), nothing is sent.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};

use crate::log::LineLimit;
use crate::shard::Shared;

/// A keep-alive may be late by three of these intervals: one may get lost while the machine is
/// busy.
const KEEP_ALIVES_PER_TIMEOUT: u32 = 4;

/// The socket to systemd, if it asked for one.
#[derive(Debug)]
pub(crate) struct Systemd {
    socket: Option<UnixDatagram>,
    /// Timeout without a keep-alive after which systemd restarts the server.
    watchdog: Option<Duration>,
    /// Status of the server while nothing is unusual.
    status: OnceLock<String>,
    failing: LineLimit,
}

impl Systemd {
    /// Reads the environment variables of this process.
    pub(crate) fn from_env() -> Systemd {
        let address = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty());
        let socket = address.and_then(|address| match connect(&address) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, ?address, "NOTIFY_SOCKET: systemd cannot be told anything");
                None
            }
        });
        let variable = |name| env::var(name).ok();
        let watchdog =
            watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id());
        Systemd { socket, watchdog, status: OnceLock::new(), failing: LineLimit::new() }
    }

    /// Reports that the server is not ready yet, and why.
    pub(crate) fn starting(&self, status: &str) {
        self.tell(&format!("STATUS={status}"));
    }

    /// Reports that devices are served; `status` is the text whenever there is nothing else to
    /// say.
    pub(crate) fn ready(&self, status: String) {
        let status = self.status.get_or_init(|| status);
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// Reports that the configuration is about to be read again.
    pub(crate) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let now_us = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.tell(&format!(
            "RELOADING=1\nMONOTONIC_USEC={now_us}\nSTATUS=Reading the configuration"
        ));
    }

    /// Reports the end of a reload: applied, or refused with the old configuration still in
    /// force.
    pub(crate) fn reloaded(&self, is_applied: bool) {
        let status = self.status.get().map_or("", String::as_str);
        let refused = "; the last reload was refused and changed nothing, see the log";
        let more = if is_applied { "" } else { refused };
        self.tell(&format!("READY=1\nSTATUS={status}{more}"));
    }

    /// Reports that the server is stopping, which takes `at_most`. systemd waits that long
    /// before it kills, even if the unit says less.
    pub(crate) fn stopping(&self, status: &str, at_most: Duration) {
        let at_most_us = at_most.as_micros();
        self.tell(&format!("STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={at_most_us}"));
    }

    fn tell(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(state.as_bytes())
            && let Some(left_out) = self.failing.pass()
        {
            tracing::warn!(%error, state, left_out, "systemd does not listen");
        }
    }
}

/// Feeds systemd's watchdog as long as every shard takes turns. Never returns.
///
/// An idle shard sleeps until something happens; so each one is woken, and has until the next
/// check to take a turn. One that hangs takes none, and then no keep-alive is sent until it
/// does. Shards do not wait for the disk, so a slow disk does not look like a hang.
pub(crate) async fn keep_alive(shared: Arc<Shared>) {
    let Some(timeout) = shared.systemd.watchdog else { return std::future::pending().await };
    let mut looks = interval(timeout / KEEP_ALIVES_PER_TIMEOUT);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = vec![0; shared.inboxes.len()];
    loop {
        looks.tick().await;
        let turns: Vec<u64> =
            shared.metrics.shards.iter().map(|shard| shard.turns.value()).collect();
        let is_alive =
            |index: usize| turns[index] != seen[index] || shared.inboxes[index].has_ended();
        if (0..turns.len()).all(is_alive) {
            shared.systemd.tell("WATCHDOG=1");
            seen = turns;
        }
        for inbox in &shared.inboxes {
            inbox.wake();
        }
    }
}

/// Connects to an address as systemd writes it: a path, or `@` and an abstract name.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // The thread that sends also handles signals. The kernel queues datagrams while systemd reads none,
    // as during a reload of its own units; what comes while that queue is full is dropped.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Returns the watchdog's timeout, unless it is meant for another process.
fn watchdog(usec: Option<String>, watched: Option<String>, own: u32) -> Option<Duration> {
    let is_watched = watched.is_none_or(|watched| watched.parse() == Ok(own));
    let usec = usec?.parse().ok().filter(|&usec| usec > 0 && is_watched)?;
    Some(Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{OFlags, fcntl_getfl};

    use super::*;

    /// Each message to a systemd that did not read once stopped the handling of signals for a second.
    #[test]
    fn what_systemd_does_not_take_is_dropped_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let socket = connect(path.as_os_str()).unwrap();
        assert!(fcntl_getfl(&socket).unwrap().contains(OFlags::NONBLOCK));
        while socket.send(b"x").is_ok() {}
        let (socket, failing, status) = (Some(socket), LineLimit::new(), OnceLock::new());
        let systemd = Systemd { socket, watchdog: None, status, failing };
        systemd.starting("dropped");
        manager.recv(&mut [0; 16]).unwrap();
        systemd.starting("taken");
        manager.set_nonblocking(true).unwrap();
        let taken = std::iter::repeat_with(|| {
            let mut datagram = [0; 16];
            manager.recv(&mut datagram).map(|len| datagram[..len].to_vec())
        });
        assert_eq!(taken.map_while(Result::ok).last().unwrap(), b"STATUS=taken");
    }

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        let watchdog = |usec: &str, watched: Option<&str>| {
            watchdog(Some(usec.to_owned()), watched.map(str::to_owned), 17)
        };
        let half = Some(Duration::from_millis(500));
        assert_eq!(watchdog("500000", None), half);
        assert_eq!(watchdog("500000", Some("17")), half);
        for (usec, watched) in [("500000", Some("18")), ("0", None), ("", None), ("x", None)] {
            assert_eq!(watchdog(usec, watched), None, "{usec} {watched:?}");
        }
        assert_eq!(super::watchdog(None, None, 17), None);
    }
}
