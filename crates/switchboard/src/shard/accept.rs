//! The listening socket, which belongs to the first shard; accepted sockets go to all in turn.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry};
use rustix::net::sockopt;
use switchboard_broker::Moment;

use super::admission::{Admission, Permit, SPARE_SOCKETS};
use super::conn::{Conn, ControlFrames, Key, Phase, Protocol, ReadPauses, Unwritten};
use super::out::OutQueue;
use super::ports::Ports;
use super::rejected::say_busy_and_close;
use super::tls::has_failed;
use super::{LISTENER, Shard};
use crate::log::LineLimit;
use crate::metrics::refused_index;
use crate::tls::Session;
use crate::ws::{Decoder, Role};

/// Sockets accepted per turn; the rest wait in the kernel's backlog for the next.
const ACCEPTS_PER_TURN: usize = 128;
/// Least interval between two log lines about missing file descriptors.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// A socket on its way to its shard.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) socket: TcpStream,
    pub(super) peer: SocketAddr,
}

/// The listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    ready: bool,
    next_shard: usize,
    /// A file descriptor kept for the moment when there is no other, so that a client which
    /// connects then is rejected instead of left waiting.
    spare: Option<File>,
    complained_at: Option<Instant>,
}

impl Listener {
    /// Returns a listener on a bound, nonblocking socket.
    pub(crate) fn new(socket: std::net::TcpListener) -> Listener {
        Listener {
            socket: TcpListener::from_std(socket),
            ready: false,
            next_shard: 0,
            spare: open_spare(),
            complained_at: None,
        }
    }

    /// Sets the idle timeout of sockets that are accepted from now on; see
    /// [`server`](crate::server).
    pub(super) fn set_idle_timeout(&self, idle_timeout: Duration) {
        // Accepted sockets inherit the option, so it costs no system call for each of them.
        let set = sockopt::set_tcp_user_timeout(&self.socket, idle_timeout.as_millis() as u32);
        if let Err(error) = set {
            tracing::warn!(%error, "new connections keep the old idle_timeout in the kernel");
        }
    }

    pub(super) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        registry.register(&mut self.socket, LISTENER, Interest::READABLE)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn became_ready(&mut self) {
        self.ready = true;
    }

    /// At the limit of file descriptors: gives up the spare one to accept a socket and reject it.
    fn turn_away(&mut self) -> io::Result<()> {
        self.spare = None;
        // accept(2) reports the limit before it looks for a waiting connection. So only this
        // call can show that none waits.
        let rejected = self.socket.accept().map(|(socket, _)| say_busy_and_close(socket));
        self.spare = open_spare();
        if rejected.is_ok() {
            self.complain();
        }
        rejected
    }

