//! Who is connected, and on which shard: the one thing that all shards share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use rustc_hash::FxHashMap;
use switchboard_proto::{DeviceId, text};

use crate::ShardId;

/// Stripes of the id -> shard map; devices of neighbouring ids never meet on one lock.
const STRIPES: usize = 64;

/// Hands out ids and says which shard a device is on.
///
/// A device is found from the moment it has its id until it is removed, by every shard: there is
/// no time in which one shard knows it and another does not.
#[derive(Debug)]
pub struct Directory {
    next_id: AtomicU64,
    /// Empty where there is one shard, which knows its devices itself.
    stripes: Vec<RwLock<FxHashMap<DeviceId, ShardId>>>,
    listed: Mutex<Listed>,
    list_max: usize,
}

/// All ids in order, and the text that lists the lowest of them.
#[derive(Debug, Default)]
struct Listed {
    ids: BTreeSet<DeviceId>,
    /// The lowest `list_max` ids as `1, 2, 3`. Kept, because a welcome carries it and it changes
    /// only when one of those ids comes or goes.
    head: String,
    head_last: Option<DeviceId>,
    head_is_stale: bool,
}

impl Directory {
    /// An empty directory for `shards` shards; a welcome lists `list_max` ids at most.
    pub fn new(shards: usize, list_max: usize) -> Directory {
        let stripes = if shards > 1 { STRIPES } else { 0 };
        Directory {
            next_id: AtomicU64::new(DeviceId::FIRST.get()),
            stripes: std::iter::repeat_with(RwLock::default).take(stripes).collect(),
            listed: Mutex::default(),
            list_max,
        }
    }

    /// Gives a new device on `shard` the next id, which no device had before.
    pub fn add(&self, shard: ShardId) -> DeviceId {
        let id = DeviceId::new(self.next_id.fetch_add(1, Ordering::Relaxed));
        if let Some(stripe) = self.stripe(id) {
            stripe.write().unwrap_or_else(PoisonError::into_inner).insert(id, shard);
        }
        self.listed().insert(id, self.list_max);
        id
    }

    /// Forgets a device that left.
    pub fn remove(&self, id: DeviceId) {
        if let Some(stripe) = self.stripe(id) {
            stripe.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        self.listed().remove(id);
    }

    /// The other shard that a device is on; with one shard there is none.
    pub fn shard_of(&self, id: DeviceId) -> Option<ShardId> {
        let stripe = self.stripe(id)?.read().unwrap_or_else(PoisonError::into_inner);
        stripe.get(&id).copied()
    }

    /// Writes the info text for `own`: itself, who is connected, and how to send.
    pub fn write_info(&self, own: DeviceId, out: &mut String) {
        if self.list_max == 0 {
            return text::write_info(out, own, &own.to_string());
        }
        let mut listed = self.listed();
        listed.refresh(self.list_max);
        let more = listed.ids.len().saturating_sub(self.list_max);
        if more == 0 {
            return text::write_info(out, own, &listed.head);
        }
        let mut list = listed.head.clone();
        drop(listed);
        list.push_str(", ");
        text::write_list(&mut list, std::iter::empty(), more);
        text::write_info(out, own, &list);
    }

    fn stripe(&self, id: DeviceId) -> Option<&RwLock<FxHashMap<DeviceId, ShardId>>> {
        self.stripes.get(id.get() as usize % STRIPES)
    }

    fn listed(&self) -> std::sync::MutexGuard<'_, Listed> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed {
    fn insert(&mut self, id: DeviceId, list_max: usize) {
        self.ids.insert(id);
        self.head_is_stale |= self.ids.len() <= list_max || Some(id) < self.head_last;
    }

    fn remove(&mut self, id: DeviceId) {
        self.ids.remove(&id);
        self.head_is_stale |= Some(id) <= self.head_last;
    }

    fn refresh(&mut self, list_max: usize) {
        if !self.head_is_stale {
            return;
        }
        self.head.clear();
        text::write_list(&mut self.head, self.ids.iter().copied().take(list_max), 0);
        self.head_last = self.ids.iter().take(list_max).next_back().copied();
        self.head_is_stale = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(directory: &Directory, own: DeviceId) -> String {
        let mut out = String::new();
        directory.write_info(own, &mut out);
        out.lines().nth(2).unwrap().to_owned()
    }

    #[test]
    fn the_list_holds_the_lowest_ids_and_counts_the_rest() {
        let directory = Directory::new(1, 3);
        let ids: Vec<DeviceId> = (0..5).map(|_| directory.add(ShardId(0))).collect();
        assert_eq!(info(&directory, ids[4]), "[100000000, 100000001, 100000002, ... and 2 more]");
        directory.remove(ids[1]);
        assert_eq!(info(&directory, ids[4]), "[100000000, 100000002, 100000003, ... and 1 more]");
        directory.remove(ids[4]);
        assert_eq!(info(&directory, ids[0]), "[100000000, 100000002, 100000003]");
        let new = directory.add(ShardId(0));
        assert_eq!(info(&directory, new), "[100000000, 100000002, 100000003, ... and 1 more]");
    }

    #[test]
    fn a_list_of_none_shows_only_oneself() {
        let directory = Directory::new(1, 0);
        let first = directory.add(ShardId(0));
        directory.add(ShardId(0));
        assert_eq!(info(&directory, first), "[100000000]");
    }

    #[test]
    fn the_list_is_the_naive_one_after_any_history() {
        for list_max in [1, 2, 7] {
            let directory = Directory::new(2, list_max);
            let mut naive: Vec<DeviceId> = Vec::new();
            let mut random = 0x2545_F491_4F6C_DD1D_u64;
            for _ in 0..2_000 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if naive.is_empty() || (naive.len() < 20 && random & 1 == 0) {
                    naive.push(directory.add(ShardId(1)));
                } else {
                    directory.remove(naive.remove(random as usize % naive.len()));
                }
                if let Some(&own) = naive.first() {
                    let more = naive.len().saturating_sub(list_max);
                    let mut list = String::new();
                    text::write_list(&mut list, naive.iter().copied().take(list_max), more);
                    assert_eq!(info(&directory, own), format!("[{list}]"));
                }
            }
        }
    }
}
