//! A start and a repair that strace kills at each of their changes, or that meet a failing disk.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use rustix::process::Signal;

use super::damaged::{SEGMENT, copy, data, dir, waiting};
use super::stopped::server;
use super::{Ran, Shell};

/// A start that opens the store and then ends, because a key file of the operator is missing.
const START: &str = "--listen 127.0.0.1:0 --data-dir switchboard-data --set \
                     auth_hs256_secret_file=missing";
/// Output of such a start if nothing is wrong with the store.
const OPENED: &str = "auth_hs256_secret_file = \"missing\": No such file";

/// The calls that change what is left after a crash; each thread has its own count.
const CHANGES: &str = "rename,renameat,mkdir,mkdirat,unlink,unlinkat,rmdir,fsync,fdatasync";

fn under_strace(shell: &Shell, line: &str, options: &[&str]) -> Output {
    let inner = shell.command(line);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null"]).args(options).arg(inner.get_program());
    strace.args(inner.get_args()).current_dir(shell.directory.path());
    for (name, _) in inner.get_envs() {
        strace.env_remove(name);
    }
    strace.output().expect("`strace` kills at a system call: install it")
}

/// Kills a command as it begins its `nth` change; returns false if it ended before.
fn killed_at(shell: &Shell, line: &str, nth: usize) -> bool {
    let kill = format!("inject={CHANGES}:signal=KILL:when={nth}");
    let trace = format!("trace={CHANGES}");
    let ended = under_strace(shell, line, &["-e", &trace, "-e", &kill]).status;
    ended.signal() == Some(Signal::KILL.as_raw())
}

fn copy_of(shell: &Shell) -> Shell {
    let new = Shell::new();
    copy(&dir(shell), &dir(&new));
    new
}

#[track_caller]
fn opens(shell: &Shell, case: &str) {
    let ran = shell.run(START);
    assert!(ran.err.contains(OPENED), "{case}: {}", ran.err);
    assert_eq!(ran.err.matches("No such file").count(), 1, "{case}: the cause is said once");
}

/// Killed twice between the rename of state.json and the manifest's note of it, a valid store
/// once had a state two generations ahead, and was refused.
#[test]
fn a_start_that_is_killed_twice_at_any_change_opens_the_third_time() {
    let whole = data();
    let mut nth = 1;
    loop {
        let shell = copy_of(&whole);
        let is_killed = [killed_at(&shell, START, nth), killed_at(&shell, START, nth)];
        opens(&shell, &format!("killed twice at change {nth}"));
        assert_eq!(waiting(&shell), Some(3));
        if is_killed == [false; 2] {
            break;
        }
        nth += 1;
    }
    assert!(nth > 5, "{nth} changes are too few for a start");
}

#[test]
fn a_first_start_that_is_killed_at_any_change_opens_the_next_time() {
    for nth in 1.. {
        let shell = Shell::new();
        let is_killed = killed_at(&shell, START, nth);
        opens(&shell, &format!("killed at change {nth}"));
        assert_eq!(shell.run("store check").code, Some(0), "killed at change {nth}");
        if !is_killed {
            assert!(nth > 8, "{nth} changes are too few for a first start");
            break;
        }
    }
}

/// It once continued without a state, and everything it accepted was refused at the next start.
#[test]
fn a_first_start_that_cannot_write_its_state_ends_and_the_next_one_opens() {
    let shell = Shell::new();
    let in_the_way = dir(&shell).join("state.json.new");
    fs::create_dir_all(&in_the_way).unwrap();
    let ran = shell.run(START);
    assert!(ran.err.contains("state.json.new: Is a directory"), "{}", ran.err);
    fs::remove_dir(&in_the_way).unwrap();
    opens(&shell, "with room for its state");
    server(&shell).terminate();
    assert_eq!(shell.run("store check").code, Some(0));
}

/// A start afterwards opens the store or names the remedy, and the next repair makes a valid
/// store of it, without loss and without leftovers.
#[test]
fn a_repair_that_is_killed_at_any_change_is_repeated_or_finished() {
    let whole = data();
    fs::remove_file(dir(&whole).join("state.json")).unwrap();
    for nth in 1.. {
        let case = format!("killed at change {nth}");
        let shell = copy_of(&whole);
        let is_killed = killed_at(&shell, "store repair", nth);
        let said = shell.run(START).err;
        assert!(
            said.contains("switchboard store repair") || said.contains(OPENED),
            "{case}: {said}"
        );
        let ran = shell.run("store repair");
        assert_eq!(ran.code, Some(0), "{case}: {}", ran.err);
        assert_eq!(shell.run("store check").code, Some(0), "{case}");
        assert_eq!(waiting(&shell), Some(3), "{case}");
        let names = fs::read_dir(dir(&shell)).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        assert!(!names.iter().any(|name| name.starts_with("repair")), "{case}: {names:?}");
        opens(&shell, &case);
        if !is_killed {
            assert!(nth > 12, "{nth} changes are too few for a repair");
            break;
        }
    }
}

