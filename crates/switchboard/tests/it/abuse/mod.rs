//! Misbehaving peers, and the server's promises that hold all the same.

mod compression;
mod drain;
mod files;
mod floods;
mod frames;
mod handshake;
mod http;
mod limits;
mod log;
mod metrics;
mod proxy;
mod shards;
mod silence;
mod slow;
pub(crate) mod tls;
mod wire;
