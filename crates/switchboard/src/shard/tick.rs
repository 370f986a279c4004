//! Timers of connections: pings, silence, stalls, deadlines.

use std::time::Duration;

use switchboard_broker::Moment;
use switchboard_proto::v1::{HELLO_TIMEOUT, close};

use super::Shard;
use super::conn::{Conn, Key, Phase, Protocol, ReadPause};
use crate::config::Config;
use crate::ws::{CloseCode, Opcode, Refusal};

impl Shard {
    /// Returns the time until the next deadline; `None` if there is none.
    pub(super) fn until_next_timer(&self) -> Option<Duration> {
        let timers = self.ports.timers.next().into_iter().chain(self.broker.next_tick());
        let timers = timers.chain(self.next_drain_step()).chain(self.rejected.next());
        let at = timers.chain(self.crowds.next()).min()?;
        let at = at.since(self.shared.uptime);
        let left = at.saturating_sub(self.shared.started.elapsed());
        // epoll counts whole milliseconds and mio rounds up, so a deadline is never early.
        Some(left)
    }

    pub(super) fn fire_timers(&mut self) {
        let now = self.ports.now;
        self.rejected.close_due(now);
        while let Some((at, key)) = self.ports.timers.take_due(now) {
            let Some(conn) = self.ports.conn(key) else { continue };
            // Replaced by an earlier entry, as entries are not removed from the heap.
            if conn.timer_at != at {
                continue;
            }
            conn.timer_at = Moment::from_ms(u64::MAX);
            self.tick(key);
            self.schedule_next(key);
        }
        let conns = &self.ports.conns;
        self.ports.timers.compact(conns.len(), |at, key| {
            conns
                .get(key.index as usize)
                .is_some_and(|conn| conn.generation == key.generation && conn.timer_at == at)
        });
    }

    /// Schedules the next deadline of a connection.
    pub(super) fn schedule_next(&mut self, key: Key) {
        let (now, tolerance_ns) = (self.ports.now, self.rate_tolerance_ns());
        if let Some(conn) = self.ports.conn(key) {
            let at = conn.next_deadline(now, &self.config, tolerance_ns);
            self.ports.schedule(key, at);
        }
    }

    fn tick(&mut self, key: Key) {
        let now = self.ports.now;
        let Some(conn) = self.ports.conn(key) else { return };
        match conn.phase {
            Phase::Open => self.tick_open(key),
            Phase::Handshake { deadline, .. } if deadline <= now => self.time_out(key),
            Phase::Closing { deadline, .. } if deadline <= now => {
                self.remove(key, "the closing handshake took too long");
            }
            Phase::Piping(ref pipe) if pipe.deadline <= now => {
                self.remove(key, "the HTTP request took too long");
            }
            _ => {}
        }
    }

    fn time_out(&mut self, key: Key) {
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            self.ports.metrics.refused.at(crate::metrics::refused_index("tls")).add(1);
            return self.remove(key, "the TLS handshake took too long");
        }
        self.refuse(key, &Refusal::timeout());
    }

    fn tick_open(&mut self, key: Key) {
        let now = self.ports.now;
        let config = std::sync::Arc::clone(&self.config);
        if self.rate_limit_allows(key) {
            self.resume(key, ReadPause::RateLimit);
        }
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.is_full() && conn.full_since.after(config.out_queue_stall_timeout) <= now {
            return self.overflow(key);
        }
        if conn.waits_for_hello_or_welcome() && conn.hello_due() <= now {
            let (code, reason) = conn.why_not_welcomed();
            return self.close(key, code, reason);
        }
        if conn.is_too_slow(now, &config) {
            let reason = "a message was not complete within message_timeout";
            return self.close(key, CloseCode::POLICY_VIOLATION, reason);
        }
        if conn.half_closed && conn.half_closed_at.after(config.idle_timeout) <= now {
            return self.remove(key, "the peer left idle_timeout ago");
        }
        // While it is paused the silence is ours. A dead peer shows then by pings that its
        // system does not ack (TCP_USER_TIMEOUT).
        if !conn.read_pauses.any() && conn.heard_at.after(config.idle_timeout) <= now {
            return self.remove(key, "silent for idle_timeout");
        }
        if conn.ping_due(now, &config) <= now {
            conn.pinged_at = now;
            self.ports.answer_frame(key.index, Opcode::Ping, b"");
        }
    }
}

