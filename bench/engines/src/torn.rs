//! Power is lost while the last commit is written: half of its sectors are on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::engine::Kind;

const BATCH: u64 = 64;
const BATCHES: u64 = 100;
/// A disk writes these whole or not at all.
const SECTOR: usize = 512;

/// Which half of the sectors is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    First,
    Last,
}

/// What each file holds.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Whether the store opens with all commits but the last.
pub(crate) fn row(kind: Kind, folder: &Path) -> anyhow::Result<String> {
    let place = folder.join("store");
    fs::create_dir(&place)?;
    let mut engine = kind.open(&place)?;
    for batch in 0..BATCHES - 1 {
        engine.append(batch * BATCH, BATCH)?;
    }
    let before = read(&place)?;
    engine.append((BATCHES - 1) * BATCH, BATCH)?;
    let after = read(&place)?;
    drop(engine);
    let first = reopen(kind, folder, &tear(&before, &after, Half::First));
    let last = reopen(kind, folder, &tear(&before, &after, Half::Last));
    Ok(if first == last { first } else { format!("first half: {first}; last half: {last}") })
}

/// Says how many messages a store with these files has.
fn reopen(kind: Kind, folder: &Path, files: &Files) -> String {
    let place = folder.join("torn");
    let found = || -> anyhow::Result<u64> {
        for (name, content) in files {
            let path = place.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&place))?;
            fs::write(path, content)?;
        }
        kind.open(&place)?.index()
    };
    let found = found();
    fs::remove_dir_all(&place).ok();
    match found {
        Ok(count) if count == (BATCHES - 1) * BATCH => "opens without the last commit".to_owned(),
        Ok(count) => match count.checked_sub((BATCHES - 1) * BATCH) {
            Some(rest) => format!("opens with {rest} of the {BATCH} messages of the last commit"),
            None => format!("opens with {count} of {}", BATCHES * BATCH),
        },
        Err(error) => format!("does not open: {error:#}"),
    }
}

/// The files as they were, with half of the sectors as they became.
fn tear(before: &Files, after: &Files, half: Half) -> Files {
    let sector = |files: &Files, name: &PathBuf, at: usize| -> Vec<u8> {
        let content = files.get(name).map_or(&[][..], Vec::as_slice);
        let start = (at * SECTOR).min(content.len());
        content[start..(start + SECTOR).min(content.len())].to_vec()
    };
    let mut changed = Vec::new();
    for (name, content) in after {
        for at in 0..content.len().div_ceil(SECTOR) {
            if sector(before, name, at) != sector(after, name, at) {
                changed.push((name, at));
            }
        }
    }
    let (first, last) = changed.split_at(changed.len() / 2);
    let mut torn = before.clone();
    for &(name, at) in if half == Half::First { first } else { last } {
        let new = sector(after, name, at);
        let content = torn.entry(name.clone()).or_default();
        let end = at * SECTOR + new.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[at * SECTOR..end].copy_from_slice(&new);
    }
    torn
}

fn read(folder: &Path) -> anyhow::Result<Files> {
    let mut content = Files::new();
    for path in files(folder)? {
        // SQLite's index of its log is memory that processes share, not data.
        if !path.to_string_lossy().ends_with("-shm") {
            content.insert(path.strip_prefix(folder)?.to_owned(), fs::read(&path)?);
        }
    }
    Ok(content)
}

/// All files below a folder.
pub(crate) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
