//! Masking (RFC 6455 section 5.3): XOR with a four-byte key that repeats.

/// Masks or unmasks `payload` in place; `offset` is the position of its first byte in the frame.
///
/// Eight bytes at a time, which the compiler widens to what the CPU has; the key is rotated to the
/// offset first, so a payload that arrives in pieces needs no alignment.
pub fn mask(payload: &mut [u8], key: [u8; 4], offset: usize) {
    let key = u32::from_le_bytes(key).rotate_right(8 * (offset as u32 & 3));
    let wide = u64::from(key) << 32 | u64::from(key);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let bytes: &mut [u8; 8] = chunk.try_into().expect("chunks_exact gives eight bytes");
        *bytes = (u64::from_le_bytes(*bytes) ^ wide).to_le_bytes();
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(wide.to_le_bytes()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_definition_in_the_rfc(
            payload in proptest::collection::vec(any::<u8>(), 0..100),
            key: [u8; 4],
            offset in 0usize..9,
        ) {
            let expected: Vec<u8> =
                payload.iter().enumerate().map(|(i, b)| b ^ key[(i + offset) % 4]).collect();
            let mut masked = payload.clone();
            mask(&mut masked, key, offset);
            prop_assert_eq!(&masked, &expected);
            mask(&mut masked, key, offset);
            prop_assert_eq!(&masked, &payload);
        }
    }
}
