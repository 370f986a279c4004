//! The messages of a load: a unique stamp, then filler up to the size.

use super::connection::{MASK, append_text};
use crate::ws::mask;

/// A stamp is 16 hexadecimal digits: 24 bits of pair number and 40 bits of sequence number.
pub(super) const STAMP_BYTES: usize = 16;
const SEQUENCE_BITS: u32 = 40;

/// The messages from one device to another.
pub(super) struct Script {
    /// Number of the pair.
    pair: u32,
    /// Text before the stamp in every received message.
    prefix: String,
    /// A message as it is sent, framed and masked, except for the stamps.
    template: Vec<u8>,
    /// Position of the payload in the template; the masking of a stamp depends on its position
    /// in the payload.
    payload_at: usize,
    /// Positions of the stamps in the payload.
    stamps_at: Vec<usize>,
}

impl Script {
    /// Placeholder for a stamp in the text that a script is made from.
    pub(super) const STAMP: &str = "________________";

    /// Creates the messages of pair number `pair`, which are sent as `text` and received as
    /// `prefix`, the stamp and a suffix that all messages share.
    pub(super) fn new(pair: u32, text: &str, prefix: String) -> Self {
        let mut template = Vec::new();
        append_text(&mut template, text);
        let payload_at = template.len() - text.len();
        let stamps_at = text.match_indices(Self::STAMP).map(|(at, _)| at).collect();
        Self { pair, prefix, template, payload_at, stamps_at }
    }

    /// Appends message number `sequence` as a masked frame.
    pub(super) fn append(&self, sequence: u64, out: &mut Vec<u8>) {
        let payload_at = out.len() + self.payload_at;
        out.extend_from_slice(&self.template);
        let stamp = stamp(self.pair, sequence);
        for at in &self.stamps_at {
            let place = &mut out[payload_at + at..][..STAMP_BYTES];
            place.copy_from_slice(&stamp);
            mask(place, MASK, *at);
        }
    }

    /// Returns the number of the message received as `text`, or `None` if it is not one of these
    /// messages. Comparing with the expected stamp saves parsing it.
    pub(super) fn recognise(&self, text: &[u8], expected: u64, suffix: &[u8]) -> Option<u64> {
        let (found, rest) = text.strip_prefix(self.prefix.as_bytes())?.split_first_chunk()?;
        if rest != suffix {
            return None;
        }
        if *found == stamp(self.pair, expected) { Some(expected) } else { self.parse(found) }
    }

    fn parse(&self, stamp: &[u8; STAMP_BYTES]) -> Option<u64> {
        let digits = std::str::from_utf8(stamp).ok()?;
        let value = u64::from_str_radix(digits, 16).ok()?;
        let (pair, sequence) = (value >> SEQUENCE_BITS, value & ((1 << SEQUENCE_BITS) - 1));
        (pair == u64::from(self.pair)).then_some(sequence)
    }
}

fn stamp(pair: u32, sequence: u64) -> [u8; STAMP_BYTES] {
    let value = u64::from(pair) << SEQUENCE_BITS | sequence;
    let mut digits = value.to_be_bytes().map(|byte| [byte >> 4, byte & 0x0F]);
    for digit in digits.as_flattened_mut() {
        *digit += if *digit < 10 { b'0' } else { b'a' - 10 };
    }
    let mut stamp = [0; STAMP_BYTES];
    stamp.copy_from_slice(digits.as_flattened());
    stamp
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script() -> Script {
        let text = format!("send,100000000,{}..{}", Script::STAMP, Script::STAMP);
        Script::new(1, &text, "7:".to_owned())
    }

    #[test]
    fn a_message_is_the_text_with_its_stamps() {
        let (mut out, mut expected) = (b"before".to_vec(), b"before".to_vec());
        script().append(31, &mut out);
        append_text(&mut expected, "send,100000000,000001000000001f..000001000000001f");
        assert_eq!(out, expected);
    }

    #[test]
    fn a_message_is_recognised_by_prefix_pair_and_suffix() {
        let recognised = |text: &str| script().recognise(text.as_bytes(), 5, b"..");
        assert_eq!(recognised("7:0000010000000005.."), Some(5));
        assert_eq!(recognised("7:0000010000000009.."), Some(9));
        for text in ["8:0000010000000005..", "7:0000020000000005..", "7:0000010000000005.!", "7:"] {
            assert_eq!(recognised(text), None);
        }
    }
}
