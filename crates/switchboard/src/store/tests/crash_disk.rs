//! A disk in memory that fails, freezes and crashes on command.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use super::random::Random;
use crate::store::{Disk, DiskFile, Space};

const SECTOR_LEN: usize = 512;

/// A disk that distinguishes written from synced bytes. Clones share the content.
#[derive(Clone, Debug)]
pub(crate) struct CrashDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    unsynced_names: Vec<NameChange>,
    files: Vec<Content>,
    random: Random,
    /// One in this many changes fails.
    fail_one_in: Option<u64>,
    /// Set while syncs of content fail and all else works.
    syncs_fail: bool,
    /// Number of changes that still happen before the disk freezes.
    changes_left: Option<u64>,
    /// Most bytes of all files together; others have taken the rest.
    capacity: u64,
    /// Most files that have names.
    files_max: usize,
    ids: u64,
    /// Pages of files that cannot be read.
    lost: Vec<(usize, u64)>,
}

/// Unit in which the disk loses data.
const PAGE_LEN: u64 = 4096;

/// Capacity of the disk if no other process uses it.
const DISK_BYTES: u64 = 1 << 30;

#[derive(Clone, Debug)]
enum NameChange {
    Created(String, usize),
    Deleted(String),
}

/// Content of a file: as read now, and as it is certain to be after a crash.
#[derive(Clone, Debug, Default)]
struct Content {
    cache: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

/// Kinds of crashes, by what they leave of unsynced changes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    /// The process died; the page cache lives.
    Process,
    /// The power failed: any sectors may be there or not, also one torn anywhere.
    Power,
}

#[derive(Debug)]
struct CrashFile {
    disk: CrashDisk,
    index: usize,
}

fn no_space() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

fn broken() -> io::Error {
    io::Error::other("input/output error")
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Truncate(len) => bytes.truncate(*len),
            Change::Write(offset, written) => {
                let end = offset + written.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*offset..end].copy_from_slice(written);
            }
        }
    }

    /// As the disk may do it: sector by sector.
    fn pieces(&self) -> Vec<Change> {
        let Change::Write(offset, bytes) = self else { return vec![self.clone()] };
        let mut pieces = Vec::new();
        let (mut offset, mut rest) = (*offset, &bytes[..]);
        while !rest.is_empty() {
            let len = (SECTOR_LEN - offset % SECTOR_LEN).min(rest.len());
            pieces.push(Change::Write(offset, rest[..len].to_vec()));
            offset += len;
            rest = &rest[len..];
        }
        pieces
    }

    fn torn(self, random: &mut Random) -> Change {
        match self {
            Change::Write(offset, bytes) => {
                let len = random.below(bytes.len() as u64 + 1) as usize;
                Change::Write(offset, bytes[..len].to_vec())
            }
            Change::Truncate(_) => self,
        }
    }
}

/// The changes that reach the disk: all, none, a first part, or any.
fn survivors<T>(changes: Vec<T>, random: &mut Random) -> Vec<T> {
    let count = changes.len() as u64;
    let (first, chance) = match random.below(4) {
        0 => (count, 0),
        1 => (0, 0),
        2 => (random.below(count + 1), 0),
        _ => (0, 1 + random.below(9)),
    };
    let kept = changes.into_iter().zip(0..);
    kept.filter(|&(_, at)| at < first || random.below(10) < chance).map(|(it, _)| it).collect()
}

impl Content {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.cache);
        self.unsynced.push(change);
    }

    /// Makes some of the unsynced changes durable; the rest never will be.
    fn lose(&mut self, random: &mut Random) {
        let pieces = self.unsynced.drain(..).flat_map(|change| change.pieces()).collect();
        let mut survivors = survivors(pieces, random);
        if let Some(last) = survivors.pop() {
            survivors.push(last.torn(random));
        }
        if random.below(4) == 0 {
            // The length may be there before the content is.
            self.durable.resize(self.durable.len().max(self.cache.len()), 0);
        }
        survivors.iter().for_each(|change| change.apply(&mut self.durable));
    }

    /// Changes that an earlier sync lost stay lost, though the page cache shows them.
    fn sync(&mut self) {
        self.unsynced.drain(..).for_each(|change| change.apply(&mut self.durable));
    }
}

impl State {
    /// Counts a change; fails if it is not to happen.
    fn permit(&mut self, error: fn() -> io::Error) -> io::Result<()> {
        match &mut self.changes_left {
            Some(0) => return Err(io::Error::other("frozen")),
            Some(left) => *left -= 1,
            None => {}
        }
        match self.fail_one_in {
            Some(one_in) if self.random.below(one_in) == 0 => Err(error()),
            _ => Ok(()),
        }
    }

