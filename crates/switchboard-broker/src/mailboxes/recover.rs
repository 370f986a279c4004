//! Recovery and compaction: the replay of the log after a start, and the copies of its oldest
//! records that still count.

use std::ops::Range;

use rustc_hash::{FxHashMap, FxHashSet};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, Durability, Outcome, message_len};

use super::entry::{Entry, Kept, Kind, NEVER, State};
use super::exchange::{self, Pair};
use super::mailbox::Taken;
use super::store::Pending;
use super::totals::Totals;
use super::window::NewId;
use super::{
    Content, DeviceRecord, EndedOf, EndedRecord, IdRecord, MessageKey, MessageOutcome,
    MessageRecord, Now, Out, OutcomeRecord, Position, Record, session,
};
use crate::PartitionId;
use crate::broker::{Broker, Effect};
use crate::shrink::{KEPT_BY_SHARD, shrink};

/// Notes of a replay that only its end can resolve.
#[derive(Debug, Default)]
pub struct Replay {
    /// Messages that waited for devices that have ended, and asked for an outcome that no record
    /// tells yet.
    evicted: FxHashMap<MessageKey, Taken>,
    /// Devices whose last record says that they are connected.
    online: FxHashSet<DeviceId>,
    /// Ids of messages.
    ids: Vec<NewId>,
    /// Keys and numbers of messages that were cancelled.
    cancelled: Vec<(crate::Digest, u64)>,
}

impl Replay {
    /// Sorts the ids by age, and by their numbers in a mailbox: of two messages with the same id, the
    /// later one counts. In place, as there may be millions.
    fn sort_ids(&mut self) {
        self.ids.sort_unstable_by_key(|new| (new.at, new.seq));
    }
}

impl Broker {
    /// Applies one record of an earlier run. Every broker must be given all records, in the
    /// order of the store; those about devices of other shards change nothing.
    pub fn replay(
        &mut self,
        now: Now,
        replay: &mut Replay,
        record: &Record<'_>,
        position: Position,
    ) {
        match record {
            Record::Message(message) => self.replay_message(now, replay, message, position),
            Record::Outcome(outcome) => self.replay_outcome(now, outcome, position),
            Record::Acked { device, seq } => {
                if let Some(id) = self.own(*device) {
                    self.replay_acked(id, *seq);
                }
            }
            Record::Ended(ended) => self.replay_ended(replay, ended, position),
            Record::Device(record) => self.replay_device(now, replay, record, position),
            Record::Gone { device } => {
                if let Some(id) = self.own(*device) {
                    self.replay_gone(replay, id);
                }
            }
            Record::Id(record) => self.replay_id(now, replay, record),
            Record::Exchange(record) => {
                if self.owns_partition(record.partition) {
                    let pair = Pair { own: record.partition, other: record.with };
                    self.mailboxes.exchanges.of(pair).restore_state(record, position);
                }
            }
        }
    }

    /// Returns the id of a device, if this shard owns it.
    fn own(&self, device: DeviceRef<'_>) -> Option<DeviceId> {
        let id = self.directory.names().intern(device);
        self.owns(id).then_some(id)
    }

    fn owns_partition(&self, partition: PartitionId) -> bool {
        partition.shard(self.mailboxes.shards) == self.shard
    }

    /// Returns the device; adds it if its own record is yet to come.
    fn replayed(&mut self, now: Now, id: DeviceId) -> &mut super::Device {
        self.mailboxes.devices.entry(id).or_insert_with(|| Box::new(session::provisional(id, now)))
    }

    fn replay_message(
        &mut self,
        now: Now,
        replay: &mut Replay,
        message: &MessageRecord<'_>,
        position: Position,
    ) {
        let Some(id) = self.own(message.to) else { return };
        let from = self.directory.names().intern(message.from);
        if message.is_id_taken {
            self.remember(now, replay, self.id_of(from, message));
        }
        // A stamp until `expires_by`: the clock is known only when the replay is over.
        let expires_at = message.expires_at_ms.map_or(NEVER, crate::Moment::from_ms);
        let entry = message.entry(from, position, expires_at);
        let len = message_len(message.from, message.id, message.body.len(), message.re);
        let is_longer = len > self.mailboxes.limits.message_bytes_max;
        let mailbox = &mut self.replayed(now, id).mailbox;
        mailbox.restore(entry);
        if is_longer {
            mailbox.holds_longer(len);
        }
    }

