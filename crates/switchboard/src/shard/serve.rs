//! Input of a turn: bytes of a connection become events, and events become decisions.

use std::mem;

use switchboard_broker::Conn as BrokerConn;

use super::budget::Pause;
use super::conn::{Key, Phase, Protocol, ReadPause};
use super::mailboxes::HELLO_MAX_BYTES;
use super::{READ_BYTES, Shard};
use crate::ws::{CloseCode, Decoded, Event, Opcode, Violation, write_client_frame};

/// Most control frames and empty fragments that a connection may send in a second; above that it is
/// closed with 1008. Clients ping every few seconds at most, and 100 pongs a second have no
/// measurable cost.
const CONTROL_FRAMES_PER_S_MAX: u32 = 100;

impl Shard {
    /// Reads a connection once and deals with its input.
    pub(super) fn serve(&mut self, key: Key) {
        let Some(conn) = self.ports.conn(key) else { return };
        conn.queued = false;
        let has_backlog = !conn.unread.is_empty();
        if conn.is_in_tls_handshake(&self.shared) && !self.begin_handshake(key) {
            return;
        }
        // First, as it came before what is read now. It may pause reading again.
        if has_backlog {
            self.deal_with_backlog(key);
        }
        if self.ports.conn(key).is_some_and(|conn| conn.readable && !conn.read_pauses.any()) {
            let mut buffer = mem::take(&mut self.buffer);
            self.read(key, &mut buffer);
            self.buffer = buffer;
        }
        self.pump_answer(key);
        self.go_on(key);
    }

    /// Deals with the input that was kept when reading was paused.
    fn deal_with_backlog(&mut self, key: Key) {
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.unread.is_empty() || conn.read_pauses.any() {
            return;
        }
        // In a handshake it is an incomplete head, which waits for the next read.
        if !matches!(conn.phase, Phase::Handshake { .. }) {
            let mut backlog = mem::take(&mut conn.unread);
            self.deal_with_input(key, &mut backlog);
        }
    }

