//! Opens a connection: address, TLS, handshake.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::header::{LOCATION, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::http::{HeaderValue, Uri};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use crate::tls::{self, TlsError};

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Default time for connecting, the welcome included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum bytes of a received message: the most that a server can be configured for, and space
/// for the sender's id.
const MESSAGE_BYTES_MAX: usize = (256 << 20) + 64;

/// Options of a connection, besides the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// PEM file of the authorities to trust for `wss://`, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Time for connecting, the welcome included.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions { ca: None, timeout: CONNECT_TIMEOUT }
    }
}

/// Reason why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is invalid, or its scheme is neither `ws` nor `wss`.
    #[error("{url:?} is no address; give one such as ws://127.0.0.1:8080")]
    Address {
        /// As given.
        url: String,
    },
    /// The authorities to trust could not be loaded.
    #[error("cannot read the trusted certificates: {0}")]
    Roots(String),
    /// The system finds no address for the host name.
    #[error("there is no host {host} ({why})")]
    UnknownHost {
        /// The host name.
        host: String,
        /// The system's error.
        why: io::Error,
    },
    /// Nothing listens at the address.
    #[error("the connection was refused: no server listens there")]
    Refused,
    /// TLS failed, or the scheme is that of the other kind of port.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There was no answer, or not that of a WebSocket server.
    #[error("{}", words(.0))]
    Transport(Box<tungstenite::Error>),
    /// The server answered the handshake with an HTTP error.
    #[error("the server answered {status}{}", if body.is_empty() { String::new() } else { format!(": {body}") })]
    Http {
        /// The status code, such as 503.
        status: u16,
        /// The server's explanation, or the location that it redirects to; empty if there is
        /// none.
        body: String,
    },
    /// The answer to a probe is not that of this server.
    #[error("another program answers there, or a proxy that does not know this path")]
    NoProbe,
    /// The server does not speak the v1 protocol.
    #[error("the server does not speak {}", switchboard_proto::v1::SUBPROTOCOL)]
    NoV1,
    /// It took longer than [`ConnectOptions`] allow.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// Opens a WebSocket to `url` that speaks `subprotocol`; no message has been sent yet.
pub(crate) async fn open(
    url: &str,
    options: &ConnectOptions,
    subprotocol: &'static str,
) -> Result<Socket, ConnectError> {
    let no_address = || ConnectError::Address { url: url.to_owned() };
    let mut request = url.into_client_request().map_err(|_| no_address())?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    let (connector, default_port) = match request.uri().scheme_str() {
        Some("ws") => (Connector::Plain, 80),
        Some("wss") => (Connector::Rustls(tls::config(options.ca.as_deref())?), 443),
        _ => return Err(no_address()),
    };
    let host = request.uri().host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = port(request.uri(), default_port).ok_or_else(no_address)?;
    let socket = connect(&host, port).await?;
    let is_plain = matches!(connector, Connector::Plain);
    match shake_hands(request, socket, connector).await {
        Ok(socket) => Ok(socket),
        Err(error) => match explained(error, &host) {
            ConnectError::Transport(_) if is_plain && tls::is_spoken_by(&host, port).await => {
                Err(TlsError::TlsPort.into())
            }
            error => Err(error),
        },
    }
}

/// Returns the port in the address, or the default one; `None` if it is invalid. `Uri` would
/// treat an invalid port as absent.
pub(crate) fn port(uri: &Uri, default: u16) -> Option<u16> {
    let authority = uri.authority()?;
    let (_, host_and_port) =
        authority.as_str().rsplit_once('@').unwrap_or(("", authority.as_str()));
    match host_and_port.strip_prefix(authority.host())? {
        "" => Some(default),
        port => port.strip_prefix(':')?.parse().ok(),
    }
}

pub(crate) async fn connect(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let unknown = |why| ConnectError::UnknownHost { host: host.to_owned(), why };
    let addresses: Vec<_> = lookup_host((host, port)).await.map_err(unknown)?.collect();
    match TcpStream::connect(addresses.as_slice()).await {
        Ok(socket) => Ok(socket),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(ConnectError::Refused)
        }
        Err(error) => Err(ConnectError::Transport(Box::new(error.into()))),
    }
}

async fn shake_hands(
    request: Request,
    socket: TcpStream,
    connector: Connector,
) -> Result<Socket, tungstenite::Error> {
    socket.set_nodelay(true)?;
    let limits = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let connected = client_async_tls_with_config(request, socket, Some(limits), Some(connector));
    connected.await.map(|(socket, _)| socket)
}

/// Converts the library's errors, for a connection to `host`.
pub(crate) fn explained(error: tungstenite::Error, host: &str) -> ConnectError {
    use tungstenite::Error::{Http, Io, Protocol, Tls};
    let no_subprotocol = SubProtocolError::NoSubProtocol;
    match error {
        Http(response) => {
            let body = String::from_utf8_lossy(response.body().as_deref().unwrap_or_default());
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            ConnectError::Http { status: response.status().as_u16(), body: said(&body, location) }
        }
        Protocol(ProtocolError::SecWebSocketSubProtocolError(why)) if why == no_subprotocol => {
            ConnectError::NoV1
        }
        Tls(tungstenite::error::TlsError::Rustls(error)) => TlsError::new(&error, host).into(),
        Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(error) => TlsError::new(error, host).into(),
            None => ConnectError::Transport(Box::new(Io(error))),
        },
        other => ConnectError::Transport(Box::new(other)),
    }
}

/// Returns the explanation in an HTTP error. This server explains itself in plain text; an HTML
/// page comes from a proxy, and only repeats the status.
pub(crate) fn said(body: &str, location: Option<&str>) -> String {
    match location {
        Some(location) => format!("use {location}"),
        None if body.trim_start().starts_with('<') => String::new(),
        None => body.trim().to_owned(),
    }
}

/// Formats the error without the library's own classification.
fn words(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Io(e) => e.to_string(),
        other => other.to_string(),
    }
}