    /// Returns the bytes of all files that have a name.
    fn used(&self) -> u64 {
        self.names.values().map(|&index| self.files[index].cache.len() as u64).sum()
    }

    /// Returns the length to which a file may grow.
    fn most(&self, index: usize) -> usize {
        let free = self.capacity.saturating_sub(self.used());
        self.files[index].cache.len() + free as usize
    }

    /// Fails a write to a part of a lost page, whose rest would have to be read; a write of the
    /// whole page makes it readable again.
    fn write_over_lost(&mut self, index: usize, offset: u64, len: u64) -> io::Result<()> {
        let is_hit = |&(of, page): &(usize, u64)| {
            of == index && (page + 1) * PAGE_LEN > offset && page * PAGE_LEN < offset + len
        };
        let is_whole = |&(_, page): &(usize, u64)| {
            offset <= page * PAGE_LEN && (page + 1) * PAGE_LEN <= offset + len
        };
        if self.lost.iter().any(|lost| is_hit(lost) && !is_whole(lost)) {
            return Err(rustix::io::Errno::IO.into());
        }
        self.lost.retain(|lost| !is_hit(lost));
        Ok(())
    }

    fn is_frozen(&self) -> bool {
        self.changes_left == Some(0)
    }

    fn lose_names(&mut self) {
        let changes = self.unsynced_names.drain(..).collect();
        for change in survivors(changes, &mut self.random) {
            match change {
                NameChange::Created(name, index) => drop(self.durable_names.insert(name, index)),
                NameChange::Deleted(name) => drop(self.durable_names.remove(&name)),
            }
        }
        self.names.clone_from(&self.durable_names);
    }
}

