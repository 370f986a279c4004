//! Sections 12 and 13: permessage-deflate with and without context takeover and small windows.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use switchboard::ws::{CloseCode, Decoder, Role};

use super::talk::{OPTIONS, Talk};
use super::{close, echo, frame};
use crate::stream::{
    BINARY, CONTINUATION, FIN, Outcome, PING, RSV1, Said, TEXT, bytes_of, decode_reads, text_of,
};

const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// A client's contexts, by flate2 alone and not by the code under test.
struct Contexts {
    compress: Compress,
    decompress: Decompress,
    client_takeover: bool,
    server_takeover: bool,
}

impl Contexts {
    /// As the server's answer says.
    fn agreed(head: &str) -> Contexts {
        let answer = head.lines().find(|line| line.starts_with("Sec-WebSocket-Extensions: "));
        let answer = answer.expect("the offer was accepted");
        Contexts {
            compress: Compress::new(Compression::default(), false),
            decompress: Decompress::new(false),
            client_takeover: !answer.contains("client_no_context_takeover"),
            server_takeover: !answer.contains("server_no_context_takeover"),
        }
    }

    fn deflate(&mut self, message: &[u8]) -> Vec<u8> {
        if message.is_empty() {
            // RFC 7692 section 7.2.3.6.
            return vec![0];
        }
        if !self.client_takeover {
            self.compress.reset();
        }
        let mut out = Vec::with_capacity(2 * message.len() + 100);
        self.compress.compress_vec(message, &mut out, FlushCompress::Sync).expect("it deflates");
        out.truncate(out.len() - TAIL.len());
        out
    }

    fn inflate(&mut self, payload: &[u8], len_max: usize) -> Vec<u8> {
        if !self.server_takeover {
            self.decompress.reset(false);
        }
        let mut out = Vec::with_capacity(len_max + 100);
        let whole = [payload, &TAIL].concat();
        let before = self.decompress.total_in();
        self.decompress
            .decompress_vec(&whole, &mut out, FlushDecompress::Sync)
            .expect("the server deflates well");
        assert_eq!(self.decompress.total_in() - before, whole.len() as u64);
        out
    }
}

/// The server's options with compression.
fn options(context_takeover: bool) -> echo::Options {
    echo::Options { compression: true, context_takeover, ..OPTIONS }
}

/// What the server answers this offer.
fn agree(context_takeover: bool, offer: &str) -> Contexts {
    Contexts::agreed(&Talk::with(options(context_takeover), offer, &close(1000), 100).head)
}

/// Says the input under this offer and gives the events of the answer, still compressed.
fn answers(context_takeover: bool, offer: &str, input: &[u8]) -> Vec<Said> {
    let talk = Talk::with(options(context_takeover), offer, input, usize::MAX);
    let mut decoder = Decoder::new(Role::Client, 32 << 20);
    decoder.allow_deflate();
    let Outcome { said, violation, consumed } = decode_reads(&mut decoder, [&*talk.stream]);
    assert_eq!((violation, consumed), (None, talk.stream.len()));
    said
}

/// Messages said compressed come back compressed and the same.
fn says_back(context_takeover: bool, offer: &str, messages: &[Said]) {
    let mut contexts = agree(context_takeover, offer);
    let mut input = Vec::new();
    for message in messages {
        let (opcode, payload) = parts(message);
        input.extend(frame(FIN | RSV1 | opcode, &contexts.deflate(payload)));
    }
    input.extend(close(1000));
    let mut answers = answers(context_takeover, offer, &input);
    assert_eq!(answers.pop(), Some(Said::close(1000)));
    assert_eq!(answers.len(), messages.len());
    for (answer, message) in answers.iter().zip(messages) {
        let Said::Compressed { text, payload } = answer else { panic!("{answer:?}") };
        let (opcode, expected) = parts(message);
        assert_eq!(*text, opcode == TEXT);
        assert!(contexts.inflate(payload, expected.len()) == expected, "{offer}");
    }
}

fn parts(message: &Said) -> (u8, &[u8]) {
    match message {
        Said::Text(text) => (TEXT, text.as_bytes()),
        Said::Binary(payload) => (BINARY, payload),
        other => panic!("{other:?} is no message"),
    }
}

/// Text that compresses, bytes that hardly do, of many sizes; one after another the same.
fn messages() -> Vec<Said> {
    let mut messages = Vec::new();
    for len in [0, 0, 1, 16, 64, 256, 1_024, 4_096, 8_192, 32_768, 131_072, 0] {
        messages.push(Said::Text(text_of(len, len as u8)));
        messages.push(Said::Binary(noise(len)));
        messages.push(Said::Binary(noise(len)));
    }
    messages
}

/// Bytes that do not compress (xorshift32).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(byte).collect()
}

#[test]
fn section_12_messages_of_many_sizes() {
    for takeover in [false, true] {
        says_back(takeover, "permessage-deflate", &messages());
    }
}

#[test]
fn section_12_many_messages_share_a_context() {
    let messages: Vec<Said> = (0..1_000).map(|at| Said::Text(text_of(200, at as u8))).collect();
    for takeover in [false, true] {
        says_back(takeover, "permessage-deflate; client_max_window_bits", &messages);
    }
}

