//! Persistence of the brokers' state: their records as bytes, the replay at the start, reading
//! messages back, and compacting the oldest part of the log.
//!
//! The brokers know no bytes and [`crate::store`] knows no messages; this module stands between
//! them.

mod places;
mod reader;
pub(crate) mod record;
pub(crate) mod state;
mod turns;
mod worth;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use switchboard_broker::{
    Broker, DigestKey, Directory, Jump, LastRun, Limits, Moment, Now, Position, Record, Replay,
    ShardId, StampClock,
};

use crate::auth::OwnKey;
use crate::store::{self, DataDir, Found, LogOptions, OpenError, Recovered, StateNote, StoreError};
pub(crate) use reader::{Answer, Chunk, Job, Reader, Shards};
use state::{DirOrigin, ServerState, StateError};

/// Number of ids reserved at once, most of which a start after a crash skips.
const IDS_RESERVED: u64 = 10_000;
/// Number of reserved ids that are left unused, since shards ask without a lock: enough for 1,024
/// shards that ask at the same time, two for each.
const IDS_MARGIN: u64 = 2_048;
/// Most ids that may have been given without a record of them in the store.
pub(crate) const IDS_AHEAD: u64 = IDS_RESERVED + IDS_MARGIN;

/// The brokers as the last run left them, and the log for their records.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) brokers: Vec<(Broker, Replay)>,
    pub(crate) recovered: Option<Recovered>,
    pub(crate) ids: Ids,
    /// The server's uptime at the beginning of this run.
    pub(crate) uptime: Moment,
}

/// The ids that may be given: those below a mark that is on disk.
#[derive(Debug)]
pub(crate) struct Ids {
    reserved_to: AtomicU64,
    /// Clock whose stamp is noted with them.
    clock: StampClock,
    kept: Option<std::sync::Mutex<Kept>>,
}

/// The server's own state, and its note in the log's manifest.
#[derive(Debug)]
struct Kept {
    disk: Arc<DataDir>,
    state: ServerState,
    note: StateNote,
}

/// Opens the data directory and replays its log into the brokers; without a directory all is in
/// memory, and begins empty.
pub(crate) fn open(
    data_dir: Option<&Path>,
    directory: &Arc<Directory>,
    shards: usize,
    limits: &Limits,
    options: LogOptions,
    wall_ms: u64,
) -> anyhow::Result<Opened> {
    let Some(dir) = data_dir else { return in_memory(directory, shards, limits) };
    // Looks for an interrupted repair before anything is made in the directory: after one, the
    // files that seem to be missing are in the repaired store, which is not in place yet.
    let is_there = dir.exists();
    anyhow::ensure!(
        !is_there || dir.is_dir(),
        "data_dir {}: it is a file; give a directory, which is made if it is not there",
        dir.display()
    );
    if is_there && let Some(path) = interrupted_repair(dir)? {
        anyhow::bail!(
            "{} is left of a repair that was interrupted: run `switchboard store repair` again",
            path.display()
        );
    }
    let disk = Arc::new(DataDir::open(dir).map_err(|error| refused(dir, error))?);
    remove_unfinished_repair(dir);
    let (mut state, origin) = opened_state(dir, &disk)?;
    directory.begin_ids_at(state.ids_to);
    // A backup does not know which ids were given after it was made. If one of them were given
    // again, the device that has its token could read the other's mailbox.
    if origin == DirOrigin::Copied {
        directory.skip_unknown_ids(wall_ms);
    }
    let new_broker = |shard| {
        let (directory, key) = (Arc::clone(directory), state.digest_key());
        let mut broker = Broker::new(ShardId(shard as u16), directory, key, limits.clone(), true);
        broker.name_mailboxes_after(state.epoch);
        broker
    };
    let mut brokers: Vec<_> =
        (0..shards).map(|shard| (new_broker(shard), Replay::default())).collect();
    let mut uptime = Moment::from_ms(state.uptime_ms);
    let mut unsure = Unsure::new(&state);
    let mut recovered = store::open(disk.clone(), options, &mut |position, bytes| {
        let record = record::read(bytes)
            .map_err(|error| format!("the record at {position:?} cannot be read: {error}"))?;
        // The uptime is noted only every 10 s; after a crash the newest message is nearer to
        // the end. It must not run backwards, since the duplicate window is counted by it.
        if let Record::Message(message) = &record {
            uptime = uptime.max(message.at);
        }
        let now = Now { at: uptime, wall_ms };
        if unsure.ends_before(position) {
            brokers.iter_mut().for_each(|(broker, _)| broker.all_may_have_been_pushed());
        }
        // Every record goes to all brokers: records know nothing of shards, and there may be
        // another number of them now.
        for (broker, replay) in &mut brokers {
            broker.replay(now, replay, &record, Position(position.to_u64()));
        }
        Ok(())
    })
    .map_err(|error| refused(dir, error))?;
    if let Some(end) = unsure.end() {
        brokers.iter_mut().for_each(|(broker, _)| broker.all_may_have_been_pushed());
        state.unsure_to = end;
    }
    report(dir, origin, &recovered.found, &brokers);
    let clock = resume(&state, uptime, wall_ms);
    brokers.iter_mut().for_each(|(broker, _)| broker.stamp_by(clock));
    let note = recovered.state_note();
    state.store = note.store();
    // A crash may have come between the last write of the state and its note. Without this another
    // crash after the next write would leave the state two generations ahead, and it would be
    // refused.
    note.set(state.generation, state.ids_to)?;
    let reserved_to = AtomicU64::new(state.ids_to);
    let kept = Some(std::sync::Mutex::new(Kept { disk, state, note }));
    let ids = Ids { reserved_to, clock, kept };
    let mut reserved = ids.reserve(directory.next_id(), uptime);
    if reserved.as_ref().is_err_and(is_no_space) && recovered.give_up_ballast() {
        reserved = ids.reserve(directory.next_id(), uptime);
    }
    if let Err(error) = reserved {
        if origin == DirOrigin::New || is_in_the_way(&error) {
            // A log without a state that belongs to it would be refused at the next start.
            return Err(error);
        }
        // Known devices can be served all the same. The reservation is retried all the time.
        tracing::warn!(%error, "no ids can be reserved; new devices are refused until they can");
    }
    Ok(Opened { brokers, recovered: Some(recovered), ids, uptime })
}

