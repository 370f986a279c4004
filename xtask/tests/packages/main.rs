//! The packages in `target/package`: their contents, and a message through what they install.
//!
//! `cargo xtask test` makes them and runs this; `cargo xtask package` and then
//! `cargo test -p xtask --test packages -- --ignored` do the same.

#![allow(clippy::unwrap_used, reason = "in a test, what cannot go on has failed")]

mod deb;
mod running;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use running::{Running, assert_serves, output};
use tempfile::TempDir;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/package").canonicalize().unwrap()
}

/// Returns the package whose file name begins and ends as given.
fn package(start: &str, end: &str) -> PathBuf {
    let fits = |name: &str| name.starts_with(start) && name.ends_with(end);
    let found: Vec<PathBuf> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| fits(&path.file_name().unwrap().to_string_lossy()))
        .collect();
    assert_eq!(found.len(), 1, "{start}...{end}: {found:?}");
    found[0].clone()
}

fn archive() -> PathBuf {
    package(&format!("switchboard-{VERSION}-x86_64-unknown-linux-gnu"), ".tar.gz")
}

fn wheel() -> PathBuf {
    package(&format!("switchboard_broker-{VERSION}-py3-none-manylinux_2_28_x86_64"), ".whl")
}

fn npm_main() -> PathBuf {
    package(&format!("switchboard-broker-{VERSION}"), ".tgz")
}

fn npm_platform() -> PathBuf {
    package(&format!("switchboard-broker-linux-x64-gnu-{VERSION}"), ".tgz")
}

/// Unpacks a tar archive; returns the one folder in it.
fn unpacked(archive: &Path) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    output(Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(place.path()));
    let inner = fs::read_dir(place.path()).unwrap().next().unwrap().unwrap().path();
    (place, inner)
}

/// Installs the wheel into a new environment; returns the binary in it.
fn installed_by_pip() -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    // The environment that made the packages has `venv`.
    let python = folder().join("../tools/venv/bin/python3");
    output(Command::new(python).args(["-m", "venv"]).arg(place.path()));
    let pip = place.path().join("bin/pip");
    output(Command::new(pip).args(["install", "--quiet", "--no-index"]).arg(wheel()));
    let binary = place.path().join("bin/switchboard");
    (place, binary)
}

/// Installs both packages into a new folder, without a registry.
fn installed_by_npm() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("package.json"), "{}").unwrap();
    let mut install = Command::new("npm");
    install.args(["install", "--silent", "--offline", "--no-audit", "--no-fund"]);
    output(install.arg(npm_main()).arg(npm_platform()).current_dir(place.path()));
    place
}

fn files_below(folder: &Path) -> BTreeSet<String> {
    let listed = output(Command::new("find").args([".", "-type", "f"]).current_dir(folder));
    listed.lines().map(|line| line.trim_start_matches("./").to_owned()).collect()
}

fn assert_holds(files: &BTreeSet<String>, wanted: &[&str]) {
    for file in wanted {
        assert!(files.contains(*file), "{file} is missing in {files:#?}");
    }
}

/// Checks that all files which the README and the guides link to are in the package, too.
fn assert_links_lead_somewhere(folder: &Path) {
    for page in ["README.md", "docs/install.md", "docs/operations.md", "docs/containers.md"] {
        let page = folder.join(page);
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                assert!(page.with_file_name(target).exists(), "{page:?} links to {target}");
            }
        }
    }
}

#[test]
#[ignore = "requires the packages"]
fn the_archive_is_complete_and_its_binary_serves() {
    let (_place, folder) = unpacked(&archive());
    assert_eq!(
        folder.file_name().unwrap().to_string_lossy(),
        format!("switchboard-{VERSION}-x86_64-unknown-linux-gnu")
    );
    let files = files_below(&folder);
    let wanted = [
        "switchboard",
        "man/switchboard.1",
        "man/switchboard-send.1",
        "completions/switchboard.bash",
        "completions/_switchboard",
        "completions/switchboard.fish",
        "systemd/switchboard.service",
        "switchboard.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "THIRD-PARTY-LICENSES.txt",
        "README.md",
        "CHANGELOG.md",
    ];
    assert_holds(&files, &wanted);
    assert_links_lead_somewhere(&folder);
    assert_serves(&|| Command::new(folder.join("switchboard")));
}

#[test]
#[ignore = "requires the packages"]
fn the_wheel_installs_a_binary_that_serves() {
    let (_place, binary) = installed_by_pip();
    assert_serves(&|| Command::new(&binary));
}