/// It may be as large as the log.
#[test]
fn an_unfinished_repair_is_removed_by_the_next_start() {
    let shell = data();
    let unfinished = dir(&shell).join("repair.tmp/log");
    fs::create_dir_all(&unfinished).unwrap();
    let ran = shell.run("store check");
    assert!(ran.out.contains("repair.tmp: an unfinished repair"), "{}", ran.out);
    assert!(unfinished.exists());
    opens(&shell, "with an unfinished repair");
    assert!(!dir(&shell).join("repair.tmp").exists());
}

#[test]
fn two_repairs_one_after_the_other_keep_both_damaged_stores() {
    let shell = data();
    for _ in 0..2 {
        fs::remove_file(dir(&shell).join("state.json")).unwrap();
        assert_eq!(shell.run("store repair").code, Some(0));
        opens(&shell, "repaired");
    }
    let names = fs::read_dir(dir(&shell)).unwrap().map(|entry| entry.unwrap().file_name());
    let kept = names.filter(|name| name.to_string_lossy().starts_with("log.damaged-"));
    assert_eq!(kept.count(), 2);
    assert_eq!(waiting(&shell), Some(3));
}

/// Calls that look at the disk, and may fail for reasons other than its content.
const LOOKS: &str = "openat,read,pread64,statx,getdents64";

/// Data that could temporarily not be read was once taken for damaged: a valid log was copied
/// without what could not be opened, and a valid key was replaced.
#[test]
fn a_repair_gives_up_nothing_because_a_call_fails_once() {
    let sound = data();
    let damaged = copy_of(&sound);
    fs::remove_file(dir(&damaged).join("state.json")).unwrap();
    let key = fs::read(dir(&sound).join("token.key")).unwrap();
    for error in ["ENFILE", "ENOMEM"] {
        for whole in [&sound, &damaged] {
            let shell = copy_of(whole);
            for nth in 1.. {
                let case = format!("{error} at look {nth}");
                let inject = format!("inject={LOOKS}:error={error}:when={nth}");
                let trace = format!("trace={LOOKS}");
                let ran = under_strace(&shell, "store repair", &["-e", &trace, "-e", &inject]);
                let ran = Ran::from(ran);
                let is_repaired = ran.out.contains("repaired") || ran.out.contains("finished");
                assert!(!is_repaired || !std::ptr::eq(whole, &sound), "{case}: {}", ran.out);
                assert!(!ran.out.contains("token.key is new"), "{case}: {}", ran.out);
                if is_repaired {
                    assert_eq!(waiting(&shell), Some(3), "{case}: {}", ran.out);
                    assert!(fs::read(dir(&shell).join("token.key")).unwrap() == key, "{case}");
                    fs::remove_dir_all(dir(&shell)).unwrap();
                    copy(&dir(whole), &dir(&shell));
                }
                if nth > 60 {
                    break;
                }
            }
            assert_eq!(shell.run("store repair").code, Some(0), "{error}");
            assert_eq!(waiting(&shell), Some(3), "{error}");
        }
    }
}

/// Runs a start whose reads of a file fail with EIO.
fn start_without(shell: &Shell, file: &str, when: &str) -> Ran {
    let path = fs::canonicalize(dir(shell).join(file)).unwrap();
    let inject = format!("inject=pread64:error=EIO{when}");
    let path = path.to_str().expect("a path in UTF-8");
    Ran::from(under_strace(shell, START, &["-P", path, "-e", "trace=pread64", "-e", &inject]))
}

/// The error once said only that a file cannot be read.
#[test]
fn a_start_says_what_to_do_with_a_disk_that_cannot_be_read() {
    let shell = data();
    for file in [SEGMENT, "MANIFEST"] {
        let base = file.trim_start_matches("log/");
        let said = start_without(&shell, file, "").err;
        assert!(said.contains(&format!("cannot read {base} at byte ")), "{said}");
        assert!(said.contains("backup, or run `switchboard store repair`"), "{said}");
    }
    // One of the manifest's two copies is enough.
    let said = start_without(&shell, "MANIFEST", ":when=1").err;
    assert!(said.contains(OPENED), "{said}");
    assert_eq!(waiting(&shell), Some(3));
}
