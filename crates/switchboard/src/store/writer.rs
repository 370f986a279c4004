//! The writer: takes the queued batches, writes and syncs them, and tells the shards.
//!
//! [`Writer::step`] is one turn; the thread in `log` is a loop around it. A write or a sync that
//! fails ends the segment at its last durable record. The batches that are not durable stay in
//! memory and are written again, to a fresh segment whose header says where the old one ends. The
//! header is synced, and the directory, before the first record is written behind it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::ballast::Ballast;
use super::manifest::{Listed, Manifest};
use super::queue::{Entry, Queue};
use super::segment::{HEADER_LEN, Header, Previous, Segment, VERSION, name_of};
use super::space::{Admits, Gate, Plan, Space};
use super::stats::{add, set};
use super::{Batch, CloseError, Disk, DropError, Stats, StoreError, Synced};

/// Most zeros that are written ahead of the records, within the segment's size. With them a sync
/// writes only data, while a growing file also needs its length and its blocks in the file system's
/// journal. Measured on ext4 with writes of 22 KiB: a sync takes half the time, and twice the bytes
/// are written. `fallocate` saves nothing there, as its extents are converted in the same journal.
pub(super) const ZEROS_AHEAD: u32 = 1 << 20;
/// Most bytes of one write while the disk is full, unless a single batch is larger: so only few
/// bytes must be free at a time.
const SHORT_WRITE_BYTES: u32 = 256 << 10;
/// Size of a segment while the disk is full: a small one is dead sooner, and then its space is
/// free.
const SHORT_SEGMENT_BYTES: u32 = 4 << 20;

/// Number of segments that are looked for by name at each look, in turn: 10 GiB of them in 5 s.
const FOUND_PER_LOOK: usize = 32;

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Idle time after which the writer syncs the manifest.
const REST: Duration = Duration::from_millis(500);
/// Interval at which the writer looks at the file system.
const LOOK: Duration = Duration::from_secs(1);

/// Sizes and bounds of the log.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// A segment is ended before it passes this size; a larger batch makes a larger segment.
    pub segment_bytes: u32,
    /// Most bytes that are submitted and not yet durable. At the bound, `submit` returns the batch;
    /// an empty queue takes any batch. What waits to be submitted must keep to the same bound: see
    /// [`Recovered::queue_max_bytes`](super::Recovered::queue_max_bytes).
    pub queue_max_bytes: usize,
    /// Most bytes of the log on disk, with its ballast; `u64::MAX` is no bound, and no ballast.
    /// A small bound, or a small disk, also makes the other sizes smaller.
    pub max_bytes: u64,
    /// Bytes by which the shards may pass the queue's bound before they notice.
    pub overrun_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            segment_bytes: 64 << 20,
            queue_max_bytes: 64 << 20,
            max_bytes: u64::MAX,
            overrun_bytes: 0,
        }
    }
}

/// Receiver of the writer's events. Called on the writer's thread, so it must not wait.
pub trait Listener: Send {
    /// All batches of one shard in a write are durable; they are in the order in which it submitted
    /// them.
    fn synced(&self, shard: usize, batches: Vec<Synced>);
    /// A shard that was given [`Full`](super::Full) may submit again.
    fn room(&self, shard: usize);
    /// From now on nothing becomes durable. The writer retries until it does.
    fn failing(&self, error: &StoreError);
    /// The gate for new messages admits others than before. Batches that are submitted while it
    /// is closed are written as long as the disk takes them.
    fn admits(&self, _admits: Admits) {}
    /// Returns true if a quarter of the space for messages is to be reserved for some senders.
    fn has_reserve(&self) -> bool {
        false
    }
    /// Returns the bytes promised to records that the log takes even when it is full. `left` is the
    /// number of bytes for new messages before the promised ones are subtracted; `reserve` of them
    /// are kept for some senders.
    fn promised(&self, _left: u64, _reserve: u64) -> u64 {
        0
    }
    /// No space can be set aside on this disk; the log goes on without a ballast.
    fn no_ballast(&self, _error: &StoreError) {}
    /// The failure is over: what was submitted meanwhile becomes durable.
    fn healthy(&self);
    /// Outcome of [`Log::drop_oldest`](super::Log::drop_oldest).
    fn dropped(&self, segment: u32, result: Result<(), DropError>);
}

