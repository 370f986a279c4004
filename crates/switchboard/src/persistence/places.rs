//! Sectors that the disk refuses to read: when each is tried again, when it is given up, and the
//! fetches that wait for it. All devices whose records reach into a sector share its tries and their
//! result.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use switchboard_broker::Position;
use switchboard_proto::DeviceId;

use crate::store::SECTOR;

/// Pause after the first read that failed; each further pause is twice as long.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Least pause as a multiple of the time that the read took to fail. One thread reads for all
/// devices: the tries of all sectors take a fifth of its time, and those of compaction another.
const PAUSE_PER_TIME: u32 = 4;
/// Reads of a sector before it is given up. With pauses of 0.2, 0.4, ... 25.6 s and then 30 s they
/// take three minutes. If the disk is slow to fail, fewer reads fit into that time.
const DISK_TRIES: u32 = 14;
/// Time after which a sector is given up, if it was read at least twice. Its result is dropped as
/// long after its next try was due, if no record in it was asked for.
const DISK_PATIENCE: Duration = Duration::from_secs(180);

/// Reads of one place, all of which failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tries {
    pub(super) count: u32,
    /// Time at which the first one began.
    since: Instant,
    /// Time at which the last one ended.
    last: Instant,
    /// Time of the next one.
    pub(super) due: Instant,
}

impl Tries {
    /// Returns the tries so far and one more, which began at `started` and failed at `now`.
    pub(super) fn another(before: Option<Tries>, started: Instant, now: Instant) -> Tries {
        let (count, since) = before.map_or((1, started), |it| (it.count + 1, it.since));
        // 2^16 is far beyond `RETRY_MAX`; a larger shift could overflow.
        let doubled = RETRY.saturating_mul(1 << (count - 1).min(16)).min(RETRY_MAX);
        let due = now + doubled.max(pause_after(now.saturating_duration_since(started)));
        Tries { count, since, last: now, due }
    }

    /// Returns true if the place should be given up.
    pub(super) fn suffice(&self) -> bool {
        let took = self.last.saturating_duration_since(self.since);
        // At least two: a single read that hangs for minutes proves nothing about the sector.
        self.count >= DISK_TRIES || (self.count > 1 && took >= DISK_PATIENCE)
    }
}

fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(PAUSE_PER_TIME)
}

/// What to do about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Read it.
    Read,
    /// Wait for the next try of a sector that it reaches into.
    Wait,
    /// Give it up: it reaches into a sector that was given up.
    GiveUp,
}

/// A sector that the disk refuses to read.
#[derive(Debug)]
struct Place<T> {
    /// Start of the first record that is known to reach into the sector, or of the sector. Every
    /// record that begins between here and the sector's end reaches into it, too.
    from: Position,
    tries: Tries,
    /// None once it is given up.
    waiting: BTreeMap<DeviceId, T>,
}

/// Sectors that the disk refuses to read, and the fetches that wait for them.
#[derive(Debug)]
pub(super) struct Places<T> {
    /// By number of the sector in the log.
    places: BTreeMap<u64, Place<T>>,
    /// Until this time no known place is read. One pause for all places, so that it bounds the time
    /// that all of them cost together.
    rest_until: Option<Instant>,
}

impl<T> Default for Places<T> {
    fn default() -> Places<T> {
        Places { places: BTreeMap::new(), rest_until: None }
    }
}

impl<T> Places<T> {
    /// Returns the place that the record at `position` is known to reach into.
    fn find(&self, position: Position) -> Option<(u64, &Place<T>)> {
        let (&sector, place) = self.places.range(sector_of(position)..).next()?;
        (position >= place.from).then_some((sector, place))
    }

    fn is_due(&self, tries: &Tries, now: Instant) -> bool {
        now >= tries.due && self.rest_until.is_none_or(|until| now >= until)
    }

    /// Says whether to read the record at `position` now.
    pub(super) fn advice(&self, position: Position, now: Instant) -> Advice {
        match self.find(position) {
            None => Advice::Read,
            Some((_, place)) if self.is_due(&place.tries, now) => Advice::Read,
            Some((_, place)) if place.tries.suffice() => Advice::GiveUp,
            Some(_) => Advice::Wait,
        }
    }

