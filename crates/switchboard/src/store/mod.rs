//! The log: everything durable, in one append-only sequence of checksummed records.
//!
//! Shards submit [`Batch`]es of opaque records. One writer thread takes all that is queued, writes
//! it with one write and one `fdatasync`, and tells each shard once; batches that arrive meanwhile
//! share the next sync. No batch waits for a timer.
//!
//! The log is a chain of segment files. The header of each names the segment before it and the
//! offset at which that one ends; `MANIFEST` names the oldest and the newest. A segment whose write
//! or sync failed is not written again: the log goes on in a fresh one, whose header ends the old
//! one at its last durable record. Bytes behind that end were never reported as synced. See
//! `segment` for the format, `recover` for the start, `writer` for failures.

mod ballast;
mod batch;
mod dir;
mod disk;
mod error;
mod log;
mod manifest;
mod members;
mod position;
mod queue;
mod recover;
mod salvage;
mod segment;
mod skipping;
mod space;
mod stats;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use batch::{Batch, Synced};
pub use dir::FileId;
pub(crate) use dir::{Dir, open_to_read};
pub use disk::{DataDir, Disk, DiskFile};
pub use error::{CloseError, DropError, OlderFormat, OpenError, ReadError, StoreError};
pub(crate) use error::{is_damage, is_no_space};
pub use log::{
    Identity, Known, Log, Recovered, SegmentInfo, Skipping, StateNote, Usage, identify, inspect,
    open,
};
pub use position::Position;
pub use queue::Full;
pub use recover::{Cut, Found, Replay};
pub use salvage::{Salvaged, StateOf, salvage};
pub(crate) use skipping::SECTOR;
pub use space::{Admits, Space};
pub use stats::Stats;
pub use writer::{Listener, LogOptions};
