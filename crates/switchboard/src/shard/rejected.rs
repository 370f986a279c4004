//! Sockets that were told 503 when they were accepted, and are about to be closed.
//!
//! If a socket is closed while received bytes are unread, or if bytes arrive after it was closed,
//! the kernel sends a reset. The reset can overtake the 503, or make the client's system discard
//! it. So only the sending side is shut, which tells the client that the answer is complete, and
//! the socket is kept for a while.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;
use switchboard_broker::Moment;

use crate::ws::Refusal;

/// Most sockets kept by one shard. They are beyond `max_connections`, so they must be few; in a
/// crowd the oldest is closed for the next.
pub(super) const KEPT_MAX: usize = 16;

/// Most bytes that are read of a socket before it is closed: a client sends no more at once.
const READ_MAX: usize = 64 << 10;

/// The sockets, by the time at which they are closed.
#[derive(Debug, Default)]
pub(super) struct Rejected {
    kept: VecDeque<(TcpStream, Moment)>,
}

impl Rejected {
    /// Tells a socket that there is no room, and closes it at `deadline`, which is never earlier
    /// than the last one's.
    pub(super) fn add(&mut self, mut socket: TcpStream, deadline: Moment) {
        say_busy(&mut socket);
        if self.kept.len() == KEPT_MAX
            && let Some((oldest, _)) = self.kept.pop_front()
        {
            close(oldest);
        }
        self.kept.push_back((socket, deadline));
    }

    /// Returns the time at which the first of them is to be closed.
    pub(super) fn next(&self) -> Option<Moment> {
        self.kept.front().map(|(_, deadline)| *deadline)
    }

    /// Closes the sockets whose time has come.
    pub(super) fn close_due(&mut self, now: Moment) {
        while self.next().is_some_and(|deadline| deadline <= now)
            && let Some((socket, _)) = self.kept.pop_front()
        {
            close(socket);
        }
    }
}

/// Tells a socket that cannot be kept, for want of a file descriptor, that there is no room.
pub(super) fn say_busy_and_close(mut socket: TcpStream) {
    say_busy(&mut socket);
    close(socket);
}

/// Writes the 503, as a best effort: it fits into the buffer of any new socket.
fn say_busy(socket: &mut TcpStream) {
    let mut answer = Vec::new();
    Refusal::busy("This server holds as many connections as it can.").write(&mut answer);
    let _: io::Result<usize> = socket.write(&answer);
    let _: io::Result<()> = socket.shutdown(Shutdown::Write);
}

fn close(mut socket: TcpStream) {
    // Unread bytes would make the close a reset.
    let (mut buffer, mut left) = ([0; 4_096], READ_MAX);
    while left > 0
        && let Ok(len @ 1..) = socket.read(&mut buffer)
    {
        left = left.saturating_sub(len);
    }
}
