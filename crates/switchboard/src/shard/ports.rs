//! Output of the broker: its effects become bytes in out queues, texts for other shards and
//! records.

use std::collections::VecDeque;
use std::io::Write as _;
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use slab::Slab;
use switchboard_broker::{
    Conn as BrokerConn, Effect, Envelope, Hello, Moment, Position, Record, Refusal, ShardId,
};
use switchboard_proto::v1::{DeviceRef, ServerFrame, write_text_of_body};
use switchboard_proto::{DeviceId, text};

use super::Shared;
use super::budget::{Pause, Share};
use super::conn::{Compression, Conn, Key, Protocol, ReadPause, Unwritten};
use super::inbox::message_bytes;
use super::out::Spares;
use super::outbox::Outbox;
use super::timers::Timers;
use super::unfinished::Unfinished;
use super::waiting::Waiting;
use super::work::Work;
use crate::config::Config;
use crate::metrics::{MessageResult, ShardMetrics};
use crate::persistence::{Job, record};
use crate::store::{Batch as Appends, Log};
use crate::ws::{
    Deflate, Opcode, write_header, write_header_reserved, write_server_frame,
    write_server_frame_with,
};

/// Multiple of its bound at which an out queue is not given the stall timeout; see `crowded`.
pub(super) const OVERFLOW_FACTOR: usize = 4;

/// The connections of a shard and the queues to the others.
pub(super) struct Ports {
    shard: ShardId,
    pub(super) shared: Arc<Shared>,
    /// The configuration as of the last SIGHUP.
    pub(super) config: Arc<Config>,
    pub(super) metrics: Arc<ShardMetrics>,
    pub(super) conns: Slab<Conn>,
    pub(super) spares: Spares,
    pub(super) timers: Timers,
    /// The time of this turn: one reading of the clock serves all its decisions.
    pub(super) now: Moment,
    turn_started: Instant,
    /// Connections to be written at the end of the turn, each once.
    pub(super) dirty: Vec<Key>,
    /// Tasks for the shard once the broker has decided.
    pub(super) todos: VecDeque<Todo>,
    /// Batches for all shards, by number.
    pub(super) outboxes: Vec<Outbox>,
    /// The connection whose command is being carried out.
    pub(super) speaking: Option<Key>,
    /// Number of messages delivered in this turn whose latency counts from its start: texts that
    /// were read in it, and everything that was pushed.
    delivered: u64,
    /// Times at which the texts that other shards forwarded were read, with their numbers.
    forwarded: Vec<(Instant, u64)>,
    /// Sender of the last text that was delivered; often it sends the next one, too.
    sender: text::Sender,
    /// Compression contexts of all connections that share them.
    deflate: Option<Box<Deflate>>,
    scratch: Vec<u8>,
    /// A connection that leaves this shard for the one that owns its device.
    pub(super) leaving: Option<(Key, usize, Hello)>,
    /// The connection whose session is being opened.
    pub(super) entering: Option<Key>,
    /// The batch that is being filled, and its charge to the budget.
    appends: (Appends, usize),
    /// Bytes of all records ever appended.
    pub(super) appended_bytes: usize,
    /// Number of all records ever appended.
    appended: u64,
    /// Number of the appended records that are synced.
    pub(super) synced: u64,
    /// Number of the last record ever appended, synced or not, that replaces older ones.
    last_end: u64,
    /// Full batches, submitted before `appends`, with their charges, oldest first.
    full_batches: VecDeque<(Appends, usize)>,
    spare_batches: Vec<Appends>,
    /// Charges of the batches that the store has, oldest first.
    pub(super) unsynced: VecDeque<usize>,
    share: Share,
    pub(super) unfinished: Unfinished,
    pub(super) waiting: Waiting,
    /// Work done in this turn.
    pub(super) work: Work,
    /// Connections that are paused, as of the last look at the budget.
    pub(super) pause: Pause,
    pub(super) store_is_failing: bool,
    /// Set when the store returned a batch, until it says that there is room.
    pub(super) store_is_full: bool,
    pub(super) paused_for_store: Vec<Key>,
    /// Number of chunks of the log that were dealt with and not yet reported.
    pub(super) compacted: usize,
    /// Bytes of their records that were appended again.
    pub(super) copied_bytes: usize,
    pub(super) positions: Vec<Position>,
    /// Sender to the thread that reads the store; `None` if all is in memory.
    jobs: Option<Sender<Job>>,
    /// Unix time less uptime, in milliseconds.
    wall_less_uptime_ms: i64,
    /// Time at which that was looked at.
    wall_at: Moment,
    stats_at: Moment,
}

