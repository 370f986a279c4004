//! The format of a segment: a header, then records one after the other, then zeros.
//!
//! ```text
//! header   magic 8, version u32, number u32, id u64, previous number u32, previous end u32,
//!          checksum u32, previous id u64, checksum of that u32, zeros up to 64 bytes
//! record   length u32, flush u32, checksum u32, payload
//! ```
//! Numbers are little-endian. A record's checksum covers the segment's random id and number, the
//! record's own offset, its length, its flush and its payload: bytes of another file, or of
//! another offset, are never taken for a record. `flush` is the offset at which the write began
//! that contained the record. A write begins only once the one before it is synced. So a record
//! whose flush lies behind a damaged place proves that the damaged place was once durable; any
//! other record behind it may be part of the same torn write.

use std::cmp::Ordering;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::disk::DiskFile;
use super::manifest::Listed;
use super::skipping::{SkippingFile, to_sector_end};
use super::{OlderFormat, OpenError, Position, ReadError, StoreError};

/// Bytes of a header.
pub(super) const HEADER_LEN: u32 = 64;
/// Bytes before each record's payload.
pub(super) const FRAME_LEN: usize = 12;
/// The format version that is written, and the only one that is read. It goes up with every change of
/// the records, too.
pub(super) const VERSION: u32 = 3;

const MAGIC: [u8; 8] = *b"swblog\r\n";
/// Bytes that the header's checksum covers; every version keeps these fields and the checksum in
/// place, so that a newer version is recognised as one.
const CHECKED_LEN: usize = 32;
/// Bytes per read of a walk over records.
const CHUNK_LEN: u32 = 1 << 20;

/// The first bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) number: u32,
    /// Random, so that the records of one segment never pass for records of another.
    pub(super) id: u64,
    pub(super) previous: Previous,
}

/// The end of the log in the segment before; number 0 if there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Previous {
    pub(super) number: u32,
    pub(super) end: u32,
    /// That segment's id.
    pub(super) id: u64,
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN as usize] {
        let mut bytes = [0; HEADER_LEN as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.previous.number.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.previous.end.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..CHECKED_LEN]);
        bytes[32..36].copy_from_slice(&checksum.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.previous.id.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[36..44]);
        bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Fails if another version wrote it than the one that is read.
    pub(super) fn check_version(&self, file: &str) -> Result<(), OpenError> {
        check_version(file, self.version, VERSION)
    }

    /// Parses a header; `None` if it is incomplete or damaged.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Header> {
        let bytes = bytes.get(..HEADER_LEN as usize)?;
        let version = u32_at(bytes, 8);
        // The second checksum is that of this version exactly: another may use its bytes for
        // something else, and must still be told from damage.
        let intact = crc32c::crc32c(&bytes[..CHECKED_LEN]) == u32_at(bytes, CHECKED_LEN)
            && (version != VERSION || crc32c::crc32c(&bytes[36..44]) == u32_at(bytes, 44));
        (bytes.starts_with(&MAGIC) && intact).then(|| Header {
            version,
            number: u32_at(bytes, 12),
            id: u64_at(bytes, 16),
            previous: Previous {
                number: u32_at(bytes, 24),
                end: u32_at(bytes, 28),
                id: u64_at(bytes, 36),
            },
        })
    }
}

/// Fails if the format version of a file is not the one that is read.
pub(super) fn check_version(file: &str, found: u32, known: u32) -> Result<(), OpenError> {
    match found.cmp(&known) {
        Ordering::Less => Err(OlderFormat { file: file.to_owned(), found }.into()),
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(OpenError::Newer { file: file.to_owned(), found, known }),
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The frame before a payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) len: u32,
    flush: u32,
    checksum: u32,
}

impl Frame {
    pub(super) fn read(bytes: &[u8]) -> Frame {
        Frame { len: u32_at(bytes, 0), flush: u32_at(bytes, 4), checksum: u32_at(bytes, 8) }
    }

    pub(super) fn write_len(bytes: &mut [u8], len: u32) {
        bytes[..4].copy_from_slice(&len.to_le_bytes());
    }

    /// Returns the length of frame and payload, in bytes.
    fn whole_len(self) -> u64 {
        FRAME_LEN as u64 + u64::from(self.len)
    }
}

