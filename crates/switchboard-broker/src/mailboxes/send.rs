//! A message on its way: the sender's shard recognizes retries, the receiver's checks for room.

use std::borrow::Cow;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{
    DeviceRef, Durability, ID_LEN_MAX, REASON_LEN_MAX, RejectCode, Send, ServerFrame,
    body_len_of_text, is_short_message, message_len,
};

use super::envelope::{Cancel, Deliver, Envelope, Reply, ReplyTo, TextReplyTo};
use super::mailbox::{Entry, Kept, Kind, NEVER, State};
use super::reserved::OutcomesFull;
use super::sent::{Known, NewId, SentState};
use super::store::Pending;
use super::timers::Alarm;
use super::totals::memory_of;
use super::{Content, Event, MessageKey, MessageRecord, Now, Out, Position, Record};
use crate::broker::{Broker, Effect, Refusal};
use crate::duplicates::LastText;
use crate::{Conn, Digest, RECEIPT_BYTES, ShardId};

/// As long as an id that the server makes for a text can be.
const MADE_ID_LONGEST: &str = "text-9007199254740991";

/// Of an address that is nobody's, so much is said back.
const ECHO_CHARS_MAX: usize = 128;

/// Numbers that are reserved at once, so that messages in memory need a record only now and then.
const SEQS_RESERVED: u64 = 4_096;

/// What was noted of a message that is being sent.
#[derive(Debug, Default)]
struct Noted {
    /// Its sender is.
    is_ephemeral: bool,
    /// Memory is set aside for its outcome.
    keeps_memory: bool,
}

