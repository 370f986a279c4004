//! The sender's part of a message's way: what its shard checks before the receiver's decides, and
//! what it makes of the reply.

use std::borrow::Cow;
use std::fmt;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{
    DeviceRef, Durability, PublicId, RejectCode, Send, ServerFrame, body_len_of_text,
    is_short_message, message_len,
};

use super::asked::{AskedKey, Room};
use super::envelope::{Deliver, DeviceReplyTo, Envelope, NoRoom, Reply, ReplyTo, TextReplyTo};
use super::mailbox::Mailbox;
use super::reserved::OutcomesFull;
use super::session::Speaker;
use super::totals::OUTCOME_MEMORY;
use super::{Event, MessageKey, Now, Out, owner};
use crate::broker::{Broker, Effect, Refusal};
use crate::duplicates::LastText;
use crate::{Conn, ShardId};

/// The longest id that the server can make for a text.
pub(super) const MADE_ID_LONGEST: &str = "text-9007199254740991";

/// Characters of an unknown address that are quoted in the answer.
const ECHO_CHARS_MAX: usize = 128;

impl Broker {
    /// Sends a message of a v1 device, or rejects it.
    pub(super) fn send_frame(
        &mut self,
        now: Now,
        conn: Conn,
        speaker: Speaker,
        send: &Send<'_>,
        out: Out<'_>,
    ) {
        if let Err((code, message)) = self.send(now, conn, speaker, send, out) {
            self.reject(speaker.device, &send.id, code, &message, out);
        }
    }

    fn send(
        &mut self,
        now: Now,
        conn: Conn,
        speaker: Speaker,
        send: &Send<'_>,
        out: Out<'_>,
    ) -> Result<(), (RejectCode, String)> {
        let id = speaker.device;
        let to = self.known(id, send)?;
        if speaker.is_filtered && !self.may_send(id, to) {
            return Err(not_allowed(send));
        }
        // The shard that decides about the receiver, whether or not the receiver exists.
        let shard = self.shard_with(to).unwrap_or_else(|| owner(to, self.mailboxes.shards));
        self.check_send(id, send)?;
        let no_room =
            if send.receipt { self.reserve_outcome(now, speaker, to, &send.id) } else { None };
        let deliver = Deliver {
            from: id,
            to,
            id: Cow::Borrowed(&send.id),
            incarnation: speaker.incarnation,
            body: Cow::Borrowed(send.body),
            re: send.re.as_deref().map(Cow::Borrowed),
            sent_at_ms: now.wall_ms,
            expires_at_ms: send
                .ttl_ms
                .map(|ms| self.mailboxes.clock.stamp(now.at).saturating_add(ms)),
            durability: send.durability,
            receipt: send.receipt,
            no_room,
            reply_to: ReplyTo::Device(self.reply_to(conn, speaker, send.receipt)),
        };
        self.hand_in(now, shard, deliver, out);
        Ok(())
    }

    /// Reserves room for the outcome of a message, and memory, if there is some. Returns what it found
    /// no room for.
    #[cold]
    fn reserve_outcome(
        &mut self,
        now: Now,
        speaker: Speaker,
        to: DeviceId,
        id: &str,
    ) -> Option<NoRoom> {
        let from = speaker.device;
        let key = self.asked_key((from, speaker.incarnation), to, id);
        if let Some(room) = self.mailboxes.asked.share(&key) {
            // The first attempt has room, and the two have one outcome.
            return (room == Room::Place).then_some(NoRoom::Memory);
        }
        let limits = &self.mailboxes.limits;
        let quota = limits.outcomes_quota_of(from);
        let used = self.mailboxes.stats.memory as usize;
        let anonymous = self.mailboxes.anonymous;
        let device = self.mailboxes.devices.get_mut(&from)?;
        if let Err(full) = device.mailbox.reserve_outcome(to, &quota) {
            return Some(NoRoom::Outcomes(full));
        }
        let no_memory = if used + OUTCOME_MEMORY > limits.memory_messages_max_bytes {
            Some(NoRoom::Memory)
        } else if from.is_number()
            && anonymous.is_above((0, OUTCOME_MEMORY), limits, &self.directory)
        {
            Some(NoRoom::AnonymousMemory)
        } else {
            None
        };
        let mut room = Room::Place;
        if no_memory.is_none() {
            self.change_mailbox(from, Mailbox::reserve_memory);
            room = Room::PlaceAndMemory;
        }
        self.mailboxes.asked.add(now.at, key, room);
        no_memory
    }