/// A task that the ports cannot do alone.
pub(super) enum Todo {
    /// Handle an out queue that passed [`OVERFLOW_FACTOR`] times its bound, by a text of this
    /// sender if it is of this shard.
    Outgrown { key: Key, sender: Option<Key> },
    /// Close a connection whose session has ended.
    Close { key: Key, code: u16, reason: String },
    /// Remove a reason for which a connection was not read.
    Resume(Key, ReadPause),
    /// Verify another token of a device.
    Verify { key: Key, token: String },
}

/// Greatest age of the wall clock and the gauges.
const STALE_MS: u64 = 500;
/// Most empty batches that are kept for their memory.
const SPARE_BATCHES: usize = 4;
/// Size at which a batch is ended: when a longer one grows, the old and the new memory exist at
/// once.
const BATCH_BYTES: usize = 4 << 20;

/// Memory of a message that is being accepted, beside its content: its entry, its id, the
/// connection to answer, and the allocator's overhead.
const NOTES_BYTES: usize = 256;

/// Bytes of an ordinary answer of v1, with an id like a UUID.
const ANSWER_LEN: usize = 90;
/// Bytes of an ordinary pushed message beside its id and its body, and of an ordinary outcome.
const PUSH_LEN: usize = 95;

impl Ports {
    pub(super) fn new(shard: ShardId, shared: Arc<Shared>, jobs: Option<Sender<Job>>) -> Ports {
        Ports {
            shard,
            config: shared.config(),
            metrics: Arc::clone(&shared.metrics.shards[usize::from(shard.0)]),
            conns: Slab::new(),
            spares: Spares::default(),
            timers: Timers::default(),
            now: Moment::default(),
            turn_started: shared.started,
            dirty: Vec::new(),
            todos: VecDeque::new(),
            outboxes: shared.inboxes.iter().map(|_| Outbox::default()).collect(),
            speaking: None,
            delivered: 0,
            forwarded: Vec::new(),
            sender: text::Sender::new(DeviceId::FIRST),
            deflate: None,
            scratch: Vec::new(),
            leaving: None,
            entering: None,
            appends: Default::default(),
            appended_bytes: 0,
            appended: 0,
            synced: 0,
            last_end: 0,
            full_batches: VecDeque::new(),
            spare_batches: Vec::new(),
            unsynced: VecDeque::new(),
            share: shared.budget.share(),
            unfinished: Unfinished::default(),
            waiting: Waiting::default(),
            work: Work::default(),
            pause: Pause::Nobody,
            store_is_failing: false,
            store_is_full: false,
            paused_for_store: Vec::new(),
            compacted: 0,
            copied_bytes: 0,
            positions: Vec::new(),
            jobs,
            wall_less_uptime_ms: 0,
            wall_at: Moment::default(),
            stats_at: Moment::default(),
            shared,
        }
    }

    pub(super) fn shard(&self) -> ShardId {
        self.shard
    }

    pub(super) fn shard_index(&self) -> usize {
        usize::from(self.shard.0)
    }

    /// Returns true if something waits for the end of a turn. Batches that were refused do not:
    /// the other shard, or the store, says when it has room.
    pub(super) fn has_something_to_forward(&self) -> bool {
        let waits = |outbox: &Outbox| !outbox.is_refused && !outbox.batch.is_empty();
        let may_submit = self.shared.log.get().is_some() && !self.store_is_full;
        self.outboxes.iter().any(waits) || (may_submit && self.has_appends())
    }

