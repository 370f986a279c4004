//! The HTTP side of the port: the page, health and metrics, served by axum beside the shards.
//!
//! A shard forwards the socket of any request that asks neither for a WebSocket nor for a probe
//! ([`health`](crate::health)). Each connection serves one request (`Connection: close`), as the
//! next one may again be for a shard.

mod console;
mod probes;
mod renderings;

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::auth::Keyring;
use crate::config::Auth;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::shard::{HttpConn, HttpSocket, REQUEST_TIMEOUT, Shared};
use renderings::Renderings;

/// Delay after an accept that failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// State of the handlers.
#[derive(Debug)]
pub(crate) struct AppState {
    pub(crate) metrics: Arc<Metrics>,
    /// Verifies the tokens of clients that ask for metrics on the devices' port; with `None`
    /// everybody sees them.
    pub(crate) keyring: Option<Arc<Keyring>>,
    /// True if the metrics have a port of their own.
    pub(crate) metrics_are_elsewhere: bool,
    health: Arc<Health>,
    renderings: Renderings,
}

impl AppState {
    pub(crate) fn new(shared: &Shared) -> AppState {
        let config = shared.config();
        AppState {
            metrics: Arc::clone(&shared.metrics),
            keyring: (config.auth == Auth::Token).then(|| Arc::clone(&shared.keyring)),
            metrics_are_elsewhere: config.metrics_listen.is_some(),
            health: Arc::clone(&shared.health),
            renderings: Renderings::default(),
        }
    }
}

/// Serves forwarded connections, `at_once` of them at a time, until the shards are gone; then
/// ends those that are left.
pub(crate) async fn serve(
    mut conns: mpsc::Receiver<HttpConn>,
    state: Arc<AppState>,
    at_once: usize,
) {
    let router = router(state);
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            conn = conns.recv(), if serving.len() < at_once => match conn {
                Some(conn) => drop(serving.spawn(serve_one(conn, router.clone()))),
                None => break,
            },
            Some(_) = serving.join_next() => {}
        }
    }
    serving.shutdown().await;
}

/// Serves metrics and probes on a port of their own, `at_once` connections at a time; the others
/// wait in the kernel. Never returns.
pub(crate) async fn serve_metrics(listener: TcpListener, state: Arc<AppState>, at_once: usize) {
    let router = probes::router().route("/metrics", get(probes::metrics)).with_state(state);
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if serving.len() < at_once => match accepted {
                Ok((socket, _)) => {
                    let served = serve_socket(Rewound::new(Vec::new(), socket), router.clone());
                    drop(serving.spawn(async move { report(served.await) }));
                }
                // The peer is gone, or there is no file descriptor left; both are temporary.
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            },
            Some(_) = serving.join_next() => {}
        }
    }
}

fn router(state: Arc<AppState>) -> Router {
    let probes = probes::router();
    let probes = match state.metrics_are_elsewhere {
        true => probes,
        false => probes.route("/metrics", get(probes::metrics_for_devices)),
    };
    probes.with_state(state).merge(console::router()).fallback(not_found)
}

async fn not_found() -> (StatusCode, &'static str) {
    let body =
        "There is nothing here. The page is at /, and a WebSocket may connect to any path.\n";
    (StatusCode::NOT_FOUND, body)
}

async fn serve_one(conn: HttpConn, router: Router) {
    let HttpConn { socket, head, permit } = conn;
    let served = match socket {
        HttpSocket::Tcp(socket) => match TcpStream::from_std(socket) {
            Ok(socket) => serve_socket(Rewound::new(head, socket), router).await,
            Err(error) => Err(error.into()),
        },
        HttpSocket::Pipe(socket) => match UnixStream::from_std(socket) {
            Ok(socket) => serve_socket(Rewound::new(head, socket), router).await,
            Err(error) => Err(error.into()),
        },
    };
    report(served);
    drop(permit);
}

fn report(served: Result<(), Error>) {
    if let Err(error) = served {
        tracing::debug!(%error, "HTTP request failed");
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn serve_socket<S>(socket: Rewound<S>, router: Router) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let answer = hyper::service::Service::call(&service, request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).keep_alive(false).half_close(true);
    let connection = http.serve_connection(TokioIo::new(socket), service);
    tokio::time::timeout(REQUEST_TIMEOUT, connection).await??;
    Ok(())
}

/// A socket whose first bytes have already been read.
#[derive(Debug)]
struct Rewound<S> {
    head: io::Cursor<Vec<u8>>,
    socket: S,
}

impl<S> Rewound<S> {
    fn new(head: Vec<u8>, socket: S) -> Rewound<S> {
        Rewound { head: io::Cursor::new(head), socket }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Rewound { head, socket } = &mut *self;
        if (head.position() as usize) < head.get_ref().len() {
            return Pin::new(head).poll_read(cx, buf);
        }
        Pin::new(socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
