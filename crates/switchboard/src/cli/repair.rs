//! `switchboard store repair`: makes a sound store of what is intact in a damaged one.
//!
//! The new store is built in `repair.tmp`, renamed to `repaired-TIME` when it is whole, and then put
//! into place file by file. A start is refused while `repaired-TIME` is there, and another repair
//! goes on with it. So a crash at any point loses neither the old store nor the new one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use switchboard_broker::{DeviceRecord, EndedRecord, MessageRecord, OutcomeRecord, Record};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::DeviceRef;

use super::append::Appender;
use super::data::{self, Problem, Progress};
use super::mailboxes::Mailboxes;
use super::store::Checked;
use crate::auth::{KeyError, OwnKey};
use crate::ledger::state::{self, State};
use crate::ledger::{self, BEING_BUILT, REPAIRED, record};
use crate::store::{self, DataDir, Dir, Known, Options, Salvaged};

/// What was there before is kept under this, and the time.
const DAMAGED: &str = "log.damaged-";
/// What belongs to a store, apart from the log.
const FILES: [&str; 3] = ["MANIFEST", state::FILE, "token.key"];

/// Repairs, and gives the report.
pub(super) fn run(args: &data::Args) -> Result<String, Problem> {
    let disk = args.take()?;
    let dir = disk.path();
    if let Some(ready) = ledger::interrupted_repair(dir).map_err(Problem::failed)? {
        let damaged = put_in_place(dir, &ready).map_err(Problem::failed)?;
        return Ok(format!(
            "finished a repair that was interrupted; what was there before is in {}\n",
            damaged.display()
        ));
    }
    let built = dir.join(BEING_BUILT);
    remove(&built).map_err(Problem::failed)?;
    let checked = Checked::new(&disk)?;
    if checked.faults.is_empty() {
        return Ok("nothing to repair: the store is sound\n".to_owned());
    }
    if let Err(error @ KeyError::OwnExposed { .. }) = OwnKey::check(dir, None, false) {
        // To make another one is for the operator to decide.
        return Err(Problem::failed(error));
    }
    let (copied, has_new_key) = build(&disk, &built, &checked).inspect_err(|_| {
        // It may be what filled the disk.
        remove(&built).ok();
    })?;
    let ready = free_name(dir, copied.now_ms);
    let named = fs::rename(&built, &ready).and_then(|()| File::open(dir)?.sync_all());
    named.map_err(Problem::failed)?;
    let damaged = put_in_place(dir, &ready).map_err(Problem::failed)?;
    Ok(report(&checked, &copied, has_new_key, &damaged))
}

/// Makes the new store; returns what is in it, and whether its key is new.
fn build(disk: &DataDir, built: &Path, checked: &Checked) -> Result<(Copied, bool), Problem> {
    let copied = copy(disk, built)?;
    let has_new_key = write_state(disk, built, checked, &copied)?;
    Ok((copied, has_new_key))
}

/// What was copied into the new log.
#[derive(Debug, Default)]
struct Copied {
    salvaged: Salvaged,
    mailboxes: Mailboxes,
    /// Intact as bytes, and yet of no use.
    unreadable: u64,
    /// Devices whose own record was lost.
    renewed: usize,
    /// No number of a device passes it.
    highest_id: u64,
    uptime_ms: u64,
    now_ms: u64,
}

fn copy(disk: &DataDir, built: &Path) -> Result<Copied, Problem> {
    let new = Arc::new(DataDir::open(built).map_err(Problem::failed)?);
    let mut log = Appender::open(new, Options::default())?;
    let mut copied = Copied { now_ms: now_ms()?, ..Copied::default() };
    let mut progress = Progress::new(disk);
    let mut failed = None;
    let salvaged = store::salvage(disk, State::store_of(disk.root()), &mut |bytes| {
        progress.step(bytes);
        let Ok(record) = record::read(bytes) else {
            copied.unreadable += 1;
            return;
        };
        copied.take(&record);
        if failed.is_none() {
            failed = log.push_bytes(bytes).err();
        }
    });
    drop(progress);
    failed.map_or(Ok(()), Err)?;
    copied.salvaged = salvaged.map_err(Problem::failed)?;
    copied.renewed = renew_devices(&copied, &mut log)?;
    log.close()?;
    Ok(copied)
}

/// Devices whose messages are there get back a record of their own, as if nothing had been acked:
/// without it their messages would count for nothing.
fn renew_devices(copied: &Copied, log: &mut Appender) -> Result<usize, Problem> {
    let unknown = copied.mailboxes.unknown();
    for (id, next_seq) in &unknown {
        let device = DeviceRef::parse(id);
        let device = device.ok_or_else(|| Problem::failed(format!("{id} is no device's id")))?;
        log.push(&Record::Device(DeviceRecord {
            device,
            mailbox: state::random().map_err(Problem::failed)?,
            reserved_to: *next_seq,
            acked_to: 0,
            pushed_to: next_seq - 1,
            away_since_ms: Some(copied.now_ms),
        }))?;
    }
    Ok(unknown.len())
}

impl Copied {
    fn take(&mut self, record: &Record<'_>) {
        self.mailboxes.take(record);
        let (one, other) = match record {
            Record::Message(MessageRecord { to, from, at, .. }) => {
                self.uptime_ms = self.uptime_ms.max(at.ms());
                (*to, *from)
            }
            Record::Outcome(OutcomeRecord { to, of, .. }) => (*to, *of),
            Record::SentId(sent) => (sent.from, sent.to),
            Record::Device(DeviceRecord { device, .. })
            | Record::Ended(EndedRecord { device, .. })
            | Record::Acked { device, .. }
            | Record::Removed { device, .. }
            | Record::Gone { device } => (*device, *device),
        };
        for device in [one, other] {
            if let DeviceRef::Number(id) = device {
                self.highest_id = self.highest_id.max(id.get());
            }
        }
    }
}

