//! Reads what is intact of a damaged log, and names everything that is not.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::ErrorKind;

use super::manifest::{self, Content, Listed, Manifest};
use super::segment::{
    HEADER_LEN, Header, Previous, Segment, VERSION, Walk, name_of, number_of, read_exact_at,
    used_end,
};
use super::skipping::SkippingDisk;
use super::{Disk, DiskFile, OpenError, StoreError};

/// What a damaged log still holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// A sentence for each place that is not as it should be.
    pub faults: Vec<String>,
    /// Bytes that held something and cannot be read; of files that are gone nobody knows.
    pub lost_bytes: u64,
    /// Intact records.
    pub records: u64,
}

/// A segment's file as it lies there.
struct Remains {
    /// `None` when it cannot be read.
    header: Option<Header>,
    file: Box<dyn DiskFile>,
    len: u32,
}

/// What others say of a segment.
#[derive(Clone, Copy, Debug, Default)]
struct Hearsay {
    id: Option<u64>,
    /// Up to here it was durable, exactly.
    end: Option<u32>,
    /// Up to here it was durable, at least.
    tip: u32,
    /// Nothing was written behind the tip.
    is_closed: bool,
}

/// Hands every intact record to `visit`, in order, also those behind damaged places. Changes
/// nothing.
///
/// `store` is the id of the log as others know it. A manifest of another one is not believed: by it
/// every segment would be foreign.
///
/// # Errors
/// When the disk cannot be read at all, or a newer version wrote the log. Sectors that it has lost are
/// skipped.
pub fn salvage(
    disk: &dyn Disk,
    store: Option<u64>,
    visit: &mut dyn FnMut(&[u8]),
) -> Result<Salvaged, OpenError> {
    let disk = &SkippingDisk(disk);
    let mut it = Salvaged::default();
    let listed = match Manifest::find(disk) {
        Ok(manifest::Found::Intact { manifest, .. }) => Some(manifest.content),
        Ok(_) => None,
        Err(error) if error.is_damage() => None,
        Err(error) => return Err(error.into()),
    };
    let listed = listed.filter(|listed| store.is_none_or(|store| listed.store == store));
    let mut files = collect(disk, listed.as_ref(), &mut it)?;
    leave_attempts(&mut files);
    for number in missing(&files, listed.as_ref()) {
        it.faults.push(format!("{} is missing", name_of(number)));
    }
    let numbers: Vec<u32> = files.keys().copied().collect();
    let said: Vec<Hearsay> =
        numbers.iter().map(|&number| hearsay(number, &files, listed.as_ref())).collect();
    for ((number, remains), said) in files.into_iter().zip(said) {
        it.take(number, remains, said, visit)?;
    }
    Ok(it)
}

/// The files that may be part of the log.
fn collect(
    disk: &dyn Disk,
    listed: Option<&Content>,
    it: &mut Salvaged,
) -> Result<BTreeMap<u32, Remains>, OpenError> {
    let names = match disk.list() {
        Err(error) if error.kind() == ErrorKind::NotADirectory => Vec::new(),
        names => names.map_err(StoreError::of("list", "the log"))?,
    };
    let is_out = |number: u32, listed: &Content| {
        number < listed.oldest.number || (number > listed.newest.number && number <= listed.tried)
    };
    let (mut files, mut renamed) = (BTreeMap::new(), Vec::new());
    for number in names.iter().filter_map(|name| number_of(name)) {
        if listed.is_some_and(|listed| is_out(number, listed)) {
            continue;
        }
        let name = name_of(number);
        let file = match disk.open(&name) {
            Ok(file) => file,
            Err(error) => {
                it.faults.push(format!("{name} cannot be opened: {error}"));
                continue;
            }
        };
        let remains = look(&name, file)?;
        if let Some(header) = remains.header.filter(|header| header.number != number) {
            it.faults.push(format!("{name} is {}, renamed", name_of(header.number)));
            renamed.push((header, remains));
            continue;
        }
        if listed.is_some_and(|listed| number > listed.newest.number) {
            let len = remains.len;
            if used_end(&*remains.file, &name, HEADER_LEN.min(len), len)? <= HEADER_LEN {
                // An attempt that was not finished.
                continue;
            }
            it.faults.push(format!("{name} is newer than any segment that MANIFEST knows"));
        }
        files.insert(number, remains);
    }
    renamed.retain(|(header, _)| !listed.is_some_and(|listed| is_out(header.number, listed)));
    put_back(renamed, &mut files, listed);
    Ok(files)
}

/// Takes renamed segments for what their headers say, where others name just this one and nothing
/// better has its name.
fn put_back(
    mut renamed: Vec<(Header, Remains)>,
    files: &mut BTreeMap<u32, Remains>,
    listed: Option<&Content>,
) {
    // Each says the id of the one before it.
    renamed.sort_by_key(|(header, _)| Reverse(header.number));
    for (header, remains) in renamed {
        let is_named = hearsay(header.number, files, listed).id == Some(header.id);
        let is_free = files.get(&header.number).is_none_or(|file| file.header.is_none());
        if is_named && is_free {
            files.insert(header.number, remains);
        }
    }
}