/// The first part of each record's checksum: ties records to their segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seal(u32);

/// Result of decoding bytes that may be a record.
#[derive(Debug)]
enum Decoded<'a> {
    /// An intact record.
    Record { flush: u32, payload: &'a [u8] },
    /// The beginning of a possible record of this length, frame included.
    Partial(u32),
    /// Not a record.
    Broken,
}

impl Seal {
    pub(super) fn new(header: &Header) -> Seal {
        // The id is hashed by itself first. If the number were the CRC's initial value, it would
        // only be XORed into the id, and a record would pass in another segment whose id and number
        // differ by the same bits.
        let id = crc32c::crc32c(&header.id.to_le_bytes());
        Seal(crc32c::crc32c_append(id, &header.number.to_le_bytes()))
    }

    fn checksum(self, offset: u32, flush: u32, payload: &[u8]) -> u32 {
        let position = u64::from(flush) << 32 | u64::from(offset);
        let sum = crc32c::crc32c_append(self.0, &position.to_le_bytes());
        let sum = crc32c::crc32c_append(sum, payload);
        crc32c::crc32c_append(sum, &(payload.len() as u32).to_le_bytes())
    }

    /// Completes a frame that contains only the record's length.
    pub(super) fn seal(self, record: &mut [u8], offset: u32, flush: u32) {
        let checksum = self.checksum(offset, flush, &record[FRAME_LEN..]);
        record[4..8].copy_from_slice(&flush.to_le_bytes());
        record[8..12].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Decodes the record at the start of `bytes`, which lie at `offset`, where the segment has
    /// `room` bytes left.
    fn decode(self, bytes: &[u8], offset: u32, room: u32) -> Decoded<'_> {
        if room < FRAME_LEN as u32 {
            return Decoded::Broken;
        }
        if bytes.len() < FRAME_LEN {
            return Decoded::Partial(FRAME_LEN as u32);
        }
        let frame = Frame::read(bytes);
        // Zeros, the usual end, have flush 0. The length is checked before it is believed, so
        // that a damaged one never asks for more than the segment has.
        if frame.flush < HEADER_LEN || frame.flush > offset || frame.whole_len() > u64::from(room) {
            return Decoded::Broken;
        }
        let whole_len = frame.whole_len() as usize;
        let Some(payload) = bytes.get(FRAME_LEN..whole_len) else {
            return Decoded::Partial(whole_len as u32);
        };
        if self.checksum(offset, frame.flush, payload) != frame.checksum {
            return Decoded::Broken;
        }
        Decoded::Record { flush: frame.flush, payload }
    }
}

/// An open segment: any thread may read it, only the writer writes it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) seal: Seal,
    /// Offset behind the last durable record.
    end: AtomicU32,
}

/// Outcome of a walk over records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    /// Intact records up to the given end.
    Whole,
    /// The chunk is used up; the walk goes on at this offset.
    More(u32),
    /// There is no intact record at this offset, which lies before the end.
    Broken(u32),
}

impl Segment {
    pub(super) fn new(header: &Header, file: Box<dyn DiskFile>, end: u32) -> Segment {
        let seal = Seal::new(header);
        let name = name_of(header.number);
        let &Header { number, id, .. } = header;
        Segment { number, id, name, file: file.into(), seal, end: AtomicU32::new(end) }
    }

    /// Returns the segment with zeros in place of sectors that cannot be read.
    pub(super) fn skipping(&self) -> Segment {
        let file: Arc<dyn DiskFile> = Arc::new(SkippingFile::new(Arc::clone(&self.file)));
        let end = AtomicU32::new(self.end());
        Segment {
            number: self.number,
            id: self.id,
            name: self.name.clone(),
            file,
            seal: self.seal,
            end,
        }
    }

    /// Returns the offset behind the last durable record.
    pub(super) fn end(&self) -> u32 {
        self.end.load(Acquire)
    }

    pub(super) fn set_end(&self, end: u32) {
        self.end.store(end, Release);
    }

    /// Returns the durable end of the log in this segment.
    pub(super) fn tip(&self) -> Previous {
        Previous { number: self.number, end: self.end(), id: self.id }
    }

