//! permessage-deflate (RFC 7692): its negotiation, and the compression of single messages.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::decoder::Violation;

/// Bytes that end every deflated message and are not sent (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// An empty message: the header of a stored block, completed by the tail (RFC 7692 section
/// 7.2.3.6).
const EMPTY_BLOCK: u8 = 0x00;

/// The largest window; the peer may always use it when it sends to us (RFC 7692 section 7.1.2).
const WINDOW_BITS_MAX: u8 = 15;

/// The parameters that both ends agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// True if our compressor keeps its window from message to message.
    pub server_takeover: bool,
    /// True if the client's compressor does.
    pub client_takeover: bool,
    /// Base-two logarithm of our compressor's window, 9 to 15.
    pub server_window_bits: u8,
}

/// One element of a client's `Sec-WebSocket-Extensions`.
#[derive(Clone, Copy, Debug)]
pub struct DeflateOffer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
}

impl DeflateOffer {
    /// Accepts the first offer in the header that we can fulfil; `None` leaves messages
    /// uncompressed.
    ///
    /// Without `context_takeover` the result [is shareable](Negotiated::is_shareable).
    pub fn negotiate(header: &str, context_takeover: bool) -> Option<Negotiated> {
        // A smaller window needs a compressor of its own, which without takeover no client may
        // have the server keep: RFC 7692 section 7.1.2.1 lets us decline such an offer.
        let may_accept = |offer: &DeflateOffer| context_takeover || !offer.asks_for_less_window();
        let offer = header.split(',').filter_map(DeflateOffer::parse).find(may_accept)?;
        Some(Negotiated {
            server_takeover: context_takeover && !offer.server_no_context_takeover,
            client_takeover: context_takeover && !offer.client_no_context_takeover,
            server_window_bits: offer.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX),
        })
    }

    /// Returns `None` for another extension, and for a parameter that is unknown, repeated or
    /// out of range, which RFC 7692 section 7 says to decline.
    fn parse(offer: &str) -> Option<DeflateOffer> {
        let mut parts = offer.split(';').map(str::trim);
        if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
            return None;
        }
        let mut parsed = DeflateOffer {
            server_no_context_takeover: false,
            client_no_context_takeover: false,
            server_max_window_bits: None,
        };
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
                None => (part, None),
            };
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match (name, value) {
                ("server_no_context_takeover", None) => parsed.server_no_context_takeover = true,
                ("client_no_context_takeover", None) => parsed.client_no_context_takeover = true,
                // zlib has no raw window of 8 bits, so an offer that insists on one is declined.
                ("server_max_window_bits", Some(bits)) => {
                    parsed.server_max_window_bits = Some(window_bits(bits, 9)?);
                }
                ("client_max_window_bits", None) => {}
                // A smaller window on the client's side needs nothing from us: we inflate with
                // the largest.
                ("client_max_window_bits", Some(bits)) => {
                    window_bits(bits, 8)?;
                }
                _ => return None,
            }
        }
        Some(parsed)
    }

    fn asks_for_less_window(&self) -> bool {
        self.server_max_window_bits.is_some_and(|bits| bits < WINDOW_BITS_MAX)
    }
}

fn window_bits(value: &str, min: u8) -> Option<u8> {
    if value.starts_with(['0', '+']) {
        return None;
    }
    value.parse().ok().filter(|bits| (min..=WINDOW_BITS_MAX).contains(bits))
}

impl Negotiated {
    /// Writes the value of our `Sec-WebSocket-Extensions`.
    pub(crate) fn write_response(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"permessage-deflate");
        if !self.server_takeover {
            out.extend_from_slice(b"; server_no_context_takeover");
        }
        if !self.client_takeover {
            out.extend_from_slice(b"; client_no_context_takeover");
        }
        if self.server_window_bits < WINDOW_BITS_MAX {
            let bits = self.server_window_bits;
            out.extend_from_slice(format!("; server_max_window_bits={bits}").as_bytes());
        }
    }

    /// Returns true if all connections with these parameters can use the same [`Deflate`].
    pub fn is_shareable(self) -> bool {
        self == Negotiated {
            server_takeover: false,
            client_takeover: false,
            server_window_bits: WINDOW_BITS_MAX,
        }
    }
}

