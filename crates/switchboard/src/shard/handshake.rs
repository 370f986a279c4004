//! The start of a connection: PROXY header, TLS, request head, and the answer to it.

use std::mem;
use std::net::IpAddr;
use std::time::Duration;

use mio::Interest;
use mio::net::UnixStream;
use ppp::{HeaderResult, PartialResult, v1, v2};
use switchboard_broker::{Conn as BrokerConn, Input};
use switchboard_proto::v1::SUBPROTOCOL;

use super::admission::Permit;
use super::budget::Pause;
use super::conn::{Compression, Conn, Key, Phase, Protocol, ReadPause};
use super::mailboxes::HELLO_MAX_BYTES;
use super::pipe::Pipe;
use super::ports::Ports;
use super::{PIPE_BIT, Shard};
use crate::config::Auth;
use crate::metrics::refused_index;
use crate::ws::{Deflate, Parsed, Refusal, Upgrade, parse_request};

/// Time for the HTTP server to answer one request, after which it closes the connection.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// An HTTP request that asks for no WebSocket, for the HTTP server: its socket, and the bytes that
/// were read already.
#[derive(Debug)]
pub(crate) struct HttpConn {
    pub(crate) socket: HttpSocket,
    pub(crate) head: Vec<u8>,
    /// Kept while the socket is open. The permit of a TLS connection stays with its shard.
    pub(crate) permit: Option<Permit>,
}

/// Socket for the rest of the request, and for the answer.
#[derive(Debug)]
pub(crate) enum HttpSocket {
    /// The client itself.
    Tcp(std::net::TcpStream),
    /// The shard, which does the TLS.
    Pipe(std::os::unix::net::UnixStream),
}

/// Error if the HTTP server has as many requests as it takes, or there is no descriptor for a pipe.
#[derive(Debug)]
struct NoRoom;

/// Result of reading a PROXY protocol header; `len` is its length.
enum ProxyHeader {
    None,
    Incomplete,
    From { client: Option<IpAddr>, len: usize },
    Broken(String),
}

impl Shard {
    /// Goes on with the handshake now that `bytes` have come.
    pub(super) fn handshake(&mut self, key: Key, bytes: &mut [u8]) {
        let Some(conn) = self.ports.conn(key) else { return };
        if conn.unread.is_empty() {
            return self.begin(key, bytes);
        }
        let mut all = mem::take(&mut conn.unread);
        all.extend_from_slice(bytes);
        self.begin(key, &mut all);
    }

    /// Reads all bytes that have come so far; keeps them if they are not enough.
    fn begin(&mut self, key: Key, bytes: &mut [u8]) {
        let skip = match self.proxy_header(key, bytes) {
            Ok(Some(len)) => len,
            Ok(None) => return self.keep(key, bytes),
            Err(refusal) => return self.refuse(key, &refusal),
        };
        let bytes = &mut bytes[skip..];
        if let Some(mut plain) = self.begin_tls(key, bytes) {
            if !plain.is_empty() {
                self.begin(key, &mut plain);
            }
            return;
        }
        match parse_request(bytes, self.config.handshake_max_bytes) {
            Parsed::Incomplete => self.keep(key, bytes),
            Parsed::Refused(refusal) => self.refuse(key, &refusal),
            Parsed::Http(request) => match self.shared.health.answer(&request) {
                Some(answer) => self.answer_probe(key, &answer),
                None => self.pass_to_http(key, bytes),
            },
            Parsed::Upgrade(mut upgrade) => match self.check(key, &mut upgrade) {
                Ok(()) => self.welcome(key, &upgrade, bytes),
                Err(refusal) => self.refuse(key, &refusal),
            },
        }
    }

    /// Starts the TLS that follows a PROXY header; returns the plaintext of the bytes behind
    /// the header, or `None` if they are not encrypted, or decrypted already.
    fn begin_tls(&mut self, key: Key, cipher: &[u8]) -> Option<Vec<u8>> {
        if self.shared.tls.is_none() || self.ports.conn(key)?.tls.is_some() {
            return None;
        }
        let session = self.new_session();
        let conn = self.ports.conn(key)?;
        conn.tls = session;
        let mut plain = vec![0; cipher.len()];
        let opened = conn.tls.as_mut()?.open(cipher, &mut plain);
        self.ports.mark_dirty(key);
        match opened {
            Ok(opened) => plain.truncate(opened.len),
            Err(error) => {
                self.read_failed(key, &error);
                plain.clear();
            }
        }
        Some(plain)
    }

