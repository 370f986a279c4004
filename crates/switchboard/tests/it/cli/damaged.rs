//! Every file of a data directory removed, truncated, zeroed, flipped and exchanged: `store
//! check` reports it, no server starts on it, and after `store repair` one does, with the intact
//! data.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::stopped::{device, send, server};
use super::{Ran, Shell, Value, binary};

pub(super) const SEGMENT: &str = "log/00000001.seg";

/// Returns a data directory in which three messages wait for alice.
pub(super) fn data() -> Shell {
    let shell = Shell::new();
    let running = server(&shell);
    device(&shell, &running, "alice");
    for text in ["one", "two", "three"] {
        send(&shell, &running, &format!("alice {text}"));
    }
    running.terminate();
    // It contains no data, and is large.
    fs::remove_file(dir(&shell).join("ballast")).ok();
    shell
}

pub(super) fn dir(shell: &Shell) -> PathBuf {
    shell.directory.path().join("switchboard-data")
}

pub(super) fn copy(from: &Path, to: &Path) {
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

/// Returns the number of bytes up to the last one that is not zero.
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

/// Ways to damage a file; the second path is the same file of another store.
const DAMAGES: [(&str, Damage); 9] = [
    ("missing", |path, _| fs::remove_file(path).unwrap()),
    ("a folder", |path, _| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }),
    ("a pipe", |path, _| {
        fs::remove_file(path).unwrap();
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    }),
    ("cut", |path, _| change(path, |bytes| bytes.truncate(used(bytes) / 2))),
    ("zeroed", |path, _| change(path, |bytes| bytes.fill(0))),
    ("first byte", |path, _| flip(path, |_| 0)),
    ("middle byte", |path, _| flip(path, |used| used / 2)),
    ("last byte", |path, _| flip(path, |used| used - 1)),
    ("exchanged", |path, other| copy_file(other, path)),
];

/// Returns the number of messages that wait for alice, or `None` if she is not known.
pub(super) fn waiting(shell: &Shell) -> Option<usize> {
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
                // The manifest knows the id, without which the records would be useless.
                (None, "first byte") => assert_eq!(found, Some(3), "{case}"),
                (None, "cut") => assert!(found < Some(3), "{case}"),
                // It may be in a record that is not a message.
                (None, "middle byte" | "last byte") => assert!(found >= Some(2), "{case}"),
                (None, _) => assert_eq!(found, None, "{case}"),
            }
            let running = server(&shell);
            let ran = shell.run(&format!("send --wait 0s --url {} alice x", running.url()));
            assert_eq!(ran.code == Some(0), found.is_some(), "{case}: {}", ran.err);
            let log = running.terminate().log;
            assert!(!log.contains("restored from a backup"), "{case}: {log}");
        }
    }
}

/// A start that was refused made an empty `log/`, and `mv` then put the real one into it.
#[test]
fn a_refused_start_makes_no_log_where_one_was_moved_away() {
    let shell = data();
    let (log, away) = (dir(&shell).join("log"), shell.directory.path().join("away"));
    fs::rename(&log, &away).unwrap();
    refused(&shell, "log/ is away");
    assert!(!log.exists());
    fs::rename(away, log).unwrap();
    server(&shell).terminate();
    assert_eq!(waiting(&shell), Some(3));
    // A store that has no records yet may lose its empty folder, in a copy by files.
    let shell = Shell::new();
    server(&shell).terminate();
    fs::remove_dir(dir(&shell).join("log")).unwrap();
    let running = server(&shell);
    device(&shell, &running, "alice");
    send(&shell, &running, "alice x");
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
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "nothing to repair: the store is intact\n"));
    flip(&dir(&shell).join(SEGMENT), |used| used / 3);
    flip(&dir(&shell).join(SEGMENT), |used| used - 1);
    fs::remove_file(dir(&shell).join("token.key")).unwrap();
    fs::remove_file(dir(&shell).join("state.json")).unwrap();
    let said = shell.run("store check").err;
    assert!(said.contains("token.key") && said.contains("state.json"), "{said}");
    assert_eq!(said.matches("00000001.seg is damaged").count(), 2, "{said}");
}

