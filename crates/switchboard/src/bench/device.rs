//! Opening a WebSocket and learning the id that the server gave it.

use std::io::{Read, Write};
use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use switchboard_proto::v1::{SUBPROTOCOL, ServerEvent, parse_server};

use super::frame;
use super::wire::{Dialer, Wire};

/// The key and its acceptance are RFC 6455's own example (section 1.3): one key for all devices
/// makes the check of the answer a comparison.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPTANCE: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const READ_BYTES: usize = 8 * 1024;

/// An open WebSocket.
pub(super) struct Device {
    pub(super) id: u32,
    pub(super) wire: Wire,
}

impl Device {
    /// Connects and waits for the welcome.
    pub(super) fn open(dialer: &mut Dialer) -> anyhow::Result<Self> {
        let mut wire = request_upgrade(dialer)?;
        let mut greeting = Greeting::default();
        loop {
            if let Some(id) = greeting.read(&mut wire)? {
                return Ok(Self { id, wire });
            }
        }
    }
}

/// Connects and sends the request of the opening handshake.
pub(super) fn request_upgrade(dialer: &mut Dialer) -> anyhow::Result<Wire> {
    let mut wire = dialer.dial()?;
    wire.write_all(request(dialer.address()).as_bytes()).context("cannot send the handshake")?;
    wire.flush()?;
    Ok(wire)
}

/// As [`request_upgrade`], for v1, and says hello as a new device.
pub(super) fn request_upgrade_v1(dialer: &mut Dialer) -> anyhow::Result<Wire> {
    let mut wire = dialer.dial()?;
    let mut request = request(dialer.address());
    request.truncate(request.len() - 2);
    request += &format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n");
    let hello = frame::encode(frame::TEXT, b"{\"type\":\"hello\"}").0;
    wire.write_all(&[request.as_bytes(), &hello].concat()).context("cannot send the handshake")?;
    wire.flush()?;
    Ok(wire)
}

/// Waits for the welcome of v1; gives the device's id.
pub(super) fn read_welcome(wire: &mut Wire) -> anyhow::Result<String> {
    let (mut received, mut chunk) = (Vec::new(), [0; READ_BYTES]);
    loop {
        let count = wire.read(&mut chunk).context("the server did not greet")?;
        ensure!(count > 0, "the server hung up: {}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&chunk[..count]);
        let mut windows = received.windows(END_OF_HEAD.len());
        let Some(end) = windows.position(|window| window == END_OF_HEAD) else { continue };
        let (head, rest) = received.split_at(end + END_OF_HEAD.len());
        check_answer(head)?;
        if let Some(frame) = frame::decode(rest)? {
            return match parse_server(frame.payload) {
                Ok(ServerEvent::Welcome(welcome)) => Ok(welcome.device),
                _ => bail!("no welcome: {}", String::from_utf8_lossy(frame.payload)),
            };
        }
    }
}

fn request(host: SocketAddr) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// What came of the answer to the handshake and of the welcome.
#[derive(Default)]
pub(super) struct Greeting {
    received: Vec<u8>,
}

impl Greeting {
    /// Reads once; the id when the welcome is whole.
    pub(super) fn read(&mut self, wire: &mut Wire) -> anyhow::Result<Option<u32>> {
        let mut chunk = [0; READ_BYTES];
        let count = wire.read(&mut chunk).context("the server did not greet")?;
        ensure!(count > 0, "the server hung up: {}", String::from_utf8_lossy(&self.received));
        self.received.extend_from_slice(&chunk[..count]);
        self.parse()
    }

    fn parse(&self) -> anyhow::Result<Option<u32>> {
        let mut windows = self.received.windows(END_OF_HEAD.len());
        let Some(end) = windows.position(|window| window == END_OF_HEAD) else { return Ok(None) };
        let (head, rest) = self.received.split_at(end + END_OF_HEAD.len());
        check_answer(head)?;
        let Some(frame) = frame::decode(rest)? else { return Ok(None) };
        parse_welcome(frame.payload).map(Some)
    }
}

fn check_answer(head: &[u8]) -> anyhow::Result<()> {
    let head = String::from_utf8_lossy(head);
    if !head.starts_with("HTTP/1.1 101 ") || !head.contains(ACCEPTANCE) {
        bail!("the server refused the handshake: {}", head.trim_end());
    }
    Ok(())
}

fn parse_welcome(payload: &[u8]) -> anyhow::Result<u32> {
    let text = String::from_utf8_lossy(payload);
    let line = text.lines().next().and_then(|line| line.strip_prefix("Your ID: "));
    line.and_then(|id| id.parse().ok()).with_context(|| format!("no id in the welcome: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(acceptance: &str) -> Vec<u8> {
        let welcome = "Your ID: 100000007\nConnected Devices: \n[100000007]";
        let head = format!("HTTP/1.1 101 X\r\nSec-WebSocket-Accept: {acceptance}\r\n\r\n");
        [head.as_bytes(), &[0x81, welcome.len() as u8], welcome.as_bytes()].concat()
    }

    #[test]
    fn the_id_is_known_once_the_welcome_is_whole() {
        let bytes = greeting(ACCEPTANCE);
        for end in 0..bytes.len() {
            let part = Greeting { received: bytes[..end].to_vec() };
            assert_eq!(part.parse().unwrap(), None);
        }
        assert_eq!(Greeting { received: bytes }.parse().unwrap(), Some(100_000_007));
    }

    #[test]
    fn an_answer_to_another_key_is_refused() {
        assert!(Greeting { received: greeting("AAAA") }.parse().is_err());
    }
}
