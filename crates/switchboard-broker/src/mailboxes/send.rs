//! The way of a message into a mailbox, and its `cancel`: the sender's shard recognizes retries,
//! the receiver's checks for room.

use std::borrow::Cow;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{
    DeviceRef, Durability, ID_LEN_MAX, REASON_LEN_MAX, RejectCode, Send, ServerFrame,
    body_len_of_text, is_short_message, message_len,
};

use super::entry::{Entry, Kept, Kind, NEVER, State};
use super::envelope::{Cancel, Deliver, Envelope, Reply, ReplyTo, TextReplyTo};
use super::reserved::OutcomesFull;
use super::sent::{Known, NewId, SentState};
use super::store::{Pending, StoreGate};
use super::timers::Alarm;
use super::totals::{memory_of, messages_max};
use super::{Content, Event, MessageKey, MessageRecord, Now, Out, Position, Record};
use crate::broker::{Broker, Effect, Refusal};
use crate::duplicates::LastText;
use crate::{Conn, Digest, RECEIPT_BYTES, ShardId};

/// The longest id that the server can make for a text.
const MADE_ID_LONGEST: &str = "text-9007199254740991";

/// Characters of an unknown address that are quoted in the answer.
const ECHO_CHARS_MAX: usize = 128;

/// Numbers that are reserved at once, so that messages in memory need a record only now and then.
const SEQS_RESERVED: u64 = 4_096;

/// Result of noting a message that is being sent.
#[derive(Debug, Default)]
struct Noted {
    /// True if its sender is ephemeral.
    is_ephemeral: bool,
    /// True if memory is set aside for its outcome.
    keeps_memory: bool,
}

impl Broker {
    /// Sends a message of a v1 device, or rejects it.
    pub(super) fn send_frame(&mut self, now: Now, id: DeviceId, send: &Send<'_>, out: Out<'_>) {
        if let Err((code, message)) = self.send(now, id, send, out) {
            self.reject(id, &send.id, code, &message, out);
        }
    }

    fn send(
        &mut self,
        now: Now,
        id: DeviceId,
        send: &Send<'_>,
        out: Out<'_>,
    ) -> Result<(), (RejectCode, String)> {
        let to = self.known(id, send)?;
        let digest = self.key.digest(send.id.as_bytes());
        let content = self.content(to, send.body);
        // Before all other checks: whatever has changed since, a retry is told what became of the
        // first attempt.
        let (known, digest) = self.judge_sent(now, id, digest, content);
        match known {
            Known::Other => return Err(reused()),
            Known::Same => return self.send_again(id, send, digest, out),
            Known::No => {}
        }
        let shard = self.receiver(id, to, send)?;
        self.check_send(id, send)?;
        // Last, as it reserves room: from here on only the receiver's shard can reject the message.
        let Noted { is_ephemeral, keeps_memory } =
            self.note_sent(now, id, send, (to, digest, content))?;
        let deliver = Deliver {
            from: id,
            to,
            id: Cow::Borrowed(&send.id),
            digest,
            body: Cow::Borrowed(send.body),
            re: send.re.as_deref().map(Cow::Borrowed),
            sent_at_ms: now.wall_ms,
            at: now.at,
            expires_at_ms: send
                .ttl_ms
                .map(|ms| self.mailboxes.clock.stamp(now.at).saturating_add(ms)),
            durability: send.durability,
            receipt: send.receipt,
            has_outcome_memory: keeps_memory,
            keeps_id: !is_ephemeral,
            reply_to: ReplyTo::Device(self.shard),
        };
        self.hand_in(now, shard, deliver, out);
        Ok(())
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

    /// Looks up the id of a message that a device sends now. Returns the result, and the digest
    /// under which the id is kept.
    fn judge_sent(
        &mut self,
        now: Now,
        id: DeviceId,
        digest: Digest,
        content: Digest,
    ) -> (Known, Digest) {
        let limits = &self.mailboxes.limits;
        let (window, max) = (limits.dedup_window, limits.dedup_ids_per_device_max);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return (Known::No, digest) };
        let digest = device.own_digest(digest);
        let dropped = device.sent.forget(now.at, window, max);
        let known = device.sent.judge(digest, content, |sent| now.at.since(sent.at()) >= window);
        let dropped = device.sent.dropped(dropped);
        self.mailboxes.ids_dropped(id, dropped);
        (known, digest)
    }