impl CrashDisk {
    pub(crate) fn new(seed: u64) -> CrashDisk {
        CrashDisk(Arc::new(Mutex::new(State {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            files: Vec::new(),
            random: Random::new(seed),
            fail_one_in: None,
            syncs_fail: false,
            changes_left: None,
            capacity: DISK_BYTES,
            files_max: usize::MAX,
            ids: 0,
            lost: Vec::new(),
        })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// Makes one in this many changes fail from now on, or none.
    pub(super) fn fail_one_in(&self, one_in: Option<u64>) {
        self.with(|state| state.fail_one_in = one_in);
    }

    /// Makes syncs of content fail from now on, or work again.
    pub(super) fn fail_syncs(&self, fail: bool) {
        self.with(|state| state.syncs_fail = fail);
    }

    /// Freezes the disk after this many changes; `None` means never.
    pub(super) fn freeze_after(&self, changes: Option<u64>) {
        self.with(|state| state.changes_left = changes);
    }

    /// Lets others take all but this much of the free space; with `None` they take nothing.
    pub(super) fn leave_free(&self, bytes: Option<u64>) {
        self.with(|state| {
            let used = state.used();
            state.capacity = bytes.map_or(DISK_BYTES, |bytes| DISK_BYTES.min(used + bytes));
        });
    }

    /// Lets others take all but this many inodes; with `None` they take none.
    pub(super) fn leave_files(&self, more: Option<usize>) {
        self.with(|state| {
            state.files_max = more.map_or(usize::MAX, |more| state.names.len() + more);
        });
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.with(|state| state.is_frozen())
    }

    /// Returns the disk as the next process finds it. Files that are still open here do not
    /// change it.
    pub(super) fn crash(&self, loss: Loss) -> CrashDisk {
        self.with(|state| {
            let mut random = state.random.fork();
            let mut next = State {
                names: state.names.clone(),
                durable_names: state.durable_names.clone(),
                unsynced_names: state.unsynced_names.clone(),
                files: state.files.clone(),
                random: random.fork(),
                fail_one_in: None,
                syncs_fail: false,
                changes_left: None,
                capacity: state.capacity,
                files_max: state.files_max,
                ids: state.ids,
                lost: state.lost.clone(),
            };
            if let Loss::Power = loss {
                next.lose_names();
                for file in &mut next.files {
                    file.lose(&mut random);
                    file.cache.clone_from(&file.durable);
                }
            }
            CrashDisk(Arc::new(Mutex::new(next)))
        })
    }

    /// Returns the content of a file.
    pub(super) fn content(&self, name: &str) -> Vec<u8> {
        self.with(|state| state.files[state.names[name]].cache.clone())
    }

    /// Makes the page of a file in which this byte lies unreadable.
    pub(crate) fn lose(&self, name: &str, at: u64) {
        self.with(|state| state.lost.push((state.names[name], at / PAGE_LEN)));
    }

    /// Makes all pages readable again.
    pub(crate) fn regain(&self) {
        self.with(|state| state.lost.clear());
    }

    /// Creates or replaces a file durably.
    pub(super) fn put(&self, name: &str, bytes: &[u8]) {
        self.with(|state| {
            let index = state.files.len();
            let (cache, durable) = (bytes.to_vec(), bytes.to_vec());
            state.files.push(Content { cache, durable, unsynced: Vec::new() });
            state.names.insert(name.to_owned(), index);
            state.durable_names.insert(name.to_owned(), index);
        });
    }

    fn file(&self, index: usize) -> Box<dyn DiskFile> {
        Box::new(CrashFile { disk: self.clone(), index })
    }
}

impl Disk for CrashDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.with(|state| state.names.keys().cloned().collect()))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let index = self.with(|state| {
            state.permit(no_space)?;
            if state.names.len() >= state.files_max {
                return Err(no_space());
            }
            let index = state.files.len();
            state.files.push(Content::default());
            let before = state.names.insert(name.to_owned(), index);
            assert_eq!(before, None, "{name} is created twice");
            state.unsynced_names.push(NameChange::Created(name.to_owned(), index));
            Ok::<_, io::Error>(index)
        })?;
        Ok(self.file(index))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let index = self.with(|state| state.names.get(name).copied());
        Ok(self.file(index.ok_or(io::ErrorKind::NotFound)?))
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        self.with(|state| {
            state.permit(broken)?;
            state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
            state.unsynced_names.push(NameChange::Deleted(name.to_owned()));
            Ok(())
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.with(|state| {
            state.permit(broken)?;
            state.durable_names.clone_from(&state.names);
            state.unsynced_names.clear();
            Ok(())
        })
    }

    fn space(&self) -> io::Result<Space> {
        Ok(self.with(|state| Space {
            total: DISK_BYTES,
            free: state.capacity.saturating_sub(state.used()),
            is_out_of_inodes: state.names.len() >= state.files_max,
        }))
    }

    fn fresh_id(&self) -> io::Result<u64> {
        Ok(self.with(|state| {
            state.ids += 1;
            state.ids
        }))
    }
}

impl CrashFile {
    fn with<T>(&self, act: impl FnOnce(&mut State, usize) -> T) -> T {
        self.disk.with(|state| act(state, self.index))
    }
}

impl DiskFile for CrashFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.with(|state, index| state.files[index].cache.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state, index| {
            let cache = &state.files[index].cache;
            let found = &cache[cache.len().min(offset as usize)..];
            let mut len = found.len().min(buffer.len());
            // It is read up to a lost page, and no further.
            let lost = state
                .lost
                .iter()
                .filter(|(of, page)| *of == index && (page + 1) * PAGE_LEN > offset);
            if let Some(from) = lost.map(|(_, page)| page * PAGE_LEN).min() {
                len = len.min(from.saturating_sub(offset) as usize);
                if len == 0 && from < offset + buffer.len() as u64 {
                    return Err(rustix::io::Errno::IO.into());
                }
            }
            buffer[..len].copy_from_slice(&found[..len]);
            Ok(len)
        })
    }

    /// A write that fails, or that the freeze interrupts, has written a first part.
    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.with(|state, index| {
            let was_frozen = state.is_frozen();
            let mut permitted = state.permit(no_space);
            let most = state.most(index).saturating_sub(offset as usize);
            if permitted.is_ok() && bytes.len() > most {
                bytes.truncate(most);
                permitted = Err(no_space());
            } else if permitted.is_err() {
                let len = state.random.below(bytes.len() as u64 + 1) as usize;
                bytes.truncate(if was_frozen { 0 } else { len });
            }
            if permitted.is_ok() {
                state.write_over_lost(index, offset, bytes.len() as u64)?;
            }
            state.files[index].change(Change::Write(offset as usize, bytes));
            permitted
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let had = self.size()?;
        if len <= had {
            return Ok(());
        }
        let zeros = vec![0; (len - had) as usize];
        self.write_at(&mut [IoSlice::new(&zeros)], had)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.with(|state, index| {
            state.permit(broken)?;
            state.files[index].change(Change::Truncate(len as usize));
            Ok(())
        })
    }

    /// A sync that fails drops the unsynced changes, which the page cache goes on showing.
    fn sync_data(&self) -> io::Result<()> {
        self.with(|state, index| {
            let was_frozen = state.is_frozen();
            let permitted = state.permit(broken);
            let permitted = if state.syncs_fail { Err(broken()) } else { permitted };
            let State { files, random, .. } = state;
            match permitted {
                Ok(()) => files[index].sync(),
                Err(_) if was_frozen => {}
                Err(_) => files[index].lose(random),
            }
            permitted
        })
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}