/// Finds the end of the part of a log in which everything counts as pushed; see
/// [`ServerState::unsure_to`].
#[derive(Debug)]
struct Unsure {
    to: u64,
    /// A position behind all records so far.
    read_to: u64,
    has_ended: bool,
}

impl Unsure {
    fn new(state: &ServerState) -> Unsure {
        Unsure { to: state.unsure_to, read_to: 0, has_ended: state.unsure_to == 0 }
    }

    /// Takes the position of the next record; returns true once, if the part ended before it.
    fn ends_before(&mut self, position: store::Position) -> bool {
        let position = position.to_u64();
        self.read_to = position + 1;
        position >= self.to && !std::mem::replace(&mut self.has_ended, true)
    }

    /// Ends the log; returns its end if the part reaches it.
    fn end(self) -> Option<u64> {
        (!self.has_ended).then_some(self.to.min(self.read_to))
    }
}

/// Returns true if a folder lies where the state is to be written: the error does not go away by
/// itself.
fn is_in_the_way(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<StateError>().and_then(StateError::io);
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::IsADirectory)
}

fn is_no_space(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StateError>().is_some_and(StateError::is_no_space)
        || error.downcast_ref::<StoreError>().is_some_and(StoreError::is_no_space)
}

/// Adds advice to an error of opening the log.
fn refused(dir: &Path, error: OpenError) -> anyhow::Error {
    let dir = dir.display();
    match error {
        OpenError::Damaged { .. } | OpenError::Wrong { .. } => anyhow::anyhow!(
            "data_dir {dir}: {error}; messages that were accepted may be lost: restore the whole \
             data directory from a backup, or run `switchboard store repair`, which keeps what is \
             intact"
        ),
        OpenError::Io(error) if error.is_damage() => anyhow::anyhow!(
            "data_dir {dir}: {error}; the disk does not return what was written there, and messages \
             that were accepted may be lost: restore the whole data directory from a backup, or run \
             `switchboard store repair`, which keeps what can be read; and replace the disk"
        ),
        OpenError::InUse(_) => anyhow::anyhow!(
            "data_dir {dir} is in use by another process: stop it, or give another directory by --data-dir"
        ),
        OpenError::Io(error) if error.io().kind() == ErrorKind::PermissionDenied => {
            anyhow::anyhow!(
                "data_dir {dir}: {error}; start the server where its user may write, or give another \
             directory by --data-dir"
            )
        }
        error => anyhow::Error::new(error).context(format!("data_dir {dir}")),
    }
}

/// Opens the state and checks that log and key belong to it; notes the key's fingerprint in it.
fn opened_state(dir: &Path, disk: &DataDir) -> anyhow::Result<(ServerState, DirOrigin)> {
    let known = store::identify(disk).map_err(|error| refused(dir, error))?;
    let (mut state, origin) = ServerState::open(disk.root(), known)?;
    let is_empty = known == store::Known::Nothing || origin == DirOrigin::New;
    let key = OwnKey::check(dir, state.token_key.as_deref(), is_empty)?;
    state.token_key = Some(key);
    Ok((state, origin))
}

fn in_memory(directory: &Arc<Directory>, shards: usize, limits: &Limits) -> anyhow::Result<Opened> {
    let mut key = [0; DigestKey::LEN];
    getrandom::fill(&mut key).context("no randomness from the system")?;
    let key = DigestKey::new(key);
    let brokers = (0..shards).map(|shard| {
        let (directory, key) = (Arc::clone(directory), key.clone());
        let broker = Broker::new(ShardId(shard as u16), directory, key, limits.clone(), false);
        (broker, Replay::default())
    });
    let reserved_to = AtomicU64::new(u64::MAX);
    let ids = Ids { reserved_to, clock: StampClock::default(), kept: None };
    Ok(Opened { brokers: brokers.collect(), recovered: None, ids, uptime: Moment::default() })
}

