//! Reads the log beside the writer: what devices come for, and the oldest segment when most of it
//! is dead.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use switchboard_broker::{Content, Place, Record, Want};
use switchboard_proto::DeviceId;

use super::record;
use crate::log::LineLimit;
use crate::shard::{Shared, StoreNews};
use crate::store::{self, Log, ReadError};

/// How often the log is looked at for what could be reclaimed.
const LOOK: Duration = Duration::from_secs(1);
/// A log up to this size is left alone.
const SMALL_BYTES: u64 = 192 << 20;
/// What a record takes beside its message, about.
const RECORD_OVERHEAD: u64 = 96;
/// After a read that failed.
const RETRY: Duration = Duration::from_millis(200);

/// What a shard wants of the reader.
#[derive(Debug)]
pub(crate) enum Job {
    /// Contents for a device.
    Fetch {
        /// Who asks.
        shard: usize,
        /// For whom.
        device: DeviceId,
        /// Comes back with the answer.
        session: u32,
        /// What.
        wants: Vec<Want>,
    },
    /// A shard has appended again what still counts of the chunk that it was given.
    Reclaimed,
}

/// A chunk of the oldest segment.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    records: Vec<(Place, usize)>,
}

impl Chunk {
    fn push(&mut self, place: Place, record: &[u8]) {
        self.bytes.extend_from_slice(record);
        self.records.push((place, self.bytes.len()));
    }

    /// The records and where they lie, in order.
    pub(crate) fn records(&self) -> impl Iterator<Item = (Place, &[u8])> {
        let mut start = 0;
        self.records.iter().map(move |&(place, end)| {
            let record = &self.bytes[start..end];
            start = end;
            (place, record)
        })
    }
}

/// The reading thread; waited for by [`Reader::join`].
#[derive(Debug)]
pub(crate) struct Reader(JoinHandle<()>);

/// The segment that is being reclaimed.
#[derive(Debug)]
struct Reclaim {
    segment: u32,
    next: Option<store::Place>,
    /// Shards that have not answered for the chunk.
    awaited: usize,
}

struct Work {
    shared: Arc<Shared>,
    log: Arc<Log>,
    jobs: Receiver<Job>,
    reclaim: Option<Reclaim>,
    /// Fetches that failed, to be tried again.
    failed: VecDeque<(Instant, Job)>,
    looked_at: Instant,
    unreadable: LineLimit,
}

impl Reader {
    /// A channel for jobs.
    pub(crate) fn channel() -> (Sender<Job>, Receiver<Job>) {
        channel()
    }

    /// Starts the thread; it ends when all senders of jobs are gone.
    pub(crate) fn start(
        shared: Arc<Shared>,
        log: Arc<Log>,
        jobs: Receiver<Job>,
    ) -> std::io::Result<Reader> {
        let looked_at = Instant::now();
        let failed = VecDeque::new();
        let unreadable = LineLimit::new();
        let work = Work { shared, log, jobs, reclaim: None, failed, looked_at, unreadable };
        thread::Builder::new().name("store-reader".to_owned()).spawn(|| work.run()).map(Reader)
    }

    /// Waits for the thread.
    pub(crate) fn join(self) -> anyhow::Result<()> {
        self.0.join().map_err(|_| anyhow::anyhow!("the store's reader panicked"))
    }
}