    /// Returns the segment as the manifest names it.
    pub(super) fn listed(&self) -> Listed {
        Listed { number: self.number, id: self.id }
    }

    /// Returns the position in the log of the record at `offset`.
    pub(super) fn position(&self, offset: u32) -> Position {
        Position::new(self.number, offset)
    }

    /// Visits the records from `from` on, about 1 MiB of them at most.
    ///
    /// `visit` is called with offset, flush and payload, and may end the walk with an error.
    /// `buffer` is memory to reuse.
    pub(super) fn walk<E: From<StoreError>>(
        &self,
        from: u32,
        end: u32,
        buffer: &mut Vec<u8>,
        mut visit: impl FnMut(u32, u32, &[u8]) -> Result<(), E>,
    ) -> Result<Walk, E> {
        let mut len = CHUNK_LEN.min(end - from);
        self.fill(buffer, from, len)?;
        let mut at = from;
        while at < end {
            let bytes = &buffer[(at - from) as usize..];
            match self.seal.decode(bytes, at, end - at) {
                Decoded::Record { flush, payload } => {
                    visit(at, flush, payload)?;
                    at += (FRAME_LEN + payload.len()) as u32;
                }
                Decoded::Broken => return Ok(Walk::Broken(at)),
                // Read again from its beginning with the next chunk, so `buffer` need not be moved.
                Decoded::Partial(_) if at > from => return Ok(Walk::More(at)),
                // A single record that is longer than a chunk.
                Decoded::Partial(whole_len) => {
                    len = whole_len.max(len);
                    self.fill(buffer, from, len)?;
                }
            }
        }
        Ok(Walk::Whole)
    }

    /// Reads the payload of the record at `offset` into `payload`, replacing what is there.
    ///
    /// # Errors
    /// A read that the disk fails names an offset in a sector that holds a part of the record.
    pub(super) fn read(&self, offset: u32, payload: &mut Vec<u8>) -> Result<(), ReadError> {
        let damaged = || ReadError::Damaged { file: self.name.clone(), offset };
        // Behind the durable end there is no record yet, whatever the page cache shows.
        let room = self.end().saturating_sub(offset);
        // Most records end in the sector in which they begin. The first read stays in it: an error
        // there is the record's own, and not that of a neighbour.
        let guess = room.min(to_sector_end(offset.into()) as u32);
        payload.resize(guess as usize, 0);
        match self.file.read_at(payload, offset.into()) {
            // It may end early, where a file was cut off behind the record.
            Ok(len) => payload.truncate(len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => payload.clear(),
            Err(error) => return Err(StoreError::reading(&self.name, offset.into(), error).into()),
        }
        loop {
            match self.seal.decode(payload, offset, room) {
                Decoded::Broken => return Err(damaged()),
                // Only what is missing, so that an error names a sector that is not read yet.
                Decoded::Partial(whole_len) => {
                    let start = payload.len();
                    payload.resize(whole_len as usize, 0);
                    let rest = u64::from(offset) + start as u64;
                    read_exact_at(&*self.file, &self.name, &mut payload[start..], rest)?;
                }
                Decoded::Record { payload: found, .. } => {
                    let end = FRAME_LEN + found.len();
                    payload.truncate(end);
                    payload.drain(..FRAME_LEN);
                    return Ok(());
                }
            }
        }
    }

    /// Returns the offset of the first intact record in `damage..end` which proves that the byte at
    /// `damage` had been synced, if there is one.
    pub(super) fn proof_behind(&self, damage: u32, end: u32) -> Result<Option<u32>, StoreError> {
        self.first_record(damage, damage, end)
    }

    /// Returns the offset of the first intact record in `from..end` whose flush lies behind
    /// `flush`.
    fn first_record(&self, mut from: u32, flush: u32, end: u32) -> Result<Option<u32>, StoreError> {
        let mut buffer = Vec::new();
        while from < end {
            let len = CHUNK_LEN.min(end - from);
            self.fill(&mut buffer, from, len)?;
            // Where the last intact record ended says nothing here: the damaged one's length is
            // lost, so a record may begin at any byte.
            for at in candidates(&buffer, from, flush) {
                if self.is_record(at, end)? {
                    return Ok(Some(at));
                }
            }
            // A frame that straddles the chunks is whole in the next one.
            let overlap = if from + len < end { FRAME_LEN as u32 - 1 } else { 0 };
            from += len - overlap.min(len - 1);
        }
        Ok(None)
    }

    /// Returns the offset of the first intact record in `from..end`, whichever write it was
    /// part of.
    pub(super) fn next_intact(&self, from: u32, end: u32) -> Result<Option<u32>, StoreError> {
        self.first_record(from, HEADER_LEN - 1, end)
    }

    fn is_record(&self, at: u32, end: u32) -> Result<bool, StoreError> {
        let mut bytes = Vec::new();
        self.fill(&mut bytes, at, FRAME_LEN as u32)?;
        loop {
            match self.seal.decode(&bytes, at, end - at) {
                Decoded::Record { .. } => return Ok(true),
                Decoded::Broken => return Ok(false),
                Decoded::Partial(len) => self.fill(&mut bytes, at, len)?,
            }
        }
    }

    /// Returns the offset behind the last byte in `from..end` that is not zero; `from` if all are.
    pub(super) fn used_end(&self, from: u32, end: u32) -> Result<u32, StoreError> {
        used_end(&*self.file, &self.name, from, end)
    }

    /// Writes the content of `from..end` once more; see `Chain::mend` for the reason.
    pub(super) fn rewrite(&self, from: u32, end: u32) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        let mut at = from;
        while at < end {
            let len = CHUNK_LEN.min(end - at);
            self.fill(&mut buffer, at, len)?;
            let written = self.file.write_at(&mut [IoSlice::new(&buffer)], u64::from(at));
            written.map_err(StoreError::of("write", &self.name))?;
            at += len;
        }
        Ok(())
    }

