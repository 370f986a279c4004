//! Ends of messages and devices: the outcome is recorded together with the message's removal, and
//! then told to its sender.

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Outcome, RejectCode};

use super::entry::{Entry, Kept, Kind, NEVER, State};
use super::mailbox::Taken;
use super::store::Pending;
use super::totals::Totals;
use super::{
    Cancel, Content, Device, EndedRecord, Envelope, Event, MessageKey, MessageOutcome, Now, Out,
    OutcomeRecord, Position, Record,
};
use crate::broker::{Broker, Effect};
use crate::shrink::{KEPT, shrink};

/// The end of a message.
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) reason: Option<Box<str>>,
    /// Session of the sender whose `cancel` this also answers.
    pub(super) answers_cancel: Option<u32>,
}

impl From<Outcome> for End {
    fn from(outcome: Outcome) -> End {
        End { outcome, reason: None, answers_cancel: None }
    }
}

impl Broker {
    /// Sends the outcome of a message that is out of its mailbox to the shard of its sender,
    /// which asked for it.
    pub(super) fn message_ended(
        &mut self,
        now: Now,
        id: DeviceId,
        taken: Taken,
        end: impl Into<End>,
        out: Out<'_>,
    ) {
        let End { outcome, reason, answers_cancel } = end.into();
        // An ack or a refusal says that it was seen, and only what was never pushed is cancelled.
        let unsure = matches!(outcome, Outcome::Expired | Outcome::Evicted);
        let outcome = MessageOutcome {
            of: MessageKey { device: id, seq: taken.seq },
            kind: outcome,
            at_ms: now.wall_ms,
            maybe_seen: unsure && taken.maybe_seen,
            reason,
            is_stored: taken.is_stored,
        };
        // Now, so that it lies before the record of any later ack of the receiver. The outcome's
        // own record may come after that, and a crash in between would leave the message as
        // acked.
        self.record_end(&outcome, out);
        self.tell_end(taken, outcome, answers_cancel, out);
    }

    /// Records the end of a message, unless another record says it.
    fn record_end(&mut self, outcome: &MessageOutcome, out: Out<'_>) {
        // An ack has its own record, and the record of a device says that it is ending.
        let is_said = matches!(outcome.kind, Outcome::Delivered | Outcome::Evicted);
        if is_said || !outcome.is_stored {
            return;
        }
        let device = self.show(outcome.of.device);
        out(Effect::Append(Record::Ended(EndedRecord {
            device: device.as_ref(),
            seq: outcome.of.seq,
            outcome: outcome.kind,
            at_ms: outcome.at_ms,
            maybe_seen: outcome.maybe_seen,
            reason: outcome.reason.as_deref(),
        })));
        self.mailboxes.pending.push_back(Pending::Nothing);
    }

    /// Sends the outcome of a message to the shard of its sender.
    pub(super) fn tell_end(
        &mut self,
        taken: Taken,
        outcome: MessageOutcome,
        answers_cancel: Option<u32>,
        out: Out<'_>,
    ) {
        let (to, is_of_ephemeral) = (taken.from, taken.is_of_ephemeral);
        let id = taken.id.unwrap_or_default();
        let envelope = Envelope::Outcome { to, id, outcome, answers_cancel, is_of_ephemeral };
        self.send_to_owner(to, envelope, out);
    }

    /// Records the outcome of a message that a device of this shard sent, and puts it into the
    /// device's mailbox.
    pub(super) fn told_outcome(
        &mut self,
        to: DeviceId,
        id: Box<str>,
        outcome: MessageOutcome,
        (answers_cancel, is_of_ephemeral): (Option<u32>, bool),
        out: Out<'_>,
    ) {
        let of = outcome.of;
        let is_stored = outcome.is_stored && self.mailboxes.is_durable;
        let shown = self.show(to);
        let mut device = self.mailboxes.devices.get_mut(&to);
        let Some(device) = device.take_if(|device| device.may_be_told(of, is_of_ephemeral)) else {
            // The receiver's shard keeps the message until it hears of it.
            return self.send_to_owner(of.device, Envelope::Unwanted(of), out);
        };
        let before = device.mailbox.totals();
        device.mailbox.release_outcome(of.device);
        let seq = device.mailbox.next_seq();
        let of_shown = self.directory.names().show(of.device);
        let is_ephemeral = device.is_ephemeral;
        if is_stored && is_ephemeral {
            // The store knows nothing of an ephemeral device, and so takes no record of the
            // outcome. It must know that the message is gone before the outcome is told.
            out(Effect::Append(Record::Removed { device: of_shown.as_ref(), seq: of.seq }));
        } else if is_stored {
            // One record for the outcome and the removal: no crash leaves one without the other.
            out(Effect::Append(Record::Outcome(OutcomeRecord {
                to: shown.as_ref(),
                seq,
                id: &id,
                of: of_shown.as_ref(),
                of_seq: of.seq,
                outcome: outcome.kind,
                at_ms: outcome.at_ms,
                maybe_seen: outcome.maybe_seen,
                reason: outcome.reason.as_deref(),
            })));
        }
        let len = id.len() + outcome.reason.as_ref().map_or(0, |reason| reason.len());
        let reason = outcome.reason.as_deref();
        let content =
            Content::outcome(&id, outcome.kind, outcome.at_ms, outcome.maybe_seen, reason);
        let cancelled = answers_cancel.map(|session| (id, session));
        let kept = Kept::stored(is_stored && !is_ephemeral);
        // The outcome itself takes that memory now. Both come within one `recount`.
        if kept == Kept::Here {
            device.mailbox.release_memory();
        }
        device.mailbox.push(Entry {
            seq,
            from: of.device,
            position: Position::NOWHERE,
            expires_at: NEVER,
            len: len as u32,
            state: if is_stored { State::Unsynced } else { State::Ready },
            kind: Kind::Outcome,
            kept,
            is_in_flight: false,
            content: Some(content),
        });
        let after = device.mailbox.totals();
        self.recount(before, after);
        if is_stored {
            let pending = Pending::Outcome { to, seq, of, cancelled };
            self.mailboxes.pending.push_back(pending);
        } else {
            self.reserve_seqs(to, out);
            self.outcome_recorded(to, of, cancelled, out);
        }
    }

