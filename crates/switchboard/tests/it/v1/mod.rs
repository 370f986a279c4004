//! Every promise of the v1 protocol at least once, over the real binary.

mod client;
mod hello;
mod identity;
mod kill;
mod limits;
mod mailbox;
mod presence;
mod text;
