//! Switchboard: a self-hosted broker for messages between devices.
//!
//! The binary is this library with a `main`. It is a library so that its end-to-end tests, its
//! benches and `examples/echo.rs` can use its modules; it promises no stable API.

pub mod auth;
pub mod bench;
pub mod cli;
mod clock;
pub mod config;
mod counters;
pub mod files;
mod greeting;
mod health;
mod http;
mod log;
pub mod metrics;
mod persistence;
mod reload;
pub mod server;
mod shard;
pub mod store;
mod systemd;
mod tls;
pub mod ws;