/// State that writer and readers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    /// Behind a lock, as the writer notes segments and tip, and the server its own state.
    pub(super) manifest: Mutex<Manifest>,
    pub(super) stats: Stats,
    /// Bytes of the file system, or of the quota if that is less.
    pub(super) volume: u64,
    /// A segment to be dropped at once, even if what was submitted before is not durable; 0 is
    /// none.
    pub(super) dead: AtomicU32,
    /// Set while a requested drop is not finished.
    pub(super) is_dropping: AtomicBool,
    /// Set while a look at the file system is queued.
    pub(super) is_look_due: AtomicBool,
}

/// Outcome of a turn.
#[derive(Debug)]
pub(super) enum Turn {
    /// Something was done; there may be more.
    Worked,
    /// There was nothing to do.
    Idle,
    /// The disk failed; to be retried after this time.
    Failed(Duration, StoreError),
}

#[derive(Debug)]
enum Health {
    Well,
    /// The time to wait after the next failure.
    Failing(Duration),
}

/// The segment that is written.
#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    /// End of the zeros behind the records, and so of the file.
    zeros_end: u32,
}

impl Active {
    /// Returns the bytes that the file has behind its last durable record.
    fn bytes_behind_end(&self) -> u32 {
        self.zeros_end.saturating_sub(self.segment.end())
    }

    /// Cuts off what lies behind the last record.
    fn trim(&mut self) {
        let end = self.segment.end();
        // Zeros or a torn write, of which only the space matters: the next header says where this
        // segment ends. So an error changes nothing.
        if self.segment.file.truncate(u64::from(end)).is_ok() {
            self.zeros_end = end;
        }
    }
}

/// The only writer of segments.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    plan: Plan,
    ballast: Ballast,
    gate: Gate,
    /// Set when the disk is full, until the ballast is whole again.
    is_short: bool,
    /// Set when the disk takes no more files, until a segment can be begun. The newest one grows
    /// beyond its size meanwhile: acks and outcomes need no file.
    is_out_of_files: bool,
    looked_at: Instant,
    /// The file system at the last look.
    space: Option<Space>,
    /// Bytes written since that look.
    written: u64,
    /// Entries taken from the queue and not yet done.
    pending: VecDeque<Entry>,
    /// `None` makes the next write begin a segment.
    active: Option<Active>,
    /// The durable end of the log.
    tip: Previous,
    next_number: u32,
    /// Files of failed attempts that are to be deleted before any segment is.
    abandoned: Vec<String>,
    /// Their bytes on disk.
    abandoned_bytes: u64,
    /// The segment in which the disk began to fail. It is cut off behind its last durable
    /// record once the disk works again.
    untrimmed: Option<Active>,
    health: Health,
    /// Set while a start would not find all files; then nothing is written.
    is_gone: bool,
    /// Segments up to this number were looked for in this round.
    found_to: u32,
    zeros: Vec<u8>,
}

