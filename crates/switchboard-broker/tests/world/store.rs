//! The store in miniature: one log of records that are synced from the front, and what a crash
//! leaves of it.

use std::collections::{BTreeMap, VecDeque};

use switchboard_broker::{
    DeviceRecord, Digest, EndedOf, EndedRecord, ExchangeRecord, IdRecord, MessageRecord, Moment,
    OutcomeRecord, PartitionId, Position, Record,
};
use switchboard_proto::v1::{Outcome, PublicId};

/// The log, and what is on its way into it.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// Synced records, by rising position.
    pub(crate) durable: VecDeque<(Position, Stored)>,
    /// Records submitted and not synced, with the shard that waits, in the order of the log.
    pub(crate) unsynced: VecDeque<(usize, Stored)>,
    /// By shard: records appended and not submitted.
    pub(crate) batches: Vec<Vec<Stored>>,
    /// By shard: positions of synced records of which it was not told.
    pub(crate) untold: Vec<Vec<Position>>,
    /// By shard: number of records appended in this run, and of those that are synced.
    pub(crate) appended: Vec<u64>,
    pub(crate) synced: Vec<u64>,
    pub(crate) last_position: u64,
    pub(crate) is_failing: bool,
    pub(crate) is_full: bool,
    /// True while the sync that is under way does not return.
    pub(crate) is_hung: bool,
    /// Position up to which the log was compacted.
    compacted_to: u64,
}

impl Store {
    pub(crate) fn begin(&mut self, shards: usize) {
        self.unsynced.clear();
        self.batches = vec![Vec::new(); shards];
        self.untold = vec![Vec::new(); shards];
        self.appended = vec![0; shards];
        self.synced = vec![0; shards];
        (self.is_failing, self.is_full, self.is_hung) = (false, false, false);
    }

    pub(crate) fn append(&mut self, shard: usize, record: Stored) {
        self.appended[shard] += 1;
        self.batches[shard].push(record);
    }

    /// Ends a shard's turn: its appended records get their place in the order of the log.
    pub(crate) fn submit(&mut self, shard: usize) {
        let batch = std::mem::take(&mut self.batches[shard]);
        self.unsynced.extend(batch.into_iter().map(|record| (shard, record)));
    }

    /// Syncs the oldest `count` records.
    pub(crate) fn sync(&mut self, count: usize) {
        for (shard, record) in self.unsynced.drain(..count) {
            self.last_position += 1;
            let position = Position(self.last_position);
            self.durable.push_back((position, record));
            self.untold[shard].push(position);
            self.synced[shard] += 1;
        }
    }

    /// Skips positions of records whose write failed; they are written again behind.
    pub(crate) fn skip_positions(&mut self, count: u64) {
        self.last_position += count;
    }

    /// Returns the record at a position, unless it was compacted.
    pub(crate) fn read(&self, position: Position) -> Option<&Stored> {
        let found = self.durable.binary_search_by_key(&position, |(position, _)| *position);
        assert!(
            found.is_ok() || position.0 <= self.compacted_to,
            "nothing was ever at {position:?} (the log ends at {})",
            self.last_position
        );
        found.ok().map(|index| &self.durable[index].1)
    }

    /// Deletes the oldest records, up to this position.
    pub(crate) fn compact(&mut self, to: Position) {
        while self.durable.front().is_some_and(|(position, _)| *position <= to) {
            self.durable.pop_front();
        }
        self.compacted_to = self.compacted_to.max(to.0);
    }

    /// Replaces the log by a backup.
    pub(crate) fn restore(&mut self, backup: VecDeque<(Position, Stored)>) {
        self.durable = backup;
        self.compacted_to = 0;
    }

    /// Returns the position of the last record in the log.
    pub(crate) fn end(&self) -> Position {
        self.durable.back().map_or(Position(0), |(position, _)| *position)
    }

    /// Returns the number up to which each device acked, by the log.
    pub(crate) fn acked_to(&self) -> BTreeMap<PublicId, u64> {
        let mut acked = BTreeMap::new();
        for (_, stored) in &self.durable {
            let (device, seq) = match stored {
                Stored::Acked { device, seq } => (device, *seq),
                Stored::Device(record) => (&record.device, record.acked_to),
                Stored::Gone { device } => {
                    acked.remove(device);
                    continue;
                }
                _ => continue,
            };
            let to = acked.entry(device.clone()).or_default();
            *to = seq.max(*to);
        }
        acked
    }

