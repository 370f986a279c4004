//! The duplicate window: the hash of the text that a device sent last, and when.

use std::num::NonZeroU64;

use switchboard_proto::text::DUPLICATE_WINDOW;
use twox_hash::xxhash3_128::Hasher;

use crate::Moment;

/// Secret under which texts are hashed, drawn at random, so that nobody outside can make two texts
/// that count as one.
#[derive(Clone, Debug)]
pub struct DigestKey([u8; DigestKey::LEN]);

impl DigestKey {
    /// Bytes of a key: XXH3's own secret has as many.
    pub const LEN: usize = 192;

    /// Returns the key with these bytes.
    pub fn new(bytes: [u8; DigestKey::LEN]) -> DigestKey {
        DigestKey(bytes)
    }

    /// Returns a text's hash: XXH3-128 with this key as its secret.
    ///
    /// For the duplicate window it is compared only with the hash of the sender's last text. A
    /// collision, one in 2^128, would answer `Duplicate message` to a text that is none.
    #[inline]
    pub fn digest(&self, text: &[u8]) -> Digest {
        let hash = Hasher::oneshot_with_secret(&self.0, text)
            .expect("a key is as long as XXH3's own secret");
        Digest { high: (hash >> 64) as u64, low: hash as u64 }
    }

    /// Returns the digest of a message's receiver and body together; each of its halves depends on
    /// both.
    pub(crate) fn content(&self, to: u64, body: &[u8]) -> Digest {
        let (body, to) = (self.digest(body), to.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Digest { high: body.high ^ to, low: body.low ^ to }
    }
}

/// A 128-bit hash. Two words and not a `u128`, whose alignment would cost each device eight bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest {
    high: u64,
    low: u64,
}

impl Digest {
    /// Returns the half of it that is kept for an id or a content.
    pub(crate) fn half(self) -> u64 {
        self.low
    }

    /// Returns this digest, tied to one incarnation of a device: in another incarnation the same id
    /// gives another digest.
    pub(crate) fn of_incarnation(self, incarnation: u64) -> Digest {
        // In the half that is kept.
        Digest { low: self.low ^ incarnation, ..self }
    }

    /// Returns the digest as it is stored.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.high) << 64 | u128::from(self.low)).to_be_bytes()
    }

    /// Returns a stored digest, which means something only under the key that it was made with.
    pub fn from_bytes(bytes: [u8; 16]) -> Digest {
        let hash = u128::from_be_bytes(bytes);
        Digest { high: (hash >> 64) as u64, low: hash as u64 }
    }
}

/// The text that a device sent last, of those that were delivered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastText {
    digest: Digest,
    /// The moment's milliseconds plus one: never 0, so that an `Option` of it takes no more space.
    at_ms: NonZeroU64,
}

impl LastText {
    /// Returns whether a text counts as a duplicate: it is the same, and the window is still open.
    #[inline]
    pub(crate) fn is_repeated_by(&self, digest: Digest, now: Moment) -> bool {
        self.digest == digest && now.since(self.at()) < DUPLICATE_WINDOW
    }

    pub(crate) fn new(digest: Digest, at: Moment) -> LastText {
        LastText { digest, at_ms: NonZeroU64::MIN.saturating_add(at.ms()) }
    }

    #[inline]
    fn at(&self) -> Moment {
        Moment::from_ms(self.at_ms.get() - 1)
    }

    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only half of the digest is kept. The receiver once counted in the other half alone, so a
    /// message to somebody else under a used id was taken for a retry, and accepted without being
    /// delivered.
    #[test]
    fn receiver_and_body_are_both_in_the_half_that_is_kept() {
        let key = DigestKey::new([7; DigestKey::LEN]);
        let half = |to, body| key.content(to, body).half();
        assert_eq!(half(1, b"a"), half(1, b"a"));
        assert_ne!(half(1, b"a"), half(2, b"a"));
        assert_ne!(half(1, b"a"), half(1, b"b"));
    }
}
