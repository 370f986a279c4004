//! The server: build, serve, drain.

use std::io::{self, IsTerminal};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use mio::{Poll, Waker};
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use switchboard_broker::{Broker, Directory, HashKey, Replay, ShardId, StoreGate};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::auth::Keyring;
use crate::config::{Auth, Config, Loaded};
use crate::files::Occasion;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::persistence::{self, Job, Reader};
use crate::reload::Source;
use crate::shard::{
    Admission, Begun, Budget, Ending, FILES_PER_SHARD, HttpConn, Inbox, Listener, OutQueues,
    SPARE_SOCKETS, Shard, Shared, StoreEvent, Total, WAKER,
};
use crate::store::{self, Admits, DropError, StoreError, Synced};
use crate::systemd::Systemd;
use crate::{greeting, http, log, reload, systemd};

/// Connections that the kernel completes before they are accepted; it caps this at `somaxconn`.
const BACKLOG: i32 = 4_096;

/// File descriptors kept for a fixed set of uses: listeners, the runtime, the data directory and
/// its files, fetching the key set, reloads.
const RESERVED_FILES: usize = 64;

/// The keys that set the address for devices.
const LISTEN_KEYS: &str = "listen, port";

/// Runs until a drain by SIGTERM or SIGINT is complete. SIGHUP rereads the configuration from
/// `source`.
pub(crate) fn run(loaded: Loaded, source: Source) -> anyhow::Result<()> {
    let Loaded { mut config, warnings, .. } = loaded;
    log::start(&config).context("log_level")?;
    log::ignored(&warnings);
    fit_to_machine(&mut config, None);
    let config = Arc::new(config);
    let has_terminal = io::stdin().is_terminal();
    let systemd = Systemd::from_env();
    let listener = listen(config.listen, LISTEN_KEYS, config.idle_timeout)?;
    let address = listener.local_addr()?;
    let metrics = config
        .metrics_listen
        .map(|address| listen(address, "metrics_listen", config.idle_timeout))
        .transpose()?;
    let metrics_address = metrics.as_ref().map(TcpListener::local_addr).transpose()?;
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()?;
    // Before the store is opened, which may take a while: until then a SIGHUP would end the
    // process.
    let hangup = {
        let _control = control.enter();
        signal(SignalKind::hangup())?
    };
    let Built { polls, shared, conns, brokers, recovered } = build(&config, systemd)?;
    let store = Store::start(&shared, recovered)?;
    let jobs = store.as_ref().map(|store| store.jobs.clone());
    // Before anybody can know that the server is there, and so may stop it.
    let signals = {
        let _control = control.enter();
        Signals::new(hangup, has_terminal)?
    };
    let shards = Shards::start(polls, &shared, listener, brokers, jobs)?;
    // If a shard has failed, waiting for its thread reports it.
    if shared.begun.wait() {
        let greeting = greeting::greet(address, metrics_address, &config);
        // On a separate thread, which is not waited for: signals are handled and systemd is told even
        // while the reader of standard output hangs.
        drop(control.spawn_blocking(move || greeting::print(&greeting)));
        shared.systemd.ready(greeting::status(address, &config));
    }
    let serve = control_until_drained(shared, conns, shards, store, signals, source, metrics);
    let ended = control.block_on(serve);
    // Bounded: a write of the server's state may hang with the disk, and the greeting with its reader.
    control.shutdown_timeout(RETRY);
    ended
}

/// Everything that is created before the threads start.
struct Built {
    polls: Vec<Poll>,
    shared: Arc<Shared>,
    conns: mpsc::Receiver<HttpConn>,
    brokers: Vec<(Broker, Replay)>,
    recovered: Option<store::Recovered>,
}