/// A repair ends with renames; after a crash between any two of them the next one finishes it.
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

/// Nothing is damaged in it, so nothing of it may be given up by a repair.
#[test]
fn a_directory_of_an_older_format_is_refused_and_left_as_it_is() {
    let shell = data();
    change(&dir(&shell).join("MANIFEST"), |bytes| {
        for slot in bytes.chunks_mut(4096) {
            slot[8] = 1;
            let checksum = crc32c::crc32c(&slot[..124]);
            slot[124..128].copy_from_slice(&checksum.to_le_bytes());
        }
    });
    let files = ["MANIFEST", "state.json", SEGMENT];
    let content = || files.map(|file| fs::read(dir(&shell).join(file)).unwrap());
    let before = content();
    let start = "--listen 127.0.0.1:0 --data-dir switchboard-data";
    for line in [start, "store check", "store repair", "mailbox list", "mailbox drop --yes alice"] {
        let ran = shell.run(line);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{line}");
        for words in ["MANIFEST has format version 1", "start with an empty data directory"] {
            assert!(ran.err.contains(words), "{line}: {}", ran.err);
        }
        assert!(content() == before, "{line}");
    }
}

/// The path of the log's directory is taken by something else.
#[test]
fn a_log_that_is_no_folder_is_refused_and_repaired() {
    let shell = data();
    let log = dir(&shell).join("log");
    fs::remove_dir_all(&log).unwrap();
    fs::write(&log, "x").unwrap();
    assert_eq!(shell.run("store check").code, Some(1));
    refused(&shell, "a file");
    let ran = shell.run("store repair");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(shell.run("store check").code, Some(0));
    server(&shell).terminate();
}

/// The repair once built the new store but could not move the log away, and from then on no
/// start was possible.
#[test]
fn a_log_on_a_mount_of_its_own_is_not_repaired_and_says_why() {
    let shell = data();
    let log = dir(&shell).join("log");
    fs::remove_file(dir(&shell).join("state.json")).unwrap();
    let script = "mount --bind \"$1\" \"$1\" && shift && exec \"$@\"";
    let mut repair = Command::new("unshare");
    repair.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    repair.arg(&log).arg(env!("CARGO_BIN_EXE_switchboard")).args(["store", "repair"]);
    let ran = Ran::from(repair.current_dir(shell.directory.path()).output().unwrap());
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.err.contains("log is a mount of its own"), "{}", ran.err);
    assert_eq!(shell.run("store repair").code, Some(0));
    assert_eq!(waiting(&shell), Some(3));
}

/// A full disk once affected standard error, too, and each command ended by SIGABRT instead of
/// by its exit code.
#[test]
fn exit_codes_hold_where_standard_error_cannot_be_written() {
    let shell = data();
    fs::remove_file(dir(&shell).join("state.json")).unwrap();
    for (line, code) in [("serve", 1), ("store check", 1), ("serve --set nothing=1", 2)] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = shell.command(line).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(code), "{line}");
    }
}

/// It was once taken for damage: a repair by another user than the server's gave up the files
/// that it may not read.
#[test]
fn what_permissions_hide_is_not_given_up_as_damaged() {
    let shell = data();
    fs::remove_file(dir(&shell).join("state.json")).unwrap();
    for file in ["token.key", SEGMENT] {
        let path = dir(&shell).join(file);
        let mode = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        for line in ["store check", "store repair"] {
            let ran = run_unprivileged(&shell, line);
            assert_eq!(ran.code, Some(1), "{file}: {line}: {}", ran.out);
            assert!(ran.err.contains("run it as the server's user"), "{}", ran.err);
        }
        fs::set_permissions(&path, mode).unwrap();
    }
    assert_eq!(shell.run("store repair").code, Some(0));
    assert_eq!(waiting(&shell), Some(3));
}

/// Returns all files and directories in a directory, and itself.
fn all_in(path: PathBuf) -> Vec<PathBuf> {
    let mut all = vec![path];
    let mut at = 0;
    while at < all.len() {
        let inside = fs::read_dir(&all[at]).into_iter().flatten();
        all.extend(inside.map(|entry| entry.unwrap().path()).collect::<Vec<_>>());
        at += 1;
    }
    all
}