    fn keep(&mut self, key: Key, bytes: &[u8]) {
        if let Some(conn) = self.ports.conn(key) {
            conn.unread = bytes.to_vec();
        }
    }

    /// Reads the PROXY header of a trusted proxy; returns its length, or `None` while it is
    /// incomplete.
    fn proxy_header(&mut self, key: Key, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        let Some(conn) = self.ports.conn(key) else { return Ok(Some(0)) };
        let Phase::Handshake { awaits_proxy_header, .. } = &mut conn.phase else {
            return Ok(Some(0));
        };
        if !*awaits_proxy_header {
            return Ok(Some(0));
        }
        let (client, len) = match read_proxy_header(bytes) {
            ProxyHeader::Incomplete => return Ok(None),
            ProxyHeader::None => (None, 0),
            ProxyHeader::From { client, len } => (client, len),
            ProxyHeader::Broken(why) => {
                return Err(Refusal::bad_request(format!("The PROXY header is broken: {why}.")));
            }
        };
        *awaits_proxy_header = false;
        if let Some(client) = client {
            conn.permit.speaks_for(client);
        }
        Ok(Some(len))
    }

    /// Checks the request beyond RFC 6455: origin and bounds on connections; negotiates
    /// compression.
    fn check(&mut self, key: Key, upgrade: &mut Upgrade) -> Result<(), Refusal> {
        if self.drain.is_some() {
            return Err(Refusal::busy("This server is going down."));
        }
        let config = std::sync::Arc::clone(&self.config);
        let origin = upgrade.request.origin.as_deref();
        let allowed = &config.allowed_origins;
        if !allowed.is_empty()
            && !origin.is_some_and(|origin| allowed.iter().any(|one| one == origin))
        {
            return Err(Refusal::origin(origin));
        }
        let Some(conn) = self.ports.conn(key) else { return Ok(()) };
        if conn.permit.is_over() {
            return Err(Refusal::busy("This server holds as many connections as it may."));
        }
        // Before it is counted, so that it counts for its client and not for the proxy.
        conn.permit.follow_forwarded(&upgrade.request);
        if conn.permit.count().is_err() {
            let address = conn.permit.address();
            return Err(Refusal::busy(format!("{address} has as many connections as it may.")));
        }
        if config.compression {
            let takeover = config.compression_context_takeover;
            if let Some(negotiated) = upgrade.negotiate_deflate(takeover) {
                conn.decoder.allow_deflate();
                conn.deflate = Some(Box::new(if negotiated.is_shareable() {
                    Compression::Shared
                } else {
                    Compression::Own(Box::new(Deflate::new(negotiated)))
                }));
            }
        }
        Ok(())
    }

    /// Accepts the handshake.
    fn welcome(&mut self, key: Key, upgrade: &Upgrade, bytes: &mut [u8]) {
        let now = self.ports.now;
        let is_v1 = upgrade.request.offers(SUBPROTOCOL);
        let token = upgrade.request.bearer_token();
        // Before the answer: afterwards a client could be told only by a close frame.
        if let Some(refusal) = self.text_refusal(is_v1, token) {
            return self.refuse(key, &refusal);
        }
        let conn = &mut self.ports.conns[key.index as usize];
        let subprotocol = is_v1.then_some(SUBPROTOCOL);
        upgrade.write_accept(subprotocol, conn.out.buffer(&mut self.ports.spares));
        conn.phase = Phase::Open;
        conn.full_since = now;
        if is_v1 {
            conn.protocol = Protocol::Hello;
            let max = self.config.max_message_bytes.min(HELLO_MAX_BYTES);
            conn.decoder.set_max_message_bytes(max);
        }
        self.ports.mark_dirty(key);
        self.ports.metrics.connections.add(1);
        match token {
            // The first frame will say which device it is.
            _ if is_v1 => {}
            Some(token) => {
                if let Err(refused) = self.text_with_token(key, token) {
                    return self.close(key, refused.code, &refused.reason);
                }
            }
            None => self.connect_anonymous(key),
        }
        if self.ports.leaving.is_some() {
            return self.forward_leaving(&bytes[upgrade.head_len..]);
        }
        // Usually this adds no entry: the handshake's entry fires before the first ping is due.
        self.schedule_next(key);
        self.frames(key, &mut bytes[upgrade.head_len..]);
    }

