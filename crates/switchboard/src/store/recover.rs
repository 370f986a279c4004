//! The start: finds the segments that the manifest names, replays them, and mends their end.

use std::collections::BTreeMap;

use super::ballast;
use super::manifest::{self, Content, Manifest};
use super::segment::{
    HEADER_LEN, Header, Previous, Segment, VERSION, Walk, name_of, number_of, read_exact_at,
    used_end,
};
use super::{Disk, DiskFile, Identity, Known, OpenError, Position, StoreError};

/// What a start found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Segments of the log.
    pub segments: usize,
    /// Records replayed.
    pub records: u64,
    /// Bytes of the segments up to their last records.
    pub bytes: u64,
    /// What a crash left behind the last whole record, if anything.
    pub cut: Option<Cut>,
    /// Files of attempts that had failed before the log went on elsewhere, and of segments that were
    /// dropped. They are deleted.
    pub abandoned: Vec<String>,
    /// Segments that are no part of the log and cannot be told to have been. They are left as they are.
    pub foreign: Vec<String>,
}

/// The remainder of a write that a crash interrupted. It had not been told as synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Name of the segment's file.
    pub file: String,
    /// Where it begins.
    pub offset: u32,
    /// How long it is.
    pub bytes: u32,
}

/// Is called with every record, in order. An error, in words for the operator, ends the start.
pub type Replay<'a> = &'a mut dyn FnMut(Position, &[u8]) -> Result<(), String>;

/// The log as it was found; nothing is changed yet.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// From the oldest to the newest, each with its end.
    pub(super) segments: Vec<Segment>,
    pub(super) found: Found,
    /// The highest number of any file.
    pub(super) newest_number: u32,
    /// What the oldest segment says of the one before it, which was dropped.
    before: Previous,
    /// Bytes of the newest segment's file, once it is mended.
    pub(super) file_len: u32,
    /// Where the last write of the newest segment began.
    last_flush: u32,
}

/// A segment's file, as far as its header tells.
#[derive(Debug)]
enum Surveyed {
    Segment(Header, Box<dyn DiskFile>),
    /// Nothing but a header that was not finished, so never more than an attempt.
    Blank,
    /// No header, and yet content.
    Damaged,
}

/// Reads the whole log, as the manifest has it. Without one, of an older version, nobody knows
/// whether something is missing at its beginning or its end.
pub(super) fn read(
    disk: &dyn Disk,
    listed: Option<&Content>,
    replay: Replay<'_>,
) -> Result<Chain, OpenError> {
    let mut files = survey(disk)?;
    let newest_number = files.last_key_value().map_or(0, |(&number, _)| number);
    let mut chain = match listed {
        Some(listed) => link_listed(&mut files, listed)?,
        None => link(&mut files)?,
    };
    chain.newest_number = newest_number.max(listed.map_or(0, |listed| listed.tried));
    chain.sort_out(files)?;
    let mut buffer = Vec::new();
    let count = chain.segments.len();
    for at in 0..count {
        chain.replay(at, at + 1 == count, &mut buffer, replay)?;
    }
    listed.map_or(Ok(()), |listed| chain.hold_to(listed))?;
    Ok(chain)
}

/// The manifest of the log, made now for a log that is new.
pub(super) fn manifest(disk: &dyn Disk) -> Result<Manifest, OpenError> {
    if let manifest::Found::Intact { manifest, .. } = Manifest::find(disk)? {
        return Ok(manifest);
    }
    content(disk)?;
    let store = disk.fresh_id().map_err(StoreError::of("name", "the store"))?;
    Ok(Manifest::create(disk, Content { store, ..Content::default() })?)
}

/// Returns what the manifest says; nothing, where a log would be made.
pub(super) fn content(disk: &dyn Disk) -> Result<Content, OpenError> {
    match (Manifest::find(disk)?, identify(disk)?) {
        (manifest::Found::Intact { manifest, .. }, _) => Ok(manifest.content),
        (_, Known::Nothing) => Ok(Content::default()),
        (manifest::Found::Damaged, _) => Err(wrong(manifest::NAME, "is damaged")),
        _ => Err(wrong(manifest::NAME, "is missing, and the log has segments")),
    }
}

