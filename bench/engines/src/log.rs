//! Our own log: message and id are one record, a removal is another, and what still counts of the
//! oldest segment is appended again before the segment goes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, bail, ensure};
use switchboard::store::{
    self, Batch, DataDir, DropError, Listener, Log, Options, Position, StoreError, Synced,
};

use crate::engine::{BODY, Engine, id, mailbox};

const MESSAGE: u8 = 1;
const REMOVAL: u8 = 2;
/// As in the server: a log up to this size is left alone, then half of it may be dead.
const SMALL_BYTES: u64 = 192 << 20;
const RECORD_BYTES: u64 = 320;

pub(crate) struct OwnLog {
    log: Log,
    news: Receiver<News>,
    /// Where each message lies that waits.
    places: HashMap<u64, Position>,
}

enum News {
    Synced(Vec<Synced>),
    Failing(String),
    Dropped(Result<(), DropError>),
}

struct Tell(Sender<News>);

impl Listener for Tell {
    fn synced(&self, _: usize, batches: Vec<Synced>) {
        self.0.send(News::Synced(batches)).ok();
    }

    fn room(&self, _: usize) {}

    fn failing(&self, error: &StoreError) {
        self.0.send(News::Failing(error.to_string())).ok();
    }

    fn healthy(&self) {}

    fn dropped(&self, _: u32, result: Result<(), DropError>) {
        self.0.send(News::Dropped(result)).ok();
    }
}

impl OwnLog {
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let disk = Arc::new(DataDir::open(folder)?);
        let mut places = HashMap::new();
        let recovered = store::open(disk, Options::default(), &mut |place, record| {
            let (kind, number) = read(record).ok_or("a short record")?;
            match kind {
                MESSAGE => drop(places.insert(number, place)),
                _ => drop(places.remove(&number)),
            }
            Ok(())
        })?;
        let (tell, news) = channel();
        Ok(Self { log: recovered.start(Box::new(Tell(tell)))?, news, places })
    }

    /// Hands in a batch and waits until it is durable.
    fn commit(&mut self, batch: Batch) -> anyhow::Result<Vec<Synced>> {
        if self.log.submit(0, batch).is_err() {
            bail!("the log takes no more");
        }
        loop {
            match self.news.recv().context("the log has ended")? {
                News::Synced(batches) => return Ok(batches),
                News::Failing(error) => bail!(error),
                News::Dropped(_) => {}
            }
        }
    }

    /// Notes where messages lie that became durable.
    fn note(&mut self, synced: &[Synced]) {
        for synced in synced {
            for (place, record) in synced.places().zip(synced.batch.records()) {
                if let Some((MESSAGE, number)) = read(record) {
                    self.places.insert(number, place);
                }
            }
        }
    }

    /// Empties the oldest segment and deletes it.
    fn reclaim(&mut self, segment: u32) -> anyhow::Result<()> {
        let mut next = None;
        loop {
            let (mut batch, places) = (Batch::default(), &self.places);
            next = self.log.read_segment(segment, next, &mut |place, record| {
                if read(record).is_some_and(|(_, number)| places.get(&number) == Some(&place)) {
                    batch.push(record);
                }
            })?;
            if !batch.is_empty() {
                let synced = self.commit(batch)?;
                self.note(&synced);
            }
            if next.is_none() {
                break;
            }
        }
        self.log.drop_oldest(segment);
        match self.news.recv()? {
            News::Dropped(dropped) => Ok(dropped?),
            _ => bail!("nothing else was asked"),
        }
    }
}

impl Engine for OwnLog {
    fn append(&mut self, first: u64, count: u64) -> anyhow::Result<()> {
        let mut batch = Batch::default();
        for number in first..first + count {
            batch.push_with(|out| {
                out.push(MESSAGE);
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&mailbox(number).to_le_bytes());
                out.extend_from_slice(&id(number));
                out.extend_from_slice(&BODY);
            });
        }
        let synced = self.commit(batch)?;
        self.note(&synced);
        Ok(())
    }

    fn remove(&mut self, numbers: &[u64]) -> anyhow::Result<()> {
        let mut batch = Batch::default();
        for &number in numbers {
            batch.push_with(|out| {
                out.push(REMOVAL);
                out.extend_from_slice(&number.to_le_bytes());
            });
            self.places.remove(&number);
        }
        self.commit(batch)?;
        Ok(())
    }

    fn index(&mut self) -> anyhow::Result<u64> {
        let mut mailboxes: HashMap<u64, Vec<u64>> = HashMap::new();
        for &number in self.places.keys() {
            mailboxes.entry(mailbox(number)).or_default().push(number);
        }
        Ok(mailboxes.values().map(|numbers| numbers.len() as u64).sum())
    }

    fn compact(&mut self) -> anyhow::Result<()> {
        let live = self.places.len() as u64 * RECORD_BYTES;
        while self.log.usage().bytes > SMALL_BYTES.max(2 * live) {
            let oldest = self.log.oldest().context("there is a segment")?;
            ensure!(!oldest.is_newest, "the newest segment is never reclaimed");
            self.reclaim(oldest.number)?;
        }
        Ok(())
    }
}

/// Kind and number of a record.
fn read(record: &[u8]) -> Option<(u8, u64)> {
    let (&kind, rest) = record.split_first()?;
    Some((kind, u64::from_le_bytes(*rest.first_chunk()?)))
}
