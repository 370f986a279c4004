//! Frame headers (RFC 6455 section 5.2): parsing and writing.

use std::ops::Range;

use super::decoder::{Role, Violation};
use super::mask::mask;

/// The frame types of RFC 6455 section 11.8; the reserved ones are rejected when parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// Continues the message that an earlier frame began.
    Continuation = 0x0,
    /// A message of UTF-8 text.
    Text = 0x1,
    /// A message of bytes.
    Binary = 0x2,
    /// Starts or answers the closing handshake.
    Close = 0x8,
    /// Asks for a pong with the same payload.
    Ping = 0x9,
    /// Answers a ping.
    Pong = 0xA,
}

impl Opcode {
    fn read(bits: u8) -> Result<Opcode, Violation> {
        Ok(match bits {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            reserved => return Err(Violation::ReservedOpcode(reserved)),
        })
    }

    /// Returns true for a control frame: at most 125 bytes, never fragmented.
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// Largest payload of a control frame (RFC 6455 section 5.5).
pub(crate) const CONTROL_PAYLOAD_MAX: u64 = 125;

/// Longest header: 2 bytes, 8 of extended length, 4 of masking key.
pub(crate) const HEADER_LEN_MAX: usize = 14;

/// First bit: the frame ends its message.
const FIN: u8 = 0x80;
/// Second bit: the message is compressed (RFC 7692 section 6).
pub(crate) const RSV1: u8 = 0x40;
/// The two bits that no supported extension uses.
const RSV2_RSV3: u8 = 0x30;
const MASKED: u8 = 0x80;

/// A parsed frame header, each field checked by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) fin: bool,
    pub(crate) compressed: bool,
    pub(crate) opcode: Opcode,
    pub(crate) key: [u8; 4],
    pub(crate) payload_len: u64,
    /// Bytes of the header itself.
    pub(crate) len: usize,
}

impl Header {
    /// Parses the header at the start of `input`; returns `None` while it is incomplete.
    ///
    /// A wrong first or second byte is reported at once, before the length has arrived.
    #[inline]
    pub(crate) fn read(input: &[u8], role: Role) -> Result<Option<Header>, Violation> {
        let [first, second, ..] = *input else { return Ok(None) };
        if first & RSV2_RSV3 != 0 {
            return Err(Violation::ReservedBits);
        }
        let opcode = Opcode::read(first & 0x0F)?;
        let masked = second & MASKED != 0;
        match role {
            Role::Server if !masked => return Err(Violation::Unmasked),
            Role::Client if masked => return Err(Violation::Masked),
            _ => {}
        }
        let short_len = second & !MASKED;
        let fin = first & FIN != 0;
        if opcode.is_control() {
            if !fin {
                return Err(Violation::FragmentedControl);
            }
            if u64::from(short_len) > CONTROL_PAYLOAD_MAX {
                return Err(Violation::LongControl);
            }
        }
        let Some((payload_len, mut len)) = read_len(short_len, input)? else { return Ok(None) };
        let mut key = [0; 4];
        if masked {
            let Some(bytes) = input.get(len..len + 4) else { return Ok(None) };
            key.copy_from_slice(bytes);
            len += 4;
        }
        Ok(Some(Header { fin, compressed: first & RSV1 != 0, opcode, key, payload_len, len }))
    }
}

/// Returns the payload length and the position after it; the shortest form is required (section
/// 5.2).
#[inline]
fn read_len(short_len: u8, input: &[u8]) -> Result<Option<(u64, usize)>, Violation> {
    Ok(match short_len {
        126 => {
            let Some(bytes) = input.get(2..4) else { return Ok(None) };
            let len = u16::from_be_bytes(bytes.try_into().expect("two bytes"));
            if len < 126 {
                return Err(Violation::LengthNotMinimal);
            }
            Some((u64::from(len), 4))
        }
        127 => {
            let Some(bytes) = input.get(2..10) else { return Ok(None) };
            let len = u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
            if len >> 63 != 0 {
                return Err(Violation::LengthOutOfRange);
            }
            if len <= u64::from(u16::MAX) {
                return Err(Violation::LengthNotMinimal);
            }
            Some((len, 10))
        }
        len => Some((u64::from(len), 2)),
    })
}

/// Writes the header of an unfragmented frame from a server: final and unmasked.
#[inline]
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize) {
    write_header_bits(out, FIN | opcode as u8, 0, payload_len);
}

/// Like [`write_header`], with RSV1 set: the payload is compressed (RFC 7692 section 6).
pub fn write_header_reserved(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize) {
    write_header_bits(out, FIN | RSV1 | opcode as u8, 0, payload_len);
}

/// Writes a whole unfragmented frame from a server.
#[inline]
pub fn write_server_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    write_header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Like [`write_server_frame`], with a payload that `write` appends in place.
///
/// The length is known only afterwards: the header is first written for `len_guess` bytes, and
/// the payload is moved if the real header has another length.
#[inline]
pub fn write_server_frame_with(
    out: &mut Vec<u8>,
    opcode: Opcode,
    len_guess: usize,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    write_header(out, opcode, len_guess);
    let body = out.len();
    write(out);
    let len = out.len() - body;
    match &mut out[start..body] {
        [_, short] if len <= 125 => *short = len as u8,
        [_, 126, high, low] if (126..=0xFFFF).contains(&len) => {
            [*high, *low] = (len as u16).to_be_bytes();
        }
        _ => write_header_anew(out, opcode, start..body, len),
    }
}

/// Replaces a header by one of another length.
#[cold]
fn write_header_anew(out: &mut Vec<u8>, opcode: Opcode, old: Range<usize>, len: usize) {
    let mut header = Vec::with_capacity(HEADER_LEN_MAX);
    write_header(&mut header, opcode, len);
    out.splice(old, header);
}

/// Writes a whole unfragmented frame from a client, masked with `key`.
///
/// RFC 6455 section 5.3 requires an unpredictable key: a client that writes to a server it does
/// not own must draw a fresh one for each frame.
pub fn write_client_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], key: [u8; 4]) {
    write_header_bits(out, FIN | opcode as u8, MASKED, payload.len());
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    mask(&mut out[start..], key, 0);
}

// Always inlined: for most callers the mask bit is a constant 0, and one caller that masks must
// not spoil that.
#[inline(always)]
fn write_header_bits(out: &mut Vec<u8>, first: u8, masked: u8, payload_len: usize) {
    match payload_len {
        0..=125 => out.extend_from_slice(&[first, masked | payload_len as u8]),
        126..=0xFFFF => {
            let [high, low] = (payload_len as u16).to_be_bytes();
            out.extend_from_slice(&[first, masked | 126, high, low]);
        }
        _ => {
            out.extend_from_slice(&[first, masked | 127]);
            out.extend_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_written_in_its_place_whatever_its_length_was_thought_to_be() {
        let lens = [0, 125, 126, 65_535, 65_536];
        for (len, guess) in lens.iter().flat_map(|len| lens.map(|guess| (*len, guess))) {
            let payload = vec![b'x'; len];
            let (mut expected, mut out) = (b"before".to_vec(), b"before".to_vec());
            write_server_frame(&mut expected, Opcode::Text, &payload);
            write_server_frame_with(&mut out, Opcode::Text, guess, |out| {
                out.extend_from_slice(&payload);
            });
            assert_eq!(out, expected, "{len} bytes, thought to be {guess}");
        }
    }
}
