//! `MANIFEST`: names the oldest and newest segment of the log, and how far it is durable.
//!
//! Without it a log that lost its end, its beginning or everything looks like a shorter log, and a
//! missing accepted message looks like one that never came. The file has a fixed size and is
//! written in place, so that a full disk does not stop it:
//!
//! ```text
//! slot     at 0 and at 4096; the intact one with the higher generation counts
//!          magic 8, version u32, flags u32, generation u64, store u64, state generation u64,
//!          0 u32, tried u32, oldest (number u32, 0 u32, id u64), newest (the same),
//!          tip (number u32, end u32, id u64), ids u64, zeros up to 124, checksum u32
//! ```
//! Numbers are little-endian. A write goes to the slot that was not synced last. So whatever a
//! crash does to it, the content that was synced last stays.
//!
//! The tip is noted after each sync of the log, before any shard is told, and is not synced itself:
//! the note survives the death of the process, and after a power failure an older tip is still a
//! lower bound. [`Manifest::sync`] follows when the writer comes to rest.

use std::io::{ErrorKind, IoSlice};

use super::segment::{Previous, check_version, read_exact_at};
use super::{Disk, DiskFile, OpenError, StoreError};

/// The file's name.
pub(super) const NAME: &str = "MANIFEST";
/// The format version that is written, and the only one that is read.
const VERSION: u32 = 2;
const MAGIC: [u8; 8] = *b"swblist\n";
const SLOT_LEN: usize = 128;
const CHECKED_LEN: usize = SLOT_LEN - 4;
/// A page apart: no device tears both with one write.
const SLOT_AT: [usize; 2] = [0, 4096];
/// A slot is written as a whole page: to write a part of a page, the kernel reads the rest first,
/// which fails if the disk has lost it.
const PAGE_LEN: usize = 4096;
const FILE_LEN: usize = 8192;
const IS_CLEAN: u32 = 1;

/// A segment as the manifest names it; number 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) number: u32,
    /// The random id in its header.
    pub(super) id: u64,
}

/// Content of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Rises with each write.
    pub(super) generation: u64,
    /// Random, drawn when the store was made.
    pub(super) store: u64,
    /// Generation of the `state.json` that belongs to the log; 0 while there is none.
    pub(super) state_generation: u64,
    /// Segments above the newest and up to this number are attempts that were given up.
    pub(super) tried: u32,
    pub(super) oldest: Listed,
    pub(super) newest: Listed,
    /// The log is durable up to here; there may be more behind it, unless the stop was clean.
    pub(super) tip: Previous,
    /// Set if the log was closed in order, so that nothing lies behind the tip.
    pub(super) is_clean: bool,
    /// Ids below this one may have been given, as noted in the state; 0 while there is none.
    pub(super) ids_to: u64,
}

/// The manifest, open for writing.
#[derive(Debug)]
pub(super) struct Manifest {
    file: Box<dyn DiskFile>,
    pub(super) content: Content,
    /// The slot that was synced last; it is not written before the other one is synced.
    synced_slot: usize,
    /// Set while some content is not synced.
    is_dirty: bool,
}

/// The manifest as found on disk.
#[derive(Debug)]
pub(super) enum Found {
    Missing,
    /// No slot is intact. A crash leaves this only while the file is made.
    Damaged,
    Intact {
        manifest: Manifest,
        /// True if the other slot cannot be read. A crash, too, may leave it so.
        is_half: bool,
    },
}

impl Content {
    fn to_bytes(self) -> [u8; SLOT_LEN] {
        let mut out = Vec::with_capacity(SLOT_LEN);
        out.extend_from_slice(&MAGIC);
        for number in [VERSION, if self.is_clean { IS_CLEAN } else { 0 }] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.generation, self.store, self.state_generation] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.tried.to_le_bytes());
        let Previous { number, end, id } = self.tip;
        let Content { oldest, newest, .. } = self;
        for (number, end, id) in
            [(oldest.number, 0, oldest.id), (newest.number, 0, newest.id), (number, end, id)]
        {
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&end.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out.extend_from_slice(&self.ids_to.to_le_bytes());
        out.resize(CHECKED_LEN, 0);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.try_into().expect("a slot is as long as its fields")
    }

    /// Parses a slot; `None` if it is damaged.
    ///
    /// # Errors
    /// If another version wrote it.
    fn from_bytes(bytes: &[u8]) -> Result<Option<Content>, OpenError> {
        let u32_at =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from(u32_at(at + 4)) << 32 | u64::from(u32_at(at));
        let is_intact = crc32c::crc32c(&bytes[..CHECKED_LEN]) == u32_at(CHECKED_LEN);
        if !bytes.starts_with(&MAGIC) || !is_intact {
            return Ok(None);
        }
        check_version(NAME, u32_at(8), VERSION)?;
        let listed = |at| Listed { number: u32_at(at), id: u64_at(at + 8) };
        Ok(Some(Content {
            generation: u64_at(16),
            store: u64_at(24),
            state_generation: u64_at(32),
            tried: u32_at(44),
            oldest: listed(48),
            newest: listed(64),
            tip: Previous { number: u32_at(80), end: u32_at(84), id: u64_at(88) },
            is_clean: u32_at(12) & IS_CLEAN != 0,
            ids_to: u64_at(96),
        }))
    }
}