/// Creates the state that the shards share and the poll of each, and recovers the data of the
/// last run.
fn build(config: &Arc<Config>, systemd: Systemd) -> anyhow::Result<Built> {
    let tls = reload::certificate(config, Occasion::Start)?;
    let mut polls = Vec::new();
    let mut inboxes = Vec::new();
    let ending = Arc::new(Ending::new(config.shards));
    for _ in 0..config.shards {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        inboxes.push(Inbox::new(waker, config.shard_queue_max_bytes, Arc::clone(&ending)));
        polls.push(poll);
    }
    let mut hash_key = [0; HashKey::LEN];
    getrandom::fill(&mut hash_key).context("no randomness from the system")?;
    let hash_key = HashKey::new(hash_key);
    let directory = Arc::new(Directory::new(config.shards, config.listed_max(), hash_key));
    let wall = crate::clock::now()?;
    systemd.starting("Reading what the last run left");
    let persistence::Opened { brokers, recovered, ids, uptime } = persistence::open(
        config.data_dir.as_deref(),
        &directory,
        config.shards,
        &config.limits(config.shards),
        store_options(config),
        wall.as_millis() as u64,
    )?;
    let keyring = Arc::new(Keyring::open(config)?);
    let (http, conns) = mpsc::channel(config.http_connections_max);
    let budget = Arc::new(Budget::new(budget_bytes(config, recovered.as_ref()), config.shards));
    let metrics = Arc::new(Metrics::new(config));
    let health = Arc::new(Health::new(&metrics));
    metrics.store.budget.get_or_init(|| Arc::clone(&budget));
    let shared = Shared {
        config: RwLock::new(Arc::clone(config)),
        metrics,
        directory,
        keyring,
        ids,
        wants_ids: Notify::new(),
        log: OnceLock::new(),
        begun: Begun::new(config.shards),
        admission: Arc::new(Admission::new(config)),
        inboxes,
        ending,
        budget,
        unfinished: Total::default(),
        out_queues: OutQueues::default(),
        tls,
        http,
        health,
        systemd,
        started: Instant::now(),
        uptime,
    };
    Ok(Built { polls, shared: Arc::new(shared), conns, brokers, recovered })
}

/// The threads of the store: the log's writer and its reader.
struct Store {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    reader: Reader,
}

impl Store {
    /// Starts them; returns `None` without a data directory.
    fn start(
        shared: &Arc<Shared>,
        recovered: Option<store::Recovered>,
    ) -> anyhow::Result<Option<Store>> {
        let Some(recovered) = recovered else { return Ok(None) };
        let listener = StoreListener {
            shared: Arc::clone(shared),
            undropped: log::LineLimit::new(),
            failing: log::LineLimit::new(),
            is_failure_logged: AtomicBool::new(false),
            is_open: shared.config().auth == Auth::Open,
        };
        let log = Arc::new(recovered.start(Box::new(listener)).context("the store's thread")?);
        let is_first = shared.log.set(Arc::clone(&log)).is_ok();
        debug_assert!(is_first, "the store is started once");
        shared.metrics.store.log.get_or_init(|| Arc::clone(&log));
        log.look();
        let (jobs, taken) = Reader::channel();
        let reader = Reader::start(Arc::clone(shared) as Arc<dyn persistence::Shards>, log, taken)?;
        Ok(Some(Store { shared: Arc::clone(shared), jobs, reader }))
    }

    /// Writes everything that is left, once the shards have ended.
    fn end(self) -> anyhow::Result<()> {
        let Store { shared, jobs, reader } = self;
        drop(jobs);
        if let Some(log) = shared.log.get() {
            log.close()?;
        }
        reader.join()?;
        // On a separate thread, because the disk may block it. Without the note the next start
        // skips the reserved ids, and its uptime is a few seconds short.
        let (say, noted) = std::sync::mpsc::channel();
        thread::Builder::new().name("end".to_owned()).spawn(move || {
            let uptime = shared.uptime.after(shared.started.elapsed());
            say.send(shared.ids.end(shared.directory.next_id(), uptime))
        })?;
        match noted.recv_timeout(NOTE_STALL) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the end of this run cannot be noted"),
            Err(_) => {
                tracing::warn!("the disk does not take the end of this run; it is not waited for");
            }
        }
        Ok(())
    }
}