fn look(name: &str, file: Box<dyn DiskFile>) -> Result<Remains, OpenError> {
    let len = file.size().map_err(StoreError::of("read", name))?;
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let mut bytes = [0; HEADER_LEN as usize];
    let head = &mut bytes[..HEADER_LEN.min(len) as usize];
    read_exact_at(&*file, name, head, 0)?;
    let header = match Header::from_bytes(head) {
        Some(header) if header.version > VERSION => {
            let (found, known) = (header.version, VERSION);
            return Err(OpenError::Newer { file: name.to_owned(), found, known });
        }
        header => header,
    };
    Ok(Remains { header, file, len })
}

/// Takes out attempts that were given up: the header of a later segment passes over them.
fn leave_attempts(files: &mut BTreeMap<u32, Remains>) {
    let headers: Vec<Header> = files.values().filter_map(|remains| remains.header).collect();
    files.retain(|&number, _| {
        let later = headers.iter().find(|header| header.number > number);
        later.is_none_or(|later| later.previous.number >= number)
    });
}

/// Segments that others name and that are not there.
fn missing(files: &BTreeMap<u32, Remains>, listed: Option<&Content>) -> Vec<u32> {
    let oldest = listed.map_or(0, |listed| listed.oldest.number);
    let headers = files.values().filter_map(|remains| remains.header);
    let mut named: Vec<u32> = headers.map(|header| header.previous.number).collect();
    if let Some(Content { oldest, newest, tip, .. }) = listed {
        named.extend([oldest.number, newest.number, tip.number]);
    }
    // Without a manifest the oldest ones may have been dropped.
    let first = if listed.is_some() { oldest } else { files.keys().next().copied().unwrap_or(0) };
    named.retain(|number| *number >= first.max(1) && !files.contains_key(number));
    named.sort_unstable();
    named.dedup();
    named
}

fn hearsay(number: u32, files: &BTreeMap<u32, Remains>, listed: Option<&Content>) -> Hearsay {
    let mut said = Hearsay::default();
    let later = files.values().filter_map(|remains| remains.header);
    if let Some(Previous { end, id, .. }) =
        later.map(|header| header.previous).find(|previous| previous.number == number)
    {
        said.end = Some(end);
        said.id = (id != 0).then_some(id);
    }
    let Some(&Content { oldest, newest, tip, is_clean, .. }) = listed else { return said };
    let tip_is = Listed { number: tip.number, id: tip.id };
    if let Some(named) = [oldest, newest, tip_is].iter().find(|named| named.number == number) {
        said.id = Some(named.id);
    }
    if tip.number == number {
        (said.tip, said.is_closed) = (tip.end, is_clean);
    }
    said
}

impl Salvaged {
    fn take(
        &mut self,
        number: u32,
        remains: Remains,
        said: Hearsay,
        visit: &mut dyn FnMut(&[u8]),
    ) -> Result<(), OpenError> {
        let Remains { header, file, len } = remains;
        let name = name_of(number);
        let is_named = said.id.is_some() || said.end.is_some();
        if header.is_none()
            && !is_named
            && used_end(&*file, &name, HEADER_LEN.min(len), len)? <= HEADER_LEN
        {
            // An attempt that was not finished.
            return Ok(());
        }
        let header = match (header, said.id) {
            (Some(header), Some(id)) if header.id != id => {
                self.faults.push(format!("{name} belongs to another log"));
                self.lost_bytes += u64::from(len);
                return Ok(());
            }
            (Some(header), _) => header,
            (None, Some(id)) => {
                self.faults.push(format!("the header of {name} is damaged"));
                Header { version: VERSION, number, id, previous: Previous::default() }
            }
            (None, None) => {
                self.faults.push(format!(
                    "the header of {name} is damaged, and without it no record in it can be \
                     trusted"
                ));
                self.lost_bytes += u64::from(len);
                return Ok(());
            }
        };
        let must = said.end.unwrap_or(said.tip);
        if len < must {
            let gone = must - len;
            self.faults.push(format!("{name} ends at byte {len}, {gone} bytes too early"));
            self.lost_bytes += u64::from(gone);
        }
        let end = said.end.unwrap_or(len).min(len);
        let segment = Segment::new(&header, file, end);
        self.walk(&segment, end, must.min(len), said.is_closed, visit)
    }

    /// Takes all intact records before `end`; up to `must` nothing else may be there.
    fn walk(
        &mut self,
        segment: &Segment,
        end: u32,
        must: u32,
        is_closed: bool,
        visit: &mut dyn FnMut(&[u8]),
    ) -> Result<(), OpenError> {
        let mut buffer = Vec::new();
        let mut from = HEADER_LEN.min(end);
        while from < end {
            let mut records = 0;
            let walk = segment.walk(from, end, &mut buffer, |_, _, payload| {
                records += 1;
                visit(payload);
                Ok::<(), OpenError>(())
            })?;
            self.records += records;
            from = match walk {
                Walk::Whole => return Ok(()),
                Walk::More(next) => next,
                Walk::Broken(at) => {
                    let used = segment.used_end(at, end)?.max(must);
                    let next = segment.first_record(at + 1, HEADER_LEN - 1, used)?;
                    let is_torn = at >= must && segment.proof_behind(at, used)?.is_none();
                    if is_torn && (!is_closed || used == at) {
                        // What a crash interrupted; it had not been accepted.
                        return Ok(());
                    }
                    let lost = next.unwrap_or(used) - at;
                    let name = &segment.name;
                    self.faults.push(format!("{name} is damaged at byte {at}: {lost} bytes"));
                    self.lost_bytes += u64::from(lost);
                    next.unwrap_or(end)
                }
            };
        }
        Ok(())
    }
}