    /// Returns whether the log, or what is on its way into it, says that a device exists.
    pub(crate) fn knows(&self, device: &PublicId) -> bool {
        let durable = self.durable.iter().map(|(_, stored)| stored);
        let unsynced = self.unsynced.iter().map(|(_, stored)| stored);
        let says = |stored: &Stored| match stored {
            Stored::Device(record) => (record.device == *device).then_some(true),
            Stored::Gone { device: gone } => (gone == device).then_some(false),
            _ => None,
        };
        let all = durable.chain(unsynced).chain(self.batches.iter().flatten());
        all.rev().find_map(says) == Some(true)
    }

    /// Returns whether everything that was appended is on disk, and all shards were told.
    pub(crate) fn is_idle(&self) -> bool {
        self.unsynced.is_empty()
            && self.batches.iter().all(Vec::is_empty)
            && self.untold.iter().all(Vec::is_empty)
    }
}

/// A record that owns its parts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stored {
    Message(Message),
    Outcome(OutcomeOf),
    Acked { device: PublicId, seq: u64 },
    Ended(Ended),
    Device(StoredDevice),
    Gone { device: PublicId },
    Id(Id),
    Exchange(ExchangeRecord),
}

/// See [`MessageRecord`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) to: PublicId,
    pub(crate) seq: u64,
    from: PublicId,
    id: String,
    is_id_taken: bool,
    body: Vec<u8>,
    re: Option<String>,
    sent_at_ms: u64,
    at: Moment,
    expires_at_ms: Option<u64>,
    receipt: bool,
}

/// See [`OutcomeRecord`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutcomeOf {
    pub(crate) to: PublicId,
    pub(crate) seq: u64,
    id: String,
    of: PublicId,
    source: PartitionId,
    number: u64,
    outcome: Outcome,
    at_ms: u64,
    maybe_seen: bool,
    reason: Option<String>,
}

/// See [`EndedRecord`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    device: PublicId,
    seq: u64,
    outcome: Outcome,
    at_ms: u64,
    maybe_seen: bool,
    reason: Option<String>,
    of: Option<(PublicId, String, Option<u64>)>,
}

/// See [`DeviceRecord`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredDevice {
    pub(crate) device: PublicId,
    mailbox: u64,
    reserved_to: u64,
    acked_to: u64,
    pushed_to: u64,
    away_since_ms: Option<u64>,
}

/// See [`IdRecord`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Id {
    to: PublicId,
    from: PublicId,
    key: Digest,
    content: Digest,
    seq: u64,
    is_cancelled: bool,
    at: Moment,
}

impl From<&Record<'_>> for Stored {
    fn from(record: &Record<'_>) -> Stored {
        match *record {
            Record::Message(message) => Stored::Message(message.into()),
            Record::Outcome(outcome) => Stored::Outcome(outcome.into()),
            Record::Acked { device, seq } => Stored::Acked { device: device.into(), seq },
            Record::Ended(ended) => Stored::Ended(ended.into()),
            Record::Device(record) => Stored::Device(record.into()),
            Record::Gone { device } => Stored::Gone { device: device.into() },
            Record::Id(id) => Stored::Id(id.into()),
            Record::Exchange(record) => Stored::Exchange(record),
        }
    }
}

impl Stored {
    /// Returns it as the broker reads it.
    pub(crate) fn record(&self) -> Record<'_> {
        match self {
            Stored::Message(message) => Record::Message(message.record()),
            Stored::Outcome(outcome) => Record::Outcome(outcome.record()),
            Stored::Acked { device, seq } => Record::Acked { device: device.as_ref(), seq: *seq },
            Stored::Ended(ended) => Record::Ended(ended.record()),
            Stored::Device(record) => Record::Device(record.record()),
            Stored::Gone { device } => Record::Gone { device: device.as_ref() },
            Stored::Id(id) => Record::Id(id.record()),
            Stored::Exchange(record) => Record::Exchange(*record),
        }
    }
}

