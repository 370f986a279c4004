//! The start: finds the segments that the manifest names, replays them, and repairs their end.

use std::collections::BTreeMap;

use super::manifest::{self, Content, Manifest};
use super::segment::{
    HEADER_LEN, Header, Previous, Segment, Walk, name_of, number_of, read_exact_at, used_end,
};
use super::{Disk, DiskFile, Identity, Known, OpenError, Position, StoreError};

/// The log as a start found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Segments of the log.
    pub segments: usize,
    /// Records replayed.
    pub records: u64,
    /// Bytes of the segments up to their last records.
    pub bytes: u64,
    /// The truncated tail behind the last whole record, if a crash left one.
    pub cut: Option<Cut>,
    /// Files that the log left behind: failed attempts to begin a segment, and dropped segments.
    /// They are deleted.
    pub abandoned: Vec<String>,
    /// Segments of which nothing shows that the log wrote them. They are left as they are.
    pub foreign: Vec<String>,
}

/// The remainder of a write that a crash interrupted. It had not been reported as synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Name of the segment's file.
    pub file: String,
    /// Offset at which it begins.
    pub offset: u32,
    /// Its length.
    pub bytes: u32,
}

/// Callback for every record, in order. An error, in words for the operator, ends the start.
pub type Replay<'a> = &'a mut dyn FnMut(Position, &[u8]) -> Result<(), String>;

/// The log as found, before anything is changed.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// From the oldest to the newest, each with its end.
    pub(super) segments: Vec<Segment>,
    pub(super) found: Found,
    /// The highest number of any file.
    pub(super) newest_number: u32,
    /// The dropped segment before the oldest, from the oldest one's header.
    before: Previous,
    /// Bytes of the newest segment's file, once it is repaired.
    pub(super) file_len: u32,
    /// Offset at which the last write of the newest segment began.
    last_flush: u32,
}

/// A segment's file, judged by its header alone.
#[derive(Debug)]
enum Surveyed {
    Segment(Header, Box<dyn DiskFile>),
    /// At most an unfinished header: an attempt, never a segment with records.
    Blank,
    /// Content, and no intact header.
    Damaged,
}

/// Reads the whole log and holds it against the manifest.
pub(super) fn read(
    disk: &dyn Disk,
    listed: &Content,
    replay: Replay<'_>,
) -> Result<Chain, OpenError> {
    let mut files = survey(disk)?;
    let newest_number = files.last_key_value().map_or(0, |(&number, _)| number);
    let mut chain = link(&mut files, listed)?;
    // The file of an attempt may come back, as its deletion is not synced. So its number is not
    // used again: `create` would fail on the file, or the manifest name the wrong one.
    chain.newest_number = newest_number.max(listed.tried);
    chain.sort_out(files)?;
    let mut buffer = Vec::new();
    let count = chain.segments.len();
    for at in 0..count {
        chain.replay(at, at + 1 == count, &mut buffer, replay)?;
    }
    // Last, since only the replay shows where the newest segment ends.
    chain.hold_to(listed)?;
    Ok(chain)
}

/// Opens the manifest; makes it for a new log.
pub(super) fn manifest(disk: &dyn Disk) -> Result<Manifest, OpenError> {
    if let manifest::Found::Intact { manifest, .. } = Manifest::find(disk)? {
        return Ok(manifest);
    }
    // Refuses segments without a manifest: one that is made now would not name them.
    content(disk)?;
    let store = disk.fresh_id().map_err(StoreError::of("name", "the store"))?;
    Ok(Manifest::create(disk, Content { store, ..Content::default() })?)
}

/// Returns the manifest's content; the default for a directory without a log.
pub(super) fn content(disk: &dyn Disk) -> Result<Content, OpenError> {
    match (Manifest::find(disk)?, identify(disk)?) {
        (manifest::Found::Intact { manifest, .. }, _) => Ok(manifest.content),
        (_, Known::Nothing) => Ok(Content::default()),
        (manifest::Found::Damaged, _) => Err(wrong(manifest::NAME, "is damaged")),
        _ => Err(wrong(manifest::NAME, "is missing, and the log has segments")),
    }
}