/// Looks which log there is.
pub(super) fn identify(disk: &dyn Disk) -> Result<Known, OpenError> {
    if let manifest::Found::Intact { manifest, is_half } = Manifest::find(disk)? {
        let Content { store, state_generation, ids_to, newest, .. } = manifest.content;
        let has_segments = newest.number > 0;
        let identity = Identity { store, state_generation, ids_to, has_segments, is_half };
        return Ok(Known::Listed(identity));
    }
    let is_empty = survey(disk)?.values().all(|file| matches!(file, Surveyed::Blank));
    Ok(if is_empty { Known::Nothing } else { Known::Unlisted })
}

/// Returns a log of a version that had no manifest one. On a full disk it takes the place of what the
/// log can do without.
pub(super) fn adopt(disk: &dyn Disk) -> Result<(), OpenError> {
    if survey(disk)?.values().any(Surveyed::had_manifest) {
        return Err(wrong(manifest::NAME, "is missing, and the log has segments"));
    }
    let chain = read(disk, None, &mut |_, _| Ok(()))?;
    let store = disk.fresh_id().map_err(StoreError::of("name", "the store"))?;
    let mut content = Content { store, ..Content::default() };
    chain.list_in(&mut content);
    match Manifest::create(disk, content) {
        Err(error) if error.is_no_space() && chain.make_room(disk) => {
            Manifest::create(disk, content)?;
        }
        created => drop(created?),
    }
    Ok(())
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
        Some(header) if header.version > VERSION => {
            Err(OpenError::Newer { file: name, found: header.version, known: VERSION })
        }
        Some(header) if header.number == number => Ok(Surveyed::Segment(header, file)),
        Some(_) => Err(damaged(number, 0, "it is another segment, renamed")),
        None if len <= HEADER_LEN => Ok(Surveyed::Blank),
        None => {
            // Records are written only once the header is synced.
            let used = used_end(&*file, &name, HEADER_LEN, len)?;
            Ok(if used == HEADER_LEN { Surveyed::Blank } else { Surveyed::Damaged })
        }
    }
}

/// Takes the segments of the log out of `files`, following the headers from the newest one back.
fn link(files: &mut BTreeMap<u32, Surveyed>) -> Result<Chain, OpenError> {
    let mut chain = Chain::default();
    let newest = files.iter().rev().find(|(_, file)| !matches!(file, Surveyed::Blank));
    let mut next = Previous { number: newest.map_or(0, |(&number, _)| number), end: 0, id: 0 };
    while next.number > 0 {
        match files.remove(&next.number) {
            Some(Surveyed::Segment(header, file)) => {
                let segment = bounded(&header, file, next.end, chain.segments.is_empty())?;
                chain.segments.push(segment);
                if header.previous.number >= header.number {
                    return Err(damaged(header.number, 0, "its header names a later segment"));
                }
                next = header.previous;
                chain.before = next;
            }
            // The oldest segments have been dropped, always the oldest first.
            None if files.range(..next.number).next().is_none() => break,
            None => return Err(damaged(next.number, 0, "the file is missing")),
            Some(_) => return Err(damaged(next.number, 0, "the header cannot be read")),
        }
    }
    chain.segments.reverse();
    Ok(chain)
}

