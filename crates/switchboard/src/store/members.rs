//! Which of the segments in a damaged log's folder belong to the log.
//!
//! A segment of another log may lie there, put by a mistaken copy. Its numbers and offsets mean
//! nothing here, and neither do its messages. So a segment is taken for the log's only where random
//! ids say so: the manifest lists it, a segment of the log names it as the one before, or it names
//! one of the log as the one before.

use std::collections::BTreeMap;

use super::manifest::Content;
use super::segment::{Header, Previous};

/// The segments that belong to the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    /// Of all files that have one.
    headers: BTreeMap<u32, Header>,
    is_listed: bool,
    /// As the manifest has it.
    tip: Previous,
    /// By number, the ids of the log's segments as far as they are known, also of missing ones.
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
                it.ids.remove(&0);
                it.follow();
            }
            None => it.ids = it.largest_family(),
        }
        it.fill_gaps();
        it
    }

    /// The id that the log's segment of this number has, if it is known.
    pub(super) fn id(&self, number: u32) -> Option<u64> {
        self.ids.get(&number).copied()
    }

    pub(super) fn has(&self, header: &Header) -> bool {
        self.id(header.number) == Some(header.id)
    }

    /// Takes in a segment that lay under another name; false if it is not the log's, or not needed.
    pub(super) fn put_back(&mut self, header: &Header) -> bool {
        if !self.has(header) || self.headers.contains_key(&header.number) {
            return false;
        }
        self.headers.insert(header.number, *header);
        self.follow();
        self.fill_gaps();
        true
    }

    /// Takes in what is linked to what is known. What the newer ones name goes first: it tells a
    /// segment from one of a copy of the log that went another way.
    fn follow(&mut self) {
        let headers: Vec<Header> = self.headers.values().copied().collect();
        loop {
            let known = self.ids.len();
            for header in headers.iter().rev().filter(|header| header.previous.number > 0) {
                let previous = self.previous(header);
                if self.has(header) && previous.id != 0 {
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

    /// Returns what a header says of the segment before. A header of version 1 says no id, and is believed:
    /// there is nothing better.
    fn previous(&self, header: &Header) -> Previous {
        let Previous { number, end, id } = header.previous;
        let found = self.headers.get(&number).map_or(0, |header| header.id);
        Previous { number, end, id: if id == 0 { found } else { id } }
    }

    /// Returns whether a segment follows one of the log, behind all that the manifest has as durable.
    fn goes_on(&self, header: &Header) -> bool {
        let previous = self.previous(header);
        let is_short = previous.number == self.tip.number && previous.end < self.tip.end;
        previous.number < header.number
            && self.id(previous.number) == Some(previous.id)
            && !is_short
    }

    /// Without a manifest, the log is taken to be what most of the segments are linked to.
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

    /// Where a header is lost nobody knows which segment came before, and those that it linked stand
    /// alone: they are taken where nothing speaks against it.
    fn fill_gaps(&mut self) {
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
            // Its header says what came before, and that is known.
            Some((number, _)) => self.headers.get(number).is_some_and(|above| self.has(above)),
            None => self.is_listed,
        };
        let below = self.ids.range(..header.number).next_back();
        !passes_over && below.is_none_or(|(&number, _)| header.previous.number > number)
    }
}
