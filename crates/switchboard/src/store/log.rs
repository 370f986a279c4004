//! The handle: opens the log, submits, reads and drops.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::ballast;
use super::queue::{Entry, Queue};
use super::recover::{self, Chain, Found, Replay};
use super::segment::{HEADER_LEN, Segment, Walk};
use super::space::Plan;
use super::writer::{Listener, LogOptions, Shared, Writer};
use super::{Batch, CloseError, Disk, Full, OpenError, Position, ReadError, Stats, StoreError};

/// The log, open. Dropping it closes it.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    writer: Mutex<Option<Running>>,
}

/// The writer's thread.
#[derive(Debug)]
struct Running {
    thread: JoinHandle<Result<(), CloseError>>,
    /// Disconnected when the thread ends: a thread cannot be joined with a timeout.
    ended: Receiver<()>,
}

/// Time without progress after which `close` no longer waits for the disk.
const CLOSE_STALL: Duration = Duration::from_secs(15);

/// A log whose records were replayed, and whose writer is not started yet.
#[derive(Debug)]
pub struct Recovered {
    /// The log as it was found.
    pub found: Found,
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Writer,
}

/// Notes in the manifest which server state belongs to the log.
#[derive(Clone, Debug)]
pub struct StateNote(Arc<Shared>);

impl StateNote {
    /// Returns the log's random id.
    pub fn store(&self) -> u64 {
        self.0.manifest().content.store
    }

    /// Notes the generation of the state on disk, and its mark of ids that may have been given, so
    /// that no id is given twice if the state is lost. Durable when it returns.
    pub fn set(&self, generation: u64, ids_to: u64) -> Result<(), StoreError> {
        let mut manifest = self.0.manifest();
        manifest.content.state_generation = generation;
        manifest.content.ids_to = ids_to;
        manifest.sync()
    }
}

/// A segment as the log's owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number, as in [`Position::segment`].
    pub number: u32,
    /// Bytes up to the end of its last durable record.
    pub bytes: u32,
    /// True for the newest segment, which cannot be dropped.
    pub is_newest: bool,
}

/// A segment in which lost sectors read as zeros; see [`Log::skipping`].
#[derive(Debug)]
pub struct Skipping(Segment);

/// Size of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of segments with durable records.
    pub segments: usize,
    /// Their bytes up to the last durable record of each.
    pub bytes: u64,
}

/// Opens the log, hands every durable record to `replay`, in order, and repairs what a crash left.
/// Makes the log if there is none, and refuses one that is not as its manifest has it.
pub fn open(
    disk: Arc<dyn Disk>,
    options: LogOptions,
    replay: Replay<'_>,
) -> Result<Recovered, OpenError> {
    let mut manifest = recover::manifest(&*disk)?;
    let chain = recover::read(&*disk, &manifest.content, replay)?;
    // Before `mend` deletes files: the newer copy, which does not name them, may be in the page
    // cache only. After a power failure the older one would count, and name a file that is gone.
    manifest.secure()?;
    match chain.mend(&*disk) {
        // On some file systems even writing in place needs space.
        Err(error) if error.is_no_space() && ballast::give_up_all(&*disk) => chain.mend(&*disk)?,
        mended => mended?,
    }
    // After `mend`: were the tip durable before the records up to it, a power failure in between
    // would make the next start refuse the log.
    chain.list_in(&mut manifest.content);
    manifest.sync()?;
    // A file system that cannot tell its size does not bound the log.
    let plan = Plan::new(&options, disk.space().ok().map(|space| space.total));
    let Chain { segments, found, newest_number, file_len, .. } = chain;
    let segments: Vec<Arc<Segment>> = segments.into_iter().map(Arc::new).collect();
    let newest = segments.last().map(|newest| (newest.clone(), file_len));
    let by_number: BTreeMap<_, _> =
        segments.into_iter().map(|segment| (segment.number, segment)).collect();
    let shared = Arc::new(Shared {
        queue: Queue::new(plan.queue_max_bytes),
        segments: RwLock::new(by_number),
        manifest: Mutex::new(manifest),
        stats: Stats::default(),
        volume: plan.volume,
        dead: AtomicU32::new(0),
        is_dropping: AtomicBool::new(false),
        is_look_due: AtomicBool::new(false),
    });
    let writer = Writer::new(shared.clone(), disk, plan, newest, newest_number + 1);
    Ok(Recovered { found, shared, writer })
}

/// Reads and checks the log as [`open`] does, and changes nothing.
pub fn inspect(disk: &dyn Disk, replay: Replay<'_>) -> Result<Found, OpenError> {
    let content = recover::content(disk)?;
    Ok(recover::read(disk, &content, replay)?.found)
}

