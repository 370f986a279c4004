//! Output of the binary about itself: its version, completions, man pages.

use std::path::Path;
use std::process::Command;

use super::Shell;

#[test]
fn the_version_names_the_commit() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let root_of_clone = git(&["rev-parse", "--show-toplevel"]);
    let is_clone = root_of_clone.is_some_and(|found| {
        Path::new(found.trim()).canonicalize().unwrap() == root.canonicalize().unwrap()
    });
    let number = concat!("switchboard ", env!("CARGO_PKG_VERSION"));
    let expected = match git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| is_clone) {
        Some(commit) => format!("{number} ({})\n", commit.trim()),
        None => format!("{number}\n"),
    };
    assert_eq!(Shell::new().run("--version").out, expected);
}

#[test]
fn shells_complete_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = Shell::new().run(&format!("completions {shell}"));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        for word in ["listen", "mailbox", "body-json"] {
            assert!(ran.out.contains(word), "{shell}: {word}");
        }
    }
    let ran = Shell::new().run("completions tcsh");
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("bash"), "{}", ran.err);
}

#[test]
fn each_command_has_a_man_page() {
    let shell = Shell::new();
    let ran = shell.run("man pages/man1");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let page = |name: &str| {
        std::fs::read_to_string(shell.directory.path().join("pages/man1").join(name)).unwrap()
    };
    for name in ["switchboard", "switchboard-send", "switchboard-mailbox-drop"] {
        assert!(page(&format!("{name}.1")).contains(".SH SYNOPSIS"), "{name}");
    }
    assert!(page("switchboard-send.1").contains("Exit codes"));
    let shell = shell.with_file("file", "");
    assert_eq!(shell.run("man file").code, Some(1));
}
