//! `switchboard store repair`: makes a valid store from the intact parts of a damaged one.
//!
//! The new store is built in `repair.tmp`, renamed to `repaired-TIME` when it is complete, and
//! then moved into place file by file. While `repaired-TIME` exists a start is refused, and
//! another repair continues with it. So a crash at any point loses neither the old store nor the
//! new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, OFlags, StatxAttributes, StatxFlags, statx};
use switchboard_broker::{DeviceRecord, EndedRecord, MessageRecord, OutcomeRecord, Record};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::DeviceRef;

use super::append::Appender;
use super::data::{self, Problem, Progress};
use super::exchanges::Exchanges;
use super::mailboxes::Mailboxes;
use super::store::{Checked, unread};
use crate::auth::{KeyError, OwnKey};
use crate::clock;
use crate::persistence::state::{self, ServerState};
use crate::persistence::{self, BEING_BUILT, REPAIRED, record};
use crate::store::{self, DataDir, Dir, Identity, Known, LogOptions, Salvaged, StateOf, is_damage};

/// Prefix of the directory that keeps the old store; the time follows.
const DAMAGED: &str = "log.damaged-";
/// Most bytes of `token.key` that are read; the file has half of that.
const KEY_LEN_MAX: u64 = 64;
/// Files of a store besides the log.
const FILES: [&str; 3] = ["MANIFEST", state::FILE, "token.key"];

/// Repairs the store and returns the report.
pub(super) fn run(args: &data::Args) -> Result<String, Problem> {
    let disk = args.take()?;
    let dir = disk.path();
    if let Some(ready) = persistence::interrupted_repair(dir).map_err(Problem::failed)? {
        let damaged = put_in_place(dir, &ready).map_err(Problem::failed)?;
        return Ok(format!(
            "finished a repair that was interrupted; what was there before is in {}\n",
            damaged.display()
        ));
    }
    let built = dir.join(BEING_BUILT);
    remove(&built)?;
    let checked = Checked::new(&disk)?;
    if checked.faults.is_empty() {
        return Ok("nothing to repair: the store is intact\n".to_owned());
    }
    let log = dir.join("log");
    if is_mount(&log) {
        return Err(Problem::failed(format!(
            "{} is a mount of its own, which cannot be moved away: unmount it, copy what it holds into an \
             ordinary folder of that name, and repair again; nothing was changed",
            log.display()
        )));
    }
    if let Err(error @ KeyError::OwnExposed { .. }) = OwnKey::check(dir, None, false) {
        // Making another key is up to the operator.
        return Err(Problem::failed(error));
    }
    let (copied, has_new_key) = build(&disk, &built, &checked).inspect_err(|_| {
        // It may itself have filled the disk.
        remove(&built).ok();
    })?;
    let ready = free_name(dir, copied.now_ms);
    let named = fs::rename(&built, &ready).and_then(|()| File::open(dir)?.sync_all());
    named.map_err(Problem::failed)?;
    let damaged = put_in_place(dir, &ready).map_err(Problem::failed)?;
    Ok(report(&checked, &copied, has_new_key, &damaged))
}

/// Builds the new store; returns its content, and whether its key is new.
fn build(disk: &DataDir, built: &Path, checked: &Checked) -> Result<(Copied, bool), Problem> {
    make_built(disk, built)?;
    let copied = copy(disk, built, checked)?;
    let has_new_key = write_state(disk, built, checked, &copied)?;
    Ok((copied, has_new_key))
}

/// The content of the new log.
#[derive(Debug, Default)]
struct Copied {
    salvaged: Salvaged,
    mailboxes: Mailboxes,
    exchanges: Exchanges,
    /// Records that are intact as bytes, but cannot be parsed.
    unreadable: u64,
    /// Devices whose own record was lost.
    renewed: usize,
    /// A number above the ids of all numbered devices.
    highest_id: u64,
    uptime_ms: u64,
    now_ms: u64,
}

