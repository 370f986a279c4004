//! Damaged files: a tail that a crash tore is cut, anything else is refused.

use std::io::IoSlice;

use super::crash_disk::CrashDisk;
use super::{Ears, batch, reopen};
use crate::store::queue::Entry;
use crate::store::segment::{HEADER_LEN, Header};
use crate::store::{OpenError, Options, Place, ReadError};

const OPTIONS: Options =
    Options { segment_bytes: 1024, queue_max_bytes: 1 << 20, max_bytes: u64::MAX };

/// Record sizes of one write, of the next, and so on.
type Writes<'a> = &'a [&'a [usize]];

/// A log with these writes, each in one batch; an empty one begins a new segment.
fn log(writes: Writes<'_>) -> (CrashDisk, Vec<(Place, Vec<u8>)>) {
    let disk = CrashDisk::new(3);
    let (mut log, _) = reopen(&disk, OPTIONS).unwrap();
    for (n, lens) in writes.iter().enumerate() {
        let records: Vec<_> = lens.iter().map(|&len| vec![n as u8 + 1; len]).collect();
        let records: Vec<_> = records.iter().map(Vec::as_slice).collect();
        if records.is_empty() {
            log.shared.queue.ask(Entry::Roll);
        } else {
            log.shared.queue.submit(0, batch(&records), &log.shared.stats).unwrap();
        }
        log.writer.step(&Ears::default());
    }
    let (_, records) = reopen(&disk, OPTIONS).unwrap();
    (disk, records)
}

/// The disk with one file changed.
fn with(disk: &CrashDisk, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> CrashDisk {
    let disk = disk.crash(super::crash_disk::Loss::Process);
    let mut bytes = disk.content(name);
    change(&mut bytes);
    disk.put(name, &bytes);
    disk
}

#[test]
fn a_flipped_bit_is_cut_in_the_last_write_and_refused_before_it() {
    let (disk, records) = log(&[&[10, 20], &[30, 5], &[8, 0, 40]]);
    let last_write = records[4].0.offset();
    let end = records[6].0.offset() + 12 + 40;
    for at in 0..end {
        // The header's last bytes mean nothing yet.
        let is_unused = (36..HEADER_LEN).contains(&at);
        let damaged = with(&disk, "00000001.seg", |bytes| bytes[at as usize] ^= 0x10);
        let intact: Vec<_> = records
            .iter()
            .filter(|(place, record)| place.offset() + 12 + record.len() as u32 <= at)
            .cloned()
            .collect();
        match reopen(&damaged, OPTIONS) {
            Ok((_, found)) if is_unused => assert_eq!(found, records),
            Ok((recovered, found)) => {
                assert!(at >= last_write, "a flip at {at} went unnoticed");
                assert_eq!(found, intact);
                assert!(recovered.found.cut.unwrap().offset <= at);
                let (again, same) = reopen(&damaged, OPTIONS).unwrap();
                assert_eq!((again.found.cut, same), (None, intact), "the cut is lasting");
            }
            Err(OpenError::Damaged { offset, .. }) => {
                assert!(at < last_write && offset <= u64::from(at), "at {at}: {offset}");
            }
            Err(error) => panic!("at {at}: {error}"),
        }
    }
}

#[test]
fn an_earlier_segment_may_not_be_damaged_anywhere() {
    let (disk, records) = log(&[&[10, 20], &[], &[30]]);
    let end = records[1].0.offset() + 12 + 20;
    for at in (0..36).chain(HEADER_LEN..end) {
        let damaged = with(&disk, "00000001.seg", |bytes| bytes[at as usize] ^= 1);
        let error = reopen(&damaged, OPTIONS).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "at {at}: {error}");
    }
    let behind = with(&disk, "00000001.seg", |bytes| bytes.extend([1; 40]));
    assert_eq!(reopen(&behind, OPTIONS).unwrap().1, records, "what lies behind its end is nothing");
}

#[test]
fn a_record_of_another_place_is_none() {
    let (disk, records) = log(&[&[10], &[10], &[], &[10], &[10]]);
    let frame_at =
        |nth: usize| records[nth].0.offset() as usize..records[nth].0.offset() as usize + 22;
    let record = |nth: usize| {
        let name = if nth < 2 { "00000001.seg" } else { "00000002.seg" };
        disk.content(name)[frame_at(nth)].to_vec()
    };
    for from in 0..3 {
        let damaged = with(&disk, "00000002.seg", |bytes| {
            bytes[frame_at(3)].copy_from_slice(&record(from));
        });
        assert_eq!(reopen(&damaged, OPTIONS).unwrap().1, records[..3], "record {from}");
    }
}

#[test]
fn a_file_that_ends_early_is_cut_in_the_last_write_and_refused_before_it() {
    let (disk, records) = log(&[&[10, 20], &[300, 7]]);
    let last_write = records[2].0.offset();
    for len in 0..records[3].0.offset() + 12 + 7 {
        let short = with(&disk, "00000001.seg", |bytes| bytes.truncate(len as usize));
        let intact = records
            .iter()
            .filter(|(place, record)| place.offset() + 12 + record.len() as u32 <= len);
        let (_, found) = reopen(&short, OPTIONS).unwrap();
        assert!(found.iter().eq(intact), "{len} bytes, last write at {last_write}");
    }
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let writes: Writes<'_> = &[&[10], &[], &[20], &[], &[30]];
    type Change = fn(&CrashDisk);
    let cases: [(&str, Change, &str); 4] = [
        (
            "missing",
            |disk| delete(disk, "00000002.seg"),
            "00000002.seg is damaged at byte 0: the file is missing",
        ),
        (
            "renamed",
            |disk| disk.put("00000003.seg", &disk.content("00000002.seg")),
            "00000003.seg is damaged at byte 0: it is another segment, renamed",
        ),
        (
            "short",
            |disk| disk.put("00000001.seg", &disk.content("00000001.seg")[..80]),
            "00000001.seg is damaged at byte 80: the file ends too early",
        ),
        (
            "newer",
            |disk| disk.put("00000003.seg", &newer(&disk.content("00000003.seg"))),
            "00000003.seg has format version 2, and this program knows versions up to 1",
        ),
    ];
    for (case, change, expected) in cases {
        let (disk, _) = log(writes);
        change(&disk);
        assert_eq!(reopen(&disk, OPTIONS).unwrap_err().to_string(), expected, "{case}");
    }
}

fn delete(disk: &CrashDisk, name: &str) {
    crate::store::Disk::delete(disk, name).unwrap();
}

fn newer(segment: &[u8]) -> Vec<u8> {
    let header = Header::from_bytes(segment).unwrap();
    Header { version: 2, ..header }.to_bytes().to_vec()
}

#[test]
fn the_oldest_segments_and_unfinished_ones_may_be_missing() {
    let (disk, records) = log(&[&[10], &[], &[20], &[], &[30]]);
    delete(&disk, "00000001.seg");
    disk.put("00000004.seg", &disk.content("00000003.seg")[..20]);
    disk.put("lost+found", b"");
    let (recovered, found) = reopen(&disk, OPTIONS).unwrap();
    assert_eq!(found, records[1..]);
    assert_eq!(recovered.found.abandoned, ["00000004.seg"]);
    assert_eq!(reopen(&disk, OPTIONS).unwrap().0.found.abandoned, [""; 0]);
}

#[test]
fn a_record_that_the_owner_refuses_ends_the_start() {
    let (disk, records) = log(&[&[10, 20]]);
    let mut refuse_second = |place, _: &[u8]| {
        if place == records[1].0 { Err("no such kind".to_owned()) } else { Ok(()) }
    };
    let error = crate::store::inspect(&disk, &mut refuse_second).unwrap_err().to_string();
    assert_eq!(error, "00000001.seg has a record at byte 86 that cannot be used: no such kind");
}

#[test]
fn a_running_log_reads_on_behind_what_is_damaged() {
    let (disk, records) = log(&[&[10, 20], &[30, 5], &[8, 0, 40]]);
    let (open, _) = reopen(&disk, OPTIONS).unwrap();
    let segment = open.shared.segment(1).unwrap();
    let offset = |nth: usize| records[nth].0.offset();
    for hit in 0..records.len() {
        let at = offset(hit) + 9;
        let byte = disk.content("00000001.seg")[at as usize];
        let put = |byte: u8| {
            segment.file.write_at(&mut [IoSlice::new(&[byte])], u64::from(at)).unwrap();
        };
        put(!byte);
        let mut found = Vec::new();
        let read = open.shared.read_segment(1, None, &mut |place, _| found.push(place));
        assert!(
            matches!(read, Err(ReadError::Damaged { offset: at, .. }) if at == offset(hit)),
            "{read:?}"
        );
        assert_eq!(found.len(), hit);
        let next = segment.next_intact(offset(hit), segment.end()).unwrap();
        assert_eq!(next, records.get(hit + 1).map(|(place, _)| place.offset()));
        put(byte);
    }
}
