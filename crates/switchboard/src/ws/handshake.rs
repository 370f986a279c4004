//! The opening handshake (RFC 6455 section 4.2): parses the request, writes `101` or a refusal.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use httparse::{EMPTY_HEADER, Header, Status};
use sha1::{Digest, Sha1};

use super::deflate::{DeflateOffer, Negotiated};

/// Maximum number of headers of one request; more are refused with 431. Browsers send about 15.
const HEADERS_MAX: usize = 64;

/// Appended to the key before hashing (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Result of parsing the first bytes of a connection.
#[derive(Debug)]
pub enum Parsed {
    /// The request head is incomplete.
    Incomplete,
    /// A complete HTTP request head that does not ask for a WebSocket.
    Http(PlainRequest),
    /// A handshake that can be accepted.
    Upgrade(Box<Upgrade>),
    /// An error: to be answered, then the connection is closed.
    Refused(Refusal),
}

/// A request that does not ask for a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub struct PlainRequest {
    /// The method, as it came.
    pub method: String,
    /// The target, as it came: mostly a path.
    pub target: String,
    /// Minor version of HTTP: 0 or 1.
    pub minor_version: u8,
    /// True if a body follows the head.
    pub has_body: bool,
}

/// An acceptable handshake.
#[derive(Debug)]
pub struct Upgrade {
    /// Length of the head in bytes; frames follow.
    pub head_len: usize,
    /// The headers that other modules need.
    pub request: Request,
    accept: String,
    deflate: Option<Negotiated>,
}

/// The headers of a handshake that matter beyond those of RFC 6455.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `Origin`, as browsers send it.
    pub origin: Option<String>,
    /// All of `X-Forwarded-For`, joined by commas.
    pub x_forwarded_for: Option<String>,
    /// All of `Forwarded` (RFC 7239), joined by commas.
    pub forwarded: Option<String>,
    /// All of `Sec-WebSocket-Extensions`, joined by commas.
    extensions: Option<String>,
    /// All of `Sec-WebSocket-Protocol`, joined by commas.
    protocols: Option<String>,
    /// `Authorization`, which occurs at most once.
    authorization: Option<String>,
}

/// An HTTP response that ends the connection, with the reason in its body.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status line after `HTTP/1.1 `.
    status: &'static str,
    /// Further header lines, each ending in CRLF.
    headers: &'static str,
    /// One sentence for the reader.
    body: String,
}

impl Refusal {
    /// 400: the request breaks a rule; `body` says which.
    pub fn bad_request(body: impl Into<String>) -> Refusal {
        Refusal { status: "400 Bad Request", headers: "", body: body.into() }
    }

    /// 403: the page's `Origin` is not in `allowed_origins`.
    pub fn origin(origin: Option<&str>) -> Refusal {
        let body = match origin {
            Some(origin) => format!("Origin {origin} is not in this server's allowed_origins."),
            None => "Missing Origin header (`allowed_origins` is configured).".to_owned(),
        };
        Refusal { status: "403 Forbidden", headers: "", body }
    }

    /// 401: a token is required, and this client sent none.
    pub fn unauthorized() -> Refusal {
        let headers = "WWW-Authenticate: Bearer\r\n";
        let body = "This server requires a token: Authorization: Bearer <token>.".to_owned();
        Refusal { status: "401 Unauthorized", headers, body }
    }

    /// 408: the handshake took longer than `handshake_timeout`.
    pub fn timeout() -> Refusal {
        let body = "The request did not arrive in time.".to_owned();
        Refusal { status: "408 Request Timeout", headers: "", body }
    }

    /// 431: more headers, or more bytes of them, than allowed.
    pub fn headers_too_large(max_bytes: usize) -> Refusal {
        let body = format!(
            "Request line and headers may have {max_bytes} bytes and {HEADERS_MAX} headers."
        );
        Refusal { status: "431 Request Header Fields Too Large", headers: "", body }
    }

    /// 503: the number of connections is at its limit, in all or from this address.
    pub fn busy(body: impl Into<String>) -> Refusal {
        let headers = "Retry-After: 5\r\n";
        Refusal { status: "503 Service Unavailable", headers, body: body.into() }
    }

    fn method(method: &str) -> Refusal {
        let body = format!("A WebSocket handshake is a GET request, not {method}.");
        Refusal { status: "405 Method Not Allowed", headers: "Allow: GET\r\n", body }
    }

    fn upgrade_required(body: impl Into<String>) -> Refusal {
        let headers = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        Refusal { status: "426 Upgrade Required", headers, body: body.into() }
    }

    /// Returns the status code, for logs and metrics.
    pub fn status(&self) -> &'static str {
        &self.status[..3]
    }

    /// Writes the whole response.
    pub fn write(&self, out: &mut Vec<u8>) {
        let Refusal { status, headers, body } = self;
        let len = body.len() + 1;
        out.extend_from_slice(
            format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Length: {len}\r\n{headers}Connection: close\r\n\r\n{body}\n"
            )
            .as_bytes(),
        );
    }
}