impl From<MessageRecord<'_>> for Message {
    fn from(record: MessageRecord<'_>) -> Message {
        Message {
            to: record.to.into(),
            seq: record.seq,
            from: record.from.into(),
            id: record.id.into(),
            is_id_taken: record.is_id_taken,
            body: record.body.into(),
            re: record.re.map(Into::into),
            sent_at_ms: record.sent_at_ms,
            at: record.at,
            expires_at_ms: record.expires_at_ms,
            receipt: record.receipt,
        }
    }
}

impl Message {
    pub(crate) fn record(&self) -> MessageRecord<'_> {
        MessageRecord {
            to: self.to.as_ref(),
            seq: self.seq,
            from: self.from.as_ref(),
            id: &self.id,
            is_id_taken: self.is_id_taken,
            body: &self.body,
            re: self.re.as_deref(),
            sent_at_ms: self.sent_at_ms,
            at: self.at,
            expires_at_ms: self.expires_at_ms,
            receipt: self.receipt,
        }
    }
}

impl From<OutcomeRecord<'_>> for OutcomeOf {
    fn from(record: OutcomeRecord<'_>) -> OutcomeOf {
        OutcomeOf {
            to: record.to.into(),
            seq: record.seq,
            id: record.id.into(),
            of: record.of.into(),
            source: record.source,
            number: record.number,
            outcome: record.outcome,
            at_ms: record.at_ms,
            maybe_seen: record.maybe_seen,
            reason: record.reason.map(Into::into),
        }
    }
}

impl OutcomeOf {
    pub(crate) fn record(&self) -> OutcomeRecord<'_> {
        OutcomeRecord {
            to: self.to.as_ref(),
            seq: self.seq,
            id: &self.id,
            of: self.of.as_ref(),
            source: self.source,
            number: self.number,
            outcome: self.outcome,
            at_ms: self.at_ms,
            maybe_seen: self.maybe_seen,
            reason: self.reason.as_deref(),
        }
    }
}

impl From<EndedRecord<'_>> for Ended {
    fn from(record: EndedRecord<'_>) -> Ended {
        let EndedRecord { device, seq, outcome, at_ms, maybe_seen, reason, of } = record;
        let reason = reason.map(Into::into);
        let of = of.map(|of| (of.from.into(), of.id.to_owned(), of.number));
        Ended { device: device.into(), seq, outcome, at_ms, maybe_seen, reason, of }
    }
}

impl Ended {
    fn record(&self) -> EndedRecord<'_> {
        EndedRecord {
            device: self.device.as_ref(),
            seq: self.seq,
            outcome: self.outcome,
            at_ms: self.at_ms,
            maybe_seen: self.maybe_seen,
            reason: self.reason.as_deref(),
            of: self.of.as_ref().map(|(from, id, number)| EndedOf {
                from: from.as_ref(),
                id,
                number: *number,
            }),
        }
    }
}

impl From<DeviceRecord<'_>> for StoredDevice {
    fn from(record: DeviceRecord<'_>) -> StoredDevice {
        let DeviceRecord { device, mailbox, reserved_to, acked_to, pushed_to, away_since_ms } =
            record;
        let device = device.into();
        StoredDevice { device, mailbox, reserved_to, acked_to, pushed_to, away_since_ms }
    }
}

impl StoredDevice {
    fn record(&self) -> DeviceRecord<'_> {
        DeviceRecord {
            device: self.device.as_ref(),
            mailbox: self.mailbox,
            reserved_to: self.reserved_to,
            acked_to: self.acked_to,
            pushed_to: self.pushed_to,
            away_since_ms: self.away_since_ms,
        }
    }
}

impl From<IdRecord<'_>> for Id {
    fn from(record: IdRecord<'_>) -> Id {
        let IdRecord { to, from, key, content, seq, is_cancelled, at } = record;
        Id { to: to.into(), from: from.into(), key, content, seq, is_cancelled, at }
    }
}

impl Id {
    fn record(&self) -> IdRecord<'_> {
        IdRecord {
            to: self.to.as_ref(),
            from: self.from.as_ref(),
            key: self.key,
            content: self.content,
            seq: self.seq,
            is_cancelled: self.is_cancelled,
            at: self.at,
        }
    }
}