    fn asked_key(
        &self,
        (from, incarnation): (DeviceId, Option<u64>),
        to: DeviceId,
        id: &str,
    ) -> AskedKey {
        AskedKey { from, incarnation, to, id: self.key.digest(id.as_bytes()) }
    }

    /// Keeps or releases the room that was reserved for the outcome of a message, depending on the
    /// reply to the message.
    #[cold]
    fn settle_room(&mut self, reply_to: &DeviceReplyTo, of: DeviceId, id: &str, reply: Reply) {
        // An attempt that had no room has none to release: if there is some, it belongs to a later
        // one.
        if matches!(reply, Reply::Unknown | Reply::OutcomesFull(_)) {
            return;
        }
        let key = self.asked_key((reply_to.device, reply_to.incarnation), of, id);
        let Reply::Accepted { seq, durability, duplicate: false } = reply else {
            // No outcome will come, or it is the outcome of an earlier attempt.
            if let Some(room) = self.mailboxes.asked.refused(&key) {
                self.release_room(&key, room);
            }
            return;
        };
        let room = self.mailboxes.asked.take(&key);
        let Some(device) = self.mailboxes.devices.get_mut(&reply_to.device) else { return };
        if device.incarnation() != key.incarnation {
            // The device that asked has ended, and this is another one of its id.
            return;
        }
        if room.is_none() {
            // It was given back as the reply took so long, or went to another attempt, which was
            // accepted as a message of its own.
            device.mailbox.expect_outcome(of);
        }
        if durability == Durability::Memory || device.is_ephemeral {
            device.expects(MessageKey { device: of, seq });
        } else if room == Some(Room::PlaceAndMemory) {
            // The outcome will be in the store, after all.
            self.change_mailbox(reply_to.device, Mailbox::release_memory);
        }
    }

    /// Releases the room of messages whose replies have been awaited for too long.
    pub(super) fn asked_tick(&mut self, now: Now) {
        if self.mailboxes.asked.due().is_some_and(|at| at <= now.at) {
            for (key, room) in self.mailboxes.asked.turn(now.at) {
                self.release_room(&key, room);
            }
        }
    }

    fn release_room(&mut self, key: &AskedKey, room: Room) {
        let Some(device) = self.mailboxes.devices.get_mut(&key.from) else { return };
        if device.incarnation() != key.incarnation {
            // The room went with the device that had it; this is another one of its id.
            return;
        }
        device.mailbox.release_outcome(key.to);
        if room == Room::PlaceAndMemory {
            self.change_mailbox(key.from, Mailbox::release_memory);
        }
    }

    /// Gives a message to the shard of its receiver.
    #[inline]
    fn hand_in(&mut self, now: Now, shard: ShardId, deliver: Deliver<'_>, out: Out<'_>) {
        if shard == self.shard {
            // In place, and not through the local queue: nothing of it is copied or allocated.
            self.deliver(now, &deliver, out);
        } else {
            let envelope = Envelope::Deliver(Box::new(deliver.into_owned()));
            out(Effect::Send { shard, envelope });
        }
    }

    /// Returns the id of the receiver; a name must have belonged to a device at some time.
    ///
    /// For a receiver that the sender's token does not allow, the answer is the same whether or not
    /// it exists.
    fn known(&self, id: DeviceId, send: &Send<'_>) -> Result<DeviceId, (RejectCode, String)> {
        let device = DeviceRef::parse(&send.to).ok_or_else(|| nobody(send))?;
        let is_allowed = || self.allows(id, device);
        self.directory
            .names()
            .find(device)
            .ok_or_else(|| if is_allowed() { nobody(send) } else { not_allowed(send) })
    }

    /// Returns the shard of a device, with or without a mailbox.
    #[inline]
    pub(crate) fn shard_with(&self, to: DeviceId) -> Option<ShardId> {
        if self.mailboxes.devices.contains_key(&to) || self.conns.contains_key(&to) {
            return Some(self.shard);
        }
        self.directory.owner_of(to).map(|owner| owner.shard)
    }