impl Broker {
    /// A device sends by v1.
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
        let to = self.known(send)?;
        let digest = self.key.digest(send.id.as_bytes());
        let content = self.content(to, send.body);
        // Before all else: whatever has changed since, a retry is told what became of the first.
        let (known, digest) = self.judge_sent(now, id, digest, content);
        match known {
            Known::Other => return Err(reused()),
            Known::Same => return self.send_again(id, send, digest, out),
            Known::No => {}
        }
        let shard = self.receiver(id, to, send)?;
        self.check_send(id, send)?;
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
            self.deliver(now, &deliver, out);
        } else {
            let envelope = Envelope::Deliver(Box::new(deliver.into_owned()));
            out(Effect::Send { shard, envelope });
        }
    }

    /// Returns what an id is to the device that sends under it now, and by what it is known from here on.
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

    /// Notes what is being sent, and reserves its outcome.
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
            // The oldest is not answered yet, and must not be forgotten before.
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

    /// Sets memory aside for an outcome, if there is some; the message is refused if there is none and the
    /// outcome will be in memory only. Where it may be, the receiver's shard decides.
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
        if durability == Durability::Disk && !device.is_ephemeral {
            return Ok(false);
        }
        device.mailbox.release_outcome(to);
        let message = if is_above { MEMORY_FULL } else { ANONYMOUS_FULL };
        Err((RejectCode::StoreFull, message.to_owned()))
    }

    /// Gives back the memory that was set aside for an outcome.
    #[cold]
    fn give_outcome_memory(&mut self, id: DeviceId) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let before = device.mailbox.totals();
        device.mailbox.release_memory();
        let after = device.mailbox.totals();
        self.recount(before, after);
    }

    /// The receiver, if there ever was one of that id.
    fn known(&self, send: &Send<'_>) -> Result<DeviceId, (RejectCode, String)> {
        let device = DeviceRef::parse(&send.to).ok_or_else(|| nobody(send))?;
        self.directory.names().find(device).ok_or_else(|| nobody(send))
    }

    /// The receiver's shard.
    fn receiver(
        &self,
        id: DeviceId,
        to: DeviceId,
        send: &Send<'_>,
    ) -> Result<ShardId, (RejectCode, String)> {
        if !self.may_send(id, to) {
            let message = format!("your token's allow_send does not name {}", send.to);
            return Err((RejectCode::NotAllowed, message));
        }
        self.shard_with(to).ok_or_else(|| nobody(send))
    }

    /// The shard on which a device is, by either protocol.
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

    /// Returns whether a message is within `max_message_bytes` as it will be pushed, whatever number it
    /// gets: a receiver that bounds what it reads by what `welcome` named would close on it, and
    /// again on every visit.
    #[inline(always)]
    fn fits_a_frame(&self, from: DeviceId, id: &str, re: Option<&str>, body: usize) -> bool {
        let max = self.mailboxes.limits.message_bytes_max;
        let strings = id.len() + re.map_or(0, str::len);
        is_short_message(body, strings, max)
            || message_len(self.show(from).as_ref(), id, body, re) <= max
    }

    /// A retry: it is answered as the first one was, or will be.
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
        if is_failing && durability == Durability::Disk {
            return Err(store_unavailable());
        }
        device.sent.ask_again(digest, session);
        Ok(())
    }

    /// A message is here at its receiver's.
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

    /// To an anonymous device of the text protocol: now or never.
    fn deliver_text(&self, conn: Conn, deliver: &Deliver<'_>, out: Out<'_>) -> Reply {
        if deliver.durability.is_some() || deliver.receipt || deliver.expires_at_ms.is_some() {
            return Reply::Rejected(RejectCode::DurabilityUnavailable);
        }
        let from = self.show(deliver.from);
        out(Effect::DeliverBody { conn, from: from.as_ref(), body: &deliver.body });
        Reply::Accepted { seq: 0, durability: Durability::None }
    }

    fn judge_room(&mut self, deliver: &Deliver<'_>) -> Result<Durability, Reply> {
        let (strongest, store_refuses) = (self.strongest(), self.mailboxes.store_refuses());
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
        if has_stored_outcome && !self.directory.may_promise_outcome() {
            return Err(Reply::Rejected(RejectCode::StoreFull));
        }
        let limits = &self.mailboxes.limits;
        let len = deliver.len_under(&deliver.id);
        if len > limits.mailbox_bytes_max {
            return Err(Reply::Rejected(RejectCode::TooLarge));
        }
        // The id that is made for a text is not known yet.
        let made = if deliver.id.is_empty() { MADE_ID_LONGEST.len() } else { 0 };
        let memory = self.mailboxes.stats.memory as usize + memory_of(len + made);
        if durability == Durability::Memory && memory > limits.memory_messages_max_bytes {
            return Err(Reply::MemoryFull);
        }
        let with_outcome = if has_stored_outcome { len + RECEIPT_BYTES } else { len };
        if deliver.from.is_number()
            && self.mailboxes.anonymous.is_above(durability, with_outcome, limits, &self.directory)
        {
            return Err(Reply::AnonymousFull);
        }
        let quota = limits.quota_of(deliver.to);
        if !device.mailbox.has_room(len, &quota) {
            return Err(Reply::Rejected(RejectCode::MailboxFull));
        }
        if !device.mailbox.is_within_share(deliver.from, len, &quota) {
            return Err(Reply::OverShare);
        }
        Ok(durability)
    }

    /// Puts a message into its mailbox, and into the store.
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

    /// Puts a message that is in its mailbox into the store.
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
        if let ReplyTo::Text(reply_to) = reply_to {
            self.answer_text(reply_to, Ok(()), out);
        }
    }

    /// Sees to it that what is only in memory may be shown under its number.
    pub(super) fn reserve_seqs(&mut self, id: DeviceId, out: Out<'_>) {
        if !self.mailboxes.is_durable {
            return;
        }
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let next = device.mailbox.next_seq();
        let has = device.mailbox.reserved_to().max(device.reserving_to);
        if next + SEQS_RESERVED / 2 > has {
            device.reserving_to = next + SEQS_RESERVED;
            let session = device.session.as_ref().map(|session| session.number);
            self.record_device(id, session, out);
        }
    }

    pub(super) fn set_expiry_alarm(&mut self, id: DeviceId, at: crate::Moment) {
        if at == NEVER {
            return;
        }
        if self.mailboxes.devices.contains_key(&id) {
            self.mailboxes.timers.set(at, Alarm::Expiry, id);
        }
    }

    /// Answers whoever waits, about a message that is in a mailbox and names its id.
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
            // It was answered when there was room; it waits for no sync.
            (ReplyTo::Text(_), _) => {}
        }
    }

    fn answer_text(&mut self, reply_to: TextReplyTo, reply: Result<(), RejectCode>, out: Out<'_>) {
        self.send_to_shard(reply_to.shard, Envelope::TextReply { reply_to, reply }, out);
    }

    /// The receiver's side has judged; the sender is told.
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
                    self.give_outcome_memory(to);
                }
                out(Effect::Count(Event::Accepted(durability)));
                for answer in 0..open.answers() {
                    let duplicate = answer > 0 || !open.first;
                    let frame = &ServerFrame::Accepted { id, durability, duplicate };
                    told_on.into_iter().for_each(|conn| out(Effect::Tell { conn, frame }));
                }
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
                let Some(open) = device.sent.answered(digest, session) else { return };
                for _ in 0..open.answers() {
                    let code = RejectCode::StoreUnavailable;
                    self.reject(to, id, code, rejection(code), out);
                }
            }
        }
    }

    /// Forgets the ids of a device whose window is over, or that are too many.
    pub(super) fn forget_sent_of(&mut self, now: Now, id: DeviceId) {
        let limits = &self.mailboxes.limits;
        let (window, max) = (limits.dedup_window, limits.dedup_ids_per_device_max);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let dropped = device.sent.forget(now.at, window, max);
        let dropped = device.sent.dropped(dropped);
        self.mailboxes.ids_dropped(id, dropped);
    }

    /// An id was added to a device's, which are `len` now: where they are too many in all, others
    /// are forgotten.
    #[inline]
    pub(super) fn sent_added(&mut self, now: Now, id: DeviceId, len: usize) {
        self.mailboxes.id_added(id, len);
        if len == 1 {
            self.set_window_alarm(now, id);
        }
        if self.mailboxes.stats.sent_ids as usize > self.mailboxes.limits.dedup_ids_max {
            self.mailboxes.forget_of_fullest(now);
        }
    }

    /// Sees to it that ids are forgotten also if their device never sends again. Not to the moment:
    /// who sends all the time forgets by himself, and would have an alarm for each.
    fn set_window_alarm(&mut self, now: Now, id: DeviceId) {
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        let Some(oldest_at) = device.sent.oldest_at() else { return };
        let window = self.mailboxes.limits.dedup_window;
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

    /// A device of the text protocol sends to one that has a mailbox.
    pub(crate) fn send_text(
        &mut self,
        now: Now,
        reply_to: TextReplyTo,
        to: DeviceId,
        text: &[u8],
        out: Out<'_>,
    ) -> Result<(), Refusal> {
        let shard = self.shard_with(to).ok_or(Refusal::NoSuchDevice)?;
        // Counted before it is written: escaped it may be six times as long.
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
        if shard != self.shard {
            out(Effect::AwaitReply { conn: reply_to.conn });
        }
        self.hand_in(now, shard, deliver, out);
        Ok(())
    }

    /// The receiver's side has judged what a device of the text protocol sent.
    pub(super) fn text_reply(
        &mut self,
        now: Now,
        reply_to: TextReplyTo,
        reply: Result<(), RejectCode>,
        out: Out<'_>,
    ) {
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

    /// The sender wants a message back.
    pub(super) fn cancel_frame(&mut self, now: Now, id: DeviceId, message: &str, out: Out<'_>) {
        let session = self.session(id).map_or(0, |session| session.number);
        self.cancel(id, message, session, out);
        self.settle_local(now, out);
    }

    fn cancel(&mut self, id: DeviceId, message: &str, session: u32, out: Out<'_>) {
        let digest = self.key.digest(message.as_bytes());
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let digest = device.own_digest(digest);
        let Some(sent) = device.sent.find(digest) else {
            return self.cancel_reply(id, message, session, Err(RejectCode::TooLate), out);
        };
        match (sent.to, sent.state()) {
            (_, SentState::Asked) => device.sent.cancel(digest, session),
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

    /// Answers a `cancel`, if the session that asked is still there.
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

/// Why a mailbox that has room takes no more from one sender.
const MEMORY_FULL: &str = "the server's memory for messages that it does not store is used up; it is free again \
                           when some of them are acked or expire";
const ANONYMOUS_FULL: &str = "devices without a name have their part of the server's space for messages in use; it \
                              is free again when some of them are acked or expire";
const OVER_SHARE: &str = "your share of the receiver's mailbox is used up: wait until it has dealt \
                          with what you sent";

fn nobody(send: &Send<'_>) -> (RejectCode, String) {
    let shown: String = send.to.chars().take(ECHO_CHARS_MAX).collect();
    (RejectCode::NoSuchDevice, format!("no device has the id {shown}"))
}

/// Says which outcomes take the room, and what frees it.
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

impl Broker {}

fn store_unavailable() -> (RejectCode, String) {
    (RejectCode::StoreUnavailable, rejection(RejectCode::StoreUnavailable).to_owned())
}

/// A rejection in words, where nothing more is known.
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
