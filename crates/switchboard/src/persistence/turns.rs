//! Order in which fetches are served: devices that wait share the reader by bytes.
//!
//! This is self-clocked fair queueing (Golestani, 1994): the clock counts the bytes that each
//! waiting device would have got if all were served equally, and a fetch is due when the clock has
//! advanced by the fetch's own length. So a small fetch passes large ones, and a large one waits
//! for no more bytes of any other device than it has itself.

use std::collections::BTreeMap;

/// Bytes that every fetch counts in addition, as it takes a look-up and an answer.
const FETCH_OVERHEAD: u64 = 4 << 10;

/// Fetches that wait for their turn. A device has at most one of them.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// By the time at which they are due, then in order of arrival.
    waiting: BTreeMap<(u64, u64), T>,
    clock: u64,
    arrivals: u64,
}

impl<T> Default for Turns<T> {
    fn default() -> Turns<T> {
        Turns { waiting: BTreeMap::new(), clock: 0, arrivals: 0 }
    }
}

impl<T> Turns<T> {
    /// Adds a fetch of this many bytes.
    pub(super) fn push(&mut self, bytes: u64, fetch: T) {
        let due = self.clock + FETCH_OVERHEAD + bytes;
        self.arrivals += 1;
        self.waiting.insert((due, self.arrivals), fetch);
    }

    /// Takes out the fetch whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let ((due, _), fetch) = self.waiting.pop_first()?;
        self.clock = due;
        Some(fetch)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Strangers who came back to large messages again and again once made everybody else wait for
    /// seconds for a message of a few bytes.
    #[test]
    fn a_small_fetch_passes_large_ones_that_came_before() {
        let mut turns = Turns::default();
        (0..1_000).for_each(|n| turns.push(900_000, n));
        turns.push(10, 1_000);
        assert_eq!(turns.pop(), Some(1_000));
        assert_eq!(turns.pop(), Some(0), "the others in order of arrival");
        turns.push(10, 1_001);
        assert_eq!(turns.pop(), Some(1), "it was due already");
    }

    #[test]
    fn a_large_fetch_waits_for_no_more_bytes_of_any_other_than_its_own() {
        let mut turns = Turns::default();
        turns.push(1_000_000, "large");
        turns.push(10_000, "small");
        let mut bytes = 0;
        while turns.pop() == Some("small") {
            bytes += 10_000;
            turns.push(10_000, "small");
        }
        assert!((600_000..=1_000_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn equal_ones_come_in_the_order_in_which_they_came() {
        let mut turns = Turns::default();
        (0..10).for_each(|n| turns.push(7, n));
        assert!((0..10).all(|n| turns.pop() == Some(n)));
        assert!(turns.is_empty());
    }
}
