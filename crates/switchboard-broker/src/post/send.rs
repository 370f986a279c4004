//! A message on its way: the sender's home judges the retry, the receiver's the room.

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Durability, RejectCode, Send, ServerFrame};

use super::mailbox::{Entry, NEVER, State};
use super::parcel::{Asker, Cancel, Deliver, Parcel, TextAsker, Verdict};
use super::sent::{Known, NewId, SentState};
use super::store::Pending;
use super::timers::Alarm;
use super::{Content, Event, Kind, MessageRecord, Now, Out, Place, Record};
use crate::broker::{Broker, Effect, Refusal};
use crate::duplicates::LastText;
use crate::{Conn, Digest, ShardId};

/// Numbers that are reserved at once, so that messages in memory need a record only now and then.
const SEQS_RESERVED: u64 = 4_096;

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
        self.forget_sent_of(now, id);
        let limits = &self.post.limits;
        let (window, ids_max) = (limits.dedup_window, limits.dedup_ids_per_device_max);
        let Some(device) = self.post.devices.get(&id) else { return Ok(()) };
        // Before all else: whatever has changed since, a retry is told what became of the first.
        match device.sent.judge(digest, content, |sent| now.at.since(sent.at) >= window) {
            Known::Other => return Err(reused()),
            Known::Same => return self.send_again(id, send, digest, out),
            Known::No => {}
        }
        let shard = self.receiver(id, to, send)?;
        self.check_send(send)?;
        let strongest = self.strongest();
        let is_failing = self.post.is_failing;
        let messages_max = self.post.limits.mailbox_messages_max;
        let Some(device) = self.post.devices.get_mut(&id) else { return Ok(()) };
        let durability = send.durability.unwrap_or(strongest);
        if is_failing && durability == Durability::Disk {
            return Err(store_unavailable());
        }
        if device.sent.len() >= ids_max {
            // The oldest is not answered yet, and must not be forgotten before.
            let message = "too many messages of yours wait for their answers";
            return Err((RejectCode::RateLimited, message.to_owned()));
        }
        if send.receipt && !device.mailbox.keep_place(messages_max) {
            let message = "your own mailbox has no place for the outcome: ack what waits there";
            return Err((RejectCode::OutcomesFull, message.to_owned()));
        }
        let session = device.session.as_ref().map_or(0, |session| session.number);
        let (at, receipt) = (now.at, send.receipt);
        let state = SentState::Asked;
        let new = NewId { id: digest, content, to, at, durability, receipt, state, session };
        let number = device.sent.add(new);
        self.post.sent_order.push_back((id, number));
        self.post.stats.sent_ids += 1;
        let deliver = Deliver {
            from: id,
            to,
            id: (&*send.id).into(),
            digest,
            body: send.body.into(),
            re: send.re.as_deref().map(Into::into),
            sent_at_ms: now.wall_ms,
            at: now.at,
            expires_at_ms: send.ttl_ms.map(|ttl_ms| now.wall_ms.saturating_add(ttl_ms)),
            durability: send.durability,
            receipt: send.receipt,
            asker: Asker::Device(self.shard),
        };
        self.post_to(shard, Parcel::Deliver(Box::new(deliver)), out);
        Ok(())
    }

    /// The receiver, if there ever was one of that id.
    fn known(&self, send: &Send<'_>) -> Result<DeviceId, (RejectCode, String)> {
        let device = send.to.device().ok_or_else(|| nobody(send))?;
        self.directory.names().find(device).ok_or_else(|| nobody(send))
    }

    /// The receiver's shard.
    fn receiver(
        &self,
        id: DeviceId,
        to: DeviceId,
        send: &Send<'_>,
    ) -> Result<ShardId, (RejectCode, String)> {
        if !self.may_send(id, &self.show(to)) {
            let message = format!("your token's allow_send does not name {}", send.to);
            return Err((RejectCode::NotAllowed, message));
        }
        self.shard_with(to).ok_or_else(|| nobody(send))
    }

    /// The shard on which a device is, by either protocol.
    pub(crate) fn shard_with(&self, to: DeviceId) -> Option<ShardId> {
        if self.conns.contains_key(&to) || self.post.devices.contains_key(&to) {
            return Some(self.shard);
        }
        self.directory.home_of(to).map(|home| home.shard)
    }

    fn check_send(&self, send: &Send<'_>) -> Result<(), (RejectCode, String)> {
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

    /// A retry: it is answered as the first one was, or will be.
    fn send_again(
        &mut self,
        id: DeviceId,
        send: &Send<'_>,
        digest: Digest,
        out: Out<'_>,
    ) -> Result<(), (RejectCode, String)> {
        out(Effect::Count(Event::Duplicate));
        let is_failing = self.post.is_failing;
        let Some(device) = self.post.devices.get_mut(&id) else { return Ok(()) };
        let session = device.session.as_ref().map_or(0, |session| session.number);
        let Some(sent) = device.sent.find_mut(digest) else { return Ok(()) };
        if let SentState::Accepted { .. } = sent.state {
            let durability = sent.durability;
            let frame = ServerFrame::Accepted { id: &send.id, durability, duplicate: true };
            self.tell(id, &frame, out);
            return Ok(());
        }
        if is_failing && sent.durability == Durability::Disk {
            return Err(store_unavailable());
        }
        if sent.session != session {
            // Who asked first is gone; nobody reads the answers that were owed to him.
            sent.session = session;
            sent.owes_first = false;
            sent.owes_duplicates = 0;
        }
        sent.owes_duplicates = sent.owes_duplicates.saturating_add(1);
        Ok(())
    }

    /// A message is here at its receiver's.
    pub(super) fn deliver(&mut self, now: Now, deliver: Box<Deliver>, out: Out<'_>) {
        let asker = deliver.asker;
        if let Some(&conn) = self.conns.get(&deliver.to) {
            let verdict = self.deliver_text(conn, &deliver, out);
            return self.answer(asker, deliver.from, deliver.digest, deliver.id, verdict, out);
        }
        match self.judge_room(&deliver) {
            Err(code) => {
                let verdict = Verdict::Rejected(code);
                self.answer(asker, deliver.from, deliver.digest, deliver.id, verdict, out);
            }
            Ok(durability) => self.put(now, *deliver, durability, out),
        }
    }

    /// To an anonymous device of the text protocol: now or never.
    fn deliver_text(&self, conn: Conn, deliver: &Deliver, out: Out<'_>) -> Verdict {
        if deliver.durability.is_some() || deliver.receipt || deliver.expires_at_ms.is_some() {
            return Verdict::Rejected(RejectCode::DurabilityUnavailable);
        }
        let from = self.show(deliver.from);
        out(Effect::DeliverBody { conn, from: from.as_ref(), body: &deliver.body });
        Verdict::Accepted { seq: 0, durability: Durability::None }
    }

    fn judge_room(&self, deliver: &Deliver) -> Result<Durability, RejectCode> {
        let device = self.post.devices.get(&deliver.to).filter(|device| !device.is_ending);
        let device = device.ok_or(RejectCode::NoSuchDevice)?;
        let durability = deliver.durability.unwrap_or_else(|| self.strongest());
        if durability == Durability::Disk && self.post.is_failing {
            return Err(RejectCode::StoreUnavailable);
        }
        let limits = &self.post.limits;
        let len = deliver.len();
        if len > limits.mailbox_bytes_max {
            return Err(RejectCode::TooLarge);
        }
        if !device.mailbox.has_room(len, limits.mailbox_messages_max, limits.mailbox_bytes_max) {
            return Err(RejectCode::MailboxFull);
        }
        Ok(durability)
    }

    /// Puts a message into its mailbox, and into the store.
    fn put(&mut self, now: Now, mut deliver: Deliver, durability: Durability, out: Out<'_>) {
        let to = deliver.to;
        let is_stored = durability == Durability::Disk;
        let Some(device) = self.post.devices.get_mut(&to) else { return };
        let is_id_taken = !deliver.id.is_empty();
        if !is_id_taken {
            deliver.id = format!("text-{}", device.mailbox.next_seq()).into();
        }
        let len = deliver.len();
        let expires_at =
            deliver.expires_at_ms.map_or(NEVER, |at_ms| super::session::moment_of(now, at_ms));
        let seq = device.mailbox.next_seq();
        if is_stored {
            let (to, from) = (self.directory.names().show(to), self.show(deliver.from));
            out(Effect::Append(Record::Message(MessageRecord {
                to: to.as_ref(),
                seq,
                from: from.as_ref(),
                id: &deliver.id,
                is_id_taken,
                body: &deliver.body,
                re: deliver.re.as_deref(),
                sent_at_ms: deliver.sent_at_ms,
                at: deliver.at,
                expires_at_ms: deliver.expires_at_ms,
                receipt: deliver.receipt,
            })));
        }
        let Some(device) = self.post.devices.get_mut(&to) else { return };
        let kind = Kind::Message {
            body: Some(deliver.body),
            re: deliver.re,
            sent_at_ms: deliver.sent_at_ms,
        };
        device.mailbox.push(Entry {
            seq,
            from: deliver.from,
            place: Place::NOWHERE,
            expires_at,
            len: len as u32,
            state: if is_stored { State::Unsynced } else { State::Ready },
            receipt: deliver.receipt,
            is_outcome: false,
            is_in_flight: false,
            is_stored,
            is_moved: false,
            content: Some(Box::new(Content { id: deliver.id, kind })),
        });
        self.post.stats.messages += 1;
        self.post.stats.bytes += len as u64;
        self.set_expiry_alarm(to, expires_at);
        let (asker, digest) = (deliver.asker, deliver.digest);
        if is_stored {
            self.post.pending.push_back(Pending::Message {
                to,
                seq,
                asker,
                digest,
                is_told: false,
            });
            if let Asker::Text(asker) = asker {
                self.answer_text(asker, Ok(()), out);
            }
        } else {
            self.reserve_seqs(to, out);
            let verdict = Verdict::Accepted { seq, durability: Durability::Memory };
            self.answer_from(asker, to, seq, digest, verdict, out);
            self.push_ready(now, to, out);
        }
    }

    /// Sees to it that what is only in memory may be shown under its number.
    pub(super) fn reserve_seqs(&mut self, id: DeviceId, out: Out<'_>) {
        let is_durable = self.post.is_durable;
        let Some(device) = self.post.devices.get_mut(&id) else { return };
        let next = device.mailbox.next_seq();
        if !is_durable {
            return device.mailbox.reserve_to(u64::MAX);
        }
        let has = device.mailbox.reserved_to().max(device.reserving_to);
        if next + SEQS_RESERVED / 2 > has {
            device.reserving_to = next + SEQS_RESERVED;
            let session = device.session.as_ref().map(|session| session.number);
            self.record_device(id, session, out);
        }
    }

    pub(super) fn set_expiry_alarm(&mut self, id: DeviceId, at: crate::Moment) {
        let Some(device) = self.post.devices.get_mut(&id) else { return };
        if at < device.expiry_at {
            device.expiry_at = at;
            self.post.timers.add(at, Alarm::Expiry, id);
        }
    }

    /// Answers whoever waits, about a message that is in a mailbox and names its id.
    pub(super) fn answer_from(
        &mut self,
        asker: Asker,
        to: DeviceId,
        seq: u64,
        digest: Digest,
        verdict: Verdict,
        out: Out<'_>,
    ) {
        let Some(entry) = self.post.devices.get(&to).and_then(|device| device.mailbox.find(seq))
        else {
            return;
        };
        let from = entry.from;
        let id = entry.content.as_ref().map(|content| content.id.clone()).unwrap_or_default();
        self.answer(asker, from, digest, id, verdict, out);
    }

    fn answer(
        &mut self,
        asker: Asker,
        from: DeviceId,
        digest: Digest,
        id: Box<str>,
        verdict: Verdict,
        out: Out<'_>,
    ) {
        match (asker, verdict) {
            (Asker::Device(shard), verdict) => {
                self.post_to(shard, Parcel::Verdict { to: from, digest, id, verdict }, out);
            }
            (Asker::Text(asker), Verdict::Rejected(code)) => {
                self.answer_text(asker, Err(code), out);
            }
            (Asker::Text(asker), Verdict::Accepted { durability: Durability::Memory, .. }) => {
                self.answer_text(asker, Ok(()), out);
            }
            // It was answered when there was room; it waits for no sync.
            (Asker::Text(_), _) => {}
        }
    }

    fn answer_text(&mut self, asker: TextAsker, verdict: Result<(), RejectCode>, out: Out<'_>) {
        self.post_to(asker.shard, Parcel::TextVerdict { asker, verdict }, out);
    }

    /// The receiver's side has judged; the sender is told.
    pub(super) fn verdict(
        &mut self,
        now: Now,
        to: DeviceId,
        digest: Digest,
        id: &str,
        verdict: Verdict,
        out: Out<'_>,
    ) {
        let Some(device) = self.post.devices.get_mut(&to) else { return };
        let session = device.session.as_ref().map_or(0, |session| session.number);
        let Some(sent) = device.sent.find_mut(digest) else { return };
        let asks = sent.session == session;
        let (first, duplicates) = (sent.owes_first, sent.owes_duplicates);
        (sent.owes_first, sent.owes_duplicates) = (false, 0);
        let answers = if asks { u32::from(first) + u32::from(duplicates) } else { 0 };
        match verdict {
            Verdict::Accepted { seq, durability } => {
                sent.state = SentState::Accepted { seq };
                sent.durability = durability;
                sent.at = now.at;
                let (cancels, by) = (std::mem::take(&mut sent.owes_cancels), sent.cancel_session);
                out(Effect::Count(Event::Accepted(durability)));
                for answer in 0..answers {
                    let duplicate = answer > 0 || !first;
                    self.tell(to, &ServerFrame::Accepted { id, durability, duplicate }, out);
                }
                for _ in 0..cancels {
                    self.cancel(to, id, by, out);
                }
            }
            Verdict::Rejected(code) => {
                if sent.receipt {
                    device.mailbox.give_place();
                }
                let (cancels, by) = (sent.owes_cancels, sent.cancel_session);
                self.post.stats.sent_ids -= device.sent.drop_id(digest) as u64;
                let next = device.sent.next();
                self.post.sent_order.pop_back_if(|last| last.0 == to && last.1 >= next);
                for _ in 0..answers {
                    self.reject(to, id, code, rejection(code), out);
                }
                for _ in 0..cancels {
                    self.cancel_verdict(to, id, by, Err(RejectCode::TooLate), out);
                }
            }
            Verdict::Unknown => {
                for _ in 0..answers {
                    let code = RejectCode::StoreUnavailable;
                    self.reject(to, id, code, rejection(code), out);
                }
            }
        }
    }

    /// Forgets the ids of a device whose window is over, or that are too many.
    pub(super) fn forget_sent_of(&mut self, now: Now, id: DeviceId) {
        let limits = &self.post.limits;
        let (window, max) = (limits.dedup_window, limits.dedup_ids_per_device_max);
        let Some(device) = self.post.devices.get_mut(&id) else { return };
        let mut dropped = device.sent.drop_front(|sent| now.at.since(sent.at) >= window);
        if device.sent.len() >= max {
            let mut one = true;
            dropped += device.sent.drop_front(|_| std::mem::take(&mut one));
        }
        self.post.stats.sent_ids -= dropped as u64;
    }

    /// Forgets the oldest ids of all devices whose window is over, or that are too many.
    pub(super) fn forget_sent(&mut self, now: Now) {
        let limits = &self.post.limits;
        let (window, max) = (limits.dedup_window, limits.dedup_ids_max);
        let post = &mut self.post;
        while let Some(&(id, number)) = post.sent_order.front() {
            let Some(device) = post.devices.get_mut(&id) else {
                post.sent_order.pop_front();
                continue;
            };
            if device.sent.has(number) {
                let is_full = post.stats.sent_ids as usize > max;
                let mut one = true;
                let dropped = device.sent.drop_front(|sent| {
                    (is_full && std::mem::take(&mut one)) || now.at.since(sent.at) >= window
                });
                post.stats.sent_ids -= dropped as u64;
                if device.sent.has(number) {
                    break;
                }
            }
            post.sent_order.pop_front();
        }
    }

    /// A device of the text protocol sends to one that has a mailbox.
    pub(crate) fn send_text(
        &mut self,
        now: Now,
        asker: TextAsker,
        to: DeviceId,
        text: &[u8],
        out: Out<'_>,
    ) -> Result<(), Refusal> {
        let shard = self.shard_with(to).ok_or(Refusal::NoSuchDevice)?;
        let mut body = Vec::with_capacity(text.len() + 2);
        switchboard_proto::v1::write_body_of_text(&mut body, text);
        let deliver = Deliver {
            from: asker.device,
            to,
            id: Box::default(),
            digest: Digest::default(),
            body: body.into(),
            re: None,
            sent_at_ms: now.wall_ms,
            at: now.at,
            expires_at_ms: None,
            durability: None,
            receipt: false,
            asker: Asker::Text(asker),
        };
        if shard != self.shard {
            out(Effect::AwaitVerdict { conn: asker.conn });
        }
        self.post_to(shard, Parcel::Deliver(Box::new(deliver)), out);
        Ok(())
    }

    /// The receiver's side has judged what a device of the text protocol sent.
    pub(super) fn text_verdict(
        &mut self,
        now: Now,
        asker: TextAsker,
        verdict: Result<(), RejectCode>,
        out: Out<'_>,
    ) {
        let session = self.session(asker.device).map_or(0, |session| session.number);
        if session != asker.session {
            return;
        }
        let device = self.devices.get_mut(asker.conn.0 as usize).and_then(Option::as_mut);
        let Some(device) = device.filter(|device| device.id == asker.device) else { return };
        match verdict {
            Ok(()) => {
                device.last = Some(LastText::new(asker.text, now.at));
                out(Effect::TextAccepted { conn: asker.conn });
            }
            Err(code) => {
                let refusal = match code {
                    RejectCode::NoSuchDevice => Refusal::NoSuchDevice,
                    _ => Refusal::MailboxFull,
                };
                out(Effect::Refuse { conn: asker.conn, refusal });
            }
        }
        out(Effect::VerdictCame { conn: asker.conn });
    }

    /// The sender wants a message back.
    pub(super) fn cancel_frame(&mut self, now: Now, id: DeviceId, message: &str, out: Out<'_>) {
        let session = self.session(id).map_or(0, |session| session.number);
        self.cancel(id, message, session, out);
        self.settle_local(now, out);
    }

    fn cancel(&mut self, id: DeviceId, message: &str, session: u32, out: Out<'_>) {
        let digest = self.key.digest(message.as_bytes());
        let Some(device) = self.post.devices.get_mut(&id) else { return };
        let found = device.sent.find_mut(digest).map(|sent| {
            if sent.state == SentState::Asked {
                if sent.cancel_session != session {
                    // Nobody reads the answers that an earlier session waits for.
                    (sent.cancel_session, sent.owes_cancels) = (session, 0);
                }
                sent.owes_cancels = sent.owes_cancels.saturating_add(1);
            }
            (sent.to, sent.state)
        });
        match found {
            Some((_, SentState::Asked)) => {}
            Some((to, SentState::Accepted { seq })) if seq > 0 => {
                let cancel = Cancel { from: id, to, seq, id: message.into(), session };
                self.post_home(to, Parcel::Cancel(cancel), out);
            }
            _ => self.cancel_verdict(id, message, session, Err(RejectCode::TooLate), out),
        }
    }

    /// Answers a `cancel`, if the session that asked is still there.
    pub(super) fn cancel_verdict(
        &mut self,
        to: DeviceId,
        id: &str,
        session: u32,
        result: Result<(), RejectCode>,
        out: Out<'_>,
    ) {
        if self.session(to).is_none_or(|current| current.number != session) {
            return;
        }
        match result {
            Ok(()) => self.tell(to, &ServerFrame::Cancelled { id }, out),
            Err(code) => self.reject(to, id, code, rejection(code), out),
        }
    }
}