    /// Returns the refusal for a device of the text protocol that may not come in now.
    fn text_refusal(&self, is_v1: bool, token: Option<&str>) -> Option<Refusal> {
        if is_v1 {
            return None;
        }
        if token.is_some() {
            let is_full = self.ports.pause == Pause::All;
            return is_full.then(|| Refusal::busy("The store can take no more for now."));
        }
        if self.config.auth == Auth::Token {
            return Some(Refusal::unauthorized());
        }
        (!self.may_give_id()).then(|| Refusal::busy("No new ids can be reserved on disk for now."))
    }

    /// Makes a new device of the text protocol, which lives as long as its connection.
    fn connect_anonymous(&mut self, key: Key) {
        let id = BrokerConn(key.index);
        self.decide(Input::Connected(id));
        if let Some(device) = self.broker.device(id) {
            let peer = self.ports.conns[key.index as usize].permit.address();
            tracing::debug!(%device, %peer, "device connected");
        }
    }

    /// Answers with an HTTP error and closes.
    pub(super) fn refuse(&mut self, key: Key, refusal: &Refusal) {
        self.ports.metrics.refused.at(refused_index(refusal.status())).add(1);
        let Some(conn) = self.ports.conns.get_mut(key.index as usize) else { return };
        let peer = conn.permit.address();
        tracing::debug!(%peer, status = refusal.status(), "handshake refused");
        refusal.write(conn.out.buffer(&mut self.ports.spares));
        self.begin_closing(key);
    }

    fn answer_probe(&mut self, key: Key, answer: &str) {
        let Some(conn) = self.ports.conns.get_mut(key.index as usize) else { return };
        conn.out.buffer(&mut self.ports.spares).extend_from_slice(answer.as_bytes());
        self.begin_closing(key);
    }

    /// Passes a request that asks for no WebSocket to the HTTP server.
    fn pass_to_http(&mut self, key: Key, head: &[u8]) {
        let passed = match self.ports.conns[key.index as usize].tls {
            Some(_) => self.pass_through_pipe(key, head),
            None => self.pass_socket(key, head),
        };
        if passed.is_err() {
            self.refuse(key, &Refusal::busy("Too many HTTP requests are being served."));
        }
    }

    fn pass_socket(&mut self, key: Key, head: &[u8]) -> Result<(), NoRoom> {
        // The place is reserved first: a socket that left the shard could not be answered here.
        let place = self.shared.http.try_reserve().map_err(|_| NoRoom)?;
        let Conn { mut socket, permit, .. } = self.ports.conns.remove(key.index as usize);
        if self.poll.registry().deregister(&mut socket).is_ok() {
            let socket = HttpSocket::Tcp(socket.into());
            place.send(HttpConn { socket, head: head.to_vec(), permit: Some(permit) });
        }
        Ok(())
    }

