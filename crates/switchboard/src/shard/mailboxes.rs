//! Devices with mailboxes: the first frame, the move to the shard that owns the device, and the
//! events of the store.

use std::sync::Arc;
use std::time::Duration;

use mio::Interest;
use switchboard_broker::{
    Conn as BrokerConn, Hello, Input, Now, Position, SendFilter, StoreGate, owner,
};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{
    ClientFrame, FrameError, HELLO_TIMEOUT, ServerFrame, close, parse_client,
};

use super::Shard;
use super::budget::Pause;
use super::conn::{Conn, Key, Protocol, ReadPause};
use super::ports::{Ports, Todo};
use crate::auth::{Claims, TokenError};
use crate::config::Auth;
use crate::persistence::{Answer, Chunk, Job, record};
use crate::store::Synced;
use crate::ws::CloseCode;

/// An event of the store for one shard.
#[derive(Debug)]
pub(crate) enum StoreEvent {
    /// Batches of the shard are durable.
    Synced(Vec<Synced>),
    /// The reader has an answer.
    Read(Answer),
    /// A batch that was returned may be submitted again.
    Room,
    /// Nothing becomes durable for now.
    Failing,
    /// Batches become durable again.
    Healthy,
    /// The gate for new messages admits others than before.
    Gate(StoreGate),
}

/// Largest message of a connection that is not authenticated: a `hello` with the largest token.
pub(super) const HELLO_MAX_BYTES: usize = 16 << 10;

/// A connection on its way to the shard that owns its device.
#[derive(Debug)]
pub(super) struct Moved {
    conn: Conn,
    hello: Hello,
}

/// Identity of a connection: its device and the device's rights.
struct Identity {
    device: DeviceId,
    token: Option<Box<str>>,
    token_ends_ms: Option<u64>,
    filter: Option<Arc<dyn SendFilter>>,
}

/// The other fields of a `hello`, or their defaults.
struct Said {
    mailbox: Option<Box<str>>,
    last_seq: u64,
    is_text: bool,
    is_ephemeral: bool,
}

/// Reason why a connection is not identified, and the code that it is closed with.
#[derive(Debug)]
pub(super) struct Unidentified {
    pub(super) code: CloseCode,
    pub(super) reason: String,
}

impl Unidentified {
    /// An error that stays the same if the client comes back with the same token, or again without
    /// one.
    fn for_good(reason: impl Into<String>) -> Unidentified {
        Unidentified { code: CloseCode(close::NOT_AUTHENTICATED), reason: reason.into() }
    }

    /// An error of the server that may be over in a moment.
    fn for_now(reason: impl Into<String>) -> Unidentified {
        Unidentified { code: CloseCode::TRY_AGAIN_LATER, reason: reason.into() }
    }
}

impl Shard {
    /// Handles the first frame of a v1 connection, which must be `hello`.
    pub(super) fn first_frame(&mut self, key: Key, text: &[u8]) {
        let (token, said) = match parse_client(text) {
            Ok(ClientFrame::Hello { token, mailbox, last_seq, ephemeral }) => {
                let mailbox = mailbox.map(|mailbox| (*mailbox).into());
                let last_seq = last_seq.unwrap_or(0);
                (token, Said { mailbox, last_seq, is_text: false, is_ephemeral: ephemeral })
            }
            Ok(_) => {
                let reason = "the first frame must be hello";
                return self.close(key, CloseCode(close::PROTOCOL_ERROR), reason);
            }
            Err(error) => return self.refuse_first(key, &error),
        };
        let identity = match token {
            Some(token) => self.identify(key, &token),
            None => self.anonymous(),
        };
        match identity {
            Ok(identity) => {
                self.send_to_owner(key, identity, said);
            }
            Err(Unidentified { code, reason }) => self.close(key, code, &reason),
        }
    }

    fn refuse_first(&mut self, key: Key, error: &FrameError) {
        let id = error.id.as_deref();
        let frame = ServerFrame::Error { code: error.code, message: &error.message, id };
        self.ports.tell(key.index, &frame);
        self.close(key, CloseCode(close::PROTOCOL_ERROR), "the first frame must be hello");
    }

    /// Verifies a token; returns the identity that it proves.
    fn identify(&mut self, key: Key, token: &str) -> Result<Identity, Unidentified> {
        // Noted even if the token turns out to be bad: finding that out costs as much.
        self.note_verified(key);
        let Claims { device, expires_at_ms, allow_send } = self.verify(token)?;
        let (names, max) = (self.shared.directory.names(), self.config.names_max());
        let device = names.intern_within(device.as_ref(), max).ok_or_else(|| {
            Unidentified::for_now("full: no more names of devices are taken now (devices_max)")
        })?;
        let filter = allow_send.map(|patterns| Arc::new(patterns) as Arc<dyn SendFilter>);
        Ok(Identity { device, token: None, token_ends_ms: expires_at_ms, filter })
    }

