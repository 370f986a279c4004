//! The ways in which a connection ends.

use std::io;
use std::net::Shutdown;

use switchboard_broker::{Conn as BrokerConn, Input};

use super::Shard;
use super::conn::{Conn, Key, Phase, ReadPauses, Unwritten};
use crate::metrics::close_index;
use crate::ws::{CloseCode, CloseFrame, Opcode, write_close, write_server_frame};

impl Shard {
    /// Answers a close frame with its own code (RFC 6455 section 5.5.1).
    pub(super) fn close_back(&mut self, key: Key, frame: Option<CloseFrame>) {
        let code = frame.map(|frame| frame.code);
        let Some(conn) = self.ports.conn(key) else { return };
        if !conn.is_open() {
            return;
        }
        self.leave(key, code.or(Some(CloseCode::NORMAL)), "the device closed");
        let conn = &mut self.ports.conns[key.index as usize];
        let out = conn.out.buffer(&mut self.ports.spares);
        match code {
            Some(code) => write_close(out, code, ""),
            None => write_server_frame(out, Opcode::Close, b""),
        }
        self.begin_closing(key);
    }

    /// Closes a device's connection with a code and a reason.
    pub(super) fn close(&mut self, key: Key, code: CloseCode, reason: &str) {
        if !self.ports.conn(key).is_some_and(|conn| conn.is_open()) {
            return;
        }
        // Before the close frame, so that nothing is delivered behind it.
        self.leave(key, Some(code), reason);
        let conn = &mut self.ports.conns[key.index as usize];
        write_close(conn.out.buffer(&mut self.ports.spares), code, reason);
        self.begin_closing(key);
    }

    /// Writes what waits, then awaits the peer's end, both within `close_timeout`.
    pub(super) fn begin_closing(&mut self, key: Key) {
        let deadline = self.ports.now.after(self.config.close_timeout);
        let Some(conn) = self.ports.conn(key) else { return };
        conn.phase = Phase::Closing { deadline, is_shut: false };
        conn.link = None;
        // From here on only the deadline bounds the wait, and the peer is read to its end,
        // whatever had paused it; input that is not dealt with yet no longer counts.
        conn.unwritten.set(Unwritten::FULL, false);
        conn.read_pauses = ReadPauses::default();
        conn.unread = Vec::new();
        conn.decoder.abandon();
        self.ports.count_unfinished(key, 0);
        self.ports.count_waiting(key);
        self.ports.mark_dirty(key);
        self.ports.schedule(key, deadline);
        self.enqueue(key);
    }

    /// Closes a connection whose out queue is over its last bound (see [`super::crowded`]).
    pub(super) fn overflow(&mut self, key: Key) {
        if self.ports.conn(key).is_some_and(|conn| conn.is_open()) {
            self.ports.metrics.out_queue_overflows.add(1);
            self.close(key, CloseCode::TOO_SLOW, "too slow: messages wait and are not read");
        }
    }

    /// Forgets a connection at once.
    pub(super) fn remove(&mut self, key: Key, why: &'static str) {
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.is_open() {
            self.leave(key, None, why);
        }
        self.ports.count_unfinished(key, 0);
        self.ports.waiting.forget(key.index);
        self.ports.conns.remove(key.index as usize);
    }

    /// Removes a device from the broker, so that from now on no sender finds it.
    pub(super) fn leave(&mut self, key: Key, code: Option<CloseCode>, why: &str) {
        let now = self.ports.now();
        let conn = BrokerConn(key.index);
        let device = self.broker.device(conn);
        self.note_ended(self.broker.ends_with(conn));
        self.broker.handle(now, Input::Disconnected(conn), &mut |effect| {
            self.ports.perform(effect);
        });
        self.disperse(key);
        let metrics = &self.ports.metrics;
        metrics.closed.at(close_index(code)).add(1);
        metrics.connections.add(1u64.wrapping_neg());
        if let Some(device) = device {
            let code = code.map(|code| code.0);
            let device = self.shared.directory.names().show(device);
            tracing::debug!(device = %device.as_ref(), code, why, "device disconnected");
        }
    }

    /// Shuts our sending side, and awaits the peer's end.
    pub(super) fn shut(&mut self, key: Key) {
        let Some(conn) = self.ports.conn(key) else { return };
        // Only half closed, and read to its end first: closed now, with unread bytes in it, the
        // socket would send a reset, which can overtake the close frame.
        match conn.say_no_more() {
            // The socket has no room for the TLS alert; it is sent when there is, within the
            // deadline.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.remove(key, "closed"),
            Ok(()) => {}
        }
        if let Phase::Closing { is_shut, .. } = &mut conn.phase {
            *is_shut = true;
        }
        if conn.half_closed {
            // Its end may have been reported already, and edge-triggered epoll does not repeat it.
            conn.readable = true;
            self.enqueue(key);
        }
    }
}

impl Conn {
    fn say_no_more(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.send_close();
            while tls.wants_write() {
                tls.write_to(&mut self.socket)?;
            }
        }
        self.socket.shutdown(Shutdown::Write)
    }
}