/// Identity of a log, as its manifest has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Random, drawn when the log was made.
    pub store: u64,
    /// Generation of the state that belongs to it; 0 while there is none.
    pub state_generation: u64,
    /// Ids of devices below this one may have been given; 0 while there is no state.
    pub ids_to: u64,
    /// True if there is a segment.
    pub has_segments: bool,
    /// True if one of the manifest's two copies cannot be read; the next start writes both.
    pub is_half: bool,
}

/// Knowledge of the log before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Neither manifest nor segments.
    Nothing,
    /// Segments, and no manifest that can be read.
    Unlisted,
    /// It has a manifest.
    Listed(Identity),
}

/// Tells which log the directory has; changes nothing.
pub fn identify(disk: &dyn Disk) -> Result<Known, OpenError> {
    recover::identify(disk)
}

impl Recovered {
    /// Gives up a piece of the ballast for something else that must be written at the start; false
    /// if there is none.
    pub fn give_up_ballast(&mut self) -> bool {
        self.writer.give_up_ballast()
    }

    /// Returns the bound on all bytes that are not durable, those that wait to be submitted
    /// included: that of the options, or less on a small disk. A log that says that it is full has
    /// room for these, not for more.
    pub fn queue_max_bytes(&self) -> usize {
        self.writer.queue_max_bytes()
    }

    /// Returns a handle that notes the server's state in the manifest.
    pub fn state_note(&self) -> StateNote {
        StateNote(self.shared.clone())
    }

    /// Starts the writer's thread.
    pub fn start(self, listener: Box<dyn Listener>) -> io::Result<Log> {
        let Recovered { shared, writer, .. } = self;
        let thread = thread::Builder::new().name("store".to_owned());
        let (end, ended) = mpsc::channel();
        let thread = thread.spawn(move || {
            let _end = end;
            writer.run(&*listener)
        })?;
        Ok(Log { shared, writer: Mutex::new(Some(Running { thread, ended })) })
    }
}

impl Log {
    /// Queues a shard's batch; never waits. The listener is told when it is durable.
    ///
    /// # Errors
    /// Returns the batch if the queue is at its bound, or the log is closed.
    pub fn submit(&self, shard: usize, batch: Batch) -> Result<(), Full> {
        if batch.is_empty() {
            return Ok(());
        }
        self.shared.queue.submit(shard, batch, &self.shared.stats)
    }

    /// Queues the last batch of a shard that ends, whatever the queue's bound.
    pub fn submit_last(&self, shard: usize, batch: Batch) {
        if !batch.is_empty() {
            self.shared.queue.submit_last(shard, batch, &self.shared.stats);
        }
    }

    /// Reads a record into `payload`, replacing what is there. May wait for a read of the disk, but
    /// never for a sync.
    pub fn read(&self, position: Position, payload: &mut Vec<u8>) -> Result<(), ReadError> {
        self.shared.segment(position.segment())?.read(position.offset(), payload)
    }

    /// Returns the oldest segment with durable records.
    pub fn oldest(&self) -> Option<SegmentInfo> {
        self.shared.oldest()
    }

    /// Visits about 1 MiB of a segment's records in order, from `from` or from the first;
    /// returns the position at which to go on.
    ///
    /// # Errors
    /// A record that is not intact is [`ReadError::Damaged`]; those before it have been visited.
    pub fn read_segment(
        &self,
        number: u32,
        from: Option<Position>,
        visit: &mut dyn FnMut(Position, &[u8]),
    ) -> Result<Option<Position>, ReadError> {
        self.shared.read_segment(number, from, visit)
    }

    /// Returns the position of the first intact record at or behind `from`, in the same segment;
    /// `None` if there is none.
    pub fn next_intact(&self, from: Position) -> Result<Option<Position>, ReadError> {
        let segment = self.shared.segment(from.segment())?;
        next_intact(&segment, from)
    }

    /// Returns a segment in which sectors that the disk refuses count as damaged.
    pub fn skipping(&self, number: u32) -> Result<Skipping, ReadError> {
        Ok(Skipping(self.shared.segment(number)?.skipping()))
    }

    /// Begins a new segment, so that the one before can be dropped.
    pub fn roll(&self) {
        self.shared.queue.ask(Entry::Roll);
    }

    /// Deletes a segment, which must be the oldest one, once all that was submitted before this
    /// call is durable. The listener is told the outcome.
    pub fn drop_oldest(&self, number: u32) {
        // First: the writer may be done, and clear it, before `ask` returns.
        self.shared.is_dropping.store(true, Release);
        self.shared.queue.ask(Entry::Drop { segment: number });
    }

    /// As [`Log::drop_oldest`], for a segment from which nothing was copied. It need not wait until
    /// other records are durable, so it can be dropped while the disk is full and the queue is
    /// stuck.
    pub fn drop_dead(&self, number: u32) {
        self.shared.is_dropping.store(true, Release);
        self.shared.dead.store(number, Relaxed);
        // Only to wake the writer, which takes `dead` before anything in its queue.
        self.look();
    }

