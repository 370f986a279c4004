//! The v1 protocol: golden vectors, and frames of every kind against `serde_json`.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its data has failed")]

mod frames;
mod json;
mod oracle;
mod shown;
mod vectors;
