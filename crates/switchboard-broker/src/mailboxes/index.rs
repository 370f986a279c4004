//! A hash table from ids to their numbers, in which a look-up, usually of an id that is new,
//! touches one cache line.
//!
//! Half a million ids are somewhere in memory, so a look-up costs as much as the lines that it
//! touches. A slot has a number, and the half of the hash that decides where the slot belongs.
//! Nothing else is read, neither to pass over other slots nor to move them. Linear probing, and
//! shifting back on removal (Knuth, The Art of Computer Programming, vol. 3, section 6.4,
//! algorithm R).

use crate::shrink::Table;

/// The table from hashes to numbers.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Their number is a power of two, or 0; at most three quarters are taken.
    slots: Vec<Slot>,
    len: usize,
}

/// The high half of a hash, made odd, above a number; 0 is an empty slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot(u64);

const SLOTS_MIN: usize = 4;

impl Slot {
    fn new(hash: u64, number: u32) -> Slot {
        Slot(hash & !u64::from(u32::MAX) | 1 << 32 | u64::from(number))
    }

    fn is_empty(self) -> bool {
        self == Slot::default()
    }

    fn number(self) -> u32 {
        self.0 as u32
    }

    /// Returns whether the slot's hash may be this one, judged by the half that the slot has.
    fn may_be(self, hash: u64) -> bool {
        self.0 >> 32 == hash >> 32 | 1
    }
}

impl Index {
    /// Returns the number of this hash for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.position(hash, is_it).map(|at| self.slots[at].number())
    }

    /// Sets the number of a hash, in the place of the one for which `is_it` holds.
    #[inline]
    pub(super) fn set(&mut self, hash: u64, number: u32, is_it: impl Fn(u32) -> bool) {
        if let Some(at) = self.position(hash, is_it) {
            self.slots[at] = Slot::new(hash, number);
            return;
        }
        if 4 * (self.len + 1) > 3 * self.slots.len() {
            self.grow();
        }
        self.len += 1;
        self.place(Slot::new(hash, number));
    }

    /// Takes out this number of this hash, if it is there.
    #[inline]
    pub(super) fn remove(&mut self, hash: u64, number: u32) {
        let Some(mut hole) = self.position(hash, |other| other == number) else { return };
        self.len -= 1;
        let mut at = hole;
        loop {
            at = self.after(at);
            let slot = self.slots[at];
            if slot.is_empty() {
                break;
            }
            // This slot's content may move back to the hole, unless it would then lie before the
            // slot where a search for it begins.
            let mask = self.slots.len() - 1;
            let from_home = at.wrapping_sub(self.home(slot)) & mask;
            if from_home >= at.wrapping_sub(hole) & mask {
                self.slots[hole] = slot;
                hole = at;
            }
        }
        self.slots[hole] = Slot::default();
    }

    /// Returns where the search for a slot begins.
    #[inline]
    fn home(&self, slot: Slot) -> usize {
        // The highest bits. With fewer than 2^31 slots these never include bit 32, which
        // `Slot::new` sets. This is not called on a table without slots.
        (slot.0 >> (64 - self.slots.len().trailing_zeros())) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    #[inline]
    fn position(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mut at = self.home(Slot(hash));
        loop {
            let slot = self.slots[at];
            if slot.is_empty() {
                return None;
            }
            if slot.may_be(hash) && is_it(slot.number()) {
                return Some(at);
            }
            at = self.after(at);
        }
    }

    fn place(&mut self, slot: Slot) {
        let mut at = self.home(slot);
        while !self.slots[at].is_empty() {
            at = self.after(at);
        }
        self.slots[at] = slot;
    }

    #[cold]
    fn grow(&mut self) {
        self.move_to((2 * self.slots.len()).max(SLOTS_MIN));
    }

    /// Moves all numbers to this many new slots.
    fn move_to(&mut self, slots: usize) {
        let slots = std::mem::replace(&mut self.slots, vec![Slot::default(); slots]);
        for slot in slots.into_iter().filter(|slot| !slot.is_empty()) {
            self.place(slot);
        }
    }
}

impl Table for Index {
    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn capacity(&self) -> usize {
        3 * self.slots.len() / 4
    }

    fn shrink_to(&mut self, capacity: usize) {
        let slots = match capacity.max(self.len) {
            0 => 0,
            numbers => (4 * numbers).div_ceil(3).next_power_of_two().max(SLOTS_MIN),
        };
        if slots < self.slots.len() {
            self.move_to(slots);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::shrink;

    /// Hashes that collide: some in their high halves, some only in their low halves.
    fn hash() -> impl Strategy<Value = u64> {
        prop_oneof![
            (0..4u64).prop_map(|high| high << 62),
            (0..64u64).prop_map(|high| high << 58 | 7),
            (0..3u64).prop_map(|low| u64::MAX << 32 | low),
        ]
    }

    proptest! {
        /// One number for each hash, as in `Window`.
        #[test]
        fn it_holds_what_a_map_holds(
            steps in proptest::collection::vec((hash(), any::<bool>()), 0..300),
        ) {
            let mut index = Index::default();
            let mut map = HashMap::new();
            let mut hashes = Vec::new();
            for (hash, removes) in steps {
                if removes {
                    if let Some(number) = map.remove(&hash) {
                        index.remove(hash, number);
                    }
                    index.remove(hash, u32::MAX);
                    shrink::shrink(&mut index, 0);
                } else {
                    let number = hashes.len() as u32;
                    hashes.push(hash);
                    index.set(hash, number, |other| hashes[other as usize] == hash);
                    map.insert(hash, number);
                }
                prop_assert_eq!(index.len, map.len());
                prop_assert_eq!(shrink::audit("index", &index, SLOTS_MIN), Ok(()));
                for hash in &hashes {
                    let found = index.find(*hash, |other| hashes[other as usize] == *hash);
                    prop_assert_eq!(found, map.get(hash).copied());
                }
            }
        }
    }
}