/// Time that shutdown waits for the disk to take the server's state.
const NOTE_STALL: Duration = Duration::from_secs(5);

/// Forwards the events of the store's writer to the shards.
struct StoreListener {
    shared: Arc<Shared>,
    undropped: log::LineLimit,
    failing: log::LineLimit,
    is_failure_logged: AtomicBool,
    /// True if devices without a name are let in.
    is_open: bool,
}

impl StoreListener {
    fn tell_all(&self, event: impl Fn() -> StoreEvent) {
        for inbox in &self.shared.inboxes {
            inbox.store(event());
        }
    }
}

impl store::Listener for StoreListener {
    fn synced(&self, shard: usize, batches: Vec<Synced>) {
        self.shared.inboxes[shard].store(StoreEvent::Synced(batches));
    }

    fn room(&self, shard: usize) {
        self.shared.inboxes[shard].store(StoreEvent::Room);
    }

    fn failing(&self, error: &StoreError) {
        let pass = self.failing.pass();
        self.is_failure_logged.store(pass.is_some(), Relaxed);
        if let Some(left_out) = pass {
            let what = "the store cannot write; nothing is accepted on disk until it can";
            tracing::error!(%error, left_out, "{what}");
        }
        self.shared.metrics.store.is_failing.set(1);
        self.tell_all(|| StoreEvent::Failing);
    }

    fn healthy(&self) {
        if self.is_failure_logged.load(Relaxed) {
            tracing::info!("the store writes again; nothing was lost");
        }
        // The shards first: a client that learns that the store works may send at once.
        self.tell_all(|| StoreEvent::Healthy);
        self.shared.metrics.store.is_failing.set(0);
    }

    fn admits(&self, admits: Admits) {
        let stats = self.shared.metrics.store.log.get().map(|log| (log.usage(), log.stats()));
        let (log_bytes, free_bytes) = stats
            .as_ref()
            .map_or((0, 0), |(usage, stats)| (usage.bytes, stats.free_bytes.load(Relaxed)));
        let is_out_of_files =
            stats.is_some_and(|(_, stats)| stats.is_out_of_files.load(Relaxed) != 0);
        match admits {
            Admits::Nobody if is_out_of_files => tracing::warn!(
                log_bytes,
                free_bytes,
                "no new messages (store_full): the disk takes no more files, no inodes are free (see \
                 `df -i`); remove files there"
            ),
            Admits::Nobody => tracing::warn!(
                log_bytes,
                free_bytes,
                "no space for new messages (store_full): make room on the disk, raise \
                 store_max_bytes, or let devices take what waits"
            ),
            Admits::Reserved => tracing::warn!(
                log_bytes,
                free_bytes,
                "what is left of the space for new messages is for devices with names alone; \
                 others are told store_full"
            ),
            Admits::All => {
                tracing::info!(log_bytes, free_bytes, "there is space for new messages again");
            }
        }
        let gate = match admits {
            Admits::All => StoreGate::Open,
            Admits::Reserved => StoreGate::NamedOnly,
            Admits::Nobody => StoreGate::Closed,
        };
        self.tell_all(|| StoreEvent::Gate(gate));
    }

    fn has_reserve(&self) -> bool {
        // An open server where nobody has a name loses nothing, and one that wants tokens has no
        // strangers.
        self.is_open && self.shared.directory.names().has_any()
    }

    fn promised(&self, left: u64, reserve: u64) -> u64 {
        self.shared.directory.set_store_room(left, reserve);
        self.shared.directory.promised_bytes()
    }

    fn no_ballast(&self, error: &StoreError) {
        tracing::warn!(%error, "no space can be set aside here; a full disk will need room made by hand");
    }

    fn dropped(&self, segment: u32, result: Result<(), DropError>) {
        match result {
            Ok(()) => tracing::debug!(segment, "a segment of the store was compacted"),
            Err(error) => {
                if let Some(left_out) = self.undropped.pass() {
                    tracing::warn!(segment, %error, left_out, "a segment stays for now");
                }
            }
        }
    }
}

