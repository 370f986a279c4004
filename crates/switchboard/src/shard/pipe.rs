//! HTTP over TLS: the shard does the TLS and pumps plaintext to the HTTP server and back.
//!
//! The pipe is a pair of connected Unix sockets, so that its bound and its wake-ups are the
//! kernel's, and the HTTP server reads a socket as it would without TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;

use mio::net::UnixStream;
use switchboard_broker::Moment;

use super::out::{OutQueue, Spares};

/// The shard's end of a pipe to the HTTP server.
#[derive(Debug)]
pub(super) struct Pipe {
    socket: UnixStream,
    readable: bool,
    /// Time at which the connection ends at the latest.
    pub(super) deadline: Moment,
}

/// Bytes taken from the HTTP server per turn; more wait in the pipe.
const TAKE_BYTES: usize = 64 << 10;

impl Pipe {
    pub(super) fn new(socket: UnixStream, deadline: Moment) -> Pipe {
        Pipe { socket, readable: true, deadline }
    }

    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    pub(super) fn became_readable(&mut self) {
        self.readable = true;
    }

    /// Passes plaintext to the HTTP server; returns the number of bytes that the pipe took.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut passed = 0;
        while passed < bytes.len() {
            match self.socket.write(&bytes[passed..]) {
                Ok(len) => passed += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(passed)
    }

    /// Tells the HTTP server that no more of the request will come.
    pub(super) fn end_request(&mut self) {
        // Fails only if the other end is gone, which a read of it shows.
        let _: io::Result<()> = self.socket.shutdown(Shutdown::Write);
    }

    /// Takes a part of the HTTP server's answer; returns true if the answer has ended.
    pub(super) fn take(&mut self, out: &mut OutQueue, spares: &mut Spares) -> io::Result<bool> {
        // A client that does not read fills the pipe behind `out`, and so stops the HTTP server.
        if !self.readable || out.len() >= TAKE_BYTES {
            return Ok(false);
        }
        let buffer = out.buffer(spares);
        let start = buffer.len();
        buffer.resize(start + TAKE_BYTES, 0);
        let read = loop {
            match self.socket.read(&mut buffer[start..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        buffer.truncate(start + *read.as_ref().unwrap_or(&0));
        // Returns the buffer to `spares` if nothing was read into it.
        out.wrote(0, spares);
        match read {
            Ok(0) => Ok(true),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