    fn check_send(&self, from: DeviceId, send: &Send<'_>) -> Result<(), (RejectCode, String)> {
        if !self.fits_a_frame(from, &send.id, send.re.as_deref(), send.body.len()) {
            let max = self.mailboxes.limits.message_bytes_max;
            let message = format!(
                "as it is pushed to its receiver the message would be longer than {max} bytes \
                 (max_message_bytes): send less"
            );
            return Err((RejectCode::TooLarge, message));
        }
        let strongest = self.strongest();
        if send.durability.is_some_and(|durability| durability > strongest) {
            let message = format!("the strongest durability of this server is {strongest}");
            return Err((RejectCode::DurabilityUnavailable, message));
        }
        if send.ttl_ms == Some(0) {
            let message = "`ttl_ms` must be at least 1; leave it out for no end";
            return Err((RejectCode::BadRequest, message.to_owned()));
        }
        Ok(())
    }

    /// Returns whether a message is within `max_message_bytes` as it will be pushed, whatever
    /// number it gets.
    #[inline(always)]
    fn fits_a_frame(&self, from: DeviceId, id: &str, re: Option<&str>, body: usize) -> bool {
        // A receiver that bounds what it reads by the number in `welcome` would close on a longer
        // frame, and again each time that it connects.
        let max = self.mailboxes.limits.message_bytes_max;
        let strings = id.len() + re.map_or(0, str::len);
        is_short_message(body, strings, max)
            || message_len(self.show(from).as_ref(), id, body, re) <= max
    }

    /// Tells the sender the reply of the receiver's shard to its message.
    pub(super) fn reply(
        &mut self,
        reply_to: DeviceReplyTo,
        of: DeviceId,
        id: &str,
        reply: Reply,
        out: Out<'_>,
    ) {
        if reply_to.receipt {
            self.settle_room(&reply_to, of, id, reply);
        }
        if let Reply::Accepted { durability, duplicate, .. } = reply {
            out(Effect::Count(match duplicate {
                false => Event::Accepted(durability),
                true => Event::Duplicate,
            }));
        }
        let conn = reply_to.conn;
        if !self.awaits(&reply_to) || reply_to.is_told {
            return;
        }
        let (code, message) = match reply {
            Reply::Accepted { durability, duplicate, .. } => {
                let frame = &ServerFrame::Accepted { id, durability, duplicate };
                return out(Effect::Tell { conn, frame });
            }
            Reply::Rejected(RejectCode::NoSuchDevice) => {
                (RejectCode::NoSuchDevice, Cow::Owned(no_such_device(self.show(of).as_ref())))
            }
            Reply::Rejected(code) => (code, Cow::Borrowed(rejection(code))),
            Reply::Unknown => {
                let code = RejectCode::StoreUnavailable;
                (code, Cow::Borrowed(rejection(code)))
            }
            Reply::MemoryFull => (RejectCode::StoreFull, Cow::Borrowed(MEMORY_FULL)),
            Reply::AnonymousFull => (RejectCode::StoreFull, Cow::Borrowed(ANONYMOUS_FULL)),
            Reply::OverShare => (RejectCode::MailboxFull, Cow::Borrowed(OVER_SHARE)),
            Reply::OutcomesFull(full) => {
                (RejectCode::OutcomesFull, Cow::Owned(outcomes_full(full, &self.show(of))))
            }
        };
        self.reject(reply_to.device, id, code, &message, out);
    }

    /// Sends a text of a device of the text protocol to a device that has a mailbox.
    pub(crate) fn send_text(
        &mut self,
        now: Now,
        reply_to: TextReplyTo,
        to: DeviceId,
        text: &[u8],
        out: Out<'_>,
    ) -> Result<(), Refusal> {
        let shard = self.shard_with(to).ok_or(Refusal::NoSuchDevice)?;
        // Before memory is spent on the body: escaped it may be six times as long as the text.
        if !self.fits_a_frame(reply_to.device, MADE_ID_LONGEST, None, body_len_of_text(text)) {
            return Err(Refusal::MailboxFull);
        }
        let mut body = Vec::with_capacity(text.len() + 2);
        switchboard_proto::v1::write_body_of_text(&mut body, text);
        let deliver = Deliver {
            from: reply_to.device,
            to,
            id: Cow::Borrowed(""),
            incarnation: None,
            body: Cow::Owned(body),
            re: None,
            sent_at_ms: now.wall_ms,
            expires_at_ms: None,
            durability: None,
            receipt: false,
            no_room: None,
            reply_to: ReplyTo::Text(reply_to),
        };
        // The answers to a connection's commands must keep their order.
        if shard != self.shard {
            out(Effect::AwaitReply { conn: reply_to.conn });
        }
        self.hand_in(now, shard, deliver, out);
        Ok(())
    }