impl Writer {
    /// Returns a writer that appends to `newest`, a segment and the length of its file.
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Arc<dyn Disk>,
        plan: Plan,
        newest: Option<(Arc<Segment>, u32)>,
        next_number: u32,
    ) -> Writer {
        let ballast = Ballast::find(disk.clone(), plan.ballast_bytes);
        let active = newest.map(|(segment, zeros_end)| Active { segment, zeros_end });
        let tip = active.as_ref().map(|active| active.segment.tip());
        Writer {
            shared,
            disk,
            plan,
            ballast,
            gate: Gate::default(),
            is_short: false,
            is_out_of_files: false,
            looked_at: Instant::now(),
            space: None,
            written: 0,
            pending: VecDeque::new(),
            active,
            tip: tip.unwrap_or_default(),
            next_number,
            abandoned: Vec::new(),
            abandoned_bytes: 0,
            untrimmed: None,
            health: Health::Well,
            is_gone: false,
            found_to: 0,
            zeros: vec![0; ZEROS_AHEAD as usize],
        }
    }

    /// Does one write with its sync, or one other task of the queue.
    pub(super) fn step(&mut self, listener: &dyn Listener) -> Turn {
        // Ahead of the queue, whose batches may be waiting for the very space that this frees.
        let dead = self.shared.dead.swap(0, Relaxed);
        if dead != 0 {
            self.drop_and_tell(dead, listener);
        }
        self.shared.queue.take(&mut self.pending);
        match self.pending.front() {
            None => return Turn::Idle,
            Some(Entry::Batch { .. }) => return self.step_flush(listener),
            Some(Entry::Roll) => self.roll(listener),
            Some(Entry::Look) => self.look(listener),
            Some(&Entry::Drop { segment }) => self.drop_and_tell(segment, listener),
        }
        self.pending.pop_front();
        Turn::Worked
    }

    fn step_flush(&mut self, listener: &dyn Listener) -> Turn {
        // A sync of a file without a name succeeds, and its content is lost with the process.
        if self.is_gone
            && let Err(error) = self.check()
        {
            return self.fail(error, listener);
        }
        match self.flush() {
            Ok((segment, end, count)) => {
                let bytes = end - segment.end();
                self.advance(segment, end);
                // The gate is judged before `tell` makes room for more batches: what came in
                // through a gate that should be closed would have no space on disk.
                self.spend(bytes, listener);
                self.tell(count, listener);
                Turn::Worked
            }
            Err(error) => {
                self.abandon(&error);
                if error.is_no_space() && self.make_space(&error, listener) {
                    return Turn::Worked;
                }
                // Prefer the error that names the cause: in a removed directory no file can be
                // made.
                let error = self.check().err().unwrap_or(error);
                self.fail(error, listener)
            }
        }
    }

    /// Answers a full disk: writes become small, and the ballast gives up space for the next one.
    /// Returns false if there is none left.
    fn make_space(&mut self, error: &StoreError, listener: &dyn Listener) -> bool {
        // At least the first batch is written, however large: less would fail again.
        let first = front_batches(&self.pending).next().map_or(0, Batch::bytes) as u64;
        let bytes = first + u64::from(SHORT_WRITE_BYTES);
        // If inodes are lacking, the ballast's bytes do not help; only its inode does, so the whole
        // file is given up.
        let is_given_up = match error.is_no_file() && self.has_no_inodes() {
            true => self.ballast.give_up_file(),
            false => {
                self.ballast.give_up(bytes) || (error.is_no_file() && self.ballast.give_up_file())
            }
        };
        self.is_short = true;
        self.judge(listener);
        is_given_up
    }

    /// Gives up a part of the ballast for a file of the server; false if there is none.
    pub(super) fn give_up_ballast(&mut self) -> bool {
        self.is_short = true;
        if self.has_no_inodes() { self.ballast.give_up_file() } else { self.ballast.give_up(0) }
    }

    /// Returns true if the file system takes no more files, however many bytes are free.
    fn has_no_inodes(&self) -> bool {
        self.disk.space().is_ok_and(|space| space.is_out_of_inodes)
    }

    pub(super) fn queue_max_bytes(&self) -> usize {
        self.plan.queue_max_bytes
    }

    /// Looks at the file system: for free space, to make the ballast whole, and for missing files.
    fn look(&mut self, listener: &dyn Listener) {
        // First, so that a request that comes meanwhile is queued again.
        self.shared.is_look_due.store(false, Relaxed);
        self.looked_at = Instant::now();
        self.observe();
        if self.is_out_of_files {
            // Before the ballast, which may take the only inode that came free.
            self.roll(listener);
        }
        if !self.ballast.is_whole() && self.plan.may_refill(self.ballast.lacking(), self.space) {
            match self.ballast.fill() {
                // It will not get better on this disk, unlike a lack of space.
                Err(error) if !error.is_no_space() => {
                    listener.no_ballast(&error);
                    self.ballast.forgo();
                }
                _ => self.observe(),
            }
        }
        // A log without a ballast has target 0, which counts as whole: only a write can show
        // whether its disk is still full.
        self.is_short = !self.ballast.is_whole();
        self.judge(listener);
        let was_gone = self.is_gone;
        match self.check() {
            Ok(()) if was_gone => self.recover(listener),
            Ok(()) => {}
            Err(error) => drop(self.fail(error, listener)),
        }
    }

    /// Fails while a start would not find `MANIFEST`, the segment that is written, or one of
    /// the next few of the others.
    fn check(&mut self) -> Result<(), StoreError> {
        let checked = self.find_files();
        self.is_gone = checked.is_err();
        checked
    }

    fn find_files(&mut self) -> Result<(), StoreError> {
        let oldest = {
            let manifest = self.shared.manifest();
            manifest.check(&*self.disk)?;
            manifest.content.oldest.number
        };
        let find = |segment: &Segment| {
            StoreError::unless_found(&*self.disk, &segment.name, &*segment.file)
        };
        self.active.as_ref().map_or(Ok(()), |active| find(&active.segment))?;
        let next: Vec<Arc<Segment>> = {
            let segments = self.shared.segments.read().unwrap_or_else(PoisonError::into_inner);
            // A segment before the manifest's oldest is being dropped; its file may be gone
            // already.
            let rest = segments.range(oldest.max(self.found_to + 1)..);
            rest.take(FOUND_PER_LOOK).map(|(_, segment)| segment.clone()).collect()
        };
        for segment in &next {
            find(segment)?;
            self.found_to = segment.number;
        }
        if next.len() < FOUND_PER_LOOK {
            self.found_to = 0;
        }
        Ok(())
    }

    fn observe(&mut self) {
        self.space = if self.plan.is_unbounded() { None } else { self.disk.space().ok() };
        self.written = 0;
    }

    /// Subtracts written bytes from the free space that was seen last.
    fn spend(&mut self, bytes: u32, listener: &dyn Listener) {
        if self.plan.is_unbounded() {
            return;
        }
        self.written += u64::from(bytes);
        // Others write to the disk as well, and the looks are a second apart.
        if self.written > self.plan.headroom() / 4 {
            self.observe();
        }
        self.judge(listener);
    }

    /// Opens or closes the gate for new messages.
    fn judge(&mut self, listener: &dyn Listener) {
        if self.plan.is_unbounded() {
            return;
        }
        let space = self.space.map(|space| {
            let free = space.free.saturating_sub(self.written);
            Space { free, ..space }
        });
        let ahead = self.active.as_ref().map_or(0, Active::bytes_behind_end);
        let untrimmed = self.untrimmed.as_ref().map_or(0, Active::bytes_behind_end);
        // All that lies on disk counts, also what a failing disk does not let go of: without it a
        // quota of 64 MiB once became 217 MiB.
        let left_behind = self.abandoned_bytes + u64::from(untrimmed);
        let used = self.shared.usage().bytes + u64::from(ahead) + left_behind + self.ballast.len();
        let left = self.plan.left(used, space);
        let reserve = if listener.has_reserve() { self.plan.reserve() } else { 0 };
        let promised = listener.promised(left.saturating_sub(self.plan.headroom()), reserve);
        let left = left.saturating_sub(promised);
        let is_short = self.is_short || self.is_out_of_files;
        let is_changed = self.gate.judge(&self.plan, left, reserve, is_short);
        let stats = &self.shared.stats;
        set(&stats.is_out_of_files, self.is_out_of_files.into());
        set(&stats.left_bytes, left.saturating_sub(self.plan.headroom()));
        set(&stats.free_bytes, space.map_or(0, |space| space.free));
        set(&stats.ballast_bytes, self.ballast.len());
        set(&stats.is_tight, self.gate.is_tight.into());
        if is_changed {
            listener.admits(self.gate.admits);
        }
        // After the shards were told: a client that reads the metric may send at once.
        set(&stats.is_full, self.gate.is_full().into());
        set(&stats.is_full_for_others, (self.gate.admits != Admits::All).into());
    }

    /// Returns the size that a segment must not pass.
    fn segment_bytes(&self) -> u32 {
        if self.is_out_of_files {
            return u32::MAX;
        }
        let most = if self.is_short { SHORT_SEGMENT_BYTES } else { u32::MAX };
        self.plan.segment_bytes.min(most)
    }

    /// Returns the number of zeros to write ahead; 0 while space is short.
    fn zeros_ahead(&self) -> u32 {
        if self.is_short || self.is_out_of_files || self.gate.is_full() {
            0
        } else {
            self.plan.zeros_ahead
        }
    }

    /// Writes and syncs the batches at the front that fit into the segment; returns the
    /// segment, its new end and the number of batches.
    fn flush(&mut self) -> Result<(Arc<Segment>, u32, usize), StoreError> {
        let first = front_batches(&self.pending).next().map_or(0, Batch::bytes) as u32;
        match self.active.as_ref().map(|active| active.segment.end()) {
            None => self.active = Some(self.create()?),
            Some(HEADER_LEN) => {}
            Some(end) => {
                let is_over = end.checked_add(first).is_none_or(|end| end > self.segment_bytes());
                if is_over {
                    self.begin_next(first)?;
                }
            }
        }
        let (segment_bytes, zeros_ahead) = (self.segment_bytes(), self.zeros_ahead());
        let active = self.active.as_mut().expect("made when there was none");
        let segment = active.segment.clone();
        let start = segment.end();
        let most = if self.is_short { SHORT_WRITE_BYTES } else { u32::MAX };
        // The first batch always goes in: an empty segment takes one that is larger than itself.
        let room = segment_bytes.saturating_sub(start).min(most).max(first);
        let (count, end) = seal(&mut self.pending, &segment, room);
        let are_enough = end <= active.zeros_end || zeros_ahead == 0;
        let zeros_end = if are_enough { end } else { zeros_end(start, end, segment_bytes) };
        let zeros = &self.zeros[..(zeros_end - end) as usize];
        let batches = front_batches(&self.pending).take(count).map(Batch::framed);
        let mut slices: Vec<_> = batches.chain([zeros]).map(IoSlice::new).collect();
        let written = segment.file.write_at(&mut slices, u64::from(start));
        written.map_err(StoreError::of("write", &segment.name))?;
        // Before the sync: if that fails, what the file has behind its end still takes space.
        active.zeros_end = active.zeros_end.max(zeros_end);
        self.sync(&segment)?;
        Ok((segment, end, count))
    }

    fn sync(&self, segment: &Segment) -> Result<(), StoreError> {
        let started = Instant::now();
        // A sync that failed is never repeated on the same pages: ext4, XFS and Btrfs mark them
        // clean, so that the next one succeeds without having written them. See `abandon`.
        segment.file.sync_data().map_err(StoreError::of("sync", &segment.name))?;
        self.shared.stats.sync_duration.observe(started.elapsed(), 1);
        Ok(())
    }

    /// Ends the active segment and begins the next. If the disk takes no more files, the active one
    /// stays, provided that it can grow by `more` bytes.
    fn begin_next(&mut self, more: u32) -> Result<(), StoreError> {
        let Some(mut active) = self.active.take() else { return Ok(()) };
        // First, as the next one may need the space.
        active.trim();
        let can_grow = active.segment.end().checked_add(more).is_some();
        self.active = match self.create() {
            Err(error) if error.is_no_file() && can_grow => Some(active),
            made => Some(made?),
        };
        Ok(())
    }

    /// Makes a segment that follows the tip, durable with its header.
    fn create(&mut self) -> Result<Active, StoreError> {
        // No new attempt before the last one is gone, or each retry on a disk that syncs
        // nothing would leave a file, one a second.
        self.delete_abandoned()?;
        let number = self.next_number;
        let name = name_of(number);
        // An attempt that fails uses up its number, too: its file may come back after a power
        // failure.
        self.next_number += 1;
        let made = self.create_file(number, &name);
        self.is_out_of_files = made.as_ref().is_err_and(StoreError::is_no_file);
        // The file may have its header already, and the manifest may name it.
        if made.is_err() && !self.is_out_of_files {
            self.abandoned.push(name);
            self.abandoned_bytes += u64::from(self.zeros_ahead().max(HEADER_LEN));
            self.delete_abandoned().ok();
        }
        made
    }

    fn create_file(&self, number: u32, name: &str) -> Result<Active, StoreError> {
        let id = self.disk.fresh_id().map_err(StoreError::of("name", name))?;
        let header = Header { version: VERSION, number, id, previous: self.tip };
        let file = self.disk.create(name).map_err(StoreError::of("create", name))?;
        let zeros_end = self.zeros_ahead().max(HEADER_LEN);
        let zeros = &self.zeros[..(zeros_end - HEADER_LEN) as usize];
        let bytes = header.to_bytes();
        // Content, then name, then manifest, each durable before the next: what the manifest
        // names must be there after a crash, or the start refuses the log. A sync of the file
        // alone does not make its name durable.
        file.write_at(&mut [IoSlice::new(&bytes), IoSlice::new(zeros)], 0)
            .map_err(StoreError::of("write", name))?;
        file.sync_data().map_err(StoreError::of("sync", name))?;
        self.disk.sync_dir().map_err(StoreError::of("sync the directory of", name))?;
        self.shared.manifest().list(Listed { number, id })?;
        let segment = Arc::new(Segment::new(&header, file, HEADER_LEN));
        Ok(Active { segment, zeros_end })
    }

    /// Moves the durable end of the log to `end` of the segment.
    fn advance(&mut self, segment: Arc<Segment>, end: u32) {
        add(&self.shared.stats.syncs, 1);
        add(&self.shared.stats.synced_bytes, (end - segment.end()) as usize);
        segment.set_end(end);
        if self.tip.number != segment.number {
            let mut segments = self.shared.segments.write().unwrap_or_else(PoisonError::into_inner);
            segments.insert(segment.number, segment.clone());
        }
        self.tip = segment.tip();
        // Before any shard is told: after kill -9 a tip behind what was accepted would let a
        // start take damage in an accepted record for a torn write.
        self.shared.manifest().note_tip(self.tip);
    }

    /// Removes the first `count` batches, which are now durable, and tells their shards.
    fn tell(&mut self, count: usize, listener: &dyn Listener) {
        self.recover(listener);
        let segment = self.active.as_ref().map(|active| active.segment.clone());
        let segment = segment.expect("the segment that was written is the active one");
        let mut by_shard: Vec<(usize, Vec<Synced>)> = Vec::new();
        let (mut bytes, mut records) = (0, 0);
        let total: usize = front_batches(&self.pending).take(count).map(Batch::bytes).sum();
        let first = segment.end() - total as u32;
        let now = Instant::now();
        for entry in self.pending.drain(..count) {
            let Entry::Batch { shard, batch, submitted } = entry else { continue };
            self.shared.stats.append.observe(now - submitted, 1);
            let position = segment.position(first + bytes as u32);
            bytes += batch.bytes();
            records += batch.len();
            let synced = Synced { batch, first: position };
            match by_shard.iter_mut().find(|(known, _)| *known == shard) {
                Some((_, batches)) => batches.push(synced),
                None => by_shard.push((shard, vec![synced])),
            }
        }
        add(&self.shared.stats.batches, count);
        add(&self.shared.stats.records, records);
        by_shard.into_iter().for_each(|(shard, batches)| listener.synced(shard, batches));
        let waiting = self.shared.queue.release(bytes, &self.shared.stats);
        waiting.into_iter().for_each(|shard| listener.room(shard));
    }

    /// Ends a failure, if there was one.
    fn recover(&mut self, listener: &dyn Listener) {
        if let Health::Failing(_) = self.health {
            self.health = Health::Well;
            // Files that cannot be deleted now are retried before the next segment begins or goes.
            self.delete_abandoned().ok();
            if let Some(mut untrimmed) = self.untrimmed.take() {
                untrimmed.trim();
            }
            listener.healthy();
        }
    }

    /// Ends the active segment at its last durable record, after a write or a sync that failed.
    fn abandon(&mut self, error: &StoreError) {
        let Some(active) = self.active.take() else { return };
        // Without a durable record the segment is no part of the log, and is deleted as a whole.
        if active.segment.number != self.tip.number {
            self.abandoned.push(active.segment.name.clone());
            self.abandoned_bytes += u64::from(active.zeros_end);
            self.delete_abandoned().ok();
        } else if error.is_no_space() {
            // The next attempt needs the space of what was written behind the end.
            self.active = Some(active);
            self.finish();
        } else {
            // A disk that fails is not touched more than it must be; see `recover`.
            self.untrimmed = Some(active);
        }
    }

    /// Ends the active segment, and cuts off what lies behind its last record.
    fn finish(&mut self) {
        if let Some(mut active) = self.active.take() {
            active.trim();
        }
    }

    fn fail(&mut self, error: StoreError, listener: &dyn Listener) -> Turn {
        add(&self.shared.stats.failures, 1);
        let wait = match self.health {
            Health::Failing(wait) => wait,
            Health::Well => {
                listener.failing(&error);
                RETRY_FIRST
            }
        };
        self.health = Health::Failing((wait * 2).min(RETRY_MAX));
        Turn::Failed(wait, error)
    }

    /// Begins a segment, unless the active one has no record.
    fn roll(&mut self, listener: &dyn Listener) {
        if self.active.as_ref().is_none_or(|active| active.segment.end() == HEADER_LEN) {
            return;
        }
        if let Err(error) = self.begin_next(0)
            && error.is_no_space()
            && self.make_space(&error, listener)
        {
            self.active = self.create().ok();
        }
        // An error is not reported: the next batch tries again, and meets it.
        let begun = self.active.as_ref().map(|active| active.segment.clone());
        if let Some(segment) = begun.filter(|segment| segment.end() == HEADER_LEN) {
            // It becomes the tip without a record, so that the segment before can be dropped at
            // once.
            self.advance(segment, HEADER_LEN);
        }
    }

    fn drop_and_tell(&mut self, segment: u32, listener: &dyn Listener) {
        let result = self.drop_oldest(segment);
        self.shared.is_dropping.store(false, Release);
        listener.dropped(segment, result);
        self.judge(listener);
    }

    /// Deletes files of failed attempts; those that cannot be deleted stay in the list.
    fn delete_abandoned(&mut self) -> Result<(), StoreError> {
        if !self.abandoned.is_empty() {
            // Before the files are deleted: otherwise, after a crash in between, the manifest would
            // name a newest segment that is gone.
            self.shared.manifest().unlist()?;
        }
        while let Some(name) = self.abandoned.last() {
            self.delete(name)?;
            self.abandoned.pop();
        }
        self.abandoned_bytes = 0;
        Ok(())
    }

    /// Deletes a file; one that is gone already is no error, as a drop is retried as a whole.
    fn delete(&self, name: &str) -> Result<(), StoreError> {
        match self.disk.delete(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::new("delete", name, error))
            }
            _ => Ok(()),
        }
    }

    /// Deletes the oldest segment.
    fn drop_oldest(&mut self, number: u32) -> Result<(), DropError> {
        let (oldest, next) = {
            let segments = self.shared.segments.read().unwrap_or_else(PoisonError::into_inner);
            let mut first = segments.values().map(|segment| segment.listed());
            (first.next(), first.next())
        };
        if oldest.is_none_or(|oldest| oldest.number != number) {
            return Err(DropError::NotOldest(number));
        }
        let Some(next) = next.filter(|_| number != self.tip.number) else {
            return Err(DropError::Newest(number));
        };
        // A start recognises the file of a failed attempt by the previous segment that its header
        // names. Once that segment and the one after it are dropped, the file would count as
        // foreign; so it is deleted now.
        self.delete_abandoned()?;
        // Durable before the file goes: a crash in between then leaves a file that is no part
        // of the log any more, and none that is missing.
        self.shared.manifest().begin_with(next)?;
        self.delete(&name_of(number))?;
        self.disk.sync_dir().map_err(StoreError::of("sync", "the log's directory"))?;
        let mut segments = self.shared.segments.write().unwrap_or_else(PoisonError::into_inner);
        segments.remove(&number);
        Ok(())
    }

    /// Works until the queue is closed and all is durable, or the disk failed once more after that.
    pub(super) fn run(mut self, listener: &dyn Listener) -> Result<(), CloseError> {
        let shared = self.shared.clone();
        let mut is_last_try = false;
        loop {
            // By this thread itself: any other that asked for it might hang in a read.
            if self.looked_at.elapsed() >= LOOK {
                shared.look();
            }
            match self.step(listener) {
                Turn::Worked => {}
                Turn::Idle if self.rest() => {}
                Turn::Idle => {
                    // If it cannot be noted the next start recovers as after a crash: all is
                    // durable.
                    shared.manifest().close().ok();
                    return Ok(());
                }
                Turn::Failed(_, error) if is_last_try => {
                    let records = front_batches(&self.pending).map(Batch::len).sum();
                    return Err(CloseError { records, error });
                }
                Turn::Failed(wait, _) => is_last_try = shared.queue.wait_for_close(wait),
            }
        }
    }
}