    /// Returns true if nothing is on its way to another shard or to the disk.
    pub(super) fn is_at_rest(&self) -> bool {
        self.conns.is_empty()
            && self.outboxes.iter().all(|outbox| outbox.batch.is_empty())
            && self.unsynced.is_empty()
            && !self.has_appends()
    }

    /// Returns true if there are records that the store does not have yet.
    #[inline]
    fn has_appends(&self) -> bool {
        !self.appends.0.is_empty() || !self.full_batches.is_empty()
    }

    /// Returns true if the end of a turn has something to do for the store, or for the budget.
    #[inline]
    pub(super) fn has_something_for_store(&self) -> bool {
        self.has_appends()
            || self.compacted > 0
            || !self.paused_for_store.is_empty()
            || !self.share.is_published()
    }

    fn append(&mut self, record: &Record<'_>) {
        let (batch, charged) = &mut self.appends;
        let had = batch.bytes();
        batch.push_with(|out| record::write(record, out));
        let bytes = batch.bytes() - had;
        // Until it is synced a message's content is also in its mailbox.
        let is_message = matches!(record, Record::Message(_));
        let charge = if is_message { 2 * bytes + NOTES_BYTES } else { bytes };
        *charged += charge;
        self.appended_bytes += bytes;
        self.appended += 1;
        if matches!(record, Record::Ended(_) | Record::Exchange(_) | Record::Id(_)) {
            self.last_end = self.appended;
        }
        if batch.bytes() >= BATCH_BYTES {
            let fresh = self.spare_batches.pop().unwrap_or_default();
            self.full_batches.push_back(mem::replace(&mut self.appends, (fresh, 0)));
        }
        self.charge(charge as isize);
        self.note_that_it_stores();
    }

    /// Returns true if a record that replaces older ones (an end, an id, the state of an exchange)
    /// is not synced: until it is, the older ones must not be deleted.
    pub(super) fn has_unsynced_end(&self) -> bool {
        self.last_end > self.synced
    }

    /// Submits the batches; one that the store does not take waits until it says that there is
    /// room.
    pub(super) fn submit_batches(&mut self, log: &Log) {
        while !self.store_is_full
            && let Some((batch, charge)) = self.next_batch()
        {
            match log.submit(self.shard_index(), batch) {
                Ok(()) => self.unsynced.push_back(charge),
                // In front again: records of one device must stay in order.
                Err(full) => {
                    self.full_batches.push_front((full.0, charge));
                    self.store_is_full = true;
                }
            }
        }
    }

    /// Submits all batches, whatever the store's bound: there is no later turn.
    pub(super) fn submit_last(&mut self, log: &Log) {
        while let Some((batch, _)) = self.next_batch() {
            log.submit_last(self.shard_index(), batch);
        }
    }

    /// Takes the oldest batch that the store does not have, with its charge.
    fn next_batch(&mut self) -> Option<(Appends, usize)> {
        if let Some(full) = self.full_batches.pop_front() {
            return Some(full);
        }
        if self.appends.0.is_empty() {
            return None;
        }
        let fresh = self.spare_batches.pop().unwrap_or_default();
        Some(mem::replace(&mut self.appends, (fresh, 0)))
    }

    /// Charges bytes that are not durable to the budget; a negative number frees them.
    pub(super) fn charge(&mut self, bytes: isize) {
        if self.share.change(bytes) {
            self.publish_charges();
        }
    }

    /// Publishes the changes of the budget; wakes the shards for which there is room now.
    pub(super) fn publish_charges(&mut self) {
        if !self.share.is_published() {
            for shard in self.shared.budget.publish(&mut self.share) {
                self.shared.inboxes[shard].wake_up();
            }
        }
        self.pause = self.shared.budget.pause(self.store_is_failing);
    }

    /// Notes that the device which speaks sent to a mailbox.
    fn note_that_it_stores(&mut self) {
        // Most devices of the text protocol never do. So a device is paused before its reads only
        // after its first such text; the first text itself is caught by `put_back`.
        if let Some(key) = self.speaking
            && let Some(conn) = self.conn(key)
            && conn.protocol == Protocol::Text
        {
            conn.stores = true;
        }
    }

