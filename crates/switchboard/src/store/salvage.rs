//! Reads the intact records of a damaged log, and reports everything that is not intact.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::ErrorKind;

use super::manifest::{self, Content, Manifest};
use super::members::Members;
use super::segment::{
    HEADER_LEN, Header, Previous, Segment, VERSION, Walk, name_of, number_of, read_exact_at,
    used_end,
};
use super::skipping::SkippingDisk;
use super::{Disk, DiskFile, OpenError, StoreError, is_damage};

/// Result of reading a damaged log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// One sentence for each fault.
    pub faults: Vec<String>,
    /// Bytes that had content and cannot be read. Missing files are not counted, as their length is
    /// unknown.
    pub lost_bytes: u64,
    /// Number of intact records.
    pub records: u64,
}

/// A segment's file as found.
struct Remains {
    /// `None` if it is damaged.
    header: Option<Header>,
    file: Box<dyn DiskFile>,
    len: u32,
}

/// Knowledge of a segment from the manifest and from other segments' headers.
#[derive(Clone, Copy, Debug, Default)]
struct Hearsay {
    id: Option<u64>,
    /// The exact end of its durable records.
    end: Option<u32>,
    /// A lower bound of that end.
    tip: u32,
    /// True if nothing was written behind the tip.
    is_closed: bool,
}

/// Reference from the server's state to its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateOf {
    /// The log's random id.
    pub store: u64,
    /// The state's generation.
    pub generation: u64,
}

/// Hands every intact record to `visit`, in order, including those behind damaged places. Changes
/// nothing.
///
/// Segments of another log are reported, and none of their records is taken.
///
/// # Errors
/// If the disk cannot be read for another reason than damage, such as too many open files, or if
/// another version wrote the log. Lost sectors are skipped.
pub fn salvage(
    disk: &dyn Disk,
    state: Option<StateOf>,
    visit: &mut dyn FnMut(&[u8]),
) -> Result<Salvaged, OpenError> {
    let disk = &SkippingDisk(disk);
    let mut it = Salvaged::default();
    let listed = match Manifest::find(disk) {
        Ok(manifest::Found::Intact { manifest, .. }) => Some(manifest.content),
        Ok(_) => None,
        Err(OpenError::Io(error)) if error.is_damage() => None,
        Err(error) => return Err(error),
    };
    // A manifest of another log than the state's, or an older one from a backup, is not
    // believed: by it every segment would be foreign. One generation behind is not old, as a
    // crash may come between the write of the state and its note in the manifest.
    let listed = listed.filter(|listed| {
        let is_of = |state: StateOf| {
            listed.store == state.store && listed.state_generation + 1 >= state.generation
        };
        state.is_none_or(is_of)
    });
    let (mut files, renamed) = collect(disk, listed.as_ref(), &mut it)?;
    let members = members(&mut files, renamed, listed.as_ref());
    it.leave_foreign(&mut files, &members, listed.map(|listed| listed.newest.number));
    leave_attempts(&mut files);
    let missing = missing(&files, listed.as_ref());
    it.faults.extend(missing.iter().map(|&number| format!("{} is missing", name_of(number))));
    let mut numbers: Vec<u32> = files.keys().chain(&missing).copied().collect();
    numbers.sort_unstable();
    let hear = |&number| (number, hearsay(number, &files, &members, listed.as_ref()));
    let said: Vec<(u32, Hearsay)> = numbers.iter().map(hear).collect();
    for (number, said) in said {
        if let Some(remains) = files.remove(&number) {
            it.take(number, remains, said, visit)?;
        }
    }
    Ok(it)
}

/// Segments' files by their numbers.
type Files = BTreeMap<u32, Remains>;

/// Returns the files that may be part of the log, and those that have another segment's name.
fn collect(
    disk: &dyn Disk,
    listed: Option<&Content>,
    it: &mut Salvaged,
) -> Result<(Files, Vec<(Header, Remains)>), OpenError> {
    let names = match disk.list() {
        Err(error) if error.kind() == ErrorKind::NotADirectory => Vec::new(),
        names => names.map_err(StoreError::of("list", "the log"))?,
    };
    // Segments that were dropped, and attempts that were given up: their content is obsolete.
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
            Err(error) if is_damage(&error) || error.kind() == ErrorKind::NotFound => {
                it.faults.push(format!("{name} cannot be opened: {error}"));
                continue;
            }
            Err(error) => return Err(StoreError::new("open", &name, error).into()),
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
                // An attempt that a crash interrupted before the manifest named it.
                continue;
            }
        }
        files.insert(number, remains);
    }
    renamed.retain(|(header, _)| !listed.is_some_and(|listed| is_out(header.number, listed)));
    Ok((files, renamed))
}

/// Returns the members of the log among the files; renamed ones are put back, unless an intact
/// segment has their name.
fn members(
    files: &mut Files,
    mut renamed: Vec<(Header, Remains)>,
    listed: Option<&Content>,
) -> Members {
    let headers = files.iter().filter_map(|(&number, remains)| Some((number, remains.header?)));
    let mut members = Members::new(headers.collect(), listed);
    // The newest first: each one that is put back names the id of the one before it.
    renamed.sort_by_key(|(header, _)| Reverse(header.number));
    for (header, remains) in renamed {
        if members.put_back(&header) {
            files.insert(header.number, remains);
        }
    }
    members
}

