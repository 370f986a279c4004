//! Counts anew what is kept as sums: for tests.

use super::Stats;
use super::totals::Totals;
use crate::Broker;

impl Broker {
    /// Counts what waits and what is remembered, and says where a sum that is kept differs, or
    /// where more than `messages_max` messages are in a mailbox, or `outcomes_max` outcomes and reserved ones
    /// for them. For tests: it looks at everything.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
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
            stats.sent_ids += device.sent.len() as u64;
            if device.sent.len() > self.mailboxes.limits.dedup_ids_per_device_max {
                return Err(format!("{id:?} has {} ids", device.sent.len()));
            }
        }
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
        let (alarms, alarms_max) = self.mailboxes.timers.audit();
        // One for each reason to look at a device.
        let set_max = 5 * self.mailboxes.devices.len();
        if alarms > alarms_max || self.mailboxes.timers.len() > set_max {
            let set = self.mailboxes.timers.len();
            return Err(format!("{alarms} alarms, of which {set} count; {set_max} may"));
        }
        self.mailboxes.audit_crowd()
    }
}
