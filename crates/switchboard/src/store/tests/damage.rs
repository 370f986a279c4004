//! Damaged files: a tail that a crash tore is cut, anything else is refused.

use std::io::IoSlice;

use super::crash_disk::{CrashDisk, Loss};
use super::{Ears, batch, reopen};
use crate::store::queue::Entry;
use crate::store::segment::{HEADER_LEN, Header, Previous, Walk};
use crate::store::{Disk, Known, LogOptions, OpenError, Position, ReadError, Recovered, StateOf};

const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 1024,
    queue_max_bytes: 1 << 20,
    max_bytes: u64::MAX,
    overrun_bytes: 0,
};

/// Record sizes of one write, of the next, and so on.
type Writes<'a> = &'a [&'a [usize]];
/// Records with their positions.
type Records = Vec<(Position, Vec<u8>)>;
/// Changes a disk.
type Change<'a> = Box<dyn Fn(&CrashDisk) + 'a>;

/// A log with these writes, each in one batch; an empty one begins a new segment.
fn log(writes: Writes<'_>) -> (CrashDisk, Records) {
    let (disk, _, records) = log_and_tips(writes);
    (disk, records)
}

/// The same log with the manifest from before the last write: the state after a crash in which the
/// write reached the disk and its note in the manifest did not.
fn interrupted(writes: Writes<'_>) -> (CrashDisk, Records) {
    let (disk, manifest, records) = log_and_tips(writes);
    disk.put("MANIFEST", &manifest);
    (disk, records)
}

fn log_and_tips(writes: Writes<'_>) -> (CrashDisk, Vec<u8>, Records) {
    written(CrashDisk::new(3), writes)
}

fn written(disk: CrashDisk, writes: Writes<'_>) -> (CrashDisk, Vec<u8>, Records) {
    let (mut log, _) = reopen(&disk, OPTIONS).unwrap();
    let mut manifest = Vec::new();
    for (n, lens) in writes.iter().enumerate() {
        let records: Vec<_> = lens.iter().map(|&len| vec![n as u8 + 1; len]).collect();
        let records: Vec<_> = records.iter().map(Vec::as_slice).collect();
        manifest = disk.content("MANIFEST");
        if records.is_empty() {
            log.shared.queue.ask(Entry::Roll);
        } else {
            log.shared.queue.submit(0, batch(&records), &log.shared.stats).unwrap();
        }
        log.writer.step(&Ears::default());
    }
    let (_, records) = reopen(&disk.crash(Loss::Process), OPTIONS).unwrap();
    (disk, manifest, records)
}

/// The disk with one file changed.
fn with(disk: &CrashDisk, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> CrashDisk {
    let disk = disk.crash(Loss::Process);
    let mut bytes = disk.content(name);
    change(&mut bytes);
    disk.put(name, &bytes);
    disk
}

#[test]
fn a_flipped_bit_is_cut_in_the_last_write_and_refused_before_it() {
    let (disk, records) = interrupted(&[&[10, 20], &[30, 5], &[8, 0, 40]]);
    let last_write = records[4].0.offset();
    let end = records[6].0.offset() + 12 + 40;
    for at in 0..end {
        // The header's last bytes mean nothing yet.
        let is_unused = (48..HEADER_LEN).contains(&at);
        let damaged = with(&disk, "00000001.seg", |bytes| bytes[at as usize] ^= 0x10);
        let intact: Vec<_> = records
            .iter()
            .filter(|(position, record)| position.offset() + 12 + record.len() as u32 <= at)
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
    let (disk, records) = interrupted(&[&[10], &[10], &[], &[10], &[10]]);
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
    let (disk, records) = interrupted(&[&[10, 20], &[300, 7]]);
    let last_write = records[2].0.offset();
    for len in 0..records[3].0.offset() + 12 + 7 {
        let short = with(&disk, "00000001.seg", |bytes| bytes.truncate(len as usize));
        let intact = records
            .iter()
            .filter(|(position, record)| position.offset() + 12 + record.len() as u32 <= len);
        match reopen(&short, OPTIONS) {
            Ok((_, found)) => {
                assert!(found.iter().eq(intact) && len >= last_write, "{len} bytes");
            }
            Err(error) => assert!(len < last_write, "{len} bytes: {error}"),
        }
    }
}

/// If the last bit of an accepted message rotted after a kill -9, the message once passed for a
/// write that the crash had interrupted, and was cut off without a word.
#[test]
fn what_was_noted_as_synced_is_never_taken_for_an_interrupted_write() {
    let (disk, records) = log(&[&[10, 20], &[30, 5], &[8, 0, 40]]);
    let end = records[6].0.offset() + 12 + 40;
    for at in HEADER_LEN..end {
        let flipped = with(&disk, "00000001.seg", |bytes| bytes[at as usize] ^= 0x10);
        let short = with(&disk, "00000001.seg", |bytes| bytes.truncate(at as usize));
        let zeroed = with(&disk, "00000001.seg", |bytes| bytes[at as usize..].fill(0));
        for (case, damaged) in [("flipped", flipped), ("short", short), ("zeroed", zeroed)] {
            let error = reopen(&damaged, OPTIONS).map(|_| ()).unwrap_err();
            assert!(matches!(error, OpenError::Damaged { .. }), "{case} at {at}: {error}");
        }
    }
}

#[test]
fn nothing_follows_a_clean_stop() {
    let (disk, records) = log(&[&[10, 20], &[30]]);
    let (log, _) = reopen(&disk, OPTIONS).unwrap();
    log.shared.manifest().close().unwrap();
    let end = records[2].0.offset() as usize + 12 + 30;
    assert_eq!(reopen(&disk.crash(Loss::Process), OPTIONS).unwrap().1, records);
    let more = with(&disk, "00000001.seg", |bytes| bytes[end + 9] = 1);
    let error = reopen(&more, OPTIONS).unwrap_err().to_string();
    assert!(error.contains("the log had been closed here"), "{error}");
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let writes: Writes<'_> = &[&[10], &[], &[20], &[], &[30]];
    let (other, _) = log(&[&[10], &[], &[20], &[], &[30]]);
    let (early, _) = log(&[&[10], &[], &[20]]);
    let cases: Vec<(&str, Change<'_>, &str)> = vec![
        (
            "oldest missing",
            Box::new(|disk| delete(disk, "00000001.seg")),
            "00000001.seg is missing",
        ),
        ("missing", Box::new(|disk| delete(disk, "00000002.seg")), "00000002.seg is missing"),
        (
            "newest missing",
            Box::new(|disk| delete(disk, "00000003.seg")),
            "00000003.seg is missing",
        ),
        (
            "no manifest",
            Box::new(|disk| delete(disk, "MANIFEST")),
            "MANIFEST is missing, and the log has segments",
        ),
        (
            "damaged manifest",
            Box::new(|disk| disk.put("MANIFEST", &[0; 8192])),
            "MANIFEST is damaged",
        ),
        (
            "manifest rolled back",
            Box::new(|disk| disk.put("MANIFEST", &early.content("MANIFEST"))),
            "00000003.seg is newer than any segment that MANIFEST knows",
        ),
        (
            "renamed",
            Box::new(|disk| disk.put("00000003.seg", &disk.content("00000002.seg"))),
            "00000003.seg is damaged at byte 0: it is another segment, renamed",
        ),
        (
            "of another log",
            Box::new(|disk| disk.put("00000002.seg", &foreign(&other.content("00000002.seg")))),
            "00000002.seg belongs to another log",
        ),
        (
            "short",
            Box::new(|disk| disk.put("00000001.seg", &disk.content("00000001.seg")[..80])),
            "00000001.seg is damaged at byte 80: the file ends too early",
        ),
        (
            "newer",
            Box::new(|disk| disk.put("00000003.seg", &of(4, &disk.content("00000003.seg")))),
            "00000003.seg has format version 4, and this program knows versions up to 3",
        ),
    ];
    for (case, change, expected) in cases {
        let (disk, _) = log(writes);
        change(&disk);
        assert_eq!(reopen(&disk, OPTIONS).unwrap_err().to_string(), expected, "{case}");
    }
}

#[test]
fn one_damaged_copy_of_the_manifest_is_replaced_by_the_other() {
    let (disk, records) = log(&[&[10], &[], &[20], &[30]]);
    for at in (0..128).chain(4096..4096 + 128) {
        let damaged = with(&disk, "MANIFEST", |bytes| bytes[at] ^= 1);
        assert_eq!(reopen(&damaged, OPTIONS).unwrap().1, records, "at {at}");
    }
}

/// Both copies were once read with a single read, so one lost sector lost both, and the lost slot
/// could not be written again.
#[test]
fn one_copy_of_the_manifest_that_cannot_be_read_is_replaced_by_the_other() {
    let (disk, records) = log(&[&[10], &[], &[20], &[30]]);
    for at in [0, 4096] {
        let damaged = disk.crash(Loss::Process);
        damaged.lose("MANIFEST", at);
        let Known::Listed(log) = crate::store::identify(&damaged).unwrap() else {
            panic!("listed")
        };
        assert!(log.is_half);
        assert_eq!(reopen(&damaged, OPTIONS).unwrap().1, records, "at {at}");
        let Known::Listed(log) = crate::store::identify(&damaged).unwrap() else {
            panic!("listed")
        };
        assert!(!log.is_half);
    }
    for at in [0, 4096] {
        disk.lose("MANIFEST", at);
    }
    let error = reopen(&disk, OPTIONS).unwrap_err();
    assert!(error.to_string().starts_with("cannot read MANIFEST at byte "), "{error}");
}

#[test]
fn a_segment_that_cannot_be_read_is_named_with_the_byte() {
    let (disk, _) = log(&[&[5_000, 5_000]]);
    let all = salvaged(&disk).1;
    disk.lose("00000001.seg", 6_000);
    let error = reopen(&disk, OPTIONS).unwrap_err();
    assert!(error.to_string().starts_with("cannot read 00000001.seg at byte 4096: "), "{error}");
    assert!(matches!(error, OpenError::Io(error) if error.is_damage()));
    assert_eq!(salvaged(&disk).1.len(), all.len() - 2, "both records have a part in the page");
    disk.lose("MANIFEST", 0);
    disk.lose("MANIFEST", 4096);
    salvaged(&disk);
}

fn salvaged(disk: &CrashDisk) -> (crate::store::Salvaged, Vec<Vec<u8>>) {
    let mut found = Vec::new();
    let salvaged = crate::store::salvage(disk, None, &mut |record| found.push(record.to_vec()));
    (salvaged.unwrap(), found)
}

#[test]
fn all_but_the_damaged_records_are_salvaged() {
    let (disk, records) = log(&[&[10, 20], &[30], &[], &[20, 7], &[], &[30, 9]]);
    let all: Vec<_> = records.iter().map(|(_, record)| record.clone()).collect();
    assert_eq!(salvaged(&disk).1, all);
    assert_eq!(salvaged(&disk).0.faults, [""; 0]);
    for name in ["00000001.seg", "00000002.seg", "00000003.seg"] {
        let used = disk.content(name).iter().rposition(|&byte| byte != 0).unwrap() + 1;
        for at in (0..48).chain(64..used) {
            let damaged = with(&disk, name, |bytes| bytes[at] ^= 0x10);
            let (salvaged, found) = salvaged(&damaged);
            assert_eq!(salvaged.faults.len(), 1, "{name} at {at}: {salvaged:?}");
            // A header's loss costs nothing: the id is known elsewhere.
            let lost = usize::from(at >= 64);
            assert_eq!(found.len(), all.len() - lost, "{name} at {at}: {salvaged:?}");
            assert_eq!(salvaged.lost_bytes > 0, lost > 0);
        }
        let missing = disk.crash(Loss::Process);
        delete(&missing, name);
        assert_eq!(salvaged(&missing).0.faults, [format!("{name} is missing")]);
    }
}

/// A repair once gave up both segments.
#[test]
fn segments_whose_names_were_exchanged_are_salvaged() {
    let (disk, records) = log(&[&[10, 20], &[], &[20, 7], &[], &[30, 9]]);
    let (first, second) = (disk.content("00000001.seg"), disk.content("00000002.seg"));
    disk.put("00000001.seg", &second);
    disk.put("00000002.seg", &first);
    let (found_faults, found) = salvaged(&disk);
    let renamed =
        ["00000001.seg is 00000002.seg, renamed", "00000002.seg is 00000001.seg, renamed"];
    assert_eq!(found_faults.faults, renamed);
    assert_eq!(found, records.into_iter().map(|(_, record)| record).collect::<Vec<_>>());
    // One that nobody names is another log's.
    let header = Header { number: 7, ..Header::from_bytes(&first).unwrap() };
    disk.put("00000001.seg", &[&header.to_bytes()[..], &first[64..]].concat());
    disk.put("00000002.seg", &second);
    assert_eq!(salvaged(&disk).1.len(), 4);
}

/// The end of a sound segment was once given up, and the messages of another server were taken in.
#[test]
fn a_segment_of_another_log_is_named_and_none_of_its_records_taken() {
    let other = CrashDisk::new(4);
    // So that it draws other ids.
    (0..100).for_each(|_| drop(Disk::fresh_id(&other)));
    let (other, ..) = written(other, &[&[10], &[], &[20], &[], &[30]]);
    let (disk, records) = log(&[&[10, 20], &[], &[20, 7]]);
    let all: Vec<_> = records.into_iter().map(|(_, record)| record).collect();
    for (stray, faults) in [
        ("00000003.seg", vec!["00000003.seg belongs to another log"]),
        ("00000002.seg", vec!["00000002.seg belongs to another log", "00000002.seg is missing"]),
    ] {
        let with_stray = disk.crash(Loss::Process);
        with_stray.put(stray, &other.content(stray));
        let own = if stray == "00000002.seg" { 2 } else { 4 };
        assert_eq!(salvaged(&with_stray).1, all[..own], "{stray}");
        assert_eq!(salvaged(&with_stray).0.faults, faults);
    }
    // Such a segment is not taken if the manifest is lost as well: more of the segments say
    // otherwise.
    disk.put("00000003.seg", &other.content("00000003.seg"));
    delete(&disk, "MANIFEST");
    assert_eq!(salvaged(&disk).1, all);
}

/// The segment of a copy of the log that diverged: it names the right segment as the one
/// before, and ends it too early.
#[test]
fn a_segment_of_a_copy_of_the_log_ends_nothing_that_is_durable() {
    let (short, ..) = written(CrashDisk::new(3), &[&[10], &[], &[40]]);
    let (disk, records) = log(&[&[10], &[20]]);
    let all: Vec<_> = records.into_iter().map(|(_, record)| record).collect();
    let header = |disk: &CrashDisk| Header::from_bytes(&disk.content("00000001.seg")).unwrap();
    assert_eq!(header(&disk).id, header(&short).id, "they begin as one");
    disk.put("00000002.seg", &short.content("00000002.seg"));
    let (salvaged, found) = salvaged(&disk);
    assert_eq!((found, salvaged.faults), (all, vec!["00000002.seg belongs to another log".into()]));
}

/// A segment that is linked to nothing, because a header between is lost, is taken all the same.
#[test]
fn a_segment_between_two_that_are_lost_is_salvaged() {
    let (disk, records) = log(&[&[10], &[], &[11], &[], &[12], &[], &[13], &[], &[14]]);
    delete(&disk, "00000002.seg");
    delete(&disk, "00000004.seg");
    let own = [0, 2, 4].map(|nth: usize| records[nth].1.clone());
    for manifest in ["there", "lost"] {
        let (salvaged, found) = salvaged(&disk);
        assert_eq!(found, own, "the manifest is {manifest}");
        assert_eq!(salvaged.faults, ["00000002.seg is missing", "00000004.seg is missing"]);
        if manifest == "there" {
            delete(&disk, "MANIFEST");
        }
    }
}

/// A manifest that was copied from a backup by itself names segments that were dropped long ago.
#[test]
fn a_manifest_that_is_older_than_the_state_is_not_believed() {
    let (disk, records) = log(&[&[10], &[], &[20], &[], &[30]]);
    let early = disk.content("MANIFEST");
    let (log, _) = reopen(&disk, OPTIONS).unwrap();
    let note = log.state_note();
    note.set(5, 0).unwrap();
    let state = StateOf { store: note.store(), generation: 5 };
    let disk = disk.crash(Loss::Process);
    disk.put("MANIFEST", &early);
    delete(&disk, "00000001.seg");
    let mut found = Vec::new();
    let mut visit = |record: &[u8]| found.push(record.to_vec());
    let salvaged = crate::store::salvage(&disk, Some(state), &mut visit).unwrap();
    assert_eq!(found, [records[1].1.clone(), records[2].1.clone()]);
    assert_eq!(salvaged.faults, [""; 0]);
}

fn foreign(segment: &[u8]) -> Vec<u8> {
    let header = Header::from_bytes(segment).unwrap();
    let header = Header { id: header.id + 1000, ..header }.to_bytes();
    [&header[..], &segment[64..]].concat()
}

fn delete(disk: &CrashDisk, name: &str) {
    crate::store::Disk::delete(disk, name).unwrap();
}

/// A newer manifest once passed for a damaged one, and was written over where there was no segment.
#[test]
fn a_manifest_of_another_version_is_refused_and_left_as_it_is() {
    let (full, _) = log(&[&[10]]);
    let empty = CrashDisk::new(0);
    drop(reopen(&empty, OPTIONS).unwrap());
    for (disk, version) in [(&full, 1), (&empty, 1), (&full, 3), (&empty, 3)] {
        let mut other = disk.content("MANIFEST");
        for slot in [0, 4096] {
            other[slot + 8..slot + 12].copy_from_slice(&u32::to_le_bytes(version));
            let checksum = crc32c::crc32c(&other[slot..slot + 124]);
            other[slot + 124..slot + 128].copy_from_slice(&checksum.to_le_bytes());
        }
        disk.put("MANIFEST", &other);
        is_refused_as(version, disk);
        assert_eq!(disk.content("MANIFEST"), other);
    }
}

/// Nobody is to repair what is sound, and only of another version.
#[test]
fn a_segment_of_another_version_is_refused_also_without_a_manifest() {
    for version in [1, 2, 4] {
        let (disk, _) = log(&[&[10], &[], &[20]]);
        disk.put("00000001.seg", &of(version, &disk.content("00000001.seg")));
        is_refused_as(version, &disk);
        delete(&disk, "MANIFEST");
        is_refused_as(version, &disk);
    }
}

fn is_refused_as(version: u32, disk: &CrashDisk) {
    let opened = reopen(disk, OPTIONS).map(|_| ()).unwrap_err();
    let salvaged = crate::store::salvage(disk, None, &mut |_| ()).unwrap_err();
    for error in [opened, salvaged] {
        assert!(!error.is_damage(), "{error}");
        assert!(error.to_string().contains(&format!("has format version {version}")), "{error}");
    }
}

/// Returns a segment with the header of another version, of whose fields only the first are known.
fn of(version: u32, segment: &[u8]) -> Vec<u8> {
    let mut header = Header { version, ..Header::from_bytes(segment).unwrap() }.to_bytes();
    header[36..64].fill(7);
    [&header[..], &segment[64..]].concat()
}

#[test]
fn dropped_segments_and_unfinished_ones_may_be_there_again() {
    let (disk, records) = log(&[&[10], &[], &[20], &[], &[30]]);
    let first = disk.content("00000001.seg");
    let (mut log, _) = reopen(&disk, OPTIONS).unwrap();
    log.shared.queue.ask(Entry::Drop { segment: 1 });
    log.writer.step(&Ears::default());
    disk.put("00000001.seg", &first);
    disk.put("00000004.seg", &disk.content("00000003.seg")[..20]);
    disk.put("lost+found", b"");
    let (recovered, found) = reopen(&disk, OPTIONS).unwrap();
    assert_eq!(found, records[1..]);
    assert_eq!(recovered.found.abandoned, ["00000001.seg", "00000004.seg"]);
    assert_eq!(reopen(&disk, OPTIONS).unwrap().0.found.abandoned, [""; 0]);
}

/// Segments of another store, put into `log/` by mistake, were once deleted at the start.
#[test]
fn segments_of_another_log_are_left_as_they_are_where_this_one_has_none() {
    let (disk, _) = log(&[&[10], &[], &[20], &[], &[30]]);
    let (mut log, _) = reopen(&disk, OPTIONS).unwrap();
    for segment in [1, 2] {
        log.shared.queue.ask(Entry::Drop { segment });
        log.writer.step(&Ears::default());
    }
    let third = disk.content("00000003.seg");
    let number_and_previous = |number: u32, previous: u32, id: u64| {
        let header = Header::from_bytes(&third).unwrap();
        let previous = Previous { number: previous, end: 90, id };
        let header = Header { number, previous, id: header.id + 100, ..header };
        [&header.to_bytes()[..], &third[HEADER_LEN as usize..]].concat()
    };
    let first = number_and_previous(1, 0, 0);
    disk.put("00000001.seg", &first);
    // A segment that is not the one that was dropped, but has its number.
    let second = number_and_previous(2, 1, 7);
    disk.put("00000002.seg", &second);
    for _ in 0..2 {
        let (recovered, found) = reopen(&disk, OPTIONS).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(recovered.found.foreign, ["00000001.seg", "00000002.seg"]);
        assert_eq!(recovered.found.abandoned, [""; 0]);
    }
    assert!(disk.content("00000001.seg") == first && disk.content("00000002.seg") == second);
}

#[test]
fn a_record_that_the_owner_refuses_ends_the_start() {
    let (disk, records) = log(&[&[10, 20]]);
    let mut refuse_second = |position, _: &[u8]| {
        if position == records[1].0 { Err("no such kind".to_owned()) } else { Ok(()) }
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
        let read = open.shared.read_segment(1, None, &mut |position, _| found.push(position));
        assert!(
            matches!(read, Err(ReadError::Damaged { offset: at, .. }) if at == offset(hit)),
            "{read:?}"
        );
        assert_eq!(found.len(), hit);
        let next = segment.next_intact(offset(hit), segment.end()).unwrap();
        assert_eq!(next, records.get(hit + 1).map(|(position, _)| position.offset()));
        put(byte);
    }
}

/// A single sector that the disk refuses once stopped compaction for good.
#[test]
fn a_running_log_reads_on_behind_what_its_disk_refuses() {
    let (disk, records) = log(&[&[10, 3_000, 6_000, 20, 9_000, 5]]);
    let (open, _) = reopen(&disk, OPTIONS).unwrap();
    disk.lose("00000001.seg", 5_000);
    let refused = open.shared.read_segment(1, None, &mut |_, _| {});
    let Err(ReadError::Io(refused)) = refused else { panic!("{refused:?}") };
    assert!(refused.to_string().contains("00000001.seg at byte 4096"), "{refused}");
    let segment = open.shared.segment(1).unwrap().skipping();
    let offset = |nth: usize| records[nth].0.offset();
    let walk = |from: u32| {
        let mut found = Vec::new();
        let walk = segment.walk(from, segment.end(), &mut Vec::new(), |offset, _, _| {
            found.push(offset);
            Ok::<(), ReadError>(())
        });
        (walk.unwrap(), found)
    };
    assert_eq!(walk(offset(0)), (Walk::Broken(offset(2)), vec![offset(0), offset(1)]));
    let next = segment.next_intact(offset(2), segment.end()).unwrap();
    assert_eq!(next, Some(offset(3)));
    assert_eq!(walk(offset(3)), (Walk::Whole, vec![offset(3), offset(4), offset(5)]));
}

/// A message was given up although it was intact: the first read for it went on into the lost
/// sector behind it.
#[test]
fn a_lost_sector_is_the_error_of_those_records_alone_that_reach_into_it() {
    let (disk, _) = log(&[&[300; 60]]);
    let (log, records) = reopen(&disk, OPTIONS).unwrap();
    disk.lose("00000001.seg", 8192);
    let mut lost = 0;
    for (position, record) in records {
        let start = position.offset();
        let read = read(&log, position);
        if start + 12 + 300 <= 8192 || start >= 8192 + 4096 {
            assert_eq!(read.unwrap(), record);
            continue;
        }
        lost += 1;
        let Err(ReadError::Io(error)) = read else { panic!("{read:?}") };
        assert_eq!(error.offset().unwrap() / 4096, 2, "the error names the lost sector");
    }
    assert_eq!(lost, 14, "of 312 bytes each");
}

/// The same at the end of a file that was cut off.
#[test]
fn the_last_records_of_a_file_that_was_cut_off_are_read() {
    let (disk, _) = log(&[&[300; 60]]);
    let (log, records) = reopen(&disk, OPTIONS).unwrap();
    let segment = log.shared.segment(1).unwrap();
    segment.file.truncate(10_000).unwrap();
    for (position, record) in records {
        let is_there = position.offset() + 12 + 300 <= 10_000;
        assert_eq!(read(&log, position).ok(), is_there.then_some(record));
    }
}

fn read(log: &Recovered, position: Position) -> Result<Vec<u8>, ReadError> {
    let mut payload = Vec::new();
    log.shared.segment(1)?.read(position.offset(), &mut payload)?;
    Ok(payload)
}