/// The shards' threads, all of which are joined.
struct Shards {
    threads: Vec<thread::JoinHandle<io::Result<()>>>,
    /// Receives a message for each shard that ends; closed when all have.
    ended: mpsc::Receiver<()>,
}

impl Shards {
    /// Starts one thread per poll; the first gets the listener.
    fn start(
        polls: Vec<Poll>,
        shared: &Arc<Shared>,
        listener: TcpListener,
        brokers: Vec<(Broker, Replay)>,
        jobs: Option<Sender<Job>>,
    ) -> io::Result<Shards> {
        let (end, ended) = mpsc::channel(polls.len());
        let mut listener = Some(Listener::new(listener));
        let mut threads = Vec::new();
        for (index, (poll, broker)) in polls.into_iter().zip(brokers).enumerate() {
            let id = ShardId(index as u16);
            let shard =
                Shard::new(id, Arc::clone(shared), poll, listener.take(), broker, jobs.clone());
            let end = SayEnd { say: end.clone(), shared: Arc::clone(shared), index };
            let thread = thread::Builder::new().name(format!("shard-{index}"));
            threads.push(thread.spawn(move || {
                let _end = end;
                shard.run()
            })?);
        }
        Ok(Shards { threads, ended })
    }

    /// Joins all threads; an error of one is the error of the server.
    fn join(self) -> anyhow::Result<()> {
        for thread in self.threads {
            let name = thread.thread().name().unwrap_or("shard").to_owned();
            match thread.join() {
                Ok(ended) => ended.with_context(|| format!("{name} failed"))?,
                Err(_) => anyhow::bail!("{name} panicked"),
            }
        }
        Ok(())
    }
}

/// Reports that a shard has ended, even if it panics.
struct SayEnd {
    say: mpsc::Sender<()>,
    shared: Arc<Shared>,
    index: usize,
}

impl Drop for SayEnd {
    fn drop(&mut self) {
        self.shared.begun.end();
        self.shared.inboxes[self.index].end();
        // A full channel means that it was reported already.
        let _: Result<_, _> = self.say.try_send(());
    }
}

