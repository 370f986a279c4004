//! What `send` and `listen` share: where the server is, and being a client of it.

use std::path::PathBuf;

use switchboard_client::v1::OpenError;
use switchboard_client::{Client, ConnectError, Options};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::Exit;

/// Which server to use, and how.
#[derive(clap::Args, Debug)]
pub(super) struct Server {
    /// The server; wss:// for TLS
    #[arg(long, env = "SWITCHBOARD_URL", default_value = "ws://127.0.0.1:8080")]
    pub(super) url: String,
    /// Trust the authorities in this PEM file for wss://, not the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Server {
    pub(super) async fn connect(&self) -> Result<Client, ConnectError> {
        Client::connect_with(&self.url, &self.options()).await
    }

    /// How to connect.
    pub(super) fn options(&self) -> Options {
        Options { ca: self.ca.clone() }
    }

    /// How a command ends that could not connect.
    pub(super) fn exit_of(&self, error: &OpenError) -> Exit {
        let is_usage = matches!(error, OpenError::Connect(ConnectError::Address { .. }));
        if is_usage { Exit::Usage } else { Exit::NotConnected }
    }
}

/// Runs a client's work on this thread.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> T {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread needs only an epoll descriptor")
        .block_on(work)
}

/// Completes at Ctrl-C or SIGTERM.
pub(super) async fn interrupted() {
    let mut terminated =
        signal(SignalKind::terminate()).expect("SIGTERM is a signal that may be caught");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
}
