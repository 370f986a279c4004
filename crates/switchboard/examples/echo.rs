//! An echo server: shows how to drive `switchboard::ws`, which knows no sockets, from a socket.
//!
//! It returns each message unchanged, as the Autobahn test suite requires of a server:
//!
//! ```text
//! cargo run --release --example echo -- --max-message-bytes 16777216 --compression
//! wstest -m fuzzingclient -s fuzzingclient.json
//! ```

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use switchboard::ws::{
    CloseFrame, Decoder, Deflate, Event, Negotiated, Opcode, Parsed, Refusal, Role, Upgrade,
    Violation, parse_request, write_close, write_header_reserved, write_server_frame,
};

/// Longest request head accepted.
const HANDSHAKE_BYTES_MAX: usize = 16 << 10;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// Time without a byte after which a peer is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Time for a peer to end its side of the TCP connection after the closing handshake.
const END_AWAITED: Duration = Duration::from_secs(2);

/// Returns every message to the WebSocket client that sent it.
#[derive(Clone, Copy, Debug, Parser)]
pub(crate) struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:9001")]
    pub(crate) listen: SocketAddr,
    /// Largest message, compressed or not.
    #[arg(long, default_value_t = 1 << 20)]
    pub(crate) max_message_bytes: usize,
    /// Accept permessage-deflate when it is offered.
    #[arg(long)]
    pub(crate) compression: bool,
    /// Let both ends keep their compression window from message to message.
    #[arg(long, requires = "compression")]
    pub(crate) context_takeover: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let listener = TcpListener::bind(options.listen)?;
    println!("Echoing on ws://{}", listener.local_addr()?);
    thread::scope(|scope| {
        for socket in listener.incoming() {
            let socket = socket?;
            scope.spawn(move || {
                if let Err(error) = serve(socket, options) {
                    eprintln!("A connection failed: {error}");
                }
            });
        }
        Ok(())
    })
}

/// Serves one connection from its handshake to its end.
pub(crate) fn serve(mut socket: TcpStream, options: Options) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(SILENCE_MAX))?;
    let Some((mut upgrade, mut input)) = handshake(&mut socket)? else {
        return end(&mut socket);
    };
    let deflate = match options.compression {
        true => upgrade.negotiate_deflate(options.context_takeover),
        false => None,
    };
    let mut echo = Echo::new(options.max_message_bytes, deflate);
    upgrade.write_accept(None, &mut echo.out);
    let mut state = echo.receive(&mut input);
    input.resize(READ_BYTES, 0);
    loop {
        socket.write_all(&echo.out)?;
        echo.out.clear();
        if state.is_break() {
            return end(&mut socket);
        }
        match socket.read(&mut input)? {
            0 => return Ok(()),
            len => state = echo.receive(&mut input[..len]),
        }
    }
}

/// Reads the request; returns the upgrade and the bytes after it, or `None` after a refusal.
fn handshake(socket: &mut TcpStream) -> io::Result<Option<(Box<Upgrade>, Vec<u8>)>> {
    let mut received = Vec::new();
    let refusal = loop {
        match parse_request(&received, HANDSHAKE_BYTES_MAX) {
            Parsed::Incomplete if read_more(socket, &mut received)? => {}
            Parsed::Incomplete => return Ok(None),
            Parsed::Http(_) => break Refusal::bad_request("Only WebSocket is spoken here."),
            Parsed::Refused(refusal) => break refusal,
            Parsed::Upgrade(upgrade) => {
                let frames = received.split_off(upgrade.head_len);
                return Ok(Some((upgrade, frames)));
            }
        }
    };
    let mut answer = Vec::new();
    refusal.write(&mut answer);
    socket.write_all(&answer)?;
    Ok(None)
}

/// Returns true if the peer sent more before it ended.
fn read_more(socket: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 4 << 10];
    let len = socket.read(&mut buffer)?;
    received.extend_from_slice(&buffer[..len]);
    Ok(len > 0)
}

/// Ends our side, then reads until the peer has ended its own.
///
/// Closing with unread bytes would reset the connection, and the reset may overtake the close
/// frame with the reason.
fn end(socket: &mut TcpStream) -> io::Result<()> {
    socket.shutdown(Shutdown::Write)?;
    let deadline = Instant::now() + END_AWAITED;
    let mut ignored = [0; 4 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        socket.set_read_timeout(Some(left))?;
        if socket.read(&mut ignored).unwrap_or(0) == 0 {
            return Ok(());
        }
    }
}

/// The protocol logic between received and sent bytes, without socket or clock.
struct Echo {
    decoder: Decoder,
    deflate: Option<Deflate>,
    max_message_bytes: usize,
    /// Bytes to be written to the peer.
    out: Vec<u8>,
}

impl Echo {
    fn new(max_message_bytes: usize, deflate: Option<Negotiated>) -> Echo {
        let mut decoder = Decoder::new(Role::Server, max_message_bytes);
        if deflate.is_some() {
            decoder.allow_deflate();
        }
        let deflate = deflate.map(Deflate::new);
        Echo { decoder, deflate, max_message_bytes, out: Vec::new() }
    }

    /// Answers the input; breaks if a close frame was the answer.
    fn receive(&mut self, input: &mut [u8]) -> ControlFlow<()> {
        let mut at = 0;
        while at < input.len() {
            let answered = self.decoder.decode(&mut input[at..]).and_then(|decoded| {
                at += decoded.consumed;
                decoded.event.map_or(Ok(ControlFlow::Continue(())), |event| self.answer(event))
            });
            match answered {
                Ok(state) => state?,
                Err(violation) => {
                    write_close(&mut self.out, violation.close_code(), &violation.to_string());
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn answer(&mut self, event: Event<'_>) -> Result<ControlFlow<()>, Violation> {
        match event {
            Event::Text(text) => self.say(Opcode::Text, &text),
            Event::Binary(bytes) => self.say(Opcode::Binary, &bytes),
            Event::Compressed { text, payload } => self.say_inflated(text, &payload)?,
            Event::Ping(payload) => write_server_frame(&mut self.out, Opcode::Pong, &payload),
            Event::Pong(_) | Event::EmptyFragment => {}
            Event::Close(Some(CloseFrame { code, .. })) => {
                write_close(&mut self.out, code, "");
                return Ok(ControlFlow::Break(()));
            }
            Event::Close(None) => {
                write_server_frame(&mut self.out, Opcode::Close, b"");
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Returns a compressed message to the peer.
    fn say_inflated(&mut self, text: bool, payload: &[u8]) -> Result<(), Violation> {
        let deflate = self.deflate.as_mut().expect("only then are compressed messages decoded");
        let max = self.max_message_bytes;
        let mut message = Vec::new();
        deflate.inflate(payload, max, &mut message).map_err(|error| error.violation(max))?;
        if text && std::str::from_utf8(&message).is_err() {
            return Err(Violation::NotUtf8);
        }
        self.say(if text { Opcode::Text } else { Opcode::Binary }, &message);
        Ok(())
    }

    /// Returns a message to the peer, compressed if negotiated.
    fn say(&mut self, opcode: Opcode, message: &[u8]) {
        let Some(deflate) = &mut self.deflate else {
            return write_server_frame(&mut self.out, opcode, message);
        };
        let mut deflated = Vec::new();
        deflate.deflate(message, &mut deflated);
        write_header_reserved(&mut self.out, opcode, deflated.len());
        self.out.extend_from_slice(&deflated);
    }
}
