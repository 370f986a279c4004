//! The rate limit on messages of one connection.

use super::Shard;
use super::conn::{Key, ReadPause};

impl Shard {
    /// Returns the nanoseconds of budget that one message costs.
    fn rate_interval_ns(&self) -> u64 {
        1_000_000_000 / u64::from(self.config.rate_limit_messages_per_s.max(1))
    }

    /// Takes one message from the connection's budget (the generic cell rate algorithm, ITU-T
    /// I.371); a connection without budget is not read until it has some again.
    pub(super) fn spend(&mut self, key: Key) {
        let (now_ns, interval_ns) = (self.ports.now_ns(), self.rate_interval_ns());
        let Some(conn) = self.ports.conn(key) else { return };
        // Never behind `now`: a connection does not save up budget while it is silent, beyond
        // the burst.
        conn.spent_until_ns = conn.spent_until_ns.max(now_ns) + interval_ns;
        // After the message, which is carried out in any case: nothing is dropped, the next one
        // waits.
        if !self.rate_limit_allows(key) {
            self.ports.pause_reading(key, ReadPause::RateLimit);
            self.schedule_next(key);
        }
    }

    /// Returns true if the connection's budget has room for one more message.
    pub(super) fn rate_limit_allows(&mut self, key: Key) -> bool {
        let (now_ns, tolerance_ns) = (self.ports.now_ns(), self.rate_tolerance_ns());
        self.ports
            .conn(key)
            .is_none_or(|conn| conn.spent_until_ns.saturating_sub(now_ns) <= tolerance_ns)
    }

    /// Returns the time by which a connection may be ahead of its rate and still send one more
    /// message.
    pub(super) fn rate_tolerance_ns(&self) -> u64 {
        let burst = self.config.rate_limit_burst.max(1);
        self.rate_interval_ns() * u64::from(burst - 1)
    }
}