/// A compressor and a decompressor (about 300 KiB): one per connection with context takeover,
/// else one for all connections of a shard.
#[derive(Debug)]
pub struct Deflate {
    negotiated: Negotiated,
    compress: Compress,
    decompress: Decompress,
}

/// Reason why a message could not be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateError {
    /// The message is not a DEFLATE stream.
    Damaged,
    /// The message is larger than the limit when inflated; inflating stopped there.
    TooBig,
}

impl InflateError {
    /// Converts to the decoder's error; `max` is the limit that was given.
    pub fn violation(self, max: usize) -> Violation {
        match self {
            InflateError::Damaged => Violation::Compression,
            InflateError::TooBig => {
                Violation::TooBig { max: u32::try_from(max).unwrap_or(u32::MAX) }
            }
        }
    }
}

impl Deflate {
    /// Creates fresh contexts as negotiated.
    pub fn new(negotiated: Negotiated) -> Deflate {
        Deflate {
            negotiated,
            // Level 1: a broker compresses every message, and short texts gain little from a
            // longer search.
            compress: Compress::new_with_window_bits(
                Compression::fast(),
                false,
                negotiated.server_window_bits,
            ),
            decompress: Decompress::new_with_window_bits(false, WINDOW_BITS_MAX),
        }
    }

    /// Creates contexts that are reset after each message, for [`Negotiated::is_shareable`]
    /// connections.
    pub fn shared() -> Deflate {
        Deflate::new(Negotiated {
            server_takeover: false,
            client_takeover: false,
            server_window_bits: WINDOW_BITS_MAX,
        })
    }

    /// Appends the inflated message to `out`, at most `max` bytes of it.
    pub fn inflate(
        &mut self,
        payload: &[u8],
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), InflateError> {
        if !self.negotiated.client_takeover {
            self.decompress.reset(false);
        }
        let limit = out.len() + max;
        self.inflate_part(payload, limit, out)?;
        self.inflate_part(&TAIL, limit, out)
    }

    fn inflate_part(
        &mut self,
        mut input: &[u8],
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), InflateError> {
        loop {
            // One byte beyond the limit distinguishes a message that just fits from one that
            // does not.
            let room = (limit + 1 - out.len()).min(input.len().saturating_mul(4).max(1 << 10));
            out.reserve(room);
            let (read, wrote) = (self.decompress.total_in(), out.len());
            let status = self
                .decompress
                .decompress_vec(input, out, FlushDecompress::Sync)
                .map_err(|_| InflateError::Damaged)?;
            input = &input[(self.decompress.total_in() - read) as usize..];
            if out.len() > limit {
                return Err(InflateError::TooBig);
            }
            match status {
                // A final block ends the stream, not the message (RFC 7692 section 7.2.3.4).
                Status::StreamEnd => self.decompress.reset(false),
                _ if out.len() == wrote && !input.is_empty() => return Err(InflateError::Damaged),
                _ => {}
            }
            let may_hold_more = out.len() == out.capacity();
            if input.is_empty() && !may_hold_more {
                return Ok(());
            }
        }
    }

    /// Appends the deflated message to `out`, without the tail.
    pub fn deflate(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        if payload.is_empty() {
            // A compressor that was just flushed has nothing to flush, and so writes no block.
            return out.push(EMPTY_BLOCK);
        }
        if !self.negotiated.server_takeover {
            self.compress.reset();
        }
        let mut input = payload;
        loop {
            out.reserve(input.len() / 2 + 64);
            let read = self.compress.total_in();
            self.compress
                .compress_vec(input, out, FlushCompress::Sync)
                .expect("deflating into memory cannot fail");
            input = &input[(self.compress.total_in() - read) as usize..];
            if input.is_empty() && out.len() < out.capacity() {
                break;
            }
        }
        debug_assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn negotiate(header: &str) -> Option<Negotiated> {
        DeflateOffer::negotiate(header, true)
    }

    #[test]
    fn an_offer_is_answered_with_what_both_can_keep() {
        for (header, answer) in [
            ("permessage-deflate", "permessage-deflate"),
            (
                "x-other, permessage-deflate; client_max_window_bits; server_no_context_takeover",
                "permessage-deflate; server_no_context_takeover",
            ),
            (
                "permessage-deflate; server_max_window_bits=8, \
                 permessage-deflate; server_max_window_bits=\"10\"",
                "permessage-deflate; server_max_window_bits=10",
            ),
        ] {
            let mut out = Vec::new();
            negotiate(header).expect(header).write_response(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), answer);
        }
    }

