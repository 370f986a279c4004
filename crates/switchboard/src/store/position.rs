//! Positions of records in the log.

/// The position of a record; orders records as they were written.
///
/// A position stays valid until its segment is dropped.
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

    /// The position as one number.
    pub fn to_u64(self) -> u64 {
        self.0
    }

    /// Restores a position from the number that [`Position::to_u64`] returned.
    pub fn from_u64(number: u64) -> Position {
        Position(number)
    }
}
