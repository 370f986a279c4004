//! The WebSocket layer from outside: against its own promises, RFC 6455, tungstenite and flate2.
//!
//! Whatever is random here is drawn from a fixed seed, so that a test which passed passes again;
//! looking for the unforeseen is the fuzz targets' task.

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

/// As many cases as said, the same ones each time.
fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(6455), failure_persistence: None, ..Config::default() }
}