    fn verify(&self, token: &str) -> Result<Claims, Unidentified> {
        let now_s = self.ports.wall_ms() / 1_000;
        let verified = self.shared.keyring.verify(token, now_s);
        verified.map_err(|error| match error {
            TokenError::KeyAwaited => Unidentified::for_now(error.to_string()),
            error => Unidentified::for_good(error.to_string()),
        })
    }

    /// Makes a new device without a name, and the token that proves it.
    fn anonymous(&mut self) -> Result<Identity, Unidentified> {
        if self.config.auth == Auth::Token {
            return Err(Unidentified::for_good("this server requires a token (auth = \"token\")"));
        }
        if !self.may_give_id() {
            let reason = "the store cannot reserve new ids now; come back soon";
            return Err(Unidentified::for_now(reason));
        }
        let device = self.shared.directory.new_id();
        let now_s = self.ports.wall_ms() / 1_000;
        let token = self.shared.keyring.own().mint(device.into(), None, None, now_s);
        Ok(Identity { device, token: Some(token.into()), token_ends_ms: None, filter: None })
    }

    /// Returns true if a new id may be given.
    pub(super) fn may_give_id(&self) -> bool {
        // Only ids that are reserved on disk: after a crash any other would be given a second time.
        let (may, wants_more) = self.shared.ids.may_give(self.shared.directory.next_id());
        if wants_more {
            self.shared.wants_ids.notify_one();
        }
        may
    }

    /// Identifies a device of the text protocol that showed a token in its handshake.
    pub(super) fn text_with_token(&mut self, key: Key, token: &str) -> Result<(), Unidentified> {
        let identity = self.identify(key, token)?;
        let said = Said { mailbox: None, last_seq: 0, is_text: true, is_ephemeral: false };
        self.send_to_owner(key, identity, said);
        Ok(())
    }

    /// Moves a connection to the shard that owns its device and decides about it.
    fn send_to_owner(&mut self, key: Key, identity: Identity, said: Said) {
        let Said { mailbox, last_seq, is_text, is_ephemeral } = said;
        let hello = Hello {
            conn: BrokerConn(key.index),
            device: identity.device,
            is_text,
            mailbox,
            last_seq,
            token: identity.token,
            token_ends_ms: identity.token_ends_ms,
            filter: identity.filter,
            nonce: getrandom::u64().unwrap_or(1),
            is_ephemeral,
        };
        let owner = owner(hello.device, self.shared.inboxes.len() as u16);
        if owner == self.ports.shard() {
            self.enter(key, hello);
        } else {
            // The connection goes only when the frame is dealt with, together with the rest of the
            // read behind it.
            self.ports.leaving = Some((key, usize::from(owner.0), hello));
        }
    }

    /// Forwards a connection if it is leaving for another shard; `rest` is the input behind the
    /// frame that decided so.
    pub(super) fn forward_leaving(&mut self, rest: &[u8]) {
        let Some((key, shard, hello)) = self.ports.leaving.take() else { return };
        if self.ports.conn(key).is_none() {
            return;
        }
        self.ports.count_unfinished(key, 0);
        let mut conn = self.ports.conns.remove(key.index as usize);
        // Its out queue counts on its new shard from the first write on.
        self.ports.waiting.forget(key.index);
        // An error shows again when it is registered there.
        self.poll.registry().deregister(&mut conn.socket).ok();
        conn.unread.extend_from_slice(rest);
        conn.queued = false;
        conn.dirty = false;
        conn.read_pauses.remove(ReadPause::Turn);
        self.ports.metrics.connections.add(1u64.wrapping_neg());
        self.ports.outboxes[shard].batch.moved.push(Moved { conn, hello });
    }

    /// Takes in a connection whose device this shard owns.
    pub(super) fn take_in(&mut self, moved: Moved) {
        let Moved { conn, mut hello } = moved;
        let key = self.insert(|key| Conn { generation: key.generation, ..conn });
        self.ports.metrics.connections.add(1);
        hello.conn = BrokerConn(key.index);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let Some(conn) = self.ports.conn(key) else { return };
        // Its timer entry stayed with the other shard.
        conn.timer_at = switchboard_broker::Moment::from_ms(u64::MAX);
        let token = Ports::token(key);
        if self.poll.registry().register(&mut conn.socket, token, interest).is_err() {
            return self.remove(key, "the socket cannot be watched");
        }
        // There may be no event for bytes that came while it was registered nowhere, so it is read
        // at once.
        conn.readable = true;
        self.ports.mark_dirty(key);
        if self.drain.is_some() {
            return self.close(key, CloseCode::GOING_AWAY, "the server is going down");
        }
        self.enter(key, hello);
        self.schedule_next(key);
        self.enqueue(key);
    }

