//! Runs every fuzz target on its seeds and on a fixed number of their mutations.
//!
//! It needs no fuzzer, and makes the same inputs in every run. An input that fails here or under
//! `cargo xtask fuzz` belongs in `seeds/<target>/`, to keep the bug fixed.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its seeds has failed")]

mod mutator;

use std::fs;
use std::path::Path;

use mutator::Mutator;

/// Number of mutated inputs per target, which take a second or two.
const ROUNDS: usize = 50_000;

#[test]
fn text_command_holds_its_promises() {
    run("text_command", switchboard_fuzz::text_command);
}

#[test]
fn v1_frame_holds_its_promises() {
    run("v1_frame", switchboard_fuzz::v1_frame);
}

#[test]
fn handshake_holds_its_promises() {
    run("handshake", switchboard_fuzz::handshake);
}

#[test]
fn codec_holds_its_promises() {
    run("codec", switchboard_fuzz::codec);
}

#[test]
fn store_reader_holds_its_promises() {
    run("store_reader", switchboard_fuzz::store_reader);
}

fn run(target: &str, function: fn(&[u8])) {
    let seeds = seeds(target);
    for seed in &seeds {
        run_one(target, function, seed);
    }
    let mut mutator = Mutator::new(seeds);
    for _ in 0..ROUNDS {
        run_one(target, function, &mutator.mutated());
    }
}

fn run_one(target: &str, function: fn(&[u8]), input: &[u8]) {
    let _shown = ShownOnPanic { target, input };
    function(input);
}

/// Prints the input if the target panics on it.
struct ShownOnPanic<'a> {
    target: &'a str,
    input: &'a [u8],
}

impl Drop for ShownOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} failed on b\"{}\"", self.target, self.input.escape_ascii());
        }
    }
}

/// Returns the files in the target's folder of seeds, in order of their names.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let entries = fs::read_dir(&folder).expect("every target has a folder of seeds");
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no seeds", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}
