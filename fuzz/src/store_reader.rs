//! A segment of the log, as read at the start.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use switchboard::store::{
    Batch, Disk, DiskFile, DropError, Found, Listener, LogOptions, OpenError, Position, StoreError,
    Synced, inspect, open,
};

const HEADER_LEN: usize = 64;
const FRAME_LEN: usize = 12;
const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 4096,
    queue_max_bytes: 4096,
    max_bytes: u64::MAX,
    overrun_bytes: 0,
};

type Records = Vec<(Position, Vec<u8>)>;

/// Reads the bytes as the only file of a log.
///
/// Checked: no record with a wrong checksum is returned, and none is left out between two
/// others; an inspection changes nothing; a log whose tail was truncated is valid afterwards,
/// and can be appended to.
pub fn store_reader(data: &[u8]) {
    let disk = MemoryDisk::default();
    disk.put("00000001.seg", data);
    if let Some(id) = data.get(16..24) {
        disk.put("MANIFEST", &manifest(id));
    }
    let mut seen = Records::new();
    let looked = inspect(&disk, &mut |position, record| {
        seen.push((position, record.to_vec()));
        Ok(())
    });
    check_records(data, &seen);
    assert!(disk.bytes("00000001.seg") == data, "a look changed the file");
    let Ok(found) = looked else { return };
    assert_eq!(found.records as usize, seen.len());
    let (mended, records) = opened(&disk).expect("what could be read can be mended");
    assert_eq!((&mended, &records), (&found, &seen));
    if found.cut.is_some() {
        check_goes_on(&disk, seen);
    }
}

/// Returns a manifest by which the log is the segment with this id.
fn manifest(id: &[u8]) -> Vec<u8> {
    const PAGE_LEN: usize = 4096;
    let mut page = vec![0; PAGE_LEN];
    page[..8].copy_from_slice(b"swblist\n");
    // Version, generation, store, segments tried.
    for (at, number) in [(8, 2), (16, 1), (24, 7), (44, 1)] {
        page[at] = number;
    }
    // The oldest segment and the newest.
    for at in [48, 64] {
        page[at] = 1;
        page[at + 8..at + 16].copy_from_slice(id);
    }
    let checksum = checksum(&page[..124]);
    page[124..128].copy_from_slice(&checksum.to_le_bytes());
    page.repeat(2)
}

fn opened(disk: &MemoryDisk) -> Result<(Found, Records), OpenError> {
    let mut records = Records::new();
    let recovered = open(Arc::new(disk.clone()), OPTIONS, &mut |position, record| {
        records.push((position, record.to_vec()));
        Ok(())
    })?;
    Ok((recovered.found, records))
}

/// Checks that the records follow each other from the header on, each with its checksum.
fn check_records(data: &[u8], records: &Records) {
    let mut next = HEADER_LEN;
    for (position, record) in records {
        assert_eq!((position.segment(), position.offset() as usize), (1, next));
        let frame = &data[next..next + FRAME_LEN];
        assert_eq!(frame[..4], (record.len() as u32).to_le_bytes());
        let offset = (next as u32).to_le_bytes();
        let checked: [&[u8]; 6] =
            [&data[16..24], &data[12..16], &offset, &frame[4..8], record, &frame[..4]];
        assert_eq!(frame[8..], checksum(&checked.concat()).to_le_bytes());
        next += FRAME_LEN + record.len();
    }
}

/// Computes CRC-32C bit by bit (RFC 3720, appendix B.4), so that the check is independent of the
/// reader.
fn checksum(bytes: &[u8]) -> u32 {
    let bit = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0x82F6_3B78 } else { sum >> 1 };
    let byte = |sum: u32, &byte: &u8| (0..8).fold(sum ^ u32::from(byte), bit);
    !bytes.iter().fold(!0, byte)
}

/// Checks that the repaired log is valid, and takes another record.
fn check_goes_on(disk: &MemoryDisk, mut records: Records) {
    let recovered = open(Arc::new(disk.clone()), OPTIONS, &mut |_, _| Ok(()));
    let recovered = recovered.expect("what was mended opens");
    assert_eq!(recovered.found.cut, None, "a cut is lasting");
    let log = recovered.start(Box::new(Deaf)).expect("a thread starts");
    let mut batch = Batch::default();
    batch.push(b"one more");
    log.submit(0, batch).expect("the queue is empty");
    log.close().expect("memory does not fail");
    let (_, after) = opened(disk).expect("what was written opens");
    let (position, last) = after.last().expect("there is the new record");
    assert_eq!(last, b"one more");
    records.push((*position, last.clone()));
    assert_eq!(after, records);
}

/// A listener that ignores events.
struct Deaf;

impl Listener for Deaf {
    fn synced(&self, _shard: usize, _batches: Vec<Synced>) {}
    fn room(&self, _shard: usize) {}
    fn failing(&self, error: &StoreError) {
        panic!("{error}");
    }
    fn healthy(&self) {}
    fn dropped(&self, _segment: u32, _result: Result<(), DropError>) {}
}

/// Files in memory, shared by clones.
#[derive(Clone, Debug, Default)]
struct MemoryDisk(Arc<Mutex<BTreeMap<String, MemoryFile>>>);

#[derive(Clone, Debug, Default)]
struct MemoryFile(Arc<Mutex<Vec<u8>>>);

impl MemoryDisk {
    fn put(&self, name: &str, bytes: &[u8]) {
        let file = MemoryFile(Arc::new(Mutex::new(bytes.to_vec())));
        self.0.lock().expect("nobody panics").insert(name.to_owned(), file);
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.lock().expect("nobody panics")[name].with(|bytes| bytes.clone())
    }
}

impl MemoryFile {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        act(&mut self.0.lock().expect("nobody panics"))
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().expect("nobody panics").keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.put(name, b"");
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let files = self.0.lock().expect("nobody panics");
        Ok(Box::new(files.get(name).ok_or(io::ErrorKind::NotFound)?.clone()))
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        let removed = self.0.lock().expect("nobody panics").remove(name);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn fresh_id(&self) -> io::Result<u64> {
        Ok(7)
    }
}

impl DiskFile for MemoryFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.with(|bytes| bytes.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.with(|bytes| {
            let found = &bytes[bytes.len().min(offset as usize)..];
            let len = found.len().min(buffer.len());
            buffer[..len].copy_from_slice(&found[..len]);
            len
        }))
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.with(|bytes| {
            let mut at = offset as usize;
            for slice in slices {
                bytes.resize(bytes.len().max(at + slice.len()), 0);
                bytes[at..at + slice.len()].copy_from_slice(slice);
                at += slice.len();
            }
        });
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|bytes| bytes.resize(bytes.len().max(len as usize), 0));
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.with(|bytes| bytes.truncate(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}
