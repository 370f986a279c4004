//! NATS `JetStream` under the load of `durable`: publishers that wait for acknowledgements.
//!
//! The client is minimal: one thread, one epoll loop, and of the NATS protocol only `CONNECT`,
//! `SUB`, `PUB` with a reply subject, and `MSG`.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use switchboard::bench::wire::{is_for_later, write_out};

use crate::server::Server;
use crate::statistics::quantile;

const BINARY: &str = "nats-server";
/// Time without an acknowledgement after which the server counts as stopped.
const STALL: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_millis(500);
/// A stream stored in files; replicas, limits and acknowledgements have their defaults.
const STREAM: &str = r#"{"name":"BOX","subjects":["box.>"],"storage":"file","retention":"limits"}"#;

/// Results of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledged {
    pub(crate) per_s: f64,
    pub(crate) p99_us: f64,
}

/// The load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) publishers: usize,
    pub(crate) window: usize,
    pub(crate) size: usize,
    pub(crate) time: Duration,
}

/// Returns the version of the installed server; `None` if there is none.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(BINARY).arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().trim_start_matches("nats-server: ").to_owned())
}

/// Starts a server with file storage in `folder`.
pub(crate) fn start(folder: &Path) -> anyhow::Result<Server> {
    let mut command = Command::new(BINARY);
    command.args(["--addr", "127.0.0.1", "--port", "-1", "--jetstream", "--store_dir"]);
    command.arg(folder);
    Server::start(command, false)
}

/// Puts the load on the server.
pub(crate) fn measure(server: &Server, load: Load) -> anyhow::Result<Acknowledged> {
    let mut run = Run::connect(server, load)?;
    run.make_stream()?;
    for at in 0..load.publishers {
        run.publish(at, load.window)?;
    }
    run.until(Instant::now() + WARM_UP)?;
    run.times_us.clear();
    let start = Instant::now();
    run.until(start + load.time)?;
    let seconds = start.elapsed().as_secs_f64();
    let per_s = run.times_us.len() as f64 / seconds;
    Ok(Acknowledged { per_s, p99_us: quantile(&mut run.times_us, 0.99) })
}

/// A connection, and its published messages that are not acknowledged yet.
struct Publisher {
    socket: TcpStream,
    /// A published message as it is written.
    message: Vec<u8>,
    out: Vec<u8>,
    rest: Vec<u8>,
    lined_up: VecDeque<Instant>,
}

struct Run {
    poll: Poll,
    publishers: Vec<Publisher>,
    times_us: Vec<f64>,
    last: Instant,
}

impl Run {
    fn connect(server: &Server, load: Load) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut publishers = Vec::new();
        for at in 0..load.publishers {
            let mut socket = TcpStream::connect(server.target().address)?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut socket, Token(at), interest)?;
            let head = format!("PUB box.{at} _INBOX.{at} {}\r\n", load.size);
            let body = "m".repeat(load.size) + "\r\n";
            let greeting = format!("CONNECT {{\"verbose\":false}}\r\nSUB _INBOX.{at} 1\r\n");
            publishers.push(Publisher {
                socket,
                message: [head.as_bytes(), body.as_bytes()].concat(),
                out: greeting.into_bytes(),
                rest: Vec::new(),
                lined_up: VecDeque::new(),
            });
        }
        Ok(Self { poll, publishers, times_us: Vec::new(), last: Instant::now() })
    }

    /// Creates the stream and waits for it.
    fn make_stream(&mut self) -> anyhow::Result<()> {
        let first = &mut self.publishers[0];
        let request =
            format!("PUB $JS.API.STREAM.CREATE.BOX _INBOX.0 {}\r\n{STREAM}\r\n", STREAM.len());
        first.out.extend_from_slice(request.as_bytes());
        first.lined_up.push_back(Instant::now());
        while !self.publishers[0].lined_up.is_empty() {
            self.turn(0)?;
        }
        Ok(())
    }

    fn publish(&mut self, at: usize, count: usize) -> anyhow::Result<()> {
        let publisher = &mut self.publishers[at];
        for _ in 0..count {
            publisher.out.extend_from_slice(&publisher.message);
            publisher.lined_up.push_back(Instant::now());
        }
        publisher.write()
    }

    fn until(&mut self, end: Instant) -> anyhow::Result<()> {
        while Instant::now() < end {
            self.turn(1)?;
        }
        Ok(())
    }

    /// Handles what has arrived; each acknowledgement releases `next` messages.
    fn turn(&mut self, next: usize) -> anyhow::Result<()> {
        ensure!(self.last.elapsed() < STALL, "nothing was acknowledged for {STALL:?}");
        let mut events = Events::with_capacity(1_024);
        match self.poll.poll(&mut events, Some(Duration::from_millis(50))) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            let Token(at) = event.token();
            let publisher = &mut self.publishers[at];
            publisher.write()?;
            let acknowledged = publisher.read()?;
            let now = Instant::now();
            for _ in 0..acknowledged {
                let since = publisher.lined_up.pop_front().context("more than was published")?;
                self.times_us.push((now - since).as_secs_f64() * 1e6);
                self.last = now;
            }
            self.publish(at, next * acknowledged)?;
        }
        Ok(())
    }
}

