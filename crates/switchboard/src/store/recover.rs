//! The start: finds the chain of segments, replays it, and mends its end.

use std::collections::BTreeMap;

use super::segment::{
    HEADER_LEN, Header, Previous, Segment, VERSION, Walk, name_of, number_of, read_exact_at,
};
use super::{Disk, DiskFile, OpenError, Place, StoreError};

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
    /// Files of attempts that had failed before the log went on elsewhere.
    pub abandoned: Vec<String>,
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
pub type Replay<'a> = &'a mut dyn FnMut(Place, &[u8]) -> Result<(), String>;

/// The log as it was found; nothing is changed yet.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// From the oldest to the newest, each with its end.
    pub(super) segments: Vec<Segment>,
    pub(super) found: Found,
    /// The highest number of any file.
    pub(super) newest_number: u32,
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

/// Reads the whole log.
pub(super) fn read(disk: &dyn Disk, replay: Replay<'_>) -> Result<Chain, OpenError> {
    let mut files = survey(disk)?;
    let mut chain = link(&mut files)?;
    chain.found.abandoned.extend(files.into_keys().map(name_of));
    let mut buffer = Vec::new();
    let count = chain.segments.len();
    for at in 0..count {
        chain.replay(at, at + 1 == count, &mut buffer, replay)?;
    }
    Ok(chain)
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
    read_exact_at(&*file, head, 0).map_err(StoreError::of("read", &name))?;
    match Header::from_bytes(head) {
        Some(header) if header.version > VERSION => {
            Err(OpenError::Newer { file: name, found: header.version, known: VERSION })
        }
        Some(header) if header.number == number => Ok(Surveyed::Segment(header, file)),
        Some(_) => Err(damaged(number, 0, "it is another segment, renamed")),
        None if len <= HEADER_LEN => Ok(Surveyed::Blank),
        None => {
            // Records are written only once the header is synced.
            let header = Header { version: VERSION, number, id: 0, previous: Previous::default() };
            let used = Segment::new(&header, file, len).used_end(HEADER_LEN, len)?;
            Ok(if used == HEADER_LEN { Surveyed::Blank } else { Surveyed::Damaged })
        }
    }
}

/// Takes the segments of the log out of `files`, following the headers from the newest one back.
fn link(files: &mut BTreeMap<u32, Surveyed>) -> Result<Chain, OpenError> {
    let mut chain = Chain { newest_number: newest_number(files), ..Chain::default() };
    let newest = files.iter().rev().find(|(_, file)| !matches!(file, Surveyed::Blank));
    let mut next = Previous { number: newest.map_or(0, |(&number, _)| number), end: 0 };
    while next.number > 0 {
        match files.remove(&next.number) {
            Some(Surveyed::Segment(header, file)) => {
                let segment = bounded(&header, file, next.end, chain.segments.is_empty())?;
                chain.segments.push(segment);
                if header.previous.number >= header.number {
                    return Err(damaged(header.number, 0, "its header names a later segment"));
                }
                next = header.previous;
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

fn newest_number(files: &BTreeMap<u32, Surveyed>) -> u32 {
    files.last_key_value().map_or(0, |(&number, _)| number)
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

fn damaged(number: u32, offset: u32, what: &'static str) -> OpenError {
    OpenError::Damaged { file: name_of(number), offset: u64::from(offset), what }
}

impl Chain {
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
            replay(segment.place(offset), payload).map_err(|reason| OpenError::Record {
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
