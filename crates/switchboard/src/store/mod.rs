//! The log: everything durable, in one append-only sequence of checksummed records.
//!
//! Shards submit [`Batch`]es of opaque records. One writer thread takes all that is queued, writes
//! it with one write and one `fdatasync`, and tells each shard once; what arrives meanwhile shares
//! the next sync. Nobody waits for a timer.
//!
//! The log is a chain of segment files. The header of each names the segment before it and the
//! offset up to which that one counts; the newest readable header decides. So a segment whose write
//! or sync failed is left as it is: the log goes on in a fresh one, and what lies behind the
//! promise of the old one was never said to be there. See `segment` for the format, `recover` for
//! the start, `writer` for failures.

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
mod tests;

pub use batch::{Batch, Synced};
pub use dir::FileId;
pub(crate) use dir::{Dir, open_to_read};
pub use disk::{DataDir, Disk, DiskFile};
pub use error::{CloseError, DropError, OpenError, ReadError, StoreError};
pub(crate) use error::{is_damage, is_no_space};
pub use log::{
    Identity, Known, Log, Recovered, SegmentInfo, Skipping, StateNote, Usage, adopt, identify,
    inspect, open,
};
pub use position::Position;
pub use queue::Full;
pub use recover::{Cut, Found, Replay};
pub use salvage::{Salvaged, StateOf, salvage};
pub use space::Space;
pub use stats::Stats;
pub use writer::{Listener, Options};
