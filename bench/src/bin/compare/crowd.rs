//! Many v1 devices on one thread: they connect, keep their identity, leave, and come back for
//! their messages.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::{Events, Poll, Token};
use switchboard::bench::connection::{Connection, append_text};
use switchboard::bench::wire::Dialer;
use switchboard_proto::v1::{ServerEvent, WelcomeEvent, parse_server};

use crate::server::Server;

/// Time without any message after which the server counts as stopped.
const STALL: Duration = Duration::from_secs(30);
/// Number of new devices that connect at the same time.
const AT_ONCE: usize = 128;
/// Number of devices that fill the mailboxes, and of messages of each that are not accepted yet.
/// There are several, because the server remembers a limited number of ids of each.
const SENDERS: usize = 64;
const WINDOW: u64 = 64;
const PAYLOAD: &str = "a message of two hundred and fifty-six bytes ";
const PAYLOAD_BYTES: usize = 254;

/// All devices.
pub(crate) struct Crowd {
    dialer: Dialer,
    poll: Poll,
    pub(crate) members: Vec<Member>,
    input: Vec<u8>,
}

/// A device and its state.
#[derive(Default)]
pub(crate) struct Member {
    connection: Option<Connection>,
    device: String,
    token: String,
    mailbox: String,
    last_seq: u64,
    /// True once it has received its welcome on this connection.
    greeted: bool,
    /// Messages received on this connection.
    received: u64,
    sent: u64,
    accepted: u64,
}

impl Crowd {
    /// Creates an empty crowd.
    pub(crate) fn new(server: &Server) -> anyhow::Result<Self> {
        let dialer = Dialer::new(*server.target());
        Ok(Self { dialer, poll: Poll::new()?, members: Vec::new(), input: vec![0; 64 << 10] })
    }

    /// Moves the devices to another server: the next connections go there.
    pub(crate) fn move_to(&mut self, server: &Server) {
        self.leave();
        self.dialer = Dialer::new(*server.target());
    }

    /// Connects new devices until there are `count`; they stay connected.
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

    /// Closes all connections, without a closing handshake.
    pub(crate) fn leave(&mut self) {
        self.members.iter_mut().for_each(|member| member.connection = None);
    }

    /// Connects these devices all at once; returns the time until each has got its messages.
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

    /// Connects new devices that send `each` messages to every device present, and leave.
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
        let member = &mut self.members[at];
        let mut connection = Connection::new(self.dialer.begin()?, Some(&member.hello()));
        connection.register(self.poll.registry(), Token(at))?;
        member.connection = Some(connection);
        (member.greeted, member.received) = (false, 0);
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
                member.serve(&mut self.input)?;
                last = Instant::now();
            }
            ensure!(last.elapsed() < STALL, "no client received anything for {STALL:?}");
        }
        Ok(())
    }
}

impl Member {
    /// Returns the hello of the device, or that of a new one.
    fn hello(&self) -> String {
        let Self { token, mailbox, last_seq, .. } = self;
        if token.is_empty() {
            return r#"{"type":"hello"}"#.to_owned();
        }
        format!(
            r#"{{"type":"hello","token":"{token}","mailbox":"{mailbox}","last_seq":{last_seq}}}"#
        )
    }

    fn say(&mut self, text: &str) {
        if let Some(connection) = &mut self.connection {
            connection.say(text);
        }
    }

    fn write(&mut self) -> anyhow::Result<()> {
        Ok(self.connection.as_mut().map_or(Ok(()), Connection::write)?)
    }

    /// Writes and reads as much as possible.
    fn serve(&mut self, input: &mut [u8]) -> anyhow::Result<()> {
        // Taken out meanwhile, so that handling a message can change the member.
        let Some(mut connection) = self.connection.take() else { return Ok(()) };
        connection.write()?;
        let read = connection.read(input, |text, out| self.hear(text, out));
        read.with_context(|| format!("device {}", self.device))?;
        connection.write()?;
        self.connection = Some(connection);
        Ok(())
    }

    fn hear(&mut self, text: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
        match parse_server(text)? {
            ServerEvent::Welcome(welcome) => return self.greet(welcome),
            ServerEvent::Accepted { duplicate: false, .. } => self.accepted += 1,
            ServerEvent::Message { seq, body, .. } => {
                ensure!(seq > self.last_seq, "seq {seq} after {}", self.last_seq);
                ensure!(body.len() == PAYLOAD_BYTES + 2, "it has {} bytes", body.len());
                (self.last_seq, self.received) = (seq, self.received + 1);
                append_text(out, &format!(r#"{{"type":"ack","seq":{seq}}}"#));
            }
            _ => bail!("the server said {}", String::from_utf8_lossy(text)),
        }
        Ok(())
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
