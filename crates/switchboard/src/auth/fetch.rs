//! Fetches a key set from its URL: one request, bounded in size and time, no redirect followed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::error::KeyError;
use super::operator::KEYS_BYTES_MAX;

/// Time for the whole fetch, from the name lookup to the last byte.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason why a fetch failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("the answer was {0}, not 200 (a redirect is not followed)")]
    Status(StatusCode),
    #[error("the answer is longer than 256 KiB")]
    TooLong,
    #[error("no whole answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("no whole answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
}

/// A URL and the TLS set-up to fetch it with.
pub(super) struct Fetcher {
    url: Uri,
    /// Present for https.
    tls: Option<TlsConnector>,
    timeout: Duration,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// Takes a URL with a host, http or https. An https server needs a certificate of an
    /// authority that the system trusts, or of one in the files that `SSL_CERT_FILE` and
    /// `SSL_CERT_DIR` name.
    pub(super) fn new(url: Uri) -> Result<Fetcher, KeyError> {
        let is_https = url.scheme_str() == Some("https");
        let roots = if is_https { Some(system_roots()?) } else { None };
        Ok(Fetcher::with_roots(url, roots, FETCH_TIMEOUT))
    }

    pub(super) fn with_roots(url: Uri, roots: Option<RootCertStore>, timeout: Duration) -> Fetcher {
        let connector = |roots| TlsConnector::from(Arc::new(client_config(roots)));
        Fetcher { url, tls: roots.map(connector), timeout }
    }

    pub(super) fn url(&self) -> &Uri {
        &self.url
    }

    /// Returns the body of the response.
    pub(super) async fn fetch(&self) -> Result<Bytes, FetchError> {
        let fetched = tokio::time::timeout(self.timeout, self.connect_and_ask()).await;
        fetched.unwrap_or(Err(FetchError::Timeout(self.timeout)))
    }

    async fn connect_and_ask(&self) -> Result<Bytes, FetchError> {
        let host = self.url.host().unwrap_or_default();
        // In a URL an IPv6 address is in brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = self.url.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let tcp = TcpStream::connect((host, port)).await.map_err(FetchError::Connect)?;
        let Some(tls) = &self.tls else { return self.ask(tcp).await };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| FetchError::Connect(io::Error::other(error)))?;
        self.ask(tls.connect(name, tcp).await.map_err(FetchError::Connect)?).await
    }

    /// Sends the request over hyper's connection directly: the pooling client of hyper-util
    /// spawns a task per connection that nobody waits for, and one request every few minutes
    /// needs no pool.
    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Bytes, FetchError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Driven here, so it is dropped once the response is complete. If it fails, the request
        // fails with the same error.
        let drive = async {
            let _: Result<(), hyper::Error> = connection.await;
            std::future::pending().await
        };
        let answer = async {
            let answer = sender.send_request(self.request()).await?;
            match answer.status() {
                StatusCode::OK => bounded(answer.into_body()).await,
                other => Err(FetchError::Status(other)),
            }
        };
        tokio::select! {
            answer = answer => answer,
            answer = drive => answer,
        }
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let host = self.url.authority().map_or("", |authority| authority.as_str());
        Request::get(path)
            .header(HOST, host)
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .header(USER_AGENT, concat!("switchboard/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .expect("path and host are parts of a valid URL")
    }
}

async fn bounded(body: hyper::body::Incoming) -> Result<Bytes, FetchError> {
    match Limited::new(body, KEYS_BYTES_MAX as usize).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLong),
        Err(error) => Err(FetchError::Body(error)),
    }
}

fn system_roots() -> Result<RootCertStore, KeyError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = found.errors.first().map_or("none is installed".to_owned(), ToString::to_string);
        let problem = format!("no certificate authority to check its server by: {why}");
        return Err(KeyError::NoAuthorities(problem));
    }
    Ok(roots)
}

fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has suites for both versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::response::Redirect;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    /// Serves `router` until the set is dropped.
    async fn serve(router: Router) -> (JoinSet<()>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        serving.spawn(async { axum::serve(listener, router).await.unwrap() });
        (serving, url)
    }

    /// Answers one request with these bytes and closes. It reads the request first: closing a
    /// socket with unread bytes resets the connection, and the answer may be lost.
    async fn answer_once(mut socket: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0, "it ended early");
        }
        socket.write_all(answer).await.unwrap();
        socket.shutdown().await.unwrap();
    }

    fn fetcher(url: &str) -> Fetcher {
        Fetcher::with_roots(url.parse().unwrap(), None, FETCH_TIMEOUT)
    }

    #[tokio::test]
    async fn what_the_server_answers_is_fetched() {
        let echo = |headers: HeaderMap| async move {
            [HOST, ACCEPT].map(|name| headers[name].to_str().unwrap().to_owned()).join(" ")
        };
        let (_serving, url) = serve(Router::new().route("/keys", get(echo))).await;
        let body = fetcher(&format!("{url}/keys?v=1")).fetch().await.unwrap();
        let host = url.strip_prefix("http://").unwrap();
        assert_eq!(body, format!("{host} application/jwk-set+json, application/json"));
    }

    #[tokio::test]
    async fn an_answer_is_whole_or_none() {
        let max = KEYS_BYTES_MAX as usize;
        let router = Router::new()
            .route("/max", get(move || async move { vec![b' '; max] }))
            .route("/long", get(move || async move { vec![b' '; max + 1] }))
            .route("/moved", get(|| async { Redirect::permanent("/max") }));
        let (_serving, url) = serve(router).await;
        let fetch = async |path| fetcher(&format!("{url}{path}")).fetch().await;
        assert_eq!(fetch("/max").await.unwrap().len(), max);
        assert!(matches!(fetch("/long").await, Err(FetchError::TooLong)));
        assert!(matches!(fetch("/moved").await, Err(FetchError::Status(status)) if status == 308));
        assert!(matches!(fetch("/none").await, Err(FetchError::Status(status)) if status == 404));
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fetcher = fetcher(&format!("http://{}", listener.local_addr().unwrap()));
        let serve = async {
            let (socket, _) = listener.accept().await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"keys\"";
            answer_once(socket, answer).await;
        };
        assert!(matches!(tokio::join!(fetcher.fetch(), serve).0, Err(FetchError::Body(_))));
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let fetcher = Fetcher::with_roots(url, None, Duration::from_millis(20));
        assert!(matches!(fetcher.fetch().await, Err(FetchError::Timeout(_))));
    }

    #[tokio::test]
    async fn where_nobody_listens_nothing_is_fetched() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fetcher = fetcher(&format!("http://{}", listener.local_addr().unwrap()));
        drop(listener);
        assert!(matches!(fetcher.fetch().await, Err(FetchError::Connect(_))));
    }

    #[tokio::test]
    async fn https_needs_a_certificate_of_a_trusted_authority() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url: Uri = format!("https://localhost:{port}/").parse().unwrap();
        let serve = async || {
            let (socket, _) = listener.accept().await.unwrap();
            // Fails if the client rejects the certificate.
            let Ok(socket) = acceptor.accept(socket).await else { return };
            answer_once(socket, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        };
        let mut trusting = RootCertStore::empty();
        trusting.add(made.cert.der().clone()).unwrap();
        for (roots, is_trusted) in [(trusting, true), (RootCertStore::empty(), false)] {
            let fetcher = Fetcher::with_roots(url.clone(), Some(roots), FETCH_TIMEOUT);
            let (fetched, ()) = tokio::join!(fetcher.fetch(), serve());
            assert_eq!(fetched.is_ok(), is_trusted, "{fetched:?}");
        }
    }
}
