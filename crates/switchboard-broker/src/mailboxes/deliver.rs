//! The receiver's part of a message's way: whether it is a retry, whether there is room for it, and
//! the reply to its sender.

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Durability, PublicId, RejectCode, ServerFrame};

use super::entry::{Entry, Kept, Kind, NEVER, State};
use super::envelope::{
    Cancel, Deliver, DeviceReplyTo, Envelope, NoRoom, Reply, ReplyTo, TextReplyTo,
};
use super::send::MADE_ID_LONGEST;
use super::store::{Pending, StoreGate};
use super::timers::Alarm;
use super::totals::{memory_of, messages_max};
use super::window::{Known, NewId};
use super::{Content, Mailboxes, MessageKey, MessageRecord, Now, Out, Position, Record};
use crate::broker::{Broker, Effect};
use crate::shrink::{KEPT_BY_SHARD, shrink};
use crate::{Conn, Digest, RECEIPT_BYTES};

/// Numbers that are reserved at once, so that messages in memory need a record only now and then.
const SEQS_RESERVED: u64 = 4_096;

/// Requests about one message that wait until its record is synced. Beyond these the answer is that
/// nothing is known.
const DEFERRED_MAX: usize = 16;

/// A request about a message that waits for a record.
#[derive(Debug)]
pub(super) enum Deferred {
    /// A retry; it waits for the record of the message.
    Retry(DeviceReplyTo),
    /// A `cancel`; it waits for the record of the message, or for the record of its removal.
    Cancel(Cancel),
}

/// Digests of a message: one that identifies it, and one of its body.
#[derive(Clone, Copy)]
struct Digests {
    key: Digest,
    content: Digest,
}

impl Mailboxes {
    /// Keeps a request until a record of the message that it is about is synced.
    ///
    /// # Errors
    ///
    /// The request, if too many wait already.
    pub(super) fn defer(&mut self, of: MessageKey, request: Deferred) -> Result<(), Deferred> {
        let deferred = self.deferred.entry(of).or_default();
        if deferred.len() >= DEFERRED_MAX {
            return Err(request);
        }
        deferred.push(request);
        Ok(())
    }

    /// Returns the requests about a message that wait for a record.
    pub(super) fn take_deferred(&mut self, of: MessageKey) -> Vec<Deferred> {
        if self.deferred.is_empty() {
            return Vec::new();
        }
        let deferred = self.deferred.remove(&of).unwrap_or_default();
        shrink(&mut self.deferred, KEPT_BY_SHARD);
        deferred
    }
}

impl Broker {
    /// Puts a message into the mailbox of its receiver, which is of this shard, or answers why not.
    pub(super) fn deliver(&mut self, now: Now, deliver: &Deliver<'_>, out: Out<'_>) {
        let digests = deliver.has_id().then(|| Digests {
            key: self.key_of((deliver.from, deliver.incarnation), deliver.to, &deliver.id),
            content: self.key.digest(&deliver.body),
        });
        // Before all other checks: whatever has changed since, a retry is told what became of the
        // first attempt.
        let known = digests.and_then(|digests| self.judge_id(now, digests, deliver));
        let reply = match known {
            Some(None) => return,
            Some(Some(reply)) => reply,
            None => match self.judge_room(deliver) {
                Ok(durability) => return self.put(now, deliver, digests, durability, out),
                Err(reply) => match self.conns.get(&deliver.to) {
                    Some(&conn) if reply == Reply::Rejected(RejectCode::NoSuchDevice) => {
                        self.deliver_text(now, conn, deliver, digests, out)
                    }
                    _ => reply,
                },
            },
        };
        self.answer(deliver.reply_to, deliver.to, &deliver.id, reply, out);
    }

    /// Looks up the id of a message. Returns the reply if it is a retry, or reuses an id, and
    /// `Some(None)` for a retry whose reply must wait until the first attempt is on disk.
    fn judge_id(
        &mut self,
        now: Now,
        digests: Digests,
        deliver: &Deliver<'_>,
    ) -> Option<Option<Reply>> {
        let max = self.mailboxes.window_max();
        let Mailboxes { window, devices, .. } = &self.mailboxes;
        let (seen, is_same) = match window.judge(now.at, digests.key, digests.content, &max) {
            Known::No => return None,
            Known::Other(seen) => (seen, false),
            Known::Same(seen) => (seen, true),
        };
        let (seq, durability) = (seen.seq, seen.durability());
        // Once a device without a mailbox is gone, nothing is remembered of it. With several
        // shards, its shard is not even asked any more.
        if durability == Durability::None && !self.conns.contains_key(&deliver.to) {
            return None;
        }
        if !is_same {
            return Some(Some(Reply::Rejected(RejectCode::IdReused)));
        }
        let entry = devices.get(&deliver.to).and_then(|device| device.mailbox.find(seq));
        if entry.is_none_or(|entry| entry.state != State::Unsynced) {
            return Some(Some(Reply::Accepted { seq, durability, duplicate: true }));
        }
        let ReplyTo::Device(reply_to) = deliver.reply_to else { return Some(None) };
        // Answered as unknown at once, as the first attempt was: the record may not be synced for a
        // long time.
        if self.mailboxes.is_failing {
            return Some(Some(Reply::Unknown));
        }
        let of = MessageKey { device: deliver.to, seq };
        Some(self.mailboxes.defer(of, Deferred::Retry(reply_to)).err().map(|_| Reply::Unknown))
    }

