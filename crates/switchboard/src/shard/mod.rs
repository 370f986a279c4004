//! A shard: one thread, one epoll loop, its own sockets and its own broker.
//!
//! [`Shard::run`] is the loop and reads like a table of contents. The input of a turn is in
//! [`serve`], the broker's effects are in [`ports`], the output is in [`flush`].

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
mod tls;
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
use crate::health::Health;
use crate::metrics::Metrics;
use crate::persistence::{Answer, Ids, Job, Shards};
use crate::store::Log;
use crate::systemd::Systemd;
use crate::tls::Acceptor;
use conn::{Conn, Key, Phase, ReadPause};
use crowded::Crowds;
use drain::Drain;
use inbox::{Batch, Orders};
use ports::Ports;
use rejected::Rejected;
use tls::Handshakes;
use work::Work;

/// Token of the waker, by which other shards and the control plane wake a shard.
pub(crate) const WAKER: Token = Token(usize::MAX);
/// Token of the listening socket, on the first shard.
const LISTENER: Token = Token(usize::MAX - 1);
/// Bit that is set in the token of a pipe to the HTTP server.
const PIPE_BIT: usize = 1 << 32;

/// Bytes read per connection and turn; the rest waits for the next turn, behind all others.
const READ_BYTES: usize = 64 << 10;
/// Bytes of ciphertext read per TLS connection and turn: decrypted they must fit into `READ_BYTES`,
/// with what rustls kept of the read before.
const CIPHER_BYTES: usize = 40 << 10;
/// Readiness events taken per turn.
const EVENTS_MAX: usize = 1_024;

/// Most open files of a shard beside its connections: epoll, waker, the rejected sockets that it
/// keeps, and the one socket beyond the spare places that it may admit if none of its own gives
/// way.
pub(crate) const FILES_PER_SHARD: usize = rejected::KEPT_MAX + 3;

/// State that all shards share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The configuration at the start, or as of the last SIGHUP.
    pub(crate) config: RwLock<Arc<Config>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) ids: Ids,
    /// Told when ids are running out.
    pub(crate) wants_ids: tokio::sync::Notify,
    /// Set before the shards start; empty if all is in memory.
    pub(crate) log: OnceLock<Arc<Log>>,
    /// Passed by every shard once its devices of the last run are in the directory.
    pub(crate) begun: Begun,
    pub(crate) admission: Arc<Admission>,
    pub(crate) inboxes: Vec<Inbox>,
    pub(crate) ending: Arc<Ending>,
    pub(crate) budget: Arc<Budget>,
    /// Bytes of incomplete messages.
    pub(crate) unfinished: Total,
    /// Bytes in out queues.
    pub(crate) out_queues: OutQueues,
    pub(crate) tls: Option<Acceptor>,
    pub(crate) http: tokio::sync::mpsc::Sender<HttpConn>,
    pub(crate) health: Arc<Health>,
    pub(crate) systemd: Systemd,
    /// Start of this run.
    pub(crate) started: Instant,
    /// The server's uptime at that time, over all its runs.
    pub(crate) uptime: Moment,
}

impl Shared {
    /// Returns the configuration as of the last SIGHUP.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a configuration into force on all shards.
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
        if let Answer::Fetched { bytes, .. } = &answer {
            self.inboxes[shard].add_contents(*bytes);
        }
        self.inboxes[shard].store(StoreEvent::Read(answer));
    }

    fn has_room(&self, shard: usize) -> bool {
        self.inboxes[shard].has_room_for_contents()
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
    /// The configuration as of the last SIGHUP.
    config: Arc<Config>,
    poll: Poll,
    broker: Broker,
    /// Replay of the last run's records, until the first turn.
    replay: Option<Replay>,
    ports: Ports,
    listener: Option<Listener>,
    rejected: Rejected,
    crowds: Crowds,
    /// Connections beyond `max_connections`, oldest first; some are devices or gone by now.
    over: VecDeque<Key>,
    /// Connections with something to read, each once, except those in a TLS handshake.
    run_queue: VecDeque<Key>,
    handshakes: Handshakes,
    /// Memory for reads; a frame that is complete in it is never copied.
    buffer: Box<[u8]>,
    /// Memory for ciphertext before it is decrypted into `buffer`; empty without TLS.
    cipher: Box<[u8]>,
    /// Batch of other shards; kept for its memory.
    batch: Batch,
    /// Memory for inflated messages.
    inflated: Vec<u8>,
    /// Set if something was decided while the turn's output was written.
    decided_late: bool,
    next_generation: u32,
    drain: Option<Drain>,
}

