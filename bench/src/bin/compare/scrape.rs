//! Reads single numbers of a server's `/metrics`.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::Context;

use crate::server::Server;

/// The page at one point in time.
pub(crate) struct Metrics(String);

impl Metrics {
    /// Fetches the page from the server.
    pub(crate) fn of(server: &Server) -> anyhow::Result<Self> {
        let mut socket = TcpStream::connect(server.target().address)?;
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        socket.read_to_string(&mut page).context("no metrics")?;
        Ok(Self(page))
    }

    /// Returns the value of a metric without labels.
    pub(crate) fn value(&self, name: &str) -> anyhow::Result<f64> {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("there is no metric {name}"))?.trim().parse()?)
    }
}
