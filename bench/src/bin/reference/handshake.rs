//! The opening handshake (RFC 6455 section 4.2), for correct clients.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

const MAX_HEADERS: usize = 32;
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Result of parsing a request.
pub(crate) enum Handshake {
    /// The request is incomplete.
    Incomplete,
    /// Not a WebSocket handshake.
    Refused,
    /// The request took this many bytes; its response was appended.
    Accepted(usize),
}

/// Parses the request in `input` and appends the response to `out`.
pub(crate) fn answer(input: &[u8], out: &mut Vec<u8>) -> Handshake {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let taken = match request.parse(input) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) => return Handshake::Incomplete,
        Err(_) => return Handshake::Refused,
    };
    let key = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("sec-websocket-key"));
    let Some(key) = key else { return Handshake::Refused };
    append_acceptance(key.value, out);
    Handshake::Accepted(taken)
}

fn append_acceptance(key: &[u8], out: &mut Vec<u8>) {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    // 20 bytes of digest become 28 characters.
    let mut accept = [0; 28];
    let length = STANDARD.encode_slice(digest, &mut accept).unwrap_or_default();
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\n\
          Upgrade: websocket\r\n\
          Connection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&accept[..length]);
    out.extend_from_slice(b"\r\n\r\n");
}
