//! Ends of messages and devices, and the way of an outcome to the sender that asked for it.

use switchboard_proto::DeviceId;
use switchboard_proto::v1::Outcome;

use super::entry::{Entry, Kept, Kind, NEVER, State};
use super::exchange::{self, Numbered, Pair};
use super::mailbox::Taken;
use super::store::Pending;
use super::totals::Totals;
use super::{
    Content, Device, EndedOf, EndedRecord, Envelope, Event, MessageKey, MessageOutcome, Now, Out,
    OutcomeRecord, Position, Record,
};
use crate::broker::{Broker, Effect};
use crate::shrink::{KEPT, KEPT_BY_SHARD, shrink};
use crate::{Moment, PartitionId};

/// The end of a message.
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) reason: Option<Box<str>>,
    /// The message's id, if its sender cancelled it.
    pub(super) cancelled: Option<Box<str>>,
}

impl From<Outcome> for End {
    fn from(outcome: Outcome) -> End {
        End { outcome, reason: None, cancelled: None }
    }
}

/// An outcome that is told when a record is synced.
#[derive(Debug)]
pub(super) enum Telling {
    /// Nobody asked for it.
    Nobody,
    /// The oldest of the exchange that is not synced.
    Numbered(Pair),
    /// The sender is ephemeral.
    Ephemeral { to: DeviceId, id: Box<str>, outcome: Box<MessageOutcome> },
}

impl Broker {
    /// Records the end of a message that is out of its mailbox, and tells its sender, if the sender
    /// asked for the outcome.
    pub(super) fn message_ended(
        &mut self,
        now: Now,
        id: DeviceId,
        taken: Taken,
        end: impl Into<End>,
        out: Out<'_>,
    ) {
        let End { outcome, reason, cancelled } = end.into();
        // An ack or a refusal says that it was seen, and only what was never pushed is cancelled.
        let unsure = matches!(outcome, Outcome::Expired | Outcome::Evicted);
        let of = MessageKey { device: id, seq: taken.seq };
        let outcome = MessageOutcome {
            of,
            kind: outcome,
            at_ms: now.wall_ms,
            maybe_seen: unsure && taken.maybe_seen,
            reason: reason.filter(|_| taken.receipt),
        };
        if !taken.is_stored {
            if taken.receipt {
                self.tell_unnumbered(taken.from, taken.id.unwrap_or_default(), outcome, out);
            }
            return;
        }
        let from = taken.from;
        // Numbered before the record is made, which contains the number.
        let pair = Pair { own: PartitionId::of_id(id), other: PartitionId::of_id(from) };
        let message_id = taken.id.or(cancelled);
        let number = (taken.receipt && !taken.is_of_ephemeral).then(|| {
            let pending = exchange::Pending {
                to: from,
                id: message_id.clone().unwrap_or_default(),
                outcome: outcome.clone(),
                position: Position::NOWHERE,
            };
            self.recount(Totals::default(), pending.totals());
            self.mailboxes.exchanges.of(pair).add(pending)
        });
        self.record_end(from, message_id.as_deref(), &outcome, number, out);
        let telling = match number {
            Some(_) => Telling::Numbered(pair),
            None if taken.receipt => {
                let (id, outcome) = (message_id.unwrap_or_default(), Box::new(outcome));
                Telling::Ephemeral { to: from, id, outcome }
            }
            None => Telling::Nobody,
        };
        let mailbox_name = self.incarnation(id);
        self.mailboxes.pending.push_back(Pending::Ended { of, mailbox_name, telling });
    }

    /// Appends the record of the end of a message.
    pub(super) fn record_end(
        &self,
        from: DeviceId,
        id: Option<&str>,
        outcome: &MessageOutcome,
        number: Option<u64>,
        out: Out<'_>,
    ) {
        let (device, from) = (self.show(outcome.of.device), self.show(from));
        let of = id.map(|id| EndedOf { from: from.as_ref(), id, number });
        out(Effect::Append(Record::Ended(EndedRecord {
            device: device.as_ref(),
            seq: outcome.of.seq,
            outcome: outcome.kind,
            at_ms: outcome.at_ms,
            maybe_seen: outcome.maybe_seen,
            reason: outcome.reason.as_deref(),
            of,
        })));
    }

