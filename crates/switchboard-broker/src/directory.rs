//! The directory: the devices of all shards, and the one thing that their brokers share.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::iter;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustc_hash::FxHashMap;
use switchboard_proto::v1::{DeviceRef, PublicId};
use switchboard_proto::{DeviceId, text};

use crate::device_slots::DeviceSlots;
use crate::shrink::{KEPT_BY_SHARD, shrink};
use crate::{HashKey, Names, ShardId};

/// Stripes of the id -> shard map. Devices with neighbouring ids never share a lock.
const STRIPES: usize = 64;

/// Gives ids to devices, and knows the shard, the name and the presence of each.
///
/// Every shard finds a device from the moment it has its id until it is removed: at no time does
/// one shard know it and another not.
#[derive(Debug)]
pub struct Directory {
    next_id: AtomicU64,
    /// Empty if there is only one shard, which knows its devices itself.
    stripes: Vec<RwLock<FxHashMap<DeviceId, Owner>>>,
    shards: u16,
    listed: Mutex<Listed>,
    list_max: usize,
    names: Names,
    slots: DeviceSlots,
    /// See [`Directory::anonymous_stored`].
    anonymous_stored: AtomicUsize,
    /// Messages in the store whose outcomes are not recorded, on all shards.
    receipts: AtomicUsize,
    /// See [`Directory::set_store_room`].
    store_room: AtomicU64,
    named_room: AtomicU64,
}

/// Most bytes that all records of one outcome take in the log: the end of the message, the outcome,
/// and their part of a record of the exchange, with names, id and reason at their longest. The log
/// keeps so much free from the moment the message is accepted: these records are written even when
/// the log is full, and would otherwise bring it above its bound.
pub const RECEIPT_BYTES: usize = 1_250;
/// Longest that the record of a device's state can be in the log. The log keeps so much free for
/// each device, which may connect once more when the log is full.
pub const DEVICE_BYTES: usize = 192;

/// Presence of a device: connected or away, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// True while it is connected.
    pub online: bool,
    /// Time since which it is connected or away, by the wall clock.
    pub since_ms: u64,
}

/// The shard of a device, and whether it has a mailbox there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
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
    ids: Devices<DeviceId>,
    /// Named devices, in the order of their names; they are listed behind the numbers.
    named: Devices<Arc<str>>,
    /// The shard of the watcher, by watched device and watcher. A tree, because clients choose what
    /// they watch and could make hashes collide. One tree for all devices, because most have one
    /// watcher, and a tree for that alone takes 136 bytes.
    watchers: BTreeMap<(PublicId, DeviceId), ShardId>,
    /// The lowest `list_max` ids as `1, 2, 3`. Kept, because each welcome needs it, and it changes
    /// only when one of those ids comes or goes.
    head: String,
    head_last: Option<DeviceId>,
    head_has_names: bool,
    head_is_stale: bool,
}

/// A connection may watch a thousand devices. Each takes this key, 16 bytes in the session, and
/// what the trees leave free.
const _: () = assert!(size_of::<(PublicId, DeviceId)>() == 24);

/// Devices in order, each with the wall-clock time since which it is connected or away. Connected
/// ones have a tree of their own, so that listing them costs nothing for those that are away.
#[derive(Debug)]
struct Devices<K> {
    online: BTreeMap<K, u64>,
    away: BTreeMap<K, u64>,
}

impl Directory {
    /// Returns an empty directory for `shards` shards. A welcome lists at most `list_max` ids;
    /// names are hashed under `hash_key`.
    pub fn new(shards: usize, list_max: usize, hash_key: HashKey) -> Directory {
        let stripes = if shards > 1 { STRIPES } else { 0 };
        Directory {
            shards: shards as u16,
            next_id: AtomicU64::new(DeviceId::FIRST.get()),
            stripes: std::iter::repeat_with(RwLock::default).take(stripes).collect(),
            listed: Mutex::default(),
            list_max,
            names: Names::new(hash_key),
            slots: DeviceSlots::default(),
            anonymous_stored: AtomicUsize::new(0),
            receipts: AtomicUsize::new(0),
            store_room: AtomicU64::new(u64::MAX),
            named_room: AtomicU64::new(0),
        }
    }

