//! What the store gives back: the replay after a start, and the oldest records when their part of
//! the log is to be compacted.

use rustc_hash::{FxHashMap, FxHashSet};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, Outcome, message_len};

use super::mailbox::{Entry, Kept, Kind, NEVER, State, Taken};
use super::sent::{NewId, SentId, SentState};
use super::store::Pending;
use super::totals::Totals;
use super::{
    Content, DeviceRecord, EndedRecord, MessageKey, MessageOutcome, MessageRecord, Now, Out,
    OutcomeRecord, Position, Record, SentIdRecord, session,
};
use crate::broker::{Broker, Effect};
use crate::shrink::{KEPT_BY_SHARD, shrink};

/// What a replay notes and only its end can judge.
#[derive(Debug, Default)]
pub struct Replay {
    /// Messages of this shard's devices whose outcome was asked for and is not recorded.
    receipts: FxHashMap<MessageKey, Ended>,
    /// Messages whose outcome is recorded. A copy of one may lie behind that record: a message is
    /// copied by the receiver's shard while the sender's records the outcome.
    ended: FxHashSet<(MessageKey, Ended)>,
    /// How messages in this shard's mailboxes ended, whose outcome is not recorded.
    ends: FxHashMap<MessageKey, MessageOutcome>,
    /// Such copies, of this shard's devices.
    outlived: Vec<MessageKey>,
    /// Devices whose last record says that they are there.
    online: FxHashSet<DeviceId>,
    /// Ids that were sent under, by whom and in which of its incarnations.
    sent: Vec<(DeviceId, u32, NewId)>,
    /// How often a device ended.
    incarnations: FxHashMap<DeviceId, u32>,
}

/// Who sent a message, and what stands for its id. With them an outcome is known not to be about a
/// message that got the same number when the device had ended and come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ended {
    from: DeviceId,
    id: crate::Digest,
}

impl Broker {
    /// Takes one record of an earlier run, in the order of the store. What belongs to devices of
    /// other shards changes nothing here.
    pub fn replay(
        &mut self,
        now: Now,
        replay: &mut Replay,
        record: &Record<'_>,
        position: Position,
    ) {
        match record {
            Record::Message(message) => {
                self.replay_message(now, replay, message, position);
                self.replay_sent(now, replay, message);
            }
            Record::Outcome(outcome) => self.replay_outcome(now, replay, outcome, position),
            Record::Acked { device, seq } => {
                if let Some(id) = self.own(*device) {
                    self.replay_acked(id, *seq);
                }
            }
            Record::Removed { device, seq } => {
                let id = self.directory.names().intern(*device);
                if self.owns(id) {
                    self.replay_removed(id, *seq);
                }
                replay.receipts.remove(&MessageKey { device: id, seq: *seq });
            }
            Record::Ended(ended) => self.replay_end(replay, ended),
            Record::Device(record) => self.replay_device(now, replay, record, position),
            Record::Gone { device } => {
                let id = self.directory.names().intern(*device);
                if self.owns(id) {
                    self.mailboxes.remove(id);
                    replay.online.remove(&id);
                    *replay.incarnations.entry(id).or_default() += 1;
                }
            }
            Record::SentId(sent) => self.replay_sent_id(now, replay, sent),
        }
    }

    fn own(&self, device: DeviceRef<'_>) -> Option<DeviceId> {
        let id = self.directory.names().intern(device);
        self.owns(id).then_some(id)
    }

