//! Every file of a data directory taken away, cut, zeroed, flipped and exchanged: `store check` names
//! it, no server starts on it, and after `store repair` one does, with what is intact.

use std::fs;
use std::path::{Path, PathBuf};

use super::stopped::{device, send, server};
use super::{Shell, Value, binary};

const SEGMENT: &str = "log/00000001.seg";

/// A data directory in which three messages wait for alice.
fn data() -> Shell {
    let shell = Shell::new();
    let running = server(&shell);
    device(&shell, &running, "alice");
    for text in ["one", "two", "three"] {
        send(&shell, &running, &format!("alice {text}"));
    }
    running.terminate();
    shell
}

fn dir(shell: &Shell) -> PathBuf {
    shell.directory.path().join("switchboard-data")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            copy_file(&entry.path(), &to);
        }
    }
}

fn copy_file(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Bytes up to the last that is not zero.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

fn flip(path: &Path, at: impl FnOnce(usize) -> usize) {
    change(path, |bytes| {
        let at = at(used(bytes));
        bytes[at] ^= 1;
    });
}

type Damage = fn(&Path, &Path);

/// What is done to a file; the second path is the same file of another store.
const DAMAGES: [(&str, Damage); 7] = [
    ("missing", |path, _| fs::remove_file(path).unwrap()),
    ("cut", |path, _| change(path, |bytes| bytes.truncate(used(bytes) / 2))),
    ("zeroed", |path, _| change(path, |bytes| bytes.fill(0))),
    ("first byte", |path, _| flip(path, |_| 0)),
    ("middle byte", |path, _| flip(path, |used| used / 2)),
    ("last byte", |path, _| flip(path, |used| used - 1)),
    ("exchanged", |path, other| copy_file(other, path)),
];

/// Messages that wait for alice, or `None` when she is not known.
fn waiting(shell: &Shell) -> Option<usize> {
    let ran = shell.run("mailbox show alice --json");
    (ran.code == Some(0)).then(|| ran.out.lines().count())
}

fn refused(shell: &Shell, case: &str) {
    let line = ["--listen", "127.0.0.1:0", "--data-dir", "switchboard-data"];
    let ran = binary().args(line).current_dir(shell.directory.path()).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{case}: {said}");
    assert!(said.contains("switchboard store repair"), "{case}: {said}");
}

#[test]
fn every_damaged_file_is_found_refused_and_repaired() {
    let (whole, other) = (data(), data());
    for (file, intact) in
        [(SEGMENT, None), ("MANIFEST", Some(3)), ("state.json", Some(3)), ("token.key", Some(3))]
    {
        for (name, damage) in DAMAGES {
            // One of the manifest's two copies may be damaged; see the next test.
            if file == "MANIFEST" && name.ends_with("byte") {
                continue;
            }
            let case = format!("{file} {name}");
            let shell = Shell::new();
            copy(&dir(&whole), &dir(&shell));
            damage(&dir(&shell).join(file), &dir(&other).join(file));
            let ran = shell.run("store check");
            assert_eq!(ran.code, Some(1), "{case}: {}", ran.out);
            let base = file.trim_start_matches("log/");
            assert!(ran.err.contains(base), "{case}: {}", ran.err);
            refused(&shell, &case);
            let ran = shell.run("store repair");
            assert_eq!(ran.code, Some(0), "{case}: {}", ran.err);
            assert_eq!(
                ran.out.contains("token.key is new"),
                file == "token.key",
                "{case}: {}",
                ran.out
            );
            let ran = shell.run("store check");
            assert_eq!(ran.code, Some(0), "{case}: {}", ran.err);
            let found = waiting(&shell);
            match (intact, name) {
                (Some(count), _) => assert_eq!(found, Some(count), "{case}"),
                // The manifest knows the id without which the records would be nothing.
                (None, "first byte") => assert_eq!(found, Some(3), "{case}"),
                (None, "cut") => assert!(found < Some(3), "{case}"),
                // It may be in the record of something else than a message.
                (None, "middle byte" | "last byte") => assert!(found >= Some(2), "{case}"),
                (None, _) => assert_eq!(found, None, "{case}"),
            }
            let running = server(&shell);
            let ran = shell.run(&format!("send --url {} --durable alice x", running.url()));
            assert_eq!(ran.code == Some(0), found.is_some(), "{case}: {}", ran.err);
            running.terminate();
        }
    }
}

#[test]
fn one_damaged_copy_of_the_manifest_is_named_and_mended() {
    let shell = data();
    flip(&dir(&shell).join("MANIFEST"), |_| 0);
    let ran = shell.run("store check");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.contains("one of its two copies is damaged"), "{}", ran.out);
    server(&shell).terminate();
    assert!(!shell.run("store check").out.contains("copies"));
    assert_eq!(waiting(&shell), Some(3));
}

