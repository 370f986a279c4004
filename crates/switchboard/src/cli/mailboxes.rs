//! The mailboxes as recorded in the log of a stopped server, without the server's brokers.
//!
//! It follows the same records as the brokers' replay, but remembers no ids of sent messages,
//! sets no timers and appends nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use switchboard_broker::{DeviceRecord, EndedRecord, MessageRecord, OutcomeRecord, Record};
use switchboard_proto::v1::Outcome;

/// All mailboxes, by the id of their device.
#[derive(Debug, Default)]
pub(super) struct Mailboxes {
    devices: HashMap<String, Mailbox>,
    /// The device whose messages are kept with their bodies.
    whole: Option<String>,
    /// Hashes of the messages whose outcome is recorded: a copy of one may come after that
    /// record.
    ended: HashSet<u64>,
    hasher: RandomState,
    /// Number of places where a damaged log has lost records.
    gaps: u32,
}

/// The mailbox of one device.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    /// True if the device has a record of its own. Without one only its messages are known, and
    /// none of them is in force.
    pub(super) is_known: bool,
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) away_since_ms: Option<u64>,
    acked_to: u64,
    pushed_to: u64,
    /// Numbers below this one may have been given.
    next_seq: u64,
}

/// A message, or the outcome of one.
#[derive(Debug)]
pub(super) struct Entry {
    /// The sender of a message; for an outcome, the message's receiver.
    pub(super) from: String,
    /// The message's id.
    pub(super) id: String,
    pub(super) len: usize,
    pub(super) at_ms: u64,
    pub(super) expires_at_ms: Option<u64>,
    pub(super) receipt: bool,
    pub(super) outcome: Option<Outcome>,
    /// The end of a message that was not acked, and whose outcome is not recorded yet.
    pub(super) end: Option<End>,
    /// The body, for messages of the device that was asked about.
    pub(super) body: Option<String>,
    /// Number of gaps in a damaged log before its record.
    gaps: u32,
}

/// See [`EndedRecord`].
#[derive(Debug)]
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) at_ms: u64,
    pub(super) maybe_seen: bool,
    pub(super) reason: Option<String>,
}

impl Mailboxes {
    /// Creates an empty set that will keep the bodies of one device's messages.
    pub(super) fn with_bodies_of(device: Option<&str>) -> Mailboxes {
        Mailboxes { whole: device.map(str::to_owned), ..Mailboxes::default() }
    }

    /// Applies the next record.
    pub(super) fn take(&mut self, record: &Record<'_>) {
        match record {
            Record::Message(message) => self.message(message),
            Record::Outcome(outcome) => self.outcome(outcome),
            Record::Acked { device, seq } => {
                let mailbox = self.of(&device.to_string());
                mailbox.acked_to = mailbox.acked_to.max(*seq);
                mailbox.drop_acked();
            }
            Record::Removed { device, seq } => {
                self.of(&device.to_string()).entries.remove(seq);
            }
            Record::Ended(ended) => self.ended(ended),
            Record::Device(record) => self.device(record),
            Record::Gone { device } => {
                self.devices.remove(&device.to_string());
            }
            Record::Id(_) => {}
        }
    }

    /// As [`switchboard_broker::Broker::all_may_have_been_pushed`].
    pub(super) fn all_may_have_been_pushed(&mut self) {
        for mailbox in self.devices.values_mut() {
            mailbox.pushed_to = mailbox.pushed_to.max(mailbox.next_seq() - 1);
        }
    }

    /// Notes that records are lost here, or may be.
    pub(super) fn gap(&mut self) {
        self.gaps += 1;
    }

    /// Returns the acked messages with a requested outcome and a gap after them: the lost
    /// records may say that they ended differently, and that their senders were told so.
    pub(super) fn doubtful(&self) -> impl Iterator<Item = (&str, u64)> {
        self.devices.iter().flat_map(|(id, mailbox)| {
            let acked = mailbox.entries.range(..=mailbox.acked_to);
            let doubtful = acked.filter(|(_, entry)| {
                entry.receipt && entry.end.is_none() && entry.gaps < self.gaps
            });
            doubtful.map(|(&seq, _)| (id.as_str(), seq))
        })
    }

