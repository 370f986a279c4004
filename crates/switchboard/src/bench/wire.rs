//! The byte stream of a connection: TCP or TLS, blocking while it opens and non-blocking
//! afterwards.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};
use switchboard_client::config_for_anyone;

use super::target::Target;

/// Timeout of a read while a connection opens. Connecting needs none: on loopback the kernel
/// answers at once.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections per source address; the default range of ephemeral ports has 28,232.
const CONNECTIONS_PER_SOURCE: usize = 20_000;

/// Opens connections to one target.
pub struct Dialer {
    target: Target,
    tls: Option<Arc<ClientConfig>>,
    dialled: usize,
}

impl Dialer {
    /// Creates a dialer whose first wire is the target's first connection.
    pub fn new(target: Target) -> Self {
        Self { target, tls: target.tls.then(config_for_anyone), dialled: 0 }
    }

    /// Opens a blocking wire, with a timeout of ten seconds per read. The TLS handshake runs
    /// with the first write.
    pub(super) fn dial(&mut self) -> anyhow::Result<Wire> {
        let socket = self.socket()?;
        socket.set_read_timeout(Some(OPEN_TIMEOUT))?;
        let connected = socket.connect(&self.target.address.into());
        connected.with_context(|| format!("no server at {}", self.target))?;
        self.wire(socket)
    }

    /// Starts to open a non-blocking wire.
    pub fn begin(&mut self) -> anyhow::Result<Wire> {
        let socket = self.socket()?;
        socket.set_nonblocking(true)?;
        match socket.connect(&self.target.address.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
                Err(error).with_context(|| format!("no server at {}", self.target))
            }
            _ => self.wire(socket),
        }
    }

    fn wire(&self, socket: Socket) -> anyhow::Result<Wire> {
        let tls = self.tls.clone().map(|config| {
            let name = ServerName::from(self.target.address.ip());
            ClientConnection::new(config, name).map(Box::new)
        });
        let socket = TcpStream::from_std(socket.into());
        Ok(Wire { address: self.target.address, socket, tls: tls.transpose()? })
    }

    fn socket(&mut self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.target.address), Type::STREAM, None)?;
        self.bind_source(&socket)?;
        socket.set_tcp_nodelay(true)?;
        // Closing with a reset leaves no port in TIME_WAIT, which the next run might lack.
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(socket)
    }

    /// Uses 127.0.0.2 and so on before the ports of one source address run out.
    fn bind_source(&mut self, socket: &Socket) -> io::Result<()> {
        let source = self.dialled / CONNECTIONS_PER_SOURCE;
        self.dialled += 1;
        if source == 0 || self.target.address.is_ipv6() {
            return Ok(());
        }
        let address = Ipv4Addr::new(127, 0, 0, 1 + (source % 250) as u8);
        socket.bind(&SocketAddr::new(IpAddr::V4(address), 0).into())
    }
}

/// One connection.
pub struct Wire {
    address: SocketAddr,
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Wire {
    /// The server's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes the socket non-blocking and registers it under `token`, edge-triggered.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&self.socket, true)?;
        registry.register(&mut self.socket, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Returns true if a read of `count` bytes into a buffer of `room` means that there is no
    /// more.
    pub(super) fn is_dry(&self, count: usize, room: usize) -> bool {
        self.tls.is_none() && count < room
    }

    /// Drops the TLS session and keeps the socket open, all that an idle connection needs.
    pub(super) fn forget_session(&mut self) {
        self.tls = None;
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.read(buffer),
            Some(session) => rustls::Stream::new(&mut **session, &mut self.socket).read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.write(bytes),
            Some(session) => rustls::Stream::new(&mut **session, &mut self.socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(session) => rustls::Stream::new(&mut **session, &mut self.socket).flush(),
        }
    }
}

/// Writes as much of `out` as `wire` takes.
pub fn write_out(wire: &mut impl Write, out: &mut Vec<u8>) -> io::Result<()> {
    while !out.is_empty() {
        match wire.write(out) {
            Ok(count) if count == out.len() => out.clear(),
            Ok(count) => drop(out.drain(..count)),
            Err(error) if is_for_later(&error) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    match wire.flush() {
        Err(error) if !is_for_later(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Returns true if the socket is not ready, or not yet connected.
pub fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}