/// Tells which log the directory has; changes nothing.
pub(super) fn identify(disk: &dyn Disk) -> Result<Known, OpenError> {
    if let manifest::Found::Intact { manifest, is_half } = Manifest::find(disk)? {
        let Content { store, state_generation, ids_to, newest, .. } = manifest.content;
        let has_segments = newest.number > 0;
        let identity = Identity { store, state_generation, ids_to, has_segments, is_half };
        return Ok(Known::Listed(identity));
    }
    // A blank file never had a record, so there is nothing that a new log could hide.
    let is_empty = survey(disk)?.values().all(|file| matches!(file, Surveyed::Blank));
    Ok(if is_empty { Known::Nothing } else { Known::Unlisted })
}

fn survey(disk: &dyn Disk) -> Result<BTreeMap<u32, Surveyed>, OpenError> {
    let names = disk.list().map_err(StoreError::of("list", "the log"))?;
    let numbers = names.iter().filter_map(|name| number_of(name));
    numbers.map(|number| Ok((number, survey_file(disk, number)?))).collect()
}

fn survey_file(disk: &dyn Disk, number: u32) -> Result<Surveyed, OpenError> {
    let name = name_of(number);
    let file = disk.open(&name).map_err(StoreError::of("open", &name))?;
    let file_len = file.size().map_err(StoreError::of("read", &name))?;
    let Ok(len) = u32::try_from(file_len) else {
        return Err(damaged(number, 0, "the file is longer than a segment can be"));
    };
    let mut bytes = [0; HEADER_LEN as usize];
    let head = &mut bytes[..HEADER_LEN.min(len) as usize];
    read_exact_at(&*file, &name, head, 0)?;
    match Header::from_bytes(head) {
        Some(header) => {
            header.check_version(&name)?;
            if header.number != number {
                return Err(damaged(number, 0, "it is another segment, renamed"));
            }
            Ok(Surveyed::Segment(header, file))
        }
        None if len <= HEADER_LEN => Ok(Surveyed::Blank),
        None => {
            // Records are written only once the header is synced, so a torn header has only zeros
            // behind it.
            let used = used_end(&*file, &name, HEADER_LEN, len)?;
            Ok(if used == HEADER_LEN { Surveyed::Blank } else { Surveyed::Damaged })
        }
    }
}

/// Takes the segments of the log out of `files`, from the newest one that the manifest names to the
/// oldest, no more and no fewer.
fn link(files: &mut BTreeMap<u32, Surveyed>, listed: &Content) -> Result<Chain, OpenError> {
    let Content { oldest, newest, tried, .. } = *listed;
    for (&number, file) in files.range(newest.number + 1..) {
        // Up to `tried` they are attempts that were given up, with whatever is in them.
        if number > tried && file.holds_anything()? {
            return Err(wrong(&name_of(number), "is newer than any segment that MANIFEST knows"));
        }
    }
    let mut chain = Chain::default();
    let mut next = Previous { number: newest.number, end: 0, id: newest.id };
    while next.number > 0 {
        let segment = match files.remove(&next.number) {
            Some(Surveyed::Segment(header, file)) => {
                if header.id != next.id {
                    return Err(wrong(&name_of(next.number), "belongs to another log"));
                }
                let segment = bounded(&header, file, next.end, chain.segments.is_empty())?;
                next = header.previous;
                chain.before = next;
                segment
            }
            None => return Err(wrong(&name_of(next.number), "is missing")),
            Some(_) => return Err(damaged(next.number, 0, "the header cannot be read")),
        };
        let here = segment.listed();
        chain.segments.push(segment);
        if here.number == oldest.number {
            // Older ones were dropped, and a crash may have left their files.
            break;
        }
        if next.number < oldest.number || next.number >= here.number {
            return Err(damaged(here.number, 0, "its header does not lead to the oldest segment"));
        }
    }
    let first = chain.segments.last().map(Segment::listed).unwrap_or_default();
    if first != oldest {
        return Err(wrong(&name_of(oldest.number), "belongs to another log"));
    }
    chain.segments.reverse();
    Ok(chain)
}

