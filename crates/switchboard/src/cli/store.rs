//! `switchboard store`: looks after the store of a stopped server.

use super::data::{self, Problem, read_all};
use super::{Exit, output};

/// What to do with the store.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Read all of the store, say what it holds, and where it is damaged; changes nothing
    #[command(after_help = "Exit codes: 0 sound, 1 damaged or not to be read, 2 wrong usage")]
    Check(data::Args),
}

/// Carries out `command`.
pub(super) fn run(command: &Command) -> Exit {
    let Command::Check(args) = command;
    match check(args) {
        Ok(report) => output::print(&report),
        Err(problem) => problem.report("vouch for the store"),
    }
}

fn check(args: &data::Args) -> Result<String, Problem> {
    let disk = args.open()?;
    let found = read_all(&disk, |_, _| {}).map_err(Problem::failed)?;
    let mut report = format!(
        "sound: {} segments, {} records, {} bytes\n",
        found.segments, found.records, found.bytes
    );
    if let Some(cut) = &found.cut {
        report.push_str(&format!(
            "{}: a write of {} bytes at byte {} was interrupted; nothing in it was accepted, and the \
             next start cuts it off\n",
            cut.file, cut.bytes, cut.offset
        ));
    }
    for file in &found.abandoned {
        report.push_str(&format!("{file}: holds nothing; the next start deletes it\n"));
    }
    Ok(report)
}