#[test]
#[ignore = "requires the packages"]
fn npm_installs_a_command_that_serves() {
    let place = installed_by_npm();
    assert_serves(&|| Command::new(place.path().join("node_modules/.bin/switchboard")));
}

#[test]
#[ignore = "requires the packages"]
fn npx_finds_the_command_and_passes_its_exit_code_on() {
    let place = installed_by_npm();
    let npx = |words: &[&str]| {
        let mut npx = Command::new("npx");
        npx.args(["--offline", "switchboard-broker"]).args(words).current_dir(place.path());
        npx
    };
    assert!(output(&mut npx(&["--version"])).contains(VERSION));
    let status = npx(&["--no-such-option"]).output().unwrap().status;
    assert_eq!(status.code(), Some(2), "2 is wrong usage");
}

/// A signal to the command reaches Node.js, which is not the server.
#[test]
#[ignore = "requires the packages"]
fn the_npm_command_ends_its_server_with_itself() {
    let place = installed_by_npm();
    for signal in [Signal::TERM, Signal::INT] {
        let mut command = Command::new(place.path().join("node_modules/.bin/switchboard"));
        command.args(["--memory", "--listen", "127.0.0.1:0"]).current_dir(place.path());
        let server = Running::start(&mut command, "Switchboard is listening on ");
        assert!(server.end_by(signal).success(), "{signal:?}");
    }
}

/// npm forwards no signals: Node.js and the server once ran on without it, and kept their port.
#[test]
#[ignore = "requires the packages"]
fn the_server_ends_with_the_npx_that_started_it() {
    let place = installed_by_npm();
    for signal in [Signal::TERM, Signal::HUP, Signal::KILL] {
        let mut npx = Command::new("npx");
        npx.args(["--offline", "switchboard-broker", "--memory", "--listen", "127.0.0.1:0"]);
        npx.current_dir(place.path());
        Running::start(&mut npx, "Switchboard is listening on ").end_by(signal);
    }
}

/// The end of a shell is not that of npm: `nohup` means that the command goes on.
#[test]
#[ignore = "requires the packages"]
fn the_npm_command_outlives_the_shell_that_started_it() {
    let place = installed_by_npm();
    let mut shell = Command::new("sh");
    shell.args(["-c", "node_modules/.bin/switchboard --memory --listen 127.0.0.1:0 & wait"]);
    shell.env_remove("npm_config_user_agent").current_dir(place.path());
    let server = Running::start(&mut shell, "Switchboard is listening on ");
    assert!(server.goes_on_after(Signal::KILL), "it ended with its shell");
}

#[test]
#[ignore = "requires the packages"]
fn all_packages_hold_the_same_binary_and_the_licences() {
    let (_place, folder) = unpacked(&archive());
    let binary = fs::read(folder.join("switchboard")).unwrap();
    let (_place, wheel) = installed_by_pip();
    assert!(binary == fs::read(wheel).unwrap(), "the wheel has another binary");
    let (_place, npm) = unpacked(&npm_platform());
    assert!(binary == fs::read(npm.join("bin/switchboard")).unwrap(), "npm has another binary");
    let deb = deb::unpacked();
    let debs = fs::read(deb.path().join("usr/bin/switchboard")).unwrap();
    assert!(binary == debs, "the .deb has another binary");

    let licenses = ["LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY-LICENSES.txt"];
    assert_holds(&files_below(&npm), &licenses);
    assert_holds(&files_below(&deb.path().join("usr/share/doc/switchboard-broker")), &licenses);
    let third_party = fs::read_to_string(folder.join("THIRD-PARTY-LICENSES.txt")).unwrap();
    for library in ["rustls", "ring", "tokio", "the Rust standard library"] {
        assert!(third_party.contains(library), "{library}");
    }
}

/// A platform package of another version would bring another binary than the main one promises.
#[test]
#[ignore = "requires the packages"]
fn the_npm_packages_name_each_other_by_their_version() {
    let (_place, main) = unpacked(&npm_main());
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(main.join("package.json")).unwrap()).unwrap();
    assert_eq!(manifest["version"], VERSION);
    assert_eq!(manifest["optionalDependencies"]["switchboard-broker-linux-x64-gnu"], VERSION);
}

#[test]
#[ignore = "requires the packages"]
fn the_checksums_are_those_of_all_packages() {
    let mut check = Command::new("sha256sum");
    check.args(["--check", "--strict", "SHA256SUMS"]).current_dir(folder());
    let checked = output(&mut check).lines().count();
    assert_eq!(checked + 1, fs::read_dir(folder()).unwrap().count());
}