impl Deliver {
    /// What counts toward a mailbox's bytes.
    fn len(&self) -> usize {
        self.body.len() + self.id.len() + self.re.as_ref().map_or(0, |re| re.len())
    }
}

fn nobody(send: &Send<'_>) -> (RejectCode, String) {
    (RejectCode::NoSuchDevice, format!("no device has the id {}", send.to))
}

fn reused() -> (RejectCode, String) {
    let message = "this id stood for another receiver or body; a new message needs a new id";
    (RejectCode::IdReused, message.to_owned())
}

fn store_unavailable() -> (RejectCode, String) {
    (RejectCode::StoreUnavailable, rejection(RejectCode::StoreUnavailable).to_owned())
}

/// A rejection in words, where nothing more is known.
fn rejection(code: RejectCode) -> &'static str {
    match code {
        RejectCode::NoSuchDevice => "no such device",
        RejectCode::MailboxFull => "the receiver's mailbox is full; nothing in it is dropped",
        RejectCode::TooLarge => "the message is larger than the receiver's mailbox",
        RejectCode::DurabilityUnavailable => {
            "a device of the text protocol keeps nothing: no durability, receipt or ttl_ms"
        }
        RejectCode::StoreUnavailable => {
            "the store cannot write now; whether the message is kept is not known: send it again \
             with the same id"
        }
        RejectCode::TooLate => "it was pushed, is gone, or was never here",
        _ => "rejected",
    }
}