    fn pass_through_pipe(&mut self, key: Key, head: &[u8]) -> Result<(), NoRoom> {
        let place = self.shared.http.try_reserve().map_err(|_| NoRoom)?;
        let (mut ours, theirs) = UnixStream::pair().map_err(|_| NoRoom)?;
        let token = mio::Token(Ports::token(key).0 | PIPE_BIT);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut ours, token, interest).map_err(|_| NoRoom)?;
        let socket = HttpSocket::Pipe(theirs.into());
        place.send(HttpConn { socket, head: head.to_vec(), permit: None });
        // The HTTP server gives up earlier; this ends a client that does not read the answer.
        let deadline = self.ports.now.after(2 * REQUEST_TIMEOUT);
        if let Some(conn) = self.ports.conn(key) {
            conn.phase = Phase::Piping(Box::new(Pipe::new(ours, deadline)));
        }
        self.ports.schedule(key, deadline);
        Ok(())
    }

    /// Pumps more of the request to the HTTP server; bytes that the pipe does not take wait,
    /// and those that come behind the answer are dropped.
    pub(super) fn pump_request(&mut self, key: Key, bytes: &[u8]) {
        let Some(conn) = self.ports.conn(key) else { return };
        let Phase::Piping(pipe) = &mut conn.phase else { return };
        match pipe.pass(bytes) {
            Ok(passed) if passed == bytes.len() => {}
            Ok(passed) => {
                conn.unread.extend_from_slice(&bytes[passed..]);
                self.ports.pause_reading(key, ReadPause::HttpPipe);
            }
            // The HTTP server takes no more of the request. Its answer may still be in the
            // pipe, so that is read to its end, which closes the connection.
            Err(_) => pipe.became_readable(),
        }
    }

    /// Pumps the HTTP server's answer to the client.
    pub(super) fn pump_answer(&mut self, key: Key) {
        let Some(conn) = self.ports.conns.get_mut(key.index as usize) else { return };
        if conn.generation != key.generation {
            return;
        }
        let Phase::Piping(pipe) = &mut conn.phase else { return };
        match pipe.take(&mut conn.out, &mut self.ports.spares) {
            Ok(false) if conn.out.is_empty() => {}
            Ok(false) => self.ports.mark_dirty(key),
            Ok(true) | Err(_) => self.begin_closing(key),
        }
    }
}

/// Longest header of version 1, with its CRLF (section 2.1).
const V1_LEN_MAX: usize = 107;

/// Reads a PROXY protocol header, version 1 or 2 (haproxy's proxy-protocol.txt).
fn read_proxy_header(bytes: &[u8]) -> ProxyHeader {
    let begins = |prefix: &[u8]| {
        let len = bytes.len().min(prefix.len());
        bytes[..len] == prefix[..len]
    };
    if !begins(v1::PROTOCOL_PREFIX.as_bytes()) && !begins(v2::PROTOCOL_PREFIX) {
        return ProxyHeader::None;
    }
    let is_line = begins(v1::PROTOCOL_PREFIX.as_bytes());
    if is_line && bytes.len() < V1_LEN_MAX && !bytes.windows(2).any(|pair| pair == b"\r\n") {
        return ProxyHeader::Incomplete;
    }
    let header = HeaderResult::parse(bytes);
    // The parser calls a line with too few words incomplete, whatever follows it.
    if header.is_incomplete() && !is_line {
        return ProxyHeader::Incomplete;
    }
    match header {
        HeaderResult::V1(Ok(header)) => {
            let client = match header.addresses {
                v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
                v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
                v1::Addresses::Unknown => None,
            };
            ProxyHeader::From { client, len: header.header.len() }
        }
        HeaderResult::V2(Ok(header)) => {
            let client = match header.addresses {
                // The proxy speaks for itself; the addresses are to be ignored (section 2.2).
                _ if header.command == v2::Command::Local => None,
                v2::Addresses::IPv4(addresses) => Some(addresses.source_address.into()),
                v2::Addresses::IPv6(addresses) => Some(addresses.source_address.into()),
                _ => None,
            };
            ProxyHeader::From { client, len: header.len() }
        }
        HeaderResult::V1(Err(error)) => ProxyHeader::Broken(error.to_string()),
        HeaderResult::V2(Err(error)) => ProxyHeader::Broken(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &[u8] = b"PROXY TCP4 1.2.3.4 127.0.0.1 12345 8080\r\n";
    const V2: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\x01\x02\x03\x04\x7F\0\0\x01\x30\x39\x1F\x90";

    #[test]
    fn every_part_of_a_proxy_header_is_awaited() {
        for header in [V1, V2] {
            for len in 1..header.len() {
                let read = read_proxy_header(&header[..len]);
                assert!(matches!(read, ProxyHeader::Incomplete), "{len} of {header:?}");
            }
            for rest in [&b""[..], b"GET / HTTP/1.1\r\n\r\n"] {
                let read = read_proxy_header(&[header, rest].concat());
                let ProxyHeader::From { client, len } = read else { panic!("{header:?}") };
                assert_eq!((client, len), (Some([1, 2, 3, 4].into()), header.len()));
            }
        }
    }
}