    fn replay_id(&mut self, now: Now, replay: &mut Replay, record: &IdRecord<'_>) {
        let Some(to) = self.own(record.to) else { return };
        // The sender may still cancel by the id, so a receiver that comes back after its end must
        // not give the number to another message. All other records of it may have left the log.
        if !self.mailboxes.has(to) {
            self.mailboxes.use_up(to, record.seq + 1);
        }
        let IdRecord { key, content, seq, at, is_cancelled, .. } = *record;
        let from = self.directory.names().intern(record.from);
        self.remember(
            now,
            replay,
            NewId {
                key,
                content,
                from,
                seq,
                at,
                durability: Durability::Disk,
                is_cancelled,
                has_record: true,
                is_unsynced: false,
            },
        );
    }

    /// Returns the id of a message of the log.
    fn id_of(&self, from: DeviceId, message: &MessageRecord<'_>) -> NewId {
        let to = self.directory.names().intern(message.to);
        NewId {
            key: self.key_of((from, None), to, message.id),
            content: self.key.digest(message.body),
            from,
            seq: message.seq,
            at: message.at,
            durability: Durability::Disk,
            is_cancelled: false,
            has_record: false,
            is_unsynced: false,
        }
    }

    /// Notes an id whose time may not be over.
    fn remember(&self, now: Now, replay: &mut Replay, new: NewId) {
        if now.at.since(new.at) >= self.mailboxes.limits.dedup_window {
            return;
        }
        replay.ids.push(new);
        let max = self.mailboxes.limits.dedup_ids_max;
        // The log may hold many more than are kept. Half are dropped at a time, so that sorting
        // costs each of them a share that does not grow with the log.
        if replay.ids.len() > 4 * max.max(1_024) {
            replay.sort_ids();
            replay.ids.drain(..replay.ids.len() - 2 * max.max(1_024));
        }
    }

    /// Fills the window with the ids that were noted.
    fn arm(&mut self, now: Now, replay: &mut Replay) {
        // Compaction changes the order of ids in the log, and the oldest must be forgotten first.
        replay.sort_ids();
        let max = self.mailboxes.window_max();
        let window = &mut self.mailboxes.window;
        for new in replay.ids.drain(..) {
            // The log may have it twice: in two copies of the message, or in one and in a record of
            // the id alone.
            match window.find(now.at, new.key, &max) {
                Some(seen) if seen.seq == new.seq => {
                    if new.has_record {
                        window.note_record(new.key, new.seq);
                    }
                    if new.is_cancelled {
                        window.cancelled(new.key, new.seq);
                    }
                }
                _ => window.add(now.at, &new, &max),
            }
        }
        for (key, seq) in replay.cancelled.drain(..) {
            window.cancelled(key, seq);
        }
    }

    fn replay_outcome(&mut self, now: Now, outcome: &OutcomeRecord<'_>, position: Position) {
        let Some(to) = self.own(outcome.to) else { return };
        let pair = Pair { own: PartitionId::of_id(to), other: outcome.source };
        self.mailboxes.exchanges.of(pair).restore_applied(outcome.number);
        let of = self.directory.names().intern(outcome.of);
        self.replayed(now, to).mailbox.restore(outcome.entry(of, position));
    }