impl Work {
    fn run(mut self) {
        loop {
            let wait = self.failed.front().map_or(LOOK, |_| RETRY);
            match self.jobs.recv_timeout(wait) {
                Ok(job) => self.work(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            while self.failed.front().is_some_and(|(at, _)| *at <= now) {
                if let Some((_, job)) = self.failed.pop_front() {
                    self.work(job);
                }
            }
            if self.reclaim.is_none() && now.duration_since(self.looked_at) >= LOOK {
                self.looked_at = now;
                self.look();
            }
        }
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Fetch { shard, device, session, wants } => {
                self.fetch(shard, device, session, wants);
            }
            Job::Reclaimed => {
                if let Some(reclaim) = &mut self.reclaim {
                    reclaim.awaited -= 1;
                    if reclaim.awaited == 0 {
                        self.next_chunk();
                    }
                }
            }
        }
    }

    fn fetch(&mut self, shard: usize, device: DeviceId, session: u32, wants: Vec<Want>) {
        let mut contents = Vec::with_capacity(wants.len());
        let mut payload = Vec::new();
        for want in &wants {
            match self.content(want.place, &mut payload) {
                Ok(content) => contents.push((want.seq, content)),
                // The record has moved; the broker knows the new place by now.
                Err(None) => break,
                Err(Some(why)) => {
                    if let Some(left_out) = self.unreadable.pass() {
                        let seq = want.seq;
                        tracing::error!(%why, seq, left_out, "a message cannot be read back");
                    }
                    self.shared.metrics.store.read_failures.add(1);
                    if contents.is_empty() {
                        let job = Job::Fetch { shard, device, session, wants };
                        return self.failed.push_back((Instant::now() + RETRY, job));
                    }
                    break;
                }
            }
        }
        self.shared.inboxes[shard].store(StoreNews::Fetched { device, session, contents });
    }

    /// What a record says; an error without words is that it is elsewhere by now.
    fn content(&self, place: Place, payload: &mut Vec<u8>) -> Result<Content, Option<String>> {
        match self.log.read(store::Place::from_u64(place.0), payload) {
            Ok(()) => {}
            Err(ReadError::Gone(_)) => return Err(None),
            Err(error) => return Err(Some(error.to_string())),
        }
        match record::read(payload) {
            Ok(Record::Message(message)) => Ok(message.content()),
            Ok(Record::Outcome(outcome)) => Ok(outcome.content()),
            Ok(other) => Err(Some(format!("it is another record: {other:?}"))),
            Err(error) => Err(Some(error.to_string())),
        }
    }

    /// Begins to reclaim the oldest segment if most of the log is dead.
    fn look(&mut self) {
        let usage = self.log.usage();
        let waiting = self.shared.metrics.waiting();
        let live = waiting.bytes
            + RECORD_OVERHEAD * (waiting.messages + waiting.mailboxes + waiting.sent_ids);
        if usage.bytes < SMALL_BYTES.max(2 * live) {
            return;
        }
        let Some(oldest) = self.log.oldest().filter(|oldest| !oldest.is_newest) else { return };
        self.reclaim = Some(Reclaim { segment: oldest.number, next: None, awaited: 0 });
        self.next_chunk();
    }

    /// Hands the next chunk to all shards, or the segment to the writer for deletion.
    fn next_chunk(&mut self) {
        let Some(reclaim) = &mut self.reclaim else { return };
        let mut chunk = Chunk::default();
        let read = self.log.read_segment(reclaim.segment, reclaim.next, &mut |place, record| {
            chunk.push(Place(place.to_u64()), record);
        });
        let next = match read {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(%error, "the oldest part of the store cannot be reclaimed");
                self.shared.metrics.store.read_failures.add(1);
                self.reclaim = None;
                return;
            }
        };
        reclaim.awaited = self.shared.inboxes.len();
        let is_last = next.is_none();
        let segment = reclaim.segment;
        reclaim.next = next;
        let chunk = Arc::new(chunk);
        for inbox in &self.shared.inboxes {
            inbox.store(StoreNews::Reclaim(Arc::clone(&chunk)));
        }
        if is_last {
            self.reclaim_last(segment);
        }
    }

    /// Waits for the shards' answers to the last chunk, serving fetches meanwhile.
    fn reclaim_last(&mut self, segment: u32) {
        let mut awaited = self.shared.inboxes.len();
        while awaited > 0 {
            match self.jobs.recv() {
                Ok(Job::Reclaimed) => awaited -= 1,
                Ok(job) => self.work(job),
                Err(_) => return,
            }
        }
        self.reclaim = None;
        self.log.drop_oldest(segment);
    }
}