    /// Pauses a connection if its next frame could make a record and the budget has no room for
    /// that.
    #[cold]
    pub(super) fn pause_if_it_stores(&mut self, key: Key) {
        let pause = self.pause;
        let Some(conn) = self.conn(key) else { return };
        let must_wait = match conn.protocol {
            Protocol::V1 | Protocol::Mailbox => pause != Pause::Nobody,
            Protocol::Text => pause != Pause::Nobody && conn.stores,
            Protocol::Hello => pause == Pause::All,
        };
        if must_wait && conn.is_open() {
            self.pause_for_store(key);
        }
    }

    /// Pauses a connection until the budget has room.
    pub(super) fn pause_for_store(&mut self, key: Key) {
        if self.conn(key).is_none_or(|conn| conn.read_pauses.has(ReadPause::Store)) {
            return;
        }
        self.pause_reading(key, ReadPause::Store);
        if self.paused_for_store.len() > 2 * self.conns.len() + 64 {
            // While the store hangs, keys of connections that ended while they were paused pile up.
            let mut paused = mem::take(&mut self.paused_for_store);
            paused.retain(|key| {
                self.conn(*key).is_some_and(|conn| conn.read_pauses.has(ReadPause::Store))
            });
            self.paused_for_store = paused;
        }
        self.paused_for_store.push(key);
        // There may be room by now, and no shard would tell this one any more. So `submit` looks
        // once more at the end of this turn.
        self.shared.budget.wait(self.shard_index());
    }

    pub(super) fn begin_turn(&mut self, now: Instant) {
        self.turn_started = now;
        self.now = self.shared.uptime.after(now.duration_since(self.shared.started));
        self.pause = self.shared.budget.pause(self.store_is_failing);
        if self.wall_at == Moment::default() || self.now.ms() > self.wall_at.ms() + STALE_MS {
            self.wall_at = self.now;
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.wall_less_uptime_ms = wall.as_millis() as i64 - self.now.ms() as i64;
        }
    }

    /// Returns Unix time: the turn's uptime plus a difference that is looked at every 500 ms.
    pub(super) fn wall_ms(&self) -> u64 {
        (self.now.ms() as i64 + self.wall_less_uptime_ms) as u64
    }

    /// Returns true if the gauges should be set again.
    pub(super) fn stats_are_stale(&mut self) -> bool {
        let is_stale = self.now.ms() >= self.stats_at.ms() + STALE_MS;
        if is_stale {
            self.stats_at = self.now;
        }
        is_stale
    }

    /// Counts the turn and observes the latency of its messages.
    pub(super) fn end_turn(&mut self, now: Instant) {
        let took = now.duration_since(self.turn_started);
        self.metrics.turns.add(1);
        self.metrics.busy_ns.add(took.as_nanos() as u64);
        if self.delivered > 0 {
            self.metrics.latency.observe(took, mem::take(&mut self.delivered));
        }
        for (read_at, texts) in self.forwarded.drain(..) {
            self.metrics.latency.observe(now.duration_since(read_at), texts);
        }
    }

    /// Returns the uptime in nanoseconds, for the rate limit.
    pub(super) fn now_ns(&self) -> u64 {
        // `now` counts milliseconds, which are too coarse for thousands of messages per second.
        let since_start = self.turn_started.duration_since(self.shared.started);
        self.shared.uptime.ms() * 1_000_000 + since_start.as_nanos() as u64
    }

    /// Notes the times at which the texts that are about to be delivered were read.
    pub(super) fn forwarded_at(&mut self, received: &[(Instant, u64)]) {
        self.forwarded.extend_from_slice(received);
    }

    /// Returns the connection that an event's token names, if it is still there.
    #[inline]
    pub(super) fn by_token(&mut self, token: usize) -> Option<(Key, &mut Conn)> {
        // An event may name a connection that an earlier event of the same wait removed, and whose
        // index another connection has by now.
        let index = token as u32;
        let conn = self.conns.get_mut(index as usize)?;
        let key = Key { index, generation: conn.generation };
        ((token >> 33) as u32 == conn.generation & (u32::MAX >> 1)).then_some((key, conn))
    }

