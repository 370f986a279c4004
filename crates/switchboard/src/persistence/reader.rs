//! Reads the log beside the writer: messages that devices fetch, and the oldest segment, to compact
//! it once most of the log is dead.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use switchboard_broker::{Content, Position, Record, Stats, Want};
use switchboard_proto::DeviceId;

use super::record;
use super::tries::Tries;
use super::turns::Turns;
use super::worth::{Log as Sizes, Worth};
use crate::log::LineLimit;
use crate::store::{self, Log, ReadError, Skipping};

/// Interval at which the log is judged for compaction.
const LOOK: Duration = Duration::from_secs(1);
/// The same while a segment is being dropped, so that the next one can follow soon.
const DROP_LOOK: Duration = Duration::from_millis(20);
/// Estimated bytes of a record beside its message.
const RECORD_OVERHEAD: u64 = 96;
/// Longest wait for the thread at the end: its disk may hang.
const JOIN_STALL: Duration = Duration::from_secs(5);

/// The shards, as the reader sees them.
pub(crate) trait Shards: Send + Sync {
    /// Returns the number of shards.
    fn count(&self) -> usize;
    /// Hands an answer to a shard.
    fn answer(&self, shard: usize, answer: Answer);
    /// Returns true if a shard may be given more contents. Once it may again, it says so by
    /// [`Job::Room`].
    fn has_room(&self, shard: usize) -> bool;
    /// Wakes all shards, so that each counts anew what waits.
    fn wake_all(&self);
    /// Returns what waits in all mailboxes, as counted last.
    fn waiting(&self) -> Stats;
    /// Counts a read that failed.
    fn read_failed(&self);
}

/// An answer of the reader to a shard.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Contents of messages that a device waits for, as many as could be read; none if its session
    /// has ended. With the bytes that they take.
    Fetched { device: DeviceId, session: u32, contents: Vec<(u64, Content)>, bytes: usize },
    /// The record that a device waits for is lost.
    Unreadable { device: DeviceId, session: u32, want: Want },
    /// A part of the log that is to be deleted.
    Compact(Arc<Chunk>),
}

/// A task for the reader.
#[derive(Debug)]
pub(crate) enum Job {
    /// Read contents for a device.
    Fetch {
        /// The shard to answer.
        shard: usize,
        /// The device that waits.
        device: DeviceId,
        /// Number of its session, returned with the answer.
        session: u32,
        /// Owned by the connection of that session: once it is gone, nobody waits for the contents.
        link: Weak<()>,
        /// The records to read, in order.
        wants: Vec<Want>,
    },
    /// A shard has taken contents, and may be given more.
    Room,
    /// A shard has appended again what still counts of the chunk that it was given.
    Compacted {
        /// Bytes that it appended for that.
        copied_bytes: u64,
    },
}

/// See [`Job::Fetch`].
#[derive(Debug)]
struct Fetch {
    shard: usize,
    device: DeviceId,
    session: u32,
    link: Weak<()>,
    wants: Vec<Want>,
}

/// A fetch that failed and is tried again.
#[derive(Debug)]
struct Failed {
    fetch: Fetch,
    tries: Tries,
}

/// Reason why a record was not read.
#[derive(Debug)]
enum Unread {
    /// Its segment was dropped after it was copied; the broker knows the new position by now.
    Elsewhere,
    /// The bytes are not those that were written.
    Damaged(String),
    /// The disk failed the read.
    Disk(String),
}

/// A chunk of the oldest segment.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    records: Vec<(Position, usize)>,
    damaged: Option<Range<Position>>,
}

impl Fetch {
    /// Returns about the bytes that its contents take.
    fn bytes(&self) -> usize {
        self.wants.iter().map(bytes_of).sum()
    }
}

impl Chunk {
    fn push(&mut self, position: Position, record: &[u8]) {
        self.bytes.extend_from_slice(record);
        self.records.push((position, self.bytes.len()));
    }

    /// Returns the records and their positions, in order.
    pub(crate) fn records(&self) -> impl Iterator<Item = (Position, &[u8])> {
        let mut start = 0;
        self.records.iter().map(move |&(position, end)| {
            let record = &self.bytes[start..end];
            start = end;
            (position, record)
        })
    }

    /// Returns the damaged part behind the records, if there is one.
    pub(crate) fn damaged(&self) -> Option<&Range<Position>> {
        self.damaged.as_ref()
    }
}