impl Publisher {
    fn write(&mut self) -> anyhow::Result<()> {
        Ok(write_out(&mut self.socket, &mut self.out)?)
    }

    /// Reads until there is no more; returns the number of acknowledgements.
    fn read(&mut self) -> anyhow::Result<usize> {
        let mut chunk = [0; 64 << 10];
        let mut acknowledged = 0;
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => bail!("the server hung up"),
                Ok(count) => self.rest.extend_from_slice(&chunk[..count]),
                Err(error) if is_for_later(&error) => return Ok(acknowledged),
                Err(error) => return Err(error.into()),
            }
            let mut taken = 0;
            while let Some((said, len)) = next(&self.rest[taken..])? {
                taken += len;
                match said {
                    Said::Acknowledged => acknowledged += 1,
                    Said::Ping => self.out.extend_from_slice(b"PONG\r\n"),
                    Said::Other => {}
                }
            }
            self.rest.drain(..taken);
            self.write()?;
        }
    }
}

/// Messages of the server.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Acknowledged,
    Ping,
    Other,
}

/// Returns the first message in `input` and its length; `None` while it is incomplete.
fn next(input: &[u8]) -> anyhow::Result<Option<(Said, usize)>> {
    let Some(line_len) = memmem::find(input, b"\r\n") else { return Ok(None) };
    let (line, behind) = (&input[..line_len], line_len + 2);
    let Some(words) = line.strip_prefix(b"MSG ") else {
        ensure!(!line.starts_with(b"-ERR"), "it said {}", String::from_utf8_lossy(line));
        let said = if line == b"PING" { Said::Ping } else { Said::Other };
        return Ok(Some((said, behind)));
    };
    let words = std::str::from_utf8(words)?;
    let len: usize = words.rsplit(' ').next().context("a message without a length")?.parse()?;
    let end = behind + len + 2;
    let Some(payload) = input.get(behind..end) else { return Ok(None) };
    ensure!(
        memmem::find(payload, b"\"error\"").is_none(),
        "it refused: {}",
        String::from_utf8_lossy(payload)
    );
    Ok(Some((Said::Acknowledged, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_once_it_is_whole() {
        let input = b"MSG _INBOX.1 1 4\r\nabcd\r\nPING\r\n";
        for end in 0..24 {
            assert_eq!(next(&input[..end]).unwrap(), None, "{end}");
        }
        assert_eq!(next(input).unwrap(), Some((Said::Acknowledged, 24)));
        assert_eq!(next(&input[24..]).unwrap(), Some((Said::Ping, 6)));
    }

    #[test]
    fn a_refusal_is_an_error() {
        assert!(next(b"-ERR 'no'\r\n").is_err());
        assert!(next(b"MSG a 1 12\r\n{\"error\":{}}\r\n").is_err());
    }
}
