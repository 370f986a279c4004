//! The frame decoder: everything after the opening handshake.

use switchboard::ws::{
    CloseFrame, Decoder, Deflate, Event, InflateError, Opcode, Role, Violation, write_client_frame,
    write_server_frame,
};

/// Small enough for a fuzzer to reach it.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Decodes a stream: the first byte holds the `Settings`, the rest is the stream.
///
/// Checked: splitting the bytes into reads changes nothing; each call makes progress; no message
/// exceeds the limit, inflated or not; decoded messages, written again, decode to the same.
pub fn codec(data: &[u8]) {
    let [settings, stream @ ..] = data else { return };
    let settings = Settings::from_byte(*settings);
    let whole = decode(settings, stream, usize::MAX);
    for read_len in [1, 2, 7] {
        assert_eq!(decode(settings, stream, read_len), whole, "in reads of {read_len} bytes");
    }
    for said in &whole.said {
        check(settings, said);
    }
}

/// Settings of the decoder.
#[derive(Clone, Copy)]
struct Settings {
    role: Role,
    deflate: bool,
}

impl Settings {
    fn from_byte(byte: u8) -> Settings {
        let role = if byte & 1 == 0 { Role::Server } else { Role::Client };
        Settings { role, deflate: byte & 2 != 0 }
    }

    fn decoder(self) -> Decoder {
        let mut decoder = Decoder::new(self.role, MAX_MESSAGE_BYTES);
        if self.deflate {
            decoder.allow_deflate();
        }
        decoder
    }
}

/// Everything decoded from a stream.
#[derive(Debug, PartialEq)]
struct Decoded {
    said: Vec<Said>,
    violation: Option<Violation>,
}

/// An event that outlives the bytes it was decoded from.
#[derive(Debug, PartialEq)]
enum Said {
    Text(String),
    Binary(Vec<u8>),
    Compressed { text: bool, payload: Vec<u8> },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    EmptyFragment,
    Close(Option<CloseFrame>),
}

impl From<Event<'_>> for Said {
    fn from(event: Event<'_>) -> Said {
        match event {
            Event::Text(text) => {
                Said::Text(String::from_utf8(text.into_owned()).expect("text is UTF-8"))
            }
            Event::Binary(payload) => Said::Binary(payload.into_owned()),
            Event::Compressed { text, payload } => {
                Said::Compressed { text, payload: payload.into_owned() }
            }
            Event::Ping(payload) => Said::Ping(payload.into_owned()),
            Event::Pong(payload) => Said::Pong(payload.into_owned()),
            Event::EmptyFragment => Said::EmptyFragment,
            Event::Close(frame) => Said::Close(frame),
        }
    }
}

/// Decodes the stream in reads of `read_len` bytes, up to its close or violation.
fn decode(settings: Settings, stream: &[u8], read_len: usize) -> Decoded {
    let mut decoder = settings.decoder();
    let mut stream = stream.to_vec();
    let mut said = Vec::new();
    let read_len = read_len.min(stream.len().max(1));
    for read in stream.chunks_mut(read_len) {
        let mut rest = read;
        while !rest.is_empty() {
            let decoded = match decoder.decode(rest) {
                Ok(decoded) => decoded,
                Err(violation) => return Decoded { said, violation: Some(violation) },
            };
            let consumed = decoded.consumed;
            said.extend(decoded.event.map(Said::from));
            if matches!(said.last(), Some(Said::Close(_))) {
                return Decoded { said, violation: None };
            }
            assert!(consumed > 0, "no progress");
            rest = &mut rest[consumed..];
        }
    }
    Decoded { said, violation: None }
}

fn check(settings: Settings, said: &Said) {
    let (opcode, payload) = match said {
        Said::Text(text) => (Opcode::Text, text.as_bytes()),
        Said::Binary(payload) => (Opcode::Binary, payload.as_slice()),
        Said::Ping(payload) => (Opcode::Ping, payload.as_slice()),
        Said::Pong(payload) => (Opcode::Pong, payload.as_slice()),
        Said::Compressed { payload, .. } => return check_compressed(settings, payload),
        Said::EmptyFragment | Said::Close(_) => return,
    };
    assert!(payload.len() <= MAX_MESSAGE_BYTES);
    let mut written = Vec::new();
    match settings.role {
        Role::Server => write_client_frame(&mut written, opcode, payload, [0xA5, 0, 0x3C, 0xFF]),
        Role::Client => write_server_frame(&mut written, opcode, payload),
    }
    let again = decode(settings, &written, usize::MAX);
    assert_eq!(again.violation, None);
    assert_eq!(again.said.as_slice(), std::slice::from_ref(said));
}

fn check_compressed(settings: Settings, payload: &[u8]) {
    assert!(settings.deflate && payload.len() <= MAX_MESSAGE_BYTES);
    let mut deflate = Deflate::shared();
    let mut inflated = Vec::new();
    match deflate.inflate(payload, MAX_MESSAGE_BYTES, &mut inflated) {
        Ok(()) => assert!(inflated.len() <= MAX_MESSAGE_BYTES),
        Err(InflateError::Damaged | InflateError::TooBig) => return,
    }
    let mut deflated = Vec::new();
    deflate.deflate(&inflated, &mut deflated);
    let mut again = Vec::new();
    assert_eq!(deflate.inflate(&deflated, MAX_MESSAGE_BYTES, &mut again), Ok(()));
    assert_eq!(again, inflated);
}
