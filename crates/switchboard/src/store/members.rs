//! Tells which segments in a damaged log's folder belong to the log.
//!
//! A mistaken copy may have put a segment of another log there. Its numbers and offsets mean
//! nothing here, and neither do its messages. So a segment counts as the log's only if random ids
//! say so: the manifest lists it, a segment of the log names it as the one before, or it names
//! one of the log as the one before.

use std::collections::BTreeMap;

use super::manifest::Content;
use super::segment::{Header, Previous};

/// The segments that belong to the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    /// The intact headers of all files, by number.
    headers: BTreeMap<u32, Header>,
    is_listed: bool,
    /// The manifest's tip.
    tip: Previous,
    /// The known ids of the log's segments by number, also of missing segments.
    ids: BTreeMap<u32, u64>,
}

impl Members {
    pub(super) fn new(headers: BTreeMap<u32, Header>, listed: Option<&Content>) -> Members {
        let mut it = Members { headers, is_listed: listed.is_some(), ..Members::default() };
        match listed {
            Some(Content { oldest, newest, tip, .. }) => {
                it.tip = *tip;
                let listed = [(oldest.number, oldest.id), (newest.number, newest.id)];
                it.ids.extend(listed.into_iter().chain([(tip.number, tip.id)]));
                // Number 0 stands for no segment.
                it.ids.remove(&0);
                it.follow();
            }
            None => it.ids = it.largest_family(),
        }
        it.fill_gaps();
        it
    }

    /// Returns the id of the log's segment of this number, if it is known.
    pub(super) fn id(&self, number: u32) -> Option<u64> {
        self.ids.get(&number).copied()
    }

    pub(super) fn has(&self, header: &Header) -> bool {
        self.id(header.number) == Some(header.id)
    }

    /// Adds a segment that lay under another name; false if it is not the log's, or not needed.
    pub(super) fn put_back(&mut self, header: &Header) -> bool {
        // Under the right name there is already a better candidate.
        if !self.has(header) || self.headers.contains_key(&header.number) {
            return false;
        }
        self.headers.insert(header.number, *header);
        self.follow();
        self.fill_gaps();
        true
    }

    /// Adds all segments that are linked, by any number of steps, to those that are known.
    fn follow(&mut self) {
        let headers: Vec<Header> = self.headers.values().copied().collect();
        loop {
            let known = self.ids.len();
            // Backwards first: a known segment names the one before it by id. A copy of the log
            // that diverged has a segment that follows the same one, and if links were followed
            // forwards first, both would be accepted.
            for header in headers.iter().rev().filter(|header| header.previous.number > 0) {
                if self.has(header) {
                    let previous = header.previous;
                    self.ids.entry(previous.number).or_insert(previous.id);
                }
            }
            for header in &headers {
                if self.id(header.number).is_none() && self.goes_on(header) {
                    self.ids.insert(header.number, header.id);
                }
            }
            if self.ids.len() == known {
                return;
            }
        }
    }

    /// Returns true if a segment follows one of the log, behind all that the manifest has as
    /// durable.
    fn goes_on(&self, header: &Header) -> bool {
        let previous = header.previous;
        // It would end the segment before at a point that the log had passed: a diverged copy
        // did that.
        let is_short = previous.number == self.tip.number && previous.end < self.tip.end;
        previous.number < header.number
            && self.id(previous.number) == Some(previous.id)
            && !is_short
    }

    /// Returns the largest set of linked segments, which is taken for the log if there is no
    /// manifest.
    fn largest_family(&self) -> BTreeMap<u32, u64> {
        let mut largest = (0, BTreeMap::new());
        let mut left = self.headers.clone();
        while let Some((_, header)) = left.pop_first() {
            let mut family = self.clone();
            family.ids = [(header.number, header.id)].into();
            family.follow();
            let before = left.len();
            left.retain(|_, header| !family.has(header));
            let size = before - left.len();
            if size > largest.0 || largest.1.is_empty() {
                largest = (size, family.ids);
            }
        }
        largest.1
    }

    /// Adds segments that stand alone because the header that linked them is lost, if nothing
    /// speaks against them.
    fn fill_gaps(&mut self) {
        // The newest first: its header may say which of the older ones belong to it.
        while let Some(header) = self.headers.values().rev().find(|header| self.is_in_gap(header)) {
            self.ids.insert(header.number, header.id);
            self.follow();
        }
    }

    fn is_in_gap(&self, header: &Header) -> bool {
        if self.id(header.number).is_some() {
            return false;
        }
        let passes_over = match self.ids.range(header.number..).next() {
            // The next segment's header is intact, and the segment that it names as the one before
            // is known already, so it is not this one.
            Some((number, _)) => self.headers.get(number).is_some_and(|above| self.has(above)),
            None => self.is_listed,
        };
        // One that names a segment at or before the last known one would end the log there,
        // while it is known to go on.
        let below = self.ids.range(..header.number).next_back();
        !passes_over && below.is_none_or(|(&number, _)| header.previous.number > number)
    }
}
