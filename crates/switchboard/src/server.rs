//! The server: build, serve, drain. Reads like a table of contents.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Instant, SystemTime};

use anyhow::Context;
use mio::{Poll, Waker};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use switchboard_broker::{DigestKey, Directory, ShardId};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::http;
use crate::log;
use crate::metrics::Metrics;
use crate::shard::{Admission, HttpConn, Inbox, Listener, Shard, Shared, WAKER};
use crate::tls::Acceptor;

/// Connections that the kernel completes before we accept them; it caps this at `somaxconn`.
const BACKLOG: i32 = 4_096;

/// File descriptors kept for other things than connections: epolls, wakers, HTTP pipes, logs.
const RESERVED_FILES: u64 = 64;

/// Runs until SIGTERM or SIGINT has drained it.
pub fn run(mut config: Config) -> anyhow::Result<()> {
    log::start(&config).context("log_level")?;
    bound_by_file_limit(&mut config);
    if config.shards == 0 {
        config.shards = thread::available_parallelism().map_or(1, usize::from);
    }
    let config = Arc::new(config);
    let listener = bind(config.listen)
        .with_context(|| format!("cannot listen on {} (listen, port)", config.listen))?;
    let address = listener.local_addr()?;
    let (polls, shared, conns) = build(&config)?;
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()?;
    // Before anybody is told that the server is there, and so may signal it.
    let signals = {
        let _control = control.enter();
        Signals::new()?
    };
    let shards = Shards::start(polls, &shared, listener)?;
    greet(address, &config);
    control.block_on(control_until_drained(shared, conns, shards, signals))
}

/// Everything that the shards share, and the poll of each.
fn build(
    config: &Arc<Config>,
) -> anyhow::Result<(Vec<Poll>, Arc<Shared>, mpsc::Receiver<HttpConn>)> {
    let tls = match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => Some(Acceptor::load(cert, key)?),
        _ => None,
    };
    let mut polls = Vec::new();
    let mut inboxes = Vec::new();
    for _ in 0..config.shards {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        inboxes.push(Inbox::new(waker, config.shard_queue_max_bytes));
        polls.push(poll);
    }
    let mut key = [0; DigestKey::LEN];
    getrandom::fill(&mut key).context("no randomness from the system")?;
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let (http, conns) = mpsc::channel(config.http_connections_max);
    let shared = Shared {
        config: Arc::clone(config),
        metrics: Arc::new(Metrics::new(config.shards, started.as_secs_f64())),
        directory: Arc::new(Directory::new(config.shards, config.device_list_max)),
        digest_key: DigestKey::new(key),
        admission: Arc::new(Admission::new(config)),
        inboxes,
        tls,
        http,
        started: Instant::now(),
    };
    Ok((polls, Arc::new(shared), conns))
}

/// The shards' threads, all of which are waited for.
struct Shards {
    threads: Vec<thread::JoinHandle<io::Result<()>>>,
    /// A message for each shard that ends; closed when all have.
    ended: mpsc::Receiver<()>,
}

impl Shards {
    /// Starts one thread per poll; the first gets the listener.
    fn start(
        polls: Vec<Poll>,
        shared: &Arc<Shared>,
        listener: std::net::TcpListener,
    ) -> io::Result<Shards> {
        let (end, ended) = mpsc::channel(polls.len());
        let mut listener = Some(Listener::new(listener));
        let mut threads = Vec::new();
        for (index, poll) in polls.into_iter().enumerate() {
            let shard =
                Shard::new(ShardId(index as u16), Arc::clone(shared), poll, listener.take());
            let end = SayEnd(end.clone());
            let thread = thread::Builder::new().name(format!("shard-{index}"));
            threads.push(thread.spawn(move || {
                let _end = end;
                shard.run()
            })?);
        }
        Ok(Shards { threads, ended })
    }

