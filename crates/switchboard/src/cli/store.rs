//! `switchboard store`: looks after the store of a stopped server.

use std::fs::{self, File};
use std::io::ErrorKind;

use super::data::{self, Problem, read_all_of};
use super::{Exit, output, repair};
use crate::auth::OwnKey;
use crate::ledger::state::{self, Origin, State, StateError};
use crate::ledger::{self, BEING_BUILT, record};
use crate::store::{self, DataDir, Found, Known};

/// What to do with the store.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Read all of the store, say what it holds, and where it is damaged; changes nothing
    #[command(after_help = "Exit codes: 0 sound, 1 damaged or not to be read, 2 wrong usage")]
    Check(data::Args),
    /// Make a sound store of what is intact in a damaged one, which is kept beside it
    #[command(
        long_about = "Make a sound store of what is intact in a damaged one.\n\nAll intact records \
                      are copied into a new log; what was there stays as log.damaged-TIME. Messages \
                      that cannot be read are lost. All mailboxes get new names, so every device \
                      starts over with what waits for it; some messages may come a second time. A \
                      state.json or token.key that cannot be used is made anew. Restoring a backup \
                      is better, if there is one. It needs room for a second log.",
        after_help = "Exit codes: 0 repaired, or nothing to repair, 1 failed, 2 wrong usage"
    )]
    Repair(data::Args),
}

/// Carries out `command`.
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

/// Fails if permissions hide a file: it is not damaged, and must not be given up as if it were.
fn may_read(disk: &DataDir) -> Result<(), Problem> {
    let dir = disk.path();
    let segments = fs::read_dir(dir.join("log")).into_iter().flatten().flatten();
    let files = ["MANIFEST", state::FILE, "token.key", "log"].map(|file| dir.join(file));
    let paths = files.into_iter().chain(segments.map(|entry| entry.path()));
    // To open a pipe would wait for whoever writes to it.
    for path in paths.filter(|path| path.is_file() || path.is_dir()) {
        if let Err(error) = File::open(&path)
            && error.kind() == ErrorKind::PermissionDenied
        {
            let path = path.display();
            return Err(Problem::failed(format!("{path}: {error}; run it as the server's user")));
        }
    }
    Ok(())
}

/// What there is to say of a store.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// A sentence for each thing that would stop a start.
    pub(super) faults: Vec<String>,
    notes: Vec<String>,
    found: Found,
    /// The state, if it can be used.
    pub(super) state: Option<State>,
    /// Fingerprint of the key, if it can be used.
    pub(super) token_key: Option<String>,
}

impl Checked {
    /// Reads everything.
    ///
    /// # Errors
    /// When it cannot be judged at all.
    pub(super) fn new(disk: &DataDir) -> Result<Checked, Problem> {
        let mut it = Checked::default();
        let dir = disk.path();
        may_read(disk)?;
        if dir.join(BEING_BUILT).exists() {
            it.notes.push(format!(
                "{BEING_BUILT}: an unfinished repair; the next start or repair removes it"
            ));
        }
        if let Some(path) = ledger::interrupted_repair(dir).map_err(Problem::failed)? {
            it.faults.push(format!("{} is left of an interrupted repair", path.display()));
        }
        let known = store::identify(disk);
        if let Err(error @ store::OpenError::Newer { .. }) = known {
            return Err(Problem::failed(error));
        }
        let known = known.unwrap_or(Known::Unlisted);
        if let Known::Listed(store::Identity { is_half: true, .. }) = known {
            it.notes.push(
                "MANIFEST: one of its two copies is damaged; the other one counts, and the next \
                 start writes both"
                    .to_owned(),
            );
        }
        let origin = it.check_state(disk, known)?;
        it.check_key(disk, origin);
        it.check_log(disk, origin)?;
        Ok(it)
    }

    fn check_state(&mut self, disk: &DataDir, known: Known) -> Result<Option<Origin>, Problem> {
        match State::open(disk.root(), known) {
            Ok((state, origin)) => {
                self.state = Some(state);
                Ok(Some(origin))
            }
            Err(error @ StateError::Newer { .. }) => Err(Problem::failed(error)),
            Err(error) => {
                self.faults.push(error.to_string());
                Ok(None)
            }
        }
    }

    fn check_key(&mut self, disk: &DataDir, origin: Option<Origin>) {
        let known = self.state.as_ref().and_then(|state| state.token_key.clone());
        match OwnKey::check(disk.path(), known.as_deref(), false) {
            Ok(fingerprint) => self.token_key = Some(fingerprint),
            // There is nothing yet that it could have signed.
            Err(_) if origin == Some(Origin::New) => {}
            Err(error) => self.faults.push(error.to_string()),
        }
    }

    fn check_log(&mut self, disk: &DataDir, origin: Option<Origin>) -> Result<(), Problem> {
        let has_manifest = origin != Some(Origin::Older);
        if !has_manifest {
            self.notes.push("an older version wrote it; the next start adds a MANIFEST".to_owned());
        }
        let error = match read_all_of(disk, has_manifest, |_, _| {}) {
            Ok(found) => {
                self.found = found;
                return Ok(());
            }
            Err(error @ store::OpenError::Newer { .. }) => return Err(Problem::failed(error)),
            Err(error) => error.to_string(),
        };
        let mut progress = data::Progress::new(disk);
        let salvaged = store::salvage(disk, State::store_of(disk.root()), &mut |bytes| {
            progress.step(bytes);
            record::read(bytes).ok();
        });
        drop(progress);
        let more = salvaged.map_or_else(|_| Vec::new(), |salvaged| salvaged.faults);
        // The first is in the list as well, in other words.
        let file = error.split(' ').next().unwrap_or_default();
        if !more.iter().any(|fault| fault.contains(file)) {
            self.faults.push(error);
        }
        self.faults.extend(more);
        Ok(())
    }

    fn report(&self) -> String {
        let found = &self.found;
        let mut report = format!(
            "sound: {} segments, {} records, {} bytes\n",
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
        for note in &self.notes {
            report.push_str(&format!("{note}\n"));
        }
        report
    }
}
