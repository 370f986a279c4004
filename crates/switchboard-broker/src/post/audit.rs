//! Counts anew what is kept as sums: for tests.

use super::Stats;
use crate::Broker;

impl Broker {
    /// Counts what waits and what is remembered, and says where a sum that is kept differs, or
    /// where more than `messages_max` messages are in a mailbox, or `outcomes_max` outcomes and places
    /// for them. For tests: it looks at everything.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub fn audit(&self, messages_max: usize, outcomes_max: usize) -> Result<(), String> {
        let mut stats = Stats::default();
        for (id, device) in &self.post.devices {
            let (messages, bytes) =
                device.mailbox.audit().map_err(|fault| format!("{id:?}: {fault}"))?;
            let outcomes = device.mailbox.outcomes();
            if messages > messages_max + outcomes || outcomes > outcomes_max {
                return Err(format!("{id:?}: {messages} wait, {outcomes} outcomes"));
            }
            stats.mailboxes += u64::from(!device.is_ephemeral);
            stats.sessions += u64::from(device.session.is_some());
            stats.messages += messages as u64;
            stats.bytes += bytes as u64;
            stats.memory += device.mailbox.memory() as u64;
            stats.sent_ids += device.sent.len() as u64;
            if device.sent.len() > self.post.limits.dedup_ids_per_device_max {
                return Err(format!("{id:?} has {} ids", device.sent.len()));
            }
        }
        if stats != self.post.stats {
            return Err(format!("counted {stats:?}, kept {:?}", self.post.stats));
        }
        let (alarms, alarms_max) = self.post.timers.audit();
        // One for each reason to look at a device.
        let set_max = 5 * self.post.devices.len();
        if alarms > alarms_max || self.post.timers.len() > set_max {
            let set = self.post.timers.len();
            return Err(format!("{alarms} alarms, of which {set} count; {set_max} may"));
        }
        self.post.audit_crowd()
    }
}