    /// Tells the sender of a message that ended, now that this is recorded, and drops the message.
    pub(super) fn end_recorded(
        &mut self,
        of: MessageKey,
        mailbox_name: u64,
        telling: Telling,
        position: Position,
        out: Out<'_>,
    ) {
        match telling {
            Telling::Nobody => {}
            Telling::Numbered(pair) => {
                let now = self.mailboxes.now.at;
                let exchange = self.mailboxes.exchanges.of(pair);
                if let Some((number, before, pending)) = exchange.synced(position) {
                    let envelope = numbered(pair, (number, before), pending);
                    let resend_at = exchange.sent(now);
                    self.mailboxes.will_resend(resend_at);
                    self.send_to_shard(pair.other.shard(self.mailboxes.shards), envelope, out);
                }
            }
            Telling::Ephemeral { to, id, outcome } => {
                self.tell_unnumbered(to, id, *outcome, out);
            }
        }
        self.cancel_recorded(of, out);
        self.left(of, mailbox_name, out);
    }

    /// Sends an outcome that is in memory only. No crash may bring it back, so it needs no number.
    fn tell_unnumbered(
        &mut self,
        to: DeviceId,
        id: Box<str>,
        outcome: MessageOutcome,
        out: Out<'_>,
    ) {
        let envelope = Envelope::Outcome { to, id, outcome, numbered: None };
        self.send_to_owner(to, envelope, out);
    }

    /// Sends again the outcomes of all exchanges that were not settled in time, and notes when the
    /// next are due.
    pub(super) fn resend_tick(&mut self, now: Now, out: Out<'_>) {
        if self.mailboxes.resend_at.is_none_or(|at| at > now.at) {
            return;
        }
        self.mailboxes.resend_at = None;
        for pair in self.mailboxes.exchanges.to_resend(now.at) {
            self.resend_outcomes(now.at, pair, out);
        }
        let next = self.mailboxes.exchanges.iter().filter_map(|(_, exchange)| exchange.resend_at());
        self.mailboxes.resend_at = next.min();
    }

    /// Sends the first outcomes of an exchange that are not settled.
    pub(super) fn resend_outcomes(&mut self, now: Moment, pair: Pair, out: Out<'_>) {
        let exchange = self.mailboxes.exchanges.of(pair);
        let envelopes: Vec<Envelope> = exchange
            .to_resend()
            .map(|(number, before, pending)| numbered(pair, (number, before), pending))
            .collect();
        let Some(last) = exchange.to_resend().last().map(|(number, ..)| number) else { return };
        let resend_at = exchange.resent(now, last + 1);
        self.mailboxes.will_resend(resend_at);
        let shard = pair.other.shard(self.mailboxes.shards);
        for envelope in envelopes {
            self.send_to_shard(shard, envelope, out);
        }
    }

    /// Takes the outcome of a message that a device of this shard sent.
    pub(super) fn told_outcome(
        &mut self,
        to: DeviceId,
        id: &str,
        outcome: &MessageOutcome,
        numbered: Option<Numbered>,
        out: Out<'_>,
    ) {
        let Some(numbered) = numbered else {
            return self.put_outcome(to, id, outcome, None, out);
        };
        let pair = Pair { own: PartitionId::of_id(to), other: numbered.source };
        let exchange = self.mailboxes.exchanges.of(pair);
        if exchange.take(numbered) == exchange::Taken::Next {
            self.put_outcome(to, id, outcome, Some(numbered), out);
            if self.mailboxes.exchanges.of(pair).is_applying() {
                // Settled when it is synced.
                return;
            }
        }
        self.settle_with(pair, out);
    }

    /// Tells the other partition how far its outcomes are recorded.
    fn settle_with(&mut self, pair: Pair, out: Out<'_>) {
        let Some(exchange) = self.mailboxes.exchanges.find(pair) else { return };
        let Pair { own: target, other: source } = pair;
        let envelope = Envelope::Settled { source, target, to: exchange.recorded_to() };
        self.send_to_shard(source.shard(self.mailboxes.shards), envelope, out);
    }

