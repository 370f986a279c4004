//! Answers to probes: the one source for the shards and for the HTTP server.
//!
//! On the devices' port a shard answers a probe itself. Orchestrators restart a server whose
//! probes fail, so they must not wait behind the requests of others: the shard's answer needs no
//! place, queue or thread that those could occupy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use hyper::{StatusCode, Uri};

use crate::metrics::Metrics;
use crate::ws::PlainRequest;

/// An endpoint that tells the state of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// Answers 200 as long as the process answers at all.
    Live,
    /// Answers 200, also while the server is full; 503 once it is stopping, and while the store
    /// cannot write.
    Ready,
}

impl Probe {
    pub(crate) const ALL: [Probe; 2] = [Probe::Live, Probe::Ready];

    pub(crate) fn path(self) -> &'static str {
        match self {
            Probe::Live => "/healthz",
            Probe::Ready => "/readyz",
        }
    }

    /// Returns the probe that a request asks for; `None` for all that only the HTTP server answers,
    /// such as other methods.
    fn asked(request: &PlainRequest) -> Option<Probe> {
        let PlainRequest { method, target, has_body, .. } = request;
        if *has_body || !["GET", "HEAD"].contains(&method.as_str()) {
            return None;
        }
        // As the HTTP server reads it, so that both answer the same targets.
        let target: Uri = target.parse().ok()?;
        Probe::ALL.into_iter().find(|probe| probe.path() == target.path())
    }
}

/// The state that probes tell.
#[derive(Debug)]
pub(crate) struct Health {
    metrics: Arc<Metrics>,
    is_stopping: AtomicBool,
}

impl Health {
    /// Returns the state of a server that has just started.
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Health {
        Health { metrics: Arc::clone(metrics), is_stopping: AtomicBool::new(false) }
    }

    /// Makes `/readyz` answer 503 from now on.
    pub(crate) fn stopping(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Returns the status and body for a probe.
    pub(crate) fn tell(&self, probe: Probe) -> (StatusCode, &'static str) {
        match probe {
            Probe::Live => (StatusCode::OK, "ok\n"),
            Probe::Ready if self.is_stopping.load(Ordering::Relaxed) => {
                (StatusCode::SERVICE_UNAVAILABLE, "going down\n")
            }
            Probe::Ready if self.metrics.store_is_failing() => {
                (StatusCode::SERVICE_UNAVAILABLE, "the store cannot write\n")
            }
            Probe::Ready => (StatusCode::OK, "ready\n"),
        }
    }

    /// Returns the whole response to a probe, with the headers that the HTTP server gives it; `None`
    /// if the request is for the HTTP server.
    pub(crate) fn answer(&self, request: &PlainRequest) -> Option<String> {
        let (status, body) = self.tell(Probe::asked(request)?);
        let (version, len) = (request.minor_version, body.len());
        let connection = if version == 0 { "" } else { "connection: close\r\n" };
        let body = if request.method == "HEAD" { "" } else { body };
        let date = httpdate::fmt_http_date(SystemTime::now());
        Some(format!(
            "HTTP/1.{version} {status}\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {len}\r\n{connection}date: {date}\r\n\r\n{body}"
        ))
    }
}