    /// Opens the session.
    fn enter(&mut self, key: Key, hello: Hello) {
        let now = self.ports.now;
        let Some(conn) = self.ports.conn(key) else { return };
        conn.full_since = now;
        conn.decoder.set_max_message_bytes(self.config.max_message_bytes);
        conn.protocol = if hello.is_text { Protocol::Mailbox } else { Protocol::V1 };
        let device = self.shared.directory.names().show(hello.device);
        let peer = self.ports.conns[key.index as usize].permit.address();
        tracing::debug!(device = %device.as_ref(), %peer, "device connected");
        self.ports.entering = Some(key);
        self.decide(Input::Hello(hello));
        self.ports.entering = None;
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.read_pauses.has(ReadPause::Welcome) {
            // The peer shut its side before the pause began, so no event will call `peer_left`.
            if conn.half_closed {
                return self.remove(key, "the peer left");
            }
            self.ports.schedule(key, now.after(HELLO_TIMEOUT));
        }
    }

    /// Handles a frame of a v1 device.
    pub(super) fn v1_frame(&mut self, key: Key, text: &[u8]) {
        let (now, conn) = (self.ports.now(), BrokerConn(key.index));
        self.broker.framed(now, conn, text, &mut |effect| self.ports.perform(effect));
    }

    /// Gives the broker an input and carries out its decisions.
    pub(super) fn decide(&mut self, input: Input<'_>) {
        let now = self.ports.now();
        self.broker.handle(now, input, &mut |effect| self.ports.perform(effect));
        self.do_todos();
    }

    /// Does the tasks that the broker's effects left for the shard.
    #[inline]
    pub(super) fn do_todos(&mut self) {
        if !self.ports.todos.is_empty() {
            self.do_all_todos();
        }
    }

    fn do_all_todos(&mut self) {
        // One by one, as a task may add others.
        while let Some(todo) = self.ports.todos.pop_front() {
            self.do_todo(todo);
        }
    }

    fn do_todo(&mut self, todo: Todo) {
        match todo {
            Todo::Outgrown { key, sender } => self.outgrown(key, sender),
            Todo::Close { key, code, reason } => self.close(key, CloseCode(code), &reason),
            Todo::Resume(key, ReadPause::Reply) => {
                self.resume(key, ReadPause::Reply);
                self.resume(key, ReadPause::Welcome);
            }
            Todo::Resume(key, pause) => self.resume(key, pause),
            Todo::Verify { key, token } => match self.identify(key, &token) {
                Ok(identity) => self.decide(Input::Refreshed {
                    conn: BrokerConn(key.index),
                    device: identity.device,
                    token_ends_ms: identity.token_ends_ms,
                    filter: identity.filter,
                }),
                Err(Unidentified { code, reason }) => self.close(key, code, &reason),
            },
        }
    }

    /// Deals with the events of the store.
    pub(super) fn take_store_events(&mut self) {
        let inbox = &self.shared.inboxes[self.ports.shard_index()];
        if !inbox.has_store_events() {
            return;
        }
        for event in inbox.take_store() {
            match event {
                StoreEvent::Synced(batches) => self.synced(batches),
                StoreEvent::Read(Answer::Fetched { device, session, contents, bytes }) => {
                    self.decide(Input::Fetched { device, session, contents });
                    let inbox = &self.shared.inboxes[self.ports.shard_index()];
                    if inbox.took_contents(bytes) {
                        self.ports.ask_reader(Job::Room);
                    }
                }
                StoreEvent::Read(Answer::Unreadable { device, session, want }) => {
                    self.decide(Input::Unreadable { device, session, want });
                }
                StoreEvent::Read(Answer::Compact(chunk)) => self.compact(&chunk),
                StoreEvent::Gate(gate) => self.decide(Input::StoreGate(gate)),
                StoreEvent::Room => self.ports.store_is_full = false,
                StoreEvent::Failing => self.store_fails(true, Input::StoreFailing),
                StoreEvent::Healthy => self.store_fails(false, Input::StoreHealthy),
            }
        }
    }

    fn store_fails(&mut self, is_failing: bool, input: Input<'_>) {
        self.ports.store_is_failing = is_failing;
        self.ports.publish_charges();
        self.decide(input);
    }

