//! Which tokens to turn away for now, because a fetch of the key set may bring their key.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

/// Names of keys that are remembered; one that is forgotten has another fetch to wait for.
const MISSING_MAX: usize = 1_024;

/// Names of keys that somebody came with and the key set lacks, each with the set that is to judge
/// it: the first whose fetch began after somebody came with it.
///
/// Without a `kid` a token may be signed with any key that has none; they share one entry.
#[derive(Debug, Default)]
pub(super) struct Missing {
    /// Sets fetched so far.
    sets: u64,
    is_fetching: bool,
    /// Hash of the name, and the number of the set; the oldest first.
    judges: VecDeque<(u64, u64)>,
    hasher: RandomState,
}

impl Missing {
    pub(super) fn begin_fetch(&mut self) {
        self.is_fetching = true;
    }

    /// The fetch has ended; so many sets have come so far.
    pub(super) fn end_fetch(&mut self, sets: u64) {
        self.is_fetching = false;
        self.sets = sets;
    }

    /// Returns whether a key that set number `set` lacks may come with a later one. Only the set that is
    /// to judge says no: with those behind it, it begins anew, as the answer is old by then.
    pub(super) fn may_come(&mut self, kid: Option<&str>, set: u64) -> bool {
        let name = self.hasher.hash_one(kid);
        // What is fetched at this moment may have been read before the key was added.
        let next = self.sets + 1 + u64::from(self.is_fetching);
        match self.judges.iter_mut().find(|(known, _)| *known == name) {
            Some((_, judge)) if set <= *judge => set < *judge,
            Some((_, judge)) => {
                *judge = next;
                true
            }
            None => {
                if self.judges.len() == MISSING_MAX {
                    self.judges.pop_front();
                }
                self.judges.push_back((name, next));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_judges_only_who_came_before_its_fetch_began() {
        let mut missing = Missing::default();
        assert!(missing.may_come(Some("early"), 0));
        missing.begin_fetch();
        assert!(missing.may_come(Some("late"), 0));
        assert!(missing.may_come(Some("early"), 0));
        missing.end_fetch(1);
        assert!(!missing.may_come(Some("early"), 1));
        assert!(missing.may_come(Some("late"), 1));
        missing.begin_fetch();
        missing.end_fetch(2);
        assert!(!missing.may_come(Some("late"), 2));
        // The answer of the set before is old.
        assert!(missing.may_come(Some("early"), 2));
        assert!(missing.may_come(None, 2));
    }

    #[test]
    fn a_fetch_that_fails_judges_nobody() {
        let mut missing = Missing::default();
        assert!(missing.may_come(None, 0));
        missing.begin_fetch();
        missing.end_fetch(0);
        assert!(missing.may_come(None, 0));
    }

    #[test]
    fn strangers_cannot_fill_the_memory_nor_have_others_refused() {
        let mut missing = Missing::default();
        assert!(missing.may_come(Some("early"), 0));
        for stranger in 0..MISSING_MAX {
            assert!(missing.may_come(Some(&stranger.to_string()), 0));
        }
        assert_eq!(missing.judges.len(), MISSING_MAX);
        missing.end_fetch(1);
        assert!(missing.may_come(Some("early"), 1));
    }
}
