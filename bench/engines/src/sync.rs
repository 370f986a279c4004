//! One sync fails, as told by strace: what the engine says, and whether it goes on as if nothing
//! had been.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;

use crate::engine::Kind;

/// The first argument of a process that is to meet the failure.
pub(crate) const CHILD: &str = "--meet-a-failing-sync";
const BATCH: u64 = 64;
const BATCHES: u64 = 300;
/// Which sync of the thread fails, of all that it makes; fjall makes dozens when it is opened.
const FAILS: &str = "inject=fdatasync,fsync:error=EIO:when=150";
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// What a process said that met it, and what is there afterwards.
pub(crate) fn row(kind: Kind, folder: &Path) -> anyhow::Result<String> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e", FAILS]);
    strace.arg(std::env::current_exe()?).args([CHILD, kind.name()]).arg(folder);
    let Ok(output) = strace.stderr(Stdio::inherit()).output() else {
        return Ok("not measured: no strace".to_owned());
    };
    let said = String::from_utf8(output.stdout)?;
    let (durable, said) = said.trim().split_once(' ').context("the process said nothing")?;
    let durable: u64 = durable.parse()?;
    let found = match kind.open(folder).and_then(|mut engine| engine.index()) {
        Ok(count) if count >= durable => "nothing lost".to_owned(),
        Ok(count) => format!("{count} of {durable} there"),
        Err(error) => format!("does not open: {error:#}"),
    };
    Ok(format!("{said}; {found}"))
}

/// Appends until a sync fails, tries to go on, says what came of it and ends without closing.
pub(crate) fn child(kind: Kind, folder: &Path) -> anyhow::Result<()> {
    let mut engine = kind.open(folder)?;
    let mut durable = 0;
    let mut said = "nothing was said".to_owned();
    for batch in 0..BATCHES {
        if let Err(error) = engine.append(batch * BATCH, BATCH) {
            said = format!("\"{error:#}\"");
            break;
        }
        durable += BATCH;
    }
    let mut goes_on = false;
    for _ in 0..TRIES {
        sleep(PAUSE);
        if engine.append(1 << 40, BATCH).is_ok() {
            (goes_on, durable) = (true, durable + BATCH);
            break;
        }
    }
    let after = if goes_on { "goes on" } else { "refuses until it is opened again" };
    println!("{durable} {said}; {after}");
    std::io::stdout().flush()?;
    // As if killed: nothing is closed.
    std::process::exit(0);
}