    fn of(&mut self, device: &str) -> &mut Mailbox {
        if !self.devices.contains_key(device) {
            self.devices.insert(device.to_owned(), Mailbox::default());
        }
        self.devices.get_mut(device).expect("it was put there")
    }

    fn message(&mut self, message: &MessageRecord<'_>) {
        let to = message.to.to_string();
        let key = (&to, message.seq, message.from.to_string(), message.id);
        if message.receipt && self.ended.contains(&self.hasher.hash_one(key)) {
            return;
        }
        let is_whole = self.whole.as_ref() == Some(&to);
        let entry = Entry {
            from: message.from.to_string(),
            id: message.id.to_owned(),
            len: message.body.len() + message.id.len() + message.re.map_or(0, str::len),
            at_ms: message.sent_at_ms,
            expires_at_ms: message.expires_at_ms,
            receipt: message.receipt,
            outcome: None,
            end: None,
            body: is_whole.then(|| String::from_utf8_lossy(message.body).into_owned()),
            gaps: self.gaps,
        };
        self.of(&to).put(message.seq, entry);
    }

    fn outcome(&mut self, outcome: &OutcomeRecord<'_>) {
        let of = outcome.of.to_string();
        let key = (&of, outcome.of_seq, outcome.to.to_string(), outcome.id);
        self.ended.insert(self.hasher.hash_one(key));
        self.of(&of).entries.remove(&outcome.of_seq);
        let entry = Entry {
            from: outcome.of.to_string(),
            id: outcome.id.to_owned(),
            len: outcome.id.len() + outcome.reason.map_or(0, str::len),
            at_ms: outcome.at_ms,
            expires_at_ms: None,
            receipt: false,
            outcome: Some(outcome.outcome),
            end: None,
            body: None,
            gaps: self.gaps,
        };
        self.of(&outcome.to.to_string()).put(outcome.seq, entry);
    }

    fn ended(&mut self, ended: &EndedRecord<'_>) {
        let EndedRecord { outcome, at_ms, maybe_seen, .. } = *ended;
        let entry = self.of(&ended.device.to_string()).entries.get_mut(&ended.seq);
        if let Some(entry) = entry.filter(|entry| entry.receipt) {
            let reason = ended.reason.map(str::to_owned);
            entry.end = Some(End { outcome, at_ms, maybe_seen, reason });
        }
    }

    fn device(&mut self, record: &DeviceRecord<'_>) {
        let mailbox = self.of(&record.device.to_string());
        mailbox.is_known = true;
        mailbox.away_since_ms = record.away_since_ms;
        mailbox.acked_to = mailbox.acked_to.max(record.acked_to);
        mailbox.pushed_to = mailbox.pushed_to.max(record.pushed_to);
        mailbox.next_seq = mailbox.next_seq.max(record.reserved_to);
        mailbox.drop_acked();
    }

    /// Returns the mailboxes in force, by their devices' ids.
    pub(super) fn sorted(&self) -> Vec<(&str, &Mailbox)> {
        let known = self.devices.iter().filter(|(_, mailbox)| mailbox.is_known);
        let mut sorted: Vec<_> = known.map(|(id, mailbox)| (id.as_str(), mailbox)).collect();
        // Numbers in numeric order, before names.
        sorted.sort_by_key(|(id, _)| (id.parse::<u64>().unwrap_or(u64::MAX), *id));
        sorted
    }

    /// Returns the devices that have messages but no record of their own, each with a sequence
    /// number above all of its own.
    pub(super) fn unknown(&self) -> Vec<(&str, u64)> {
        let unknown = self.devices.iter().filter(|(_, it)| !it.is_known && !it.entries.is_empty());
        unknown.map(|(id, mailbox)| (id.as_str(), mailbox.next_seq())).collect()
    }

    /// Returns the number of messages and outcomes that wait, for all devices.
    pub(super) fn waiting(&self) -> usize {
        self.devices.values().map(|mailbox| mailbox.waiting().count()).sum()
    }

