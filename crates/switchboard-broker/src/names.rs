//! Names of devices: inside the process an id stands for each name, with the top bit set and the
//! partition in the bits below it.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, PoisonError, RwLock};

use siphasher::sip::SipHasher13;
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, PublicId};

use crate::PartitionId;
use crate::partition::IN_NAME;

/// Bit that marks an id as standing for a name, inside this process only; [`DeviceId::is_number`]
/// tests it.
const NAME_BIT: u64 = 1 << 63;

/// The table of names and the ids that stand for them. A name keeps its id while the process runs.
///
/// A look-up adds no name, and a token adds its name only while there are not too many. None is
/// ever removed: what is under way may refer to a device that has ended, and its id must not stand
/// for another one by then.
#[derive(Debug)]
pub struct Names {
    table: RwLock<Table>,
}

#[derive(Debug)]
struct Table {
    ids: HashMap<Arc<str>, DeviceId, HashKey>,
    names: Vec<Arc<str>>,
}

/// Secret under which names are hashed by SipHash-1-3, as in the standard library's maps (Aumasson
/// and Bernstein, "`SipHash`: a fast short-input PRF", 2012). Drawn at random when the process
/// starts, so that nobody outside can choose names that all collide.
#[derive(Clone, Debug)]
pub struct HashKey([u8; HashKey::LEN]);

impl HashKey {
    /// Bytes of a key.
    pub const LEN: usize = 16;

    /// Returns the key with these bytes.
    pub fn new(bytes: [u8; HashKey::LEN]) -> HashKey {
        HashKey(bytes)
    }
}

impl BuildHasher for HashKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

impl Names {
    pub(crate) fn new(key: HashKey) -> Names {
        let table = Table { ids: HashMap::with_hasher(key), names: Vec::new() };
        Names { table: RwLock::new(table) }
    }

    /// Returns the id of a device as clients name it; `None` for a name that no device ever had,
    /// and for a number that could stand for a name.
    #[inline]
    pub fn find(&self, device: DeviceRef<'_>) -> Option<DeviceId> {
        match device {
            DeviceRef::Number(id) => id.is_number().then_some(id),
            DeviceRef::Name(name) => self.find_name(name),
        }
    }

    fn find_name(&self, name: &str) -> Option<DeviceId> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.ids.get(name).copied()
    }

    /// Returns the id of a device; a name that has none is given one.
    pub fn intern(&self, device: DeviceRef<'_>) -> DeviceId {
        if let Some(id) = self.find(device) {
            return id;
        }
        let name = match device {
            DeviceRef::Number(id) => return id,
            DeviceRef::Name(name) => name,
        };
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let index = table.names.len() as u64;
        let next = DeviceId::new(NAME_BIT | PartitionId::of(device).in_name() | index);
        let shared: Arc<str> = name.into();
        // Another shard may have added the name since `find` released the lock.
        let id = *table.ids.entry(Arc::clone(&shared)).or_insert(next);
        if id == next {
            table.names.push(shared);
        }
        id
    }

    /// As [`Names::intern`], unless the device has a name that is new and there are `max` already.
    pub fn intern_within(&self, device: DeviceRef<'_>, max: usize) -> Option<DeviceId> {
        let known = self.find(device);
        known.or_else(|| (self.len() < max).then(|| self.intern(device)))
    }

    /// Returns whether any device has a name.
    pub fn has_any(&self) -> bool {
        self.len() > 0
    }

    fn len(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).names.len()
    }

    /// Returns the number or the name that an id stands for.
    ///
    /// # Panics
    ///
    /// If the id stands for a name and was not given by this table.
    pub fn show(&self, id: DeviceId) -> PublicId {
        if id.is_number() {
            return PublicId::Number(id);
        }
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let index = (id.get() & ((1 << IN_NAME) - 1)) as usize;
        PublicId::Name(Arc::clone(table.names.get(index).expect("the bit is set only by intern")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_id_and_is_shown_as_itself() {
        let names = Names::new(HashKey::new([7; HashKey::LEN]));
        assert_eq!(names.find(DeviceRef::Name("alice")), None);
        let alice = names.intern(DeviceRef::Name("alice"));
        let bob = names.intern(DeviceRef::Name("bob"));
        assert_ne!(alice, bob);
        assert_eq!(names.intern(DeviceRef::Name("alice")), alice);
        assert_eq!(names.find(DeviceRef::Name("bob")), Some(bob));
        assert_eq!(names.show(bob).as_ref(), DeviceRef::Name("bob"));
    }

    #[test]
    fn no_more_names_are_kept_than_may_be() {
        let names = Names::new(HashKey::new([7; HashKey::LEN]));
        let within = |name| names.intern_within(DeviceRef::Name(name), 2);
        let alice = within("alice");
        assert!(alice.is_some() && within("bob").is_some());
        assert_eq!(within("cleo"), None);
        assert_eq!(within("alice"), alice);
        let number = DeviceId::FIRST;
        assert_eq!(names.intern_within(DeviceRef::Number(number), 2), Some(number));
    }

    #[test]
    fn a_number_is_its_own_id_unless_it_could_be_a_name() {
        let names = Names::new(HashKey::new([7; HashKey::LEN]));
        let id = DeviceId::new(100_000_000);
        assert_eq!(names.find(DeviceRef::Number(id)), Some(id));
        assert_eq!(names.find(DeviceRef::Number(DeviceId::new(NAME_BIT))), None);
    }
}
