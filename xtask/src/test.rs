//! `cargo xtask test`: all checks that must pass before a change lands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use anyhow::{Result, bail};

use crate::browser::{self, Browser};
use crate::command::{Program, root};
use crate::machine::{
    ensure_linters, ensure_promtool, ensure_proxies, ensure_python, ensure_strace,
    ensure_systemd_analyze, print_version,
};
use crate::package;
use crate::step::{Failure, Step, run_all};

/// The test target that needs Chromium.
const BROWSER_TARGET: &str = "browser";

/// Checks to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TestOptions {
    /// True if the page is tested, which needs Chromium.
    pub(crate) browser: bool,
    /// True if packages are made and tested.
    pub(crate) packages: bool,
}

impl TestOptions {
    pub(crate) fn parse(words: &[&str]) -> Result<TestOptions> {
        let mut options = TestOptions { browser: true, packages: true };
        for &word in words {
            match word {
                "--no-browser" => options.browser = false,
                "--no-packages" => options.packages = false,
                unknown => bail!("`test` has no option {unknown:?}"),
            }
        }
        Ok(options)
    }
}

/// Runs all checks, quick ones first, and stops at the first failure.
pub(crate) fn run(options: &TestOptions) -> ExitCode {
    let mut steps = vec![Step::new("format", format)];
    // Before the long steps, so that a missing program is reported at once.
    steps.push(Step::new("strace", || ensure_strace().map(|strace| print_version(&strace))));
    steps.push(Step::new("promtool", || ensure_promtool().map(|tool| print_version(&tool))));
    steps.push(Step::new("systemd-analyze", || {
        ensure_systemd_analyze().map(|tool| print_version(&tool))
    }));
    steps.push(Step::new("python", || ensure_python().map(|python| print_version(&python))));
    steps.push(Step::new("proxies", || ensure_proxies().map(|found| print_places(&found))));
    steps.push(Step::new("linters", || ensure_linters().map(|folder| print_places(&[folder]))));
    if options.browser {
        steps.push(Step::new("browser", || Browser::ensure().map(|found| found.print_versions())));
    }
    if options.packages {
        steps.push(package::tools());
    }
    let tests = if options.browser { all_tests } else { tests_without_browser };
    steps.push(Step::new("lints", lints));
    steps.push(Step::new("tests", tests));
    steps.push(Step::new("docs", docs));
    if options.packages {
        steps.extend(package::steps());
        steps.push(Step::new("package tests", package_tests));
    }
    run_all(steps)
}

fn print_places(places: &[PathBuf]) {
    for place in places {
        println!("    {}", place.display());
    }
}

fn cargo(words: &str) -> Result<(), Failure> {
    Program::cargo().args(words).run()
}

fn format() -> Result<(), Failure> {
    cargo("fmt --all --check")
}

fn lints() -> Result<(), Failure> {
    cargo("clippy --workspace --all-targets -- --deny warnings")
}

fn all_tests() -> Result<(), Failure> {
    let found = Browser::ensure()?;
    Program::cargo()
        .args("test --workspace")
        .env(browser::CHROMIUM_VARIABLE, &found.chromium)
        .env(browser::CHROMEDRIVER_VARIABLE, &found.chromedriver)
        .run()
}

/// Runs all tests but those of the browser. Cargo can name the targets to test, but not those to
/// leave out; and with a selection of packages it would build the dependencies anew, with other
/// features.
fn tests_without_browser() -> Result<(), Failure> {
    let targets = test_targets(root())
        .map_err(|error| Failure::new(format!("the tests could not be listed: {error}")))?;
    let others = targets.iter().filter(|target| *target != BROWSER_TARGET);
    let named: String = others.map(|target| format!(" --test {target}")).collect();
    cargo(&format!("test --workspace --lib --bins --examples{named}"))?;
    cargo("test --workspace --doc")
}

/// Returns the names of all `tests/<name>.rs` and `tests/<name>/main.rs` of the project's
/// packages.
fn test_targets(root: &Path) -> io::Result<BTreeSet<String>> {
    let mut packages = vec![root.join("bench"), root.join("fuzz"), root.join("xtask")];
    for package in fs::read_dir(root.join("crates"))? {
        packages.push(package?.path());
    }
    let mut targets = BTreeSet::new();
    for package in packages {
        let folder = package.join("tests");
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.join("main.rs").is_file() || path.extension().is_some_and(|end| end == "rs") {
                targets.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
            }
        }
    }
    Ok(targets)
}

/// Runs the tests of the packages, which `cargo test` ignores, since they need the packages that
/// earlier steps made.
fn package_tests() -> Result<(), Failure> {
    cargo("test --workspace --test packages -- --ignored")
}

fn docs() -> Result<(), Failure> {
    Program::cargo()
        .args("doc --workspace --no-deps --document-private-items")
        .env("RUSTDOCFLAGS", "--deny warnings")
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_browser_target_is_left_out() {
        let targets = test_targets(root()).unwrap();
        assert!(targets.contains(BROWSER_TARGET), "{targets:?}");
        assert!(targets.contains("vectors"), "{targets:?}");
    }
}
