//! A shard: one thread, one epoll loop, its own sockets and its own broker.
//!
//! [`Shard::run`] is the loop and reads like a table of contents. What one turn reads, decides and
//! writes is in [`serve`] (input), [`ports`] (the broker's effects) and [`flush`] (output).

mod accept;
mod admission;
mod begun;
mod budget;
mod close;
mod conn;
mod crowded;
mod drain;
mod ending;
mod flush;
mod handshake;
mod inbox;
mod mailboxes;
mod out;
mod outbox;
mod pipe;
mod ports;
mod rate;
mod rejected;
mod serve;
mod tick;
mod timers;
mod unfinished;
mod waiting;
mod work;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Events, Poll, Token};
use switchboard_broker::{Broker, Digest, Directory, Input, Moment, Replay, ShardId, Stats};
use switchboard_proto::DeviceId;

pub(crate) use accept::Listener;
pub(crate) use admission::{Admission, SPARE_SOCKETS};
pub(crate) use begun::Begun;
pub(crate) use budget::{Budget, Total};
pub(crate) use ending::Ending;
pub(crate) use handshake::{HttpConn, HttpSocket, REQUEST_TIMEOUT};
pub(crate) use inbox::Inbox;
pub(crate) use mailboxes::StoreEvent;
pub(crate) use waiting::OutQueues;

use crate::auth::Keyring;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::persistence::{Answer, Chunk, Ids, Job, Shards};
use crate::store::Log;
use crate::systemd::Systemd;
use crate::tls::Acceptor;
use conn::{Conn, Key, Phase, ReadPause};
use crowded::Crowds;
use drain::Drain;
use inbox::{Batch, Orders};
use ports::Ports;
use rejected::Rejected;
use work::Work;

/// Where other shards and the control plane wake a shard.
pub(crate) const WAKER: Token = Token(usize::MAX);
/// The listening socket, on the first shard.
const LISTENER: Token = Token(usize::MAX - 1);
/// Set in the token of a pipe to the HTTP server.
const PIPE_BIT: usize = 1 << 32;

/// Bytes read per connection and turn; the rest waits for the next turn, behind everybody else.
const READ_BYTES: usize = 64 << 10;
/// Ciphertext read per TLS connection and turn: decrypted it must fit into `READ_BYTES`, with what
/// rustls held back from the read before.
const CIPHER_BYTES: usize = 40 << 10;
/// Readiness events taken per turn.
const EVENTS_MAX: usize = 1_024;

/// Files that a shard has beside its connections: epoll, waker, sockets that were rejected, and one
/// more than the spare places where nobody gives way.
pub(crate) const FILES_PER_SHARD: usize = rejected::KEPT_MAX + 3;

/// TLS handshakes that are worked on in one turn; the rest wait for the next. The dearest key that is
/// in use, RSA of 2048 bits, takes about a millisecond: a crowd of arrivals holds up those who are
/// here by some 16 ms.
const TLS_HANDSHAKES_PER_TURN: usize = 16;

/// What all shards share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What the shards began with, or were last told.
    pub(crate) config: RwLock<Arc<Config>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) ids: Ids,
    /// Told when ids are running out.
    pub(crate) wants_ids: tokio::sync::Notify,
    /// Set before the shards start; empty where nothing is kept.
    pub(crate) log: OnceLock<Arc<Log>>,
    /// Passed by every shard once the devices that it was left are in the directory.
    pub(crate) begun: Begun,
    pub(crate) admission: Arc<Admission>,
    pub(crate) inboxes: Vec<Inbox>,
    pub(crate) ending: Arc<Ending>,
    pub(crate) budget: Arc<Budget>,
    /// Messages that are not complete.
    pub(crate) unfinished: Total,
    /// What waits in out queues.
    pub(crate) out_queues: OutQueues,
    pub(crate) tls: Option<Acceptor>,
    pub(crate) http: tokio::sync::mpsc::Sender<HttpConn>,
    pub(crate) systemd: Systemd,
    /// When this run started, and the server's uptime then: what moments are counted from.
    pub(crate) started: Instant,
    pub(crate) uptime: Moment,
}

impl Shared {
    /// The configuration as of the last SIGHUP.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has everybody go on under this configuration.
    pub(crate) fn configure(&self, config: &Arc<Config>) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(config);
        self.admission.configure(config);
        self.metrics.settings.set(config);
        self.inboxes.iter().for_each(|inbox| inbox.configure(Arc::clone(config)));
    }
}

impl Shards for Shared {
    fn count(&self) -> usize {
        self.inboxes.len()
    }

    fn answer(&self, shard: usize, answer: Answer) {
        self.inboxes[shard].store(StoreEvent::Read(answer));
    }

    fn wake_all(&self) {
        self.inboxes.iter().for_each(Inbox::wake_up);
    }

    fn waiting(&self) -> Stats {
        self.metrics.waiting()
    }

    fn read_failed(&self) {
        self.metrics.store.read_failures.add(1);
    }
}

