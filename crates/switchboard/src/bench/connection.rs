//! A connection of a load: the opening handshake, then messages, by the WebSocket codec in the
//! client's role.

use std::io::{self, ErrorKind, Read};

use anyhow::{Context, bail, ensure};
use mio::{Registry, Token};
use switchboard_proto::v1::{SUBPROTOCOL, ServerEvent, parse_server};

use super::wire::{Dialer, Wire, write_out};
use crate::ws::{Decoder, Event, Opcode, Role, write_client_frame};

/// The key and its acceptance are RFC 6455's own example (section 1.3): with one key for all
/// devices, the response is checked by a comparison.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPTANCE: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const READ_BYTES: usize = 8 * 1024;
/// The codec's maximum: received messages are those that were sent, whose size is bounded there.
const MESSAGE_BYTES_MAX: usize = u32::MAX as usize;

/// The mask of every frame, so that a message is prepared once and copied often. This violates
/// RFC 6455 section 5.3 (keys must not be predictable), a rule that protects users of browsers
/// from web pages; a load generator has neither.
pub(super) const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A device's connection, with everything that is not yet completely read or written.
pub struct Connection {
    wire: Wire,
    /// Received part of the handshake response, while it is incomplete.
    head: Option<Vec<u8>>,
    decoder: Decoder,
    /// Bytes that still have to be written.
    pub(super) out: Vec<u8>,
}

impl Connection {
    /// Queues the request of the opening handshake; for v1 also the hello.
    pub fn new(wire: Wire, hello: Option<&str>) -> Self {
        let subprotocol = match hello {
            Some(_) => format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"),
            None => String::new(),
        };
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{subprotocol}\r\n",
            wire.address()
        );
        let mut out = request.into_bytes();
        if let Some(hello) = hello {
            append_text(&mut out, hello);
        }
        let decoder = Decoder::new(Role::Client, MESSAGE_BYTES_MAX);
        Self { wire, head: Some(Vec::new()), decoder, out }
    }

    /// Connects and waits for the welcome; returns the device's id as well.
    pub(super) fn open(dialer: &mut Dialer, hello: Option<&str>) -> anyhow::Result<(Self, String)> {
        let mut connection = Self::new(dialer.dial()?, hello);
        connection.write().context("cannot send the handshake")?;
        let mut input = vec![0; READ_BYTES];
        let mut id = None;
        while id.is_none() {
            let count = connection.read_once(&mut input, |text, _| {
                id = Some(id_in_greeting(text)?);
                Ok(())
            })?;
            ensure!(count.is_some(), "the server did not greet");
        }
        Ok((connection, id.expect("the loop ended by it")))
    }

    /// Makes the connection non-blocking and registers it under `token`, edge-triggered.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.wire.register(registry, token)
    }

    /// Drops the TLS session and keeps the socket open, all that an idle connection needs.
    pub(super) fn forget_session(&mut self) {
        self.wire.forget_session();
    }

    /// Queues a text frame.
    pub fn say(&mut self, text: &str) {
        append_text(&mut self.out, text);
    }

    /// Writes as much as the socket takes; the rest waits until it is writable.
    pub fn write(&mut self) -> io::Result<()> {
        write_out(&mut self.wire, &mut self.out)
    }

    /// Reads until the socket has no more, answers pings and calls `on_text` for each text with
    /// the output buffer, to which it may append an answer.
    pub fn read(
        &mut self,
        input: &mut [u8],
        mut on_text: impl FnMut(&[u8], &mut Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while let Some(count) = self.read_once(input, &mut on_text)? {
            // A refusal and the end of the stream after it are one event, and the end must not
            // be missed.
            if self.head.is_none() && self.wire.is_dry(count, input.len()) {
                break;
            }
        }
        Ok(())
    }

    /// Returns the number of bytes read; `None` if there are none yet.
    fn read_once(
        &mut self,
        input: &mut [u8],
        on_text: impl FnMut(&[u8], &mut Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<usize>> {
        let count = loop {
            match self.wire.read(input) {
                Ok(count) => break count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a connection broke"),
            }
        };
        if count == 0 {
            let head = self.head.take().unwrap_or_default();
            bail!("the server hung up: {}", String::from_utf8_lossy(&head));
        }
        match &mut self.head {
            None => self.take_in(&mut input[..count], on_text)?,
            Some(head) => {
                head.extend_from_slice(&input[..count]);
                if let Some(mut rest) = rest_behind_head(head)? {
                    self.head = None;
                    self.take_in(&mut rest, on_text)?;
                }
            }
        }
        Ok(Some(count))
    }

    fn take_in(
        &mut self,
        mut input: &mut [u8],
        mut on_text: impl FnMut(&[u8], &mut Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while !input.is_empty() {
            let decoded = self.decoder.decode(input).context("the server broke a rule")?;
            let consumed = decoded.consumed;
            match decoded.event {
                Some(Event::Text(text)) => on_text(&text, &mut self.out)?,
                Some(Event::Ping(payload)) => {
                    write_client_frame(&mut self.out, Opcode::Pong, &payload, MASK);
                    write_out(&mut self.wire, &mut self.out)?;
                }
                Some(Event::Close(frame)) => match frame {
                    Some(frame) => {
                        bail!("the server closed a connection: {} {}", frame.code.0, frame.reason)
                    }
                    None => bail!("the server closed a connection: no code"),
                },
                Some(Event::Binary(_) | Event::Compressed { .. }) => {
                    bail!("the server sent no text")
                }
                Some(Event::Pong(_) | Event::EmptyFragment) | None => {}
            }
            input = &mut input[consumed..];
        }
        Ok(())
    }
}

/// Appends a text frame.
pub fn append_text(out: &mut Vec<u8>, text: &str) {
    write_client_frame(out, Opcode::Text, text.as_bytes(), MASK);
}

/// Returns the bytes after the handshake response; `None` while that is incomplete.
fn rest_behind_head(received: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let mut windows = received.windows(END_OF_HEAD.len());
    let Some(end) = windows.position(|window| window == END_OF_HEAD) else { return Ok(None) };
    let (head, rest) = received.split_at(end + END_OF_HEAD.len());
    let head = String::from_utf8_lossy(head);
    if !head.starts_with("HTTP/1.1 101 ") || !head.contains(ACCEPTANCE) {
        bail!("the server refused the handshake: {}", head.trim_end());
    }
    Ok(Some(rest.to_vec()))
}

/// Returns the device's id from the first text, in either protocol.
pub(super) fn id_in_greeting(text: &[u8]) -> anyhow::Result<String> {
    if let Ok(ServerEvent::Welcome(welcome)) = parse_server(text) {
        return Ok(welcome.device);
    }
    let text = String::from_utf8_lossy(text);
    let id = text.lines().next().and_then(|line| line.strip_prefix("Your ID: "));
    id.map(str::to_owned).with_context(|| format!("no id in the greeting: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_start_behind_the_whole_answer_to_the_own_key() {
        let head = format!("HTTP/1.1 101 X\r\nSec-WebSocket-Accept: {ACCEPTANCE}\r\n\r\n");
        let bytes = [head.as_bytes(), b"frames"].concat();
        for end in 0..head.len() {
            assert_eq!(rest_behind_head(&bytes[..end]).unwrap(), None);
        }
        assert_eq!(rest_behind_head(&bytes).unwrap().as_deref(), Some(&b"frames"[..]));
        assert!(rest_behind_head(head.replace(ACCEPTANCE, "AAAA").as_bytes()).is_err());
    }
}