    /// Puts an outcome into the mailbox of the device that asked for it, and into the store if it
    /// is to be there.
    fn put_outcome(
        &mut self,
        to: DeviceId,
        id: &str,
        outcome: &MessageOutcome,
        numbered: Option<Numbered>,
        out: Out<'_>,
    ) {
        let of = outcome.of;
        let shown = self.show(to);
        let of_shown = self.show(of.device);
        let Some(device) = self.mailboxes.devices.get_mut(&to) else { return };
        if !device.may_be_told(of, numbered.is_some()) {
            return;
        }
        let before = device.mailbox.totals();
        device.mailbox.release_outcome(of.device);
        let seq = device.mailbox.next_seq();
        let kept = Kept::stored(numbered.is_some());
        // The outcome itself takes that memory now. Both come within one `recount`.
        if kept == Kept::Here {
            device.mailbox.release_memory();
        }
        let reason = outcome.reason.as_deref();
        let len = id.len() + reason.map_or(0, str::len);
        device.mailbox.push(Entry {
            seq,
            from: of.device,
            position: Position::NOWHERE,
            expires_at: NEVER,
            len: len as u32,
            state: if kept == Kept::Stored { State::Unsynced } else { State::Ready },
            kind: Kind::Outcome,
            kept,
            is_in_flight: false,
            content: Some(Content::outcome(
                id,
                outcome.kind,
                outcome.at_ms,
                outcome.maybe_seen,
                reason,
            )),
        });
        let after = device.mailbox.totals();
        self.recount(before, after);
        let Some(Numbered { source, number, .. }) = numbered else {
            self.reserve_seqs(to, out);
            return self.push_ready(to, out);
        };
        let pair = Pair { own: PartitionId::of_id(to), other: source };
        self.mailboxes.exchanges.of(pair).applies();
        out(Effect::Append(Record::Outcome(OutcomeRecord {
            to: shown.as_ref(),
            seq,
            id,
            of: of_shown.as_ref(),
            outcome: outcome.kind,
            at_ms: outcome.at_ms,
            maybe_seen: outcome.maybe_seen,
            reason,
            source,
            number,
        })));
        self.mailboxes.pending.push_back(Pending::Outcome { to, seq, pair });
    }

    /// Shows a device an outcome whose record is synced, and settles it.
    pub(super) fn outcome_recorded(
        &mut self,
        to: DeviceId,
        seq: u64,
        pair: Pair,
        position: Position,
        out: Out<'_>,
    ) {
        self.mailboxes.exchanges.of(pair).applied();
        self.settle_with(pair, out);
        let Some(device) = self.mailboxes.devices.get_mut(&to) else { return };
        device.mailbox.synced(seq, position);
        self.push_ready(to, out);
        self.keep_cache_small(to, seq);
    }

    /// Forgets outcomes that the other partition has recorded.
    pub(super) fn settled(&mut self, now: Now, pair: Pair, to: u64, out: Out<'_>) {
        let exchange = self.mailboxes.exchanges.of(pair);
        let (before, goes_on) = exchange.settle(now.at, to);
        let is_worth_recording = exchange.is_worth_recording();
        let resend_at = exchange.resend_at();
        self.recount(before, Totals::default());
        if let Some(at) = resend_at {
            self.mailboxes.will_resend(at);
        }
        if goes_on {
            self.resend_outcomes(now.at, pair, out);
        }
        if is_worth_recording {
            self.record_exchange(pair, out);
        }
    }

    /// Appends the state of an exchange.
    pub(super) fn record_exchange(&mut self, pair: Pair, out: Out<'_>) {
        let record = self.mailboxes.exchanges.of(pair).record(pair);
        out(Effect::Append(Record::Exchange(record)));
        self.mailboxes.pending.push_back(Pending::Exchange(pair));
    }

    /// Drops an entry whose removal is recorded.
    fn left(&mut self, of: MessageKey, mailbox_name: u64, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get_mut(&of.device) else { return };
        // If the mailbox has another name, the number may belong to a message to a later device of
        // the id.
        if device.mailbox_name != mailbox_name {
            return;
        }
        device.mailbox.settle(of.seq);
        self.push_ready(of.device, out);
        self.note_idle(of.device);
    }

