//! The end of a turn: batches to other shards, then one write per connection.

use std::mem;

use switchboard_broker::{Conn as BrokerConn, Input};

use super::Shard;
use super::conn::{Conn, Flushed, Key, Phase, Protocol, ReadPause, Unwritten};

impl Shard {
    /// Offers each other shard its batch; if that shard is full the batch waits until the shard
    /// wakes this one.
    pub(super) fn offer_outboxes(&mut self) {
        for shard in 0..self.ports.outboxes.len() {
            // Repeated after each batch that was taken: presence that waited beside a full batch
            // makes the next one.
            while !self.ports.outboxes[shard].batch.is_empty() && self.offer(shard) {}
        }
    }

    /// Offers a shard its batch; returns true if it took it.
    fn offer(&mut self, shard: usize) -> bool {
        let (id, max) = (self.ports.shard(), self.config.shard_queue_max_bytes);
        let outbox = &mut self.ports.outboxes[shard];
        outbox.is_refused = self.shared.inboxes[shard].offer(id, &mut outbox.batch).is_err();
        if outbox.is_refused {
            return false;
        }
        outbox.refill(max);
        for key in mem::take(&mut outbox.paused) {
            self.resume(key, ReadPause::ShardQueue);
        }
        true
    }

    /// Carries out what was decided after the turn's batches were offered: no event would begin
    /// another turn for it.
    pub(super) fn offer_outboxes_late(&mut self) {
        self.do_todos();
        self.submit_appends();
        self.offer_outboxes();
    }

    /// Writes to every connection that has something to be written.
    pub(super) fn flush_dirty(&mut self) {
        let mut dirty = mem::take(&mut self.ports.dirty);
        for key in dirty.drain(..) {
            self.flush(key);
        }
        if mem::take(&mut self.decided_late) {
            self.offer_outboxes_late();
        }
        // A write itself marks no connection dirty, but what continues after it may. Such
        // connections are written in the next turn, before which `has_work` does not let the shard
        // sleep.
        dirty.append(&mut self.ports.dirty);
        self.ports.dirty = dirty;
    }

    /// Writes to a connection before the end of the turn. It stays dirty, and is written again
    /// then: what waits for the write goes on only at that point.
    pub(super) fn flush_early(&mut self, key: Key) {
        let now = self.ports.now;
        let Some(conn) = self.ports.conns.get_mut(key.index as usize) else { return };
        if conn.generation != key.generation {
            return;
        }
        let Ok((_, sent)) = conn.flush(&mut self.ports.spares) else {
            self.decided_late = true;
            return self.remove(key, "the socket failed while writing");
        };
        if sent > 0 && conn.is_full() {
            conn.full_since = now;
        }
        self.ports.metrics.sent_bytes.add(sent as u64);
    }

    #[inline]
    fn flush(&mut self, key: Key) {
        let Some(conn) = self.ports.conns.get_mut(key.index as usize) else { return };
        if conn.generation != key.generation {
            return;
        }
        conn.dirty = false;
        let Ok((flushed, sent)) = conn.flush(&mut self.ports.spares) else {
            self.decided_late = true;
            return self.remove(key, "the socket failed while writing");
        };
        self.ports.metrics.sent_bytes.add(sent as u64);
        // `|`, not `||`: one branch, which is usually not taken.
        if !conn.is_open() | conn.unwritten.any() {
            self.after_flush(key, flushed, sent);
        }
    }

    /// Lets everything continue that waited for a write.
    fn after_flush(&mut self, key: Key, flushed: Flushed, sent: usize) {
        let now = self.ports.now;
        let max = self.config.out_queue_max_bytes;
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.unwritten.has(Unwritten::BLOCKED) {
            self.ports.count_waiting(key);
        }
        // Looked up anew each time: what the broker decides may have closed or removed it.
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.unwritten.has(Unwritten::PUSHED) && conn.has_taken_enough(max) {
            conn.unwritten.set(Unwritten::PUSHED, false);
            self.decide(Input::Drained(BrokerConn(key.index)));
            self.decided_late = true;
        }
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.is_full() {
            if conn.out.len() <= max && !conn.unwritten.has(Unwritten::PUSHED) {
                conn.unwritten.set(Unwritten::FULL, false);
                self.resume(key, ReadPause::OutQueue);
            } else if sent > 0 {
                // Any progress counts: a slow link with a long queue is no stalled device.
                conn.full_since = now;
            }
        }
        self.disperse_if_written(key);
        let Some(conn) = self.ports.conn(key) else { return };
        match &mut conn.phase {
            Phase::Piping(pipe) if pipe.is_readable() => self.enqueue(key),
            // Not before the close frame is written: a shut socket takes no more.
            Phase::Closing { is_shut: false, .. } if flushed == Flushed::All => self.shut(key),
            _ => {}
        }
    }
}

impl Conn {
    /// Returns true if the broker may go on pushing.
    fn has_taken_enough(&self, out_queue_max_bytes: usize) -> bool {
        match self.protocol {
            // A device of the text protocol acks nothing: a message counts as delivered once it is
            // written to the socket. What is encrypted and still in the TLS session would be
            // lost with the process, after its senders were told that it was delivered.
            Protocol::Mailbox => !self.wants_write(),
            _ => self.out.len() <= out_queue_max_bytes / 2,
        }
    }
}