    /// Keeps a fetch until the place of its record at `position` is to be tried; in place of an
    /// older one of the same device.
    pub(super) fn wait(&mut self, position: Position, device: DeviceId, fetch: T) {
        let sector = self.find(position).map(|(sector, _)| sector);
        let place = sector.and_then(|sector| self.places.get_mut(&sector));
        // A fetch waits only after a read of its record failed, and that noted the place.
        place.expect("a known place").waiting.insert(device, fetch);
    }

    /// Notes that the record at `position` was read as far as the byte at `lost`, or whole. Returns
    /// the fetches that waited for a sector that can be read now.
    pub(super) fn was_read(&mut self, position: Position, lost: Option<Position>) -> Vec<T> {
        let known = self.find(position).map(|(sector, _)| sector);
        let Some(sector) = known.filter(|&known| lost.map(sector_of) != Some(known)) else {
            return Vec::new();
        };
        self.places.remove(&sector).map_or_else(Vec::new, |it| it.waiting.into_values().collect())
    }

    /// Notes that a read of the record at `position` began at `started` and failed after `took`, at
    /// the byte at `lost`. Returns the tries of that sector, and the fetches that waited for it if
    /// it is given up.
    pub(super) fn failed(
        &mut self,
        position: Position,
        lost: Position,
        started: Instant,
        took: Duration,
    ) -> (Tries, Vec<T>) {
        let now = started + took;
        self.rest_until = self.rest_until.max(Some(now + pause_after(took)));
        let sector = sector_of(lost);
        let before = self.places.remove(&sector);
        let tries = Tries::another(before.as_ref().map(|it| it.tries), started, now);
        let start = Position(sector * SECTOR);
        let (from, mut waiting) =
            before.map_or((start, BTreeMap::new()), |it| (it.from, it.waiting));
        let given_up = if tries.suffice() { std::mem::take(&mut waiting) } else { BTreeMap::new() };
        self.places.insert(sector, Place { from: from.min(position), tries, waiting });
        (tries, given_up.into_values().collect())
    }

    /// Takes out one fetch, for the place that is due first, if that may be tried now.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<T> {
        let (&sector, _) = self.awaited().min_by_key(|(_, place)| place.tries.due)?;
        let place = self.places.get(&sector).filter(|place| self.is_due(&place.tries, now));
        place?;
        self.places.get_mut(&sector)?.waiting.pop_first().map(|(_, fetch)| fetch)
    }

    /// Returns the time at which [`Places::next_due`] has the next one.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let due = self.awaited().map(|(_, place)| place.tries.due).min();
        due.map(|due| self.rest_until.map_or(due, |until| due.max(until)))
    }

    fn awaited(&self) -> impl Iterator<Item = (&u64, &Place<T>)> {
        self.places.iter().filter(|(_, place)| !place.waiting.is_empty())
    }

    /// Forgets the places whose records were not asked for in a while: the disk may be able to read
    /// them by now.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.places.retain(|_, it| !it.waiting.is_empty() || now < it.tries.due + DISK_PATIENCE);
    }
}