    /// Notes the reply of the receiver's shard to a text, and tells the sender if it is refused.
    pub(super) fn text_reply(
        &mut self,
        now: Now,
        reply_to: TextReplyTo,
        reply: Result<(), RejectCode>,
        out: Out<'_>,
    ) {
        // The connection, or its number, may be another device's or another session's by now.
        let session = self.session(reply_to.device).map_or(0, |session| session.number);
        if session != reply_to.session {
            return;
        }
        let device = self.devices.get_mut(reply_to.conn.0 as usize).and_then(Option::as_mut);
        let Some(device) = device.filter(|device| device.id == reply_to.device) else { return };
        match reply {
            Ok(()) => {
                device.last = Some(LastText::new(reply_to.text, now.at));
                out(Effect::TextAccepted { conn: reply_to.conn });
            }
            Err(code) => {
                let refusal = match code {
                    RejectCode::NoSuchDevice => Refusal::NoSuchDevice,
                    _ => Refusal::MailboxFull,
                };
                out(Effect::Refuse { conn: reply_to.conn, refusal });
            }
        }
        out(Effect::Replied { conn: reply_to.conn });
    }
}

/// Texts of rejections whose code alone says too little.
const MEMORY_FULL: &str = "the server's memory for messages is used up; it is free again when some of them are \
                           acked or expire";
const ANONYMOUS_FULL: &str = "devices without a name have their part of the server's space for messages in use; it \
                              is free again when some of them are acked or expire";
const OVER_SHARE: &str = "your share of the receiver's mailbox is used up: wait until it has dealt \
                          with what you sent";

fn not_allowed(send: &Send<'_>) -> (RejectCode, String) {
    (RejectCode::NotAllowed, format!("your token's allow_send does not name {}", send.to))
}

fn no_such_device(id: impl fmt::Display) -> String {
    format!("no device has the id {id}")
}

fn nobody(send: &Send<'_>) -> (RejectCode, String) {
    let shown: String = send.to.chars().take(ECHO_CHARS_MAX).collect();
    (RejectCode::NoSuchDevice, no_such_device(shown))
}

/// Returns a text that says which outcomes take the room, and what frees it.
#[cold]
fn outcomes_full(full: OutcomesFull, to: &PublicId) -> String {
    match full {
        OutcomesFull::All { pending, waiting } => format!(
            "outcomes of {pending} messages are pending and {waiting} wait (outcomes_max): ack what waits, \
             cancel messages or give them a ttl_ms"
        ),
        OutcomesFull::Receiver { pending } => format!(
            "outcomes of {pending} messages to {} are pending: cancel them or give them a ttl_ms",
            to.as_ref()
        ),
        OutcomesFull::Anonymous { pending } => format!(
            "outcomes of {pending} messages to devices without a name are pending: cancel them or give \
             them a ttl_ms"
        ),
    }
}

/// Returns the text of a rejection about which only its code is known.
pub(super) fn rejection(code: RejectCode) -> &'static str {
    match code {
        RejectCode::NoSuchDevice => "no such device",
        RejectCode::StoreFull => {
            "the server's disk space for messages is used up; it is free again when messages that wait \
             are acked or expire"
        }
        RejectCode::MailboxFull => "the receiver's mailbox is full; nothing in it is dropped",
        RejectCode::TooLarge => "the message is larger than the receiver's mailbox",
        RejectCode::DurabilityUnavailable => {
            "the receiver keeps less: an ephemeral device has memory only, one of the text protocol \
             nothing (no durability, receipt or ttl_ms)"
        }
        RejectCode::StoreUnavailable => {
            "the store cannot write now, or too many requests wait for this message; whether it is \
             kept is not known: send this again with the same id"
        }
        RejectCode::IdReused => {
            "this id stood for another body to this receiver; a new message needs a new id"
        }
        RejectCode::TooLate => "it was pushed, is gone, or was never here",
        _ => "rejected",
    }
}