/// Serves HTTP and handles signals until the shards have ended.
async fn control_until_drained(
    shared: Arc<Shared>,
    conns: mpsc::Receiver<HttpConn>,
    mut shards: Shards,
    store: Option<Store>,
    mut signals: Signals,
    source: Source,
    metrics: Option<TcpListener>,
) -> anyhow::Result<()> {
    let state = Arc::new(http::AppState::new(&shared));
    let at_once = shared.config().http_connections_max;
    let keep_alive = tokio::spawn(systemd::keep_alive(Arc::clone(&shared)));
    let http = tokio::spawn(http::serve(conns, Arc::clone(&state), at_once));
    let metrics = metrics.map(tokio::net::TcpListener::from_std).transpose()?;
    let metrics = async {
        match metrics {
            Some(listener) => http::serve_metrics(listener, Arc::clone(&state), at_once).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = metrics => {}
        () = signals.obey(&shared, Arc::new(source), &mut shards.ended) => {}
        () = keep_ids(&shared) => {}
        () = shared.keyring.keep_fresh(std::future::pending()) => {}
    }
    let end = tokio::task::spawn_blocking(|| {
        shards.join()?;
        store.map_or(Ok(()), Store::end)
    });
    tokio::select! {
        ended = end => ended??,
        signal = stop(&mut signals.terminate, &mut signals.interrupt) => stop_at_once(signal),
    }
    // No connection is forwarded to it any more, but it cannot notice: the store's reader, if it
    // was not joined, keeps alive what it shares with the shards.
    http.abort();
    keep_alive.abort();
    tracing::info!("stopped");
    Ok(())
}

/// Keeps enough ids reserved on disk, and the uptime recorded. Never returns.
async fn keep_ids(shared: &Arc<Shared>) {
    let limit = log::LineLimit::new();
    loop {
        let wanted = shared.wants_ids.notified();
        tokio::select! {
            () = wanted => {}
            () = tokio::time::sleep(persistence::HOUSEKEEPING) => {}
        }
        let uptime = shared.uptime.after(shared.started.elapsed());
        let next = shared.directory.next_id();
        // On a separate thread: signals are handled even while the disk hangs.
        let ids = Arc::clone(shared);
        let reserved = tokio::task::spawn_blocking(move || ids.ids.reserve(next, uptime)).await;
        if let Err(error) = reserved.map_err(anyhow::Error::from).and_then(|reserved| reserved) {
            if let Some(left_out) = limit.pass() {
                tracing::error!(
                    %error, left_out,
                    "no ids can be reserved; when they are used up new devices are refused"
                );
            }
            // Not retried at once: a shard that waits for ids would make this loop without end.
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Delay after a write that failed.
const RETRY: Duration = Duration::from_millis(500);

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// True if standard input was a terminal when the server started.
    has_terminal: bool,
}

impl Signals {
    fn new(hangup: Signal, has_terminal: bool) -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
            has_terminal,
        })
    }

    /// Runs until all shards have ended. SIGTERM and SIGINT drain, and a second one ends the
    /// process at once. SIGHUP rereads the configuration, or drains if the server's terminal is
    /// gone. A shard that fails makes the others shut down gracefully.
    async fn obey(
        &mut self,
        shared: &Arc<Shared>,
        source: Arc<Source>,
        ended: &mut mpsc::Receiver<()>,
    ) {
        let mut is_draining = false;
        let mut reloads = Reloads::new(shared, source);
        loop {
            let signal = tokio::select! {
                ended = ended.recv() => match ended {
                    Some(()) if !is_draining => "a shard failed",
                    Some(()) => continue,
                    None => return,
                },
                _ = self.hangup.recv() => {
                    if self.lost_terminal() {
                        // The shell and the kernel each send one, so a second one does not mean
                        // impatience.
                        if is_draining {
                            continue;
                        }
                        is_draining = true;
                        drain("SIGHUP, its terminal is gone", shared);
                        continue;
                    }
                    reloads.want(is_draining);
                    continue;
                }
                is_applied = reloads.ended() => {
                    reloads.end(is_applied, is_draining);
                    continue;
                }
                signal = stop(&mut self.terminate, &mut self.interrupt) => signal,
            };
            if is_draining {
                stop_at_once(signal);
            }
            is_draining = true;
            drain(signal, shared);
        }
    }

    /// Returns true if the window or login session in which the server was started has been
    /// closed. A terminal that was hung up answers EIO to everything before SIGHUP is sent,
    /// while after a SIGHUP sent by hand it is still there. `nohup` detaches standard input.
    fn lost_terminal(&self) -> bool {
        self.has_terminal && !io::stdin().is_terminal()
    }
}

/// Reloads of the configuration, one at a time.
struct Reloads<'a> {
    shared: &'a Arc<Shared>,
    source: Arc<Source>,
    running: Option<JoinHandle<bool>>,
    /// Set by a signal during a reload, which may have read its files before they were changed.
    is_wanted_again: bool,
}

impl Reloads<'_> {
    fn new(shared: &Arc<Shared>, source: Arc<Source>) -> Reloads<'_> {
        Reloads { shared, source, running: None, is_wanted_again: false }
    }

    /// Begins a reload, or has one begun after the one that runs. systemd is told nothing while
    /// the server drains, as it would take the end of the reload for that of the drain.
    fn want(&mut self, is_draining: bool) {
        if self.running.is_some() {
            self.is_wanted_again = true;
            return;
        }
        if !is_draining {
            self.shared.systemd.reloading();
        }
        let (shared, source) = (Arc::clone(self.shared), Arc::clone(&self.source));
        // On a separate thread: signals are handled even while a file system hangs.
        let reload = move || reload::reload(&shared, &source);
        self.running = Some(tokio::task::spawn_blocking(reload));
    }

    /// Waits for the end of a reload, or for ever if none runs; returns whether it was applied.
    async fn ended(&mut self) -> bool {
        match &mut self.running {
            Some(running) => running.await.unwrap_or(false),
            None => std::future::pending().await,
        }
    }

    fn end(&mut self, is_applied: bool, is_draining: bool) {
        self.running = None;
        if !is_draining {
            self.shared.systemd.reloaded(is_applied);
        }
        if std::mem::take(&mut self.is_wanted_again) {
            self.want(is_draining);
        }
    }
}

