//! A connection: its state in the shard, and its socket's reads and writes.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use mio::net::TcpStream;
use switchboard_broker::Moment;

use super::admission::Permit;
use super::out::{OutQueue, Spares};
use super::pipe::Pipe;
use crate::tls::Session;
use crate::ws::{Decoder, Deflate};

/// Key of a connection: an index into the shard's slab, and a generation that tells the connection
/// from earlier ones at the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// One connection. An idle one is this entry and nothing else: no task, no channel, no buffer.
///
/// Laid out by hand, with the fields that an ordinary message touches in the first two cache lines:
/// with thousands of busy connections a message finds neither its sender's nor its receiver's entry
/// in the cache.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Conn {
    pub(super) socket: TcpStream,
    pub(super) generation: u32,
    pub(super) decoder: Decoder,
    pub(super) phase: Phase,
    pub(super) tls: Option<Box<Session>>,
    pub(super) deflate: Option<Box<Compression>>,
    pub(super) read_pauses: ReadPauses,
    /// Set while the socket may have more to read.
    pub(super) readable: bool,
    /// Set once the peer has shut its sending side (EPOLLRDHUP): then even a short read must be
    /// followed by another, to find the end of the stream.
    pub(super) half_closed: bool,
    /// Set while it is in the run queue.
    pub(super) queued: bool,
    /// Set while it is in the list of connections to be written.
    pub(super) dirty: bool,
    pub(super) protocol: Protocol,
    /// Conditions that a write may end.
    pub(super) unwritten: Unwritten,

    pub(super) out: OutQueue,
    /// Bytes that were read and not yet dealt with: an incomplete handshake, or the rest of a read
    /// behind the command after which reading was paused.
    pub(super) unread: Vec<u8>,
    /// Time of the last byte from the peer; a pause that ends counts as one.
    pub(super) heard_at: Moment,

    pub(super) permit: Permit,
    /// Time of the last ping.
    pub(super) pinged_at: Moment,
    /// Time of the timer entry that counts.
    pub(super) timer_at: Moment,
    /// Time since which the out queue is full and the socket takes nothing of it; until
    /// `welcome` is said, the time at which waiting for it began.
    pub(super) full_since: Moment,
    /// State of the rate limit: the time, in nanoseconds, up to which the budget is spent.
    pub(super) spent_until_ns: u64,
    pub(super) control_frames: ControlFrames,
    /// Bytes of the incomplete message, as counted last.
    pub(super) unfinished: usize,
    /// Time at which that message began, or at which the last read pause since then ended.
    pub(super) begun_at: Moment,
    /// Set once it sent to a mailbox by the text protocol.
    pub(super) stores: bool,
    /// Time at which the peer shut its sending side, if `half_closed`.
    pub(super) half_closed_at: Moment,
    /// Shared with fetches for its session, so that the reader of the store skips those that nobody
    /// waits for any more.
    pub(super) link: Option<Arc<()>>,
}

// Only in release builds: in debug builds mio adds a field of its own to each socket.
const _: () = assert!(cfg!(debug_assertions) || std::mem::offset_of!(Conn, out) == 64);
const _: () = assert!(cfg!(debug_assertions) || std::mem::offset_of!(Conn, permit) == 128);

/// Phase of a connection.
#[derive(Debug)]
pub(super) enum Phase {
    /// PROXY header, TLS handshake and request head, until the deadline.
    Handshake {
        deadline: Moment,
        /// A PROXY protocol header may come first.
        awaits_proxy_header: bool,
    },
    /// WebSocket.
    Open,
    /// HTTP over TLS whose plaintext is pumped to the HTTP server.
    Piping(Box<Pipe>),
    /// The last bytes are being written, then the peer's end is awaited, until the deadline.
    /// `is_shut` is set once our sending side is shut.
    Closing { deadline: Moment, is_shut: bool },
}

/// Protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// The text protocol, for a device that lives as long as the connection.
    Text,
    /// The text protocol, for a device with a mailbox.
    Mailbox,
    /// v1, whose first frame has not come.
    Hello,
    /// v1.
    V1,
}

/// permessage-deflate on one connection.
#[derive(Debug)]
pub(super) enum Compression {
    /// Contexts that forget, which the whole shard shares.
    Shared,
    /// Contexts that remember.
    Own(Box<Deflate>),
}

/// The reasons for which a connection is not read for now; several may apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReadPauses(u16);

/// Conditions that a write may end; in one byte, as each write looks at all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unwritten(u8);

impl Unwritten {
    /// The broker waits until the connection has taken what was pushed.
    pub(super) const PUSHED: u8 = 1;
    /// The socket did not take all of `out`, whose memory is therefore counted in `Waiting`.
    pub(super) const BLOCKED: u8 = 2;
    /// The out queue is over its bound, without progress since `full_since`.
    pub(super) const FULL: u8 = 4;

    #[inline]
    pub(super) fn any(self) -> bool {
        self.0 != 0
    }

    #[inline]
    pub(super) fn has(self, what: u8) -> bool {
        self.0 & what != 0
    }

    pub(super) fn set(&mut self, what: u8, is_set: bool) {
        self.0 = if is_set { self.0 | what } else { self.0 & !what };
    }
}

/// One reason not to read a connection. All but the last are indexes into the metric's labels.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReadPause {
    /// It spent its rate limit.
    RateLimit,
    /// It does not read the answers to its own commands.
    OutQueue,
    /// The queue to the shard that it sends to is full.
    ShardQueue,
    /// The HTTP server takes no more of its request for now.
    HttpPipe,
    /// The shard that owns the receiver has not replied yet whether it has room for the text.
    Reply,
    /// Too much is not durable; see `Budget`.
    Store,
    /// No `welcome` was said: its device is not on disk yet, or the flap guard makes it wait.
    Welcome,
    /// The out queue of the device that it sends to is over `OVERFLOW_FACTOR` times its bound.
    Receiver,
    /// The shard has done enough work for one turn; this pause ends with the read.
    Turn,
}