    /// Returns the digest that identifies a message, the same in every run.
    #[inline]
    pub(super) fn key_of(
        &self,
        (from, incarnation): (DeviceId, Option<u64>),
        to: DeviceId,
        id: &str,
    ) -> Digest {
        let key = self.key.message(self.stable(from), self.stable(to), id);
        incarnation.map_or(key, |incarnation| key.of_incarnation(incarnation))
    }

    /// Returns a number that stands for a device in every run.
    fn stable(&self, device: DeviceId) -> u64 {
        // The id that stands for a name does not do: it is another one in each run.
        match self.show(device) {
            PublicId::Number(id) => id.get(),
            PublicId::Name(name) => self.key.digest(name.as_bytes()).half(),
        }
    }

    /// Adds the id of a message that is accepted, or will be once it is synced.
    #[inline]
    fn note_id(
        &mut self,
        now: Now,
        deliver: &Deliver<'_>,
        digests: Option<Digests>,
        (seq, durability): (u64, Durability),
    ) {
        let Some(Digests { key, content }) = digests else { return };
        let (from, at) = (deliver.from, now.at);
        let new = NewId {
            key,
            content,
            from,
            seq,
            at,
            durability,
            is_cancelled: false,
            has_record: false,
            is_unsynced: durability == Durability::Disk,
        };
        let max = self.mailboxes.window_max();
        self.mailboxes.window.add(now.at, &new, &max);
    }

