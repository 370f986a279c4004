//! WebSocket frames (RFC 6455 section 5.2), as far as a relay of unfragmented texts needs them.

/// Opcode of a text frame.
pub(crate) const TEXT: u8 = 0x1;
/// Opcode of a ping frame.
pub(crate) const PING: u8 = 0x9;
/// Opcode of a pong frame.
pub(crate) const PONG: u8 = 0xA;

/// Length in bytes of the longest header that [`encode_header`] writes.
pub(crate) const HEADER_MAX: usize = 10;

/// A client's frame, with its payload unmasked in place.
pub(crate) struct Frame<'a> {
    /// The low four bits of the first byte.
    pub(crate) opcode: u8,
    /// The application data.
    pub(crate) payload: &'a [u8],
    /// Length of the frame in bytes, header included.
    pub(crate) taken: usize,
}

/// Decodes the frame at the start of `input`; `None` while it is incomplete.
pub(crate) fn decode(input: &mut [u8]) -> Option<Frame<'_>> {
    let opcode = input.first()? & 0x0F;
    let (header, length) = match *input.get(1)? & 0x7F {
        126 => (8, usize::from(u16::from_be_bytes(*input.get(2..)?.first_chunk()?))),
        127 => (14, u64::from_be_bytes(*input.get(2..)?.first_chunk()?) as usize),
        short => (6, usize::from(short)),
    };
    let taken = header + length;
    let (head, payload) = input.get_mut(..taken)?.split_at_mut(header);
    unmask(payload, *head.last_chunk()?);
    Some(Frame { opcode, payload, taken })
}

/// Works on eight bytes at a time, which the compiler vectorizes.
fn unmask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    let (half, tail) = tail.as_chunks_mut::<4>();
    for word in half {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(key)).to_ne_bytes();
    }
    for (byte, mask) in tail.iter_mut().zip(key) {
        *byte ^= mask;
    }
}

/// Appends the header of a server's frame with `length` bytes of payload.
pub(crate) fn encode_header(out: &mut Vec<u8>, opcode: u8, length: usize) {
    let first = 0x80 | opcode;
    if length < 126 {
        out.extend_from_slice(&[first, length as u8]);
    } else if let Ok(length) = u16::try_from(length) {
        let [high, low] = length.to_be_bytes();
        out.extend_from_slice(&[first, 126, high, low]);
    } else {
        out.extend_from_slice(&[first, 127]);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}