/// Waits for a signal to stop and returns its name.
async fn stop(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

fn stop_at_once(signal: &str) -> ! {
    tracing::warn!(signal, "stopping at once");
    log::flush();
    std::process::exit(1);
}

/// Time for the store to write what is left after the shards have ended, which is at most twice
/// `close_timeout` after the drain.
const LAST_WRITES: Duration = Duration::from_secs(5);

fn drain(signal: &str, shared: &Shared) {
    let (over, close_timeout) = {
        let config = shared.config();
        (config.drain, config.close_timeout)
    };
    tracing::info!(signal, drain = %humantime::format_duration(over), "draining");
    let at_most = over + 2 * close_timeout + LAST_WRITES;
    shared.systemd.stopping("Going down: devices are told to come back", at_most);
    shared.health.stopping();
    for inbox in &shared.inboxes {
        inbox.drain(over);
    }
}

/// Like [`bind`]; an error names the keys that set the address, and the remedy.
fn listen(address: SocketAddr, keys: &str, idle_timeout: Duration) -> anyhow::Result<TcpListener> {
    bind(address, idle_timeout).map_err(|error| {
        let another = match keys {
            LISTEN_KEYS => "give another port by --port",
            _ => "choose another port",
        };
        let what_to_do = match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("; another program listens there: stop it, or {another}")
            }
            io::ErrorKind::AddrNotAvailable => {
                "; this machine has no such address: see `ip address`".to_owned()
            }
            io::ErrorKind::PermissionDenied => format!(
                "; ports below 1024 are for root: {another}, or give the binary CAP_NET_BIND_SERVICE"
            ),
            _ => String::new(),
        };
        anyhow::anyhow!("cannot listen on {address} ({keys}): {error}{what_to_do}")
    })
}

/// Returns a listening socket, whose options accepted sockets inherit.
///
/// `TCP_USER_TIMEOUT` (RFC 5482) is for connections under a read pause: there silence means
/// nothing, but a peer whose system does not ack the pings for `idle_timeout` is gone. No
/// `SO_REUSEPORT`: a second server on the port must fail, not take half of the connections.
fn bind(address: SocketAddr, idle_timeout: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Only so that a restart does not have to wait for old connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    sockopt::set_tcp_user_timeout(&socket, idle_timeout.as_millis() as u32)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Returns the maximum bytes that may be not yet durable. On a small disk that is less than
/// configured: accepted messages must still fit when the log is full.
fn budget_bytes(config: &Config, recovered: Option<&store::Recovered>) -> usize {
    let configured = config.store_queue_max_bytes;
    let effective = recovered.map_or(configured, store::Recovered::queue_max_bytes);
    if effective < configured {
        tracing::info!(
            configured,
            effective,
            "store_queue_max_bytes is bounded by store_max_bytes, or by the size of the disk"
        );
    }
    effective
}

fn store_options(config: &Config) -> store::LogOptions {
    store::LogOptions {
        queue_max_bytes: config.store_queue_max_bytes,
        max_bytes: config.store_max_bytes as u64,
        overrun_bytes: Budget::overrun_bytes(config.shards, config.max_message_bytes),
        ..store::LogOptions::default()
    }
}

/// Replaces settings that the configuration leaves open, or that are too large for the machine.
/// A running server keeps the shards, the store and the HTTP server that it started with.
pub(crate) fn fit_to_machine(config: &mut Config, running: Option<&Config>) {
    if config.shards == 0 {
        config.shards = thread::available_parallelism().map_or(1, usize::from);
    }
    let begun_with = running.unwrap_or(config).clone();
    bound_by_file_limit(config, &begun_with);
}

/// Raises the soft limit on open files to the hard one, and limits connections so that they stay
/// below it: a full server can still answer that it is full, and the store still has its files.
fn bound_by_file_limit(config: &mut Config, begun_with: &Config) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit on open files cannot be raised");
    }
    let Some(limit) = getrlimit(Resource::Nofile).current else { return };
    let store = begun_with.data_dir.as_ref().map_or(0, |_| store_options(begun_with).files_max());
    let store = usize::try_from(store).unwrap_or(usize::MAX);
    let files = Files::share(usize::try_from(limit).unwrap_or(usize::MAX), store, begun_with);
    if files.store < store {
        tracing::warn!(
            open_files_max = limit,
            needed = store,
            effective = files.store,
            "the limit on open files (ulimit -Hn, LimitNOFILE=) may be too low for the store: raise it, \
             or lower store_max_bytes"
        );
    }
    for (key, wanted, effective) in [
        ("max_connections", &mut config.max_connections, files.connections),
        ("http_connections_max", &mut config.http_connections_max, files.http_connections),
    ] {
        if *wanted > effective {
            tracing::info!(
                wanted = *wanted,
                open_files_max = limit,
                effective,
                "{key} is bounded by the limit on open files (ulimit -Hn, LimitNOFILE=)"
            );
            *wanted = effective;
        }
    }
}