/// One thread's sockets and their broker.
pub(crate) struct Shard {
    shared: Arc<Shared>,
    /// As of the last SIGHUP.
    config: Arc<Config>,
    poll: Poll,
    broker: Broker,
    /// What the last run left, until the first turn.
    replay: Option<Replay>,
    ports: Ports,
    listener: Option<Listener>,
    rejected: Rejected,
    crowds: Crowds,
    /// Connections beyond `max_connections`, oldest first, also some that have gone on or away.
    over: VecDeque<Key>,
    /// A part of the log that is to be deleted, and its record that must not be looked at yet.
    compaction: Option<Arc<Chunk>>,
    compaction_waits_for: usize,
    /// Connections with something to read, each once.
    run_queue: VecDeque<Key>,
    /// Where reads go; what is whole in it is never copied.
    buffer: Box<[u8]>,
    /// Where ciphertext goes before it is decrypted into `buffer`; empty without TLS.
    cipher: Box<[u8]>,
    /// What other shards forwarded; kept for its memory.
    batch: Batch,
    /// Where messages are inflated; kept for its memory.
    inflated: Vec<u8>,
    tls_handshakes_left: usize,
    /// Something was decided while the turn's output was written.
    decided_late: bool,
    next_generation: u32,
    drain: Option<Drain>,
}

impl Shard {
    /// A shard on `poll`, in whose registry its inbox's waker is registered.
    pub(crate) fn new(
        id: ShardId,
        shared: Arc<Shared>,
        poll: Poll,
        listener: Option<Listener>,
        (broker, replay): (Broker, Replay),
        jobs: Option<Sender<Job>>,
    ) -> Shard {
        let cipher_len = if shared.tls.is_some() { CIPHER_BYTES } else { 0 };
        Shard {
            broker,
            replay: Some(replay),
            ports: Ports::new(id, Arc::clone(&shared), jobs),
            config: shared.config(),
            shared,
            poll,
            listener,
            rejected: Rejected::default(),
            crowds: Crowds::default(),
            over: VecDeque::new(),
            compaction: None,
            compaction_waits_for: 0,
            run_queue: VecDeque::new(),
            buffer: vec![0; READ_BYTES].into(),
            cipher: vec![0; cipher_len].into(),
            batch: Batch::default(),
            inflated: Vec::new(),
            tls_handshakes_left: 0,
            decided_late: false,
            next_generation: 0,
            drain: None,
        }
    }