impl Request {
    /// Returns true if the client offers `subprotocol`.
    pub fn offers(&self, subprotocol: &str) -> bool {
        let offered = self.protocols.as_deref().unwrap_or_default();
        offered.split(',').any(|one| one.trim() == subprotocol)
    }

    /// Returns the token of `Authorization: Bearer` (RFC 6750 section 2.1).
    pub fn bearer_token(&self) -> Option<&str> {
        let (scheme, token) = self.authorization.as_deref()?.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }
}

impl Upgrade {
    /// Accepts permessage-deflate if the client offered it with parameters that we can fulfil.
    pub fn negotiate_deflate(&mut self, context_takeover: bool) -> Option<Negotiated> {
        let offers = self.request.extensions.as_deref().unwrap_or_default();
        self.deflate = DeflateOffer::negotiate(offers, context_takeover);
        self.deflate
    }

    /// Writes the `101` response, with the subprotocol chosen from those offered.
    pub fn write_accept(&self, subprotocol: Option<&str>, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
              Connection: Upgrade\r\nSec-WebSocket-Accept: ",
        );
        out.extend_from_slice(self.accept.as_bytes());
        if let Some(subprotocol) = subprotocol {
            out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.extend_from_slice(subprotocol.as_bytes());
        }
        if let Some(deflate) = self.deflate {
            out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
            deflate.write_response(out);
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// Parses a request head of at most `max_bytes` at the start of `input`.
///
/// A request with `Upgrade: websocket` or any `Sec-WebSocket-*` header is meant as a WebSocket
/// handshake, even if a proxy has removed the rest of it, and is told what is missing.
pub fn parse_request(input: &[u8], max_bytes: usize) -> Parsed {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head = &input[..input.len().min(max_bytes)];
    match request.parse(head) {
        Ok(Status::Complete(head_len)) => read_head(&request, head_len),
        Ok(Status::Partial) if input.len() >= max_bytes => {
            Parsed::Refused(Refusal::headers_too_large(max_bytes))
        }
        Ok(Status::Partial) => Parsed::Incomplete,
        Err(httparse::Error::TooManyHeaders) => {
            Parsed::Refused(Refusal::headers_too_large(max_bytes))
        }
        Err(error) => Parsed::Refused(Refusal::bad_request(not_http(input, error))),
    }
}

fn not_http(input: &[u8], error: httparse::Error) -> String {
    // A TLS handshake record: the most common mistake on a plain port.
    if input.starts_with(&[0x16, 0x03]) {
        return "This port speaks plain HTTP; use http:// or ws://, or set tls_cert and tls_key."
            .to_owned();
    }
    format!("This is not an HTTP/1.1 request: {error}.")
}

fn read_head(request: &httparse::Request<'_, '_>, head_len: usize) -> Parsed {
    let headers = &*request.headers;
    let asks_upgrade = has_token(headers, "upgrade", "websocket");
    let names_websocket = headers.iter().any(|header| {
        header.name.get(..14).is_some_and(|name| name.eq_ignore_ascii_case("sec-websocket-"))
    });
    if !asks_upgrade && !names_websocket {
        return Parsed::Http(PlainRequest {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            minor_version: request.version.unwrap_or_default(),
            has_body: has_body(headers),
        });
    }
    match check_upgrade(request, asks_upgrade) {
        Ok(accept) => {
            let request = Request {
                origin: joined(headers, "origin"),
                x_forwarded_for: joined(headers, "x-forwarded-for"),
                forwarded: joined(headers, "forwarded"),
                extensions: joined(headers, "sec-websocket-extensions"),
                protocols: joined(headers, "sec-websocket-protocol"),
                authorization: joined(headers, "authorization"),
            };
            Parsed::Upgrade(Box::new(Upgrade { head_len, request, accept, deflate: None }))
        }
        Err(refusal) => Parsed::Refused(refusal),
    }
}

/// Checks RFC 6455 section 4.2.1 point by point, and that proxies in between read the head in the
/// same way (RFC 9112 sections 3.2 and 6, RFC 6455 section 11.3); returns the value of `Sec-WebSocket-Accept`.
fn check_upgrade(
    request: &httparse::Request<'_, '_>,
    asks_upgrade: bool,
) -> Result<String, Refusal> {
    let headers = &*request.headers;
    let method = request.method.unwrap_or_default();
    if method != "GET" {
        return Err(Refusal::method(method));
    }
    if request.version != Some(1) {
        return Err(Refusal::bad_request("A WebSocket handshake requires HTTP/1.1."));
    }
    if find(headers, "host").is_none() {
        return Err(Refusal::bad_request("The Host header is missing."));
    }
    for name in ["Host", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Authorization"] {
        if headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).count() > 1 {
            return Err(Refusal::bad_request(format!(
                "The header {name} comes more than once; it may come only once."
            )));
        }
    }
    if has_body(headers) {
        return Err(Refusal::bad_request(
            "A WebSocket handshake has no body: leave out Content-Length and Transfer-Encoding.",
        ));
    }
    if !asks_upgrade {
        return Err(Refusal::upgrade_required(
            "The header Upgrade: websocket is missing; a proxy in between must pass it on.",
        ));
    }
    if !has_token(headers, "connection", "upgrade") {
        return Err(Refusal::bad_request(
            "The header Connection: Upgrade is missing; a proxy in between must pass it on.",
        ));
    }
    match find(headers, "sec-websocket-version") {
        Some(b"13") => {}
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            return Err(Refusal::upgrade_required(format!(
                "Sec-WebSocket-Version is {other}; this server speaks 13."
            )));
        }
        None => {
            return Err(Refusal::upgrade_required(
                "The header Sec-WebSocket-Version: 13 is missing.",
            ));
        }
    }
    match find(headers, "sec-websocket-key") {
        Some(key) if STANDARD.decode(key).is_ok_and(|key| key.len() == 16) => Ok(accept_key(key)),
        Some(_) => Err(Refusal::bad_request("Sec-WebSocket-Key is not 16 bytes in base64.")),
        None => Err(Refusal::bad_request("The header Sec-WebSocket-Key is missing.")),
    }
}

