//! The mailboxes as recorded in the log of a stopped server, without the server's brokers.
//!
//! It follows the same records as the brokers' replay, but remembers no ids of messages and no
//! outcomes that are on their way, sets no timers and appends nothing.

use std::collections::{BTreeMap, HashMap};

use switchboard_broker::{DeviceRecord, EndedRecord, MessageRecord, OutcomeRecord, Record};
use switchboard_proto::v1::Outcome;

/// All mailboxes, by the id of their device.
#[derive(Debug, Default)]
pub(super) struct Mailboxes {
    devices: HashMap<String, Mailbox>,
    /// The device whose messages are kept with their bodies.
    whole: Option<String>,
}

/// The mailbox of one device.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    /// True if the device has a record of its own. Without one only its messages are known, and
    /// none of them is in force.
    pub(super) is_known: bool,
    entries: BTreeMap<u64, Entry>,
    pub(super) away_since_ms: Option<u64>,
    acked_to: u64,
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
    /// The body, for messages of the device that was asked about.
    pub(super) body: Option<String>,
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
            Record::Ended(EndedRecord { device, seq, .. }) => {
                self.of(&device.to_string()).entries.remove(seq);
            }
            Record::Device(record) => self.device(record),
            Record::Gone { device } => {
                self.devices.remove(&device.to_string());
            }
            Record::Id(_) | Record::Exchange(_) => {}
        }
    }

    fn of(&mut self, device: &str) -> &mut Mailbox {
        if !self.devices.contains_key(device) {
            self.devices.insert(device.to_owned(), Mailbox::default());
        }
        self.devices.get_mut(device).expect("it was put there")
    }

    fn message(&mut self, message: &MessageRecord<'_>) {
        let to = message.to.to_string();
        let is_whole = self.whole.as_ref() == Some(&to);
        let entry = Entry {
            from: message.from.to_string(),
            id: message.id.to_owned(),
            len: message.body.len() + message.id.len() + message.re.map_or(0, str::len),
            at_ms: message.sent_at_ms,
            expires_at_ms: message.expires_at_ms,
            receipt: message.receipt,
            outcome: None,
            body: is_whole.then(|| String::from_utf8_lossy(message.body).into_owned()),
        };
        self.of(&to).put(message.seq, entry);
    }

    fn outcome(&mut self, outcome: &OutcomeRecord<'_>) {
        let entry = Entry {
            from: outcome.of.to_string(),
            id: outcome.id.to_owned(),
            len: outcome.id.len() + outcome.reason.map_or(0, str::len),
            at_ms: outcome.at_ms,
            expires_at_ms: None,
            receipt: false,
            outcome: Some(outcome.outcome),
            body: None,
        };
        self.of(&outcome.to.to_string()).put(outcome.seq, entry);
    }

    fn device(&mut self, record: &DeviceRecord<'_>) {
        let mailbox = self.of(&record.device.to_string());
        mailbox.is_known = true;
        mailbox.away_since_ms = record.away_since_ms;
        mailbox.acked_to = mailbox.acked_to.max(record.acked_to);
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
        // A device's record may say that it acked what is copied behind it.
        if seq > self.acked_to {
            self.entries.insert(seq, entry);
        }
    }

    fn drop_acked(&mut self) {
        self.entries = self.entries.split_off(&(self.acked_to + 1));
    }

    /// Returns the entries that wait for the device.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.iter().map(|(&seq, entry)| (seq, entry))
    }

    /// Returns the first sequence number that was never given.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::{ALICE, BOB, device, ended, message, outcome};
    use super::*;

    /// Returns the entries that wait for a device after these records.
    fn waits(device: &str, records: &[Record<'_>]) -> Option<Vec<u64>> {
        let mut mailboxes = Mailboxes::default();
        records.iter().for_each(|record| mailboxes.take(record));
        let mailbox = mailboxes.find(device)?;
        Some(mailbox.waiting().map(|(seq, _)| seq).collect())
    }

    #[test]
    fn what_waits_is_what_no_record_took_out() {
        let known = device(BOB, 0);
        let [one, two, asked] = [message(1, false), message(2, false), message(3, true)];
        let acked = Record::Acked { device: BOB, seq: 3 };
        let gone = Record::Gone { device: BOB };
        for (records, expected) in [
            (vec![one, two], None),
            (vec![known, one, two], Some(vec![1, 2])),
            (vec![known, one, two, ended(2, 1)], Some(vec![1])),
            (vec![known, one, asked, acked], Some(vec![])),
            (vec![known, one, asked, ended(3, 1)], Some(vec![1])),
            (vec![known, one, asked, ended(3, 1), acked], Some(vec![])),
            (vec![known, one, two, gone], None),
            (vec![known, one, asked, gone, ended(3, 1)], None),
            // Only the sender's mailbox has the outcome.
            (vec![known, one, asked, outcome(12, 1)], Some(vec![1, 3])),
            // Copied to a later part of the log.
            (vec![one, asked, device(BOB, 1)], Some(vec![3])),
            (vec![device(BOB, 1), one, asked], Some(vec![3])),
        ] {
            assert_eq!(waits("bob", &records), expected, "{records:?}");
        }
        assert_eq!(waits("alice", &[device(ALICE, 0), outcome(12, 1)]), Some(vec![12]));
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
