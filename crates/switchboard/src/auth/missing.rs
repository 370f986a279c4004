//! Decides which tokens to reject only for now, because the next fetch of the key set may bring
//! their key.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

/// Maximum number of key names remembered; a forgotten one has to wait for one more fetch.
const MISSING_MAX: usize = 1_024;

/// Key names that clients came with and the key set lacks. Each has a judging set: the first
/// whose fetch began after a client came with the name, and so the first that may say for
/// certain that there is no such key.
///
/// A token without a `kid` may be signed with any key that has none; such tokens share one
/// entry.
#[derive(Debug, Default)]
pub(super) struct Missing {
    /// Number of sets fetched so far.
    sets: u64,
    is_fetching: bool,
    /// Hash of the name, and the number of its judging set; oldest first.
    judges: VecDeque<(u64, u64)>,
    hasher: RandomState,
}

impl Missing {
    pub(super) fn begin_fetch(&mut self) {
        self.is_fetching = true;
    }

    /// Records the end of a fetch; `sets` have arrived so far.
    pub(super) fn end_fetch(&mut self, sets: u64) {
        self.is_fetching = false;
        self.sets = sets;
    }

    /// Returns true if a key that set number `set` lacks may arrive with a later one. Only the
    /// judging set itself says no; for a later set the name starts anew, because by then that
    /// answer is out of date.
    pub(super) fn may_come(&mut self, kid: Option<&str>, set: u64) -> bool {
        let name = self.hasher.hash_one(kid);
        // A fetch under way may have read the set before the key was added to it: wait for the
        // one after.
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