/// Takes the segments out of `files` that are listed, no more and no fewer.
fn link_listed(files: &mut BTreeMap<u32, Surveyed>, listed: &Content) -> Result<Chain, OpenError> {
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
                if next.id != 0 && header.id != next.id {
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
    /// Returns whether it is of a version that has a manifest.
    fn had_manifest(&self) -> bool {
        matches!(self, Surveyed::Segment(header, _) if header.version > 1)
    }

    /// Returns whether there is anything behind a header.
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

/// The segment with its end: what the next one says, or of the newest all of its file.
fn bounded(
    header: &Header,
    file: Box<dyn DiskFile>,
    end: u32,
    is_newest: bool,
) -> Result<Segment, OpenError> {
    let name = name_of(header.number);
    let len = file.size().map_err(StoreError::of("read", &name))?;
    // Surveyed already: the length fits.
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
    /// Tells what the log left behind from what somebody else put there. Files are left behind by
    /// attempts that failed, and by the drop of the segment before the oldest, should a crash have come
    /// before they were certain to be deleted. All of these hold nothing, are the segment that was
    /// dropped, or name one of the log, or that one, as the one before.
    fn sort_out(&mut self, files: BTreeMap<u32, Surveyed>) -> Result<(), OpenError> {
        for (number, file) in files {
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

    fn left_behind(&self, header: &Header) -> bool {
        // A header of version 1 does not say the id of the one before, and is believed.
        let is = |number: u32, id: u64, other: Previous| {
            number == other.number && (id == other.id || other.id == 0 || id == 0)
        };
        let Previous { number, id, .. } = header.previous;
        if self.before.number == 0 && number == 0 {
            // An attempt before the log had its first record.
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
            Walk::Broken(offset) => {
                return Err(damaged(segment.number, offset, "there is no intact record"));
            }
            _ => self.file_len = segment.end(),
        }
        self.found.bytes += u64::from(self.segments[at].end());
        Ok(())
    }

    /// Ends the newest segment at `offset`, where there is no record, unless that place had been
    /// synced.
    fn cut(&mut self, at: usize, offset: u32) -> Result<(), OpenError> {
        let segment = &self.segments[at];
        let len = segment.end();
        let used = segment.used_end(offset, len)?;
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

    /// All up to the manifest's tip had been synced, and perhaps been told; after a clean stop that
    /// is all.
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
        let is_more = end > tip.end || at + 1 < self.segments.len() || self.found.cut.is_some();
        if listed.is_clean && is_more {
            return Err(damaged(segment.number, tip.end, "the log had been closed here"));
        }
        Ok(())
    }

    /// Gives up the ballast and the zeros ahead of the records; `false` when there was neither.
    fn make_room(&self, disk: &dyn Disk) -> bool {
        let is_given_up = ballast::give_up_all(disk);
        let newest =
            self.segments.last().filter(|it| self.found.cut.is_none() && it.end() < self.file_len);
        is_given_up || newest.is_some_and(|it| it.file.truncate(u64::from(it.end())).is_ok())
    }

    /// Says in the manifest what there is.
    pub(super) fn list_in(&self, content: &mut Content) {
        let listed = |segment: Option<&Segment>| segment.map(Segment::listed).unwrap_or_default();
        content.oldest = listed(self.segments.first());
        content.newest = listed(self.segments.last());
        content.tip = self.segments.last().map(Segment::tip).unwrap_or_default();
        content.tried = content.tried.max(self.newest_number);
        content.is_clean = false;
    }

    /// Makes what was replayed durable, and takes away what was not.
    ///
    /// The last write may be in the page cache only, and after a failed sync the kernel may even
    /// take it for written. So it is written once more before anything is built on it. All before
    /// it had been synced. The directory is synced last: until then nothing was promised that a
    /// file which comes back, or goes, could break.
    pub(super) fn mend(&self, disk: &dyn Disk) -> Result<(), StoreError> {
        if let Some(newest) = self.segments.last() {
            if self.found.cut.is_some() {
                let cut = newest.file.truncate(u64::from(newest.end()));
                cut.map_err(StoreError::of("cut", &newest.name))?;
            }
            newest.rewrite(self.last_flush, newest.end())?;
            newest.file.sync_all().map_err(StoreError::of("sync", &newest.name))?;
        }
        for name in &self.found.abandoned {
            disk.delete(name).map_err(StoreError::of("delete", name))?;
        }
        disk.sync_dir().map_err(StoreError::of("sync", "the log's directory"))
    }
}