impl ReadPauses {
    #[inline]
    pub(super) fn any(self) -> bool {
        self.0 != 0
    }

    pub(super) fn has(self, pause: ReadPause) -> bool {
        self.0 & 1 << pause as u16 != 0
    }

    /// Adds a reason; returns true if it is new.
    pub(super) fn add(&mut self, pause: ReadPause) -> bool {
        let is_new = !self.has(pause);
        self.0 |= 1 << pause as u16;
        is_new
    }

    pub(super) fn remove(&mut self, pause: ReadPause) {
        self.0 &= !(1 << pause as u16);
    }
}

/// Counter of control frames and empty fragments in the current second: they cost a client less to
/// send than the shard to answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ControlFrames {
    second: u32,
    count: u32,
}

impl ControlFrames {
    /// Counts one; returns true if it is within `max` per second.
    pub(super) fn count(&mut self, now: Moment, max: u32) -> bool {
        let second = (now.ms() / 1_000) as u32;
        if self.second != second {
            *self = ControlFrames { second, count: 0 };
        }
        self.count += 1;
        self.count <= max
    }
}

/// Result of a read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filled {
    /// Number of bytes, decrypted.
    pub(super) len: usize,
    /// True if the peer will send no more.
    pub(super) is_end: bool,
}

/// Outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Nothing waits, in the TLS session either.
    All,
    /// The socket takes no more for now.
    Blocked,
}

impl Conn {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Returns true if the out queue is over its bound; see [`Unwritten::FULL`].
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.unwritten.has(Unwritten::FULL)
    }

    /// Returns true if something is not written to the socket, be it in the out queue or
    /// encrypted in the TLS session.
    pub(super) fn wants_write(&self) -> bool {
        !self.out.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Reads once, decrypted, into `buffer`; `cipher` is memory for the TLS bytes.
    pub(super) fn fill(&mut self, buffer: &mut [u8], cipher: &mut [u8]) -> io::Result<Filled> {
        let Some(tls) = &mut self.tls else {
            let len = read(&mut self.socket, &mut self.readable, self.half_closed, buffer)?;
            return Ok(len.map_or(Filled { len: 0, is_end: true }, Filled::of));
        };
        let len = read(&mut self.socket, &mut self.readable, self.half_closed, cipher)?;
        let Some(len) = len else { return Ok(Filled { len: 0, is_end: true }) };
        let opened = tls.open(&cipher[..len], buffer)?;
        Ok(Filled { len: opened.len, is_end: opened.is_end })
    }

    /// Writes what waits; returns the outcome and the number of bytes that the socket took.
    #[inline]
    pub(super) fn flush(&mut self, spares: &mut Spares) -> io::Result<(Flushed, usize)> {
        if self.tls.is_some() {
            return self.flush_tls(spares);
        }
        let mut sent = 0;
        while !self.out.is_empty() {
            let waiting = self.out.waiting();
            match self.socket.write(waiting) {
                Ok(len) => {
                    let is_short = len < waiting.len();
                    sent += len;
                    self.out.wrote(len, spares);
                    if is_short {
                        // The socket's buffer is full (epoll(7)): another write would only
                        // return EAGAIN. An event says when there is room.
                        self.unwritten.set(Unwritten::BLOCKED, true);
                        return Ok((Flushed::Blocked, sent));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unwritten.set(Unwritten::BLOCKED, true);
                    return Ok((Flushed::Blocked, sent));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((Flushed::All, sent))
    }

    fn flush_tls(&mut self, spares: &mut Spares) -> io::Result<(Flushed, usize)> {
        let tls = self.tls.as_mut().expect("only TLS connections come here");
        let mut sent = 0;
        loop {
            while tls.wants_write() {
                match tls.write_to(&mut self.socket) {
                    Ok(len) => sent += len,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.unwritten.set(Unwritten::BLOCKED, true);
                        return Ok((Flushed::Blocked, sent));
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            // During the handshake plaintext stays in `out`, where its bytes are counted.
            if self.out.is_empty() || tls.is_handshaking() {
                return Ok((Flushed::All, sent));
            }
            // A part at a time: none of our bounds counts what is in the TLS session.
            let waiting = self.out.waiting();
            let sealed = tls.seal(&waiting[..waiting.len().min(SEAL_BYTES)])?;
            self.out.wrote(sealed, spares);
        }
    }
}

/// Bytes of plaintext that are encrypted before the next write: four TLS records.
const SEAL_BYTES: usize = 64 << 10;

impl Filled {
    fn of(len: usize) -> Filled {
        Filled { len, is_end: false }
    }
}

/// Reads once; returns `None` at the end of the stream, and 0 bytes if there is nothing to read.
#[inline]
fn read(
    socket: &mut TcpStream,
    readable: &mut bool,
    half_closed: bool,
    buffer: &mut [u8],
) -> io::Result<Option<usize>> {
    loop {
        match socket.read(buffer) {
            Ok(0) => return Ok(None),
            Ok(len) => {
                // A short read from a stream socket means that it is empty (epoll(7)), which
                // saves a read that returns EAGAIN. But not if the peer has shut its side: the
                // end of the stream is still to be read, and edge-triggered epoll does not tell
                // of it again.
                *readable = len == buffer.len() || half_closed;
                return Ok(Some(len));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                *readable = false;
                return Ok(Some(0));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