    /// Returns the token that [`Ports::by_token`] reads: index, a bit for the pipe, generation.
    pub(super) fn token(key: Key) -> mio::Token {
        mio::Token(key.index as usize | (key.generation as usize & (u32::MAX as usize >> 1)) << 33)
    }

    #[inline]
    pub(super) fn conn(&mut self, key: Key) -> Option<&mut Conn> {
        self.conns.get_mut(key.index as usize).filter(|conn| conn.generation == key.generation)
    }

    pub(super) fn insert(&mut self, generation: u32, conn: impl FnOnce(Key) -> Conn) -> Key {
        let entry = self.conns.vacant_entry();
        let index = u32::try_from(entry.key()).expect("a process has fewer than 2^32 sockets");
        let key = Key { index, generation };
        entry.insert(conn(key));
        key
    }

    #[inline]
    pub(super) fn mark_dirty(&mut self, key: Key) {
        let Some(conn) = self.conn(key) else { return };
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(key);
        }
    }

    /// Makes sure that the connection is looked at no later than `at`.
    pub(super) fn schedule(&mut self, key: Key, at: Moment) {
        let Some(conn) = self.conn(key) else { return };
        // A later deadline needs no entry: the earlier one that is there asks for the next when
        // it fires.
        if at < conn.timer_at {
            conn.timer_at = at;
            self.timers.add(at, key);
        }
    }

    /// Carries out an effect.
    ///
    /// Inlined into the broker's decision, so that the ordinary effect is never built in memory.
    #[inline(always)]
    pub(super) fn perform(&mut self, effect: Effect<'_>) {
        match effect {
            Effect::Deliver { conn, from, text } => self.deliver(conn, from, text),
            effect => self.perform_rest(effect),
        }
    }

    #[inline(never)]
    fn perform_rest(&mut self, effect: Effect<'_>) {
        match effect {
            Effect::Refuse { conn, refusal } => self.refuse(conn, refusal),
            Effect::Inform { conn, info } => {
                self.metrics.messages.at(MessageResult::Info as usize).add(1);
                self.answer(conn, info);
            }
            Effect::Forward { shard, from, to, text } => self.forward(shard, from, to, text),
            Effect::Return { shard, from, digest } => {
                self.metrics.returned.add(1);
                self.outboxes[usize::from(shard.0)].batch.push_returned((from, digest));
            }
            effect => self.perform_more(effect),
        }
    }

    /// Carries out the effects that concern devices with mailboxes.
    fn perform_more(&mut self, effect: Effect<'_>) {
        match effect {
            Effect::Tell { conn, frame } => self.tell(conn.0, frame),
            Effect::Push { conn, frame } => {
                let had = self.push(conn.0, pushed_len(frame), |out| frame.write(out));
                self.grew_by(conn.0, had, None);
            }
            Effect::PushBody { conn, from, body } => {
                let had = self.push_body(conn.0, from, body);
                self.grew_by(conn.0, had, None);
            }
            Effect::DeliverBody { conn, from, body } => {
                let had = self.push_body(conn.0, from, body);
                self.grew(conn.0, had);
            }
            Effect::AwaitDrain { conn } => self.await_drain(conn.0),
            Effect::Close { conn, code, reason } => {
                let (key, reason) = (self.key(conn.0), reason.to_owned());
                self.todos.push_back(Todo::Close { key, code, reason });
            }
            Effect::Append(record) => self.append(&record),
            Effect::Fetch { device, session, conn, wants } => {
                let (shard, wants) = (self.shard_index(), wants.to_vec());
                let link = self.conns[conn.0 as usize].link.get_or_insert_default();
                let link = Arc::downgrade(link);
                self.ask_reader(Job::Fetch { shard, device, session, link, wants });
            }
            Effect::Send { shard, envelope } => self.send_envelope(shard, envelope),
            Effect::AwaitReply { conn } => self.await_reply(self.key(conn.0)),
            Effect::Replied { conn } => {
                self.todos.push_back(Todo::Resume(self.key(conn.0), ReadPause::Reply));
            }
            Effect::TextAccepted { .. } => {
                self.metrics.messages.at(MessageResult::Stored as usize).add(1);
            }
            Effect::Verify { conn, token } => {
                let (key, token) = (self.key(conn.0), token.to_owned());
                self.todos.push_back(Todo::Verify { key, token });
            }
            Effect::Count(event) => self.metrics.count(event, &self.shared.directory),
            Effect::Deliver { .. }
            | Effect::Refuse { .. }
            | Effect::Inform { .. }
            | Effect::Forward { .. }
            | Effect::Return { .. } => unreachable!("these are done in `perform`"),
        }
    }

    /// Pauses a connection that waits for its `welcome`, or whose text waits for the receiver's
    /// shard.
    fn await_reply(&mut self, key: Key) {
        let is_unwelcomed = self.entering == Some(key)
            || self.conn(key).is_some_and(|conn| conn.read_pauses.has(ReadPause::Welcome));
        self.pause_reading(key, if is_unwelcomed { ReadPause::Welcome } else { ReadPause::Reply });
    }

    pub(super) fn key(&self, index: u32) -> Key {
        Key { index, generation: self.conns[index as usize].generation }
    }

    /// Sends a v1 device an answer, or another frame that is not from its mailbox.
    pub(super) fn tell(&mut self, index: u32, frame: &ServerFrame<'_>) {
        let had = self.write_text(index, ANSWER_LEN, |out| frame.write(out));
        self.answered(index, had);
    }

    /// Appends a message from a mailbox to an out queue; returns the queue's length before.
    fn push(&mut self, index: u32, len_guess: usize, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.metrics.messages.at(MessageResult::Delivered as usize).add(1);
        self.delivered += 1;
        self.write_text(index, len_guess, write)
    }

    /// As [`Ports::push`], to a device of the text protocol.
    fn push_body(&mut self, index: u32, from: DeviceRef<'_>, body: &[u8]) -> usize {
        let len = from.len() + body.len();
        self.push(index, len, |out| write_text_delivery(out, from, body))
    }

    /// Appends a text frame to an out queue; returns the queue's length before. `len_guess` is
    /// about the length of the text, which is written behind its header at once unless it is
    /// compressed.
    #[inline]
    fn write_text(
        &mut self,
        index: u32,
        len_guess: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> usize {
        let conn = &mut self.conns[index as usize];
        let had = conn.out.len();
        if conn.deflate.is_none() {
            let out = conn.out.buffer(&mut self.spares);
            write_server_frame_with(out, Opcode::Text, len_guess, write);
            return had;
        }
        let mut scratch = mem::take(&mut self.scratch);
        scratch.clear();
        write(&mut scratch);
        self.write_payload(index, Opcode::Text, &scratch);
        self.scratch = scratch;
        had
    }

    /// Appends a frame to an out queue, compressed where that was agreed on.
    fn write_payload(&mut self, index: u32, opcode: Opcode, payload: &[u8]) {
        let conn = &mut self.conns[index as usize];
        if opcode.is_control() || !conn.compresses(payload.len()) {
            write_server_frame(conn.out.buffer(&mut self.spares), opcode, payload);
        } else {
            self.write_deflated(index, payload);
        }
    }

    /// Notes that the broker pushes no more until the connection has taken what is there.
    fn await_drain(&mut self, index: u32) {
        let key = self.key(index);
        let at = self.now.after(self.config.out_queue_stall_timeout);
        let conn = &mut self.conns[index as usize];
        conn.unwritten.set(Unwritten::PUSHED, true);
        // It counts as full, so that the stall timeout also ends a device that takes nothing of
        // a queue below the bound.
        if !conn.is_full() {
            conn.unwritten.set(Unwritten::FULL, true);
            conn.full_since = self.now;
        }
        self.schedule(key, at);
        self.mark_dirty(key);
    }

    fn send_envelope(&mut self, shard: ShardId, envelope: Envelope) {
        if let Envelope::Deliver(_) = envelope {
            // Charged when it is sent: on arrival it could only be refused, after its sender
            // went on.
            self.charge(message_bytes(&envelope) as isize);
            self.note_that_it_stores();
        }
        let max = self.config.shard_queue_max_bytes;
        let outbox = &mut self.outboxes[usize::from(shard.0)];
        outbox.push_envelope(envelope, max);
        if outbox.batch.bytes() >= max
            && let Some(key) = self.speaking
        {
            outbox.paused.push(key);
            self.pause_reading(key, ReadPause::ShardQueue);
        }
    }

    /// Gives the reader of the store a job.
    pub(super) fn ask_reader(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The reader ends only after all shards, so an error means that its thread panicked.
            jobs.send(job).ok();
        }
    }

    /// Keeps the memory of a synced batch for another one.
    pub(super) fn give_back(&mut self, mut batch: Appends) {
        if self.spare_batches.len() < SPARE_BATCHES {
            batch.clear();
            self.spare_batches.push(batch);
        }
    }

    #[inline]
    fn deliver(&mut self, BrokerConn(index): BrokerConn, from: DeviceId, text: &[u8]) {
        self.metrics.messages.at(MessageResult::Delivered as usize).add(1);
        // What another shard forwarded is timed from when that shard read it.
        self.delivered += u64::from(self.speaking.is_some());
        let conn = &mut self.conns[index as usize];
        let had = conn.out.len();
        if self.sender.id() != from {
            if !from.is_number() {
                return self.deliver_named(index, from, text);
            }
            self.sender = text::Sender::new(from);
        }
        let len = text::delivery_len(&self.sender, text);
        if !conn.compresses(len) {
            let out = conn.out.buffer(&mut self.spares);
            write_header(out, Opcode::Text, len);
            text::write_delivery(out, &self.sender, text);
        } else {
            let mut scratch = mem::take(&mut self.scratch);
            scratch.clear();
            text::write_delivery(&mut scratch, &self.sender, text);
            self.write_deflated(index, &scratch);
            self.scratch = scratch;
        }
        self.grew(index, had);
    }

    /// As [`Ports::deliver`], from a device with a name.
    #[cold]
    fn deliver_named(&mut self, index: u32, from: DeviceId, text: &[u8]) {
        let shown = self.shared.directory.names().show(from);
        let from = shown.as_ref();
        let had = self.write_text(index, from.len() + 1 + text.len(), |out| {
            from.write(out);
            out.push(b':');
            out.extend_from_slice(text);
        });
        self.grew(index, had);
    }

    fn refuse(&mut self, conn: BrokerConn, refusal: Refusal) {
        self.metrics.messages.at(MessageResult::from(refusal) as usize).add(1);
        self.answer(conn, refusal.text());
    }

    /// Sends a device the answer to its own command.
    fn answer(&mut self, BrokerConn(index): BrokerConn, answer: &str) {
        self.answer_frame(index, Opcode::Text, answer.as_bytes());
    }

    /// As [`Ports::answer`], with any kind of frame.
    pub(super) fn answer_frame(&mut self, index: u32, opcode: Opcode, payload: &[u8]) {
        let had = self.conns[index as usize].out.len();
        self.write_payload(index, opcode, payload);
        self.answered(index, had);
    }

    /// Checks the bounds of an out queue that had `had` bytes before an answer.
    #[inline]
    fn answered(&mut self, index: u32, had: usize) {
        // No sender is paused for it: what a device is told of others, such as presence, is not
        // the fault of the connection that speaks.
        let key = self.grew_by(index, had, None);
        let len = self.conns[index as usize].out.len();
        self.note_answered(len - had);
        // A device that does not read its answers is not read either, so that its commands
        // cannot make us keep more than the bound.
        if len > self.config.out_queue_max_bytes {
            self.pause_reading(key, ReadPause::OutQueue);
        }
    }

    fn write_deflated(&mut self, index: u32, payload: &[u8]) {
        let conn = &mut self.conns[index as usize];
        if !self.work.may_deflate() {
            let out = conn.out.buffer(&mut self.spares);
            return write_server_frame(out, Opcode::Text, payload);
        }
        let deflate = match conn.deflate.as_deref_mut() {
            Some(Compression::Own(deflate)) => deflate,
            _ => self.deflate.get_or_insert_with(|| Box::new(Deflate::shared())),
        };
        let out = conn.out.buffer(&mut self.spares);
        // The header's length depends on the payload's, so the payload is deflated beside it.
        let start = out.len();
        deflate.deflate(payload, out);
        let body = out.split_off(start);
        write_header_reserved(out, Opcode::Text, body.len());
        let written = out.write_all(&body);
        debug_assert!(written.is_ok(), "writing into memory cannot fail");
        self.note_deflated(payload.len());
    }

    /// Returns the contexts that inflate for a connection.
    pub(super) fn inflater(&mut self, key: Key) -> Option<&mut Deflate> {
        match self.conns.get_mut(key.index as usize)?.deflate.as_deref_mut() {
            Some(Compression::Own(deflate)) => Some(deflate),
            _ => Some(self.deflate.get_or_insert_with(|| Box::new(Deflate::shared()))),
        }
    }

    /// Checks the bounds of an out queue that had `had` bytes before a text of another device.
    #[inline]
    fn grew(&mut self, index: u32, had: usize) -> Key {
        self.grew_by(index, had, self.speaking)
    }

    /// As [`Ports::grew`]; `sender` is to be paused if the queue is too long.
    #[inline(always)]
    fn grew_by(&mut self, index: u32, had: usize, sender: Option<Key>) -> Key {
        let conn = &mut self.conns[index as usize];
        let key = Key { index, generation: conn.generation };
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(key);
        }
        let config = &self.config;
        let max = config.out_queue_max_bytes;
        if conn.out.len() > max {
            // An empty queue takes any message: a large one alone says nothing of how its
            // device reads.
            if had > 0 && conn.out.len() > max.saturating_mul(OVERFLOW_FACTOR) {
                self.todos.push_back(Todo::Outgrown { key, sender });
            }
            if !conn.is_full() {
                conn.unwritten.set(Unwritten::FULL, true);
                conn.full_since = self.now;
                let at = self.now.after(config.out_queue_stall_timeout);
                self.schedule(key, at);
            }
        }
        key
    }

    fn forward(&mut self, shard: ShardId, from: DeviceId, to: DeviceId, text: &[u8]) {
        self.metrics.messages.at(MessageResult::Forwarded as usize).add(1);
        let outbox = &mut self.outboxes[usize::from(shard.0)];
        // Taken although it may pass the bound: only reading on is paused, so that nothing is
        // dropped.
        outbox.batch.push_text(self.shard, from, to, text);
        match outbox.batch.received.last_mut() {
            Some((at, texts)) if *at == self.turn_started => *texts += 1,
            _ => outbox.batch.received.push((self.turn_started, 1)),
        }
        if outbox.batch.bytes() >= self.config.shard_queue_max_bytes
            && let Some(key) = self.speaking
        {
            outbox.paused.push(key);
            self.pause_reading(key, ReadPause::ShardQueue);
        }
    }

    /// Stops reading a connection.
    pub(super) fn pause_reading(&mut self, key: Key, pause: ReadPause) {
        if let Some(conn) = self.conn(key)
            && conn.read_pauses.add(pause)
        {
            self.metrics.pauses.at(pause as usize).add(1);
        }
    }
}

/// Returns about the length of a pushed frame.
#[inline]
fn pushed_len(frame: &ServerFrame<'_>) -> usize {
    match frame {
        ServerFrame::Message { id, body, .. } => PUSH_LEN + id.len() + body.len(),
        _ => PUSH_LEN,
    }
}

/// Appends a message as a device of the text protocol sees it: `<from>:<body>`.
fn write_text_delivery(out: &mut Vec<u8>, from: DeviceRef<'_>, body: &[u8]) {
    from.write(out);
    out.push(b':');
    write_text_of_body(out, body);
}

/// Least length of a message that is compressed: shorter ones hardly shrink, for the same time.
const COMPRESSED_LEN_MIN: usize = 256;

impl Conn {
    /// Returns true if a message of `len` bytes is sent compressed.
    #[inline]
    fn compresses(&self, len: usize) -> bool {
        self.deflate.is_some() && len >= COMPRESSED_LEN_MIN
    }
}
