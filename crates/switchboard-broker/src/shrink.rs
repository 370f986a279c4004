//! Gives back memory of tables whose length clients choose, by one rule, so that none keeps the
//! size of its fullest moment.
//!
//! A table that is less than a quarter full shrinks to twice its length, an empty one to
//! nothing. Between two such shrinks, or a shrink and the next doubling, its length halves or
//! doubles, so the cost is constant for each entry that came or went. A table then has memory
//! for at most about four times its entries, beside a few that are not worth the work.

use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash};

/// A collection that may have memory for more entries than it holds.
pub(crate) trait Table {
    fn len(&self) -> usize;
    /// Number of entries that it has memory for. A hash table does not count slots that removed
    /// entries left unusable, and so may have memory for some more.
    fn capacity(&self) -> usize;
    fn shrink_to(&mut self, capacity: usize);
}

/// Entries for which each table of a device keeps memory: small bursts need no allocation.
pub(crate) const KEPT: usize = 8;

/// As [`KEPT`], for a table of which each shard has only one.
pub(crate) const KEPT_BY_SHARD: usize = 256;

/// Applies the rule to a table from which entries were taken. One with memory for at most twice
/// `kept` entries is left alone; one that is not empty keeps memory for at least `kept`.
#[inline]
pub(crate) fn shrink(table: &mut impl Table, kept: usize) {
    if is_oversized(table, kept) {
        shrink_oversized(table, kept);
    }
}

#[inline]
fn is_oversized(table: &impl Table, kept: usize) -> bool {
    let capacity = table.capacity();
    capacity > 2 * kept && 4 * table.len() < capacity
}

#[cold]
fn shrink_oversized(table: &mut impl Table, kept: usize) {
    let len = table.len();
    // An empty table is freed, not moved into a small one: the allocator reuses sooner what is
    // freed whole.
    table.shrink_to(if len == 0 { 0 } else { (2 * len).max(kept) });
}

/// Fails if the rule was not applied to a table. For tests.
pub(crate) fn audit(name: &str, table: &impl Table, kept: usize) -> Result<(), String> {
    let (len, capacity) = (table.len(), table.capacity());
    if is_oversized(table, kept) {
        return Err(format!("{name}: {len} entries, memory for {capacity}"));
    }
    Ok(())
}

macro_rules! table {
    ($name:ty, $($generic:ident $(: $bound:ident $(+ $more:ident)*)?),+) => {
        impl<$($generic $(: $bound $(+ $more)*)?),+> Table for $name {
            #[inline]
            fn len(&self) -> usize {
                self.len()
            }

            #[inline]
            fn capacity(&self) -> usize {
                self.capacity()
            }

            fn shrink_to(&mut self, capacity: usize) {
                self.shrink_to(capacity);
            }
        }
    };
}

table!(Vec<T>, T);
table!(VecDeque<T>, T);
table!(BinaryHeap<T>, T: Ord);
table!(HashMap<K, V, S>, K: Eq + Hash, V, S: BuildHasher);
table!(HashSet<K, S>, K: Eq + Hash, S: BuildHasher);

#[cfg(test)]
mod tests {
    use rustc_hash::FxHashMap;

    use super::*;

    /// Counts how often a table is moved, and holds it to four times its length.
    fn empty<T: Table>(table: &mut T, mut take_one: impl FnMut(&mut T)) -> usize {
        let mut shrinks = 0;
        while table.len() > 0 {
            take_one(table);
            let before = table.capacity();
            shrink(table, KEPT);
            shrinks += usize::from(table.capacity() < before);
            audit("table", table, KEPT).unwrap();
        }
        assert!(table.capacity() <= 2 * KEPT);
        shrinks
    }

    #[test]
    fn a_table_that_empties_shrinks_as_often_as_it_grew() {
        let mut queue: VecDeque<u64> = (0..100_000).collect();
        let shrinks = empty(&mut queue, |queue| {
            queue.pop_front();
        });
        assert!(shrinks <= 17, "{shrinks}");
        let mut map: FxHashMap<u64, u64> = (0..100_000).map(|key| (key, key)).collect();
        let mut key = 0..;
        let shrinks = empty(&mut map, |map| {
            map.remove(&key.next().unwrap());
        });
        assert!(shrinks <= 2 * 17, "{shrinks}");
    }

    #[test]
    fn small_tables_keep_their_memory_until_nothing_is_to_be_kept() {
        let mut queue: VecDeque<u64> = (0..2 * KEPT as u64).collect();
        queue.clear();
        shrink(&mut queue, KEPT);
        assert_eq!(queue.capacity(), 2 * KEPT);
        shrink(&mut queue, 0);
        assert_eq!(queue.capacity(), 0);
    }
}
