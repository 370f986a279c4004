//! Tests of the log: on a disk that crashes, on damaged files, on the real disk.

pub(crate) mod crash_disk;
mod damage;
mod hang;
mod random;
mod real;
mod space;
mod turns;
mod world;

use std::sync::{Arc, Mutex};

use super::{
    Admits, Batch, Disk, DropError, Listener, LogOptions, OpenError, Position, Recovered,
    StoreError, Synced, open,
};

/// A call of the listener.
#[derive(Debug)]
enum Told {
    Synced(usize, Vec<(Position, Vec<u8>)>),
    Room(usize),
    Failing,
    Healthy,
    Admits(Admits),
    Dropped(u32, Result<(), DropError>),
}

/// A listener that keeps all calls.
#[derive(Clone, Debug, Default)]
struct Ears(Arc<Mutex<Vec<Told>>>);

impl Ears {
    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn hear(&self, told: Told) {
        self.0.lock().unwrap().push(told);
    }
}

impl Listener for Ears {
    fn synced(&self, shard: usize, batches: Vec<Synced>) {
        let records = batches.iter().flat_map(|synced| {
            let records = synced.batch.records().map(<[u8]>::to_vec);
            synced.positions().zip(records).collect::<Vec<_>>()
        });
        self.hear(Told::Synced(shard, records.collect()));
    }

    fn room(&self, shard: usize) {
        self.hear(Told::Room(shard));
    }

    fn failing(&self, _error: &StoreError) {
        self.hear(Told::Failing);
    }

    fn admits(&self, admits: Admits) {
        self.hear(Told::Admits(admits));
    }

    fn healthy(&self) {
        self.hear(Told::Healthy);
    }

    fn dropped(&self, segment: u32, result: Result<(), DropError>) {
        self.hear(Told::Dropped(segment, result));
    }
}

/// A log and the records that it replayed.
type Opened = (Recovered, Vec<(Position, Vec<u8>)>);

fn reopen(disk: &(impl Disk + Clone + 'static), options: LogOptions) -> Result<Opened, OpenError> {
    let mut records = Vec::new();
    let recovered = open(Arc::new(disk.clone()), options, &mut |position, record| {
        records.push((position, record.to_vec()));
        Ok(())
    })?;
    Ok((recovered, records))
}

fn batch(records: &[&[u8]]) -> Batch {
    let mut batch = Batch::default();
    records.iter().for_each(|record| batch.push(record));
    batch
}
