//! Byte streams as a peer writes them, and everything that a decoder reads from them.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use switchboard::ws::{CloseCode, CloseFrame, Decoder, Event, Role, Violation};

pub(crate) const FIN: u8 = 0x80;
pub(crate) const RSV1: u8 = 0x40;
pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

/// An event that outlives the bytes it was decoded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Text(String),
    Binary(Vec<u8>),
    Compressed { text: bool, payload: Vec<u8> },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    EmptyFragment,
    Close(Option<CloseFrame>),
}

impl Said {
    pub(crate) fn text(text: &str) -> Said {
        Said::Text(text.to_owned())
    }

    /// Returns a close frame without a reason.
    pub(crate) fn close(code: u16) -> Said {
        Said::Close(Some(CloseFrame { code: CloseCode(code), reason: String::new() }))
    }
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

/// Everything decoded from a stream, up to its close or violation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) said: Vec<Said>,
    pub(crate) violation: Option<Violation>,
    /// Number of bytes consumed.
    pub(crate) consumed: usize,
}

impl Outcome {
    pub(crate) fn is_over(&self) -> bool {
        self.violation.is_some() || matches!(self.said.last(), Some(Said::Close(_)))
    }

    /// Feeds one read; panics if the decoder makes no progress.
    pub(crate) fn feed(&mut self, decoder: &mut Decoder, read: &[u8]) {
        let mut read = read.to_vec();
        let mut rest = read.as_mut_slice();
        while !rest.is_empty() && !self.is_over() {
            let left = rest.len();
            match decoder.decode(rest) {
                Err(violation) => self.violation = Some(violation),
                Ok(decoded) => {
                    let consumed = decoded.consumed;
                    self.said.extend(decoded.event.map(Said::from));
                    assert!((1..=left).contains(&consumed), "{consumed} of {left} bytes");
                    self.consumed += consumed;
                    rest = &mut rest[consumed..];
                }
            }
        }
    }
}

/// Decodes a stream that arrives in these reads.
pub(crate) fn decode_reads<'a>(
    decoder: &mut Decoder,
    reads: impl IntoIterator<Item = &'a [u8]>,
) -> Outcome {
    let mut outcome = Outcome::default();
    for read in reads {
        outcome.feed(decoder, read);
    }
    outcome
}

/// Decodes a stream that arrives at once.
pub(crate) fn decode(role: Role, max: usize, stream: &[u8]) -> Outcome {
    decode_reads(&mut Decoder::new(role, max), [stream])
}

/// Writes a frame as a peer of the reader would, right or wrong: nothing is checked.
///
/// Knowingly not the writer under test.
pub(crate) fn frame(reader: Role, first: u8, payload: &[u8]) -> Vec<u8> {
    let masked = if reader == Role::Server { 0x80 } else { 0 };
    let mut out = vec![first];
    let len = payload.len();
    if len < 126 {
        out.push(masked | len as u8);
    } else if len < 1 << 16 {
        out.push(masked | 126);
        out.extend((len as u16).to_be_bytes());
    } else {
        out.push(masked | 127);
        out.extend((len as u64).to_be_bytes());
    }
    if reader == Role::Client {
        out.extend(payload);
        return out;
    }
    let key = [0x9C, len as u8, first, 0x01];
    out.extend(key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

/// Returns the payload of a close frame.
pub(crate) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// Returns a text of exactly `len` bytes, with characters of all widths.
pub(crate) fn text_of(len: usize, seed: u8) -> String {
    let mut text = String::with_capacity(len);
    for char in "aé€😀\0ſ中𝄞~".chars().cycle().skip(usize::from(seed % 9)) {
        if text.len() + char.len_utf8() > len {
            break;
        }
        text.push(char);
    }
    text.extend(std::iter::repeat_n('x', len - text.len()));
    text
}

/// Returns bytes whose period is not a power of two.
pub(crate) fn bytes_of(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_add((at % 251) as u8)).collect()
}

/// One message of a conversation.
#[derive(Clone, Debug)]
struct Message {
    said: Said,
    /// Positions at which it is split into fragments.
    cuts: Vec<Index>,
    /// A control frame before some of the fragments.
    control: Said,
}

/// Messages of a peer, and their bytes on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    pub(crate) said: Vec<Said>,
    pub(crate) stream: Vec<u8>,
}

/// Generates up to `messages` messages of any kind and many sizes, in random fragments, with
/// control frames before, between and after them, for a reader in this role.
pub(crate) fn conversation(reader: Role, messages: usize) -> impl Strategy<Value = Conversation> {
    vec(message(), 0..=messages).prop_map(move |messages| {
        let mut conversation = Conversation { said: Vec::new(), stream: Vec::new() };
        for message in &messages {
            conversation.say(reader, message);
        }
        conversation
    })
}

fn message() -> impl Strategy<Value = Message> {
    let len = prop_oneof![
        6 => 0usize..40,
        3 => select(vec![0, 1, 124, 125, 126, 127, 128, 300]),
        1 => select(vec![65_534, 65_535, 65_536, 65_537]),
    ];
    let said = (0u8..4, len, any::<u8>()).prop_map(|(kind, len, seed)| match kind {
        0 | 1 => Said::Text(text_of(len, seed)),
        _ => Said::Binary(bytes_of(len, seed)),
    });
    let control = (any::<bool>(), 0usize..=125, any::<u8>()).prop_map(|(ping, len, seed)| {
        let payload = bytes_of(len, seed);
        if ping { Said::Ping(payload) } else { Said::Pong(payload) }
    });
    let cuts = prop_oneof![1 => Just(Vec::new()), 1 => vec(any::<Index>(), 0..5)];
    (said, cuts, control).prop_map(|(said, cuts, control)| Message { said, cuts, control })
}

impl Conversation {
    fn say(&mut self, reader: Role, message: &Message) {
        let (mut opcode, payload) = match &message.said {
            Said::Text(text) => (TEXT, text.as_bytes()),
            Said::Binary(payload) => (BINARY, payload.as_slice()),
            other => panic!("{other:?} is no message"),
        };
        let mut cuts: Vec<usize> =
            message.cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
        cuts.sort_unstable();
        let mut from = 0;
        for cut in cuts {
            if cut % 2 == 0 {
                self.say_control(reader, &message.control);
            }
            self.stream.extend(frame(reader, opcode, &payload[from..cut]));
            if from == cut {
                self.said.push(Said::EmptyFragment);
            }
            (opcode, from) = (CONTINUATION, cut);
        }
        self.stream.extend(frame(reader, FIN | opcode, &payload[from..]));
        self.said.push(message.said.clone());
    }

    fn say_control(&mut self, reader: Role, control: &Said) {
        let (opcode, payload) = match control {
            Said::Ping(payload) => (PING, payload),
            Said::Pong(payload) => (PONG, payload),
            other => panic!("{other:?} is no ping or pong"),
        };
        self.stream.extend(frame(reader, FIN | opcode, payload));
        self.said.push(control.clone());
    }
}