    /// Ends a device and evicts what waits for it: it was away for its time to live, or is
    /// ephemeral and its connection is gone, or gives way to a new device.
    pub(super) fn end_device(&mut self, now: Now, id: DeviceId, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        if device.mailbox.iter().any(|entry| entry.state == State::Unsynced) {
            // Messages are about to be accepted, and what is accepted must get its outcome.
            let again = now.at.after(std::time::Duration::from_millis(100));
            return self.mailboxes.set_alarm(again, super::timers::Alarm::Away, id);
        }
        let waiting: Vec<u64> = device
            .mailbox
            .iter()
            .filter(|entry| entry.state == State::Ready)
            .map(|entry| entry.seq)
            .collect();
        // Appended before the evictions: a start that finds this record evicts the messages that a
        // crash left. In the other order, a crash could leave a device that lives on although some
        // of its messages were evicted.
        if self.mailboxes.is_durable && !device.is_ephemeral {
            let shown = self.show(id);
            out(Effect::Append(Record::Gone { device: shown.as_ref() }));
            self.mailboxes.pending.push_back(Pending::Gone(id));
            *self.mailboxes.gone.entry(id).or_default() += 1;
        }
        for seq in waiting {
            if let Some(taken) = self.take(id, seq, Outcome::Evicted, out)
                && taken.receipt
            {
                self.message_ended(now, id, taken, Outcome::Evicted, out);
            }
        }
        let Some(mut device) = self.mailboxes.remove(id) else { return };
        // Its mailbox is empty except for the room reserved for outcomes, and these will not be
        // delivered any more.
        self.recount(device.mailbox.totals(), Totals::default());
        if !device.is_ephemeral {
            self.mailboxes.stats.mailboxes -= 1;
            self.directory.slots().release(id);
        }
        self.directory.forget(id);
        out(Effect::Count(Event::DeviceEnded));
        // The new device begins in this same step, so nobody can send to it before its record is
        // appended. Otherwise a message accepted before that record would be in the log without a
        // device, and a crash would lose it.
        if let Some(waiting) = device.waiting.take() {
            self.begin_anew(now, *waiting, device.takeovers, out);
        }
    }
}

impl Broker {
    /// Welcomes the next device of an id, now that the end of the one before is recorded.
    pub(super) fn gone_recorded(&mut self, id: DeviceId, out: Out<'_>) {
        let Some(unsynced) = self.mailboxes.gone.get_mut(&id) else { return };
        *unsynced -= 1;
        if *unsynced == 0 {
            self.mailboxes.gone.remove(&id);
            shrink(&mut self.mailboxes.gone, KEPT_BY_SHARD);
            let device = self.mailboxes.devices.get(&id);
            if device.is_some_and(|device| device.is_ephemeral)
                && let Some(session) = self.session(id)
            {
                session.is_open = true;
                self.welcome(id, out);
                self.push_ready(id, out);
            }
        }
    }
}

/// Returns the envelope with an outcome that has a number.
fn numbered(pair: Pair, (number, before): (u64, u64), pending: &exchange::Pending) -> Envelope {
    Envelope::Outcome {
        to: pending.to,
        id: pending.id.clone(),
        outcome: pending.outcome.clone(),
        numbered: Some(Numbered { source: pair.own, number, before }),
    }
}

impl Device {
    /// Returns whether the outcome of a message is for this device.
    fn may_be_told(&mut self, of: MessageKey, is_numbered: bool) -> bool {
        // An outcome in memory only is for the device that asked, and is told at most once. An
        // ephemeral device is told no other outcomes: those are for an earlier device of its id.
        let Some(receipts) = &mut self.receipts else { return is_numbered && !self.is_ephemeral };
        let was_expected = receipts.remove(&of);
        shrink(receipts.as_mut(), KEPT);
        was_expected || is_numbered && !self.is_ephemeral
    }

    /// Notes that this device awaits an outcome that will be in memory only.
    pub(super) fn expects(&mut self, of: MessageKey) {
        self.receipts.get_or_insert_default().insert(of);
    }
}
