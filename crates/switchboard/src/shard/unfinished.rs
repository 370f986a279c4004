//! Messages that have begun and are not complete, with a bound on the memory of all of them.

use std::collections::VecDeque;

use switchboard_broker::Moment;

use super::Shard;
use super::budget::Share;
use super::conn::{Conn, Key};
use super::ports::Ports;
use crate::ws::CloseCode;

/// The unfinished messages of one shard.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Their bytes.
    bytes: usize,
    share: Share,
    /// The oldest first. An entry counts while its connection has a message that began at that
    /// time.
    order: VecDeque<(Moment, Key)>,
}

/// Number of entries that are not worth compacting.
const SLACK: usize = 64;

impl Ports {
    /// Counts a connection that was read, and had or has a message that is not complete.
    #[cold]
    pub(super) fn note_unfinished(&mut self, key: Key) {
        let now = self.now;
        let Some(conn) = self.conn(key) else { return };
        let begins = conn.decoder.take_begun();
        // The memory of one that is closing is free already.
        let bytes = if conn.is_open() { conn.decoder.incomplete_bytes() } else { 0 };
        if begins && bytes > 0 {
            conn.begun_at = now;
            self.unfinished.order.push_back((now, key));
            self.schedule(key, now.after(self.config.message_timeout));
        }
        self.count_unfinished(key, bytes);
    }

    /// Counts what a connection's unfinished message takes now.
    pub(super) fn count_unfinished(&mut self, key: Key, bytes: usize) {
        let Some(conn) = self.conns.get_mut(key.index as usize) else { return };
        let had = std::mem::replace(&mut conn.unfinished, bytes);
        self.unfinished.bytes = self.unfinished.bytes - had + bytes;
        if self.unfinished.share.change(bytes as isize - had as isize) {
            self.unfinished.share.publish(&self.shared.unfinished);
        }
    }

    fn is_unfinished(&self, at: Moment, key: Key) -> bool {
        let is_it = |conn: &&Conn| conn.generation == key.generation && conn.begun_at == at;
        self.conns.get(key.index as usize).filter(is_it).is_some_and(|conn| conn.unfinished > 0)
    }
}

impl Shard {
    /// Restarts `message_timeout` for the unfinished message of a connection whose read pause has
    /// ended.
    pub(super) fn excuse_unfinished(&mut self, key: Key) {
        // The message could not go on during the pause.
        let now = self.ports.now;
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.unfinished > 0 {
            conn.begun_at = now;
            self.ports.unfinished.order.push_back((now, key));
            self.ports.schedule(key, now.after(self.config.message_timeout));
        }
    }

    /// Gives the oldest messages up while all shards together have too many bytes of them, and
    /// this one more than its share. If the bound is passed, at least one shard is above its
    /// share.
    #[inline]
    pub(super) fn bound_unfinished(&mut self) {
        let unfinished = &mut self.ports.unfinished;
        if unfinished.bytes == 0 && unfinished.share.is_published() {
            return;
        }
        unfinished.share.publish(&self.shared.unfinished);
        self.compact_unfinished();
        if self.shared.unfinished.bytes() > self.config.unfinished_messages_max_bytes {
            self.give_up_unfinished();
        }
    }

    #[cold]
    fn give_up_unfinished(&mut self) {
        let max = self.config.unfinished_messages_max_bytes;
        let share = max / self.shared.inboxes.len();
        while self.ports.unfinished.bytes > share
            && self.shared.unfinished.bytes() > max
            && let Some((at, key)) = self.ports.unfinished.order.pop_front()
        {
            if self.ports.is_unfinished(at, key) {
                let reason = "too many messages are incomplete (unfinished_messages_max_bytes), \
                              and yours was begun first";
                self.close(key, CloseCode::TRY_AGAIN_LATER, reason);
                self.ports.unfinished.share.publish(&self.shared.unfinished);
            }
        }
        self.offer_outboxes_late();
    }

    /// Drops entries that no longer count, once they are the majority.
    fn compact_unfinished(&mut self) {
        if self.ports.unfinished.order.len() > 2 * self.ports.conns.len() + SLACK {
            let mut order = std::mem::take(&mut self.ports.unfinished.order);
            order.retain(|&(at, key)| self.ports.is_unfinished(at, key));
            self.ports.unfinished.order = order;
        }
    }
}
