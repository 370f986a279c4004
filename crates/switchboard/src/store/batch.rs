//! Records that one shard submits together.

use super::Position;
use super::segment::{FRAME_LEN, Frame, Seal};

/// Most bytes of a batch, so that offsets in a segment fit into 32 bits.
///
/// A shard ends a batch when it passes 4 MiB. The longest record is a little longer than 256 MiB,
/// the largest `max_message_bytes`; a text, too, is within this bound after escaping.
const LEN_MAX: usize = 2 << 30;

/// Records that one shard submits together.
///
/// They are written to one segment, in order, and reported as synced together. A crash before that
/// may leave any number of them, counted from the first. The batch owns its memory, and
/// [`Synced`] returns it for reuse.
#[derive(Debug, Default)]
pub struct Batch {
    /// The records as in the segment; a frame contains only the length until it is sealed.
    bytes: Vec<u8>,
    len: usize,
}

impl Batch {
    /// Adds the record that `write` appends.
    ///
    /// # Panics
    /// If `write` removes bytes, or if the batch passes 2 GiB.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let frame = self.bytes.len();
        let start = frame + FRAME_LEN;
        self.bytes.resize(start, 0);
        write(&mut self.bytes);
        assert!(self.bytes.len() <= LEN_MAX, "a shard ends its batches long before");
        let len = self.bytes.len().checked_sub(start).expect("a record is appended");
        Frame::write_len(&mut self.bytes[frame..start], len as u32);
        self.len += 1;
    }

    /// Adds a record.
    ///
    /// # Panics
    /// If the batch passes 2 GiB.
    pub fn push(&mut self, record: &[u8]) {
        self.push_with(|out| out.extend_from_slice(record));
    }

    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if there is no record.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the size of the batch on disk and in the queue, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Empties the batch and keeps its memory, unless a burst made it large.
    pub fn clear(&mut self) {
        if self.bytes.capacity() > 1 << 20 {
            *self = Batch::default();
        }
        self.bytes.clear();
        self.len = 0;
    }

    /// Returns the records, in order.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.spans().map(|(start, len)| &self.bytes[start + FRAME_LEN..][..len])
    }

    /// Completes the frames of records that will lie from `first` on, in the write that begins at
    /// `flush`.
    pub(super) fn seal(&mut self, seal: Seal, first: u32, flush: u32) {
        let mut rest = &mut self.bytes[..];
        let mut offset = first;
        while !rest.is_empty() {
            let len = FRAME_LEN + Frame::read(rest).len as usize;
            let (record, behind) = rest.split_at_mut(len);
            seal.seal(record, offset, flush);
            offset += len as u32;
            rest = behind;
        }
    }

    /// Returns the bytes to be written to the segment.
    pub(super) fn framed(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the start of each record's frame, and the record's length.
    fn spans(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = next;
            let len = Frame::read(self.bytes.get(start..)?.get(..FRAME_LEN)?).len as usize;
            next += FRAME_LEN + len;
            Some((start, len))
        })
    }
}

/// A batch that became durable.
#[derive(Debug)]
pub struct Synced {
    /// The batch; its memory can be reused.
    pub batch: Batch,
    /// Position of its first record.
    pub first: Position,
}

impl Synced {
    /// Returns the position of each record, in the order in which they were pushed.
    pub fn positions(&self) -> impl Iterator<Item = Position> {
        let (segment, first) = (self.first.segment(), self.first.offset());
        self.batch.spans().map(move |(start, _)| Position::new(segment, first + start as u32))
    }
}