/// After a repair by root, as with `sudo`, the service could not open its store.
#[test]
fn what_root_makes_in_the_directory_of_a_user_is_that_users() {
    // Nobody else can give a file away.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let is_nobodys = |shell: &Shell, case: &str| {
        for path in all_in(dir(shell)) {
            let owner = fs::metadata(&path).unwrap();
            let (user, group) = (owner.uid(), owner.gid());
            assert_eq!((user, group), (NOBODY, NOBODY), "{case}: {}", path.display());
        }
    };
    let damages: [(&str, &[&str]); 3] = [
        ("a new manifest", &["MANIFEST"]),
        ("a new key", &["state.json", "MANIFEST"]),
        ("a new log", &["log/00000001.seg"]),
    ];
    for (case, lost) in damages {
        let shell = data();
        for path in all_in(dir(&shell)) {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let ran = shell.run("mailbox drop alice --yes");
        assert_eq!(ran.code, Some(0), "{case}: {}", ran.err);
        is_nobodys(&shell, "a mailbox is dropped");
        for file in lost {
            fs::remove_file(dir(&shell).join(file)).unwrap();
        }
        let ran = shell.run("store repair");
        assert_eq!(ran.code, Some(0), "{case}: {}", ran.err);
        is_nobodys(&shell, case);
        fs::remove_file(dir(&shell).join("LOCK")).ok();
        server(&shell).terminate();
        is_nobodys(&shell, "a start");
    }
    let shell = Shell::new();
    fs::create_dir(dir(&shell)).unwrap();
    chown(dir(&shell), Some(NOBODY), Some(NOBODY)).unwrap();
    server(&shell).terminate();
    is_nobodys(&shell, "a first start");
}

const NOBODY: u32 = 65_534;

/// Runs a command as an unprivileged user.
fn run_unprivileged(shell: &Shell, line: &str) -> Ran {
    let mut command = shell.command(line);
    if rustix::process::geteuid().is_root() {
        let data = dir(shell);
        let inside = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path());
        for path in inside.chain([data.clone(), data.join(SEGMENT), shell.directory.path().into()])
        {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        command.uid(NOBODY).gid(NOBODY);
    }
    Ran::from(command.output().unwrap())
}

/// As in a mounted backup or snapshot: it was once called damaged, because files were opened for
/// writing.
#[test]
fn a_store_that_cannot_be_written_is_read() {
    let (shell, mounted) = (data(), Shell::new());
    copy(&dir(&shell), &dir(&mounted));
    chmod(&shell, 0o400, 0o500);
    for line in ["store check", "mailbox list", "mailbox show alice", "store repair"] {
        let ran = run_unprivileged(&shell, line);
        assert_eq!(ran.code, Some(0), "{line}: {}", ran.err);
    }
    let ran = run_unprivileged(&shell, "mailbox drop alice --yes");
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    for line in ["store check", "mailbox list", "mailbox show alice", "store repair"] {
        let ran = on_read_only(&mounted, line);
        assert_eq!(ran.code, Some(0), "{line}: {}", ran.err);
    }
    fs::remove_file(dir(&mounted).join("state.json")).unwrap();
    let ran = on_read_only(&mounted, "store repair");
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.err.contains("Read-only file system"), "{}", ran.err);
}