fn sector_of(position: Position) -> u64 {
    position.0 / SECTOR
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads, each of which takes this long, until they are given up: their number, and the time in
    /// all.
    fn tried(took: Duration) -> (u32, Duration) {
        let start = Instant::now();
        let (mut now, mut tries) = (start, None);
        loop {
            let it = Tries::another(tries, now, now + took);
            if it.suffice() {
                return (it.count, it.last - start);
            }
            assert!(it.due - it.last >= PAUSE_PER_TIME * took);
            (now, tries) = (it.due, Some(it));
        }
    }

    /// A sector that failed after 5 s each time once kept the only reader busy for ever.
    #[test]
    fn what_a_disk_refuses_is_given_up_after_three_minutes_however_long_it_takes_to_refuse() {
        for (took_ms, tries) in [(0, 14), (100, 14), (5_000, 8), (30_000, 2), (600_000, 2)] {
            let took = Duration::from_millis(took_ms);
            let (count, lasted) = tried(took);
            assert_eq!(count, tries, "{took:?}");
            assert!(lasted >= Duration::from_secs(170), "{took:?}: {lasted:?}");
            let at_most = Duration::from_secs(220).max(6 * took);
            assert!(lasted <= at_most, "{took:?}: {lasted:?}");
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// Many devices with messages in bad sectors once had the only reader wait for those sectors
    /// all the time: each device paused by itself.
    #[test]
    fn all_bad_sectors_together_take_a_fifth_of_the_time() {
        let start = Instant::now();
        let mut places = Places::default();
        for sector in 1..=100 {
            let position = Position(sector * SECTOR);
            places.failed(position, position, start, Duration::ZERO);
            places.wait(position, DeviceId::new(sector), position);
        }
        let (mut now, mut busy, mut given_up) = (start, Duration::ZERO, 0);
        while let Some(at) = places.next_at() {
            now = now.max(at);
            assert_eq!(places.next_due(at.checked_sub(SECOND / 1000).unwrap()), None);
            let position = places.next_due(now).unwrap();
            assert_eq!(places.advice(position, now), Advice::Read);
            let (tries, _) = places.failed(position, position, now, 5 * SECOND);
            (now, busy) = (now + 5 * SECOND, busy + 5 * SECOND);
            if tries.suffice() {
                given_up += 1;
                assert_eq!(places.advice(position, now), Advice::GiveUp);
            } else {
                places.wait(position, DeviceId::new(1), position);
            }
        }
        assert_eq!(given_up, 100);
        assert!(busy * 5 <= now - start + 25 * SECOND, "{busy:?} of {:?}", now - start);
    }

    /// A device was locked out for three minutes for each of its messages in one sector.
    #[test]
    fn a_sector_is_given_up_for_all_records_that_reach_into_it_and_for_no_others() {
        let mut places = Places::default();
        let mut now = Instant::now();
        let (from, lost) = (Position(3 * SECTOR - 10), Position(3 * SECTOR));
        let middle = Position(3 * SECTOR + 500);
        assert_eq!(places.advice(from, now), Advice::Read);
        places.failed(from, lost, now, Duration::ZERO);
        for (device, position) in [(1, from), (2, middle), (2, middle)] {
            assert_eq!(places.advice(position, now), Advice::Wait);
            places.wait(position, DeviceId::new(device), position);
        }
        let given_up = loop {
            now = now.max(places.next_at().unwrap());
            let position = places.next_due(now).unwrap();
            let (tries, given_up) = places.failed(position, lost, now, Duration::ZERO);
            if tries.suffice() {
                assert_eq!(tries.count, DISK_TRIES);
                break given_up;
            }
            places.wait(position, DeviceId::new(1), position);
        };
        assert_eq!(given_up, [middle]);
        for position in [from, middle, Position(4 * SECTOR - 1)] {
            assert_eq!(places.advice(position, now), Advice::GiveUp);
        }
        for position in [Position(from.0 - 1), Position(4 * SECTOR)] {
            assert_eq!(places.advice(position, now), Advice::Read);
        }
        // Not for ever: the disk may be well again.
        assert_eq!(places.advice(middle, now + RETRY_MAX), Advice::Read);
        places.forget_old(now + RETRY_MAX);
        assert_eq!(places.advice(middle, now), Advice::GiveUp);
        places.forget_old(now + RETRY_MAX + DISK_PATIENCE);
        assert!(places.places.is_empty());
    }

    #[test]
    fn once_a_sector_can_be_read_all_who_wait_for_it_are_served() {
        let mut places = Places::default();
        let now = Instant::now();
        let record = Position(3 * SECTOR - 10);
        places.failed(record, Position(3 * SECTOR), now, Duration::ZERO);
        (1..=3).for_each(|device| places.wait(record, DeviceId::new(device), device));
        assert!(places.was_read(record, Some(Position(3 * SECTOR + 7))).is_empty());
        // It fails in another sector now.
        assert_eq!(places.was_read(record, Some(Position(4 * SECTOR))), [1, 2, 3]);
        assert_eq!(places.advice(record, now), Advice::Read);
    }
}