impl Shard {
    /// Returns a shard on `poll`, in whose registry its inbox's waker is registered.
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
            run_queue: VecDeque::new(),
            handshakes: Handshakes::default(),
            buffer: vec![0; READ_BYTES].into(),
            cipher: vec![0; cipher_len].into(),
            batch: Batch::default(),
            inflated: Vec::new(),
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
            // Outcomes that the last run did not report. They are offered before the first sleep,
            // as nothing else may wake this shard for a long time.
            self.offer_outboxes();
        }
        // Before the first connection: it must find the devices of all shards.
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
            // Before the events: what is left of earlier turns has waited longer.
            self.serve_queues();
            for event in &events {
                self.obey(event);
            }
            self.take_inbox();
            self.take_store_events();
            self.accept_sockets();
            self.fire_timers();
            self.judge_crowded();
            self.tick_broker();
            self.do_todos();
            self.go_on_draining();
            // Records before batches: charges must be published before another shard can free them.
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
            // A signal ends epoll_wait in whichever thread it hits.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            polled => polled,
        }
    }

    fn has_work(&self) -> bool {
        !self.run_queue.is_empty()
            || self.handshakes.any_wait()
            || !self.ports.dirty.is_empty()
            || self.listener.as_ref().is_some_and(Listener::is_ready)
    }

    fn begin_turn(&mut self) {
        self.ports.begin_turn(Instant::now());
        self.handshakes.begin_turn();
        self.ports.work = Work::default();
    }

    fn end_turn(&mut self) {
        self.bound_unfinished();
        self.bound_out_queues();
        self.ports.end_turn(Instant::now());
    }

    /// Handles one event.
    #[inline]
    fn obey(&mut self, event: &Event) {
        match event.token() {
            // Each turn takes the inbox anyway.
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
        // An error is read like data: the read returns it, behind what came before.
        let may_read = event.is_readable() || is_error;
        // Before the read below, which must go on to the end of the stream if the peer has shut
        // its side.
        conn.readable |= may_read;
        conn.half_closed |= is_read_closed;
        let is_queued = conn.queued;
        if may_write {
            self.ports.mark_dirty(key);
        }
        let has_left = is_error | is_read_closed;
        let is_gone = || is_error || event.is_write_closed();
        if has_left && self.left_in_handshake(key, is_gone()) {
            return;
        }
        // One in a queue waits for its place there. One that the queue had at the beginning of this
        // turn was served already; if it is not there any more, it may be read a second time.
        if may_read && !is_queued {
            if self.ports.work.is_enough() {
                self.enqueue(key);
            } else {
                self.serve(key);
            }
        }
        if has_left {
            self.peer_left(key, is_gone());
        }
    }

    /// Removes a peer that `is_gone` while it is in a handshake; returns true if it did.
    #[cold]
    fn left_in_handshake(&mut self, key: Key, is_gone: bool) -> bool {
        let is_handshake = |conn: &mut Conn| matches!(conn.phase, Phase::Handshake { .. });
        let is_removed = is_gone && self.ports.conn(key).is_some_and(is_handshake);
        if is_removed {
            // Removed without being read: nobody would hear an answer, and to read a TLS handshake
            // is expensive. Until then the peer takes a place of `max_connections`.
            self.remove(key, "the peer left in the handshake");
        }
        is_removed
    }

    /// Handles a peer that sends no more (EPOLLRDHUP), or that `is_gone` (EPOLLHUP, EPOLLERR).
    #[cold]
    fn peer_left(&mut self, key: Key, is_gone: bool) {
        let now = self.ports.now;
        let idle_timeout = self.config.idle_timeout;
        let Some(conn) = self.ports.conn(key) else { return };
        // A paused connection is not read, so its end would show only when the pause ends. A
        // peer that is gone hears no answer, and one that waits for its `welcome` has asked for
        // nothing else yet.
        if conn.read_pauses.any() && (is_gone || conn.read_pauses.has(ReadPause::Welcome)) {
            return self.remove(key, "the peer left");
        }
        // After a FIN alone the peer may still read: what it said before is carried out, for a
        // while.
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

    /// Takes the batch that other shards filled, and the operator's orders.
    fn take_inbox(&mut self) {
        let inbox = &self.shared.inboxes[self.ports.shard_index()];
        let mut batch = mem::take(&mut self.batch);
        if let Some((waiting, orders)) = inbox.take(&mut batch) {
            for ShardId(shard) in waiting {
                self.shared.inboxes[usize::from(shard)].wake_up();
            }
            // A shard that was full may have woken this one; which one is not known, so all refused
            // batches are offered again, which costs little.
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
            // Freed only now that its record is charged: in between the budget must not seem to
            // have room.
            self.ports.charge(-(bytes as isize));
        }
        for &(from, digest) in &batch.returned {
            self.returned(from, digest);
        }
        for accepted in batch.sockets.drain(..) {
            self.count_waiting_handshake(self.ports.shard_index(), -1);
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
        // A connection that is queued again during the turn waits for the next.
        for _ in 0..self.run_queue.len() {
            if self.ports.work.is_enough() {
                // The rest of the queue comes first in the next turn, before the connections that
                // used up this one.
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
            if conn.is_in_tls_handshake(&self.shared) {
                self.await_handshake(key);
            } else {
                self.run_queue.push_back(key);
            }
        }
    }

    /// Removes a reason for which a connection was not read.
    fn resume(&mut self, key: Key, pause: ReadPause) {
        let now = self.ports.now;
        let Some(conn) = self.ports.conn(key) else { return };
        if !conn.read_pauses.has(pause) {
            return;
        }
        conn.read_pauses.remove(pause);
        // Its silence does not count, as it was not read.
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