    fn replay_acked(&mut self, id: DeviceId, seq: u64) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        // Those with a receipt are out already: the records of their ends come before.
        device.mailbox.ack(seq);
    }

    fn replay_ended(&mut self, replay: &mut Replay, ended: &EndedRecord<'_>, position: Position) {
        let Some(id) = self.own(ended.device) else { return };
        let of = MessageKey { device: id, seq: ended.seq };
        replay.evicted.remove(&of);
        if let Some(device) = self.mailboxes.devices.get_mut(&id) {
            device.mailbox.take(of.seq);
            device.mailbox.settle(of.seq);
        }
        let Some(EndedOf { from, id: message_id, number }) = ended.of else { return };
        let from = self.directory.names().intern(from);
        if ended.outcome == Outcome::Cancelled {
            replay.cancelled.push((self.key_of((from, None), id, message_id), of.seq));
        }
        if let Some(number) = number {
            let pair = Pair { own: PartitionId::of_id(id), other: PartitionId::of_id(from) };
            let outcome = ended.outcome(of);
            let pending = exchange::Pending { to: from, id: message_id.into(), outcome, position };
            self.mailboxes.exchanges.of(pair).restore(number, pending);
        }
    }

    fn replay_gone(&mut self, replay: &mut Replay, id: DeviceId) {
        let was_online = replay.online.remove(&id);
        let Some(mut device) = self.mailboxes.remove(id) else { return };
        if was_online {
            device.mailbox.all_may_have_been_pushed();
        }
        // The records of the evictions follow, unless a crash came before.
        for taken in device.mailbox.take_all().filter(|taken| taken.receipt) {
            replay.evicted.insert(MessageKey { device: id, seq: taken.seq }, taken);
        }
    }

    fn replay_device(
        &mut self,
        now: Now,
        replay: &mut Replay,
        record: &DeviceRecord<'_>,
        position: Position,
    ) {
        let Some(id) = self.own(record.device) else { return };
        let device = self.replayed(now, id);
        device.mailbox_name = record.mailbox;
        device.recorded_at = position;
        device.mailbox.restore_marks(record.reserved_to, record.acked_to, record.pushed_to);
        match record.away_since_ms {
            None => {
                replay.online.insert(id);
            }
            Some(since_ms) => {
                replay.online.remove(&id);
                // A stamp until `replayed_one`: the clock is known only when the replay is over.
                device.since_ms = since_ms;
            }
        }
    }

    /// Counts everything replayed so far as pushed. To be called during the replay, at the place
    /// where a backup ended or a log was repaired: records that are missing there may have said
    /// that the receivers came.
    pub fn all_may_have_been_pushed(&mut self) {
        for device in self.mailboxes.devices.values_mut() {
            device.mailbox.all_may_have_been_pushed();
        }
    }

    /// Ends the replay: resolves what it left open, and turns stamps into moments.
    pub fn replayed_all(&mut self, now: Now, mut replay: Replay, out: Out<'_>) {
        self.end_replay(now, &mut replay, out);
        let mut evicted: Vec<(MessageKey, Taken)> = replay.evicted.drain().collect();
        evicted.sort_unstable_by_key(|(of, _)| (of.device, of.seq));
        for (of, taken) in evicted {
            self.message_ended(now, of.device, taken, Outcome::Evicted, out);
        }
        // Those that were settled already are settled again at once.
        for pair in self.mailboxes.exchanges.pairs() {
            self.resend_outcomes(now.at, pair, out);
        }
        self.settle_local(now, out);
    }

    /// As [`Broker::replayed_all`], but tells other partitions nothing.
    pub fn end_replay(&mut self, now: Now, replay: &mut Replay, out: Out<'_>) {
        // A device without a record of its own does not exist: other records only name it.
        self.mailboxes.devices.retain(|_, device| device.mailbox_name != 0);
        shrink(&mut self.mailboxes.devices, KEPT_BY_SHARD);
        self.arm(now, replay);
        let ids: Vec<DeviceId> = self.mailboxes.devices.keys().copied().collect();
        for id in ids {
            self.replayed_one(now, id, replay, out);
        }
        self.mailboxes.exchanges.replayed();
        let outcomes = self.mailboxes.exchanges.totals();
        self.recount(Totals::default(), outcomes);
    }

    fn replayed_one(&mut self, now: Now, id: DeviceId, replay: &mut Replay, out: Out<'_>) {
        let was_online = replay.online.contains(&id);
        let clock = self.mailboxes.clock;
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        device.mailbox.expires_by(clock);
        if was_online {
            // It was connected when the server ended: how much it saw, and until when, is not
            // known.
            device.mailbox.all_may_have_been_pushed();
            (device.since_ms, device.away_since) = (now.wall_ms, now.at);
        } else {
            // By stamps, so that the time for which the server was down counts, too. The time that
            // is shown is this age, counted back from the present wall clock, however the clock has
            // jumped.
            let away_ms = clock.stamp(now.at).saturating_sub(device.since_ms);
            device.away_since = clock.moment(device.since_ms).min(now.at);
            device.since_ms = now.wall_ms.saturating_sub(away_ms);
        }
        // The device's record may say that it acked more than the last `Acked` that is in the log.
        device.mailbox.ack(device.mailbox.acked_to());
        device.mailbox.shrink();
        let since_ms = device.since_ms;
        let totals = device.mailbox.totals();
        let next = device.mailbox.next_expiry();
        self.mailboxes.stats.mailboxes += 1;
        self.recount(Totals::default(), totals);
        self.directory.add_owner(id, self.shard);
        self.directory.present(id, false, since_ms);
        // Without this record the next start would assume that the device was connected until then:
        // it would count everything that came meanwhile as seen, and begin its time to live anew.
        if was_online {
            self.record_device(id, None, out);
        }
        if let Some(next) = next {
            self.set_expiry_alarm(id, next.max(now.at));
        }
        self.set_away_alarm(id, now);
        self.note_idle(id);
        self.directory.slots().take(id);
    }

    /// Appends a record of the oldest part of the log again if it still counts, because that part
    /// is about to be deleted. The broker must have been told before that the record is synced.
    pub fn compact(&mut self, now: Now, record: &Record<'_>, position: Position, out: Out<'_>) {
        match record {
            Record::Message(message) => {
                // Otherwise the id is in the copy of the message.
                if !self.compact_message(message, position, out) {
                    self.compact_id(now, message, out);
                }
            }
            Record::Outcome(outcome) => self.compact_outcome(outcome, position, out),
            Record::Id(id) => {
                let max = self.mailboxes.window_max();
                let seen = self.mailboxes.window.find(now.at, id.key, &max);
                if let Some(seen) = seen.filter(|_| self.own(id.to).is_some()) {
                    // It may have been cancelled since, and the record that says so may be deleted
                    // by now.
                    let is_cancelled = seen.is_cancelled();
                    out(Effect::Append(Record::Id(IdRecord { is_cancelled, ..*id })));
                    self.mailboxes.pending.push_back(Pending::Nothing);
                }
            }
            Record::Device(record) => {
                let Some(id) = self.own(record.device) else { return };
                let session = self.session(id).map(|session| session.number);
                // `<=`, not `==`: it may be nowhere (0), or the position of an earlier record, if
                // this one has an old name and so did not count. One record too many does no harm.
                if self
                    .mailboxes
                    .devices
                    .get(&id)
                    .is_some_and(|device| device.recorded_at <= position)
                {
                    self.record_device(id, session, out);
                }
            }
            Record::Ended(ended) => self.compact_ended(ended, position, out),
            Record::Exchange(record) => {
                let pair = Pair { own: record.partition, other: record.with };
                self.compact_exchange(pair, position, out);
            }
            // These only remove older records, which are already compacted.
            Record::Acked { .. } | Record::Gone { .. } => {}
        }
    }

    /// Copies a message that still waits in a mailbox of this shard; returns whether it does.
    fn compact_message(
        &mut self,
        message: &MessageRecord<'_>,
        position: Position,
        out: Out<'_>,
    ) -> bool {
        let Some(id) = self.own(message.to) else { return false };
        self.compact_entry((id, message.seq), Record::Message(*message), position, out)
    }

    /// Copies the record of an entry if it still waits in its mailbox; returns whether it does.
    fn compact_entry(
        &mut self,
        (id, seq): (DeviceId, u64),
        record: Record<'_>,
        position: Position,
        out: Out<'_>,
    ) -> bool {
        let is_held = self.holds(id, seq, position);
        if is_held {
            out(Effect::Append(record));
            let mailbox_name = self.incarnation(id);
            self.mailboxes.pending.push_back(Pending::Moved { id, mailbox_name, seq });
        }
        is_held
    }

    fn compact_outcome(&mut self, outcome: &OutcomeRecord<'_>, position: Position, out: Out<'_>) {
        let Some(id) = self.own(outcome.to) else { return };
        self.compact_entry((id, outcome.seq), Record::Outcome(*outcome), position, out);
        let pair = Pair { own: PartitionId::of_id(id), other: outcome.source };
        self.compact_exchange(pair, position, out);
    }

    /// Copies the end of a message whose outcome is not settled.
    fn compact_ended(&mut self, ended: &EndedRecord<'_>, position: Position, out: Out<'_>) {
        let Some(id) = self.own(ended.device) else { return };
        let Some(EndedOf { from, number: Some(number), .. }) = ended.of else { return };
        let from = self.directory.names().intern(from);
        let pair = Pair { own: PartitionId::of_id(id), other: PartitionId::of_id(from) };
        let pending = self.mailboxes.exchanges.of(pair).pending(number);
        if pending.is_some_and(|pending| pending.position == position) {
            out(Effect::Append(Record::Ended(*ended)));
            self.mailboxes.pending.push_back(Pending::EndedMoved { pair, number });
        }
        self.compact_exchange(pair, position, out);
    }

    /// Records the state of an exchange if it may be known only from records up to this position.
    fn compact_exchange(&mut self, pair: Pair, position: Position, out: Out<'_>) {
        if self.owns_partition(pair.own)
            && self.mailboxes.exchanges.of(pair).is_recorded_before(position)
        {
            self.record_exchange(pair, out);
        }
    }

    /// Records again what a part of the log, which cannot be read, tells of exchanges.
    pub(super) fn record_exchanges_in(&mut self, part: &Range<Position>, out: Out<'_>) {
        let mut lost = Vec::new();
        for (pair, exchange) in self.mailboxes.exchanges.iter() {
            let numbers = exchange.recorded_in(part).map(|(number, _)| (pair, number));
            lost.extend(numbers);
        }
        for (pair, number) in lost {
            let Some(pending) = self.mailboxes.exchanges.of(pair).pending(number) else { continue };
            let (from, id, outcome) = (pending.to, pending.id.clone(), pending.outcome.clone());
            self.record_end(from, Some(&id), &outcome, Some(number), out);
            self.mailboxes.pending.push_back(Pending::EndedMoved { pair, number });
        }
        for pair in self.mailboxes.exchanges.pairs() {
            self.compact_exchange(pair, part.end, out);
        }
    }

    /// Returns whether an entry is in a mailbox, and this is its record.
    fn holds(&self, id: DeviceId, seq: u64, position: Position) -> bool {
        let entry = self.mailboxes.devices.get(&id).and_then(|device| device.mailbox.find(seq));
        entry.is_some_and(|entry| {
            // An entry that is leaving is not copied: the copy would lie behind the record of its
            // removal, so the entry would come back after a crash.
            entry.position == position && entry.waits()
        })
    }

    /// Gives the id of a message a record of its own, if it is still in the window: it outlives the
    /// message.
    fn compact_id(&mut self, now: Now, message: &MessageRecord<'_>, out: Out<'_>) {
        if self.own(message.to).is_none() || !message.is_id_taken {
            return;
        }
        let from = self.directory.names().intern(message.from);
        let NewId { key, content, seq, at, .. } = self.id_of(from, message);
        let max = self.mailboxes.window_max();
        let Some(seen) = self.mailboxes.window.find(now.at, key, &max) else { return };
        let is_cancelled = seen.is_cancelled();
        // Only once: the message may have been copied again and again while it waited, and each
        // copy would add a record that is copied, too.
        if !self.mailboxes.window.note_record(key, seq) {
            return;
        }
        let (to, from) = (message.to, message.from);
        let record = IdRecord { to, from, key, content, seq, is_cancelled, at };
        out(Effect::Append(Record::Id(record)));
        self.mailboxes.pending.push_back(Pending::Nothing);
    }
}

