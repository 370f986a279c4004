//! The job, and who can do it.

use std::path::Path;

use anyhow::Context;

/// Bytes of a message.
pub(crate) const BODY: [u8; 256] = [b'm'; 256];
const MAILBOXES: u64 = 10_000;

/// A store of messages. All that returns is durable.
pub(crate) trait Engine {
    /// Adds the messages of these numbers, each with its id, in one commit.
    fn append(&mut self, first: u64, count: u64) -> anyhow::Result<()>;
    /// Removes messages and their ids in one commit.
    fn remove(&mut self, numbers: &[u64]) -> anyhow::Result<()>;
    /// Reads which messages wait in which mailbox, as a server that starts must; gives how many.
    fn index(&mut self) -> anyhow::Result<u64>;
    /// Gives space back, as far as that is not done without asking.
    fn compact(&mut self) -> anyhow::Result<()>;
}

/// A contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Log,
    Sqlite,
    Fjall,
    Redb,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Log, Kind::Sqlite, Kind::Fjall, Kind::Redb];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Log => "our log",
            Kind::Sqlite => "SQLite",
            Kind::Fjall => "fjall",
            Kind::Redb => "redb",
        }
    }

    pub(crate) fn named(name: &str) -> anyhow::Result<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name).context("no such engine")
    }

    /// Opens the store in a folder, or makes one.
    pub(crate) fn open(self, folder: &Path) -> anyhow::Result<Box<dyn Engine>> {
        Ok(match self {
            Kind::Log => Box::new(crate::log::OwnLog::open(folder)?),
            Kind::Sqlite => Box::new(crate::sqlite::Sqlite::open(folder)?),
            Kind::Fjall => Box::new(crate::fjall::Fjall::open(folder)?),
            Kind::Redb => Box::new(crate::redb::Redb::open(folder)?),
        })
    }
}

/// In whose mailbox a message is; also stands for its sender.
pub(crate) fn mailbox(number: u64) -> u64 {
    mix(number) % MAILBOXES
}

/// The key of an id: its sender and a digest, which no order helps.
pub(crate) fn id(number: u64) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&mailbox(number).to_be_bytes());
    key[8..16].copy_from_slice(&mix(number).to_be_bytes());
    key[16..].copy_from_slice(&mix(!number).to_be_bytes());
    key
}

/// The finalizer of SplitMix64.
fn mix(number: u64) -> u64 {
    let a = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    b ^ (b >> 31)
}
