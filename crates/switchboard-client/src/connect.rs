//! Opens a connection: address, TLS, handshake.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::error::{ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Time for all of connecting, the welcome included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest message that is received, in bytes: the most that a server can be set to, and room
/// for the sender's id.
const MESSAGE_BYTES_MAX: usize = (256 << 20) + 64;

/// How to connect, beyond the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// PEM file of the authorities to trust for `wss://`, instead of the system's.
    pub ca: Option<PathBuf>,
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is none, or its scheme is neither `ws` nor `wss`.
    #[error("{url:?} is no address; give one such as ws://127.0.0.1:8080")]
    Address {
        /// As given.
        url: String,
    },
    /// The authorities to trust could not be had.
    #[error("cannot read the trusted certificates: {0}")]
    Roots(String),
    /// Nobody answered, or not as a WebSocket server does.
    #[error("{}", words(.0))]
    Transport(tungstenite::Error),
    /// The server answered the handshake with an HTTP error.
    #[error("the server answered {status}{}", if body.is_empty() { String::new() } else { format!(": {body}") })]
    Http {
        /// The status code, such as 503.
        status: u16,
        /// What the server said, white space trimmed.
        body: String,
    },
    /// The server is a WebSocket server, but its first words are no welcome.
    #[error("the server does not speak Switchboard's text protocol")]
    NoWelcome,
    /// The server does not speak the v1 protocol.
    #[error("the server does not speak {}", switchboard_proto::v1::SUBPROTOCOL)]
    NoV1,
    /// It took longer than [`CONNECT_TIMEOUT`].
    #[error("no answer within {} seconds", CONNECT_TIMEOUT.as_secs())]
    Timeout,
}

/// A WebSocket to `url`, before anything was said, that speaks `subprotocol`.
pub(crate) async fn open(
    url: &str,
    options: &Options,
    subprotocol: Option<&'static str>,
) -> Result<Socket, ConnectError> {
    let no_address = || ConnectError::Address { url: url.to_owned() };
    let mut request = url.into_client_request().map_err(|_| no_address())?;
    if let Some(name) = subprotocol {
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    let connector = match request.uri().scheme_str() {
        Some("ws") => Connector::Plain,
        Some("wss") => Connector::Rustls(tls(options.ca.as_deref())?),
        _ => return Err(no_address()),
    };
    let limits = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let opened = tokio_tungstenite::connect_async_tls_with_config(
        request,
        Some(limits),
        true,
        Some(connector),
    );
    opened.await.map(|(socket, _)| socket).map_err(ConnectError::from)
}

impl From<tungstenite::Error> for ConnectError {
    fn from(error: tungstenite::Error) -> Self {
        use tungstenite::Error::Protocol;
        let response = match error {
            tungstenite::Error::Http(response) => response,
            Protocol(ProtocolError::SecWebSocketSubProtocolError(
                SubProtocolError::NoSubProtocol,
            )) => return ConnectError::NoV1,
            other => return ConnectError::Transport(other),
        };
        let body = response.body().as_deref().unwrap_or_default();
        let body = String::from_utf8_lossy(body).trim().to_owned();
        ConnectError::Http { status: response.status().as_u16(), body }
    }
}

/// The error without the library's own classification.
fn words(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Io(e) => e.to_string(),
        other => other.to_string(),
    }
}

fn tls(ca: Option<&Path>) -> Result<Arc<ClientConfig>, ConnectError> {
    let roots = match ca {
        Some(file) => roots_in(file)?,
        None => system_roots()?,
    };
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn roots_in(file: &Path) -> Result<RootCertStore, ConnectError> {
    let fault =
        |why: &dyn std::fmt::Display| ConnectError::Roots(format!("{}: {why}", file.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| fault(&e))? {
        let certificate = certificate.map_err(|e| fault(&e))?;
        roots.add(certificate).map_err(|e| fault(&e))?;
    }
    if roots.is_empty() { Err(fault(&"holds no certificate")) } else { Ok(roots) }
}

fn system_roots() -> Result<RootCertStore, ConnectError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    match found.errors.first() {
        Some(e) if roots.is_empty() => Err(ConnectError::Roots(e.to_string())),
        None if roots.is_empty() => Err(ConnectError::Roots("the system has none".to_owned())),
        _ => Ok(roots),
    }
}
