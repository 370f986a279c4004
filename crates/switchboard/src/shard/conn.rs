//! One connection: what the shard keeps of it, and its socket's reads and writes.

use std::io::{self, ErrorKind, Read, Write};

use mio::net::TcpStream;
use switchboard_broker::Moment;

use super::admission::Permit;
use super::out::{OutQueue, Spares};
use super::pipe::Pipe;
use crate::tls::Session;
use crate::ws::{Decoder, Deflate};

/// A place in the shard's slab, and which of its tenants is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// One connection. An idle one is this and nothing else: no task, no channel, no buffer.
///
/// Laid out by hand: with thousands of busy connections each message finds its sender and its
/// receiver in memory, not in the cache, and what an ordinary message touches is in the first two
/// cache lines.
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
    /// The socket may have more to read.
    pub(super) readable: bool,
    /// The peer has said that it writes no more, so a short read is not the last.
    pub(super) half_closed: bool,
    /// In the run queue.
    pub(super) queued: bool,
    /// In the list of those to be written.
    pub(super) dirty: bool,
    pub(super) protocol: Protocol,
    /// What a write may bring to an end.
    pub(super) unwritten: Unwritten,

    pub(super) out: OutQueue,
    /// Bytes that were read and not yet dealt with: an incomplete handshake, or what came in
    /// one read with the command after which reading was paused.
    pub(super) unread: Vec<u8>,
    /// When the last byte came.
    pub(super) heard_at: Moment,

    pub(super) permit: Permit,
    /// When the last ping went.
    pub(super) pinged_at: Moment,
    /// When the timer entry that counts fires.
    pub(super) timer_at: Moment,
    pub(super) full_since: Moment,
    /// The rate limit's state: the time, in nanoseconds, up to which the budget is spent.
    pub(super) spent_until_ns: u64,
    pub(super) control_frames: ControlFrames,
    /// Bytes of the message that is not complete, as they are counted.
    pub(super) unfinished: usize,
    /// When that message began; if the connection was paused meanwhile, when that ended.
    pub(super) begun_at: Moment,
    /// It sent to a mailbox, by the text protocol.
    pub(super) stores: bool,
    /// When the peer said that it writes no more, if `half_closed`.
    pub(super) half_closed_at: Moment,
}

// mio adds a field of its own to each socket in debug builds, so this holds in release builds.
const _: () = assert!(cfg!(debug_assertions) || std::mem::offset_of!(Conn, out) == 64);
const _: () = assert!(cfg!(debug_assertions) || std::mem::offset_of!(Conn, permit) == 128);

/// What a connection is in the middle of.
#[derive(Debug)]
pub(super) enum Phase {
    /// TLS, PROXY header and request head, until the deadline.
    Handshake {
        deadline: Moment,
        /// A PROXY protocol header may come first.
        awaits_proxy_header: bool,
    },
    /// A device.
    Open,
    /// HTTP over TLS whose plaintext is pumped to the HTTP server.
    Piping(Box<Pipe>),
    /// The last bytes are being written, then the peer's end is awaited, until the deadline.
    Closing { deadline: Moment, is_shut: bool },
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// The text protocol, for a device that lives as long as the connection.
    Text,
    /// The text protocol, for a device with a mailbox.
    Mailbox,
    /// v1, and the first frame has not come.
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

/// Why a connection is not read for now; several may apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReadPauses(u16);

/// Who waits until more is written; all in one byte, as each write looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unwritten(u8);

impl Unwritten {
    /// The broker, until what was pushed has been taken.
    pub(super) const PUSHED: u8 = 1;
    /// The socket did not take all of `out`, which therefore counts among what waits.
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

/// One reason not to read a connection; an index into the metric's labels, but for the last.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReadPause {
    /// It spent its rate limit.
    RateLimit,
    /// It does not read the answers to its own commands.
    OutQueue,
    /// The queue to the shard that it sends to is full.
    ShardQueue,
    /// The HTTP server does not take more for now.
    HttpPipe,
    /// The shard that owns the receiver has not said whether there is room.
    Reply,
    /// The store has as much as it may hold in memory.
    Store,
    /// Its device is not on disk yet, or the flap guard makes it wait: no `welcome` was said.
    Welcome,
    /// The out queue of the device that it sends to is over its last bound.
    Receiver,
    /// The shard has worked as much as it does in one turn; the pause ends with the read.
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

    /// Adds a reason; returns whether it is new.
    pub(super) fn add(&mut self, pause: ReadPause) -> bool {
        let is_new = !self.has(pause);
        self.0 |= 1 << pause as u16;
        is_new
    }

    pub(super) fn remove(&mut self, pause: ReadPause) {
        self.0 &= !(1 << pause as u16);
    }
}

/// Control frames and empty fragments in the current second: cheap to send, dear to answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ControlFrames {
    second: u32,
    count: u32,
}

impl ControlFrames {
    /// Counts one; returns whether it is within `max` per second.
    pub(super) fn count(&mut self, now: Moment, max: u32) -> bool {
        let second = (now.ms() / 1_000) as u32;
        if self.second != second {
            *self = ControlFrames { second, count: 0 };
        }
        self.count += 1;
        self.count <= max
    }
}

/// What a read brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filled {
    /// Bytes, in the clear.
    pub(super) len: usize,
    /// The peer will send no more.
    pub(super) is_end: bool,
}

/// How far writing came.
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

    /// Returns whether the out queue is over its bound; see [`Unwritten::FULL`].
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.unwritten.has(Unwritten::FULL)
    }

    /// Returns whether something is not written to the socket, be it in the out queue or sealed in
    /// the TLS session.
    pub(super) fn wants_write(&self) -> bool {
        !self.out.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Reads once, in the clear, into `buffer`; `cipher` is where TLS bytes pass through.
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

    /// Writes what waits; returns how far it came and how many bytes the socket took.
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
                        // The socket's buffer is full; epoll tells when there is room.
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
            if self.out.is_empty() || tls.is_handshaking() {
                return Ok((Flushed::All, sent));
            }
            let waiting = self.out.waiting();
            let sealed = tls.seal(&waiting[..waiting.len().min(SEAL_BYTES)])?;
            self.out.wrote(sealed, spares);
        }
    }
}

/// Plaintext encrypted before the next write: four TLS records.
const SEAL_BYTES: usize = 64 << 10;

impl Filled {
    fn of(len: usize) -> Filled {
        Filled { len, is_end: false }
    }
}

/// Reads once; `None` is the end of the stream, and nothing to read is 0 bytes.
///
/// A short read from a stream socket means that it is empty (epoll(7)), which saves asking again,
/// except when the peer has shut its side: then the end itself is still to be read.
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
