//! The real server from outside: one test binary, a fresh server on a free port for each test.

#![allow(clippy::unwrap_used, reason = "in a test, what cannot go on has failed")]

mod abuse;
mod auth;
mod bench;
mod cli;
mod deployed;
mod device;
mod monitoring;
mod proxied;
mod server;
mod strace;
mod systemd;
mod transcripts;
mod v1;