/// Division of the open files.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    /// One file per segment.
    store: usize,
    /// The maximum; unused ones are left to `connections`.
    http_connections: usize,
    connections: usize,
}

impl Files {
    /// Divides the files that are not reserved: the store gets at most half of them, then HTTP at
    /// most half of what is left.
    fn share(limit: usize, store: usize, config: &Config) -> Files {
        let fixed = RESERVED_FILES + SPARE_SOCKETS + config.shards * FILES_PER_SHARD;
        let left = limit.saturating_sub(fixed);
        let store = store.min(left / 2);
        let left = left - store;
        // As many requests may wait as are served, and all of them may come on top of
        // `max_connections`. Over TLS each has the two ends of a pipe as well.
        let on_main_port = 2 * if config.tls_cert.is_some() { 3 } else { 1 };
        let per_request = on_main_port + usize::from(config.metrics_listen.is_some());
        let http_connections = (left / 2 / per_request).max(1);
        let http = config.http_connections_max.min(http_connections) * per_request;
        let connections = left.saturating_sub(http).max(1);
        Files { store, http_connections, connections }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// The option is set once, on the listener: everything depends on the system's inheriting
    /// it.
    #[test]
    fn accepted_sockets_give_up_a_peer_that_does_not_ack() {
        let idle_timeout = Duration::from_secs(17);
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into(), idle_timeout).unwrap();
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = loop {
            match listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
                accepted => break accepted.unwrap(),
            }
        };
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 17_000);
        assert!(sockopt::tcp_nodelay(&socket).unwrap());
    }

    #[test]
    fn the_store_and_http_have_their_files_before_connections_and_none_has_more_than_there_are() {
        let plain = Config { shards: 2, http_connections_max: 10, ..Config::default() };
        let fixed = RESERVED_FILES + SPARE_SOCKETS + 2 * FILES_PER_SHARD;
        let shared = |limit, config| {
            let Files { store, http_connections, connections } = Files::share(limit, 40, config);
            (store, http_connections.min(10), connections)
        };
        assert_eq!(shared(fixed + 1_000, &plain), (40, 10, 940));
        let metrics_listen = Some((Ipv4Addr::LOCALHOST, 0).into());
        let tls = Config { tls_cert: Some("cert".into()), metrics_listen, ..plain.clone() };
        assert_eq!(shared(fixed + 1_000, &tls), (40, 10, 890));
        assert_eq!(shared(fixed + 60, &plain), (30, 7, 16));
        assert_eq!(shared(10, &plain), (0, 1, 1), "too few for anything");
        assert_eq!(shared(usize::MAX, &plain).2, usize::MAX - fixed - 60);
    }
}