    fn synced(&mut self, batches: Vec<Synced>) {
        let mut positions = std::mem::take(&mut self.ports.positions);
        for synced in batches {
            positions.clear();
            positions.extend(synced.positions().map(|position| Position(position.to_u64())));
            self.decide(Input::Synced(&positions));
            self.ports.synced += positions.len() as u64;
            // The store syncs a shard's batches in the order in which they were submitted.
            let charge = self.ports.unsynced.pop_front().expect("it was submitted");
            self.ports.charge(-(charge as isize));
            self.ports.give_back(synced.batch);
        }
        self.ports.positions = positions;
    }

    /// Appends again what still counts of a part of the log that is to be deleted.
    fn compact(&mut self, chunk: &Chunk) {
        let had = self.ports.appended_bytes;
        if let Some(part) = chunk.damaged() {
            self.decide(Input::Damaged { from: part.start, to: part.end });
        }
        let now = self.ports.now();
        for (position, bytes) in chunk.records() {
            // It was read when the log was opened, or written since, so it can be read.
            let Ok(record) = record::read(bytes) else { continue };
            let ports = &mut self.ports;
            self.broker.compact(now, &record, position, &mut |effect| ports.perform(effect));
        }
        self.ports.copied_bytes += self.ports.appended_bytes - had;
        // At least 1 while the record of an end is not synced: 0 would let the segment be deleted
        // ahead of the queue. A message that is ending is not copied, so a crash after the deletion
        // could lose its outcome.
        self.ports.copied_bytes += usize::from(self.ports.has_unsynced_end());
        self.ports.compacted += 1;
    }

    /// Submits the records of this turn, and lets paused connections go on if there is room.
    #[inline]
    pub(super) fn submit_appends(&mut self) {
        if self.ports.has_something_for_store() {
            self.submit();
        }
    }

    fn submit(&mut self) {
        if let Some(log) = self.shared.log.get() {
            self.ports.submit_batches(log);
        }
        // The copies must be in the store's queue before the segment's drop is. Without copies
        // there is nothing to wait for: a full store can be helped only by deleting.
        if !self.ports.store_is_full || self.ports.copied_bytes == 0 {
            for _ in 0..std::mem::take(&mut self.ports.compacted) {
                let copied_bytes = std::mem::take(&mut self.ports.copied_bytes) as u64;
                self.ports.ask_reader(Job::Compacted { copied_bytes });
            }
        }
        // Before anything is forwarded: the shard that takes it frees the charge.
        self.ports.publish_charges();
        let budget = &self.shared.budget;
        // While the store fails senders are refused at once, so they need not wait for room.
        let is_answered = self.ports.store_is_failing && budget.pause(true) == Pause::Nobody;
        if !self.ports.paused_for_store.is_empty() && (budget.has_room() || is_answered) {
            for key in std::mem::take(&mut self.ports.paused_for_store) {
                self.resume(key, ReadPause::Store);
            }
        }
    }

    /// Puts the replayed state of the last run into force.
    pub(super) fn begin_with(&mut self, replay: switchboard_broker::Replay) {
        let now = self.ports.now();
        let ports = &mut self.ports;
        self.broker.replayed_all(now, replay, &mut |effect| ports.perform(effect));
        self.do_todos();
    }

    /// Handles mailbox deadlines that are due.
    pub(super) fn tick_broker(&mut self) {
        if self.broker.is_due(self.ports.now) {
            let may_end = self.ports.pause == Pause::Nobody;
            self.decide(Input::Tick { may_end });
        }
        if self.ports.stats_are_stale() {
            self.ports.metrics.set_waiting(self.broker.stats());
        }
    }

    /// Appends records that were put off so that others could join them, such as acks.
    pub(super) fn append_rest(&mut self) {
        self.decide(Input::Ending);
    }

    /// Ends the broker: its last records go to the store.
    pub(super) fn end_broker(&mut self) {
        self.append_rest();
        if let Some(log) = self.shared.log.get() {
            self.ports.submit_last(log);
        }
    }

    /// Tells a v1 device that its connection is about to be closed as planned.
    pub(super) fn say_bye(&mut self, key: Key, reconnect_in: Duration, reason: &str) {
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.protocol == Protocol::V1 {
            let reconnect_in_ms = reconnect_in.as_millis() as u64;
            self.ports.tell(key.index, &ServerFrame::Bye { reconnect_in_ms, reason });
        }
    }
}

impl Ports {
    /// Returns the clocks of this turn.
    pub(super) fn now(&self) -> Now {
        Now { at: self.now, wall_ms: self.wall_ms() }
    }
}