/// State and key of the new store; gives whether the key is new.
fn write_state(
    disk: &DataDir,
    built: &Path,
    checked: &Checked,
    copied: &Copied,
) -> Result<bool, Problem> {
    let Known::Listed(log) = identify(built)? else {
        return Err(Problem::failed("the new log has no manifest"));
    };
    let is_new_key = checked.token_key.is_none();
    if !is_new_key {
        fs::copy(disk.path().join("token.key"), built.join("token.key"))
            .map_err(Problem::failed)?;
    }
    let key = OwnKey::check(built, None, is_new_key).map_err(Problem::failed)?;
    let file = File::open(built.join("token.key")).and_then(|file| file.sync_all());
    file.map_err(Problem::failed)?;
    // What cannot be used as a whole may still say which ids were given.
    let old = checked.state.clone().or_else(|| State::read(disk.root()).ok().flatten());
    // Ids of which nothing is in the log may have been given since that was written.
    let unknown = if checked.state.is_some() { 0 } else { ledger::IDS_AHEAD };
    let ids_to = (copied.highest_id + 1).max(DeviceId::FIRST.get()) + unknown;
    let ids_to = old.as_ref().map_or(ids_to, |old| old.ids_to.max(ids_to));
    let state = old.map_or_else(State::new, Ok).and_then(|state| state.for_store(log.store));
    let mut state = state.map_err(Problem::failed)?;
    state.ids_to = ids_to;
    state.uptime_ms = state.uptime_ms.max(copied.uptime_ms);
    state.token_key = Some(key);
    let built = Dir::open(built).map_err(Problem::failed)?;
    state.write_for(disk.root(), &built).map_err(Problem::failed)?;
    Ok(is_new_key)
}

fn identify(dir: &Path) -> Result<Known, Problem> {
    let disk = DataDir::open_as_it_is(dir).map_err(Problem::failed)?;
    store::identify(&disk).map_err(Problem::failed)
}

/// Where the new store waits to be put in place; no earlier repair has used this time for a name.
fn free_name(dir: &Path, now_ms: u64) -> PathBuf {
    let times = (0..).map(|second| {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms + 1_000 * second);
        humantime::format_rfc3339_seconds(at).to_string().replace(':', "")
    });
    let is_free = |time: &String| {
        ![REPAIRED, DAMAGED].iter().any(|prefix| dir.join(format!("{prefix}{time}")).exists())
    };
    let mut free = times.filter(is_free);
    dir.join(format!("{REPAIRED}{}", free.next().expect("not every second is taken")))
}

/// Moves the old store away and the new one here; goes on where an earlier attempt ended.
fn put_in_place(dir: &Path, ready: &Path) -> io::Result<PathBuf> {
    let name = ready.file_name().unwrap_or_default().to_string_lossy();
    let damaged = dir.join(format!("{DAMAGED}{}", name.trim_start_matches(REPAIRED)));
    let (log, new_log) = (dir.join("log"), ready.join("log"));
    if new_log.exists() {
        if log.is_dir() && damaged.exists() {
            // The old log was moved already; somebody has made an empty folder since.
            fs::remove_dir(&log)?;
        } else if log.is_dir() {
            fs::rename(&log, &damaged)?;
        } else if log.symlink_metadata().is_ok() {
            fs::create_dir_all(&damaged)?;
            fs::rename(&log, damaged.join("log"))?;
        }
        fs::rename(&new_log, &log)?;
    }
    fs::create_dir_all(&damaged)?;
    for file in FILES {
        let (old, new) = (dir.join(file), ready.join(file));
        if !new.exists() {
            continue;
        }
        if old.exists() {
            fs::rename(&old, damaged.join(file))?;
        }
        fs::rename(&new, &old)?;
    }
    for changed in [&damaged, ready, dir] {
        File::open(changed)?.sync_all()?;
    }
    // It holds nothing any more but a lock.
    fs::remove_dir_all(ready)?;
    File::open(dir)?.sync_all()?;
    Ok(damaged)
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn report(checked: &Checked, copied: &Copied, has_new_key: bool, damaged: &Path) -> String {
    let mut out: String = checked.faults.iter().map(|fault| format!("fault: {fault}\n")).collect();
    let Copied { salvaged, mailboxes, unreadable, renewed, .. } = copied;
    let (devices, messages) = (mailboxes.sorted().len() + renewed, mailboxes.waiting());
    out.push_str(&format!(
        "repaired: {} records copied, {messages} messages and outcomes wait for {devices} devices\n\
         lost: {} bytes that could not be read, beside files that are missing, and {unreadable} \
         records that make no sense; which messages were in them nobody knows\n\
         all {devices} mailboxes get new names; {renewed} devices are known by their messages only \
         and get all of those again\n",
        salvaged.records - unreadable,
        salvaged.lost_bytes,
    ));
    if has_new_key {
        out.push_str("token.key is new: every token that this server gave has ended\n");
    }
    out.push_str(&format!(
        "what was there before is in {}; remove it when you do not need it\n",
        damaged.display()
    ));
    out
}

fn now_ms() -> Result<u64, Problem> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map(|since| since.as_millis() as u64).map_err(Problem::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_repairs_in_one_second_have_names_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let first = free_name(dir.path(), 1_000);
        assert_eq!(first, dir.path().join("repaired-1970-01-01T000001Z"));
        // The first was put in place: its name lives on in what it replaced.
        fs::create_dir(dir.path().join("log.damaged-1970-01-01T000001Z")).unwrap();
        let second = free_name(dir.path(), 1_999);
        assert_eq!(second, dir.path().join("repaired-1970-01-01T000002Z"));
    }
}