    /// Tells the receiver's shard that an outcome is as durable as it must be, and the sender's
    /// device the outcome.
    pub(super) fn outcome_recorded(
        &mut self,
        to: DeviceId,
        of: MessageKey,
        cancelled: Option<(Box<str>, u32)>,
        out: Out<'_>,
    ) {
        self.send_to_owner(of.device, Envelope::Settled(of), out);
        if let Some((id, session)) = cancelled {
            self.cancel_reply(to, &id, of.device, session, Ok(of), out);
        }
        self.push_ready(to, out);
    }

    /// Drops a message of this shard's device whose outcome is recorded.
    pub(super) fn settled(&mut self, now: Now, of: MessageKey, out: Out<'_>) {
        if self.settle(of) {
            // The record of the outcome removes only what lies before it, and the copy may lie
            // behind.
            self.record_removed(of.device, of.seq, Pending::Nothing, out);
        }
        self.push_ready(of.device, out);
        self.note_idle(of.device);
        self.end_if_settled(now, of.device, out);
    }

    /// Drops an entry whose removal is recorded.
    pub(super) fn left(&mut self, of: MessageKey, mailbox_name: u64, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get_mut(&of.device) else { return };
        // Under another name the number may be that of a message to a later device of the id.
        if device.mailbox_name != mailbox_name {
            return;
        }
        self.settle(of);
        self.push_ready(of.device, out);
        self.note_idle(of.device);
    }

    /// Drops an entry for good. Returns whether a copy of its record may lie behind that of the
    /// outcome.
    fn settle(&mut self, of: MessageKey) -> bool {
        let Some(device) = self.mailboxes.devices.get_mut(&of.device) else { return false };
        let before = device.mailbox.totals();
        let is_moved = device.mailbox.settle(of.seq);
        let after = device.mailbox.totals();
        self.recount(before, after);
        is_moved
    }

    /// Removes a message whose outcome nobody is to be told.
    pub(super) fn unwanted(&mut self, now: Now, of: MessageKey, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get_mut(&of.device) else { return };
        let before = device.mailbox.totals();
        let is_stored = device.mailbox.unwanted(of.seq);
        let after = device.mailbox.totals();
        self.recount(before, after);
        if is_stored {
            let mailbox_name = self.incarnation(of.device);
            let pending = Pending::Removed { of, mailbox_name };
            self.record_removed(of.device, of.seq, pending, out);
        } else {
            self.settle(of);
            self.push_ready(of.device, out);
        }
        self.note_idle(of.device);
        self.end_if_settled(now, of.device, out);
    }