    /// Replaces `buffer` by `len` bytes of the file.
    fn fill(&self, buffer: &mut Vec<u8>, from: u32, len: u32) -> Result<(), StoreError> {
        buffer.resize(len as usize, 0);
        read_exact_at(&*self.file, &self.name, buffer, u64::from(from))
    }
}

/// Returns the offset behind the last byte in `from..end` of a file that is not zero; `from` if all
/// are.
pub(super) fn used_end(
    file: &dyn DiskFile,
    name: &str,
    from: u32,
    end: u32,
) -> Result<u32, StoreError> {
    let mut buffer = Vec::new();
    let (mut at, mut used) = (from, from);
    while at < end {
        let len = CHUNK_LEN.min(end - at);
        buffer.resize(len as usize, 0);
        read_exact_at(file, name, &mut buffer, u64::from(at))?;
        if let Some(last) = buffer.iter().rposition(|&byte| byte != 0) {
            used = at + last as u32 + 1;
        }
        at += len;
    }
    Ok(used)
}

/// Returns the offsets in `buffer`, which lies at `from`, at which a frame may begin whose
/// flush lies behind `behind`.
fn candidates(buffer: &[u8], from: u32, behind: u32) -> impl Iterator<Item = u32> {
    // Each candidate costs a read and a checksum. Of random bytes, as in bodies, a fraction of `at
    // / 2^32` passes: one offset in 64 at the end of a segment of 64 MiB.
    buffer.windows(FRAME_LEN).zip(from..).filter_map(move |(frame, at)| {
        let flush = u32_at(frame, 4);
        (flush > behind && flush <= at).then_some(at)
    })
}

/// Fills `buffer`; a file that ends too early is an `UnexpectedEof` error.
pub(super) fn read_exact_at(
    file: &dyn DiskFile,
    name: &str,
    mut buffer: &mut [u8],
    mut offset: u64,
) -> Result<(), StoreError> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                return Err(StoreError::reading(name, offset, io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(len) => {
                buffer = &mut buffer[len..];
                offset += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::reading(name, offset, error)),
        }
    }
    Ok(())
}

/// Returns the name of a segment's file.
pub(super) fn name_of(number: u32) -> String {
    format!("{number:08}.seg")
}

/// Returns the number in a segment file's name; `None` for any other name.
pub(super) fn number_of(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".seg")?.parse().ok()?;
    // Only in this spelling: two files with one number, such as `1.seg`, could not be told apart.
    (name_of(number) == name && number > 0).then_some(number)
}
