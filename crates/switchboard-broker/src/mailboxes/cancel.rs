//! `cancel`: the receiver's shard decides, and answers a second request as the first.

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, Outcome, RejectCode, ServerFrame};

use super::deliver::Deferred;
use super::entry::State;
use super::envelope::{Cancel, DeviceReplyTo, Envelope};
use super::outcome::End;
use super::send::rejection;
use super::session::Speaker;
use super::{MessageKey, Now, Out};
use crate::broker::Broker;
use crate::{Conn, Digest};

impl Broker {
    /// Asks the receiver's shard to cancel a message of a v1 device.
    pub(super) fn cancel_frame(
        &mut self,
        now: Now,
        conn: Conn,
        speaker: Speaker,
        (message, to): (&str, &str),
        out: Out<'_>,
    ) {
        let id = speaker.device;
        let receiver = DeviceRef::parse(to).and_then(|to| self.directory.names().find(to));
        let Some(receiver) = receiver else {
            // Nothing can have been sent to it.
            let code = RejectCode::TooLate;
            return self.reject_to(id, (message, Some(to)), code, rejection(code), out);
        };
        let cancel = Cancel {
            to: receiver,
            id: message.into(),
            reply_to: self.reply_to(conn, speaker, false),
        };
        self.send_to_owner(receiver, Envelope::Cancel(cancel), out);
        self.settle_local(now, out);
    }

    /// Cancels a message to a device of this shard, if it was never pushed.
    pub(super) fn cancel_here(&mut self, now: Now, cancel: Cancel, out: Out<'_>) {
        let from = cancel.reply_to.device;
        let key = self.key_of((from, cancel.reply_to.incarnation), cancel.to, &cancel.id);
        let max = self.mailboxes.window_max();
        let seen = self.mailboxes.window.find(now.at, key, &max);
        let Some((seq, is_cancelled)) = seen.map(|seen| (seen.seq, seen.is_cancelled())) else {
            return self.answer_cancel(cancel, Err(RejectCode::TooLate), out);
        };
        self.cancel_at(now, (key, seq), is_cancelled, cancel, out);
    }

    /// As [`Broker::cancel_here`], for the message with this number. Returns whether the message
    /// is, or is being, cancelled.
    pub(super) fn cancel_at(
        &mut self,
        now: Now,
        (key, seq): (Digest, u64),
        is_cancelled: bool,
        cancel: Cancel,
        out: Out<'_>,
    ) -> bool {
        let device = self.mailboxes.devices.get(&cancel.to);
        let entry = device.and_then(|device| device.mailbox.find(seq));
        let of = MessageKey { device: cancel.to, seq };
        let (state, is_stored) =
            entry.map_or((State::Gone, false), |entry| (entry.state, entry.is_stored()));
        let is_pushed = device.is_none_or(|device| seq <= device.mailbox.pushed_to());
        let refused = match state {
            // It would have to wait until the record is on disk, which could take long now.
            State::Unsynced | State::Ready if is_stored && self.mailboxes.is_failing => {
                RejectCode::StoreUnavailable
            }
            State::Unsynced => {
                self.defer_cancel(of, cancel, out);
                return is_cancelled;
            }
            State::Ready if !is_pushed => {
                self.mailboxes.window.cancelled(key, seq);
                self.take_back(now, of, cancel, out);
                return true;
            }
            // It is being cancelled, and a crash could still undo that.
            State::Leaving if is_cancelled => {
                self.defer_cancel(of, cancel, out);
                return true;
            }
            State::Gone if is_cancelled => {
                self.answer_cancel(cancel, Ok(()), out);
                return true;
            }
            _ => RejectCode::TooLate,
        };
        self.answer_cancel(cancel, Err(refused), out);
        is_cancelled
    }

    /// Takes a message out of its mailbox, and answers when that is recorded.
    fn take_back(&mut self, now: Now, of: MessageKey, cancel: Cancel, out: Out<'_>) {
        let Some(taken) = self.take(of.device, of.seq, Outcome::Cancelled, out) else { return };
        let cancelled = Some(cancel.id.clone());
        if taken.is_stored {
            self.defer_cancel(of, cancel, out);
        } else {
            self.answer_cancel(cancel, Ok(()), out);
        }
        let end = End { outcome: Outcome::Cancelled, reason: None, cancelled };
        self.message_ended(now, of.device, taken, end, out);
    }

    fn defer_cancel(&mut self, of: MessageKey, cancel: Cancel, out: Out<'_>) {
        if let Err(Deferred::Cancel(cancel)) = self.mailboxes.defer(of, Deferred::Cancel(cancel)) {
            self.answer_cancel(cancel, Err(RejectCode::StoreUnavailable), out);
        }
    }

    /// Answers the `cancel`s of a message whose removal is recorded.
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
        if !self.awaits(&reply_to) {
            return;
        }
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
