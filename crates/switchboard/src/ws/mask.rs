//! Masking (RFC 6455 section 5.3): XOR with a four-byte key that repeats.
//!
//! The only place with `unsafe`: the same loop, compiled a second time for AVX2, halves the time
//! for a long payload (see `mask` in `bench/benches/codec.rs`), and it is unsafe to call a
//! function that is compiled for more than the build's baseline. The function itself contains no
//! unsafe code.

#![allow(unsafe_code)]

/// Payload length from which checking the CPU's features pays off.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 512;

/// Masks or unmasks `payload` in place; `offset` is the position of its first byte in the frame.
///
/// Returns true if the result is ASCII: that costs nothing to find out in the same pass, and
/// saves most texts the UTF-8 check.
#[inline]
pub fn mask(payload: &mut [u8], key: [u8; 4], offset: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if payload.len() >= LONG && std::is_x86_feature_detected!("avx2") {
        // SAFETY: calling a function with `target_feature` requires only that the CPU has the
        // feature, which was just checked.
        return unsafe { mask_avx2(payload, key, offset) };
    }
    mask_words(payload, key, offset)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn mask_avx2(payload: &mut [u8], key: [u8; 4], offset: usize) -> bool {
    mask_words(payload, key, offset)
}

/// Works on eight bytes at a time, which the compiler widens to the registers that it may use.
/// Rotating the key by the offset first makes it fit a payload that arrives in pieces.
#[inline(always)]
fn mask_words(payload: &mut [u8], key: [u8; 4], offset: usize) -> bool {
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;

    let key = u32::from_le_bytes(key).rotate_right(8 * (offset as u32 & 3));
    let wide = u64::from(key) << 32 | u64::from(key);
    let (words, rest) = payload.as_chunks_mut::<8>();
    // The OR of all bytes: one test of the high bits at the end tells whether any is not ASCII.
    let mut seen = 0;
    for word in words {
        let clear = u64::from_le_bytes(*word) ^ wide;
        seen |= clear;
        *word = clear.to_le_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(wide.to_le_bytes()) {
        *byte ^= key;
        seen |= u64::from(*byte);
    }
    seen & HIGH_BITS == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_definition_in_the_rfc(
            payload in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..100),
                proptest::collection::vec(any::<u8>(), 500..2_000),
                proptest::collection::vec(0u8..128, 0..2_000),
            ],
            key: [u8; 4],
            offset in 0usize..9,
        ) {
            let expected: Vec<u8> =
                payload.iter().enumerate().map(|(i, b)| b ^ key[(i + offset) % 4]).collect();
            let mut masked = payload.clone();
            prop_assert_eq!(mask(&mut masked, key, offset), expected.is_ascii());
            prop_assert_eq!(&masked, &expected);
            prop_assert_eq!(mask(&mut masked, key, offset), payload.is_ascii());
            prop_assert_eq!(&masked, &payload);
        }
    }
}
