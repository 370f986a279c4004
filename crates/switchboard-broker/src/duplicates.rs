//! The duplicate window: the hash of the text that a device sent last, and when.

use std::num::NonZeroU64;

use switchboard_proto::text::DUPLICATE_WINDOW;
use switchboard_proto::v1::ID_LEN_MAX;
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

    /// Returns the digest that identifies a message: of its sender, its receiver and its id.
    #[inline]
    pub(crate) fn message(&self, from: u64, to: u64, id: &str) -> Digest {
        let mut all = [0; 16 + ID_LEN_MAX];
        all[..8].copy_from_slice(&from.to_le_bytes());
        all[8..16].copy_from_slice(&to.to_le_bytes());
        let id = id.as_bytes();
        all[16..16 + id.len()].copy_from_slice(id);
        self.digest(&all[..16 + id.len()])
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

    /// Returns the digest for one incarnation of the sender: in another incarnation the same
    /// message has another digest.
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

    #[test]
    fn sender_receiver_and_id_all_identify_a_message() {
        let key = DigestKey::new([7; DigestKey::LEN]);
        let half = |from, to, id: &str| key.message(from, to, id).half();
        assert_eq!(half(1, 2, "a"), half(1, 2, "a"));
        for other in [half(3, 2, "a"), half(1, 3, "a"), half(2, 1, "a"), half(1, 2, "b")] {
            assert_ne!(half(1, 2, "a"), other);
        }
        key.message(1, 2, &"i".repeat(ID_LEN_MAX));
    }
}
