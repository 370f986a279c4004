//! The real server from outside: one test binary, a fresh server on a free port for each test.

mod cli;
mod device;
mod server;
mod transcripts;