    /// Serves until it has been drained.
    pub(crate) fn run(mut self) -> io::Result<()> {
        self.begin_turn();
        if let Some(replay) = self.replay.take() {
            self.begin_with(replay);
            self.submit_appends();
            // Outcomes that the last run left unsaid: nothing else may wake this shard for long.
            self.offer_outboxes();
        }
        // Whoever comes in must find the devices of all shards.
        if !self.shared.begun.pass() {
            return Ok(());
        }
        if let Some(listener) = &mut self.listener {
            listener.register(self.poll.registry())?;
        }
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !self.is_drained() {
            self.wait(&mut events)?;
            self.begin_turn();
            self.serve_run_queue();
            for event in &events {
                self.obey(event);
            }
            self.take_inbox();
            self.take_store_events();
            self.go_on_compacting();
            self.accept_sockets();
            self.fire_timers();
            self.judge_crowded();
            self.tick_broker();
            self.do_todos();
            self.go_on_draining();
            self.submit_appends();
            self.offer_outboxes();
            self.flush_dirty();
            self.end_turn();
        }
        self.end_broker();
        Ok(())
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        debug_assert!(!self.ports.has_something_to_forward(), "nothing else may wake this shard");
        let inbox = &self.shared.inboxes[self.ports.shard_index()];
        let timeout = if self.has_work() || !inbox.may_sleep() {
            Some(Duration::ZERO)
        } else {
            self.until_next_timer()
        };
        let polled = self.poll.poll(events, timeout);
        inbox.awake();
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            polled => polled,
        }
    }

    fn has_work(&self) -> bool {
        !self.run_queue.is_empty()
            || !self.ports.dirty.is_empty()
            || self.listener.as_ref().is_some_and(Listener::is_ready)
    }

    fn begin_turn(&mut self) {
        self.ports.begin_turn(Instant::now());
        self.tls_handshakes_left = TLS_HANDSHAKES_PER_TURN;
        self.ports.work = Work::default();
    }

    fn end_turn(&mut self) {
        self.bound_unfinished();
        self.bound_out_queues();
        self.ports.end_turn(Instant::now());
    }

    /// Does what one event asks for.
    #[inline]
    fn obey(&mut self, event: &Event) {
        match event.token() {
            // What it woke us for is in the inbox.
            WAKER => {}
            LISTENER => {
                // It may be gone: a drain drops it in the turn in which it became ready.
                if let Some(listener) = &mut self.listener {
                    listener.became_ready();
                }
            }
            Token(token) if token & PIPE_BIT != 0 => self.obey_pipe(token, event),
            Token(token) => self.obey_socket(token, event),
        }
    }

    #[inline]
    fn obey_socket(&mut self, token: usize, event: &Event) {
        let Some((key, conn)) = self.ports.by_token(token) else { return };
        let may_write = event.is_writable() && conn.wants_write();
        let (is_error, is_read_closed) = (event.is_error(), event.is_read_closed());
        let may_read = event.is_readable() || is_error;
        conn.readable |= may_read;
        conn.half_closed |= is_read_closed;
        let is_queued = conn.queued;
        if may_write {
            self.ports.mark_dirty(key);
        }
        if may_read && !is_queued {
            if self.ports.work.is_enough() {
                self.enqueue(key);
            } else {
                self.serve(key);
            }
        }
        if is_error | is_read_closed {
            self.peer_left(key, is_error || event.is_write_closed());
        }
    }

    /// Sees to it that a connection ends whose peer says no more, though it may not be read now.
    ///
    /// What came before a peer's FIN is still carried out, but not for ever; somebody who waited for
    /// its `welcome` has said nothing yet that could be. A peer that `is_gone` hears no answer.
    #[cold]
    fn peer_left(&mut self, key: Key, is_gone: bool) {
        let now = self.ports.now;
        let idle_timeout = self.config.idle_timeout;
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.read_pauses.any() && (is_gone || conn.read_pauses.has(ReadPause::Welcome)) {
            return self.remove(key, "the peer left");
        }
        conn.half_closed_at = now;
        self.ports.schedule(key, now.after(idle_timeout));
    }

    fn obey_pipe(&mut self, token: usize, event: &Event) {
        let Some((key, conn)) = self.ports.by_token(token) else { return };
        if event.is_readable()
            && let Phase::Piping(pipe) = &mut conn.phase
        {
            pipe.became_readable();
            self.enqueue(key);
        }
        if event.is_writable() {
            self.resume(key, ReadPause::HttpPipe);
        }
    }

    fn carry_out(&mut self, orders: Orders) {
        if let Some(config) = orders.config {
            self.broker.set_limits(config.limits(config.shards));
            if let Some(listener) = &self.listener {
                listener.set_idle_timeout(config.idle_timeout);
            }
            self.ports.config = Arc::clone(&config);
            self.config = config;
        }
        if let Some(over) = orders.drain {
            self.begin_drain(over);
        }
    }

    /// Deals with what other shards forwarded.
    fn take_inbox(&mut self) {
        let inbox = &self.shared.inboxes[self.ports.shard_index()];
        let mut batch = mem::take(&mut self.batch);
        if let Some((waiting, orders)) = inbox.take(&mut batch) {
            for ShardId(shard) in waiting {
                self.shared.inboxes[usize::from(shard)].wake_up();
            }
            for outbox in &mut self.ports.outboxes {
                outbox.is_refused = false;
            }
            self.carry_out(orders);
            self.deal_with(&mut batch);
            batch.clear();
        }
        self.batch = batch;
    }

    fn deal_with(&mut self, batch: &mut Batch) {
        let now = self.ports.now();
        self.ports.forwarded_at(&batch.received);
        for text in batch.texts() {
            let inbox::Forwarded { shard, from, to, text } = text;
            let input = Input::Forwarded { shard, from, to, text };
            self.broker.handle(now, input, &mut |effect| self.ports.perform(effect));
            self.do_todos();
        }
        for envelope in batch.envelopes.drain(..) {
            let bytes = inbox::message_bytes(&envelope);
            self.decide(Input::Envelope(envelope));
            self.ports.charge(-(bytes as isize));
        }
        for &(from, digest) in &batch.returned {
            self.returned(from, digest);
        }
        for accepted in batch.sockets.drain(..) {
            self.open(accepted);
        }
        for moved in batch.moved.drain(..) {
            self.take_in(moved);
        }
    }

    fn returned(&mut self, from: DeviceId, digest: Digest) {
        self.decide(Input::Returned { from, digest });
    }

    fn serve_run_queue(&mut self) {
        // Who is queued again during the turn waits for the next.
        for _ in 0..self.run_queue.len() {
            if self.ports.work.is_enough() {
                // The rest comes first in the next turn, before those who used this one up.
                break;
            }
            let Some(key) = self.run_queue.pop_front() else { break };
            self.serve(key);
        }
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(conn) = self.ports.conn(key)
            && !conn.queued
        {
            conn.queued = true;
            self.run_queue.push_back(key);
        }
    }

    /// Takes a reason away for which a connection was not read.
    fn resume(&mut self, key: Key, pause: ReadPause) {
        let now = self.ports.now;
        let Some(conn) = self.ports.conn(key) else { return };
        if !conn.read_pauses.has(pause) {
            return;
        }
        conn.read_pauses.remove(pause);
        // It was we who did not read: its silence does not count.
        conn.heard_at = now;
        self.excuse_unfinished(key);
        self.enqueue(key);
    }

    /// Adds a connection to the slab.
    fn insert(&mut self, conn: impl FnOnce(Key) -> Conn) -> Key {
        self.next_generation = self.next_generation.wrapping_add(1);
        self.ports.insert(self.next_generation, conn)
    }
}
