//! Who is connected, and on which shard: the one thing that all shards share.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustc_hash::FxHashMap;
use switchboard_proto::v1::DeviceRef;
use switchboard_proto::{DeviceId, text};

use crate::{HashKey, Names, ShardId, Shown};

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
    stripes: Vec<RwLock<FxHashMap<DeviceId, Home>>>,
    shards: u16,
    listed: Mutex<Listed>,
    list_max: usize,
    names: Names,
}

/// Whether a device is there, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Whether it is connected.
    pub online: bool,
    /// Since when it is or is not, wall clock.
    pub since_ms: u64,
}

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) shard: ShardId,
    pub(crate) has_mailbox: bool,
}

/// A device that watches another, and its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watcher {
    pub(crate) device: DeviceId,
    pub(crate) shard: ShardId,
}

/// All ids in order, and the text that lists the lowest of them.
#[derive(Debug, Default)]
struct Listed {
    ids: BTreeMap<DeviceId, Presence>,
    /// Named devices, in the order of their names; they are listed behind the numbers.
    named: BTreeMap<Arc<str>, Presence>,
    /// How many devices are connected; `ids` and `named` also hold those with a mailbox.
    connected: usize,
    watchers: FxHashMap<Shown, Vec<Watcher>>,
    /// The lowest `list_max` ids as `1, 2, 3`. Kept, because a welcome carries it and it changes
    /// only when one of those ids comes or goes.
    head: String,
    head_last: Option<DeviceId>,
    head_has_names: bool,
    head_is_stale: bool,
}

impl Directory {
    /// An empty directory for `shards` shards; a welcome lists `list_max` ids at most. Names are
    /// hashed under `hash_key`.
    pub fn new(shards: usize, list_max: usize, hash_key: HashKey) -> Directory {
        let stripes = if shards > 1 { STRIPES } else { 0 };
        Directory {
            shards: shards as u16,
            next_id: AtomicU64::new(DeviceId::FIRST.get()),
            stripes: std::iter::repeat_with(RwLock::default).take(stripes).collect(),
            listed: Mutex::default(),
            list_max,
            names: Names::new(hash_key),
        }
    }

    /// Ids from now on begin here: those below may have been given before.
    pub fn begin_ids_at(&self, next: u64) {
        self.next_id.fetch_max(next, Ordering::Relaxed);
    }

    /// The id that the next new device gets.
    pub fn next_id(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }

    /// Gives the next id, which no device had before.
    pub fn new_id(&self) -> DeviceId {
        DeviceId::new(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Gives a new device on `shard` the next id, which no device had before.
    pub fn add(&self, shard: ShardId) -> DeviceId {
        let id = self.new_id();
        self.set_home(id, Home { shard, has_mailbox: false });
        id
    }

    /// Notes on which shard a device's mailbox is.
    pub(crate) fn add_home(&self, id: DeviceId, shard: ShardId) {
        self.set_home(id, Home { shard, has_mailbox: true });
    }

    fn set_home(&self, id: DeviceId, home: Home) {
        if let Some(stripe) = self.stripe(id) {
            stripe.write().unwrap_or_else(PoisonError::into_inner).insert(id, home);
        }
    }

    /// Notes that a device is connected or away; gives who watches it, if that is news.
    pub(crate) fn present(&self, id: DeviceId, online: bool, since_ms: u64) -> Vec<Watcher> {
        let shown = self.names.show(id);
        let mut listed = self.listed();
        let is_news = listed.set(&shown, Presence { online, since_ms }, self.list_max);
        let watchers = listed.watchers.get(&shown).filter(|_| is_news);
        watchers.cloned().unwrap_or_default()
    }

    /// Forgets a device that ended; gives who watches it.
    pub(crate) fn forget(&self, id: DeviceId) -> Vec<Watcher> {
        if let Some(stripe) = self.stripe(id) {
            stripe.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        let shown = self.names.show(id);
        let mut listed = self.listed();
        let was_online = listed.remove(&shown);
        let watchers = listed.watchers.get(&shown).filter(|_| was_online);
        watchers.cloned().unwrap_or_default()
    }

    /// From now on `watcher` is told when the device comes or goes; gives how it stands.
    pub(crate) fn watch(&self, device: &Shown, watcher: Watcher) -> Option<Presence> {
        let mut listed = self.listed();
        let watchers = listed.watchers.entry(device.clone()).or_default();
        if !watchers.contains(&watcher) {
            watchers.push(watcher);
        }
        listed.find(device)
    }

    /// Ends what [`Directory::watch`] began.
    pub(crate) fn unwatch(&self, device: &Shown, watcher: Watcher) {
        let mut listed = self.listed();
        if let Some(watchers) = listed.watchers.get_mut(device) {
            watchers.retain(|one| *one != watcher);
            if watchers.is_empty() {
                listed.watchers.remove(device);
            }
        }
    }

    /// Devices in order, numbers before names: at most `limit`, and whether there are more.
    pub(crate) fn page(
        &self,
        after: Option<DeviceRef<'_>>,
        limit: usize,
    ) -> (Vec<(Shown, Presence)>, bool) {
        let listed = self.listed();
        let numbers = match after {
            None => Some(Bound::Unbounded),
            Some(DeviceRef::Number(id)) => Some(Bound::Excluded(id)),
            Some(DeviceRef::Name(_)) => None,
        };
        let names: Bound<&str> = match after {
            Some(DeviceRef::Name(name)) => Bound::Excluded(name),
            _ => Bound::Unbounded,
        };
        let numbers = numbers.into_iter().flat_map(|from| {
            let range = listed.ids.range((from, Bound::Unbounded));
            range.map(|(id, presence)| (Shown::Number(*id), *presence))
        });
        let named = listed.named.range::<str, _>((names, Bound::Unbounded));
        let named = named.map(|(name, presence)| (Shown::Name(Arc::clone(name)), *presence));
        let mut page: Vec<_> = numbers.chain(named).take(limit + 1).collect();
        let has_more = page.len() > limit;
        page.truncate(limit);
        (page, has_more)
    }

    /// The names of devices.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Where a device is that is on another shard; with one shard there is none.
    pub(crate) fn home_of(&self, id: DeviceId) -> Option<Home> {
        let stripe = self.stripe(id)?.read().unwrap_or_else(PoisonError::into_inner);
        stripe.get(&id).copied()
    }

    /// How many shards there are.
    pub(crate) fn shards(&self) -> u16 {
        self.shards
    }

    /// Writes the info text for `own`: itself, who is connected, and how to send.
    pub fn write_info(&self, own: DeviceId, out: &mut String) {
        if self.list_max == 0 {
            let own = self.names.show(own);
            return text::write_info(out, own.as_ref(), &own.as_ref().to_string());
        }
        let own = self.names.show(own);
        let own = own.as_ref();
        let mut listed = self.listed();
        listed.refresh(self.list_max);
        let more = listed.connected.saturating_sub(self.list_max);
        if more == 0 {
            return text::write_info(out, own, &listed.head);
        }
        let mut list = listed.head.clone();
        drop(listed);
        list.push_str(", ");
        text::write_list(&mut list, std::iter::empty::<DeviceRef<'_>>(), more);
        text::write_info(out, own, &list);
    }

    fn stripe(&self, id: DeviceId) -> Option<&RwLock<FxHashMap<DeviceId, Home>>> {
        self.stripes.get(id.get() as usize % STRIPES)
    }

    fn listed(&self) -> std::sync::MutexGuard<'_, Listed> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed {
    fn find(&self, shown: &Shown) -> Option<Presence> {
        match shown {
            Shown::Number(id) => self.ids.get(id).copied(),
            Shown::Name(name) => self.named.get(name).copied(),
        }
    }

    /// Notes how a device stands; gives whether it came or went.
    fn set(&mut self, shown: &Shown, presence: Presence, list_max: usize) -> bool {
        let before = match shown {
            Shown::Number(id) => self.ids.insert(*id, presence),
            Shown::Name(name) => self.named.insert(Arc::clone(name), presence),
        };
        let was_online = before.is_some_and(|before| before.online);
        if was_online != presence.online {
            self.came_or_went(shown, presence.online, list_max);
        }
        was_online != presence.online
    }

    /// Forgets a device; gives whether it was connected.
    fn remove(&mut self, shown: &Shown) -> bool {
        let before = match shown {
            Shown::Number(id) => self.ids.remove(id),
            Shown::Name(name) => self.named.remove(name),
        };
        let was_online = before.is_some_and(|before| before.online);
        if was_online {
            self.came_or_went(shown, false, 0);
        }
        was_online
    }

    fn came_or_went(&mut self, shown: &Shown, online: bool, list_max: usize) {
        self.connected = if online { self.connected + 1 } else { self.connected - 1 };
        self.head_is_stale |= match shown {
            Shown::Number(id) if online => {
                self.connected <= list_max || Some(*id) < self.head_last || self.head_has_names
            }
            Shown::Number(id) => Some(*id) <= self.head_last,
            Shown::Name(_) => self.connected <= list_max || self.head_has_names,
        };
    }

    fn refresh(&mut self, list_max: usize) {
        if !self.head_is_stale {
            return;
        }
        self.head.clear();
        let is_online = |presence: &Presence| presence.online;
        let ids = self.ids.iter().filter(|(_, presence)| is_online(presence)).map(|(id, _)| *id);
        let names = self.named.iter().filter(|(_, presence)| is_online(presence));
        let mut head_last = None;
        let mut has_names = false;
        let numbers = ids.map(DeviceRef::Number);
        let all = numbers.chain(names.map(|(name, _)| DeviceRef::Name(name))).take(list_max);
        let all = all.inspect(|device| match device {
            DeviceRef::Number(id) => head_last = Some(*id),
            DeviceRef::Name(_) => has_names = true,
        });
        text::write_list(&mut self.head, all, 0);
        (self.head_last, self.head_has_names) = (head_last, has_names);
        self.head_is_stale = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(shards: usize, list_max: usize) -> Directory {
        Directory::new(shards, list_max, HashKey::new([7; HashKey::LEN]))
    }

    fn connect(directory: &Directory, shard: ShardId) -> DeviceId {
        let id = directory.add(shard);
        directory.present(id, true, 0);
        id
    }

    fn info(directory: &Directory, own: DeviceId) -> String {
        let mut out = String::new();
        directory.write_info(own, &mut out);
        out.lines().nth(2).unwrap().to_owned()
    }

    #[test]
    fn the_list_holds_the_lowest_ids_and_counts_the_rest() {
        let directory = directory(1, 3);
        let ids: Vec<DeviceId> = (0..5).map(|_| connect(&directory, ShardId(0))).collect();
        assert_eq!(info(&directory, ids[4]), "[100000000, 100000001, 100000002, ... and 2 more]");
        directory.forget(ids[1]);
        assert_eq!(info(&directory, ids[4]), "[100000000, 100000002, 100000003, ... and 1 more]");
        directory.forget(ids[4]);
        assert_eq!(info(&directory, ids[0]), "[100000000, 100000002, 100000003]");
        let new = connect(&directory, ShardId(0));
        assert_eq!(info(&directory, new), "[100000000, 100000002, 100000003, ... and 1 more]");
    }

    #[test]
    fn a_list_of_none_shows_only_oneself() {
        let directory = directory(1, 0);
        let first = connect(&directory, ShardId(0));
        connect(&directory, ShardId(0));
        assert_eq!(info(&directory, first), "[100000000]");
    }

    #[test]
    fn the_list_is_the_naive_one_after_any_history() {
        for list_max in [1, 2, 7] {
            let directory = directory(2, list_max);
            let mut naive: Vec<DeviceId> = Vec::new();
            let mut random = 0x2545_F491_4F6C_DD1D_u64;
            for _ in 0..2_000 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if naive.is_empty() || (naive.len() < 20 && random & 1 == 0) {
                    naive.push(connect(&directory, ShardId(1)));
                } else {
                    directory.forget(naive.remove(random as usize % naive.len()));
                }
                if let Some(&own) = naive.first() {
                    let more = naive.len().saturating_sub(list_max);
                    let mut list = String::new();
                    let shown = naive.iter().copied().take(list_max).map(DeviceRef::Number);
                    text::write_list(&mut list, shown, more);
                    assert_eq!(info(&directory, own), format!("[{list}]"));
                }
            }
        }
    }
}