#[test]
fn all_faults_are_named_at_once_and_a_sound_store_is_left_alone() {
    let shell = data();
    let ran = shell.run("store repair");
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "nothing to repair: the store is sound\n"));
    flip(&dir(&shell).join(SEGMENT), |used| used / 3);
    flip(&dir(&shell).join(SEGMENT), |used| used - 1);
    fs::remove_file(dir(&shell).join("token.key")).unwrap();
    fs::remove_file(dir(&shell).join("state.json")).unwrap();
    let said = shell.run("store check").err;
    assert!(said.contains("token.key") && said.contains("state.json"), "{said}");
    assert_eq!(said.matches("00000001.seg is damaged").count(), 2, "{said}");
}

/// A repair ends with renames; after a crash between any two of them it is finished.
#[test]
fn a_repair_that_was_interrupted_is_finished() {
    let whole = data();
    fs::remove_file(dir(&whole).join("state.json")).unwrap();
    let repaired = Shell::new();
    copy(&dir(&whole), &dir(&repaired));
    assert_eq!(repaired.run("store repair").code, Some(0));
    for moved in 0..4 {
        let shell = Shell::new();
        copy(&dir(&whole), &dir(&shell));
        let ready = dir(&shell).join("repaired-2026-01-01T000000Z");
        for (at, name) in ["log", "MANIFEST", "state.json", "token.key"].into_iter().enumerate() {
            let (here, there) = (dir(&shell).join(name), ready.join(name));
            fs::create_dir_all(&ready).unwrap();
            let to = if at < moved { &here } else { &there };
            if to.is_dir() {
                fs::remove_dir_all(to).unwrap();
            }
            let from = dir(&repaired).join(name);
            if from.is_dir() { copy(&from, to) } else { copy_file(&from, to) }
        }
        assert_eq!(shell.run("store check").code, Some(1), "after {moved}");
        refused(&shell, &format!("after {moved}"));
        let ran = shell.run("store repair");
        assert_eq!(ran.code, Some(0), "after {moved}: {}", ran.err);
        assert_eq!(shell.run("store check").code, Some(0), "after {moved}");
        assert_eq!(waiting(&shell), Some(3), "after {moved}");
    }
}

/// Written by a server whose log had no manifest: it is taken as it is, once.
#[test]
fn a_directory_of_an_older_version_is_brought_up_to_date_once() {
    let shell = data();
    let state = dir(&shell).join("state.json");
    let mut fields: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    fields["version"] = 1.into();
    for newer in ["store", "generation", "manifest", "token_key", "checksum"] {
        fields.as_object_mut().unwrap().remove(newer).unwrap();
    }
    fs::write(&state, fields.to_string()).unwrap();
    fs::remove_file(dir(&shell).join("MANIFEST")).unwrap();
    // Its segment, too, says that there was a manifest.
    refused(&shell, "a newer segment");
    change(&dir(&shell).join(SEGMENT), |bytes| {
        bytes[8] = 1;
        let checksum = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&checksum.to_le_bytes());
    });
    let ran = shell.run("store check");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.contains("an older version wrote it"), "{}", ran.out);
    let log = server(&shell).terminate().log;
    assert!(log.contains("from now on it has one"), "{log}");
    assert_eq!(waiting(&shell), Some(3));
    let log = server(&shell).terminate().log;
    assert!(!log.contains("from now on it has one"), "{log}");
}