/// Returns the clock that stamps records, resumed from the last run's and moved by the time since.
fn resume(state: &ServerState, uptime: Moment, wall_ms: u64) -> StampClock {
    let last = LastRun {
        uptime: Moment::from_ms(state.uptime_ms),
        stamp_ms: state.stamp_ms,
        wall_ms: state.wall_ms,
    };
    let (clock, jump) = StampClock::resume(last, uptime, wall_ms);
    let Some(jump) = jump else { return clock };
    let (by, way) = match jump {
        Jump::Behind(by) => (by, "behind"),
        Jump::Ahead(by) => (by, "ahead of"),
    };
    let by = humantime::format_duration(Duration::from_secs(by.as_secs()));
    tracing::warn!(
        "the clock is {by} {way} the last run: the time that the server was down counts for nothing, no \
         message expires and no device ends because of it; check the clock, tokens go by it"
    );
    clock
}

fn report(dir: &Path, origin: DirOrigin, found: &Found, brokers: &[(Broker, Replay)]) {
    let waits = brokers.iter().map(|(broker, _)| broker.replayed_so_far());
    let (mailboxes, messages) =
        waits.fold((0, 0), |(a, b), (mailboxes, messages)| (a + mailboxes, b + messages));
    tracing::info!(
        data_dir = %dir.display(), mailboxes, messages,
        log_bytes = found.bytes, segments = found.segments, "store opened"
    );
    if let Some(cut) = &found.cut {
        tracing::warn!(
            file = cut.file,
            offset = cut.offset,
            bytes = cut.bytes,
            "the end of a write that a crash interrupted was cut off; nothing in it was accepted"
        );
    }
    for file in &found.abandoned {
        tracing::info!(file, "it was no part of the log any more and is deleted");
    }
    for file in &found.foreign {
        tracing::warn!(
            file,
            "a segment in log/ belongs to another log, or to an older state of this one; it is left as it \
             is, and nothing in it counts: move it to where it belongs"
        );
    }
    if origin == DirOrigin::Copied {
        tracing::warn!(
            "the data directory was copied or restored from a backup: all mailboxes get new names, so \
             that devices forget what they had seen, and new ids begin far above those that may have \
             been given since"
        );
    }
}

impl Ids {
    /// Returns whether the next id may be given, and whether more should be reserved soon.
    pub(crate) fn may_give(&self, next: u64) -> (bool, bool) {
        let to = self.reserved_to.load(Ordering::Acquire);
        (next.saturating_add(IDS_MARGIN) <= to, next.saturating_add(IDS_RESERVED / 2) > to)
    }

    /// Reserves ids behind `next`, and notes the uptime. Waits for the disk.
    pub(crate) fn reserve(&self, next: u64, uptime: Moment) -> anyhow::Result<()> {
        self.keep(next + IDS_AHEAD, uptime)
    }

    /// Gives back ids that were reserved and not given. Only at the end, when no shard asks any
    /// more.
    pub(crate) fn end(&self, next: u64, uptime: Moment) -> anyhow::Result<()> {
        self.keep(next, uptime)
    }

    fn keep(&self, ids_to: u64, uptime: Moment) -> anyhow::Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let mut kept = kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut changed = kept.state.clone();
        (changed.ids_to, changed.uptime_ms) = (ids_to, uptime.ms());
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (changed.wall_ms, changed.stamp_ms) = (wall.as_millis() as u64, self.clock.stamp(uptime));
        let generation = changed.write(kept.disk.root())?;
        // If this fails `kept.state` stays as it was, so the next attempt writes the same
        // generation again: the file is never two ahead of the manifest.
        kept.note.set(generation, ids_to)?;
        kept.state = changed;
        // Last: an id may be given only once its reservation is on disk.
        self.reserved_to.store(ids_to, Ordering::Release);
        Ok(())
    }
}

/// Prefix of the name of a directory with a repaired store that is complete and not yet in place.
pub(crate) const REPAIRED: &str = "repaired-";

/// Returns the directory of a repair that was interrupted while it put its store in place, if there
/// is one.
pub(crate) fn interrupted_repair(dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    let unlisted = |error| anyhow::anyhow!("cannot list {}: {error}", dir.display());
    for entry in std::fs::read_dir(dir).map_err(unlisted)? {
        let entry = entry.map_err(unlisted)?;
        if entry.file_name().to_string_lossy().starts_with(REPAIRED) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Name of the directory in which a repair builds a store; it counts for nothing before it is
/// renamed to one with the prefix [`REPAIRED`].
pub(crate) const BEING_BUILT: &str = "repair.tmp";

/// Removes what was left by a repair that was killed while it copied.
fn remove_unfinished_repair(dir: &Path) {
    let path = dir.join(BEING_BUILT);
    // It may be as large as the log. An error only warns: the server can run beside it.
    match std::fs::remove_dir_all(&path) {
        Ok(()) => tracing::info!(path = %path.display(), "an unfinished repair was removed"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "an unfinished repair cannot be removed");
        }
    }
}

/// Interval at which the uptime and the mark of ids are noted.
pub(crate) const HOUSEKEEPING: Duration = Duration::from_secs(10);