    #[test]
    fn without_takeover_both_ends_are_told_to_forget() {
        let mut out = Vec::new();
        DeflateOffer::negotiate("permessage-deflate", false).unwrap().write_response(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        );
    }

    /// Each connection that asked for 14 bits once had a compressor of its own, 271 KiB.
    #[test]
    fn without_takeover_whatever_is_accepted_is_shareable() {
        for (header, is_accepted) in [
            ("permessage-deflate; server_max_window_bits=9", false),
            ("permessage-deflate; server_max_window_bits=14; server_no_context_takeover", false),
            ("permessage-deflate; server_max_window_bits=15", true),
            ("permessage-deflate; server_max_window_bits=14, permessage-deflate", true),
        ] {
            let negotiated = DeflateOffer::negotiate(header, false);
            assert_eq!(negotiated.map(Negotiated::is_shareable), is_accepted.then_some(true));
            assert!(negotiate(header).is_some(), "with takeover: {header}");
        }
    }

    #[test]
    fn an_offer_with_a_wrong_parameter_is_declined() {
        for header in [
            "",
            "x-webkit-deflate-frame",
            "permessage-deflate; unknown",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_no_context_takeover=1",
        ] {
            assert_eq!(negotiate(header), None, "{header}");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let mut deflate = Deflate::shared();
        let mut bomb = Vec::new();
        deflate.deflate(&vec![0; 8 << 20], &mut bomb);
        assert!(bomb.len() < 1 << 20, "{}", bomb.len());
        let mut out = Vec::new();
        assert_eq!(deflate.inflate(&bomb, 1 << 20, &mut out), Err(InflateError::TooBig));
        assert!(out.capacity() <= 4 << 20, "{}", out.capacity());
    }

    #[test]
    fn damage_is_told() {
        let mut out = Vec::new();
        let damaged = Deflate::shared().inflate(&[0xFF; 20], 100, &mut out);
        assert_eq!(damaged, Err(InflateError::Damaged));
    }

    #[test]
    fn a_final_block_ends_the_stream_but_not_the_connection() {
        let mut final_block = Vec::with_capacity(100);
        Compress::new(Compression::fast(), false)
            .compress_vec(b"hello", &mut final_block, FlushCompress::Finish)
            .unwrap();
        let mut deflate = Deflate::shared();
        for _ in 0..2 {
            let mut out = Vec::new();
            deflate.inflate(&final_block, 100, &mut out).unwrap();
            assert_eq!(out, b"hello");
        }
    }

    /// The second of two empty messages once came out without a block, and instead of its tail
    /// the last four bytes of `out` were cut off.
    #[test]
    fn empty_messages_deflate_in_a_row_also_with_takeover() {
        let negotiated = negotiate("permessage-deflate").unwrap();
        let (mut ours, mut theirs) = (Deflate::new(negotiated), Deflate::new(negotiated));
        for message in ["", "", "text", "", "", "text"] {
            let mut small = b"before".to_vec();
            ours.deflate(message.as_bytes(), &mut small);
            assert!(small.starts_with(b"before"));
            let mut out = Vec::new();
            theirs.inflate(&small[6..], 100, &mut out).unwrap();
            assert_eq!(out, message.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn what_is_deflated_inflates_to_the_same(
            messages in proptest::collection::vec(
                proptest::collection::vec(0u8..9, 0..5_000), 1..5),
            takeover: bool,
            bits in 9u8..=15,
        ) {
            let negotiated = Negotiated {
                server_takeover: takeover,
                client_takeover: takeover,
                server_window_bits: bits,
            };
            let (mut ours, mut theirs) = (Deflate::new(negotiated), Deflate::new(negotiated));
            for message in messages {
                let (mut small, mut out) = (Vec::new(), Vec::new());
                ours.deflate(&message, &mut small);
                theirs.inflate(&small, message.len(), &mut out).unwrap();
                prop_assert_eq!(&out, &message);
                if !message.is_empty() {
                    out.clear();
                    // The inflater may be left in mid-stream, so a fresh one tests the limit.
                    if !takeover {
                        let too_big = theirs.inflate(&small, message.len() - 1, &mut out);
                        prop_assert_eq!(too_big, Err(InflateError::TooBig));
                    }
                }
            }
        }
    }
}
