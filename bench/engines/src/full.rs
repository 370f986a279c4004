//! The disk is full, and then there is room again.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::ensure;

use crate::engine::Kind;

const BATCH: u64 = 64;
/// Larger than what any of them allocates ahead.
const DISK: &str = "size=192m";
/// What is deleted to make room.
const BALLAST: usize = 32 << 20;
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(200);

/// Whether it goes on when there is room, and whether all is there after a new start.
pub(crate) fn row(kind: Kind, folder: &Path) -> anyhow::Result<String> {
    let disk = folder.join("disk");
    fs::create_dir(&disk)?;
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return Ok("not measured: no right to mount".to_owned());
    }
    let found = fill(kind, &disk);
    ensure!(Command::new("umount").arg(&disk).status()?.success(), "cannot unmount");
    found
}

fn fill(kind: Kind, disk: &Path) -> anyhow::Result<String> {
    let place = disk.join("store");
    fs::create_dir(&place)?;
    fs::write(disk.join("ballast"), vec![b'b'; BALLAST])?;
    let mut engine = kind.open(&place)?;
    let mut durable = 0;
    let error = loop {
        match engine.append(durable, BATCH) {
            Ok(()) => durable += BATCH,
            Err(error) => break error,
        }
    };
    fs::remove_file(disk.join("ballast"))?;
    let mut goes_on = false;
    for _ in 0..TRIES {
        // Another number: what failed may be there.
        sleep(PAUSE);
        if engine.append(1 << 40, BATCH).is_ok() {
            (goes_on, durable) = (true, durable + BATCH);
            break;
        }
    }
    drop(engine);
    let after = if goes_on { "goes on when there is room" } else { "needs a restart" };
    let found = match kind.open(&place).and_then(|mut engine| engine.index()) {
        Ok(count) if count >= durable => "nothing lost".to_owned(),
        Ok(count) => format!("{count} of {durable} there"),
        Err(error) => format!("does not open: {error:#}"),
    };
    Ok(format!("\"{error:#}\"; {after}; {found}"))
}
