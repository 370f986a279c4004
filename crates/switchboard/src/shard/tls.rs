//! TLS handshakes: the connections that wait for theirs, and bounds on both.
//!
//! A handshake costs some thousand times as much as reading a message, and anybody may ask for
//! one. So a turn works on few, those that wait have a queue of their own, and a shard where many
//! wait is given no more sockets: the rest wait in the kernel, where they cost nothing.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::conn::{Conn, Key, Phase};
use super::{Shard, Shared};

/// Handshakes that are worked on in one turn; the rest wait for the next. The slowest key
/// in use, RSA of 2048 bits, takes about a millisecond: a crowd of arrivals delays the other
/// connections by some 16 ms.
const HANDSHAKES_PER_TURN: usize = 16;

/// Number of handshakes that wait (of a shard's connections, and of sockets on their way to it)
/// from which on the shard is given no more sockets: some 130 ms of handshakes.
const WAITING_MAX: usize = 8 * HANDSHAKES_PER_TURN;

/// Connections that have something to read in their TLS handshake, each once, in the order in which
/// that arrived. Some are gone by now; they count until they are next.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    queue: VecDeque<Key>,
    left_in_turn: usize,
    /// Set if this queue is served before the run queue in this turn.
    first: bool,
}

impl Handshakes {
    pub(super) fn begin_turn(&mut self) {
        self.left_in_turn = HANDSHAKES_PER_TURN;
    }

    pub(super) fn any_wait(&self) -> bool {
        !self.queue.is_empty()
    }
}

impl Conn {
    /// Returns true if its next read may cost a TLS handshake.
    #[inline]
    pub(super) fn is_in_tls_handshake(&self, shared: &Shared) -> bool {
        match &self.tls {
            Some(tls) => tls.is_handshaking(),
            // The handshake begins behind the PROXY header, mostly in the same read.
            None => {
                matches!(self.phase, Phase::Handshake { awaits_proxy_header: true, .. })
                    && shared.tls.is_some()
            }
        }
    }
}

impl Shard {
    /// Serves both queues of connections that have something to read.
    pub(super) fn serve_queues(&mut self) {
        // The two take turns at being first: otherwise the first could use up the work of every
        // turn, and the other never be served.
        self.handshakes.first = !self.handshakes.first;
        if self.handshakes.first {
            self.serve_handshakes();
            self.serve_run_queue();
        } else {
            self.serve_run_queue();
            self.serve_handshakes();
        }
    }

    fn serve_handshakes(&mut self) {
        while self.handshakes.left_in_turn > 0
            && !self.ports.work.is_enough()
            && let Some(key) = self.handshakes.queue.pop_front()
        {
            self.count_waiting_handshake(self.ports.shard_index(), -1);
            self.serve(key);
        }
    }

    /// Puts a connection at the end of the queue.
    pub(super) fn await_handshake(&mut self, key: Key) {
        self.handshakes.queue.push_back(key);
        self.count_waiting_handshake(self.ports.shard_index(), 1);
    }

    /// Uses up one of the turn's handshakes for a connection; returns false if there is none left
    /// or the peer is gone.
    #[cold]
    pub(super) fn begin_handshake(&mut self, key: Key) -> bool {
        if self.handshakes.left_in_turn == 0 {
            self.enqueue(key);
            return false;
        }
        let Some(conn) = self.ports.conn(key) else { return false };
        // It may have reset the connection while it waited. A look at that costs a thousandth of
        // a handshake.
        if has_failed(&conn.socket) {
            self.remove(key, "the peer left in the TLS handshake");
            return false;
        }
        self.handshakes.left_in_turn -= 1;
        true
    }

    /// Returns the shard for the next accepted socket: the next in turn where not too many wait for
    /// their handshake. If there is none, this shard, too, has handshakes to work on, so it takes
    /// another turn at once.
    pub(super) fn next_shard(&self, first: usize) -> Option<usize> {
        if self.shared.tls.is_none() {
            return Some(first);
        }
        let shards = self.shared.inboxes.len();
        let waiting = |shard: usize| &self.shared.inboxes[shard].waiting_handshakes;
        (0..shards)
            .map(|n| (first + n) % shards)
            .find(|&shard| waiting(shard).load(Ordering::Relaxed) < WAITING_MAX)
    }

    /// Counts a connection that waits on a shard, or a socket on its way there.
    pub(super) fn count_waiting_handshake(&self, shard: usize, change: isize) {
        let waiting = &self.shared.inboxes[shard].waiting_handshakes;
        waiting.fetch_add(change as usize, Ordering::Relaxed);
    }
}

/// Returns true if the peer has reset the connection.
pub(super) fn has_failed(socket: &mio::net::TcpStream) -> bool {
    !matches!(socket.take_error(), Ok(None))
}
