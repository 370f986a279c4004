//! The frames of a load: built masked in advance, read back with the least work.
//!
//! Every device masks with the same key, so that a message is prepared once and copied often. That
//! breaks RFC 6455 section 5.3 (keys must not be predictable), which protects browsers' users from
//! pages; a load generator has neither.

/// Opcode of a text frame.
pub(super) const TEXT: u8 = 0x1;
/// Opcode of a ping frame.
pub(super) const PING: u8 = 0x9;
/// Opcode of a pong frame.
pub(super) const PONG: u8 = 0xA;

const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A server's frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) opcode: u8,
    pub(super) payload: &'a [u8],
    /// Bytes that the frame took, header included.
    pub(super) taken: usize,
}

/// The server sent what a server without extensions must not send to us.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the server sent a frame that is masked, fragmented or has a reserved bit set")]
pub(super) struct BadFrame;

/// Takes the frame at the start of `input`; `None` while it is incomplete.
pub(super) fn decode(input: &[u8]) -> Result<Option<Frame<'_>>, BadFrame> {
    let &[first, second, ..] = input else { return Ok(None) };
    if first & 0xF0 != 0x80 || second & 0x80 != 0 {
        return Err(BadFrame);
    }
    let Some((header, length)) = read_length(second, input) else { return Ok(None) };
    let taken = header + length;
    let frame = input.get(header..taken);
    Ok(frame.map(|payload| Frame { opcode: first & 0x0F, payload, taken }))
}

fn read_length(short: u8, input: &[u8]) -> Option<(usize, usize)> {
    Some(match short {
        126 => (4, usize::from(u16::from_be_bytes(*input.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*input.get(2..)?.first_chunk()?) as usize),
        short => (2, usize::from(short)),
    })
}

/// A masked frame with `payload`, and where in it the payload starts.
pub(super) fn encode(opcode: u8, payload: &[u8]) -> (Vec<u8>, usize) {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    let start = frame.len();
    frame.extend_from_slice(payload);
    mask(&mut frame[start..], 0);
    (frame, start)
}

/// Masks `part` of a payload that starts at `offset` of it.
pub(super) fn mask(part: &mut [u8], offset: usize) {
    for (index, byte) in part.iter_mut().enumerate() {
        *byte ^= MASK[(offset + index) % 4];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_reads_as_the_payload_once_unmasked() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let (mut frame, start) = encode(TEXT, &payload);
            mask(&mut frame[start..], 0);
            frame[1] &= 0x7F;
            frame.drain(start - 4..start);
            let taken = frame.len();
            let expected = Frame { opcode: TEXT, payload: &payload, taken };
            assert_eq!(decode(&frame), Ok(Some(expected)));
            assert_eq!(decode(&frame[..taken - 1]), Ok(None));
        }
    }

    #[test]
    fn masked_fragmented_and_reserved_frames_are_bad() {
        assert_eq!(decode(&[0x81, 0x80, 1, 2, 3, 4]), Err(BadFrame));
        assert_eq!(decode(&[0x01, 0x00]), Err(BadFrame));
        assert_eq!(decode(&[0xC1, 0x00]), Err(BadFrame));
    }
}