    /// Gives no id below `next` from now on, as those may have been given before.
    pub fn begin_ids_at(&self, next: u64) {
        self.next_id.fetch_max(next, Ordering::Relaxed);
    }

    /// Skips all ids that may have been given without the store knowing of them, because it was
    /// restored from a backup.
    ///
    /// Goes by the wall clock: 100 ids for each of its milliseconds are more than were ever
    /// given. So two restores of one backup give different ids, too, and all are below 2^53.
    pub fn skip_unknown_ids(&self, wall_ms: u64) {
        const IDS_PER_MS: u64 = 100;
        // Whatever the clock shows, the next ids are far above the known ones and below 2^63, where
        // the ids that stand for names begin.
        let known = self.next_id() + (1 << 32);
        self.begin_ids_at(known.max(wall_ms.min(1 << 53) * IDS_PER_MS));
    }

    /// Returns the id that the next new device gets.
    pub fn next_id(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }

    /// Returns the next id, which no device had before.
    pub fn new_id(&self) -> DeviceId {
        // Relaxed: the addition gives each id once, and nothing else depends on its order.
        DeviceId::new(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Registers a new device on `shard` and returns its id, which no device had before.
    pub fn add(&self, shard: ShardId) -> DeviceId {
        let id = self.new_id();
        self.set_owner(id, Owner { shard, has_mailbox: false });
        id
    }

    /// Notes on which shard a device's mailbox is.
    pub(crate) fn add_owner(&self, id: DeviceId, shard: ShardId) {
        self.set_owner(id, Owner { shard, has_mailbox: true });
    }

    fn set_owner(&self, id: DeviceId, owner: Owner) {
        if let Some(stripe) = self.stripe(id) {
            stripe.write().unwrap_or_else(PoisonError::into_inner).insert(id, owner);
        }
    }

    /// Notes that a device is connected or away; returns whether that is a change and it has
    /// watchers.
    pub(crate) fn present(&self, id: DeviceId, online: bool, since_ms: u64) -> bool {
        let shown = self.names.show(id);
        let mut listed = self.listed();
        let is_change = listed.set(&shown, Presence { online, since_ms }, self.list_max);
        is_change && listed.is_watched(&shown)
    }

    /// Forgets a device that ended; returns whether it was connected and has watchers.
    pub(crate) fn forget(&self, id: DeviceId) -> bool {
        if let Some(stripe) = self.stripe(id) {
            let mut owners = stripe.write().unwrap_or_else(PoisonError::into_inner);
            owners.remove(&id);
            shrink(&mut *owners, KEPT_BY_SHARD);
        }
        let shown = self.names.show(id);
        let mut listed = self.listed();
        let was_online = listed.remove(&shown);
        was_online && listed.is_watched(&shown)
    }

    /// Returns at most `limit` watchers of a device, in the order of their ids, starting after
    /// `behind`.
    pub(crate) fn watchers_behind(
        &self,
        device: DeviceId,
        behind: Option<DeviceId>,
        limit: usize,
    ) -> Vec<Watcher> {
        let shown = self.names.show(device);
        self.listed().watchers_behind(&shown, behind).take(limit).collect()
    }

    /// Adds a watcher, which is told from now on when the device comes or goes; returns the
    /// presence of the device now.
    pub(crate) fn watch(&self, device: &PublicId, watcher: Watcher) -> Option<Presence> {
        // Both under one lock: a change comes either before, and is in the result, or after, and is
        // told to the watcher.
        let mut listed = self.listed();
        listed.watchers.insert((device.clone(), watcher.device), watcher.shard);
        listed.find(device)
    }

    /// Ends what [`Directory::watch`] began.
    pub(crate) fn unwatch(&self, device: &PublicId, watcher: Watcher) {
        let mut listed = self.listed();
        listed.watchers.remove(&(device.clone(), watcher.device));
    }

    /// Returns at most `limit` devices behind `after`, numbers before names, and whether there are
    /// more.
    pub(crate) fn page(
        &self,
        after: Option<DeviceRef<'_>>,
        limit: usize,
    ) -> (Vec<(PublicId, Presence)>, bool) {
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
        let numbers = numbers.iter().flat_map(|from| {
            listed.ids.behind(from.as_ref()).map(|(id, presence)| (PublicId::Number(*id), presence))
        });
        let named = listed.named.behind(names);
        let named = named.map(|(name, presence)| (PublicId::Name(Arc::clone(name)), presence));
        // One more than asked for shows whether there are more.
        let mut page: Vec<_> = numbers.chain(named).take(limit + 1).collect();
        let has_more = page.len() > limit;
        page.truncate(limit);
        (page, has_more)
    }

    /// Returns the number of devices with a mailbox, on all shards.
    pub fn devices(&self) -> usize {
        self.slots.taken()
    }

    /// Returns the bytes in the store of messages from devices without a name and of outcomes for
    /// them, on all shards.
    pub(crate) fn anonymous_stored(&self) -> usize {
        self.anonymous_stored.load(Ordering::Relaxed)
    }

    /// Changes that sum by the difference from `before` to `after`.
    pub(crate) fn recount_anonymous(&self, before: usize, after: usize) {
        // Wraps where the difference is negative, and so subtracts. Relaxed: nothing but the sum
        // depends on it.
        self.anonymous_stored.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Changes the number of [`Directory::receipts`] by the difference from `before` to `after`.
    pub(crate) fn recount_receipts(&self, before: usize, after: usize) {
        self.receipts.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Returns the number of messages in the store whose outcomes are asked for and not
    /// recorded, on all shards.
    pub(crate) fn receipts(&self) -> usize {
        self.receipts.load(Ordering::Relaxed)
    }

    /// Returns the bytes that the store must keep free for records that it takes even when it is
    /// full.
    pub fn promised_bytes(&self) -> u64 {
        (self.receipts() * RECEIPT_BYTES + self.devices() * DEVICE_BYTES) as u64
    }

    /// Notes the bytes that the store has for [`Directory::promised_bytes`], of which `named` are
    /// reserved for devices with names. Without a store, or before it has reported them, nothing
    /// bounds the promises.
    pub fn set_store_room(&self, bytes: u64, named: u64) {
        self.store_room.store(bytes, Ordering::Relaxed);
        self.named_room.store(named, Ordering::Relaxed);
    }

    /// Returns whether the outcome of one more message from this device may be promised.
    pub(crate) fn may_promise_outcome(&self, from: DeviceId) -> bool {
        // The store looks only now and then whether it is full. Tiny messages that come between two
        // looks could promise more than it has: an outcome may be much longer than its message.
        let room = self.store_room.load(Ordering::Relaxed);
        let named = if from.is_number() { self.named_room.load(Ordering::Relaxed) } else { 0 };
        self.promised_bytes() + RECEIPT_BYTES as u64 + named <= room
    }

    /// The slots for devices with mailboxes.
    pub(crate) fn slots(&self) -> &DeviceSlots {
        &self.slots
    }

    /// The names of devices.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Returns the owner of a device; `None` if there is no such device, or only one shard.
    pub(crate) fn owner_of(&self, id: DeviceId) -> Option<Owner> {
        let stripe = self.stripe(id)?.read().unwrap_or_else(PoisonError::into_inner);
        stripe.get(&id).copied()
    }

    /// Returns the number of shards.
    pub(crate) fn shards(&self) -> u16 {
        self.shards
    }

    /// Writes the info text for `own`: its id, the connected devices, and how to send.
    pub fn write_info(&self, own: DeviceId, out: &mut String) {
        // Nothing that is shared is shown, so the lock that all shards share is not taken.
        if self.list_max == 0 {
            let own = self.names.show(own);
            return text::write_info(out, own.as_ref(), &own.as_ref().to_string());
        }
        let own = self.names.show(own);
        let own = own.as_ref();
        let mut listed = self.listed();
        listed.refresh(self.list_max);
        let more = listed.connected().saturating_sub(self.list_max);
        if more == 0 {
            return text::write_info(out, own, &listed.head);
        }
        let mut list = listed.head.clone();
        // The lock that all shards share is not held while the text is written.
        drop(listed);
        list.push_str(", ");
        text::write_list(&mut list, std::iter::empty::<DeviceRef<'_>>(), more);
        text::write_info(out, own, &list);
    }

    /// Returns the part of the id -> shard map in which a device is; `None` with one shard.
    fn stripe(&self, id: DeviceId) -> Option<&RwLock<FxHashMap<DeviceId, Owner>>> {
        self.stripes.get(id.get() as usize % STRIPES)
    }

    fn listed(&self) -> std::sync::MutexGuard<'_, Listed> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed {
    fn find(&self, shown: &PublicId) -> Option<Presence> {
        match shown {
            PublicId::Number(id) => self.ids.find(id),
            PublicId::Name(name) => self.named.find(name),
        }
    }

    /// Returns the number of connected devices.
    fn connected(&self) -> usize {
        self.ids.online.len() + self.named.online.len()
    }

    fn is_watched(&self, shown: &PublicId) -> bool {
        self.watchers_behind(shown, None).next().is_some()
    }

    fn watchers_behind(
        &self,
        shown: &PublicId,
        behind: Option<DeviceId>,
    ) -> impl Iterator<Item = Watcher> {
        let watched = |watcher| (shown.clone(), watcher);
        let first = behind.map_or_else(
            || Bound::Included(watched(DeviceId::new(0))),
            |behind| Bound::Excluded(watched(behind)),
        );
        let last = Bound::Included(watched(DeviceId::new(u64::MAX)));
        let watchers = self.watchers.range((first, last));
        watchers.map(|((_, device), &shard)| Watcher { device: *device, shard })
    }

    /// Notes the presence of a device; returns whether it came or went.
    fn set(&mut self, shown: &PublicId, presence: Presence, list_max: usize) -> bool {
        let was_online = match shown {
            PublicId::Number(id) => self.ids.set(*id, presence),
            PublicId::Name(name) => self.named.set(Arc::clone(name), presence),
        };
        if was_online != presence.online {
            self.came_or_went(shown, presence.online, list_max);
        }
        was_online != presence.online
    }

    /// Forgets a device; returns whether it was connected.
    fn remove(&mut self, shown: &PublicId) -> bool {
        let was_online = match shown {
            PublicId::Number(id) => self.ids.remove(id),
            PublicId::Name(name) => self.named.remove(name),
        };
        if was_online {
            // The bound (0) does not matter: a device that leaves changes the list only if the list
            // contains it.
            self.came_or_went(shown, false, 0);
        }
        was_online
    }

    /// Notes whether the kept list changes, after a device came or went.
    fn came_or_went(&mut self, shown: &PublicId, online: bool, list_max: usize) {
        let connected = self.connected();
        self.head_is_stale |= match shown {
            // It enters a list that is not full, or pushes out a higher number, or a name: names
            // come last.
            PublicId::Number(id) if online => {
                connected <= list_max || Some(*id) < self.head_last || self.head_has_names
            }
            PublicId::Number(id) => Some(*id) <= self.head_last,
            PublicId::Name(_) => connected <= list_max || self.head_has_names,
        };
    }

    fn refresh(&mut self, list_max: usize) {
        if !self.head_is_stale {
            return;
        }
        self.head.clear();
        let mut head_last = None;
        let mut has_names = false;
        let numbers = self.ids.online.keys().map(|id| DeviceRef::Number(*id));
        let names = self.named.online.keys().map(|name| DeviceRef::Name(name));
        let all = numbers.chain(names).take(list_max);
        let all = all.inspect(|device| match device {
            DeviceRef::Number(id) => head_last = Some(*id),
            DeviceRef::Name(_) => has_names = true,
        });
        text::write_list(&mut self.head, all, 0);
        (self.head_last, self.head_has_names) = (head_last, has_names);
        self.head_is_stale = false;
    }
}

impl<K> Default for Devices<K> {
    fn default() -> Devices<K> {
        Devices { online: BTreeMap::new(), away: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Devices<K> {
    fn find(&self, key: &K) -> Option<Presence> {
        let online = self.online.get(key).map(|&since_ms| Presence { online: true, since_ms });
        let away = || self.away.get(key).map(|&since_ms| Presence { online: false, since_ms });
        online.or_else(away)
    }

    /// Notes the presence of a device; returns whether it was connected.
    fn set(&mut self, key: K, presence: Presence) -> bool {
        let Presence { online, since_ms } = presence;
        if online {
            self.away.remove(&key);
            self.online.insert(key, since_ms).is_some()
        } else {
            let was_online = self.online.remove(&key).is_some();
            self.away.insert(key, since_ms);
            was_online
        }
    }

    /// Forgets a device; returns whether it was connected.
    fn remove(&mut self, key: &K) -> bool {
        self.away.remove(key);
        self.online.remove(key).is_some()
    }

    /// Returns all devices behind a bound, in order.
    fn behind<Q: Ord + ?Sized>(&self, from: Bound<&Q>) -> impl Iterator<Item = (&K, Presence)>
    where
        K: Borrow<Q>,
    {
        let mut online = self.online.range::<Q, _>((from, Bound::Unbounded)).peekable();
        let mut away = self.away.range::<Q, _>((from, Bound::Unbounded)).peekable();
        iter::from_fn(move || {
            let is_online = match (online.peek(), away.peek()) {
                (Some((one, _)), Some((other, _))) => one < other,
                (one, _) => one.is_some(),
            };
            let (key, &since_ms) = if is_online { online.next() } else { away.next() }?;
            Some((key, Presence { online: is_online, since_ms }))
        })
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

    /// Each arrival once walked all devices that were away (2.4 ms with 147,000 of them), so those
    /// are apart now; a page shows both in one order.
    #[test]
    fn a_page_shows_those_that_are_there_and_away_in_one_order() {
        let directory = directory(1, 2);
        let ids: Vec<DeviceId> = (0..6).map(|_| directory.new_id()).collect();
        for (at, id) in ids.iter().enumerate() {
            directory.present(*id, at.is_multiple_of(3), at as u64);
        }
        let ann = directory.names().intern(DeviceRef::Name("ann"));
        directory.present(ann, true, 9);
        let page = |after, limit| {
            let (page, has_more) = directory.page(after, limit);
            let shown = page.iter().map(|(shown, presence)| (shown.clone(), presence.online));
            (shown.collect::<Vec<_>>(), has_more)
        };
        let number = |at: usize| (PublicId::Number(ids[at]), at.is_multiple_of(3));
        assert_eq!(page(None, 4), ((0..4).map(number).collect(), true));
        let rest = vec![number(4), number(5), (PublicId::Name("ann".into()), true)];
        assert_eq!(page(Some(DeviceRef::Number(ids[3])), 4), (rest, false));
        assert_eq!(info(&directory, ids[0]), "[100000000, 100000003, ... and 1 more]");
        directory.present(ids[0], false, 10);
        assert_eq!(info(&directory, ids[0]), "[100000003, ann]");
        directory.forget(ids[0]);
        assert_eq!(page(None, 1), (vec![number(1)], true));
    }

    #[test]
    fn a_device_is_known_to_those_who_watch_it_and_to_no_others() {
        let directory = directory(1, 10);
        let device = |number| DeviceId::new(DeviceId::FIRST.get() + number);
        let watcher = |number| Watcher { device: device(number), shard: ShardId(0) };
        for (watched, by) in [(1, 1), (1, 2), (2, 1), (3, 3)] {
            directory.watch(&PublicId::Number(device(watched)), watcher(by));
        }
        directory.watch(&PublicId::Name("ann".into()), watcher(1));
        let told = |device, behind| directory.watchers_behind(device, behind, 10);
        assert!(directory.present(device(1), true, 0));
        assert_eq!(told(device(1), None), [watcher(1), watcher(2)]);
        assert_eq!(told(device(1), Some(device(1))), [watcher(2)]);
        assert!(!directory.present(device(1), true, 0), "it is no change");
        let ann = directory.names().intern(DeviceRef::Name("ann"));
        assert!(directory.present(ann, true, 0));
        assert_eq!(told(ann, None), [watcher(1)]);
        directory.unwatch(&PublicId::Number(device(1)), watcher(1));
        assert!(directory.present(device(1), false, 1));
        assert_eq!(told(device(1), None), [watcher(2)]);
        assert!(!directory.present(device(4), true, 1));
        assert_eq!(told(device(4), None), []);
        for (watched, by) in [(1, 2), (2, 1), (3, 3)] {
            directory.unwatch(&PublicId::Number(device(watched)), watcher(by));
        }
        directory.unwatch(&PublicId::Name("ann".into()), watcher(1));
        assert!(directory.listed().watchers.is_empty());
    }
}