    /// Returns the size of the file system, or the quota if that is less, in bytes.
    pub fn volume(&self) -> u64 {
        self.shared.volume
    }

    /// Returns true if space for new messages is short, or used up.
    pub fn is_tight(&self) -> bool {
        self.shared.stats.is_tight.load(Relaxed) > 0
    }

    /// Returns true while a segment is being dropped.
    pub fn is_dropping(&self) -> bool {
        self.shared.is_dropping.load(Acquire)
    }

    /// Asks the writer to look at the file system now: for its free space, for the ballast if that
    /// is not whole, and for files that were removed. It does so once a second by itself.
    pub fn look(&self) {
        self.shared.look();
    }

    /// Returns the size of the log.
    pub fn usage(&self) -> Usage {
        self.shared.usage()
    }

    /// Returns the log's counters, which begin at the start.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Makes everything submitted durable and ends the writer's thread. A second call does
    /// nothing.
    ///
    /// # Errors
    /// A disk that fails is tried once more; then what is not durable is given up. The same
    /// goes for a disk that hangs: the thread is left behind, and ends with the process.
    pub fn close(&self) -> Result<(), CloseError> {
        self.close_within(CLOSE_STALL)
    }

    pub(super) fn close_within(&self, stall: Duration) -> Result<(), CloseError> {
        self.shared.queue.close();
        let running = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { thread, ended }) = running else { return Ok(()) };
        let lacking = || {
            let stats = &self.shared.stats;
            stats.submitted.load(Relaxed) - stats.records.load(Relaxed)
        };
        // Only a standstill counts: a slow disk with a full queue may need far longer than `stall`.
        let mut before = lacking();
        while ended.recv_timeout(stall) == Err(RecvTimeoutError::Timeout) {
            let now = lacking();
            if now == before {
                let source = io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer");
                let error = StoreError::new("write", "the log", source);
                return Err(CloseError { records: now as usize, error });
            }
            before = now;
        }
        thread.join().expect("the writer does not panic")
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Call `close` to see errors.
        self.close().ok();
    }
}

impl Shared {
    /// See [`Log::look`].
    pub(super) fn look(&self) {
        // At most one is queued: while the disk hangs, one more would come every second.
        if !self.is_look_due.swap(true, Relaxed) {
            self.queue.ask(Entry::Look);
        }
    }

    pub(super) fn usage(&self) -> Usage {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let bytes = segments.values().map(|segment| u64::from(segment.end())).sum();
        Usage { segments: segments.len(), bytes }
    }

    pub(super) fn segment(&self, number: u32) -> Result<Arc<Segment>, ReadError> {
        // A clone, so that the lock is free while it is read. A segment that is dropped
        // meanwhile is still open here.
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.get(&number).cloned().ok_or(ReadError::Gone(number))
    }

    pub(super) fn oldest(&self) -> Option<SegmentInfo> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let (&number, segment) = segments.first_key_value()?;
        Some(SegmentInfo { number, bytes: segment.end(), is_newest: segments.len() == 1 })
    }

    pub(super) fn read_segment(
        &self,
        number: u32,
        from: Option<Position>,
        visit: &mut dyn FnMut(Position, &[u8]),
    ) -> Result<Option<Position>, ReadError> {
        let segment = self.segment(number)?;
        read_segment(&segment, from, visit)
    }
}

fn read_segment(
    segment: &Segment,
    from: Option<Position>,
    visit: &mut dyn FnMut(Position, &[u8]),
) -> Result<Option<Position>, ReadError> {
    let end = segment.end();
    let from = from.map_or(HEADER_LEN, Position::offset).min(end);
    let walk = segment.walk(from, end, &mut Vec::new(), |offset, _, payload| {
        visit(segment.position(offset), payload);
        Ok::<(), ReadError>(())
    })?;
    match walk {
        Walk::Whole => Ok(None),
        Walk::More(offset) => Ok(Some(segment.position(offset))),
        Walk::Broken(offset) => Err(ReadError::Damaged { file: segment.name.clone(), offset }),
    }
}

fn next_intact(segment: &Segment, from: Position) -> Result<Option<Position>, ReadError> {
    let next = segment.next_intact(from.offset(), segment.end())?;
    Ok(next.map(|offset| segment.position(offset)))
}

impl Skipping {
    /// As [`Log::read_segment`].
    pub fn read(
        &self,
        from: Option<Position>,
        visit: &mut dyn FnMut(Position, &[u8]),
    ) -> Result<Option<Position>, ReadError> {
        read_segment(&self.0, from, visit)
    }

    /// As [`Log::next_intact`].
    pub fn next_intact(&self, from: Position) -> Result<Option<Position>, ReadError> {
        next_intact(&self.0, from)
    }
}
