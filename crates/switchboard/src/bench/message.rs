//! The messages of a load: a stamp that no other message has, and filler up to the size.

use super::frame;

/// A stamp is 16 hexadecimal digits: 24 bits of pair number and 40 bits of sequence number.
pub(super) const STAMP_BYTES: usize = 16;
const SEQUENCE_BITS: u32 = 40;

/// The messages from one device to another.
pub(super) struct Script {
    /// Number of the pair.
    pair: u32,
    /// `<from>:`, with which every message comes.
    from: Vec<u8>,
    /// A message as it is sent, framed and masked, all but the stamp.
    template: Vec<u8>,
    /// Where the stamp is in the template.
    stamp_in_frame: usize,
    /// Where the stamp is in the payload, on which its masking depends.
    stamp_in_payload: usize,
}

impl Script {
    /// Messages of device `from` to device `to`, with `filler` behind the stamp.
    pub(super) fn new(pair: u32, from: u32, to: u32, filler: &[u8]) -> Self {
        let command = format!("send,{to},").into_bytes();
        let payload = [&command, &[0; STAMP_BYTES][..], filler].concat();
        let (template, payload_at) = frame::encode(frame::TEXT, &payload);
        Self {
            pair,
            from: format!("{from}:").into_bytes(),
            template,
            stamp_in_frame: payload_at + command.len(),
            stamp_in_payload: command.len(),
        }
    }

    /// Appends message number `sequence` as a masked frame.
    pub(super) fn append(&self, sequence: u64, out: &mut Vec<u8>) {
        let at = out.len() + self.stamp_in_frame;
        out.extend_from_slice(&self.template);
        let mut stamp = stamp(self.pair, sequence);
        frame::mask(&mut stamp, self.stamp_in_payload);
        out[at..at + STAMP_BYTES].copy_from_slice(&stamp);
    }

    /// The number of the message that came as `text`; `None` if it is none of these messages.
    /// Comparing with the stamp that is expected saves parsing it.
    pub(super) fn recognise(&self, text: &[u8], expected: u64, filler: &[u8]) -> Option<u64> {
        let (found, rest) = text.strip_prefix(self.from.as_slice())?.split_first_chunk()?;
        if rest != filler {
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

pub(super) fn stamp(pair: u32, sequence: u64) -> [u8; STAMP_BYTES] {
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

    #[test]
    fn a_stamp_is_sixteen_hexadecimal_digits() {
        assert_eq!(&stamp(0xABC, 0x1F), b"000abc000000001f");
    }

    #[test]
    fn a_message_is_the_command_with_stamp_and_filler() {
        let mut out = b"before".to_vec();
        Script::new(1, 7, 100_000_000, b"..").append(31, &mut out);
        let expected = b"send,100000000,000001000000001f..";
        assert_eq!(out, [b"before", frame::encode(frame::TEXT, expected).0.as_slice()].concat());
    }

    #[test]
    fn a_message_is_recognised_by_sender_pair_and_filler() {
        let script = Script::new(1, 7, 8, b"..");
        let recognised = |text: &str| script.recognise(text.as_bytes(), 5, b"..");
        assert_eq!(recognised("7:0000010000000005.."), Some(5));
        assert_eq!(recognised("7:0000010000000009.."), Some(9));
        for text in ["8:0000010000000005..", "7:0000020000000005..", "7:0000010000000005.!", "7:"] {
            assert_eq!(recognised(text), None);
        }
    }
}
