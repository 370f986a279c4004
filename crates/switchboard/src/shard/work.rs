//! A bound on the work that one turn does for what it reads, which may cost far more than the read.
//!
//! A read of 64 KiB can ask for a thousand times as much work: a compressed message is inflated,
//! 1,900 `devices` are answered with a page each, which is deflated, and 200 `refresh` have a
//! signature verified each. All of it is counted in one unit, about what a byte costs to inflate,
//! so that one bound is enough for any mixture.

use super::Shard;
use super::conn::{Key, ReadPause};
use super::ports::Ports;

/// Work, some milliseconds of it, after which a shard reads no connection any more in this turn.
const WORK_PER_TURN: usize = 1 << 20;

/// Work of deflating one byte, which takes about as long as inflating this many bytes.
const WORK_PER_DEFLATED_BYTE: usize = 8;

/// Work of verifying a token: a turn verifies 16, as many as TLS handshakes, whose time also goes
/// into such signatures.
const WORK_PER_TOKEN: usize = WORK_PER_TURN / 16;

/// Work of ending one watch of a connection that is gone, a look-up under a lock that all shards
/// share; or of evicting one message of an ephemeral device. A thousand connections, each with a
/// thousand of them, may be reset at once.
const WORK_PER_END: usize = 512;

/// Bytes deflated in a turn after which its other messages go uncompressed, as RFC 7692 section 6
/// allows for each message. Unlike work for a read, messages from other shards and out of mailboxes
/// cannot be put off.
const DEFLATED_BYTES_PER_TURN: usize = 1 << 20;

/// Work done in this turn.
#[derive(Debug, Default)]
pub(super) struct Work {
    done: usize,
    deflated_bytes: usize,
}

impl Work {
    /// Returns true if no connection is to be read any more in this turn.
    #[inline]
    pub(super) fn is_enough(&self) -> bool {
        self.done >= WORK_PER_TURN
    }

    /// Returns true if one more message may be deflated.
    pub(super) fn may_deflate(&self) -> bool {
        self.deflated_bytes < DEFLATED_BYTES_PER_TURN
    }
}

impl Ports {
    /// Notes that this many bytes were deflated.
    pub(super) fn note_deflated(&mut self, bytes: usize) {
        self.work.deflated_bytes += bytes;
        self.note_work(self.speaking, bytes.saturating_mul(WORK_PER_DEFLATED_BYTE));
    }

    /// Notes that the connection whose command is being carried out was sent this many bytes as an
    /// answer.
    pub(super) fn note_answered(&mut self, bytes: usize) {
        // To write a page of devices costs about as much as to inflate it.
        self.note_work(self.speaking, bytes);
    }

    /// Notes work that was done for a connection. If that is enough for a turn, the connection is
    /// paused until the end of its read ([`Shard::serve`]).
    fn note_work(&mut self, key: Option<Key>, work: usize) {
        self.work.done = self.work.done.saturating_add(work);
        // The pause makes `decode` keep the rest of what was read. Without it one read would go
        // on to its end, however much each of its commands costs.
        if self.work.is_enough()
            && let Some(conn) = key.and_then(|key| self.conn(key))
            && conn.is_open()
        {
            conn.read_pauses.add(ReadPause::Turn);
        }
    }
}

impl Shard {
    /// Notes that this many bytes were inflated for a connection.
    pub(super) fn note_inflated(&mut self, key: Key, bytes: usize) {
        self.ports.note_work(Some(key), bytes);
    }

    /// Notes that a connection is about to end, and with it this many watches and messages.
    pub(super) fn note_ended(&mut self, ends: usize) {
        self.ports.note_work(None, ends * WORK_PER_END);
    }

    /// Notes that a token was verified for a connection.
    pub(super) fn note_verified(&mut self, key: Key) {
        self.ports.note_work(Some(key), WORK_PER_TOKEN);
    }
}