    pub(super) fn find(&self, device: &str) -> Option<&Mailbox> {
        self.devices.get(device).filter(|mailbox| mailbox.is_known)
    }
}

impl Mailbox {
    fn put(&mut self, seq: u64, entry: Entry) {
        self.next_seq = self.next_seq.max(seq + 1);
        // A record that was copied to a later part of the log may have been acked before.
        if seq > self.acked_to || entry.receipt {
            self.entries.insert(seq, entry);
        }
    }

    /// Drops acked entries, except those whose requested outcome is not recorded yet.
    fn drop_acked(&mut self) {
        let behind = self.entries.split_off(&(self.acked_to + 1));
        self.entries.retain(|_, entry| entry.receipt);
        self.entries.extend(behind);
    }

    /// Returns the entries that wait for the device.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (u64, &Entry)> {
        let entries = self.entries.range(self.acked_to + 1..);
        entries.filter(|(_, entry)| entry.end.is_none()).map(|(&seq, entry)| (seq, entry))
    }

    /// Returns true if the device has acked this entry, whose outcome is not recorded yet.
    pub(super) fn is_acked(&self, seq: u64) -> bool {
        seq <= self.acked_to
    }

    /// Returns true if the device may have seen the entry. For one that was connected when the
    /// server ended, that is unknown.
    pub(super) fn may_have_seen(&self, seq: u64) -> bool {
        self.away_since_ms.is_none() || seq <= self.pushed_to
    }

    /// Returns the first sequence number that was never given.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::{ALICE, BOB, device, message, outcome, refused};
    use super::*;

    /// Returns the entries that wait for a device, and the number of all its entries, after
    /// these records.
    fn waits(device: &str, records: &[Record<'_>]) -> Option<(Vec<u64>, usize)> {
        let mut mailboxes = Mailboxes::default();
        records.iter().for_each(|record| mailboxes.take(record));
        let mailbox = mailboxes.find(device)?;
        Some((mailbox.waiting().map(|(seq, _)| seq).collect(), mailbox.entries.len()))
    }

    #[test]
    fn what_waits_is_what_no_record_took_out() {
        let (known, seq) = (device(BOB, 0), 2);
        let [one, two, asked] = [message(1, false), message(2, false), message(3, true)];
        let acked = Record::Acked { device: BOB, seq: 3 };
        let (refused, outcome_of_asked) = (refused(3), outcome(12, 3));
        for (records, expected) in [
            (vec![one, two], None),
            (vec![known, one, two], Some((vec![1, 2], 2))),
            (vec![known, one, two, Record::Removed { device: BOB, seq }], Some((vec![1], 1))),
            // Acked, and the outcome is not recorded yet.
            (vec![known, one, asked, acked], Some((vec![], 1))),
            (vec![known, one, asked, acked, outcome_of_asked], Some((vec![], 0))),
            // Refused, and the outcome is not recorded yet.
            (vec![known, one, asked, refused], Some((vec![1], 2))),
            (vec![known, one, asked, refused, outcome_of_asked], Some((vec![1], 1))),
            (vec![known, one, asked, outcome_of_asked, refused], Some((vec![1], 1))),
            (vec![known, one, two, Record::Gone { device: BOB }], None),
            // Copied to a later part of the log, after the record that removed it.
            (vec![known, acked, one], Some((vec![], 0))),
            (vec![known, asked, outcome_of_asked, asked], Some((vec![], 0))),
            (vec![one, device(BOB, 1)], Some((vec![], 0))),
        ] {
            assert_eq!(waits("bob", &records), expected, "{records:?}");
        }
        assert_eq!(waits("alice", &[device(ALICE, 0), outcome_of_asked]), Some((vec![12], 1)));
    }

    #[test]
    fn numbers_that_may_have_been_given_are_not_free() {
        let mut mailboxes = Mailboxes::default();
        for (record, free) in [(device(ALICE, 0), 9), (outcome(12, 1), 13), (device(ALICE, 12), 13)]
        {
            mailboxes.take(&record);
            assert_eq!(mailboxes.find("alice").map(Mailbox::next_seq), Some(free));
        }
    }
}