    /// Waits for all threads; what one of them failed with is the server's failure.
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

/// Says that a shard has ended, also when it panics.
struct SayEnd(mpsc::Sender<()>);

impl Drop for SayEnd {
    fn drop(&mut self) {
        // Full means that it was said already.
        let _: Result<_, _> = self.0.try_send(());
    }
}

/// Serves HTTP and obeys signals until the shards have ended.
async fn control_until_drained(
    shared: Arc<Shared>,
    conns: mpsc::Receiver<HttpConn>,
    mut shards: Shards,
    signals: Signals,
) -> anyhow::Result<()> {
    let state = Arc::new(http::State {
        metrics: Arc::clone(&shared.metrics),
        is_ready: AtomicBool::new(true),
    });
    let at_once = shared.config.http_connections_max;
    let http = tokio::spawn(http::serve(conns, Arc::clone(&state), at_once));
    signals.obey(&shared, &state, &mut shards.ended).await;
    tokio::task::block_in_place(|| shards.join())?;
    // The shards are gone, so this drops the last sender, and the HTTP server ends.
    drop(shared);
    http.await?;
    tracing::info!("stopped");
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Until all shards have ended: SIGTERM and SIGINT drain, a second one ends at once, SIGHUP
    /// rereads the certificate. A shard that fails takes the others down in good order.
    async fn obey(mut self, shared: &Shared, state: &http::State, ended: &mut mpsc::Receiver<()>) {
        let mut is_draining = false;
        loop {
            let signal = tokio::select! {
                ended = ended.recv() => match ended {
                    Some(()) if !is_draining => "a shard failed",
                    Some(()) => continue,
                    None => return,
                },
                _ = self.hangup.recv() => {
                    reload(shared);
                    continue;
                }
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            };
            if is_draining {
                tracing::warn!(signal, "stopping at once");
                std::process::exit(1);
            }
            is_draining = true;
            drain(signal, shared, state);
        }
    }
}

fn drain(signal: &str, shared: &Shared, state: &http::State) {
    let over = shared.config.drain;
    tracing::info!(signal, drain = %humantime::format_duration(over), "draining");
    state.not_ready();
    for inbox in &shared.inboxes {
        inbox.drain(over);
    }
}

fn reload(shared: &Shared) {
    let config = &shared.config;
    let (Some(tls), Some(cert), Some(key)) = (&shared.tls, &config.tls_cert, &config.tls_key)
    else {
        return tracing::info!("SIGHUP: no certificate to reread");
    };
    match tls.reload(cert, key) {
        Ok(()) => tracing::info!(cert = %cert.display(), "SIGHUP: certificate reread"),
        Err(error) => tracing::error!(%error, "SIGHUP: the old certificate stays"),
    }
}

/// A listening socket that accepted sockets inherit `TCP_NODELAY` from. No `SO_REUSEPORT`: a second
/// server on the port must fail, not take half of the connections.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Only so that a restart need not wait for old connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Raises the soft limit on open files to the hard one, and keeps `max_connections` below it, so
/// that a full server can still say that it is.
fn bound_by_file_limit(config: &mut Config) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit on open files cannot be raised");
    }
    let Some(limit) = getrlimit(Resource::Nofile).current else { return };
    let http = config.http_connections_max as u64;
    let room = limit.saturating_sub(RESERVED_FILES + http).max(1) as usize;
    if config.max_connections > room {
        tracing::info!(
            max_connections = config.max_connections,
            open_files_max = limit,
            effective = room,
            "max_connections is bounded by the limit on open files (ulimit -Hn, LimitNOFILE=)"
        );
        config.max_connections = room;
    }
}

/// Says that the server is there, and on standard output what to do next.
fn greet(address: SocketAddr, config: &Config) {
    tracing::info!(
        %address,
        shards = config.shards,
        tls = config.tls_cert.is_some(),
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
    let reachable = SocketAddr::new(reachable(address.ip()), address.port());
    let (http, ws) = if config.tls_cert.is_some() { ("https", "wss") } else { ("http", "ws") };
    let greeting = format!(
        "Switchboard is listening on {address}\n\n  \
         web page    {http}://{reachable}/\n  \
         by hand     websocat --linemode-strip-newlines {ws}://{reachable}/\n  \
         stop        {stop}\n\n",
        stop = if io::stdout().is_terminal() { "Ctrl-C" } else { "SIGTERM" },
    );
    // Nobody may be reading; that is no reason not to serve.
    let _: io::Result<()> = io::stdout().write_all(greeting.as_bytes());
}

/// An address by which this machine reaches a server that listens on `ip`.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        known => known,
    }
}