    fn read(&mut self, key: Key, buffer: &mut [u8]) {
        let now = self.ports.now;
        let Some(conn) = self.ports.conns.get_mut(key.index as usize) else { return };
        let filled = conn.fill(buffer, &mut self.cipher);
        if filled.as_ref().is_ok_and(|filled| filled.len > 0) {
            conn.heard_at = now;
        }
        if conn.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
            self.ports.mark_dirty(key);
        }
        let filled = match filled {
            Ok(filled) => filled,
            Err(error) => return self.read_failed(key, &error),
        };
        // Over TLS both may come in one read: what was said before the end still counts.
        if filled.len > 0 {
            self.ports.metrics.received_bytes.add(filled.len as u64);
            self.deal_with_input(key, &mut buffer[..filled.len]);
        }
        if filled.is_end {
            self.peer_ended(key);
        }
    }

    /// Handles the end of a peer's stream.
    fn peer_ended(&mut self, key: Key) {
        let Some(conn) = self.ports.conn(key) else { return };
        conn.readable = false;
        match &mut conn.phase {
            // A half-closed client may still read the answer to its request. Without TLS such a
            // request has left the shard with its socket.
            Phase::Piping(pipe) => pipe.end_request(),
            Phase::Closing { is_shut: false, .. } if conn.tls.is_some() => {}
            _ => self.remove(key, "the peer ended the connection"),
        }
    }

    pub(super) fn read_failed(&mut self, key: Key, error: &std::io::Error) {
        let Some(conn) = self.ports.conns.get_mut(key.index as usize) else { return };
        if let Some(tls) = &mut conn.tls
            && error.kind() == std::io::ErrorKind::InvalidData
        {
            if tls.is_handshaking() {
                self.ports.metrics.refused.at(crate::metrics::refused_index("tls")).add(1);
                tracing::debug!(peer = %conn.permit.address(), %error, "TLS handshake failed");
            }
            // The alert says what was wrong; if it does not fit now, it is not worth waiting for.
            while tls.wants_write() && tls.write_to(&mut conn.socket).is_ok() {}
        }
        self.remove(key, "the socket failed while reading");
    }

    /// Deals with decrypted bytes, by the connection's phase.
    fn deal_with_input(&mut self, key: Key, bytes: &mut [u8]) {
        let Some(conn) = self.ports.conn(key) else { return };
        match &mut conn.phase {
            Phase::Open => self.frames(key, bytes),
            Phase::Handshake { .. } => self.handshake(key, bytes),
            Phase::Piping(_) => self.pump_request(key, bytes),
            // Read and dropped: unread bytes in a socket that is closed would cause a reset.
            Phase::Closing { .. } => {}
        }
    }

    /// Puts the connection at the end of the run queue if it may have more to read.
    fn go_on(&mut self, key: Key) {
        let Some(conn) = self.ports.conn(key) else { return };
        conn.read_pauses.remove(ReadPause::Turn);
        if (conn.readable || !conn.unread.is_empty() && conn.is_open()) && !conn.read_pauses.any() {
            self.enqueue(key);
        }
    }

    /// Deals with frames; bytes behind a command that pauses reading are kept.
    pub(super) fn frames(&mut self, key: Key, bytes: &mut [u8]) {
        // Before a read, not before each frame: the rest of one read is allowed for
        // (`Budget::overrun_bytes`). Only texts of devices without a mailbox are looked at one by
        // one (`put_back`).
        if self.ports.pause != Pause::Nobody {
            self.ports.pause_if_it_stores(key);
        }
        if self.decode(key, bytes) {
            self.ports.note_unfinished(key);
        }
    }

    /// Decodes frames and deals with their events; returns true if one of them came in pieces.
    fn decode(&mut self, key: Key, bytes: &mut [u8]) -> bool {
        let (mut at, mut any_pieces) = (0, false);
        while at < bytes.len() {
            // Looked up for each frame: the one before may have closed, removed or paused it.
            let Some(conn) = self.ports.conns.get_mut(key.index as usize) else { break };
            if conn.generation != key.generation || !conn.is_open() {
                break;
            }
            if conn.read_pauses.any() {
                conn.unread.extend_from_slice(&bytes[at..]);
                break;
            }
            let protocol = conn.protocol;
            let outcome = match conn.decoder.decode(&mut bytes[at..]) {
                Ok(Decoded { consumed, event, in_pieces }) => {
                    at += consumed;
                    any_pieces |= in_pieces;
                    event.map_or(Ok(()), |event| self.event(key, protocol, event))
                }
                Err(violation) => Err(violation),
            };
            if let Err(violation) = outcome {
                self.close(key, violation.close_code(), &violation.to_string());
                break;
            }
            if self.ports.leaving.is_some() {
                self.forward_leaving(&bytes[at..]);
                break;
            }
        }
        any_pieces
    }

    #[inline]
    fn event(&mut self, key: Key, protocol: Protocol, event: Event<'_>) -> Result<(), Violation> {
        match event {
            Event::Text(message) => self.message(key, protocol, &message),
            Event::Binary(bytes) => {
                // The original reads a binary frame as text, too.
                simdutf8::basic::from_utf8(&bytes).map_err(|_| Violation::NotUtf8)?;
                self.rare_message(key, protocol, &bytes);
            }
            Event::Compressed { payload, .. } => self.inflate(key, protocol, &payload)?,
            Event::Ping(payload) => self.pong(key, &payload),
            Event::Pong(_) | Event::EmptyFragment => self.count_control_frame(key),
            Event::Close(frame) => self.close_back(key, frame),
        }
        Ok(())
    }

    /// Deals with a message that came binary or compressed.
    #[inline(never)]
    fn rare_message(&mut self, key: Key, protocol: Protocol, message: &[u8]) {
        self.message(key, protocol, message);
    }

    // As a call it would cost 2 % of the instructions of a short text.
    #[inline(always)]
    fn message(&mut self, key: Key, protocol: Protocol, message: &[u8]) {
        if self.ports.pause != Pause::Nobody && self.put_back(key, protocol, message) {
            return;
        }
        self.ports.speaking = Some(key);
        match protocol {
            Protocol::Text | Protocol::Mailbox => {
                let now = self.ports.now();
                let conn = BrokerConn(key.index);
                self.broker.said(now, conn, message, &mut |effect| self.ports.perform(effect));
            }
            Protocol::V1 => self.v1_frame(key, message),
            Protocol::Hello => self.first_frame(key, message),
        }
        self.ports.speaking = None;
        self.do_todos();
        if self.config.rate_limit_messages_per_s > 0 {
            self.spend(key);
        }
    }

    /// Keeps a text to a mailbox for later if the budget has no room; returns true if it did,
    /// or closed the connection.
    #[cold]
    fn put_back(&mut self, key: Key, protocol: Protocol, message: &[u8]) -> bool {
        // Other connections that could send to a mailbox were paused before this was read.
        if protocol != Protocol::Text || !self.broker.goes_to_mailbox(message) {
            return false;
        }
        let Some(conn) = self.ports.conn(key) else { return true };
        conn.stores = true;
        if message.len() > READ_BYTES {
            // No more input of a paused connection is kept than one read brings.
            let reason = "the store can take no more for now; send it again later";
            self.close(key, CloseCode::TRY_AGAIN_LATER, reason);
            return true;
        }
        // Kept as a frame again, whose mask is zero because the text is unmasked already; the rest
        // of the read is appended behind it.
        write_client_frame(&mut conn.unread, Opcode::Text, message, [0; 4]);
        self.ports.pause_for_store(key);
        true
    }

    fn inflate(&mut self, key: Key, protocol: Protocol, payload: &[u8]) -> Result<(), Violation> {
        let max = self.config.max_message_bytes;
        let max = if protocol == Protocol::Hello { max.min(HELLO_MAX_BYTES) } else { max };
        let mut inflated = mem::take(&mut self.inflated);
        inflated.clear();
        let Some(deflate) = self.ports.inflater(key) else { return Ok(()) };
        let result = deflate.inflate(payload, max, &mut inflated);
        self.note_inflated(key, inflated.len());
        result.map_err(|error| error.violation(max))?;
        simdutf8::basic::from_utf8(&inflated).map_err(|_| Violation::NotUtf8)?;
        self.rare_message(key, protocol, &inflated);
        // One large message must not keep its memory for ever.
        inflated.shrink_to(super::READ_BYTES);
        self.inflated = inflated;
        Ok(())
    }

    fn pong(&mut self, key: Key, payload: &[u8]) {
        self.ports.answer_frame(key.index, Opcode::Pong, payload);
        self.count_control_frame(key);
    }

    fn count_control_frame(&mut self, key: Key) {
        let now = self.ports.now;
        let max = CONTROL_FRAMES_PER_S_MAX;
        if self.ports.conn(key).is_some_and(|conn| !conn.control_frames.count(now, max)) {
            let reason = format!("more than {max} control frames or empty fragments per second");
            self.close(key, CloseCode::POLICY_VIOLATION, &reason);
        }
    }
}