    /// Checks whether there is room for a message; returns the durability that it gets.
    ///
    /// # Errors
    ///
    /// The reply to its sender, if the message is not accepted.
    fn judge_room(&mut self, deliver: &Deliver<'_>) -> Result<Durability, Reply> {
        let (strongest, store_refuses) = (self.strongest(), self.mailboxes.store_refuses());
        if let Some(NoRoom::Outcomes(full)) = deliver.no_room {
            return Err(Reply::OutcomesFull(full));
        }
        let device = self.mailboxes.devices.get_mut(&deliver.to);
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
        let is_in_memory = durability == Durability::Memory;
        let has_memory_outcome = deliver.receipt && (is_in_memory || deliver.incarnation.is_some());
        match deliver.no_room.filter(|_| has_memory_outcome) {
            Some(NoRoom::AnonymousMemory) => return Err(Reply::AnonymousFull),
            Some(_) => return Err(Reply::MemoryFull),
            None => {}
        }
        let memory = if is_in_memory { memory_of(len + made) } else { 0 };
        let used = self.mailboxes.stats.memory as usize;
        if memory > 0 && used + memory > limits.memory_messages_max_bytes {
            return Err(Reply::MemoryFull);
        }
        // Messages on disk have an entry in memory, too, which may be about as long as the record:
        // the bound on the store does not bound these.
        let messages_max = messages_max(limits.memory_messages_max_bytes);
        if self.mailboxes.stats.messages as usize >= messages_max {
            return Err(Reply::MemoryFull);
        }
        let stored = if is_in_memory { 0 } else { memory_of(len) };
        let stored = stored + if has_stored_outcome { RECEIPT_BYTES } else { 0 };
        // What compaction frees goes to devices with names first: strangers who store messages and
        // ack them at once would otherwise take it all.
        let is_reserved = !is_in_memory && self.mailboxes.gate == StoreGate::NamedOnly;
        let anonymous = self.mailboxes.anonymous;
        if deliver.from.is_number()
            && (is_reserved || anonymous.is_above((stored, memory), limits, &self.directory))
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
    fn put(
        &mut self,
        now: Now,
        deliver: &Deliver<'_>,
        digests: Option<Digests>,
        durability: Durability,
        out: Out<'_>,
    ) {
        let Deliver { to, reply_to, .. } = *deliver;
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
            kind: Kind::message(deliver.receipt, deliver.incarnation.is_some()),
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
        self.note_id(now, deliver, digests, (seq, durability));
        self.set_expiry_alarm(to, expires_at);
        if is_stored {
            // Answered and pushed when it is synced.
            return self.store(now, deliver, digests, (seq, id), out);
        }
        self.reserve_seqs(to, out);
        let reply = Reply::Accepted { seq, durability, duplicate: false };
        self.answer(reply_to, to, id, reply, out);
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
    fn store(
        &mut self,
        now: Now,
        deliver: &Deliver<'_>,
        digests: Option<Digests>,
        (seq, id): (u64, &str),
        out: Out<'_>,
    ) {
        let Deliver { to, reply_to, .. } = *deliver;
        let (to_shown, from) = (self.show(to), self.show(deliver.from));
        out(Effect::Append(Record::Message(MessageRecord {
            to: to_shown.as_ref(),
            seq,
            from: from.as_ref(),
            id,
            is_id_taken: deliver.keeps_id(),
            body: &deliver.body,
            re: deliver.re.as_deref(),
            sent_at_ms: deliver.sent_at_ms,
            at: now.at,
            expires_at_ms: deliver.expires_at_ms,
            receipt: deliver.receipt,
        })));
        let of = MessageKey { device: to, seq };
        let key = digests.map(|digests| digests.key);
        self.mailboxes.pending.push_back(Pending::Message { of, key, reply_to, is_told: false });
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
            self.mailboxes.set_alarm(at, Alarm::Expiry, id);
        }
    }

    /// Delivers a message to an anonymous device of the text protocol, which has no mailbox.
    fn deliver_text(
        &mut self,
        now: Now,
        conn: Conn,
        deliver: &Deliver<'_>,
        digests: Option<Digests>,
        out: Out<'_>,
    ) -> Reply {
        // None of these can be promised without a mailbox.
        if deliver.durability.is_some() || deliver.receipt || deliver.expires_at_ms.is_some() {
            return Reply::Rejected(RejectCode::DurabilityUnavailable);
        }
        let from = self.show(deliver.from);
        out(Effect::DeliverBody { conn, from: from.as_ref(), body: &deliver.body });
        let durability = Durability::None;
        self.note_id(now, deliver, digests, (0, durability));
        Reply::Accepted { seq: 0, durability, duplicate: false }
    }

    /// Sends the reply to a message that is in a mailbox, with its id from there.
    pub(super) fn answer_from(
        &mut self,
        of: MessageKey,
        reply_to: ReplyTo,
        reply: Reply,
        out: Out<'_>,
    ) {
        let device = self.mailboxes.devices.get(&of.device);
        let Some(entry) = device.and_then(|device| device.mailbox.find(of.seq)) else { return };
        let mut id = std::mem::take(&mut self.mailboxes.answered_id);
        id.clear();
        id.push_str(entry.content.as_ref().map_or("", Content::id));
        self.answer(reply_to, of.device, &id, reply, out);
        self.mailboxes.answered_id = id;
    }

    /// Sends the reply to a message to the shard of its sender.
    fn answer(&mut self, reply_to: ReplyTo, of: DeviceId, id: &str, reply: Reply, out: Out<'_>) {
        match (reply_to, reply) {
            (ReplyTo::Device(reply_to), reply) if reply_to.shard == self.shard => {
                self.reply(reply_to, of, id, reply, out);
            }
            (ReplyTo::Device(reply_to), reply) => {
                let envelope = Envelope::Reply { reply_to, of, id: id.into(), reply };
                out(Effect::Send { shard: reply_to.shard, envelope });
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

    /// Answers the sender of a message that is synced, and its retries; returns the requests to
    /// cancel it.
    pub(super) fn answer_synced(
        &mut self,
        of: MessageKey,
        (reply_to, is_told): (ReplyTo, bool),
        out: Out<'_>,
    ) -> Vec<Cancel> {
        let durability = Durability::Disk;
        let reply = |duplicate| Reply::Accepted { seq: of.seq, durability, duplicate };
        let reply_to = match reply_to {
            ReplyTo::Device(reply_to) => ReplyTo::Device(DeviceReplyTo { is_told, ..reply_to }),
            text => text,
        };
        self.answer_from(of, reply_to, reply(false), out);
        let mut cancels = Vec::new();
        for request in self.mailboxes.take_deferred(of) {
            match request {
                Deferred::Retry(retry) => {
                    self.answer_from(of, ReplyTo::Device(retry), reply(true), out);
                }
                Deferred::Cancel(cancel) => cancels.push(cancel),
            }
        }
        cancels
    }

    /// Tells all that wait for a record that nothing is known.
    pub(super) fn answer_deferred_unknown(&mut self, out: Out<'_>) {
        for (of, requests) in std::mem::take(&mut self.mailboxes.deferred) {
            for request in requests {
                match request {
                    Deferred::Retry(reply_to) => {
                        self.answer_from(of, ReplyTo::Device(reply_to), Reply::Unknown, out);
                    }
                    Deferred::Cancel(cancel) => {
                        self.answer_cancel(cancel, Err(RejectCode::StoreUnavailable), out);
                    }
                }
            }
        }
    }
}