impl Manifest {
    /// Reads the manifest; changes nothing.
    pub(super) fn find(disk: &dyn Disk) -> Result<Found, OpenError> {
        let file = match disk.open(NAME) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Missing),
            Err(error) => return Err(StoreError::new("open", NAME, error).into()),
        };
        // The file has another length only while it is being made.
        if file.size().map_err(StoreError::of("read", NAME))? != FILE_LEN as u64 {
            return Ok(Found::Damaged);
        }
        let mut unreadable = None;
        let mut slots = [None; 2];
        // One read each: a single one over both would fail for one lost sector.
        for (slot, at) in slots.iter_mut().zip(SLOT_AT) {
            let mut bytes = [0; SLOT_LEN];
            match read_exact_at(&*file, NAME, &mut bytes, at as u64) {
                Ok(()) => *slot = Content::from_bytes(&bytes)?,
                // The other one may serve.
                Err(error) if error.is_damage() => unreadable = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        let newest = (0..2).max_by_key(|&slot| slots[slot].map(|content| content.generation));
        let newest = newest.expect("there are two");
        let Some(content) = slots[newest] else {
            return unreadable.map_or(Ok(Found::Damaged), |error| Err(error.into()));
        };
        let is_half = slots.iter().any(Option::is_none);
        // Dirty, and the newest slot only assumed to be synced: see `secure`.
        let manifest = Manifest { file, content, synced_slot: newest, is_dirty: true };
        Ok(Found::Intact { manifest, is_half })
    }

    /// Makes the file durably, or finishes one that a crash left unfinished.
    pub(super) fn create(disk: &dyn Disk, content: Content) -> Result<Manifest, StoreError> {
        let file = match disk.open(NAME) {
            Err(error) if error.kind() == ErrorKind::NotFound => disk.create(NAME),
            opened => opened,
        };
        let file = file.map_err(StoreError::of("create", NAME))?;
        let mut bytes = vec![0; FILE_LEN];
        for at in SLOT_AT {
            bytes[at..at + SLOT_LEN].copy_from_slice(&content.to_bytes());
        }
        let written = file
            .truncate(FILE_LEN as u64)
            .and_then(|()| file.write_at(&mut [IoSlice::new(&bytes)], 0))
            .and_then(|()| file.sync_all());
        if let Err(error) = written {
            // A full disk may have taken one slot of the two; the next start would take that for a
            // whole manifest.
            file.truncate(0).ok();
            return Err(StoreError::new("write", NAME, error));
        }
        disk.sync_dir().map_err(StoreError::of("sync the directory of", NAME))?;
        Ok(Manifest { file, content, synced_slot: 0, is_dirty: false })
    }

    /// Fails if a start would not find the file.
    pub(super) fn check(&self, disk: &dyn Disk) -> Result<(), StoreError> {
        StoreError::unless_found(disk, NAME, &*self.file)
    }

    /// Makes durable what was found, so that the slot which [`Manifest::find`] took for synced
    /// really is synced.
    pub(super) fn secure(&mut self) -> Result<(), StoreError> {
        // The newer slot may be in the page cache only, and then the other one was synced last. To
        // write the same bytes again harms neither: if they are durable nothing changes, and if a
        // crash tears them the other slot counts.
        self.write_slot(self.synced_slot)?;
        self.file.sync_data().map_err(StoreError::of("sync", NAME))
    }

    /// Writes the content, not synced, to the slot that was not synced last; returns which one.
    fn write(&mut self) -> Result<usize, StoreError> {
        let slot = 1 - self.synced_slot;
        self.is_dirty = true;
        self.content.generation += 1;
        self.write_slot(slot).map(|()| slot)
    }

    fn write_slot(&self, slot: usize) -> Result<(), StoreError> {
        let mut page = [0; PAGE_LEN];
        page[..SLOT_LEN].copy_from_slice(&self.content.to_bytes());
        let written = self.file.write_at(&mut [IoSlice::new(&page)], SLOT_AT[slot] as u64);
        written.map_err(StoreError::of("write", NAME))
    }

    /// Writes the content and makes it durable.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        let slot = self.write()?;
        self.file.sync_data().map_err(StoreError::of("sync", NAME))?;
        // Only now do the slots change roles: after a sync that failed the next write goes to
        // the same slot again, and the other one keeps what is durable.
        (self.synced_slot, self.is_dirty) = (slot, false);
        Ok(())
    }

    /// Makes the content durable unless it is.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        if self.is_dirty { self.sync() } else { Ok(()) }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Notes the durable end of the log, without a sync.
    pub(super) fn note_tip(&mut self, tip: Previous) {
        self.content.tip = tip;
        // If it fails an older tip stays, which is a lower bound.
        self.write().ok();
    }

    /// Notes that a segment begins; no record may be written to it before this has succeeded.
    pub(super) fn list(&mut self, segment: Listed) -> Result<(), StoreError> {
        // Nothing is durable yet, so an earlier attempt at the first segment does not count.
        if self.content.tip.number == 0 {
            self.content.oldest = segment;
        }
        self.content.newest = segment;
        self.content.tried = self.content.tried.max(segment.number);
        self.sync()
    }

    /// Notes that the newest segment is given up, as it has no durable record. Once this has
    /// succeeded its file may go, or stay with anything in it.
    pub(super) fn unlist(&mut self) -> Result<(), StoreError> {
        let Previous { number, id, .. } = self.content.tip;
        if self.content.newest.number != number {
            self.content.newest = Listed { number, id };
            self.is_dirty = true;
        }
        if number == 0 {
            self.content.oldest = Listed::default();
        }
        self.settle()
    }

    /// Notes that the log begins with this segment; once this has succeeded those before it may go.
    pub(super) fn begin_with(&mut self, oldest: Listed) -> Result<(), StoreError> {
        self.content.oldest = oldest;
        self.sync()
    }

    /// Notes that the log is closed.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        self.content.is_clean = true;
        // Twice, so that both slots say it. If only one did, and that one were lost, the older slot
        // would look like that of a crash, after which a missing end passes for a torn write.
        self.sync()?;
        self.sync()
    }
}
