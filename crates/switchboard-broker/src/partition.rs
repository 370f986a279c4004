//! Partitions, the owners of everything that is recorded.

use switchboard_proto::DeviceId;
use switchboard_proto::v1::DeviceRef;

use crate::ShardId;

/// Number of partitions. It is fixed, as the records of a store are divided by it.
pub const PARTITIONS: u8 = 64;

/// One of the partitions, numbered from 0.
///
/// Each device belongs to one, for ever: its session, its mailbox and the ids of the messages in it
/// are there and nowhere else. A partition belongs to one shard at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(u8);

/// Number of low bits of a 64-bit hash that are dropped; the bits above them number the partition.
const SHIFT: u32 = u64::BITS - PARTITIONS.ilog2();
const _: () = assert!(PARTITIONS.is_power_of_two());

impl PartitionId {
    /// Returns the partition with this number, which must be below [`PARTITIONS`].
    pub fn new(number: u8) -> Option<PartitionId> {
        (number < PARTITIONS).then_some(PartitionId(number))
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self.0
    }

    /// Returns the partition of a device, the same in every process: a hash of its number, or of
    /// its name by FNV-1a (Fowler, Noll, Vo).
    pub fn of(device: DeviceRef<'_>) -> PartitionId {
        let number = match device {
            DeviceRef::Number(id) => id.get(),
            DeviceRef::Name(name) => {
                let add = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
                name.bytes().fold(0xCBF2_9CE4_8422_2325, add)
            }
        };
        PartitionId::of_hash(number)
    }

    fn of_hash(number: u64) -> PartitionId {
        // Fibonacci hashing spreads neighbouring numbers over the partitions.
        PartitionId((number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> SHIFT) as u8)
    }

    /// Returns the partition of a device by its id in this process.
    #[inline]
    pub(crate) fn of_id(device: DeviceId) -> PartitionId {
        match device.is_number() {
            true => PartitionId::of_hash(device.get()),
            false => PartitionId((device.get() >> IN_NAME) as u8 % PARTITIONS),
        }
    }

    /// Returns the partition as the bits by which an id that stands for a name carries it.
    pub(crate) fn in_name(self) -> u64 {
        u64::from(self.0) << IN_NAME
    }

    /// Returns the shard to which it belongs.
    #[inline]
    pub fn shard(self, shards: u16) -> ShardId {
        ShardId(u16::from(self.0) % shards)
    }
}

/// Position of the partition in an id that stands for a name.
pub(crate) const IN_NAME: u32 = 56;

#[cfg(test)]
mod tests {
    use super::*;

    /// Records of older runs rely on it.
    #[test]
    fn the_partition_of_a_device_never_changes() {
        let of_number = |id| PartitionId::of(DeviceRef::Number(DeviceId::new(id))).number();
        let of_name = |name| PartitionId::of(DeviceRef::Name(name)).number();
        assert_eq!([100_000_000, 100_000_001, 100_000_002].map(of_number), [55, 31, 7]);
        assert_eq!(["alice", "bob", "kitchen"].map(of_name), [4, 36, 61]);
    }

    #[test]
    fn devices_are_spread_evenly() {
        let mut count = [0; PARTITIONS as usize];
        for id in 0..6_400 {
            let id = DeviceId::new(DeviceId::FIRST.get() + id);
            count[usize::from(PartitionId::of(DeviceRef::Number(id)).0)] += 1;
            let name = format!("device-{}", id.get());
            count[usize::from(PartitionId::of(DeviceRef::Name(&name)).0)] += 1;
        }
        assert!(count.iter().all(|count| (100..300).contains(count)), "{count:?}");
    }
}