/// Returns the value of `Sec-WebSocket-Accept` for a key (RFC 6455 section 4.2.2).
pub fn accept_key(key: &[u8]) -> String {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    STANDARD.encode(digest)
}

/// Returns true if the head announces a body (RFC 9112 section 6).
fn has_body(headers: &[Header<'_>]) -> bool {
    headers.iter().any(|header| {
        let has_length = header.name.eq_ignore_ascii_case("content-length");
        has_length && header.value.trim_ascii() != b"0"
            || header.name.eq_ignore_ascii_case("transfer-encoding")
    })
}

fn find<'h>(headers: &[Header<'h>], name: &str) -> Option<&'h [u8]> {
    let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    Some(header.value.trim_ascii())
}

/// Joins all values of a header that may occur more than once into one list (RFC 9110 section
/// 5.3).
fn joined(headers: &[Header<'_>], name: &str) -> Option<String> {
    let mut all: Option<String> = None;
    for header in headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)) {
        let value = String::from_utf8_lossy(header.value);
        match &mut all {
            Some(all) => {
                all.push_str(", ");
                all.push_str(&value);
            }
            None => all = Some(value.into_owned()),
        }
    }
    all
}

/// Returns true if a comma-separated header contains a token, ignoring case.
fn has_token(headers: &[Header<'_>], name: &str, token: &str) -> bool {
    headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).any(|header| {
        header
            .value
            .split(|&byte| byte == b',')
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /any/path?x=1 HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\n\r\n";

    fn refused(request: &str) -> (&'static str, String) {
        match parse_request(request.as_bytes(), 16 << 10) {
            Parsed::Refused(refusal) => (refusal.status(), refusal.body),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_handshake_of_the_rfc_is_answered_as_there() {
        let Parsed::Upgrade(upgrade) = parse_request(GOOD.as_bytes(), 16 << 10) else { panic!() };
        assert_eq!(upgrade.head_len, GOOD.len());
        let mut out = Vec::new();
        upgrade.write_accept(None, &mut out);
        let answer = String::from_utf8(out).unwrap();
        assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    }

    #[test]
    fn every_part_of_the_head_is_awaited() {
        for len in 0..GOOD.len() {
            let parsed = parse_request(&GOOD.as_bytes()[..len], 16 << 10);
            assert!(matches!(parsed, Parsed::Incomplete), "{len}: {parsed:?}");
        }
    }

    #[test]
    fn a_refusal_names_what_is_wrong() {
        for (find, replace, status, words) in [
            ("GET", "POST", "405", "not POST"),
            ("HTTP/1.1", "HTTP/1.0", "400", "HTTP/1.1"),
            ("Host: a\r\n", "", "400", "Host"),
            ("Upgrade: WebSocket\r\n", "", "426", "Upgrade: websocket"),
            ("keep-alive, Upgrade", "keep-alive", "400", "Connection: Upgrade"),
            ("Version: 13", "Version: 8", "426", "is 8"),
            ("Sec-WebSocket-Version: 13\r\n", "", "426", "is missing"),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", "400", "Key header"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", "400", "16 bytes"),
            ("GET", "\x16\x03\x01", "400", "plain HTTP"),
            ("GET ", "G\u{e9}T ", "400", "not an HTTP/1.1 request"),
        ] {
            let words = words.replace("Key header", "Sec-WebSocket-Key is missing");
            let (got, body) = refused(&GOOD.replace(find, replace));
            assert_eq!(got, status, "{find} -> {replace}: {body}");
            assert!(body.contains(&words), "{find} -> {replace}: {body}");
        }
    }

    #[test]
    fn too_many_bytes_or_headers_are_431() {
        let long = GOOD.replace("Host: a", &format!("Host: {}", "a".repeat(20_000)));
        assert_eq!(refused(&long).0, "431");
        let many = GOOD.replace("Host: a", &format!("Host: a{}", "\r\nX: y".repeat(70)));
        assert_eq!(refused(&many).0, "431");
    }

    #[test]
    fn a_request_without_websocket_headers_is_plain_http() {
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /x HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        ] {
            assert!(matches!(parse_request(request.as_bytes(), 1 << 14), Parsed::Http(_)));
        }
    }
}
