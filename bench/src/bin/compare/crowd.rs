//! Many v1 devices on one thread: they come, keep what names them, leave, and come back for what
//! waits.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use switchboard_proto::v1::{SUBPROTOCOL, ServerEvent, WelcomeEvent, parse_server};

use crate::server::Server;

/// A server that says nothing to anybody for this long has stopped.
const STALL: Duration = Duration::from_secs(30);
/// New devices that knock at the same time.
const AT_ONCE: usize = 128;
/// Devices that fill the mailboxes, and messages of each that are not accepted. More than one: the
/// server remembers a bounded number of ids of each.
const SENDERS: usize = 64;
const WINDOW: u64 = 64;
const PAYLOAD: &str = "a message of two hundred and fifty-six bytes ";
const PAYLOAD_BYTES: usize = 254;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const TEXT: u8 = 0x1;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// The devices.
pub(crate) struct Crowd {
    address: SocketAddr,
    poll: Poll,
    pub(crate) members: Vec<Member>,
    chunk: Vec<u8>,
}

/// A device and what it knows.
#[derive(Default)]
pub(crate) struct Member {
    link: Option<Link>,
    device: String,
    token: String,
    mailbox: String,
    last_seq: u64,
    /// Welcomes since it last came.
    greeted: bool,
    /// Messages since it last came.
    received: u64,
    sent: u64,
    accepted: u64,
}

/// A connection.
struct Link {
    socket: TcpStream,
    is_open: bool,
    rest: Vec<u8>,
    out: Vec<u8>,
}

impl Crowd {
    /// Nobody yet.
    pub(crate) fn new(server: &Server) -> anyhow::Result<Self> {
        let address = server.target().address;
        Ok(Self { address, poll: Poll::new()?, members: Vec::new(), chunk: vec![0; 64 << 10] })
    }

    /// From now on the devices go to another server.
    pub(crate) fn move_to(&mut self, server: &Server) {
        self.leave();
        self.address = server.target().address;
    }

    /// New devices until there are `count`; they stay.
    pub(crate) fn grow_to(&mut self, count: usize) -> anyhow::Result<()> {
        while self.members.len() < count {
            let first = self.members.len();
            let end = count.min(first + AT_ONCE);
            self.members.resize_with(end, Member::default);
            for at in first..end {
                self.connect(at)?;
            }
            self.until(|crowd| crowd.members[first..end].iter().all(|member| member.greeted))?;
        }
        Ok(())
    }

    /// Cuts all connections, without a word.
    pub(crate) fn leave(&mut self) {
        self.members.iter_mut().for_each(Member::leave);
    }

    /// All of these at once; returns when each has got its messages, and says how long it took.
    pub(crate) fn come_back(
        &mut self,
        which: impl Iterator<Item = usize> + Clone,
        waiting: u64,
    ) -> anyhow::Result<Duration> {
        let start = Instant::now();
        for at in which.clone() {
            self.connect(at)?;
        }
        let is_served = |member: &Member| member.greeted && member.received == waiting;
        self.until(|crowd| which.clone().all(|at| is_served(&crowd.members[at])))?;
        Ok(start.elapsed())
    }

    /// New devices send `each` messages to all that are there, and leave.
    pub(crate) fn fill(&mut self, each: u64) -> anyhow::Result<()> {
        let receivers = self.members.len();
        let total = each * receivers as u64;
        let body: String = PAYLOAD.chars().cycle().take(PAYLOAD_BYTES).collect();
        self.grow_to(receivers + SENDERS)?;
        let mut accepted = 0;
        while accepted < total {
            for sender in 0..SENDERS {
                let at = receivers + sender;
                while self.members[at].sent < self.members[at].accepted + WINDOW {
                    let number = self.members[at].sent as usize * SENDERS + sender;
                    if number as u64 >= total {
                        break;
                    }
                    let to = &self.members[number % receivers].device;
                    let text = format!(
                        r#"{{"type":"send","id":"{number:x}","to":"{to}","body":"{body}"}}"#
                    );
                    self.members[at].say(&text);
                    self.members[at].sent += 1;
                }
                self.members[at].write()?;
            }
            let count = |crowd: &Self| crowd.members[receivers..].iter().map(|m| m.accepted).sum();
            self.until(|crowd| count(crowd) > accepted)?;
            accepted = count(self);
        }
        self.members.truncate(receivers);
        Ok(())
    }

    fn connect(&mut self, at: usize) -> anyhow::Result<()> {
        let mut socket = TcpStream::connect(self.address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(at), interest)?;
        // Closing with a reset leaves no port in TIME_WAIT, of which the next would be short.
        rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        self.members[at].begin(socket, self.address);
        Ok(())
    }

    fn until(&mut self, is_over: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let mut last = Instant::now();
        let mut events = Events::with_capacity(4_096);
        while !is_over(self) {
            match self.poll.poll(&mut events, Some(Duration::from_secs(1))) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            for event in &events {
                let Token(at) = event.token();
                let Some(member) = self.members.get_mut(at) else { continue };
                member.write()?;
                member.read(&mut self.chunk)?;
                last = Instant::now();
            }
            ensure!(last.elapsed() < STALL, "nobody heard anything for {STALL:?}");
        }
        Ok(())
    }
}

impl Member {
    fn leave(&mut self) {
        self.link = None;
    }

