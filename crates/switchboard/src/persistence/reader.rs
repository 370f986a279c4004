//! Reads the log beside the writer: messages that devices fetch, and the oldest segment, to compact
//! it once most of the log is dead.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use switchboard_broker::{Content, Position, Record, Stats, Want};
use switchboard_proto::DeviceId;

use super::places::{Advice, Places, Tries};
use super::record;
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

/// Reason why a record was not read.
#[derive(Debug)]
enum Unread {
    /// Its segment was dropped after it was copied; the broker knows the new position by now.
    Elsewhere,
    /// The disk refuses it, and is asked again later.
    Later,
    /// It is given up.
    Lost,
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
    places: Places<Fetch>,
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
            places: Places::default(),
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
                self.begin_fetch(fetch, Instant::now());
            }
            let now = Instant::now();
            // One, behind a fetch that waits for no bad sector.
            if let Some(fetch) = self.places.next_due(now) {
                self.begin_fetch(fetch, now);
            }
            let since = now.duration_since(self.looked_at);
            if since >= LOOK || (self.awaits_drop && since >= DROP_LOOK) {
                self.looked_at = now;
                self.places.forget_old(now);
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
        let due = self.places.next_at();
        due.map_or(look, |due| due.saturating_duration_since(now).min(look))
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Fetch { shard, device, session, link, wants } => {
                self.queue(Fetch { shard, device, session, link, wants });
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

    fn queue(&mut self, fetch: Fetch) {
        self.fetches[fetch.shard].push(fetch.bytes() as u64, fetch);
    }

    fn begin_fetch(&mut self, fetch: Fetch, now: Instant) {
        // The device may have come and gone many times while this waited. There must be an answer,
        // even an empty one: only then may the device ask again.
        if fetch.link.strong_count() == 0 {
            return self.answer(&fetch, Vec::new());
        }
        let mut contents = Vec::with_capacity(fetch.wants.len());
        let mut payload = Vec::new();
        for want in &fetch.wants {
            match self.content(want, &mut payload, now) {
                Ok(content) => contents.push((want.seq, content)),
                // The device gets what there is, and asks for this one next.
                Err(_) if !contents.is_empty() => break,
                // The broker then asks with the new position.
                Err(Unread::Elsewhere) => break,
                Err(Unread::Later) => {
                    return self.places.wait(want.position, fetch.device, fetch);
                }
                Err(Unread::Lost) => return self.give_up(&fetch),
            }
        }
        self.answer(&fetch, contents);
    }

    fn answer(&self, fetch: &Fetch, contents: Vec<(u64, Content)>) {
        let &Fetch { shard, device, session, .. } = fetch;
        let bytes = fetch.wants.iter().take(contents.len()).map(bytes_of).sum();
        self.shards.answer(shard, Answer::Fetched { device, session, contents, bytes });
    }

    /// Tells the broker that the first content of a fetch is lost.
    fn give_up(&self, fetch: &Fetch) {
        let &Fetch { shard, device, session, ref wants, .. } = fetch;
        self.shards.answer(shard, Answer::Unreadable { device, session, want: wants[0] });
    }

    fn content(
        &mut self,
        want: &Want,
        payload: &mut Vec<u8>,
        now: Instant,
    ) -> Result<Content, Unread> {
        // Not read again for each device that comes, nor each time that one comes back: a bad
        // sector may take the disk seconds.
        match self.places.advice(want.position, now) {
            Advice::Read => {}
            Advice::Wait => return Err(Unread::Later),
            Advice::GiveUp => {
                self.report(want, "a sector that it reaches into was given up", None);
                return Err(Unread::Lost);
            }
        }
        let started = Instant::now();
        let position = store::Position::from_u64(want.position.0);
        let mut read = self.log.read(position, payload);
        // It may have been damaged on its way from the disk.
        if read.as_ref().is_err_and(is_damaged) {
            read = self.log.read(position, payload);
        }
        let lost = lost_at(position, &read);
        for fetch in self.places.was_read(want.position, lost) {
            self.queue(fetch);
        }
        let why = match read {
            Ok(()) => match content_of(payload) {
                Ok(content) => return Ok(content),
                Err(why) => why,
            },
            Err(ReadError::Gone(_)) => return Err(Unread::Elsewhere),
            Err(error) => error.to_string(),
        };
        self.shards.read_failed();
        let Some(lost) = lost else {
            self.report(want, &why, None);
            return Err(Unread::Lost);
        };
        let (tries, given_up) = self.places.failed(want.position, lost, now, started.elapsed());
        self.report(want, &why, Some(&tries));
        for fetch in &given_up {
            self.report(&fetch.wants[0], &why, Some(&tries));
            self.give_up(fetch);
        }
        Err(if tries.suffice() { Unread::Lost } else { Unread::Later })
    }

    /// Logs that a message cannot be read; without tries it is given up.
    fn report(&mut self, want: &Want, why: &str, tries: Option<&Tries>) {
        if let Some(left_out) = self.unreadable.pass() {
            let position = store::Position::from_u64(want.position.0);
            tracing::error!(
                why,
                segment = position.segment(),
                offset = position.offset(),
                seq = want.seq,
                tries = tries.map(|tries| tries.count),
                is_given_up = tries.is_none_or(Tries::suffice),
                left_out,
                "a message cannot be read back"
            );
        }
    }

    /// Begins to compact the oldest segment if that is worth it.
    fn look(&mut self, now: Instant) {
        if self.compaction.is_some() || self.log.is_dropping() {
            return;
        }
        if std::mem::take(&mut self.awaits_drop) {
            // The space that came free counts at once.
            self.log.look();
        }
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
        let is_given_up = is_cut_off(error) || tries.suffice();
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

/// Returns the content in the record of a message or an outcome.
fn content_of(record: &[u8]) -> Result<Content, String> {
    match record::read(record) {
        Ok(Record::Message(message)) => Ok(message.content()),
        Ok(Record::Outcome(outcome)) => Ok(outcome.content()),
        Ok(_) => Err("it is a record of another kind".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns true for a record whose bytes are not those that were written: waiting does not help.
fn is_damaged(error: &ReadError) -> bool {
    matches!(error, ReadError::Damaged { .. }) || is_cut_off(error)
}

/// Returns true for a record behind the end of its file.
fn is_cut_off(error: &ReadError) -> bool {
    matches!(error, ReadError::Io(error) if error.io().kind() == ErrorKind::UnexpectedEof)
}

/// Returns the position of the byte that the disk refused in a read of the record at `position`.
fn lost_at(position: store::Position, read: &Result<(), ReadError>) -> Option<Position> {
    let Err(error @ ReadError::Io(io)) = read else { return None };
    let offset = io.offset().unwrap_or(position.offset().into());
    (!is_cut_off(error)).then_some(Position(u64::from(position.segment()) << 32 | offset))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use switchboard_broker::{MessageRecord, Moment};
    use switchboard_proto::v1::DeviceRef;

    use super::*;
    use crate::store::tests::crash_disk::CrashDisk;
    use crate::store::{Listener, LogOptions, StoreError, Synced};

    /// Shards that note which of them were answered, and how many contents each got.
    #[derive(Default)]
    struct Fakes {
        answered: Mutex<Vec<(usize, usize)>>,
        /// Devices whose content was given up.
        given_up: Mutex<Vec<DeviceId>>,
        /// The only shard that may be given no contents.
        full: Mutex<Option<usize>>,
        failures: Mutex<usize>,
    }

    impl Shards for Fakes {
        fn count(&self) -> usize {
            2
        }

        fn answer(&self, shard: usize, answer: Answer) {
            match answer {
                Answer::Fetched { contents, .. } => {
                    self.answered.lock().unwrap().push((shard, contents.len()));
                }
                Answer::Unreadable { device, .. } => self.given_up.lock().unwrap().push(device),
                Answer::Compact(_) => {}
            }
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
        disk: CrashDisk,
        positions: Receiver<store::Position>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let disk = CrashDisk::new(1);
            let log =
                store::open(Arc::new(disk.clone()), LogOptions::default(), &mut |_, _| Ok(()));
            let log = log.unwrap();
            let (say, positions) = channel();
            let log = Arc::new(log.start(Box::new(Ears(say))).unwrap());
            let mut batch = store::Batch::default();
            batch.push_with(|out| out.push(0));
            log.submit(0, batch).unwrap();
            let damaged = Position(positions.recv().unwrap().to_u64());
            let shards = Arc::new(Fakes::default());
            let (jobs, taken) = Reader::channel();
            let work = Work::new(Arc::clone(&shards) as Arc<dyn Shards>, log, taken);
            Fixture { work, jobs, shards, damaged, link: Arc::new(()), disk, positions }
        }

        /// Appends messages of this many bytes; returns their positions.
        fn append(&self, bytes: usize, count: usize) -> Vec<Position> {
            let mut batch = store::Batch::default();
            let record = MessageRecord {
                to: DeviceRef::Number(DeviceId::new(1)),
                seq: 1,
                from: DeviceRef::Number(DeviceId::new(2)),
                id: "a",
                is_id_taken: false,
                body: &vec![b'x'; bytes],
                re: None,
                sent_at_ms: 1,
                at: Moment::from_ms(1),
                expires_at_ms: None,
                receipt: false,
            };
            let record = Record::Message(record);
            (0..count).for_each(|_| batch.push_with(|out| record::write(&record, out)));
            self.work.log.submit(0, batch).unwrap();
            (0..count).map(|_| Position(self.positions.recv().unwrap().to_u64())).collect()
        }

        /// Asks for the damaged record.
        fn ask(&self, shard: usize, device: u64, link: Weak<()>) {
            self.ask_for(self.damaged, shard, device, link);
        }

        fn ask_for(&self, position: Position, shard: usize, device: u64, link: Weak<()>) {
            let wants = vec![Want { seq: 1, position, len: 100 }];
            let device = DeviceId::new(device);
            self.jobs.send(Job::Fetch { shard, device, session: 1, link, wants }).unwrap();
        }

        fn step(&mut self) {
            assert!(self.work.take_jobs());
            if let Some(fetch) = self.work.next_fetch() {
                self.work.begin_fetch(fetch, Instant::now());
            }
        }

        fn retry(&mut self, now: Instant) {
            if let Some(fetch) = self.work.places.next_due(now) {
                self.work.begin_fetch(fetch, now);
            }
        }

        fn failures(&self) -> usize {
            *self.shards.failures.lock().unwrap()
        }

        fn given_up(&self) -> usize {
            std::mem::take(&mut *self.shards.given_up.lock().unwrap()).len()
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

    /// Each device once tried a lost sector by itself: with five of them the reader did nothing else,
    /// and nobody's mail came.
    #[test]
    fn a_lost_sector_is_tried_and_given_up_once_for_all_devices() {
        let mut it = Fixture::new();
        let positions = it.append(250, 60);
        let lost: Vec<_> = positions.iter().filter(|it| it.0 as u32 / 4096 == 1).collect();
        let &healthy = positions.iter().find(|it| it.0 as u32 / 4096 == 2).unwrap();
        it.disk.lose("00000001.seg", 4096);
        for (device, &&position) in (1..).zip(&lost) {
            it.ask_for(position, 0, device, Arc::downgrade(&it.link));
            it.step();
        }
        assert_eq!((it.failures(), it.answered()), (1, vec![]));
        let mut now = Instant::now();
        for tries in 2..=7 {
            it.ask_for(healthy, 0, 99, Arc::downgrade(&it.link));
            it.step();
            assert_eq!(it.answered(), [(0, 1)], "it waits for no bad sector");
            assert_eq!(it.given_up(), 0);
            now += Duration::from_secs(31);
            it.retry(now);
            it.retry(now);
            assert_eq!(it.failures(), tries, "one try for all");
        }
        assert_eq!(it.given_up(), lost.len(), "after three minutes, all at once");
        let fetch = Fetch {
            shard: 0,
            device: DeviceId::new(50),
            session: 1,
            link: Arc::downgrade(&it.link),
            wants: vec![Want { seq: 1, position: *lost[3], len: 100 }],
        };
        it.work.begin_fetch(fetch, now);
        assert_eq!((it.given_up(), it.failures()), (1, 7), "without a read");
    }

    #[test]
    fn all_who_wait_for_a_sector_are_served_once_it_can_be_read() {
        let mut it = Fixture::new();
        let positions = it.append(250, 60);
        it.disk.lose("00000001.seg", 4096);
        let lost = positions.iter().filter(|it| it.0 as u32 / 4096 == 1);
        for (device, &position) in (1..=5).zip(lost) {
            it.ask_for(position, 0, device, Arc::downgrade(&it.link));
            it.step();
        }
        it.disk.regain();
        it.retry(Instant::now() + Duration::from_secs(1));
        (0..4).for_each(|_| it.step());
        assert_eq!((it.failures(), it.answered()), (1, vec![(0, 1); 5]));
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