impl Conn {
    /// Returns true if a message that has begun takes too long.
    fn is_too_slow(&self, now: Moment, config: &Config) -> bool {
        // Not judged while more of it may wait in the socket, which we did not read.
        let may_be_judged = self.unfinished > 0 && !self.read_pauses.any() && !self.readable;
        may_be_judged && self.begun_at.after(config.message_timeout) <= now
    }

    /// Returns the time at which that is to be judged next.
    fn message_due(&self, now: Moment, config: &Config) -> Option<Moment> {
        /// Pause before a due message is judged again, as more of it is about to be read.
        const AGAIN: Duration = Duration::from_millis(100);
        let due = self.begun_at.after(config.message_timeout).max(now.after(AGAIN));
        (self.unfinished > 0 && !self.read_pauses.any()).then_some(due)
    }

    fn waits_for_hello_or_welcome(&self) -> bool {
        self.protocol == Protocol::Hello || self.read_pauses.has(ReadPause::Welcome)
    }

    /// Returns the time by which the first frame must have come; once it has, the time by which
    /// `welcome` must have been said.
    fn hello_due(&self) -> Moment {
        // The field serves as the start of the wait: the queue cannot be full before anything
        // was said.
        self.full_since.after(HELLO_TIMEOUT)
    }

    /// Returns the close code and reason for a connection that waited too long.
    fn why_not_welcomed(&self) -> (CloseCode, &'static str) {
        if self.read_pauses.has(ReadPause::Welcome) || self.read_pauses.has(ReadPause::Store) {
            (CloseCode::TRY_AGAIN_LATER, "the store takes too long to note your device; come back")
        } else {
            (CloseCode(close::NO_HELLO), "no hello within 10 s")
        }
    }

    /// Returns the time of the next ping, also of a paused connection: its system acks the
    /// bytes, or the connection fails.
    fn ping_due(&self, now: Moment, config: &Config) -> Moment {
        // No ping to a peer that will not answer any more, nor behind a queue that is too long
        // already.
        if self.half_closed || self.is_full() {
            return now.after(config.ping_interval);
        }
        self.heard_at.max(self.pinged_at).after(config.ping_interval)
    }

    /// Returns the earliest of the connection's deadlines.
    fn next_deadline(&self, now: Moment, config: &Config, rate_tolerance_ns: u64) -> Moment {
        match self.phase {
            Phase::Handshake { deadline, .. } | Phase::Closing { deadline, .. } => deadline,
            Phase::Piping(ref pipe) => pipe.deadline,
            Phase::Open => {
                let stall =
                    self.is_full().then(|| self.full_since.after(config.out_queue_stall_timeout));
                let hello = self.waits_for_hello_or_welcome().then(|| self.hello_due());
                let left = self.half_closed.then(|| self.half_closed_at.after(config.idle_timeout));
                let budget = self.read_pauses.has(ReadPause::RateLimit).then(|| {
                    let at_ns = self.spent_until_ns.saturating_sub(rate_tolerance_ns);
                    Moment::from_ms(at_ns.div_ceil(1_000_000))
                });
                let silence =
                    (!self.read_pauses.any()).then(|| self.heard_at.after(config.idle_timeout));
                let ping = self.ping_due(now, config);
                let message = self.message_due(now, config);
                [stall, budget, hello, left, silence, message]
                    .into_iter()
                    .flatten()
                    .fold(ping, Moment::min)
            }
        }
    }
}