impl Surveyed {
    /// Returns true if there is anything but zeros behind the header.
    fn holds_anything(&self) -> Result<bool, StoreError> {
        match self {
            Surveyed::Blank => Ok(false),
            Surveyed::Damaged => Ok(true),
            Surveyed::Segment(header, file) => {
                let name = name_of(header.number);
                let len = file.size().map_err(StoreError::of("read", &name))?;
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                Ok(used_end(&**file, &name, HEADER_LEN, len)? > HEADER_LEN)
            }
        }
    }
}

/// Returns the segment with its end, which the next one's header says; for the newest one that is
/// the end of its file, until the replay finds a better one.
fn bounded(
    header: &Header,
    file: Box<dyn DiskFile>,
    end: u32,
    is_newest: bool,
) -> Result<Segment, OpenError> {
    let name = name_of(header.number);
    let len = file.size().map_err(StoreError::of("read", &name))?;
    // `survey_file` refused lengths that do not fit.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    if is_newest {
        return Ok(Segment::new(header, file, len));
    }
    if end < HEADER_LEN || end > len {
        return Err(damaged(header.number, len.min(end), "the file ends too early"));
    }
    Ok(Segment::new(header, file, end))
}

fn wrong(file: &str, what: &'static str) -> OpenError {
    OpenError::Wrong { file: file.to_owned(), what }
}

fn damaged(number: u32, offset: u32, what: &'static str) -> OpenError {
    OpenError::Damaged { file: name_of(number), offset: u64::from(offset), what }
}

impl Chain {
    /// Divides the remaining files: those that the log left behind will be deleted, foreign ones
    /// stay.
    fn sort_out(&mut self, files: BTreeMap<u32, Surveyed>) -> Result<(), OpenError> {
        for (number, file) in files {
            // A crash may bring back files of failed attempts and the segment that was dropped
            // last. Only the random ids show that a file is one of these; by its number alone
            // it could be a segment of another store, copied here by mistake.
            let is_ours = match &file {
                Surveyed::Segment(header, _) => {
                    self.left_behind(header) || !file.holds_anything()?
                }
                Surveyed::Blank => true,
                Surveyed::Damaged => false,
            };
            let names = if is_ours { &mut self.found.abandoned } else { &mut self.found.foreign };
            names.push(name_of(number));
        }
        Ok(())
    }

    /// Returns true for the segment that was dropped last, and for an attempt behind it or behind a
    /// segment of the log.
    fn left_behind(&self, header: &Header) -> bool {
        let is = |number: u32, id: u64, other: Previous| number == other.number && id == other.id;
        let Previous { number, id, .. } = header.previous;
        if self.before.number == 0 && number == 0 {
            // An attempt from before the log had its first record.
            return true;
        }
        let is_dropped = is(header.number, header.id, self.before);
        let names_dropped = number > 0 && is(number, id, self.before);
        is_dropped
            || names_dropped
            || self.segments.iter().any(|segment| is(number, id, segment.tip()))
    }

    fn replay(
        &mut self,
        at: usize,
        is_newest: bool,
        buffer: &mut Vec<u8>,
        replay: Replay<'_>,
    ) -> Result<(), OpenError> {
        let segment = &self.segments[at];
        let (mut records, mut last_flush) = (0, 0);
        let mut visit = |offset: u32, flush: u32, payload: &[u8]| {
            (records, last_flush) = (records + 1, flush);
            replay(segment.position(offset), payload).map_err(|reason| OpenError::Record {
                file: segment.name.clone(),
                offset: u64::from(offset),
                reason,
            })
        };
        let mut walk = Walk::More(HEADER_LEN);
        while let Walk::More(from) = walk {
            walk = segment.walk(from, segment.end(), buffer, &mut visit)?;
        }
        self.found.segments += 1;
        self.found.records += records;
        self.last_flush = last_flush;
        match walk {
            Walk::Broken(offset) if is_newest => self.cut(at, offset)?,
            // The next segment's header was synced with this one's durable end, so no torn
            // write can lie before it.
            Walk::Broken(offset) => {
                return Err(damaged(segment.number, offset, "there is no intact record"));
            }
            _ => self.file_len = segment.end(),
        }
        self.found.bytes += u64::from(self.segments[at].end());
        Ok(())
    }