    fn complain(&mut self) {
        if self.complained_at.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained_at = Some(Instant::now());
            tracing::error!(
                "no file descriptor is left: new connections are rejected; raise the limit \
                 (ulimit -n, LimitNOFILE=) or lower max_connections"
            );
        }
    }
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Shard {
    /// Accepts waiting sockets, up to a bound, and deals them out to the shards in turn.
    pub(super) fn accept_sockets(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = &mut self.listener else { return };
            if !listener.ready {
                return;
            }
            let next_shard = listener.next_shard;
            let Some(shard) = self.next_shard(next_shard) else { return };
            let Some(listener) = &mut self.listener else { return };
            match listener.socket.accept() {
                Ok((socket, peer)) => {
                    listener.next_shard = (shard + 1) % self.shared.inboxes.len();
                    self.deal_out(shard, Accepted { socket, peer });
                }
                // Only at EAGAIN: the listener is edge-triggered, and does not report a waiting
                // connection twice.
                Err(error) if error.kind() == ErrorKind::WouldBlock => listener.ready = false,
                Err(error) if is_out_of_files(&error) => match listener.turn_away() {
                    Ok(()) => self.ports.metrics.accept_failures.add(1),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => listener.ready = false,
                    // Another thread took the spare one. The next turn tries again.
                    Err(error) if is_out_of_files(&error) => return,
                    Err(_) => {}
                },
                // Errors of that connection, such as ECONNABORTED, which accept(2) passes on;
                // the next one may be fine.
                Err(_) => {}
            }
        }
    }

    fn deal_out(&mut self, shard: usize, accepted: Accepted) {
        if shard == self.ports.shard_index() {
            self.open(accepted);
        } else {
            self.count_waiting_handshake(shard, 1);
            self.ports.outboxes[shard].batch.sockets.push(accepted);
        }
    }

    /// Admits a socket and awaits its handshake.
    pub(super) fn open(&mut self, Accepted { socket, peer }: Accepted) {
        self.ports.metrics.accepted.add(1);
        // Another shard may have accepted it just before the drain began.
        if self.drain.is_some() {
            return;
        }
        // One that was reset in the backlog must cost neither a session nor, on a full server,
        // the place of one that waits.
        if self.shared.tls.is_some() && has_failed(&socket) {
            return;
        }
        let mut permit = self.admit(peer.ip());
        let is_over = permit.is_over();
        let awaits_proxy_header = permit.is_trusted_proxy();
        // A proxy is not counted: the address of its client comes later, in a header.
        if !awaits_proxy_header && permit.count().is_err() {
            return self.turn_away(socket);
        }
        // A PROXY header comes in the clear, before the TLS.
        let tls = if awaits_proxy_header { None } else { self.new_session() };
        let deadline = self.ports.now.after(self.config.handshake_timeout);
        let max_message_bytes = self.config.max_message_bytes;
        let now = self.ports.now;
        let key = self.insert(|key| Conn {
            socket,
            generation: key.generation,
            decoder: Decoder::new(Role::Server, max_message_bytes),
            phase: Phase::Handshake { deadline, awaits_proxy_header },
            tls,
            deflate: None,
            read_pauses: ReadPauses::default(),
            readable: false,
            half_closed: false,
            queued: false,
            dirty: false,
            protocol: Protocol::Text,
            unwritten: Unwritten::default(),
            out: OutQueue::default(),
            unread: Vec::new(),
            heard_at: now,
            permit,
            pinged_at: Moment::default(),
            timer_at: Moment::from_ms(u64::MAX),
            full_since: Moment::default(),
            spent_until_ns: 0,
            control_frames: ControlFrames::default(),
            unfinished: 0,
            begun_at: now,
            stores: false,
            half_closed_at: now,
            link: None,
        });
        self.watch(key, deadline);
        if is_over {
            self.note_over(key);
            // It may have sent its request already. In a crowd it would have to give way to others
            // before its event came.
            if let Some(conn) = self.ports.conn(key) {
                conn.readable = true;
                self.serve(key);
            }
        }
    }

    fn note_over(&mut self, key: Key) {
        if self.over.len() >= 2 * SPARE_SOCKETS {
            // Most of them have left this shard by now, or closed.
            let mut over = std::mem::take(&mut self.over);
            over.retain(|key| self.ports.conn(*key).is_some());
            self.over = over;
        }
        self.over.push_back(key);
    }

    /// Admits a socket; if the spare places are taken, the oldest connection in one gives way.
    fn admit(&mut self, peer: IpAddr) -> Permit {
        let admission = Arc::clone(&self.shared.admission);
        if let Some(permit) = Admission::admit(&admission, peer) {
            return permit;
        }
        // The oldest, since a health check asks at once, and must not wait for connections that say
        // nothing.
        self.make_way();
        Admission::admit_one_more(&admission, peer)
    }

    /// Rejects the oldest connection that is beyond `max_connections` and neither a device nor a
    /// request.
    fn make_way(&mut self) {
        while let Some(key) = self.over.pop_front() {
            match self.ports.conn(key).map(|conn| &conn.phase) {
                Some(Phase::Handshake { .. }) => {
                    let mut conn = self.ports.conns.remove(key.index as usize);
                    // A failure ends the socket, which is what is wanted.
                    self.poll.registry().deregister(&mut conn.socket).ok();
                    return self.turn_away(conn.socket);
                }
                Some(Phase::Closing { .. }) => {
                    // If many come in one turn, its answer may be queued and not written yet.
                    self.flush_early(key);
                    return self.remove(key, "it gave way");
                }
                _ => {}
            }
        }
    }

    /// Rejects a socket that may not even ask; without TLS it is told 503.
    fn turn_away(&mut self, socket: TcpStream) {
        self.ports.metrics.refused.at(refused_index("503")).add(1);
        // A TLS handshake costs more than a rejected client is worth, so it is closed unread.
        if self.shared.tls.is_none() {
            let deadline = self.ports.now.after(self.config.close_timeout);
            self.rejected.add(socket, deadline);
        }
    }

    /// Returns a TLS session for a new connection; `None` without TLS.
    pub(super) fn new_session(&self) -> Option<Box<Session>> {
        let acceptor = self.shared.tls.as_ref()?;
        Some(Box::new(acceptor.session().expect("the configuration was checked when loaded")))
    }

    fn watch(&mut self, key: Key, deadline: Moment) {
        let Some(conn) = self.ports.conn(key) else { return };
        // Edge-triggered in both directions and for good: no system call when interest changes.
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered =
            self.poll.registry().register(&mut conn.socket, Ports::token(key), interest);
        if let Err(error) = registered {
            static LIMIT: LineLimit = LineLimit::new();
            if let Some(left_out) = LIMIT.pass() {
                tracing::error!(%error, left_out, "a socket cannot be watched");
            }
            return self.remove(key, "the socket cannot be watched");
        }
        self.ports.schedule(key, deadline);
    }
}

/// Returns true if the process (EMFILE) or the system (ENFILE) has no file descriptor left.
fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE]
        .map(Errno::raw_os_error)
        .contains(&error.raw_os_error().unwrap_or(0))
}
