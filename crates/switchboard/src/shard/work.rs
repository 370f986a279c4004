//! A bound on what one turn does for what it reads, where that costs far more than the bytes show.
//!
//! A read of 64 KiB can ask for a thousand times as much: a compressed message is inflated, 1,900 `devices`
//! are answered with a page each, which is deflated, and 200 `refresh` have a signature verified each. All of
//! it is counted in one unit, about what a byte costs to inflate, so that one bound holds for any mixture.

use super::Shard;
use super::conn::{Key, ReadPause};
use super::ports::Ports;

/// When a shard has done so much in a turn, it reads nobody any more before the next: some milliseconds.
const WORK_PER_TURN: usize = 1 << 20;

/// A byte that is deflated takes about as long as so many that are inflated.
const WORK_PER_DEFLATED_BYTE: usize = 8;

/// A token that is verified: 16 in a turn, as TLS handshakes, which the same signatures make slow.
const WORK_PER_TOKEN: usize = WORK_PER_TURN / 16;

/// Messages are also deflated that nobody asked for in this turn: from other shards, and out of mailboxes.
/// When it comes to so many bytes, the rest of the turn's messages go uncompressed, as RFC 7692 section 6
/// allows for each.
const DEFLATED_BYTES_PER_TURN: usize = 1 << 20;

/// What a turn has done.
#[derive(Debug, Default)]
pub(super) struct Work {
    done: usize,
    deflated_bytes: usize,
}

impl Work {
    /// Returns whether nobody is to be read any more in this turn.
    #[inline]
    pub(super) fn is_enough(&self) -> bool {
        self.done >= WORK_PER_TURN
    }

    /// Returns whether one more message may be deflated.
    pub(super) fn may_deflate(&self) -> bool {
        self.deflated_bytes < DEFLATED_BYTES_PER_TURN
    }
}

impl Ports {
    /// Notes that so many bytes were deflated.
    pub(super) fn note_deflated(&mut self, bytes: usize) {
        self.work.deflated_bytes += bytes;
        self.note_work(self.speaking, bytes.saturating_mul(WORK_PER_DEFLATED_BYTE));
    }

    /// Notes that the connection whose command is being carried out was answered so many bytes: a page
    /// of devices costs about as much as to inflate it.
    pub(super) fn note_answered(&mut self, bytes: usize) {
        self.note_work(self.speaking, bytes);
    }

    /// Notes work that was done for a connection. If that is enough for a turn, the connection is not
    /// read on; the pause ends with the read ([`Shard::serve`]).
    fn note_work(&mut self, key: Option<Key>, work: usize) {
        self.work.done = self.work.done.saturating_add(work);
        if self.work.is_enough()
            && let Some(conn) = key.and_then(|key| self.conn(key))
            && conn.is_open()
        {
            conn.read_pauses.add(ReadPause::Turn);
        }
    }
}

impl Shard {
    /// Notes that so many bytes were inflated for a connection.
    pub(super) fn note_inflated(&mut self, key: Key, bytes: usize) {
        self.ports.note_work(Some(key), bytes);
    }

    /// Notes that a token was verified for a connection.
    pub(super) fn note_verified(&mut self, key: Key) {
        self.ports.note_work(Some(key), WORK_PER_TOKEN);
    }
}
