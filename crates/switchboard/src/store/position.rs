//! Where a record lies.

/// Where a record lies; orders records as they were written.
///
/// A place stays true until its segment is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    /// The record at `offset` of a segment.
    pub(super) fn new(segment: u32, offset: u32) -> Position {
        Position(u64::from(segment) << 32 | u64::from(offset))
    }

    /// The number of the segment.
    pub fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The offset of the record in its segment's file, in bytes.
    pub fn offset(self) -> u32 {
        self.0 as u32
    }

    /// The place as one number.
    pub fn to_u64(self) -> u64 {
        self.0
    }

    /// The place that [`Position::to_u64`] made a number of.
    pub fn from_u64(number: u64) -> Position {
        Position(number)
    }
}