    /// Ends the newest segment at `offset`, where there is no intact record, unless a record behind
    /// proves that the place had been synced.
    fn cut(&mut self, at: usize, offset: u32) -> Result<(), OpenError> {
        let segment = &self.segments[at];
        let len = segment.end();
        let used = segment.used_end(offset, len)?;
        // Zeros that were written ahead stay: the next writes fill them.
        self.file_len = len;
        if used > offset {
            if segment.proof_behind(offset, used)?.is_some() {
                return Err(damaged(segment.number, offset, "intact records follow"));
            }
            let file = segment.name.clone();
            self.found.cut = Some(Cut { file, offset, bytes: used - offset });
            self.file_len = offset;
        }
        segment.set_end(offset);
        Ok(())
    }

    /// Refuses a log that does not reach the manifest's tip: all up to there had been synced, and
    /// perhaps been accepted.
    fn hold_to(&self, listed: &Content) -> Result<(), OpenError> {
        let tip = listed.tip;
        if tip.number == 0 {
            return Ok(());
        }
        let Some(at) = self.segments.iter().position(|segment| segment.number == tip.number) else {
            return Err(wrong(manifest::NAME, "ends the log in a segment that it does not have"));
        };
        let segment = &self.segments[at];
        if segment.id != tip.id {
            return Err(wrong(&segment.name, "belongs to another log"));
        }
        let end = segment.end();
        if end < tip.end {
            return Err(damaged(segment.number, end, "accepted records stood here"));
        }
        // More than the tip is usual after a crash, as the tip is noted without a sync. After a
        // clean stop it is not: then the manifest, or the segment, is not the one that was
        // closed.
        let is_more = end > tip.end || at + 1 < self.segments.len() || self.found.cut.is_some();
        if listed.is_clean && is_more {
            return Err(damaged(segment.number, tip.end, "the log had been closed here"));
        }
        Ok(())
    }

    /// Enters the segments and the tip in the manifest's content.
    pub(super) fn list_in(&self, content: &mut Content) {
        let listed = |segment: Option<&Segment>| segment.map(Segment::listed).unwrap_or_default();
        content.oldest = listed(self.segments.first());
        content.newest = listed(self.segments.last());
        content.tip = self.segments.last().map(Segment::tip).unwrap_or_default();
        content.tried = content.tried.max(self.newest_number);
        content.is_clean = false;
    }

    /// Makes durable what was replayed, cuts off the torn tail and deletes what the log left
    /// behind.
    pub(super) fn mend(&self, disk: &dyn Disk) -> Result<(), StoreError> {
        if let Some(newest) = self.segments.last() {
            // A torn write may contain whole records. Left there, one of them would be replayed
            // behind a later record that happens to end where it begins.
            if self.found.cut.is_some() {
                let cut = newest.file.truncate(u64::from(newest.end()));
                cut.map_err(StoreError::of("cut", &newest.name))?;
            }
            // The last write may be in the page cache only, and after a failed sync the kernel
            // takes its pages for clean: another sync would succeed without writing them. So
            // they are made dirty again. All writes before the last had been synced.
            newest.rewrite(self.last_flush, newest.end())?;
            // Not `sync_data`: the truncation must be durable, too.
            newest.file.sync_all().map_err(StoreError::of("sync", &newest.name))?;
        }
        for name in &self.found.abandoned {
            disk.delete(name).map_err(StoreError::of("delete", name))?;
        }
        // Last. A crash before it may bring deleted files back or lose a name; nothing was promised
        // yet that this could break.
        disk.sync_dir().map_err(StoreError::of("sync", "the log's directory"))
    }
}
