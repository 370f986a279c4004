//! permessage-deflate against a client that knows flate2 alone: sections 12 and 13 of the Autobahn
//! test suite.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use switchboard::ws::{Deflate, Parsed, parse_request};

use crate::stream::{bytes_of, text_of};

const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A server's contexts, and those of its client according to the server's response.
struct Pair {
    server: Deflate,
    compress: Compress,
    decompress: Decompress,
    client_takeover: bool,
    server_takeover: bool,
}

impl Pair {
    fn agreed(context_takeover: bool, offer: &str) -> Pair {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Extensions: {offer}\r\n\r\n"
        );
        let Parsed::Upgrade(mut upgrade) = parse_request(request.as_bytes(), 1 << 10) else {
            panic!("it is a good request");
        };
        let negotiated = upgrade.negotiate_deflate(context_takeover).expect("it can be kept");
        let mut head = Vec::new();
        upgrade.write_accept(None, &mut head);
        let head = String::from_utf8(head).expect("the answer is text");
        assert!(head.contains("\r\nSec-WebSocket-Extensions: permessage-deflate"), "{head}");
        Pair {
            server: Deflate::new(negotiated),
            compress: Compress::new(Compression::default(), false),
            decompress: Decompress::new(false),
            client_takeover: !head.contains("client_no_context_takeover"),
            server_takeover: !head.contains("server_no_context_takeover"),
        }
    }

    /// Sends a message to the server and back, unchanged; returns its length on the wire on the
    /// way back.
    fn echo(&mut self, message: &[u8]) -> usize {
        let mut inflated = Vec::new();
        let deflated = self.deflate(message);
        let heard = self.server.inflate(&deflated, MESSAGE_BYTES_MAX, &mut inflated);
        heard.expect("flate2 deflates well");
        assert!(inflated == message, "the server heard {} bytes", inflated.len());
        let mut answer = Vec::new();
        self.server.deflate(message, &mut answer);
        // Not `assert_eq`, which would print megabytes.
        assert!(self.inflate(&answer, message.len()) == message);
        answer.len()
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

/// Returns compressible text and incompressible bytes of many sizes; some of them twice in a
/// row.
fn messages() -> Vec<Vec<u8>> {
    let lens = [0, 0, 1, 16, 64, 256, 1_024, 4_096, 8_192, 32_768, 131_072, 0];
    let of_len = |len| [text_of(len, len as u8).into_bytes(), noise(len), noise(len)];
    lens.into_iter().flat_map(of_len).collect()
}

/// Returns incompressible bytes (xorshift32).
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
fn every_offer_that_can_be_kept_is_kept() {
    for offer in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate; client_no_context_takeover",
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_max_window_bits=9",
        "permessage-deflate; server_max_window_bits=9",
        "permessage-deflate; server_max_window_bits=10; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=15; client_max_window_bits",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate",
    ] {
        // A smaller window of the server's is agreed on only with takeover.
        let is_smaller = offer.contains("server_max_window_bits=9")
            || offer.contains("server_max_window_bits=10");
        for takeover in [false, true] {
            if is_smaller && !takeover {
                continue;
            }
            let mut pair = Pair::agreed(takeover, offer);
            let server = takeover && !offer.contains("server_no_context_takeover");
            let client = takeover && !offer.contains("client_no_context_takeover");
            assert_eq!((pair.server_takeover, pair.client_takeover), (server, client), "{offer}");
            for message in messages() {
                pair.echo(&message);
            }
        }
    }
}

#[test]
fn many_messages_share_a_context() {
    let mut pair = Pair::agreed(true, "permessage-deflate");
    for at in 0..1_000 {
        pair.echo(text_of(200, at as u8).as_bytes());
    }
}

/// An inflater with the agreed window would detect this, too, but flate2's is lenient. So the
/// sizes tell: repetitions from beyond the window save nothing, those from well within it save
/// much.
#[test]
fn the_server_looks_back_no_further_than_agreed() {
    for bits in 9..=15 {
        let offer = format!(
            "permessage-deflate; server_max_window_bits={bits}; server_no_context_takeover"
        );
        let mut pair = Pair::agreed(true, &offer);
        let beyond = noise((1 << bits) + 1).repeat(3);
        let within = noise((1 << bits) * 3 / 8).repeat(3);
        for (message, is_saved) in [(beyond, false), (within, true)] {
            let len = pair.echo(&message);
            assert_eq!(len < message.len() * 3 / 4, is_saved, "{bits}: {} in {len}", message.len());
        }
    }
}

#[test]
fn a_message_that_inflates_to_the_limit_passes() {
    Pair::agreed(false, "permessage-deflate").echo(&bytes_of(MESSAGE_BYTES_MAX, 0));
}