fn copy(disk: &DataDir, built: &Path, checked: &Checked) -> Result<Copied, Problem> {
    let new = Arc::new(DataDir::open(built).map_err(Problem::failed)?);
    let mut log = Appender::open(new, LogOptions::default())?;
    let mut copied = Copied { now_ms: now_ms()?, ..Copied::default() };
    let mut progress = Progress::new(disk);
    let mut failed = None;
    let salvaged = store::salvage(disk, checked.state_of(), &mut |bytes| {
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
    copied.salvaged = salvaged.map_err(unread)?;
    copied.renewed = renew_devices(&copied, &mut log)?;
    // Without these, numbers of lost records would be given again.
    copied.exchanges.records().try_for_each(|record| log.push(&record))?;
    log.close()?;
    Ok(copied)
}

/// Makes the directory of the new store for the user of the old one; fails if it cannot, as a server of
/// that user could not open what is made in it.
fn make_built(disk: &DataDir, built: &Path) -> Result<(), Problem> {
    let made = disk.root().make_dir(BEING_BUILT).and_then(|()| File::open(built));
    let path = built.display();
    let made = made.map_err(|error| Problem::failed(format!("cannot create {path}: {error}")))?;
    disk.root().give_to_owner(&made).map_err(|error| {
        Problem::failed(format!(
            "{path} cannot be given to the user of the store: {error}; run it as that user; nothing was \
             changed"
        ))
    })
}

/// Writes a new record for each device that has only messages left, as if nothing had been
/// acked: without it the messages would be ignored.
fn renew_devices(copied: &Copied, log: &mut Appender) -> Result<usize, Problem> {
    let unknown = copied.mailboxes.unknown();
    for (id, next_seq) in &unknown {
        let device = device(id)?;
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

fn device(id: &str) -> Result<DeviceRef<'_>, Problem> {
    DeviceRef::parse(id).ok_or_else(|| Problem::failed(format!("{id} is no device's id")))
}

impl Copied {
    fn take(&mut self, record: &Record<'_>) {
        self.mailboxes.take(record);
        self.exchanges.take(record);
        let (one, other) = match record {
            Record::Message(MessageRecord { to, from, at, .. }) => {
                self.uptime_ms = self.uptime_ms.max(at.ms());
                (*to, *from)
            }
            Record::Outcome(OutcomeRecord { to, of, .. }) => (*to, *of),
            Record::Id(id) => (id.to, id.from),
            Record::Ended(EndedRecord { device, of, .. }) => {
                (*device, of.map_or(*device, |of| of.from))
            }
            Record::Device(DeviceRecord { device, .. })
            | Record::Acked { device, .. }
            | Record::Gone { device } => (*device, *device),
            Record::Exchange(_) => return,
        };
        for device in [one, other] {
            if let DeviceRef::Number(id) = device {
                self.highest_id = self.highest_id.max(id.get());
            }
        }
    }
}

/// Writes the state and the key of the new store; returns true if the key is new.
fn write_state(
    disk: &DataDir,
    built: &Path,
    checked: &Checked,
    copied: &Copied,
) -> Result<bool, Problem> {
    let Known::Listed(log) = identify(built)? else {
        return Err(Problem::failed("the new log has no manifest"));
    };
    let kept = checked.old_state.as_ref().map(|state| (state.of_log(), state.ids_to));
    let mark = mark_of_ids(kept, checked.listed);
    let is_new_key = checked.token_key.is_none() || mark.is_none();
    if !is_new_key {
        copy_key(disk, built).map_err(Problem::failed)?;
    }
    let key = OwnKey::check(built, None, is_new_key).map_err(Problem::failed)?;
    let file = File::open(built.join("token.key")).and_then(|file| file.sync_all());
    file.map_err(Problem::failed)?;
    let old = checked.old_state.clone();
    let unknown = if mark.is_some() { 0 } else { persistence::IDS_AHEAD };
    let ids_to = (copied.highest_id + 1).max(DeviceId::FIRST.get()) + unknown;
    let ids_to = ids_to.max(mark.unwrap_or_default());
    let state = old.map_or_else(ServerState::new, Ok).and_then(|state| state.for_store(log.store));
    let mut state = state.map_err(Problem::failed)?;
    state.ids_to = ids_to;
    state.uptime_ms = state.uptime_ms.max(copied.uptime_ms);
    state.token_key = Some(key);
    let built = Dir::open(built).map_err(Problem::failed)?;
    state.write_for(disk.root(), &built).map_err(Problem::failed)?;
    Ok(is_new_key)
}

/// Copies the key with its mode: a group may have been given access to it.
fn copy_key(disk: &DataDir, built: &Path) -> io::Result<()> {
    let (name, flags) = ("token.key", OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL);
    let key = disk.root().read_file(name, KEY_LEN_MAX)?;
    let mut copy = Dir::open(built)?.open_file(name, flags)?;
    copy.set_permissions(disk.root().metadata_of(name)?.permissions())?;
    copy.write_all(&key)
}

/// Returns a mark above every id that may have been given, even if the log has no trace of it.
/// `None` if neither the state nor the manifest knows: then an id may be given again, and so the
/// tokens of its earlier device must not be accepted.
fn mark_of_ids(kept: Option<(StateOf, u64)>, listed: Option<Identity>) -> Option<u64> {
    // A state restored from a backup by itself does not know which ids were given since.
    let is_current = |of: StateOf| {
        let is_older =
            |log: Identity| log.store != of.store || log.state_generation > of.generation;
        !listed.is_some_and(is_older)
    };
    let kept = kept.filter(|(of, _)| is_current(*of)).map(|(_, ids_to)| ids_to);
    let noted = listed.map(|log| log.ids_to).filter(|&ids_to| ids_to > 0);
    noted.max(kept)
}

fn identify(dir: &Path) -> Result<Known, Problem> {
    let disk = DataDir::open_to_read(dir).map_err(Problem::failed)?;
    store::identify(&disk).map_err(Problem::failed)
}

/// Returns the path at which the new store waits to be moved into place; its time is not used by
/// an earlier repair.
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

fn is_mount(path: &Path) -> bool {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Moves the old store away and the new one into place; continues where an earlier attempt
/// stopped.
fn put_in_place(dir: &Path, ready: &Path) -> io::Result<PathBuf> {
    let name = ready.file_name().unwrap_or_default().to_string_lossy();
    let damaged = dir.join(format!("{DAMAGED}{}", name.trim_start_matches(REPAIRED)));
    let (log, new_log) = (dir.join("log"), ready.join("log"));
    if is_there(&new_log)? {
        let is_log_dir = match fs::metadata(&log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_damage(&error) => false,
            log => log?.is_dir(),
        };
        if is_log_dir && is_there(&damaged)? {
            // The old log has been moved already, and somebody has made an empty directory
            // since.
            fs::remove_dir(&log)?;
        } else if is_log_dir {
            fs::rename(&log, &damaged)?;
        } else if is_there(&log)? {
            make_dir(dir, &damaged)?;
            fs::rename(&log, damaged.join("log"))?;
        }
        fs::rename(&new_log, &log)?;
    }
    make_dir(dir, &damaged)?;
    for file in FILES {
        let (old, new) = (dir.join(file), ready.join(file));
        if !is_there(&new)? {
            continue;
        }
        if is_there(&old)? {
            fs::rename(&old, damaged.join(file))?;
        }
        fs::rename(&new, &old)?;
    }
    for changed in [&damaged, ready, dir] {
        File::open(changed)?.sync_all()?;
    }
    // Only a lock file is left in `ready`.
    fs::remove_dir_all(ready)?;
    File::open(dir)?.sync_all()?;
    Ok(damaged)
}

/// Makes a directory in `dir`, unless it is there.
fn make_dir(dir: &Path, made: &Path) -> io::Result<()> {
    let name = made.file_name().unwrap_or_default().to_string_lossy();
    match Dir::open(dir)?.make_dir(&name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Returns true if anything exists at the path. If the system cannot tell, that is an error:
/// treating it as missing would lose it.
fn is_there(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.map(|_| true),
    }
}

fn remove(dir: &Path) -> Result<(), Problem> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let path = dir.display();
            Err(Problem::failed(format!(
                "{path}, of an unfinished repair, cannot be removed: {error}"
            )))
        }
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
    clock::now().map(|since| since.as_millis() as u64).map_err(Problem::failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use switchboard_broker::{ExchangeRecord, PartitionId};

    use super::super::records::{ALICE, BOB, REASON, device, ended, message, outcome};
    use super::*;

    /// Repairs a log with these records, of which the first with a reason is damaged. Returns the state
    /// of the exchanges: next, settled and applied at alice's partition, and at bob's.
    fn exchanges_after_repair(records: &[Record<'_>]) -> Vec<[u64; 3]> {
        let dir = tempfile::tempdir().unwrap();
        let (old, built) = (dir.path().join("old"), dir.path().join("built"));
        let mut log =
            Appender::open(Arc::new(DataDir::open(&old).unwrap()), LogOptions::default()).unwrap();
        records.iter().for_each(|record| log.push(record).unwrap());
        log.close().unwrap();
        let segment = old.join("log/00000001.seg");
        let bytes = fs::read(&segment).unwrap();
        let at = bytes.windows(REASON.len()).position(|part| part == REASON.as_bytes()).unwrap();
        let file = File::options().write(true).open(&segment).unwrap();
        file.write_all_at(b"rotten", at as u64).unwrap();
        let disk = DataDir::open_to_read(&old).unwrap();
        copy(&disk, &built, &Checked::default()).unwrap();
        let mut found = Vec::new();
        let read = |record: &Record<'_>| {
            if let Record::Exchange(it) = record {
                found.push(((it.partition, it.with), [it.next, it.settled_to, it.applied_to]));
            }
        };
        data::read_all(&DataDir::open_to_read(&built).unwrap(), read).unwrap();
        // The last one counts.
        let [alice, bob] = [ALICE, BOB].map(PartitionId::of);
        let last = |pair| found.iter().rev().find(|(of, _)| *of == pair).map(|(_, state)| *state);
        [(alice, bob), (bob, alice)].into_iter().filter_map(last).collect()
    }

    /// Where the record of an end was lost, its number would be given to the next one, and the sender's
    /// side, which has applied it, would take that for the first and tell nobody.
    #[test]
    fn no_number_of_an_outcome_is_given_twice_after_a_repair() {
        let known = [device(ALICE, 0), device(BOB, 0), message(1, true)];
        let exchange = |own, with, [next, settled_to, applied_to]: [u64; 3]| {
            let [partition, with] = [own, with].map(PartitionId::of);
            Record::Exchange(ExchangeRecord { partition, with, next, settled_to, applied_to })
        };
        let of_bob = exchange(BOB, ALICE, [8, 7, 1]);
        let of_alice = exchange(ALICE, BOB, [4, 3, 9]);
        for (records, expected) in [
            // The end is lost, the outcome is not.
            (vec![ended(1, 1), outcome(1, 1)], vec![[1, 1, 2], [2, 1, 1]]),
            (vec![ended(1, 4), ended(2, 5)], vec![[6, 1, 1]]),
            (vec![ended(1, 4), of_alice], vec![[4, 3, 9], [9, 1, 1]]),
            (vec![ended(1, 9), of_bob, outcome(1, 5)], vec![[1, 1, 6], [8, 7, 1]]),
            (vec![ended(1, 9), of_bob, ended(2, 11)], vec![[1, 1, 1], [12, 7, 1]]),
            // The outcome is lost, the end is not: it is sent again.
            (vec![outcome(1, 1), ended(1, 1)], vec![[2, 1, 1]]),
        ] {
            let records = [&known[..], &records].concat();
            assert_eq!(exchanges_after_repair(&records), expected, "{records:?}");
        }
    }

    /// An id was once given twice, and the token of its first device opened the mailbox of the
    /// second.
    #[test]
    fn which_ids_were_given_is_known_or_no_token_counts() {
        let state = |store, generation, ids_to| Some((StateOf { store, generation }, ids_to));
        let listed = |state_generation, ids_to| {
            let (store, has_segments, is_half) = (7, true, false);
            Some(Identity { store, state_generation, ids_to, has_segments, is_half })
        };
        for (kept, listed, expected) in [
            (state(7, 3, 500), listed(3, 500), Some(500)),
            (state(7, 3, 500), None, Some(500)),
            (None, listed(3, 400), Some(400)),
            // Restored from a backup.
            (state(7, 2, 300), listed(3, 400), Some(400)),
            (state(7, 2, 300), listed(3, 0), None),
            // The state is of another store.
            (state(8, 9, 900), listed(3, 0), None),
            (None, listed(3, 0), None),
            (None, None, None),
        ] {
            assert_eq!(mark_of_ids(kept, listed), expected, "{kept:?} {listed:?}");
        }
    }

    #[test]
    fn two_repairs_in_one_second_have_names_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let first = free_name(dir.path(), 1_000);
        assert_eq!(first, dir.path().join("repaired-1970-01-01T000001Z"));
        // The first was moved into place: its time is still in the name of the old store.
        fs::create_dir(dir.path().join("log.damaged-1970-01-01T000001Z")).unwrap();
        let second = free_name(dir.path(), 1_999);
        assert_eq!(second, dir.path().join("repaired-1970-01-01T000002Z"));
    }
}