fn chmod(shell: &Shell, file: u32, folder: u32) {
    let log = dir(shell).join("log");
    for within in [&dir(shell), &log] {
        for entry in fs::read_dir(within).unwrap().map(Result::unwrap) {
            let mode = if entry.path().is_dir() { folder } else { file };
            fs::set_permissions(entry.path(), Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// Runs a command with the data directory on a read-only file system.
fn on_read_only(shell: &Shell, line: &str) -> Ran {
    let inner = shell.command(line);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    command.arg("mount --bind $0 $0 && mount -o remount,bind,ro $0 && exec \"$@\"");
    command.arg(dir(shell)).arg(inner.get_program()).args(inner.get_args());
    command.current_dir(shell.directory.path());
    for (name, _) in inner.get_envs() {
        command.env_remove(name);
    }
    Ran::from(command.output().expect("`unshare` mounts: install util-linux"))
}

/// Without the open file that each segment needs, a repair once gave up the segments that it
/// could not open.
#[test]
fn too_few_open_files_are_no_damage() {
    let shell = data();
    fs::remove_file(dir(&shell).join("state.json")).unwrap();
    let binary = shell.command("x").get_program().to_owned();
    for most in 3..12 {
        for what in ["check", "repair"] {
            let mut command = Command::new("sh");
            command.args(["-c", "ulimit -n $0 && exec \"$@\"", &most.to_string()]).arg(&binary);
            command.args(["store", what, "--data-dir", "switchboard-data"]);
            let ran = Ran::from(command.current_dir(shell.directory.path()).output().unwrap());
            let case = format!("{what} with {most} files");
            let (out, err) = (ran.out, ran.err);
            assert!(!out.contains("token.key is new"), "{case}: {out}");
            assert!(ran.code != Some(0) || waiting(&shell) == Some(3), "{case}: {out}");
            assert!(!err.contains("token.key is") && !err.contains("seg is"), "{case}: {err}");
        }
    }
    assert_eq!(shell.run("store repair").code, Some(0));
    assert_eq!(waiting(&shell), Some(3));
}

/// An id was once given twice: the new state knew only the ids with records in the log.
#[test]
fn ids_that_were_given_are_known_without_the_state() {
    let shell = data();
    let ids_to = || {
        let state = fs::read(dir(&shell).join("state.json")).unwrap();
        serde_json::from_slice::<Value>(&state).unwrap()["ids_to"].as_u64().unwrap()
    };
    let given = ids_to();
    assert!(given >= 100_000_003, "each sender got one: {given}");
    fs::remove_file(dir(&shell).join("state.json")).unwrap();
    let ran = shell.run("store repair");
    assert!(ran.code == Some(0) && !ran.out.contains("token.key is new"), "{}", ran.out);
    assert_eq!(ids_to(), given);
    // Now no file knows them.
    server(&shell).terminate();
    for file in ["state.json", "MANIFEST"] {
        fs::remove_file(dir(&shell).join(file)).unwrap();
    }
    let ran = shell.run("store repair");
    assert!(ran.out.contains("token.key is new"), "{} {}", ran.out, ran.err);
    assert_eq!(waiting(&shell), Some(3));
}

/// It was once called a damaged disk, and the suggested remedy did not help.
#[test]
fn what_lies_where_the_server_wants_to_write_is_named() {
    let whole = data();
    for name in ["state.json.new", "repair.tmp"] {
        let shell = Shell::new();
        copy(&dir(&whole), &dir(&shell));
        let path = dir(&shell).join(name);
        fs::remove_file(&path).ok();
        let line = if name == "repair.tmp" {
            fs::write(&path, "x").unwrap();
            "store repair"
        } else {
            fs::create_dir(&path).unwrap();
            "--listen 127.0.0.1:0 --data-dir switchboard-data"
        };
        let ran = shell.run(line);
        assert_eq!(ran.code, Some(1), "{name}: {}", ran.err);
        assert!(ran.err.contains(&format!("switchboard-data/{name}")), "{name}: {}", ran.err);
        assert!(!ran.err.contains("store repair"), "{name}: {}", ran.err);
        assert_eq!(shell.run("store check").code, Some(0), "{name}");
    }
}

/// An exposed key was once silently replaced, which invalidated every token.
#[test]
fn a_repair_leaves_it_to_the_operator_what_to_do_with_an_exposed_key() {
    let shell = data();
    fs::remove_file(dir(&shell).join("state.json")).unwrap();
    let key = dir(&shell).join("token.key");
    let mode = |mode| fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    let ran = shell.run("store repair");
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.err.contains("chmod 600"), "{}", ran.err);
    mode(0o600);
    assert!(!shell.run("store repair").out.contains("token.key is new"));
}
