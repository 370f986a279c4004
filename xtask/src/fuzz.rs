//! `cargo xtask fuzz`: coverage-guided fuzzing by libFuzzer.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::command::{Program, root};
use crate::step::{Failure, Step, run_all};

/// The targets, each a function in `fuzz/src/lib.rs`.
const TARGETS: [&str; 5] = ["text_command", "v1_frame", "handshake", "codec", "store_reader"];

const SECONDS: u32 = 60;

/// The targets to fuzz, and the time for each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FuzzOptions {
    /// One target; `None` means each in turn.
    pub(crate) target: Option<String>,
    /// Seconds that each target runs.
    pub(crate) seconds: u32,
}

impl FuzzOptions {
    pub(crate) fn parse(words: &[&str]) -> Result<FuzzOptions> {
        let mut options = FuzzOptions { target: None, seconds: SECONDS };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            match word {
                "--seconds" => {
                    let value = words.next().context("--seconds wants a number")?;
                    options.seconds = value
                        .parse()
                        .ok()
                        .filter(|&seconds| seconds > 0)
                        .with_context(|| format!("--seconds wants a number, not {value:?}"))?;
                }
                option if option.starts_with('-') => bail!("`fuzz` has no option {option:?}"),
                _ if options.target.is_some() => {
                    bail!("`fuzz` takes one target, not also {word:?}")
                }
                target if TARGETS.contains(&target) => options.target = Some(target.to_owned()),
                other => bail!("there is no target {other:?}, only {}", TARGETS.join(", ")),
            }
        }
        Ok(options)
    }
}

/// Fuzzes until the time is over or an input fails.
pub(crate) fn run(options: &FuzzOptions) -> ExitCode {
    let seconds = options.seconds;
    let targets = TARGETS
        .into_iter()
        .filter(|&target| options.target.as_deref().is_none_or(|only| only == target));
    let mut steps = vec![Step::new("toolchain", toolchain)];
    steps.extend(targets.map(|target| Step::new(target, move || fuzz(target, seconds))));
    run_all(steps)
}

/// Returns a nightly cargo: libFuzzer's coverage flags are accepted only by a nightly compiler.
fn nightly_cargo() -> Program {
    Program::new("rustup").args("run nightly cargo")
}

fn toolchain() -> Result<(), Failure> {
    let Some(nightly) = nightly_cargo().args("--version").output() else {
        return Err(Failure::new(
            "a nightly toolchain is missing: `rustup toolchain install nightly`",
        ));
    };
    let Some(fuzz) = nightly_cargo().args("fuzz --version").output() else {
        return Err(Failure::new("cargo-fuzz is missing: `cargo install cargo-fuzz`"));
    };
    println!("    {nightly}, {fuzz}");
    Ok(())
}

/// Fuzzes one target. Inputs that libFuzzer finds worth keeping go to `fuzz/corpus`, which git
/// ignores; those that a person finds worth keeping are copied to `fuzz/seeds`.
fn fuzz(target: &str, seconds: u32) -> Result<(), Failure> {
    let corpus = root().join("fuzz/corpus").join(target);
    fs::create_dir_all(&corpus).map_err(|error| {
        Failure::new(format!("{} could not be made: {error}", corpus.display()))
    })?;
    nightly_cargo()
        .args(&format!("fuzz run --features libfuzzer {target}"))
        .args(&format!("fuzz/corpus/{target} fuzz/seeds/{target}"))
        .args(&format!("-- -max_total_time={seconds} -max_len=8192"))
        .run()
}