    /// Opens a connection and says hello, as the device that it is or as a new one.
    fn begin(&mut self, socket: TcpStream, address: SocketAddr) {
        // The key is RFC 6455's own example (section 1.3).
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
        );
        let out = request.into_bytes();
        self.link = Some(Link { socket, is_open: false, rest: Vec::new(), out });
        (self.greeted, self.received) = (false, 0);
        let hello = if self.token.is_empty() {
            r#"{"type":"hello"}"#.to_owned()
        } else {
            let Self { token, mailbox, last_seq, .. } = self;
            format!(
                r#"{{"type":"hello","token":"{token}","mailbox":"{mailbox}","last_seq":{last_seq}}}"#
            )
        };
        self.say(&hello);
    }

    fn say(&mut self, text: &str) {
        if let Some(link) = &mut self.link {
            link.say(TEXT, text.as_bytes());
        }
    }

    fn write(&mut self) -> anyhow::Result<()> {
        self.link.as_mut().map_or(Ok(()), Link::write)
    }

    fn read(&mut self, chunk: &mut [u8]) -> anyhow::Result<()> {
        // Away from its place meanwhile, so that what is heard can change the member.
        let Some(mut link) = self.link.take() else { return Ok(()) };
        let read = link.read(chunk, &mut |link, text| self.hear(link, text));
        read.with_context(|| format!("device {}", self.device))?;
        link.write()?;
        self.link = Some(link);
        Ok(())
    }

    fn hear(&mut self, link: &mut Link, text: &[u8]) -> anyhow::Result<()> {
        match parse_server(text)? {
            ServerEvent::Welcome(welcome) => self.greet(welcome),
            ServerEvent::Accepted { duplicate: false, .. } => {
                self.accepted += 1;
                Ok(())
            }
            ServerEvent::Message { seq, body, .. } => {
                ensure!(seq > self.last_seq, "seq {seq} after {}", self.last_seq);
                ensure!(body.len() == PAYLOAD_BYTES + 2, "it has {} bytes", body.len());
                (self.last_seq, self.received) = (seq, self.received + 1);
                link.say(TEXT, format!(r#"{{"type":"ack","seq":{seq}}}"#).as_bytes());
                Ok(())
            }
            _ => bail!("the server said {}", String::from_utf8_lossy(text)),
        }
    }

    fn greet(&mut self, welcome: WelcomeEvent) -> anyhow::Result<()> {
        if self.token.is_empty() {
            self.token = welcome.token.context("a new device is given a token")?;
            (self.device, self.mailbox) = (welcome.device, welcome.mailbox);
        } else {
            let is_same = welcome.device == self.device && welcome.mailbox == self.mailbox;
            ensure!(is_same && welcome.resumed, "it was not resumed");
        }
        self.greeted = true;
        Ok(())
    }
}

impl Link {
    /// Appends a masked frame. Masking with zeros changes nothing, which RFC 6455 forbids (section
    /// 5.3) to protect browsers' users from pages; here are neither.
    fn say(&mut self, opcode: u8, payload: &[u8]) {
        self.out.push(0x80 | opcode);
        if payload.len() < 126 {
            self.out.push(0x80 | payload.len() as u8);
        } else {
            self.out.push(0x80 | 126);
            self.out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        self.out.extend_from_slice(&[0; 4]);
        self.out.extend_from_slice(payload);
    }

    fn write(&mut self) -> anyhow::Result<()> {
        while !self.out.is_empty() {
            match self.socket.write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if is_for_later(&error) => return Ok(()),
                Err(error) => return Err(error).context("cannot write"),
            }
        }
        self.out = Vec::new();
        Ok(())
    }

    /// Reads until nothing is left.
    fn read(
        &mut self,
        chunk: &mut [u8],
        hear: &mut dyn FnMut(&mut Self, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        loop {
            match self.socket.read(chunk) {
                Ok(0) => bail!("the server hung up"),
                Ok(count) => self.rest.extend_from_slice(&chunk[..count]),
                Err(error) if is_for_later(&error) => return Ok(()),
                Err(error) => return Err(error).context("cannot read"),
            }
            let input = std::mem::take(&mut self.rest);
            let taken = self.take_in(&input, hear)?;
            self.rest.extend_from_slice(&input[taken..]);
        }
    }

    /// Tells of each text; gives how many bytes were whole.
    fn take_in(
        &mut self,
        input: &[u8],
        hear: &mut dyn FnMut(&mut Self, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<usize> {
        let mut taken = 0;
        if !self.is_open {
            let Some(end) = memmem::find(input, END_OF_HEAD) else { return Ok(0) };
            let head = String::from_utf8_lossy(&input[..end]);
            ensure!(head.starts_with("HTTP/1.1 101 "), "no WebSocket: {head}");
            self.is_open = true;
            taken = end + END_OF_HEAD.len();
        }
        while let Some((opcode, payload, len)) = frame(&input[taken..]) {
            taken += len;
            match opcode {
                TEXT => hear(self, payload)?,
                PING => self.say(PONG, payload),
                _ => bail!("the server closed: {}", String::from_utf8_lossy(payload)),
            }
        }
        Ok(taken)
    }
}

fn is_for_later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}

/// The frame at the start of `input` and its length; `None` while it is incomplete.
fn frame(input: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (header, length) = match *input.get(1)? {
        126 => (4, usize::from(u16::from_be_bytes(*input.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*input.get(2..)?.first_chunk()?) as usize),
        short => (2, usize::from(short)),
    };
    let payload = input.get(header..header + length)?;
    Some((input[0] & 0x0F, payload, header + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_once_it_is_whole() {
        let payload = [b'x'; 200];
        let bytes = [&[0x81, 126, 0, 200][..], &payload].concat();
        for end in 0..bytes.len() {
            assert_eq!(frame(&bytes[..end]), None);
        }
        assert_eq!(frame(&bytes), Some((TEXT, &payload[..], 204)));
    }
}