fn look(name: &str, file: Box<dyn DiskFile>) -> Result<Remains, OpenError> {
    let len = file.size().map_err(StoreError::of("read", name))?;
    // A file longer than a segment can be is read as far as offsets reach.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let mut bytes = [0; HEADER_LEN as usize];
    let head = &mut bytes[..HEADER_LEN.min(len) as usize];
    read_exact_at(&*file, name, head, 0)?;
    let header = Header::from_bytes(head);
    if let Some(header) = header {
        header.check_version(name)?;
    }
    Ok(Remains { header, file, len })
}

/// Removes attempts that were given up: the header of a later segment passes over them.
fn leave_attempts(files: &mut Files) {
    // The headers of an attempt and of the segment that replaced it name the same previous segment.
    // The records of the attempt were written again to its replacement, so they would be read
    // twice.
    let headers: Vec<Header> = files.values().filter_map(|remains| remains.header).collect();
    files.retain(|&number, _| {
        let later = headers.iter().find(|header| header.number > number);
        later.is_none_or(|later| later.previous.number >= number)
    });
}

/// Returns the numbers of segments that are named somewhere and are missing.
fn missing(files: &Files, listed: Option<&Content>) -> Vec<u32> {
    let oldest = listed.map_or(0, |listed| listed.oldest.number);
    let headers = files.values().filter_map(|remains| remains.header);
    let mut named: Vec<u32> = headers.map(|header| header.previous.number).collect();
    if let Some(Content { oldest, newest, tip, .. }) = listed {
        named.extend([oldest.number, newest.number, tip.number]);
    }
    // Without a manifest those before the oldest file may have been dropped.
    let first = if listed.is_some() { oldest } else { files.keys().next().copied().unwrap_or(0) };
    named.retain(|number| *number >= first.max(1) && !files.contains_key(number));
    named.sort_unstable();
    named.dedup();
    named
}

/// Collects what the manifest and other headers say of a segment.
fn hearsay(number: u32, files: &Files, members: &Members, listed: Option<&Content>) -> Hearsay {
    let mut said = Hearsay { id: members.id(number), ..Hearsay::default() };
    let later = files.values().filter_map(|remains| remains.header);
    let names = later.map(|header| header.previous).find(|previous| previous.number == number);
    said.end = names.map(|previous| previous.end);
    if let Some(&Content { tip, is_clean, .. }) = listed
        && tip.number == number
    {
        (said.tip, said.is_closed) = (tip.end, is_clean);
    }
    said
}

impl Salvaged {
    /// Removes and reports the segments of other logs.
    fn leave_foreign(&mut self, files: &mut Files, members: &Members, newest: Option<u32>) {
        files.retain(|&number, remains| {
            let is_foreign = remains.header.is_some_and(|header| !members.has(&header));
            let name = name_of(number);
            if is_foreign {
                self.faults.push(format!("{name} belongs to another log"));
            } else if newest.is_some_and(|newest| number > newest) {
                self.faults.push(format!("{name} is newer than any segment that MANIFEST knows"));
            }
            !is_foreign
        });
    }

    /// Visits the intact records of a segment, and reports its faults.
    fn take(
        &mut self,
        number: u32,
        remains: Remains,
        said: Hearsay,
        visit: &mut dyn FnMut(&[u8]),
    ) -> Result<(), OpenError> {
        let Remains { header, file, len } = remains;
        let name = name_of(number);
        if header.is_none()
            && said.id.is_none()
            && used_end(&*file, &name, HEADER_LEN.min(len), len)? <= HEADER_LEN
        {
            // An attempt that a crash interrupted.
            return Ok(());
        }
        let header = match (header, said.id) {
            (Some(header), _) => header,
            // The records' checksums need only number and id, and both are known.
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
        let must = said.end.unwrap_or(said.tip).max(said.tip);
        if len < must {
            let gone = must - len;
            self.faults.push(format!("{name} ends at byte {len}, {gone} bytes too early"));
            self.lost_bytes += u64::from(gone);
        }
        // Whole records of a write whose sync failed may follow the end that a later header names.
        // They were written again to the next segment, so they would be read twice.
        let end = said.end.map_or(len, |end| end.max(said.tip)).min(len);
        let segment = Segment::new(&header, file, end);
        self.walk(&segment, end, must.min(len), said.is_closed, visit)
    }

    /// Visits all intact records before `end`; anything else before `must` is a fault.
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
                    // Zeros before `must` are damage as well: records stood there.
                    let used = segment.used_end(at, end)?.max(must);
                    let next = segment.next_intact(at + 1, used)?;
                    let is_torn = at >= must && segment.proof_behind(at, used)?.is_none();
                    if is_torn && (!is_closed || used == at) {
                        // The tail of a write that a crash interrupted; nothing in it was accepted.
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
