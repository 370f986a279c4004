//! The loop: reads everything that is ready, routes it, and writes once per connection.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::SocketAddr;

use memchr::memchr;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustc_hash::FxHashMap;
use slab::Slab;

use crate::frame;
use crate::handshake::{self, Handshake};

const LISTENER: Token = Token(usize::MAX);
const EVENTS_PER_TURN: usize = 1024;
const FIRST_ID: u32 = 100_000_000;
/// Size of the shared read buffer. It grows if a single frame is larger.
const INPUT_BYTES: usize = 128 * 1024;

/// One listener, its connections, and the buffer that they are read into.
pub(crate) struct Relay {
    poll: Poll,
    listener: TcpListener,
    input: Vec<u8>,
    board: Board,
}

impl Relay {
    /// Listens on `address`; nothing is accepted before [`Relay::run`].
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self { poll, listener, input: vec![0; INPUT_BYTES], board: Board::new() })
    }

    /// Returns the listening address, with its real port.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the process is killed.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => self.turn(&events),
            }
        }
    }

    fn turn(&mut self, events: &Events) {
        for event in events {
            match event.token() {
                LISTENER => self.accept(),
                Token(key) => {
                    self.read(key, event.is_read_closed());
                    if event.is_writable() {
                        self.board.resume(key);
                    }
                }
            }
        }
        self.board.write_all_due();
    }

    fn accept(&mut self) {
        while let Ok((mut socket, _)) = self.listener.accept() {
            let entry = self.board.connections.vacant_entry();
            let both = Interest::READABLE | Interest::WRITABLE;
            let registered = self.poll.registry().register(&mut socket, Token(entry.key()), both);
            if registered.and_then(|()| socket.set_nodelay(true)).is_ok() {
                entry.insert(Connection::new(socket));
            }
        }
    }

    /// Reads until the socket is empty. A short read means empty, which saves the read that
    /// would confirm it, except at the end of the stream, which no further event reports.
    fn read(&mut self, key: usize, read_closed: bool) {
        while let Some(connection) = self.board.connections.get_mut(key) {
            let held = connection.rest.len();
            if self.input.len() < 2 * held {
                self.input.resize(2 * held, 0);
            }
            self.input[..held].copy_from_slice(&connection.rest);
            let room = self.input.len() - held;
            match connection.socket.read(&mut self.input[held..]) {
                Ok(0) => return self.board.hang_up(key),
                Ok(count) => {
                    self.board.take_in(key, &mut self.input[..held + count]);
                    if count < room && !read_closed {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.board.hang_up(key),
            }
        }
    }
}

/// A socket and its pending data; its buffers are empty while it is idle.
struct Connection {
    socket: TcpStream,
    /// 0 until the handshake is done.
    id: u32,
    /// The start of a frame that is still incomplete.
    rest: Vec<u8>,
    /// Bytes that still have to be written.
    out: Vec<u8>,
}

impl Connection {
    fn new(socket: TcpStream) -> Self {
        Self { socket, id: 0, rest: Vec::new(), out: Vec::new() }
    }
}

/// The connection must be closed.
struct HangUp;

/// The connections, the devices by id, and the connections with output due at the end of the
/// turn.
struct Board {
    connections: Slab<Connection>,
    routes: FxHashMap<u32, usize>,
    next_id: u32,
    due: Vec<usize>,
    /// Empty buffers with capacity, lent to the connections that have something to write.
    spare: Vec<Vec<u8>>,
}

impl Board {
    fn new() -> Self {
        Self {
            connections: Slab::new(),
            routes: FxHashMap::default(),
            next_id: FIRST_ID,
            due: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Handles every complete frame of `input` and keeps the rest.
    fn take_in(&mut self, key: usize, input: &mut [u8]) {
        match self.handle_all(key, input) {
            Ok(taken) => self.keep_rest(key, &input[taken..]),
            Err(HangUp) => self.hang_up(key),
        }
    }

    fn keep_rest(&mut self, key: usize, rest: &[u8]) {
        let kept = &mut self.connections[key].rest;
        if rest.is_empty() {
            if kept.capacity() > 0 {
                *kept = Vec::new();
            }
        } else {
            kept.clear();
            kept.extend_from_slice(rest);
        }
    }

    fn handle_all(&mut self, key: usize, input: &mut [u8]) -> Result<usize, HangUp> {
        let mut taken = 0;
        let mut id = self.connections[key].id;
        if id == 0 {
            taken = self.shake_hands(key, input)?;
            id = self.connections[key].id;
            if id == 0 {
                return Ok(0);
            }
        }
        while let Some(frame) = frame::decode(&mut input[taken..]) {
            taken += frame.taken;
            match frame.opcode {
                frame::TEXT => self.relay(key, id, frame.payload),
                frame::PING => self.append(key, frame::PONG, &[frame.payload]),
                frame::PONG => {}
                _ => return Err(HangUp),
            }
        }
        Ok(taken)
    }

    fn shake_hands(&mut self, key: usize, input: &[u8]) -> Result<usize, HangUp> {
        match handshake::answer(input, self.out(key)) {
            Handshake::Incomplete => Ok(0),
            Handshake::Refused => Err(HangUp),
            Handshake::Accepted(taken) => {
                self.welcome(key);
                Ok(taken)
            }
        }
    }

    fn welcome(&mut self, key: usize) {
        let id = self.next_id;
        self.next_id += 1;
        self.routes.insert(id, key);
        self.connections[key].id = id;
        let text = format!(
            "Your ID: {id}\nConnected Devices: \n[{id}]\nChat usage: send,destinationId,msg"
        );
        self.append(key, frame::TEXT, &[text.as_bytes()]);
    }

    /// Handles `send,<id>,<msg>`, the only command.
    fn relay(&mut self, key: usize, from: u32, text: &[u8]) {
        let Some((destination, message)) = parse_send(text) else {
            return self.append(key, frame::TEXT, &[b"Error reading the command"]);
        };
        let Some(&receiver) = self.routes.get(&destination) else {
            return self.append(key, frame::TEXT, &[b"Invalid destinationId"]);
        };
        let mut digits = itoa::Buffer::new();
        let from = digits.format(from).as_bytes();
        self.append(receiver, frame::TEXT, &[from, b":", message]);
    }

    fn append(&mut self, key: usize, opcode: u8, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len()).sum();
        let out = self.out(key);
        out.reserve(frame::HEADER_MAX + length);
        frame::encode_header(out, opcode, length);
        for part in parts {
            out.extend_from_slice(part);
        }
    }

    /// Returns the out buffer of a connection, which is written at the end of the turn.
    fn out(&mut self, key: usize) -> &mut Vec<u8> {
        let out = &mut self.connections[key].out;
        if out.capacity() == 0 {
            *out = self.spare.pop().unwrap_or_default();
            self.due.push(key);
        }
        out
    }

    /// Continues a write for which the socket had no space.
    fn resume(&mut self, key: usize) {
        if self.connections.get(key).is_some_and(|connection| !connection.out.is_empty()) {
            self.due.push(key);
        }
    }

    fn write_all_due(&mut self) {
        let mut due = mem::take(&mut self.due);
        for key in due.drain(..) {
            self.write(key);
        }
        self.due = due;
    }

    fn write(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Connection { socket, out, .. } = connection;
        while !out.is_empty() {
            match socket.write(out) {
                Ok(count) if count == out.len() => out.clear(),
                Ok(count) => drop(out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.hang_up(key),
            }
        }
        if out.capacity() > 0 {
            self.spare.push(mem::take(out));
        }
    }

    fn hang_up(&mut self, key: usize) {
        let connection = self.connections.remove(key);
        self.routes.remove(&connection.id);
    }
}

fn parse_send(text: &[u8]) -> Option<(u32, &[u8])> {
    let rest = text.strip_prefix(b"send,")?;
    let comma = memchr(b',', rest)?;
    Some((parse_id(&rest[..comma])?, &rest[comma + 1..]))
}

fn parse_id(digits: &[u8]) -> Option<u32> {
    // Ten digits cannot overflow 64 bits.
    if digits.len() > 10 {
        return None;
    }
    let mut id = 0;
    for digit in digits {
        let value = digit.wrapping_sub(b'0');
        if value > 9 {
            return None;
        }
        id = 10 * id + u64::from(value);
    }
    u32::try_from(id).ok()
}
