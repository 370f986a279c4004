//! The drain: connections are closed with 1001 one after the other, so that not all come back at
//! once.

use std::time::Duration;

use switchboard_broker::Moment;

use super::Shard;
use super::conn::{Conn, Key, Phase};
use crate::ws::CloseCode;

/// Interval at which a draining shard closes some of its connections.
const STEP: Duration = Duration::from_millis(10);

/// Time after which devices are told to come back: a restart takes about as long.
const RECONNECT_IN: Duration = Duration::from_secs(1);

/// A drain under way.
#[derive(Debug)]
pub(super) struct Drain {
    began_at: Moment,
    over: Duration,
    /// Time at which the connections that are left are cut off.
    ends_at: Moment,
    /// Time at which the shard ends even if something is left to do, because the store does not
    /// sync.
    gives_up_at: Moment,
    /// Connections that are still to be closed.
    left: Vec<Key>,
    total: usize,
}

impl Shard {
    /// Stops accepting and begins to close connections, spread over `over`.
    pub(super) fn begin_drain(&mut self, over: Duration) {
        // First of all: from now on the kernel refuses new connections, which can try another
        // server.
        self.listener = None;
        let now = self.ports.now;
        let open = self.ports.conns.iter().filter(|(_, conn)| conn.is_open());
        let left: Vec<Key> = open.map(key_of).collect();
        let close_timeout = self.config.close_timeout;
        let ends_at = now.after(over).after(close_timeout);
        let gives_up_at = ends_at.after(close_timeout);
        let total = left.len();
        self.drain = Some(Drain { began_at: now, over, ends_at, gives_up_at, left, total });
    }

    /// Closes the connections whose time has come.
    pub(super) fn go_on_draining(&mut self) {
        let now = self.ports.now;
        let Some(drain) = &mut self.drain else { return };
        let over_ms = drain.over.as_millis().max(1) as u64;
        let passed_ms = (now.since(drain.began_at).as_millis() as u64).min(over_ms);
        // Counted from the beginning, so that a turn that came late closes more, and rounding
        // does not add up. Keys of connections that ended by themselves find nothing.
        let keep = drain.total - (drain.total as u64 * passed_ms / over_ms) as usize;
        let due = drain.left.split_off(keep.min(drain.left.len()));
        let all_are_told = drain.left.is_empty();
        for key in due {
            self.say_bye(key, RECONNECT_IN, "the server is going down");
            self.close(key, CloseCode::GOING_AWAY, "the server is going down");
        }
        if all_are_told {
            self.end_handshakes();
        }
    }

    /// Ends the connections that have not asked for anything yet.
    fn end_handshakes(&mut self) {
        // Done only when all devices were told: until then requests, such as for `/readyz`, are
        // answered.
        let shaking = |conn: &Conn| matches!(conn.phase, Phase::Handshake { .. });
        let conns = self.ports.conns.iter().filter(|(_, conn)| shaking(conn));
        for key in conns.map(key_of).collect::<Vec<Key>>() {
            self.remove(key, "the server goes down");
        }
    }

    pub(super) fn next_drain_step(&self) -> Option<Moment> {
        self.drain.as_ref().map(|_| self.ports.now.after(STEP))
    }

    /// Returns true if there is nothing left to do, here and on the other shards (see
    /// [`super::ending`]).
    pub(super) fn is_drained(&mut self) -> bool {
        let Some(&Drain { ends_at, gives_up_at, .. }) = self.drain.as_ref() else { return false };
        // A disk that syncs nothing must not keep the server from stopping. The records that
        // are left were never accepted.
        if self.ports.now >= gives_up_at {
            return true;
        }
        if self.ports.now >= ends_at {
            self.remove_all();
        }
        // Without a connection nothing more can be collected, such as acks that share a record.
        if self.ports.conns.is_empty() {
            self.append_rest();
        }
        // The turn has submitted and forwarded already, and nothing else may wake this shard.
        self.offer_outboxes_late();
        let inbox = &self.shared.inboxes[self.ports.shard_index()];
        if self.ports.is_at_rest() {
            inbox.rest();
        } else {
            inbox.stir();
        }
        self.shared.ending.is_over()
    }

    fn remove_all(&mut self) {
        for key in self.ports.conns.iter().map(key_of).collect::<Vec<Key>>() {
            self.remove(key, "the server goes down");
        }
    }
}

fn key_of((index, conn): (usize, &Conn)) -> Key {
    Key { index: index as u32, generation: conn.generation }
}