impl Writer {
    /// Waits for something to do; false if the queue is closed and empty.
    fn rest(&self) -> bool {
        let queue = &self.shared.queue;
        // Under load the tip is noted without a sync. Synced at rest, the last one survives a power
        // failure, too.
        let is_dirty = self.shared.manifest().is_dirty();
        if is_dirty && !queue.wait_at_most(REST) {
            self.shared.manifest().settle().ok();
        }
        if !queue.wait_at_most(LOOK.saturating_sub(self.looked_at.elapsed())) {
            self.shared.look();
        }
        queue.wait()
    }
}

impl Shared {
    pub(super) fn manifest(&self) -> MutexGuard<'_, Manifest> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the batches up to the first other entry: a roll or a drop must see all before it
/// durable.
fn front_batches(pending: &VecDeque<Entry>) -> impl Iterator<Item = &Batch> {
    pending.iter().map_while(|entry| match entry {
        Entry::Batch { batch, .. } => Some(batch),
        _ => None,
    })
}

/// Seals the batches at the front that fit into `room` for the end of the segment; returns their
/// number and the end behind them.
fn seal(pending: &mut VecDeque<Entry>, segment: &Segment, room: u32) -> (usize, u32) {
    let start = segment.end();
    let (mut count, mut end) = (0, start);
    for entry in pending {
        let Entry::Batch { batch, .. } = entry else { break };
        let bytes = batch.bytes() as u32;
        if bytes > room - (end - start) {
            break;
        }
        batch.seal(segment.seal, end, start);
        end += bytes;
        count += 1;
    }
    (count, end)
}

/// Returns the new end of the zeros after a write of `start..end` that goes beyond the zeros
/// already in the file.
fn zeros_end(start: u32, end: u32, segment_bytes: u32) -> u32 {
    // Zeros behind a large write would cost about as much as they save.
    if end - start > ZEROS_AHEAD / 4 {
        return end;
    }
    let aligned = (end / ZEROS_AHEAD + 1).saturating_mul(ZEROS_AHEAD);
    aligned.min(segment_bytes.max(end))
}