    /// Notes the id of a message that is being sent, and reserves room for its outcome.
    fn note_sent(
        &mut self,
        now: Now,
        id: DeviceId,
        send: &Send<'_>,
        (to, digest, content): (DeviceId, Digest, Digest),
    ) -> Result<Noted, (RejectCode, String)> {
        let durability = send.durability.unwrap_or(self.strongest());
        if self.mailboxes.is_failing
            && durability == Durability::Disk
            && let Some(code) = self.mailboxes.store_refuses()
        {
            return Err((code, rejection(code).to_owned()));
        }
        let limits = &self.mailboxes.limits;
        let (ids_max, quota) = (limits.dedup_ids_per_device_max, limits.outcomes_quota_of(id));
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return Ok(Noted::default()) };
        let is_ephemeral = device.is_ephemeral;
        if device.sent.len() >= ids_max {
            // The oldest id is not answered yet, and must not be forgotten before it is.
            let message = "too many messages of yours wait for their answers";
            return Err((RejectCode::RateLimited, message.to_owned()));
        }
        if send.receipt
            && let Err(full) = device.mailbox.reserve_outcome(to, &quota)
        {
            return Err(outcomes_full(full, send));
        }
        let session = device.session.as_ref().map_or(0, |session| session.number);
        let keeps_memory = send.receipt && self.keep_outcome_memory(id, to, durability)?;
        let (at, receipt, state) = (now.at, send.receipt, SentState::Asked);
        let new = NewId {
            id: digest,
            content,
            to,
            at,
            durability,
            receipt,
            keeps_memory,
            has_record: false,
            state,
            session,
        };
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return Ok(Noted::default()) };
        device.sent.add(&new);
        let len = device.sent.len();
        self.sent_added(now, id, len);
        Ok(Noted { is_ephemeral, keeps_memory })
    }

    /// Sets memory aside for an outcome; returns whether there was some. The room for the
    /// outcome must be reserved already.
    ///
    /// # Errors
    ///
    /// Code and text of the rejection, if there is no memory and the outcome will be in memory
    /// only.
    #[cold]
    fn keep_outcome_memory(
        &mut self,
        id: DeviceId,
        to: DeviceId,
        durability: Durability,
    ) -> Result<bool, (RejectCode, String)> {
        let limits = &self.mailboxes.limits;
        let len = ID_LEN_MAX + REASON_LEN_MAX;
        let is_above = self.mailboxes.stats.memory as usize + memory_of(len)
            > limits.memory_messages_max_bytes;
        let anonymous = self.mailboxes.anonymous;
        let is_anonymous_above =
            id.is_number() && anonymous.is_above(Durability::Memory, len, limits, &self.directory);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return Ok(false) };
        let before = device.mailbox.totals();
        if !is_above && !is_anonymous_above {
            device.mailbox.reserve_memory();
            let after = device.mailbox.totals();
            self.recount(before, after);
            return Ok(true);
        }
        // The outcome will probably be in the store. If not, because the receiver is ephemeral, its
        // shard rejects the message.
        if durability == Durability::Disk && !device.is_ephemeral {
            return Ok(false);
        }
        device.mailbox.release_outcome(to);
        let message = if is_above { MEMORY_FULL } else { ANONYMOUS_FULL };
        Err((RejectCode::StoreFull, message.to_owned()))
    }

    /// Releases the memory that was set aside for an outcome.
    #[cold]
    fn give_outcome_memory(&mut self, id: DeviceId) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let before = device.mailbox.totals();
        device.mailbox.release_memory();
        let after = device.mailbox.totals();
        self.recount(before, after);
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

    /// Returns the receiver's shard.
    fn receiver(
        &self,
        id: DeviceId,
        to: DeviceId,
        send: &Send<'_>,
    ) -> Result<ShardId, (RejectCode, String)> {
        if !self.may_send(id, to) {
            return Err(not_allowed(send));
        }
        self.shard_with(to).ok_or_else(|| nobody(send))
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

    /// Answers a retry as the first attempt was answered, or will be.
    fn send_again(
        &mut self,
        id: DeviceId,
        send: &Send<'_>,
        digest: Digest,
        out: Out<'_>,
    ) -> Result<(), (RejectCode, String)> {
        out(Effect::Count(Event::Duplicate));
        let is_failing = self.mailboxes.is_failing;
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return Ok(()) };
        let session = device.session.as_ref().map_or(0, |session| session.number);
        let Some(sent) = device.sent.find(digest) else { return Ok(()) };
        let durability = sent.durability();
        if let SentState::Accepted { .. } = sent.state() {
            let frame = ServerFrame::Accepted { id: &send.id, durability, duplicate: true };
            self.tell(id, &frame, out);
            return Ok(());
        }
        // Its answer may be long in coming. The first attempt was told the same.
        if is_failing && durability == Durability::Disk {
            return Err(store_unavailable());
        }
        device.sent.ask_again(digest, session);
        Ok(())
    }

    /// Puts a message into the mailbox of its receiver, which is of this shard, or rejects it.
    pub(super) fn deliver(&mut self, now: Now, deliver: &Deliver<'_>, out: Out<'_>) {
        let reply = match self.judge_room(deliver) {
            Ok(durability) => return self.put(now, deliver, durability, out),
            Err(reply) => match self.conns.get(&deliver.to) {
                Some(&conn) if reply == Reply::Rejected(RejectCode::NoSuchDevice) => {
                    self.deliver_text(conn, deliver, out)
                }
                _ => reply,
            },
        };
        self.answer(now, deliver.reply_to, deliver.from, (deliver.digest, &deliver.id), reply, out);
    }

    /// Delivers a message to an anonymous device of the text protocol, which has no mailbox.
    fn deliver_text(&self, conn: Conn, deliver: &Deliver<'_>, out: Out<'_>) -> Reply {
        // None of these can be promised without a mailbox.
        if deliver.durability.is_some() || deliver.receipt || deliver.expires_at_ms.is_some() {
            return Reply::Rejected(RejectCode::DurabilityUnavailable);
        }
        let from = self.show(deliver.from);
        out(Effect::DeliverBody { conn, from: from.as_ref(), body: &deliver.body });
        Reply::Accepted { seq: 0, durability: Durability::None }
    }

    /// Checks whether there is room for a message; returns the durability that it gets.
    ///
    /// # Errors
    ///
    /// The reply to its sender, if the message is not accepted.
    fn judge_room(&mut self, deliver: &Deliver<'_>) -> Result<Durability, Reply> {
        let (strongest, store_refuses) = (self.strongest(), self.mailboxes.store_refuses());
        // One that is ending exists only until the outcomes of what waited for it are recorded.
        let device = self.mailboxes.devices.get_mut(&deliver.to).filter(|device| !device.is_ending);
        let device = device.ok_or(Reply::Rejected(RejectCode::NoSuchDevice))?;
        let strongest = if device.is_ephemeral { Durability::Memory } else { strongest };
        let durability = deliver.durability.unwrap_or(strongest);
        if durability > strongest {
            return Err(Reply::Rejected(RejectCode::DurabilityUnavailable));
        }
        if durability == Durability::Disk
            && let Some(code) = store_refuses
        {
            return Err(Reply::Rejected(code));
        }
        let stays_in_memory = durability == Durability::Memory;
        if deliver.receipt && stays_in_memory && !deliver.has_outcome_memory {
            return Err(Reply::MemoryFull);
        }
        let has_stored_outcome = deliver.receipt && durability == Durability::Disk;
        if has_stored_outcome && !self.directory.may_promise_outcome(deliver.from) {
            return Err(Reply::Rejected(RejectCode::StoreFull));
        }
        let limits = &self.mailboxes.limits;
        let len = deliver.len_under(&deliver.id);
        if len > limits.mailbox_bytes_max {
            return Err(Reply::Rejected(RejectCode::TooLarge));
        }
        // The id that is made for a text is known only in the mailbox: the longest counts.
        let made = if deliver.id.is_empty() { MADE_ID_LONGEST.len() } else { 0 };
        let memory = self.mailboxes.stats.memory as usize + memory_of(len + made);
        if durability == Durability::Memory && memory > limits.memory_messages_max_bytes {
            return Err(Reply::MemoryFull);
        }
        // Messages on disk have an entry in memory, too, which may be about as long as the record:
        // the bound on the store does not bound these.
        let messages_max = messages_max(limits.memory_messages_max_bytes);
        if self.mailboxes.stats.messages as usize >= messages_max {
            return Err(Reply::MemoryFull);
        }
        let with_outcome = if has_stored_outcome { len + RECEIPT_BYTES } else { len };
        // What compaction frees goes to devices with names first: strangers who store messages and
        // ack them at once would otherwise take it all.
        let is_reserved =
            durability == Durability::Disk && self.mailboxes.gate == StoreGate::NamedOnly;
        let anonymous = self.mailboxes.anonymous;
        if deliver.from.is_number()
            && (is_reserved
                || anonymous.is_above(durability, with_outcome, limits, &self.directory))
        {
            return Err(Reply::AnonymousFull);
        }
        let quota = limits.quota_of(deliver.to);
        if !device.mailbox.has_room(len, &quota) {
            return Err(Reply::Rejected(RejectCode::MailboxFull));
        }
        // Last: it may have to count the senders of all that waits.
        if !device.mailbox.is_within_share(deliver.from, len, &quota) {
            return Err(Reply::OverShare);
        }
        Ok(durability)
    }

    /// Puts a message into its mailbox, and into the store if it is to be there.
    fn put(&mut self, now: Now, deliver: &Deliver<'_>, durability: Durability, out: Out<'_>) {
        let Deliver { to, reply_to, digest, .. } = *deliver;
        let is_stored = durability == Durability::Disk;
        let Some(device) = self.mailboxes.devices.get_mut(&to) else { return };
        let seq = device.mailbox.next_seq();
        let made = deliver.id.is_empty().then(|| format!("text-{seq}"));
        let id = made.as_deref().unwrap_or(&deliver.id);
        let clock = self.mailboxes.clock;
        let expires_at = deliver.expires_at_ms.map_or(NEVER, |at_ms| clock.moment(at_ms));
        let len = deliver.len_under(id);
        let before = device.mailbox.totals();
        device.mailbox.push(Entry {
            seq,
            from: deliver.from,
            position: Position::NOWHERE,
            expires_at,
            len: len as u32,
            state: if is_stored { State::Unsynced } else { State::Ready },
            kind: Kind::message(deliver.receipt, deliver.keeps_id),
            kept: Kept::stored(is_stored),
            is_in_flight: false,
            content: Some(Content::message(
                id,
                deliver.re.as_deref(),
                deliver.sent_at_ms,
                &deliver.body,
            )),
        });
        let after = device.mailbox.totals();
        self.recount(before, after);
        self.set_expiry_alarm(to, expires_at);
        if is_stored {
            // Answered and pushed when it is synced.
            return self.store(deliver, seq, id, out);
        }
        self.reserve_seqs(to, out);
        let reply = Reply::Accepted { seq, durability: Durability::Memory };
        self.answer(now, reply_to, deliver.from, (digest, id), reply, out);
        let from = self.show(deliver.from);
        let newest = ServerFrame::Message {
            seq,
            from: from.as_ref(),
            id,
            body: &deliver.body,
            sent_at_ms: deliver.sent_at_ms,
            re: deliver.re.as_deref(),
        };
        self.push_with(to, Some((seq, &newest)), out);
    }

    /// Appends the record of a message that is in its mailbox.
    fn store(&mut self, deliver: &Deliver<'_>, seq: u64, id: &str, out: Out<'_>) {
        let Deliver { to, reply_to, digest, .. } = *deliver;
        let (to_shown, from) = (self.show(to), self.show(deliver.from));
        out(Effect::Append(Record::Message(MessageRecord {
            to: to_shown.as_ref(),
            seq,
            from: from.as_ref(),
            id,
            is_id_taken: deliver.keeps_id,
            body: &deliver.body,
            re: deliver.re.as_deref(),
            sent_at_ms: deliver.sent_at_ms,
            at: deliver.at,
            expires_at_ms: deliver.expires_at_ms,
            receipt: deliver.receipt,
        })));
        self.mailboxes.pending.push_back(Pending::Message {
            to,
            seq,
            reply_to,
            digest,
            is_told: false,
        });
        // The text protocol promises no durability, so its sender does not wait for the sync.
        if let ReplyTo::Text(reply_to) = reply_to {
            self.answer_text(reply_to, Ok(()), out);
        }
    }

    /// Reserves numbers of a mailbox in the store, so that entries in memory only may be pushed.
    pub(super) fn reserve_seqs(&mut self, id: DeviceId, out: Out<'_>) {
        if !self.mailboxes.is_durable {
            return;
        }
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let next = device.mailbox.next_seq();
        let has = device.mailbox.reserved_to().max(device.reserving_to);
        // Half a block ahead, so that messages do not have to wait for the sync of the next one.
        if next + SEQS_RESERVED / 2 > has {
            device.reserving_to = next + SEQS_RESERVED;
            let session = device.session.as_ref().map(|session| session.number);
            self.record_device(id, session, out);
        }
    }

    /// Sets the alarm for the expiry of a message, if it expires.
    pub(super) fn set_expiry_alarm(&mut self, id: DeviceId, at: crate::Moment) {
        if at == NEVER {
            return;
        }
        if self.mailboxes.devices.contains_key(&id) {
            self.mailboxes.timers.set(at, Alarm::Expiry, id);
        }
    }

    /// As [`Broker::answer`], with sender and id of the message taken from its mailbox.
    pub(super) fn answer_from(
        &mut self,
        now: Now,
        reply_to: ReplyTo,
        (to, seq): (DeviceId, u64),
        digest: Digest,
        reply: Reply,
        out: Out<'_>,
    ) {
        let Some(entry) =
            self.mailboxes.devices.get(&to).and_then(|device| device.mailbox.find(seq))
        else {
            return;
        };
        let from = entry.from;
        let mut id = std::mem::take(&mut self.mailboxes.answered_id);
        id.clear();
        id.push_str(entry.content.as_ref().map_or("", Content::id));
        self.answer(now, reply_to, from, (digest, &id), reply, out);
        self.mailboxes.answered_id = id;
    }

    /// Sends the reply to a message to the shard of its sender.
    fn answer(
        &mut self,
        now: Now,
        reply_to: ReplyTo,
        from: DeviceId,
        (digest, id): (Digest, &str),
        reply: Reply,
        out: Out<'_>,
    ) {
        match (reply_to, reply) {
            (ReplyTo::Device(shard), reply) if shard == self.shard => {
                self.reply(now, from, digest, id, reply, out);
            }
            (ReplyTo::Device(shard), reply) => {
                let envelope = Envelope::Reply { to: from, digest, id: id.into(), reply };
                out(Effect::Send { shard, envelope });
            }
            (ReplyTo::Text(reply_to), Reply::Rejected(code)) => {
                self.answer_text(reply_to, Err(code), out);
            }
            (
                ReplyTo::Text(reply_to),
                Reply::OverShare | Reply::MemoryFull | Reply::AnonymousFull,
            ) => {
                self.answer_text(reply_to, Err(RejectCode::MailboxFull), out);
            }
            (ReplyTo::Text(reply_to), Reply::Accepted { durability: Durability::Memory, .. }) => {
                self.answer_text(reply_to, Ok(()), out);
            }
            // It was answered when the message was appended (`store`).
            (ReplyTo::Text(_), _) => {}
        }
    }

    fn answer_text(&mut self, reply_to: TextReplyTo, reply: Result<(), RejectCode>, out: Out<'_>) {
        self.send_to_shard(reply_to.shard, Envelope::TextReply { reply_to, reply }, out);
    }

    /// Notes the reply of the receiver's shard to a message, and tells the sender.
    pub(super) fn reply(
        &mut self,
        now: Now,
        to: DeviceId,
        digest: Digest,
        id: &str,
        reply: Reply,
        out: Out<'_>,
    ) {
        let Some(device) = self.mailboxes.devices.get_mut(&to) else { return };
        let session = device.session.as_ref().map_or(0, |session| session.number);
        let told_on = device.told_on();
        match reply {
            Reply::Accepted { seq, durability } => {
                let how = (now.at, seq, durability);
                let Some(open) = device.sent.accepted(digest, session, how) else { return };
                if open.receipt && device.is_ephemeral {
                    device.expects(digest, seq);
                } else if open.keeps_memory && durability == Durability::Disk {
                    // The outcome will be in the store, after all.
                    self.give_outcome_memory(to);
                }
                out(Effect::Count(Event::Accepted(durability)));
                for answer in 0..open.answers() {
                    let duplicate = answer > 0 || !open.first;
                    let frame = &ServerFrame::Accepted { id, durability, duplicate };
                    told_on.into_iter().for_each(|conn| out(Effect::Tell { conn, frame }));
                }
                // They waited for the message's number.
                for _ in 0..open.cancels {
                    self.cancel(to, id, open.cancel_session, out);
                }
            }
            Reply::Rejected(_) | Reply::OverShare | Reply::MemoryFull | Reply::AnonymousFull => {
                let (code, message) = match reply {
                    Reply::Rejected(code) => (code, rejection(code)),
                    Reply::MemoryFull => (RejectCode::StoreFull, MEMORY_FULL),
                    Reply::AnonymousFull => (RejectCode::StoreFull, ANONYMOUS_FULL),
                    _ => (RejectCode::MailboxFull, OVER_SHARE),
                };
                let Some((open, dropped)) = device.sent.rejected(digest, session) else { return };
                if open.receipt {
                    device.mailbox.release_outcome(open.to);
                }
                let dropped = device.sent.dropped(dropped);
                self.mailboxes.ids_dropped(to, dropped);
                if open.keeps_memory {
                    self.give_outcome_memory(to);
                }
                for _ in 0..open.answers() {
                    self.reject(to, id, code, message, out);
                }
                for _ in 0..open.cancels {
                    let too_late = Err(RejectCode::TooLate);
                    self.cancel_reply(to, id, open.cancel_session, too_late, out);
                }
            }
            Reply::Unknown => {
                // The id stays as asked, for the message may still be accepted.
                let Some(open) = device.sent.answered(digest, session) else { return };
                for _ in 0..open.answers() {
                    let code = RejectCode::StoreUnavailable;
                    self.reject(to, id, code, rejection(code), out);
                }
            }
        }
    }

    /// Forgets ids of a device whose window is over, or that are too many.
    pub(super) fn forget_sent_of(&mut self, now: Now, id: DeviceId) {
        let limits = &self.mailboxes.limits;
        let (window, max) = (limits.dedup_window, limits.dedup_ids_per_device_max);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let dropped = device.sent.forget(now.at, window, max);
        let dropped = device.sent.dropped(dropped);
        self.mailboxes.ids_dropped(id, dropped);
    }

    /// Counts an id that was added to those of a device, which has `len` now. If all devices
    /// together have too many, some are forgotten.
    #[inline]
    pub(super) fn sent_added(&mut self, now: Now, id: DeviceId, len: usize) {
        self.mailboxes.id_added(id, len);
        // With more of them the alarm for the oldest is set already.
        if len == 1 {
            self.set_window_alarm(now, id);
        }
        if self.mailboxes.stats.sent_ids as usize > self.mailboxes.limits.dedup_ids_max {
            self.mailboxes.forget_of_fullest(now);
        }
    }

    /// Sets the alarm at which ids of a device are forgotten even if it never sends again.
    fn set_window_alarm(&mut self, now: Now, id: DeviceId) {
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        let Some(oldest_at) = device.sent.oldest_at() else { return };
        let window = self.mailboxes.limits.dedup_window;
        // Later than need be: a device that sends all the time forgets as it sends, and must not
        // have an alarm for each id.
        let at = oldest_at.after(window).max(now.at).after(window / 16);
        self.mailboxes.timers.set(at, Alarm::Window, id);
    }

    pub(super) fn window_alarm(&mut self, now: Now, id: DeviceId) {
        let window = self.mailboxes.limits.dedup_window;
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let dropped = device.sent.drop_front(|sent| now.at.since(sent.at()) >= window);
        device.rest_if_away();
        let dropped = device.sent.dropped(dropped);
        self.mailboxes.ids_dropped(id, dropped);
        self.set_window_alarm(now, id);
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
            digest: Digest::default(),
            body: Cow::Owned(body),
            re: None,
            sent_at_ms: now.wall_ms,
            at: now.at,
            expires_at_ms: None,
            durability: None,
            receipt: false,
            has_outcome_memory: false,
            keeps_id: false,
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

    /// Carries out a `cancel` frame.
    pub(super) fn cancel_frame(&mut self, now: Now, id: DeviceId, message: &str, out: Out<'_>) {
        let session = self.session(id).map_or(0, |session| session.number);
        self.cancel(id, message, session, out);
        self.settle_local(now, out);
    }

    /// Asks the receiver's shard to cancel a message, or answers if that is not needed.
    fn cancel(&mut self, id: DeviceId, message: &str, session: u32, out: Out<'_>) {
        let digest = self.key.digest(message.as_bytes());
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let digest = device.own_digest(digest);
        let Some(sent) = device.sent.find(digest) else {
            return self.cancel_reply(id, message, session, Err(RejectCode::TooLate), out);
        };
        match (sent.to, sent.state()) {
            // Done in `reply`, when the message's number is known.
            (_, SentState::Asked) => device.sent.cancel(digest, session),
            // The answer to an earlier `cancel` was lost.
            (to, SentState::Accepted { seq }) if sent.is_cancelled() => {
                let of = MessageKey { device: to, seq };
                self.cancel_reply(id, message, session, Ok(of), out);
            }
            (to, SentState::Accepted { seq }) if seq > 0 => {
                let cancel = Cancel { from: id, to, seq, id: message.into(), session };
                self.send_to_owner(to, Envelope::Cancel(cancel), out);
            }
            _ => self.cancel_reply(id, message, session, Err(RejectCode::TooLate), out),
        }
    }

    /// Notes the result of a `cancel`, and answers it if the session that asked is still there.
    pub(super) fn cancel_reply(
        &mut self,
        to: DeviceId,
        id: &str,
        session: u32,
        result: Result<MessageKey, RejectCode>,
        out: Out<'_>,
    ) {
        if let Some(device) = self.mailboxes.devices.get_mut(&to)
            && let Ok(of) = result
        {
            let digest = device.own_digest(self.key.digest(id.as_bytes()));
            device.sent.cancelled(digest, of);
        }
        if self.session(to).is_none_or(|current| current.number != session) {
            return;
        }
        match result {
            Ok(_) => self.tell(to, &ServerFrame::Cancelled { id }, out),
            Err(code) => self.reject(to, id, code, rejection(code), out),
        }
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

fn nobody(send: &Send<'_>) -> (RejectCode, String) {
    let shown: String = send.to.chars().take(ECHO_CHARS_MAX).collect();
    (RejectCode::NoSuchDevice, format!("no device has the id {shown}"))
}

/// Returns a rejection that says which outcomes take the room, and what frees it.
#[cold]
fn outcomes_full(full: OutcomesFull, send: &Send<'_>) -> (RejectCode, String) {
    let message = match full {
        OutcomesFull::All { pending, waiting } => format!(
            "outcomes of {pending} messages are pending and {waiting} wait (outcomes_max): ack what waits, \
             cancel messages or give them a ttl_ms"
        ),
        OutcomesFull::Receiver { pending } => format!(
            "outcomes of {pending} messages to {} are pending: cancel them or give them a ttl_ms",
            send.to
        ),
        OutcomesFull::Anonymous { pending } => format!(
            "outcomes of {pending} messages to devices without a name are pending: cancel them or give \
             them a ttl_ms"
        ),
    };
    (RejectCode::OutcomesFull, message)
}

fn reused() -> (RejectCode, String) {
    let message = "this id stood for another receiver or body; a new message needs a new id";
    (RejectCode::IdReused, message.to_owned())
}

fn store_unavailable() -> (RejectCode, String) {
    (RejectCode::StoreUnavailable, rejection(RejectCode::StoreUnavailable).to_owned())
}

/// Returns the text of a rejection of which no more is known than its code.
fn rejection(code: RejectCode) -> &'static str {
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
            "the store cannot write now; whether the message is kept is not known: send it again \
             with the same id"
        }
        RejectCode::TooLate => "it was pushed, is gone, or was never here",
        _ => "rejected",
    }
}