impl MessageRecord<'_> {
    /// Returns it as it waits in a mailbox, with its content in the store only.
    fn entry(&self, from: DeviceId, position: Position, expires_at: crate::Moment) -> Entry {
        let len = self.body.len() + self.id.len() + self.re.map_or(0, str::len);
        // Otherwise its sender was ephemeral: it ended with its run at the latest, and nobody waits
        // for the outcome.
        let receipt = self.receipt && self.is_id_taken;
        // The outcome will name the id.
        let content = receipt.then(|| Content::bodiless(self.id));
        Entry {
            seq: self.seq,
            from,
            position,
            expires_at,
            len: len as u32,
            state: State::Ready,
            kind: Kind::message(receipt, false),
            kept: Kept::Stored,
            is_in_flight: false,
            content,
        }
    }

    /// Returns the content of the message, as it is pushed.
    pub fn content(&self) -> Content {
        Content::message(self.id, self.re, self.sent_at_ms, self.body)
    }
}

impl EndedRecord<'_> {
    fn outcome(&self, of: MessageKey) -> MessageOutcome {
        MessageOutcome {
            of,
            kind: self.outcome,
            at_ms: self.at_ms,
            maybe_seen: self.maybe_seen,
            reason: self.reason.map(Into::into),
        }
    }
}

impl OutcomeRecord<'_> {
    fn entry(&self, of: DeviceId, position: Position) -> Entry {
        Entry {
            seq: self.seq,
            from: of,
            position,
            expires_at: NEVER,
            len: (self.id.len() + self.reason.map_or(0, str::len)) as u32,
            state: State::Ready,
            kind: Kind::Outcome,
            kept: Kept::Stored,
            is_in_flight: false,
            content: Some(self.content()),
        }
    }

    /// Returns the content of the outcome, as it is pushed.
    pub fn content(&self) -> Content {
        Content::outcome(self.id, self.outcome, self.at_ms, self.maybe_seen, self.reason)
    }
}
