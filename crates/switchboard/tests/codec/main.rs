//! The WebSocket layer from outside: against its own promises, RFC 6455, tungstenite and flate2.
//!
//! Random inputs have a fixed seed, so a test that passed once passes again; finding new
//! failures is left to the fuzz targets.

mod damage;
mod deflate;
mod differential;
mod echo;
mod limits;
mod round_trip;
mod splits;
mod stream;
mod utf8;
mod violations;

use proptest::test_runner::{Config, RngSeed};

/// Runs this many cases, the same ones each time.
fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(6455), failure_persistence: None, ..Config::default() }
}
