//! `cancel`: the receiver's shard decides, and answers a second request as the first.

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, Outcome, RejectCode, ServerFrame};

use super::deliver::Deferred;
use super::entry::State;
use super::envelope::{Cancel, DeviceReplyTo, Envelope, Room};
use super::send::rejection;
use super::store::Pending;
use super::{MessageKey, Now, Out};
use crate::broker::Broker;

impl Broker {
    /// Asks the receiver's shard to cancel a message of a v1 device.
    pub(super) fn cancel_frame(
        &mut self,
        now: Now,
        id: DeviceId,
        (message, to): (&str, &str),
        out: Out<'_>,
    ) {
        let receiver = DeviceRef::parse(to).and_then(|to| self.directory.names().find(to));
        let Some(receiver) = receiver else {
            // Nothing can have been sent to it.
            let code = RejectCode::TooLate;
            return self.reject_to(id, (message, Some(to)), code, rejection(code), out);
        };
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        let cancel = Cancel {
            to: receiver,
            id: message.into(),
            incarnation: device.incarnation(),
            reply_to: DeviceReplyTo {
                shard: self.shard,
                device: id,
                session: device.session.as_ref().map_or(0, |session| session.number),
                is_told: false,
                room: Room::None,
            },
        };
        self.send_to_owner(receiver, Envelope::Cancel(cancel), out);
        self.settle_local(now, out);
    }

    /// Cancels a message to a device of this shard, if it was never pushed.
    pub(super) fn cancel_here(&mut self, now: Now, cancel: Cancel, out: Out<'_>) {
        let from = cancel.reply_to.device;
        let key = self.key_of((from, cancel.incarnation), cancel.to, &cancel.id);
        let max = self.mailboxes.window_max();
        let seen = self.mailboxes.window.find(now.at, key, &max);
        let Some((seq, is_cancelled)) = seen.map(|seen| (seen.seq, seen.is_cancelled())) else {
            return self.answer_cancel(cancel, Err(RejectCode::TooLate), out);
        };
        let device = self.mailboxes.devices.get(&cancel.to);
        let entry = device.and_then(|device| device.mailbox.find(seq));
        let of = MessageKey { device: cancel.to, seq };
        let (state, is_stored) =
            entry.map_or((State::Gone, false), |entry| (entry.state, entry.is_stored()));
        let is_pushed = device.is_none_or(|device| seq <= device.mailbox.pushed_to());
        match state {
            // It would have to wait until the record is on disk, which could take long now.
            State::Unsynced | State::Ready if is_stored && self.mailboxes.is_failing => {
                self.answer_cancel(cancel, Err(RejectCode::StoreUnavailable), out);
            }
            State::Unsynced => self.defer_cancel(of, cancel, out),
            State::Ready if !is_pushed => {
                self.mailboxes.window.cancelled(key, seq);
                self.take_back(now, of, cancel, out);
            }
            // It is being cancelled, and a crash could still undo that.
            State::AwaitsOutcome | State::Leaving if is_cancelled => {
                self.defer_cancel(of, cancel, out);
            }
            State::Gone if is_cancelled => self.answer_cancel(cancel, Ok(()), out),
            _ => self.answer_cancel(cancel, Err(RejectCode::TooLate), out),
        }
    }

    /// Cancels a message that is synced now, for which the request waited.
    pub(super) fn cancel_synced(&mut self, now: Now, of: MessageKey, cancel: Cancel, out: Out<'_>) {
        let key = self.key_of((cancel.reply_to.device, cancel.incarnation), cancel.to, &cancel.id);
        let seen = self.mailboxes.window.find(now.at, key, &self.mailboxes.window_max());
        // The id may be forgotten by now, as its sender sent many, and stand for a later message.
        if seen.is_some_and(|seen| seen.seq == of.seq) {
            self.cancel_here(now, cancel, out);
        } else {
            self.answer_cancel(cancel, Err(RejectCode::TooLate), out);
        }
    }

    /// Takes a message out of its mailbox, and answers when that is recorded.
    fn take_back(&mut self, now: Now, of: MessageKey, cancel: Cancel, out: Out<'_>) {
        let Some(taken) = self.take(of.device, of.seq, Outcome::Cancelled, out) else { return };
        if !taken.receipt && !taken.is_stored {
            return self.answer_cancel(cancel, Ok(()), out);
        }
        self.defer_cancel(of, cancel, out);
        if taken.receipt {
            self.message_ended(now, of.device, taken, Outcome::Cancelled, out);
        } else {
            let mailbox_name = self.incarnation(of.device);
            let pending = Pending::Removed { of, mailbox_name };
            self.record_removed(of.device, of.seq, pending, out);
        }
    }

    fn defer_cancel(&mut self, of: MessageKey, cancel: Cancel, out: Out<'_>) {
        if let Err(Deferred::Cancel(cancel)) = self.mailboxes.defer(of, Deferred::Cancel(cancel)) {
            self.answer_cancel(cancel, Err(RejectCode::StoreUnavailable), out);
        }
    }

    /// Answers those that cancelled a message whose removal is recorded.
    pub(super) fn cancel_recorded(&mut self, of: MessageKey, out: Out<'_>) {
        for request in self.mailboxes.take_deferred(of) {
            if let Deferred::Cancel(cancel) = request {
                self.answer_cancel(cancel, Ok(()), out);
            }
        }
    }

    /// Sends the answer to a `cancel` to the shard of its sender.
    pub(super) fn answer_cancel(
        &mut self,
        cancel: Cancel,
        result: Result<(), RejectCode>,
        out: Out<'_>,
    ) {
        let Cancel { to: of, id, reply_to, .. } = cancel;
        let envelope = Envelope::CancelReply { reply_to, of, id, result };
        self.send_to_shard(reply_to.shard, envelope, out);
    }

    /// Answers a `cancel`, if the session that asked is still there.
    pub(super) fn cancel_reply(
        &mut self,
        reply_to: DeviceReplyTo,
        of: DeviceId,
        id: &str,
        result: Result<(), RejectCode>,
        out: Out<'_>,
    ) {
        let session = self.session(reply_to.device);
        if session.is_some_and(|session| session.number == reply_to.session) {
            let to = self.show(of);
            match result {
                Ok(()) => {
                    let frame = ServerFrame::Cancelled { id, to: to.as_ref() };
                    self.tell(reply_to.device, &frame, out);
                }
                Err(code) => {
                    let to = to.as_ref().to_string();
                    let about = (id, Some(&*to));
                    self.reject_to(reply_to.device, about, code, rejection(code), out);
                }
            }
        }
    }
}