    /// Cancels a message in the mailbox of this shard's device, if it was never pushed.
    pub(super) fn cancel_here(&mut self, now: Now, cancel: Cancel, out: Out<'_>) {
        let Cancel { from, to, seq, id, session } = cancel;
        let may = self.mailboxes.devices.get(&to).is_some_and(|device| {
            // By its number alone it could be a message of another sender, or an outcome: the
            // receiver may have ended and come back.
            let waits = device.mailbox.find(seq).is_some_and(|entry| {
                entry.from == from && entry.state == State::Ready && !entry.is_outcome()
            });
            waits && seq > device.mailbox.pushed_to()
        });
        let reply = |result| {
            let id = id.clone();
            Envelope::CancelReply { to: from, id, receiver: to, session, result }
        };
        if !may {
            return self.send_to_owner(from, reply(Err(RejectCode::TooLate)), out);
        }
        let is_stored = self
            .mailboxes
            .devices
            .get(&to)
            .and_then(|device| device.mailbox.find(seq))
            .is_some_and(Entry::is_stored);
        // The answer would have to wait until the removal is on disk, which could take long now.
        if is_stored && self.mailboxes.is_failing {
            return self.send_to_owner(from, reply(Err(RejectCode::StoreUnavailable)), out);
        }
        let Some(taken) = self.take(to, seq, Outcome::Cancelled, out) else { return };
        if taken.receipt {
            let (outcome, answers_cancel) = (Outcome::Cancelled, Some(session));
            self.message_ended(now, to, taken, End { outcome, reason: None, answers_cancel }, out);
        } else if is_stored {
            let of = MessageKey { device: to, seq };
            self.record_removed(
                to,
                seq,
                Pending::Cancelled {
                    of,
                    mailbox_name: self.incarnation(to),
                    to: from,
                    id,
                    session,
                },
                out,
            );
        } else {
            self.send_to_owner(from, reply(Ok(MessageKey { device: to, seq })), out);
        }
    }

    /// Ends a device and evicts what waits for it: it was away for its time to live, or is
    /// ephemeral and its connection is gone, or gives way to a new device.
    pub(super) fn end_device(&mut self, now: Now, id: DeviceId, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        if device.mailbox.iter().any(|entry| entry.state == State::Unsynced) {
            // Messages are about to be accepted, and what is accepted must get its outcome.
            let again = now.at.after(std::time::Duration::from_millis(100));
            return self.mailboxes.timers.set(again, super::timers::Alarm::Away, id);
        }
        device.is_ending = true;
        let waiting: Vec<u64> = device
            .mailbox
            .iter()
            .filter(|entry| entry.state == State::Ready)
            .map(|entry| entry.seq)
            .collect();
        // Before the first eviction: a start that finds the record goes on with the end. Without it
        // a crash would give back messages that are evicted, of which there is no record.
        if !waiting.is_empty() {
            self.record_device(id, None, out);
        }
        for seq in waiting {
            if let Some(taken) = self.take(id, seq, Outcome::Evicted, out)
                && taken.receipt
            {
                self.message_ended(now, id, taken, Outcome::Evicted, out);
            }
        }
        self.end_if_settled(now, id, out);
    }

    /// Removes a device that is ending, once no message in its mailbox awaits its outcome.
    fn end_if_settled(&mut self, now: Now, id: DeviceId, out: Out<'_>) {
        // First: every outcome that is recorded comes by here, and the mailbox may be long.
        let Some(device) = self.mailboxes.devices.get(&id).filter(|device| device.is_ending) else {
            return;
        };
        if device.mailbox.iter().any(|entry| entry.state == State::AwaitsOutcome) {
            return;
        }
        if self.mailboxes.is_durable && !device.is_ephemeral {
            let shown = self.show(id);
            out(Effect::Append(Record::Gone { device: shown.as_ref() }));
            self.mailboxes.pending.push_back(Pending::Nothing);
        }
        let Some(mut device) = self.mailboxes.remove(id) else { return };
        // Its mailbox is empty but for what is set aside for outcomes, which nobody is told any
        // more.
        self.recount(device.mailbox.totals(), Totals::default());
        if !device.is_ephemeral {
            self.mailboxes.stats.mailboxes -= 1;
            self.directory.slots().release(id);
        }
        self.directory.forget(id);
        out(Effect::Count(Event::DeviceEnded));
        // In the same step: nobody can send to the new device before its record is appended.
        // What was accepted for it earlier would lie in the log without a device, and be lost
        // after a crash.
        if let Some(waiting) = device.waiting.take() {
            self.begin_anew(now, *waiting, device.takeovers, out);
        }
    }
}

impl Device {
    /// Returns whether the outcome of a message is for this device.
    fn may_be_told(&mut self, of: MessageKey, is_of_ephemeral: bool) -> bool {
        // The device that asked may have ended, and this be another of its id. Where one of the two
        // was ephemeral, the outcome is not for this one.
        let is_mine = match &mut self.receipts {
            Some(receipts) => {
                let is_mine = is_of_ephemeral && receipts.remove(&of);
                shrink(receipts.as_mut(), KEPT);
                is_mine
            }
            None => !is_of_ephemeral,
        };
        is_mine && !self.is_ending
    }

    /// Notes that an ephemeral device awaits the outcome of a message, which was accepted.
    pub(super) fn expects(&mut self, id: crate::Digest, seq: u64) {
        if let Some(sent) = self.sent.find(id)
            && let Some(receipts) = &mut self.receipts
        {
            receipts.insert(MessageKey { device: sent.to, seq });
        }
    }
}
