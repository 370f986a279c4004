//! Every promise of the v1 protocol at least once, over the real binary.

pub(crate) mod client;
mod clients;
mod directory;
mod drain;
mod faults;
mod hello;
mod identity;
mod key_set;
mod kill;
mod limits;
mod mailbox;
pub(crate) mod metrics;
mod presence;
mod reload;
mod sdk;
mod text;
