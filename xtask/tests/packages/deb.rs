//! The Debian package, installed where that disturbs nobody.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::running::{Running, assert_delivers, output};
use crate::{VERSION, assert_holds, assert_links_lead_somewhere, files_below, package};

const NAME: &str = "switchboard-broker";
const BINARY: &str = "/usr/bin/switchboard";
const CONFIGURATION: &str = "/etc/switchboard/switchboard.toml";
const DATA: &str = "/var/lib/switchboard";

fn deb() -> PathBuf {
    package(&format!("{NAME}_{VERSION}-"), "_amd64.deb")
}

/// Returns its files, in a folder that stands for `/`.
pub(crate) fn unpacked() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    output(Command::new("dpkg-deb").arg("--extract").arg(deb()).arg(place.path()));
    place
}

#[test]
#[ignore = "requires the packages"]
fn the_deb_has_everything_in_its_place() {
    let place = unpacked();
    let wanted = [
        "usr/bin/switchboard",
        "etc/switchboard/switchboard.toml",
        "usr/lib/systemd/system/switchboard.service",
        "usr/share/man/man1/switchboard.1.gz",
        "usr/share/man/man1/switchboard-send.1.gz",
        "usr/share/bash-completion/completions/switchboard",
        "usr/share/zsh/vendor-completions/_switchboard",
        "usr/share/fish/vendor_completions.d/switchboard.fish",
        "usr/share/doc/switchboard-broker/copyright",
        "usr/share/doc/switchboard-broker/examples/switchboard.toml",
        "usr/share/doc/switchboard-broker/README.md",
    ];
    assert_holds(&files_below(place.path()), &wanted);
    assert_links_lead_somewhere(&place.path().join("usr/share/doc/switchboard-broker"));

    let unit = place.path().join("usr/lib/systemd/system/switchboard.service");
    let unit = fs::read_to_string(unit).unwrap();
    assert!(unit.contains(&format!("ExecStart={BINARY} --config {CONFIGURATION}\n")), "{unit}");
    assert!(unit.contains("\nUser=switchboard\n"), "{unit}");
}

#[test]
#[ignore = "requires the packages"]
fn the_maintainer_scripts_are_valid_and_the_configuration_is_a_conffile() {
    let place = tempfile::tempdir().unwrap();
    output(Command::new("dpkg-deb").arg("--control").arg(deb()).arg(place.path()));
    for script in ["postinst", "prerm", "postrm"] {
        output(Command::new("sh").arg("-n").arg(place.path().join(script)));
    }
    let conffiles = fs::read_to_string(place.path().join("conffiles")).unwrap();
    assert_eq!(conffiles.trim(), CONFIGURATION);
    let control = fs::read_to_string(place.path().join("control")).unwrap();
    assert!(control.contains("libc6 (>= 2.28)"), "{control}");
}

/// Purges the package, whatever the result of the test.
struct Installed;

impl Installed {
    fn install() -> Installed {
        let installed = Installed;
        output(Command::new("dpkg").arg("--install").arg(deb()));
        installed
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // A test that got this far has checked the removal itself.
        let _ = Command::new("dpkg").args(["--purge", NAME]).output();
    }
}

/// Returns the reason why the package cannot be installed here, if there is one.
fn obstacle() -> Option<&'static str> {
    if !rustix::process::getuid().is_root() {
        return Some("only root can install packages");
    }
    // It would start the service on a machine that is in use.
    Path::new("/run/systemd/system").exists().then_some("systemd runs here")
}

#[test]
#[ignore = "requires the packages"]
fn the_deb_is_installed_serves_and_goes() {
    if let Some(obstacle) = obstacle() {
        println!("not installed: {obstacle}");
        return;
    }
    assert!(
        !user_exists() && !Path::new(DATA).exists(),
        "there is a user switchboard, or {DATA}: this test would remove both"
    );
    let installed = Installed::install();
    let data = fs::metadata(DATA).unwrap();
    assert_eq!(data.permissions().mode() & 0o777, 0o700);
    serve_a_message();
    let key = Path::new(DATA).join(first_file(DATA));
    assert_eq!(fs::metadata(&key).unwrap().uid(), data.uid(), "{key:?}");

    // An upgrade keeps configuration and data.
    let changed = format!("{}\ndrain = \"1s\"\n", fs::read_to_string(CONFIGURATION).unwrap());
    fs::write(CONFIGURATION, &changed).unwrap();
    output(Command::new("dpkg").arg("--install").arg(deb()));
    assert_eq!(fs::read_to_string(CONFIGURATION).unwrap(), changed);
    assert!(key.exists());

    output(Command::new("dpkg").args(["--remove", NAME]));
    assert!(!Path::new(BINARY).exists());
    assert!(key.exists() && Path::new(CONFIGURATION).exists() && user_exists());

    output(Command::new("dpkg").args(["--purge", NAME]));
    assert!(!Path::new(DATA).exists() && !Path::new("/etc/switchboard").exists());
    assert!(!user_exists());
    drop(installed);
}

/// Runs the server as the unit does, without systemd and on a free port, and sends a message.
fn serve_a_message() {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=switchboard", "--regid=switchboard", "--clear-groups", BINARY]);
    command.args(["--config", CONFIGURATION, "--listen", "127.0.0.1:0"]).current_dir("/");
    let server = Running::start(&mut command, "Switchboard is listening on ");
    assert_delivers(&|| Command::new(BINARY), &server);
    assert!(server.terminate().success());
}

fn user_exists() -> bool {
    Command::new("getent").args(["passwd", "switchboard"]).output().unwrap().status.success()
}

fn first_file(folder: &str) -> String {
    let first = fs::read_dir(folder).unwrap().next().expect("the server keeps something");
    first.unwrap().file_name().to_string_lossy().into_owned()
}
