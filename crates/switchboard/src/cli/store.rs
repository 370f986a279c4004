//! `switchboard store`: checks and repairs the store of a stopped server.

use super::data::{self, Problem, read_all};
use super::{Exit, output, repair};
use crate::auth::{KeyError, OwnKey};
use crate::persistence::state::{DirOrigin, ServerState, StateError};
use crate::persistence::{self, BEING_BUILT};
use crate::store::{self, DataDir, Found, Identity, Known, OpenError, StateOf};

/// Subcommands of `switchboard store`.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Read the whole store, report what it holds and where it is damaged; changes nothing
    #[command(after_help = "Exit codes: 0 intact, 1 damaged or unreadable, 2 wrong usage")]
    Check(data::Args),
    /// Make a valid store from the intact parts of a damaged one, which is kept beside it
    #[command(
        long_about = "Repair a damaged store: keep all records that are intact.\n\nAll intact records \
                      are copied into a new log; what was there stays as log.damaged-TIME. Messages \
                      that cannot be read are lost. All mailboxes get new names, so every device \
                      starts over with what waits for it; some messages may come a second time. A \
                      state.json or token.key that cannot be used is replaced by a new one, the key also where nothing \
                      is left that tells which ids were given. Restoring a backup \
                      is better, if there is one. It needs room for a second log.",
        after_help = "Exit codes: 0 repaired, or nothing to repair, 1 failed, 2 wrong usage"
    )]
    Repair(data::Args),
}

/// Runs `command`.
pub(super) fn run(command: &Command) -> Exit {
    let (done, what) = match command {
        Command::Check(args) => (check(args), "vouch for the store"),
        Command::Repair(args) => (repair::run(args), "repair the store"),
    };
    match done {
        Ok(report) => output::print(&report),
        Err(problem) => problem.report(what),
    }
}

fn check(args: &data::Args) -> Result<String, Problem> {
    let disk = args.take()?;
    let checked = Checked::new(&disk)?;
    if !checked.faults.is_empty() {
        return Err(Problem::failed(checked.faults.join("; ")));
    }
    Ok(checked.report())
}

pub(super) fn unread(error: OpenError) -> Problem {
    match &error {
        OpenError::Io(cause) => Problem::unread(&error, Some(cause.io())),
        _ => Problem::failed(error),
    }
}

pub(super) fn unread_state(error: StateError) -> Problem {
    match error.io() {
        Some(cause) => Problem::unread(&error, Some(cause)),
        None => Problem::failed(error),
    }
}

/// The result of checking a store.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// One sentence for each problem that prevents a start.
    pub(super) faults: Vec<String>,
    notes: Vec<String>,
    found: Found,
    /// The state, if it can be used.
    pub(super) state: Option<ServerState>,
    /// Content of the state file, even if it does not match the rest.
    pub(super) old_state: Option<ServerState>,
    /// Content of the manifest.
    pub(super) listed: Option<Identity>,
    /// Fingerprint of the key, if it can be used.
    pub(super) token_key: Option<String>,
}

impl Checked {
    /// Reads everything.
    ///
    /// # Errors
    /// If the store cannot be judged: only missing or damaged data is a fault. Too many open
    /// files, permissions and the like say nothing about the store.
    pub(super) fn new(disk: &DataDir) -> Result<Checked, Problem> {
        let mut it = Checked::default();
        let dir = disk.path();
        if dir.join(BEING_BUILT).exists() {
            it.notes.push(format!(
                "{BEING_BUILT}: an unfinished repair; the next start or repair removes it"
            ));
        }
        if let Some(path) = persistence::interrupted_repair(dir).map_err(Problem::failed)? {
            it.faults.push(format!("{} is left of an interrupted repair", path.display()));
        }
        let known = match store::identify(disk) {
            Err(error) if error.is_damage() => Known::Unlisted,
            known => known.map_err(unread)?,
        };
        if let Known::Listed(identity) = known {
            it.listed = Some(identity);
        }
        if it.listed.is_some_and(|identity| identity.is_half) {
            it.notes.push(
                "MANIFEST: one of its two copies is damaged; the other one counts, and the next \
                 start writes both"
                    .to_owned(),
            );
        }
        let origin = it.check_state(disk, known)?;
        it.old_state = ServerState::read_intact(disk.root()).map_err(unread_state)?;
        it.check_key(disk, origin)?;
        it.check_log(disk)?;
        Ok(it)
    }

    fn check_state(&mut self, disk: &DataDir, known: Known) -> Result<Option<DirOrigin>, Problem> {
        match ServerState::open(disk.root(), known) {
            Ok((state, origin)) => {
                self.state = Some(state);
                Ok(Some(origin))
            }
            Err(error) if error.is_damage() => {
                self.faults.push(error.to_string());
                Ok(None)
            }
            Err(error) => Err(unread_state(error)),
        }
    }

    fn check_key(&mut self, disk: &DataDir, origin: Option<DirOrigin>) -> Result<(), Problem> {
        let known = self.state.as_ref().and_then(|state| state.token_key.clone());
        match OwnKey::check(disk.path(), known.as_deref(), false) {
            Ok(fingerprint) => self.token_key = Some(fingerprint),
            Err(error @ KeyError::Own { .. }) => return Err(Problem::unread(&error, error.io())),
            Err(error @ KeyError::NoRandomness(_)) => return Err(Problem::failed(error)),
            // It has not signed anything yet.
            Err(_) if origin == Some(DirOrigin::New) => {}
            Err(error) => self.faults.push(error.to_string()),
        }
        Ok(())
    }

    fn check_log(&mut self, disk: &DataDir) -> Result<(), Problem> {
        let error = match read_all(disk, |_| {}) {
            Ok(found) => {
                self.found = found;
                return Ok(());
            }
            Err(error) if error.is_damage() => error.to_string(),
            Err(error) => return Err(unread(error)),
        };
        let mut progress = data::Progress::new(disk);
        let salvaged = store::salvage(disk, self.state_of(), &mut |bytes| {
            progress.step(bytes);
        });
        drop(progress);
        let more = match salvaged {
            Err(error) if error.is_damage() => Vec::new(),
            salvaged => salvaged.map_err(unread)?.faults,
        };
        // The first fault is in the list as well, in other words.
        let file = error.split(' ').next().unwrap_or_default();
        if !more.iter().any(|fault| fault.contains(file)) {
            self.faults.push(error);
        }
        self.faults.extend(more);
        Ok(())
    }

    /// Returns the log that the state claims to belong to.
    pub(super) fn state_of(&self) -> Option<StateOf> {
        self.old_state.as_ref().map(ServerState::of_log)
    }

    fn report(&self) -> String {
        let found = &self.found;
        let mut report = format!(
            "intact: {} segments, {} records, {} bytes\n",
            found.segments, found.records, found.bytes
        );
        if let Some(cut) = &found.cut {
            report.push_str(&format!(
                "{}: a write of {} bytes at byte {} was interrupted; nothing in it was accepted, \
                 and the next start cuts it off\n",
                cut.file, cut.bytes, cut.offset
            ));
        }
        for file in &found.abandoned {
            report.push_str(&format!("{file}: is no part of the log; the next start deletes it\n"));
        }
        for file in &found.foreign {
            report.push_str(&format!(
                "{file}: belongs to another log, or to an older state of this one; it is left as it is\n"
            ));
        }
        for note in &self.notes {
            report.push_str(&format!("{note}\n"));
        }
        report
    }
}