/// The reading thread; waited for by [`Reader::join`].
#[derive(Debug)]
pub(crate) struct Reader {
    thread: JoinHandle<()>,
    /// Disconnected when the thread ends: a thread cannot be joined with a timeout.
    ended: Receiver<()>,
}

/// The segment that is being compacted.
#[derive(Debug)]
struct Compaction {
    segment: u32,
    bytes: u64,
    next: Option<store::Position>,
    is_last: bool,
    /// Shards that have not answered for the chunk.
    awaited: usize,
    copied_bytes: u64,
    /// Set once its unreadable parts were tried for long enough: from then on they are skipped.
    skipping: Option<Skipping>,
}

/// A segment that could not be compacted, as the disk failed to read a part of it.
#[derive(Clone, Copy, Debug)]
struct Refused {
    segment: u32,
    tries: Tries,
    is_given_up: bool,
}

struct Work {
    shards: Arc<dyn Shards>,
    log: Arc<Log>,
    jobs: Receiver<Job>,
    /// By shard.
    fetches: Vec<Turns<Fetch>>,
    /// The shard whose fetch was served last.
    served: usize,
    compaction: Option<Compaction>,
    refused: Option<Refused>,
    /// At most one for each device, for its newest session.
    failed: HashMap<DeviceId, Failed>,
    looked_at: Instant,
    /// Set while a segment is being dropped, after which another may follow.
    awaits_drop: bool,
    worth: Worth,
    unreadable: LineLimit,
    not_compacted: LineLimit,
}

impl Reader {
    /// Returns a channel for jobs. Its senders bound it: a session has at most one fetch under way,
    /// and a shard has at most one chunk.
    pub(crate) fn channel() -> (Sender<Job>, Receiver<Job>) {
        channel()
    }

    /// Starts the thread; it ends when all senders of jobs are gone.
    pub(crate) fn start(
        shards: Arc<dyn Shards>,
        log: Arc<Log>,
        jobs: Receiver<Job>,
    ) -> std::io::Result<Reader> {
        let work = Work::new(shards, log, jobs);
        let (end, ended) = channel();
        let thread = thread::Builder::new().name("store-reader".to_owned());
        let thread = thread.spawn(move || {
            let _end: Sender<()> = end;
            work.run();
        })?;
        Ok(Reader { thread, ended })
    }

    /// Waits for the thread, but not for long if the disk hangs.
    pub(crate) fn join(self) -> anyhow::Result<()> {
        // A thread that only reads can be left behind: it has nothing to lose.
        if self.ended.recv_timeout(JOIN_STALL) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the disk does not answer a read; it is not waited for");
            return Ok(());
        }
        self.thread.join().map_err(|_| anyhow::anyhow!("the store's reader panicked"))
    }
}

impl Work {
    fn new(shards: Arc<dyn Shards>, log: Arc<Log>, jobs: Receiver<Job>) -> Work {
        Work {
            fetches: (0..shards.count()).map(|_| Turns::default()).collect(),
            served: 0,
            shards,
            log,
            jobs,
            compaction: None,
            refused: None,
            failed: HashMap::new(),
            looked_at: Instant::now(),
            awaits_drop: false,
            worth: Worth::default(),
            unreadable: LineLimit::new(),
            not_compacted: LineLimit::new(),
        }
    }

    fn run(mut self) {
        while self.take_jobs() {
            if let Some(fetch) = self.next_fetch() {
                self.begin_fetch(fetch);
            }
            let now = Instant::now();
            self.retry_due(now);
            let since = now.duration_since(self.looked_at);
            if since >= LOOK || (self.awaits_drop && since >= DROP_LOOK) {
                self.looked_at = now;
                self.look(now);
            }
        }
    }