    /// The device, or one whose own record is yet to come.
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
        let of = MessageKey { device: id, seq: message.seq };
        if message.receipt && replay.ended.contains(&(of, self.ended(from, message.id))) {
            replay.outlived.push(of);
            return self.replayed(now, id).mailbox.restore_marks(message.seq + 1, 0, 0);
        }
        // A stamp until the replay is over, and so the clock is known.
        let expires_at = message.expires_at_ms.map_or(NEVER, crate::Moment::from_ms);
        let entry = message.entry(from, position, expires_at);
        let len = message_len(message.from, message.id, message.body.len(), message.re);
        let is_longer = len > self.mailboxes.limits.message_bytes_max;
        let mailbox = &mut self.replayed(now, id).mailbox;
        if message.receipt && mailbox.find(message.seq).is_none() {
            // An end under this number is another message's, of the device before it ended.
            replay.ends.remove(&of);
        }
        mailbox.restore(entry);
        if is_longer {
            mailbox.holds_longer(len);
        }
    }

    fn replay_sent(&mut self, now: Now, replay: &mut Replay, message: &MessageRecord<'_>) {
        let Some(from) = self.own(message.from) else { return };
        let to = self.directory.names().intern(message.to);
        // An ephemeral device ended before this start, and nobody waits for its outcomes.
        if message.receipt && message.is_id_taken {
            let (of, ended) =
                (MessageKey { device: to, seq: message.seq }, self.ended(from, message.id));
            if !replay.ended.contains(&(of, ended)) {
                replay.receipts.insert(of, ended);
            }
        }
        if message.is_id_taken {
            let (at, seq, receipt) = (message.at, message.seq, message.receipt);
            let id = self.key.digest(message.id.as_bytes());
            let content = self.content(to, message.body);
            let new = NewId { receipt, ..NewId::in_log(id, content, to, at, seq) };
            self.remember(now, replay, from, new);
        }
    }

    fn replay_sent_id(&mut self, now: Now, replay: &mut Replay, sent: &SentIdRecord<'_>) {
        let to = self.directory.names().intern(sent.to);
        if self.owns(to) && !self.mailboxes.has(to) {
            self.mailboxes.use_up(to, sent.seq + 1);
        }
        let Some(from) = self.own(sent.from) else { return };
        let (id, content, at) = (sent.id, sent.content, sent.at);
        let new = NewId { has_record: true, ..NewId::in_log(id, content, to, at, sent.seq) };
        self.remember(now, replay, from, new);
    }

    /// Notes an id that may count; which ones do is known when all are.
    fn remember(&self, now: Now, replay: &mut Replay, from: DeviceId, new: NewId) {
        if now.at.since(new.at) >= self.mailboxes.limits.dedup_window {
            return;
        }
        let incarnation = replay.incarnations.get(&from).copied().unwrap_or_default();
        replay.sent.push((from, incarnation, new));
        let max = self.mailboxes.limits.dedup_ids_max;
        if replay.sent.len() > 4 * max.max(1_024) {
            replay.sent.sort_by_key(|(_, _, new)| new.at);
            replay.sent.drain(..replay.sent.len() - 2 * max.max(1_024));
        }
    }

    /// Remembers the ids that were sent under, in the order in which they were. Compaction changes
    /// their order in the log, and when they are too many the oldest must go.
    fn arm(&mut self, now: Now, replay: &mut Replay) {
        replay.sent.sort_by_key(|(_, _, new)| new.at);
        for (from, incarnation, new) in replay.sent.drain(..) {
            if replay
                .incarnations
                .get(&from)
                .is_some_and(|incarnations| *incarnations != incarnation)
            {
                continue;
            }
            self.forget_sent_of(now, from);
            let Some(device) = self.mailboxes.devices.get_mut(&from) else { continue };
            let is_copy = |sent: &SentId| sent.state() == new.state && sent.to == new.to;
            if device.sent.find(new.id).is_some_and(is_copy) {
                if new.has_record
                    && let SentState::Accepted { seq } = new.state
                {
                    device.sent.note_record(new.id, MessageKey { device: new.to, seq });
                }
                continue;
            }
            device.sent.add(&new);
            let len = device.sent.len();
            self.sent_added(now, from, len);
        }
    }

    fn replay_outcome(
        &mut self,
        now: Now,
        replay: &mut Replay,
        outcome: &OutcomeRecord<'_>,
        position: Position,
    ) {
        let of_device = self.directory.names().intern(outcome.of);
        let of = MessageKey { device: of_device, seq: outcome.of_seq };
        let to = self.directory.names().intern(outcome.to);
        let ended = self.ended(to, outcome.id);
        if self.owns(of_device) || self.owns(to) {
            replay.ended.insert((of, ended));
        }
        if self.owns(of_device) && self.is_about(of, to, outcome.id) {
            self.replay_removed(of_device, outcome.of_seq);
        }
        if !self.owns(to) {
            return;
        }
        if replay.receipts.get(&of) == Some(&ended) {
            replay.receipts.remove(&of);
        }
        let entry = outcome.entry(of, position);
        self.replayed(now, to).mailbox.restore(entry);
    }

    fn ended(&self, from: DeviceId, id: &str) -> Ended {
        Ended { from, id: self.key.digest(id.as_bytes()) }
    }

    /// Returns whether the message that is in a mailbox now is the one that an outcome names.
    fn is_about(&self, of: MessageKey, from: DeviceId, id: &str) -> bool {
        let entry =
            self.mailboxes.devices.get(&of.device).and_then(|device| device.mailbox.find(of.seq));
        entry.is_some_and(|entry| {
            let content = entry.content.as_ref();
            entry.from == from && content.is_some_and(|content| content.id() == id)
        })
    }

    fn replay_acked(&mut self, id: DeviceId, seq: u64) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        // What asked for an outcome stays until that is recorded.
        device.mailbox.ack(seq);
    }

    /// Changes nothing where the outcome of the message is recorded, too.
    fn replay_end(&mut self, replay: &mut Replay, ended: &EndedRecord<'_>) {
        let Some(id) = self.own(ended.device) else { return };
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        if device.mailbox.take(ended.seq).is_some_and(|taken| taken.receipt) {
            let of = MessageKey { device: id, seq: ended.seq };
            replay.ends.insert(of, ended.outcome(of));
        }
    }

    fn replay_removed(&mut self, id: DeviceId, seq: u64) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        device.mailbox.take(seq);
        device.mailbox.settle(seq);
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
        device.is_ending = record.mailbox.is_multiple_of(2);
        device.mailbox_name = if device.is_ending { !record.mailbox } else { record.mailbox };
        device.recorded_at = position;
        device.mailbox.restore_marks(record.reserved_to, record.acked_to, record.pushed_to);
        match record.away_since_ms {
            None => {
                replay.online.insert(id);
            }
            Some(since_ms) => {
                replay.online.remove(&id);
                device.since_ms = since_ms;
            }
        }
    }

    /// The replay is over: what it left open is closed, and the clocks are set.
    pub fn replayed_all(&mut self, now: Now, mut replay: Replay, out: Out<'_>) {
        for (of, ended) in &replay.receipts {
            if let Some(device) = self.mailboxes.devices.get_mut(&ended.from) {
                // As many as were promised, however full the mailbox is.
                device.mailbox.restore_reserved(of.device);
            }
        }
        // Senders that are gone and whose messages are still here.
        self.mailboxes.devices.retain(|_, device| device.mailbox_name != 0);
        shrink(&mut self.mailboxes.devices, KEPT_BY_SHARD);
        self.arm(now, &mut replay);
        let ids: Vec<DeviceId> = self.mailboxes.devices.keys().copied().collect();
        for id in ids {
            self.replayed_one(now, id, &mut replay, out);
        }
        for of in replay.outlived {
            // Before the record of its outcome leaves the log.
            if self.mailboxes.has(of.device) {
                self.record_removed(of.device, of.seq, Pending::Nothing, out);
            }
        }
        self.settle_local(now, out);
    }

    fn replayed_one(&mut self, now: Now, id: DeviceId, replay: &mut Replay, out: Out<'_>) {
        let was_online = replay.online.contains(&id);
        let clock = self.mailboxes.clock;
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        device.mailbox.expires_by(clock);
        if was_online {
            device.mailbox.all_may_have_been_pushed();
            (device.since_ms, device.away_since) = (now.wall_ms, now.at);
        } else {
            // The time that the server did not run counts, too. What is shown of it is as far from
            // the wall clock as it is now.
            let away_ms = clock.stamp(now.at).saturating_sub(device.since_ms);
            device.away_since = clock.moment(device.since_ms).min(now.at);
            device.since_ms = now.wall_ms.saturating_sub(away_ms);
        }
        // The record of an ack may have left the log before the message that asked for an outcome.
        device.mailbox.ack(device.mailbox.acked_to());
        device.mailbox.shrink();
        let since_ms = device.since_ms;
        let totals = device.mailbox.totals();
        let open: Vec<Taken> = device.mailbox.awaiting_outcome().collect();
        let next = device.mailbox.next_expiry();
        self.mailboxes.stats.mailboxes += 1;
        self.recount(Totals::default(), totals);
        self.directory.add_owner(id, self.shard);
        self.directory.present(id, false, since_ms);
        // The crash came before their outcome was recorded. They were acked, where nothing says how
        // else they ended.
        for taken in open {
            match replay.ends.remove(&MessageKey { device: id, seq: taken.seq }) {
                Some(outcome) => self.tell_end(taken, outcome, None, out),
                None => self.message_ended(now, id, taken, Outcome::Delivered, out),
            }
        }
        if was_online {
            self.record_device(id, None, out);
        }
        if let Some(next) = next {
            self.set_expiry_alarm(id, next.max(now.at));
        }
        self.set_away_alarm(id, now);
        self.note_idle(id);
        self.directory.slots().take(id);
        if self.mailboxes.devices.get(&id).is_some_and(|device| device.is_ending) {
            self.end_device(now, id, out);
        }
    }

    /// Returns whether [`Broker::compact`] may be asked about this record now, or must wait.
    ///
    /// The outcome that a message awaits may be recorded already, and that record lie in the part that
    /// goes, too, acked and forgotten. A copy of the message would then come back to life.
    pub fn may_compact(&self, record: &Record<'_>) -> bool {
        let (to, seq) = match record {
            Record::Message(message) => (message.to, message.seq),
            // It counts until the outcome is recorded, and lies behind the message and its copies:
            // these wait for the same.
            Record::Ended(ended) => (ended.device, ended.seq),
            _ => return true,
        };
        let entry = self.own(to).and_then(|id| {
            self.mailboxes.devices.get(&id).and_then(|device| device.mailbox.find(seq))
        });
        entry.is_none_or(|entry| entry.state != State::AwaitsOutcome)
    }

    /// Takes one record of the oldest part of the log, which is to be deleted: what still counts
    /// of it is appended again. The broker must have heard before that the record is synced.
    pub fn compact(&mut self, now: Now, record: &Record<'_>, position: Position, out: Out<'_>) {
        match record {
            Record::Message(message) => {
                // A copy of the message holds its id, too.
                if !self.compact_message(message, position, out) {
                    self.compact_sent(now, message, out);
                }
            }
            Record::Outcome(outcome) => self.compact_outcome(outcome, position, out),
            Record::SentId(sent) => {
                let Some(id) = self.own(sent.from) else { return };
                if self.remembers(now, id, sent.id) {
                    out(Effect::Append(*record));
                    self.mailboxes.pending.push_back(Pending::Nothing);
                }
            }
            Record::Device(record) => {
                let Some(id) = self.own(record.device) else { return };
                let session = self.session(id).map(|session| session.number);
                if self
                    .mailboxes
                    .devices
                    .get(&id)
                    .is_some_and(|device| device.recorded_at <= position)
                {
                    self.record_device(id, session, out);
                }
            }
            // What they took out lay before them, and is not in the log any more.
            Record::Acked { .. }
            | Record::Removed { .. }
            | Record::Ended(_)
            | Record::Gone { .. } => {}
        }
    }

    /// Returns whether the message still waits on this shard, and so was copied.
    fn compact_message(
        &mut self,
        message: &MessageRecord<'_>,
        position: Position,
        out: Out<'_>,
    ) -> bool {
        let Some(id) = self.own(message.to) else { return false };
        let is_held = self.holds(id, message.seq, position);
        if is_held {
            if let Some(device) = self.mailboxes.devices.get_mut(&id) {
                device.mailbox.moves(message.seq);
            }
            out(Effect::Append(Record::Message(*message)));
            let (mailbox_name, seq) = (self.incarnation(id), message.seq);
            self.mailboxes.pending.push_back(Pending::Moved { id, mailbox_name, seq });
        }
        is_held
    }

    fn compact_outcome(&mut self, outcome: &OutcomeRecord<'_>, position: Position, out: Out<'_>) {
        let Some(id) = self.own(outcome.to) else { return };
        if self.holds(id, outcome.seq, position) {
            out(Effect::Append(Record::Outcome(*outcome)));
            let (mailbox_name, seq) = (self.incarnation(id), outcome.seq);
            self.mailboxes.pending.push_back(Pending::Moved { id, mailbox_name, seq });
        }
    }

    /// Returns whether an entry is in a mailbox, also one that awaits its outcome, and this is its record.
    fn holds(&self, id: DeviceId, seq: u64, position: Position) -> bool {
        let entry = self.mailboxes.devices.get(&id).and_then(|device| device.mailbox.find(seq));
        entry.is_some_and(|entry| {
            entry.position == position && !matches!(entry.state, State::Leaving | State::Gone)
        })
    }

    fn remembers(&self, now: Now, from: DeviceId, id: crate::Digest) -> bool {
        let device = self.mailboxes.devices.get(&from).filter(|device| !device.is_ephemeral);
        let sent = device.and_then(|device| device.sent.find(id));
        sent.is_some_and(|sent| now.at.since(sent.at()) < self.mailboxes.limits.dedup_window)
    }

    /// The id of a message outlives it, in one record of its own. The message may be copied by the shard of
    /// its receiver, again and again while it waits.
    fn compact_sent(&mut self, now: Now, message: &MessageRecord<'_>, out: Out<'_>) {
        let Some(from) = self.own(message.from) else { return };
        let id = self.key.digest(message.id.as_bytes());
        if !message.is_id_taken || !self.remembers(now, from, id) {
            return;
        }
        let to = self.directory.names().intern(message.to);
        let of = MessageKey { device: to, seq: message.seq };
        let device = self.mailboxes.devices.get_mut(&from);
        if device.is_some_and(|device| device.sent.note_record(id, of)) {
            return;
        }
        let content = self.content(to, message.body);
        out(Effect::Append(Record::SentId(SentIdRecord {
            from: message.from,
            id,
            to: message.to,
            seq: message.seq,
            content,
            at: message.at,
        })));
        self.mailboxes.pending.push_back(Pending::Nothing);
    }
}

impl MessageRecord<'_> {
    /// As it waits, its content in the store only.
    fn entry(&self, from: DeviceId, position: Position, expires_at: crate::Moment) -> Entry {
        let len = self.body.len() + self.id.len() + self.re.map_or(0, str::len);
        let content = self.receipt.then(|| Content::bodiless(self.id));
        Entry {
            seq: self.seq,
            from,
            position,
            expires_at,
            len: len as u32,
            state: State::Ready,
            kind: Kind::message(self.receipt, self.is_id_taken),
            kept: Kept::Stored,
            is_in_flight: false,
            content,
        }
    }

    /// Returns what it says, as it is pushed.
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
            is_stored: true,
        }
    }
}

impl OutcomeRecord<'_> {
    fn entry(&self, of: MessageKey, position: Position) -> Entry {
        Entry {
            seq: self.seq,
            from: of.device,
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

    /// Returns what it says, as it is pushed.
    pub fn content(&self) -> Content {
        Content::outcome(self.id, self.outcome, self.at_ms, self.maybe_seen, self.reason)
    }
}
