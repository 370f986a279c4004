//! Asks a server over HTTP whether it is ready.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::http::Uri;

use crate::connect::{ConnectError, ConnectOptions, connect, explained, port, said};
use crate::tls::{self, TlsError};

/// Maximum bytes of an answer that are read; that of a ready server is shorter.
const ANSWER_BYTES_MAX: u64 = 4 << 10;

/// Certificates that are accepted from a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// One that the authorities of [`ConnectOptions`] signed, for the host of the address.
    Authorities,
    /// Any certificate. The server's identity is then unknown: for a server on the same machine,
    /// whose certificate is for another name.
    Anyone,
}

/// Path of the probe below the path of the server.
const PROBE: &str = "/readyz";

/// Body of the probe if the server is ready.
const READY: &str = "ready";

/// Asks `readyz` below the path of an `http` or `https` address; `Ok` if the server is ready. An
/// address that ends in `/readyz` is used as it is.
///
/// # Errors
/// The answer of a server that is not ready is [`ConnectError::Http`]. A 200 without the body of
/// `/readyz` is [`ConnectError::NoProbe`]: some proxies answer 200 on paths that they do not
/// know.
pub async fn ready(url: &str, options: &ConnectOptions, trust: Trust) -> Result<(), ConnectError> {
    let answer = tokio::time::timeout(options.timeout, ask(url, options, trust));
    let answer = answer.await.map_err(|_| ConnectError::Timeout(options.timeout))??;
    match answer.status {
        // Line by line, because a proxy may send the body in chunks.
        200 if answer.body.lines().any(|line| line.trim() == READY) => Ok(()),
        200 => Err(ConnectError::NoProbe),
        status => {
            Err(ConnectError::Http { status, body: said(&answer.body, answer.location.as_deref()) })
        }
    }
}

/// An HTTP/1 response.
struct Answer {
    status: u16,
    location: Option<String>,
    body: String,
}

async fn ask(url: &str, options: &ConnectOptions, trust: Trust) -> Result<Answer, ConnectError> {
    let no_address = || ConnectError::Address { url: url.to_owned() };
    let uri: Uri = url.parse().map_err(|_| no_address())?;
    let (tls, default_port) = match (uri.scheme_str(), trust) {
        (Some("http"), _) => (None, 80),
        (Some("https"), Trust::Authorities) => (Some(tls::config(options.ca.as_deref())?), 443),
        (Some("https"), Trust::Anyone) => (Some(tls::config_for_anyone()), 443),
        _ => return Err(no_address()),
    };
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(no_address)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port(&uri, default_port).ok_or_else(no_address)?;
    let socket = connect(host, port).await?;
    let is_plain = tls.is_none();
    let asked = match tls {
        None => exchange(socket, &uri).await,
        Some(tls) => exchange_by_tls(socket, tls, host, &uri).await,
    };
    let answer = asked.and_then(|answer| parsed(&answer).ok_or_else(no_http));
    match answer {
        Ok(answer) => Ok(answer),
        Err(_) if is_plain && tls::is_spoken_by(host, port).await => Err(TlsError::TlsPort.into()),
        Err(error) => Err(explained(tungstenite::Error::Io(error), host)),
    }
}

async fn exchange_by_tls(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    tls: Arc<ClientConfig>,
    host: &str,
    uri: &Uri,
) -> io::Result<Vec<u8>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    exchange(TlsConnector::from(tls).connect(name, socket).await?, uri).await
}

/// Sends the request; returns the whole response.
async fn exchange(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    uri: &Uri,
) -> io::Result<Vec<u8>> {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let path = uri.path().trim_end_matches('/');
    let path = path.strip_suffix(PROBE).unwrap_or(path);
    let request =
        format!("GET {path}{PROBE} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    socket.flush().await?;
    let mut answer = Vec::new();
    match socket.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await {
        // A peer that ends TLS without close_notify is common, and the answer is complete.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        read => drop(read?),
    }
    Ok(answer)
}

fn parsed(answer: &[u8]) -> Option<Answer> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let (version, rest) = head.split_once(' ')?;
    let status = rest.get(..3)?.parse().ok()?;
    let mut headers = head.lines().filter_map(|line| line.split_once(':'));
    let location = headers.find(|(name, _)| name.eq_ignore_ascii_case("location"));
    version.starts_with("HTTP/1.").then(|| Answer {
        status,
        location: location.map(|(_, value)| value.trim().to_owned()),
        body: body.to_owned(),
    })
}

fn no_http() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the answer is none in HTTP")
}