    /// Takes all jobs that have come; waits for one if no fetch can be served now. Returns false
    /// once all senders are gone.
    fn take_jobs(&mut self) -> bool {
        // All of them before the next fetch, so that compaction, which frees space, waits for one
        // fetch and not for as many as there are devices.
        let mut may_wait = self.next_shard().is_none();
        loop {
            let job = match std::mem::take(&mut may_wait) {
                true => self.jobs.recv_timeout(self.next_wait()),
                false => self.jobs.try_recv().map_err(|error| match error {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                }),
            };
            match job {
                Ok(job) => self.work(job),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Returns the next shard in turn that waits for a fetch and may be given its contents.
    fn next_shard(&self) -> Option<usize> {
        let count = self.fetches.len();
        let mut shards = (1..=count).map(|step| (self.served + step) % count);
        shards.find(|&shard| !self.fetches[shard].is_empty() && self.shards.has_room(shard))
    }

    fn next_fetch(&mut self) -> Option<Fetch> {
        let shard = self.next_shard()?;
        self.served = shard;
        self.fetches[shard].pop()
    }

    fn next_wait(&self) -> Duration {
        let look = if self.awaits_drop { DROP_LOOK } else { LOOK };
        let now = Instant::now();
        let due =
            self.failed.values().map(|failed| failed.tries.due.saturating_duration_since(now));
        due.min().map_or(look, |due| due.min(look))
    }

    fn retry_due(&mut self, now: Instant) {
        let due = self.failed.iter().filter(|(_, failed)| failed.tries.due <= now);
        let devices: Vec<DeviceId> = due.map(|(&device, _)| device).collect();
        for device in devices {
            if let Some(Failed { fetch, tries, .. }) = self.failed.remove(&device) {
                self.fetch(fetch, Some(tries));
            }
        }
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Fetch { shard, device, session, link, wants } => {
                let fetch = Fetch { shard, device, session, link, wants };
                self.fetches[shard].push(fetch.bytes() as u64, fetch);
            }
            // It only wakes this thread, which then looks which shards have room.
            Job::Room => {}
            Job::Compacted { copied_bytes } => {
                let Some(compaction) = &mut self.compaction else { return };
                compaction.copied_bytes += copied_bytes;
                compaction.awaited -= 1;
                if compaction.awaited == 0 {
                    self.next_chunk();
                }
            }
        }
    }

    /// Begins a fetch, unless the same one failed before and waits for its next try.
    fn begin_fetch(&mut self, fetch: Fetch) {
        // The device may have come and gone many times while this waited. There must be an answer,
        // even an empty one: only then may the device ask again.
        if fetch.link.strong_count() == 0 {
            return self.answer(&fetch, Vec::new());
        }
        let first = |fetch: &Fetch| fetch.wants.first().map(|want| want.position);
        match self.failed.get_mut(&fetch.device) {
            // A device that reconnects again and again must not make the disk retry a bad
            // sector, which may take it seconds each time. The newest session gets the answer.
            Some(failed) if first(&failed.fetch) == first(&fetch) => failed.fetch = fetch,
            _ => {
                self.failed.remove(&fetch.device);
                self.fetch(fetch, None);
            }
        }
    }

    fn fetch(&mut self, fetch: Fetch, tries: Option<Tries>) {
        let started = Instant::now();
        let mut contents = Vec::with_capacity(fetch.wants.len());
        let mut payload = Vec::new();
        for want in &fetch.wants {
            match self.content(want.position, &mut payload) {
                Ok(content) => contents.push((want.seq, content)),
                // The answer may be empty; the broker then asks with the new position.
                Err(Unread::Elsewhere) => break,
                Err(unread) => {
                    self.shards.read_failed();
                    if contents.is_empty() {
                        let tries = Tries::another(tries, started, Instant::now());
                        return self.failed(fetch, &unread, tries);
                    }
                    // The device gets what there is, and asks for this one next.
                    break;
                }
            }
        }
        self.answer(&fetch, contents);
    }

    fn answer(&self, fetch: &Fetch, contents: Vec<(u64, Content)>) {
        let &Fetch { shard, device, session, .. } = fetch;
        let bytes = fetch.wants.iter().take(contents.len()).map(bytes_of).sum();
        self.shards.answer(shard, Answer::Fetched { device, session, contents, bytes });
    }

    /// Handles a fetch whose first content could not be read: it is retried later, or the broker is
    /// told that the content is lost.
    fn failed(&mut self, fetch: Fetch, unread: &Unread, tries: Tries) {
        let want = fetch.wants[0];
        let (why, is_given_up) = match unread {
            Unread::Damaged(why) => (why.as_str(), tries.suffice_for_damage()),
            Unread::Disk(why) => (why.as_str(), tries.suffice_for_disk()),
            Unread::Elsewhere => return,
        };
        if let Some(left_out) = self.unreadable.pass() {
            let position = store::Position::from_u64(want.position.0);
            let (segment, offset) = (position.segment(), position.offset());
            tracing::error!(
                why,
                segment,
                offset,
                seq = want.seq,
                tries = tries.count,
                is_given_up,
                left_out,
                "a message cannot be read back"
            );
        }
        let Fetch { shard, device, session, .. } = fetch;
        if is_given_up {
            self.shards.answer(shard, Answer::Unreadable { device, session, want });
        } else {
            self.failed.insert(device, Failed { fetch, tries });
        }
    }

    fn content(&self, position: Position, payload: &mut Vec<u8>) -> Result<Content, Unread> {
        match self.log.read(store::Position::from_u64(position.0), payload) {
            Ok(()) => {}
            Err(ReadError::Gone(_)) => return Err(Unread::Elsewhere),
            Err(error @ ReadError::Damaged { .. }) => {
                return Err(Unread::Damaged(error.to_string()));
            }
            Err(error) if is_cut_off(&error) => return Err(Unread::Damaged(error.to_string())),
            Err(ReadError::Io(error)) => return Err(Unread::Disk(error.to_string())),
        }
        match record::read(payload) {
            Ok(Record::Message(message)) => Ok(message.content()),
            Ok(Record::Outcome(outcome)) => Ok(outcome.content()),
            Ok(_) => Err(Unread::Damaged("it is a record of another kind".to_owned())),
            Err(error) => Err(Unread::Damaged(error.to_string())),
        }
    }

    /// Begins to compact the oldest segment if that is worth it.
    fn look(&mut self, now: Instant) {
        if self.compaction.is_some() || self.log.is_dropping() {
            // Ask the writer to look at the file system even now, because the drop may wait behind
            // batches for long. While the writer fails, the request stays in the queue, but the
            // writer checks its files at each retry anyway.
            return self.log.look();
        }
        self.awaits_drop = false;
        self.log.look();
        if self.log.is_tight() {
            // A shard counts what waits in its turns. One that sleeps since the last ack would
            // go on showing acked messages as live, and the log would seem not worth
            // compacting.
            self.shards.wake_all();
        }
        let Some(oldest) = self.log.oldest() else { return };
        let refused = self.refused.filter(|refused| refused.segment == oldest.number);
        if refused.is_some_and(|refused| !refused.is_given_up && now < refused.tries.due) {
            return;
        }
        let waiting = self.shards.waiting();
        let records = waiting.messages + waiting.mailboxes + waiting.ids;
        let usage = self.log.usage();
        let sizes = Sizes {
            bytes: usage.bytes,
            segments: usage.segments,
            live_bytes: waiting.bytes + RECORD_OVERHEAD * records,
            oldest_bytes: oldest.bytes.into(),
            volume: self.log.volume(),
            is_tight: self.log.is_tight(),
        };
        if !self.worth.is_compacted(&sizes, now) {
            return;
        }
        if oldest.is_newest {
            // The segment can be dropped once there is another; the next look finds that.
            return self.log.roll();
        }
        self.compaction = Some(Compaction {
            segment: oldest.number,
            bytes: oldest.bytes.into(),
            next: None,
            is_last: false,
            awaited: 0,
            copied_bytes: 0,
            skipping: refused
                .filter(|refused| refused.is_given_up)
                .and_then(|refused| self.log.skipping(refused.segment).ok()),
        });
        self.next_chunk();
    }

    /// Hands the next chunk to all shards, or the segment to the writer for deletion.
    fn next_chunk(&mut self) {
        let Some(mut compaction) = self.compaction.take() else { return };
        if compaction.is_last {
            return self.compacted(&compaction);
        }
        let started = Instant::now();
        let (chunk, next) = match self.read_chunk(&compaction) {
            Ok(read) => read,
            Err(error) => return self.not_compacted(compaction.segment, &error, started),
        };
        // Each shard answers for each chunk, even if nothing in it is the shard's. The next chunk
        // comes only then, so that a slow shard has to keep one chunk, not a segment.
        compaction.awaited = self.shards.count();
        (compaction.next, compaction.is_last) = (next, next.is_none());
        self.compaction = Some(compaction);
        let chunk = Arc::new(chunk);
        for shard in 0..self.shards.count() {
            self.shards.answer(shard, Answer::Compact(Arc::clone(&chunk)));
        }
    }

    /// Ends a compaction whose segment the disk failed to read; it is begun again later.
    fn not_compacted(&mut self, segment: u32, error: &ReadError, started: Instant) {
        self.shards.read_failed();
        // Given up after the same time as a fetch: otherwise one lost sector in the oldest segment
        // would keep all space behind it from ever becoming free. The pause leaves time for others'
        // reads.
        let before = self.refused.filter(|refused| refused.segment == segment);
        let tries = Tries::another(before.map(|it| it.tries), started, Instant::now());
        let is_given_up =
            if is_cut_off(error) { tries.suffice_for_damage() } else { tries.suffice_for_disk() };
        self.refused = Some(Refused { segment, tries, is_given_up });
        if let Some(left_out) = self.not_compacted.pass() {
            let what = "the oldest part of the store cannot be compacted";
            tracing::error!(%error, tries = tries.count, is_given_up, left_out, "{what}");
        }
    }

    /// Reads a chunk, and finds the end of a damaged part behind it; returns the position at
    /// which to go on.
    fn read_chunk(
        &self,
        compaction: &Compaction,
    ) -> Result<(Chunk, Option<store::Position>), ReadError> {
        let &Compaction { segment, next: from, ref skipping, .. } = compaction;
        let mut chunk = Chunk::default();
        let mut visit = |position: store::Position, record: &[u8]| {
            chunk.push(Position(position.to_u64()), record);
        };
        let read = match skipping {
            Some(skipping) => skipping.read(from, &mut visit),
            None => self.log.read_segment(segment, from, &mut visit),
        };
        let damaged = match read {
            Ok(next) => return Ok((chunk, next)),
            Err(ReadError::Damaged { offset, .. }) => {
                store::Position::from_u64(u64::from(segment) << 32 | u64::from(offset))
            }
            Err(error) => return Err(error),
        };
        // Read once more, as it may have been damaged on its way from the disk. Not while
        // sectors are skipped: those were read often enough.
        if skipping.is_none() && self.log.read(damaged, &mut Vec::new()).is_ok() {
            return Ok((chunk, Some(damaged)));
        }
        self.shards.read_failed();
        let next = match skipping {
            Some(skipping) => skipping.next_intact(damaged)?,
            None => self.log.next_intact(damaged)?,
        };
        let end = next.map_or((u64::from(segment) + 1) << 32, store::Position::to_u64);
        chunk.damaged = Some(Position(damaged.to_u64())..Position(end));
        if let Some(left_out) = self.not_compacted.pass() {
            let (offset, bytes) = (damaged.offset(), end - damaged.to_u64());
            tracing::error!(
                segment,
                offset,
                bytes,
                left_out,
                "a part of the store is damaged; what waits in it is given up"
            );
        }
        Ok((chunk, next))
    }

    /// Has the segment dropped, once all shards have dealt with all of it.
    fn compacted(&mut self, compaction: &Compaction) {
        self.worth.compacted(compaction.bytes, compaction.copied_bytes);
        self.awaits_drop = true;
        // Without copies, nothing in the queue must become durable before the drop. So the drop
        // need not wait for a full disk, which only the drop can help.
        if compaction.copied_bytes == 0 {
            self.log.drop_dead(compaction.segment);
        } else {
            self.log.drop_oldest(compaction.segment);
        }
    }
}

/// Returns about the bytes that a content takes.
fn bytes_of(want: &Want) -> usize {
    want.len as usize + RECORD_OVERHEAD as usize
}

/// Returns true for a record behind the end of its file: it is damage, and waiting does not help.
fn is_cut_off(error: &ReadError) -> bool {
    matches!(error, ReadError::Io(error) if error.io().kind() == ErrorKind::UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::store::{DataDir, Listener, LogOptions, StoreError, Synced};

    /// Shards that note which of them were answered, and how many contents each got.
    #[derive(Default)]
    struct Fakes {
        answered: Mutex<Vec<(usize, usize)>>,
        /// The only shard that may be given no contents.
        full: Mutex<Option<usize>>,
        failures: Mutex<usize>,
    }

    impl Shards for Fakes {
        fn count(&self) -> usize {
            2
        }

        fn answer(&self, shard: usize, answer: Answer) {
            let Answer::Fetched { contents, .. } = answer else { return };
            self.answered.lock().unwrap().push((shard, contents.len()));
        }

        fn has_room(&self, shard: usize) -> bool {
            *self.full.lock().unwrap() != Some(shard)
        }

        fn wake_all(&self) {}

        fn waiting(&self) -> Stats {
            Stats::default()
        }

        fn read_failed(&self) {
            *self.failures.lock().unwrap() += 1;
        }
    }

    /// Tells the positions of records.
    struct Ears(Sender<store::Position>);

    impl Listener for Ears {
        fn synced(&self, _: usize, batches: Vec<Synced>) {
            let positions = batches.iter().flat_map(Synced::positions);
            positions.for_each(|position| self.0.send(position).unwrap());
        }

        fn room(&self, _: usize) {}

        fn failing(&self, _: &StoreError) {}

        fn healthy(&self) {}

        fn dropped(&self, _: u32, _: Result<(), store::DropError>) {}
    }

    struct Fixture {
        work: Work,
        jobs: Sender<Job>,
        shards: Arc<Fakes>,
        /// Position of a record that holds no content, so that a read of it fails.
        damaged: Position,
        /// The link of all fetches whose sessions have not ended.
        link: Arc<()>,
        _dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            let disk = Arc::new(DataDir::open(dir.path()).unwrap());
            let log = store::open(disk, LogOptions::default(), &mut |_, _| Ok(())).unwrap();
            let (say, positions) = channel();
            let log = Arc::new(log.start(Box::new(Ears(say))).unwrap());
            let mut batch = store::Batch::default();
            batch.push_with(|out| out.push(0));
            log.submit(0, batch).unwrap();
            let damaged = Position(positions.recv().unwrap().to_u64());
            let shards = Arc::new(Fakes::default());
            let (jobs, taken) = Reader::channel();
            let work = Work::new(Arc::clone(&shards) as Arc<dyn Shards>, log, taken);
            Fixture { work, jobs, shards, damaged, link: Arc::new(()), _dir: dir }
        }

        /// Asks for the damaged record.
        fn ask(&self, shard: usize, device: u64, link: Weak<()>) {
            let wants = vec![Want { seq: 1, position: self.damaged, len: 100 }];
            let device = DeviceId::new(device);
            self.jobs.send(Job::Fetch { shard, device, session: 1, link, wants }).unwrap();
        }

        fn step(&mut self) {
            assert!(self.work.take_jobs());
            if let Some(fetch) = self.work.next_fetch() {
                self.work.begin_fetch(fetch);
            }
        }

        fn answered(&self) -> Vec<(usize, usize)> {
            std::mem::take(&mut self.shards.answered.lock().unwrap())
        }
    }

    /// Devices that came and went made the reader read what nobody waited for any more, for
    /// seconds, and all others waited behind that.
    #[test]
    fn a_fetch_whose_session_has_ended_is_answered_without_a_read() {
        let mut it = Fixture::new();
        it.ask(0, 1, Weak::new());
        it.step();
        assert_eq!(it.answered(), [(0, 0)], "or the device could never ask again");
        assert_eq!(*it.shards.failures.lock().unwrap(), 0);
        // The same with a session that goes on is read.
        it.ask(0, 1, Arc::downgrade(&it.link));
        it.step();
        assert_eq!(it.answered(), []);
        assert_eq!(*it.shards.failures.lock().unwrap(), 1);
    }

    /// One shard that is slow to take its contents must neither fill the memory with them nor delay
    /// the others.
    #[test]
    fn a_shard_that_has_no_room_is_passed_over_until_it_has() {
        let mut it = Fixture::new();
        *it.shards.full.lock().unwrap() = Some(0);
        (1..=2).for_each(|device| it.ask(0, device, Weak::new()));
        (3..=4).for_each(|device| it.ask(1, device, Weak::new()));
        (0..2).for_each(|_| it.step());
        assert_eq!(it.answered(), [(1, 0), (1, 0)]);
        assert_eq!(it.work.next_shard(), None);
        *it.shards.full.lock().unwrap() = None;
        it.jobs.send(Job::Room).unwrap();
        it.ask(1, 5, Weak::new());
        (0..3).for_each(|_| it.step());
        assert_eq!(it.answered(), [(0, 0), (1, 0), (0, 0)], "the shards take turns");
    }

    /// Compaction, which frees space, once waited behind as many fetches as there were devices.
    #[test]
    fn compaction_waits_for_one_fetch_only() {
        let mut it = Fixture::new();
        it.work.compaction = Some(Compaction {
            segment: 1,
            bytes: 0,
            next: None,
            is_last: false,
            awaited: 2,
            copied_bytes: 0,
            skipping: None,
        });
        (0..10).for_each(|device| it.ask(0, device, Weak::new()));
        it.jobs.send(Job::Compacted { copied_bytes: 7 }).unwrap();
        it.step();
        assert_eq!(it.answered().len(), 1);
        let compaction = it.work.compaction.as_ref().unwrap();
        assert_eq!((compaction.awaited, compaction.copied_bytes), (1, 7));
    }
}
