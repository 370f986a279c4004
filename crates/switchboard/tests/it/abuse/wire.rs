//! A client that sends exactly the given bytes, even those that no proper library would send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use socket2::{Domain, Socket, Type};

use crate::server::{PATIENCE, Server};

/// A valid handshake.
pub(super) const REQUEST: &str = "GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

/// First bytes of final frames.
pub(super) const TEXT: u8 = 0x81;
pub(super) const CLOSE: u8 = 0x88;
pub(super) const PING: u8 = 0x89;
pub(super) const PONG: u8 = 0x8A;

/// Mask of all frames; RFC 6455 section 5.7 uses it, too.
const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// Returns [`REQUEST`] with more header lines, each ending in CRLF.
pub(super) fn request_with(headers: &str) -> String {
    REQUEST.replace("\r\n\r\n", &format!("\r\n{headers}\r\n"))
}

/// Returns a masked frame, as clients send it; `first` is FIN, the reserved bits and the opcode.
pub(super) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame_header(first, payload.len() as u64);
    bytes.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// Returns a masked frame up to its payload.
pub(super) fn frame_header(first: u8, len: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match len {
        0..=125 => bytes.push(0x80 | len as u8),
        126..=0xFFFF => {
            bytes.push(0x80 | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(len.to_be_bytes());
        }
    }
    bytes.extend(KEY);
    bytes
}

/// Returns the payload of a close frame.
pub(super) fn close_payload(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

/// A frame from the server.
#[derive(Debug, PartialEq)]
pub(super) struct Frame {
    pub(super) first: u8,
    pub(super) payload: Vec<u8>,
}

/// A connection after its handshake.
pub(super) struct Wire<S = TcpStream> {
    pub(super) stream: S,
    /// The id that the server gave it.
    pub(super) id: u64,
    /// The head of the server's response to the handshake.
    pub(super) head: String,
}

impl Wire {
    pub(super) fn open(server: &Server) -> Wire {
        Wire::over(server.socket(), REQUEST)
    }

    /// Like [`Wire::open`], at a full server that may not have noticed yet that a client left.
    pub(super) fn open_patiently(server: &Server) -> Wire {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let mut socket = server.socket();
            let mut status = [0; 12];
            // A rejected connection may be closed before the request is sent.
            if socket.write_all(REQUEST.as_bytes()).is_ok()
                && socket.peek(&mut status).is_ok_and(|len| len == status.len())
                && &status == b"HTTP/1.1 101"
            {
                return Wire::answered(socket);
            }
        }
        panic!("there is no room");
    }

    /// Like [`Wire::open`], on a socket with a small receive buffer.
    pub(super) fn open_small(server: &Server) -> Wire {
        Wire::over(small_socket(server), REQUEST)
    }
}

/// Returns a connected socket with a small receive buffer.
pub(super) fn small_socket(server: &Server) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(&server.address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

impl<S: Read + Write> Wire<S> {
    /// Performs the handshake over a stream and reads the welcome.
    pub(super) fn over(mut stream: S, request: &str) -> Wire<S> {
        stream.write_all(request.as_bytes()).unwrap();
        Wire::answered(stream)
    }

    /// Reads the response to a handshake that was sent, and the welcome.
    pub(super) fn answered(mut stream: S) -> Wire<S> {
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut wire = Wire { stream, id: 0, head };
        let welcome = wire.hear();
        let id = welcome.strip_prefix("Your ID: ").and_then(|rest| rest.lines().next());
        wire.id = id.unwrap_or_else(|| panic!("no id in {welcome:?}")).parse().unwrap();
        wire
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends a text.
    pub(super) fn say(&mut self, text: &str) {
        self.bytes(&frame(TEXT, text.as_bytes()));
    }

    /// Returns the next frame.
    pub(super) fn frame(&mut self) -> Frame {
        let [first, second] = self.array();
        let len = match second {
            0..=125 => u64::from(second),
            126 => u64::from(u16::from_be_bytes(self.array())),
            127 => u64::from_be_bytes(self.array()),
            _ => panic!("a server does not mask"),
        };
        let mut payload = vec![0; len as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Frame { first, payload }
    }

    /// Returns the next text; pings are skipped.
    pub(super) fn hear(&mut self) -> String {
        loop {
            let Frame { first, payload } = self.frame();
            match first {
                TEXT => return String::from_utf8(payload).unwrap(),
                PING => {}
                _ => panic!("expected text, got 0x{first:X} {payload:?}"),
            }
        }
    }

    /// Sends a text and returns the next one received.
    pub(super) fn ask(&mut self, text: &str) -> String {
        self.say(text);
        self.hear()
    }

    /// Reads up to the close frame and the clean end of the stream after it; returns the code,
    /// if there was one, and the reason.
    pub(super) fn end(&mut self) -> (Option<u16>, String) {
        let payload = loop {
            let Frame { first, payload } = self.frame();
            if first == CLOSE {
                break payload;
            }
        };
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).expect("a FIN, no reset");
        assert_eq!(rest, b"", "nothing follows a close frame");
        match payload.as_slice() {
            [] => (None, String::new()),
            [high, low, reason @ ..] => {
                let reason = String::from_utf8(reason.to_vec()).unwrap();
                (Some(u16::from_be_bytes([*high, *low])), reason)
            }
            _ => panic!("half a close code"),
        }
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// Reads up to the empty line of an HTTP response, and not a byte further.
pub(super) fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let read = stream.read(&mut byte).unwrap();
        assert_eq!(read, 1, "the answer ends in its head: {}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}