#[test]
fn section_13_every_offer_that_can_be_kept_is_kept() {
    for offer in [
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate; client_no_context_takeover",
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_max_window_bits=9",
        "permessage-deflate; server_max_window_bits=9",
        "permessage-deflate; server_max_window_bits=10; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=15; client_max_window_bits",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate",
    ] {
        for takeover in [false, true] {
            let contexts = agree(takeover, offer);
            let server = takeover && !offer.contains("server_no_context_takeover");
            let client = takeover && !offer.contains("client_no_context_takeover");
            assert_eq!(contexts.server_takeover, server, "{offer}");
            assert_eq!(contexts.client_takeover, client, "{offer}");
            says_back(takeover, offer, &messages());
        }
    }
}

/// An inflater with the agreed window would tell, too, but flate2's is lenient. So: of what comes
/// again only from beyond the window nothing is saved, and from well within it much.
#[test]
fn section_13_the_server_looks_back_no_further_than_agreed() {
    for bits in 9..=15 {
        let offer = format!("permessage-deflate; server_max_window_bits={bits}");
        let beyond = noise((1 << bits) + 1).repeat(3);
        let within = noise((1 << bits) * 3 / 8).repeat(3);
        let mut contexts = agree(false, &offer);
        for (message, is_saved) in [(beyond, false), (within, true)] {
            let message = contexts.deflate(&message);
            let input = [frame(FIN | RSV1 | BINARY, &message), close(1000)].concat();
            let answer = answers(false, &offer, &input);
            let Said::Compressed { payload, .. } = &answer[0] else { panic!("{answer:?}") };
            let len = contexts.inflate(payload, 200_000).len();
            assert_eq!(payload.len() < len * 3 / 4, is_saved, "{bits}: {len} in {}", payload.len());
        }
    }
}

#[test]
fn a_compressed_message_may_come_in_fragments_and_beside_plain_ones() {
    let offer = "permessage-deflate";
    let mut contexts = agree(true, offer);
    let words = text_of(5_000, 0);
    let deflated = contexts.deflate(words.as_bytes());
    let (one, other) = deflated.split_at(deflated.len() / 2);
    let input = [
        frame(RSV1 | TEXT, one),
        frame(FIN | PING, b"between"),
        frame(CONTINUATION, b""),
        frame(FIN | CONTINUATION, other),
        frame(FIN | TEXT, b"plain"),
        close(1000),
    ];
    let answers = answers(true, offer, &input.concat());
    let inflated: Vec<Vec<u8>> = answers
        .iter()
        .filter_map(|said| match said {
            Said::Compressed { payload, .. } => Some(contexts.inflate(payload, 5_000)),
            _ => None,
        })
        .collect();
    assert_eq!(answers[0], Said::Pong(b"between".to_vec()));
    assert_eq!(inflated, [words.as_bytes(), b"plain"]);
}

#[test]
fn what_breaks_compression_fails() {
    let deflated = |message: &[u8]| agree(false, "permessage-deflate").deflate(message);
    let bomb = deflated(&vec![0; (16 << 20) + 1]);
    assert!(bomb.len() < 1 << 17);
    for (input, code) in [
        (frame(FIN | RSV1 | TEXT, &[0xFF; 20]), CloseCode::INVALID_PAYLOAD),
        (frame(FIN | RSV1 | TEXT, &deflated(b"\xED\xA0\x80")), CloseCode::INVALID_PAYLOAD),
        (frame(FIN | RSV1 | BINARY, &bomb), CloseCode::MESSAGE_TOO_BIG),
        (frame(FIN | RSV1 | PING, b""), CloseCode::PROTOCOL_ERROR),
        ([frame(RSV1 | TEXT, b"a"), frame(FIN | RSV1, b"b")].concat(), CloseCode::PROTOCOL_ERROR),
        ([frame(TEXT, b"a"), frame(FIN | RSV1, b"b")].concat(), CloseCode::PROTOCOL_ERROR),
    ] {
        let answers = answers(false, "permessage-deflate", &input);
        let [Said::Close(Some(frame))] = answers.as_slice() else { panic!("{answers:?}") };
        assert_eq!(frame.code, code, "{}", frame.reason);
    }
}

#[test]
fn a_message_that_inflates_to_the_limit_passes() {
    says_back(false, "permessage-deflate", &[Said::Binary(bytes_of(16 << 20, 0))]);
}

#[test]
fn an_offer_that_cannot_be_kept_leaves_messages_plain() {
    let offer = "permessage-deflate; server_max_window_bits=8";
    let input = [frame(FIN | TEXT, b"plain"), close(1000)].concat();
    let talk = Talk::with(options(true), offer, &input, usize::MAX);
    assert!(!talk.head.contains("Sec-WebSocket-Extensions"), "{}", talk.head);
    let outcome = decode_reads(&mut Decoder::new(Role::Client, 100), [&*talk.stream]);
    assert_eq!(outcome.said, [Said::text("plain"), Said::close(1000)]);
}
