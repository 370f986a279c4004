//! Audit of the sums and tables that a broker keeps, for tests.

use super::entry::Entry;
use super::totals::Totals;
use super::{Device, Stats};
use crate::Broker;
use crate::shrink::{self, KEPT, KEPT_BY_SHARD};

impl Broker {
    /// Counts everything anew and compares it with the sums that are kept, and with their
    /// bounds: at most `messages_max` messages in a mailbox, and `outcomes_max` outcomes, the
    /// reserved ones included. For tests, as it looks at everything.
    ///
    /// # Errors
    ///
    /// A text about the first sum that differs, or bound that is exceeded.
    pub fn audit(&self, messages_max: usize, outcomes_max: usize) -> Result<(), String> {
        let (mut stats, mut all) = (Stats::default(), Totals::default());
        for (id, device) in &self.mailboxes.devices {
            let totals = device.mailbox.audit().map_err(|fault| format!("{id:?}: {fault}"))?;
            let messages = totals.messages;
            let outcomes = device.mailbox.outcomes();
            if messages > messages_max + outcomes || outcomes > outcomes_max {
                return Err(format!("{id:?}: {messages} wait, {outcomes} outcomes"));
            }
            stats.mailboxes += u64::from(!device.is_ephemeral);
            stats.sessions += u64::from(device.session.is_some());
            stats.recount(Totals::default(), totals);
            all += totals;
            device.audit_memory().map_err(|fault| format!("{id:?}: {fault}"))?;
        }
        let outcomes = self.mailboxes.exchanges.totals();
        stats.recount(Totals::default(), outcomes);
        all += outcomes;
        self.mailboxes.exchanges.audit()?;
        self.mailboxes.asked.audit()?;
        let (counted, kept) =
            ((stats, all.anonymous), (self.mailboxes.stats, self.mailboxes.anonymous));
        if counted != kept {
            return Err(format!("counted {counted:?}, kept {kept:?}"));
        }
        let (stored, in_all) = (all.anonymous.stored, self.directory.anonymous_stored());
        if stored > in_all || self.mailboxes.shards == 1 && stored != in_all {
            return Err(format!("{stored} bytes of anonymous devices, in all {in_all}"));
        }
        let (receipts, in_all) = (all.receipts, self.directory.receipts());
        if receipts > in_all || self.mailboxes.shards == 1 && receipts != in_all {
            return Err(format!("{receipts} receipts, in all {in_all}"));
        }
        if stats.memory > self.mailboxes.limits.memory_messages_max_bytes as u64 {
            return Err(format!("{} bytes in memory", stats.memory));
        }
        let mut stale = self.mailboxes.stale_records.iter();
        if let Some(id) = stale.find(|id| !self.mailboxes.devices.contains_key(id)) {
            return Err(format!("{id:?} is no more, and its record is to be made up for"));
        }
        self.mailboxes.announcements.audit()?;
        self.mailboxes.timers.audit(self.mailboxes.devices.len())?;
        self.mailboxes.endings.audit(self.mailboxes.devices.len())?;
        self.mailboxes.window.audit(&self.mailboxes.window_max())?;
        self.audit_memory()
    }

    /// Describes everything that a replay has restored, one line for each thing and in no order, so
    /// that replays can be compared. For tests.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (&id, device) in &self.mailboxes.devices {
            let Device { mailbox_name, mailbox, since_ms, away_since, recorded_at, .. } = &**device;
            let shown = self.show(id);
            let marks = (mailbox.next_seq(), mailbox.acked_to(), mailbox.pushed_to());
            let times = (since_ms, away_since, recorded_at);
            lines.push(format!("{shown:?} {mailbox_name} {marks:?} {times:?}"));
            for entry in mailbox.iter() {
                let from = self.show(entry.from);
                let Entry { seq, position, expires_at, len, state, kind, .. } = entry;
                let place = (seq, position, len);
                lines.push(format!(
                    "{shown:?} {place:?} {from:?} {expires_at:?} {state:?} {kind:?}"
                ));
            }
        }
        for (pair, exchange) in self.mailboxes.exchanges.iter() {
            lines.push(format!("{pair:?} {}", exchange.describe(|device| self.show(device))));
        }
        lines.extend(self.mailboxes.window.describe(|device| self.show(device)));
        lines
    }

    /// Fails if a table of the shard has not given back memory that it does not need.
    fn audit_memory(&self) -> Result<(), String> {
        let mailboxes = &self.mailboxes;
        shrink::audit("devices", &mailboxes.devices, KEPT_BY_SHARD)?;
        shrink::audit("appends", &mailboxes.pending, KEPT_BY_SHARD)?;
        shrink::audit("envelopes", &mailboxes.local, KEPT_BY_SHARD)?;
        shrink::audit("devices that have ended", &mailboxes.gone, KEPT_BY_SHARD)?;
        shrink::audit("deferred requests", &mailboxes.deferred, KEPT_BY_SHARD)?;
        shrink::audit("waiting connections", &mailboxes.waiting, KEPT_BY_SHARD)?;
        shrink::audit("connections", &self.conns, KEPT_BY_SHARD)
    }
}

impl Device {
    /// Fails if a table has not given back memory that it does not need. The mailbox audits its
    /// own.
    fn audit_memory(&self) -> Result<(), String> {
        self.receipts.iter().try_for_each(|set| shrink::audit("receipts", set.as_ref(), KEPT))
    }
}
