//! fjall: a log-structured merge tree, its journal synced with every commit.

use std::collections::HashMap;
use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::engine::{BODY, Engine, id, mailbox};

pub(crate) struct Fjall {
    database: Database,
    messages: Keyspace,
    sent: Keyspace,
}

impl Fjall {
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let database = Database::builder(folder.join("fjall")).open()?;
        let messages = database.keyspace("message", KeyspaceCreateOptions::default)?;
        let sent = database.keyspace("sent", KeyspaceCreateOptions::default)?;
        Ok(Self { database, messages, sent })
    }
}

impl Engine for Fjall {
    fn append(&mut self, first: u64, count: u64) -> anyhow::Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for number in first..first + count {
            let value = [&mailbox(number).to_be_bytes()[..], &BODY].concat();
            batch.insert(&self.messages, number.to_be_bytes(), value);
            batch.insert(&self.sent, id(number), number.to_be_bytes());
        }
        Ok(batch.commit()?)
    }

    fn remove(&mut self, numbers: &[u64]) -> anyhow::Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for &number in numbers {
            batch.remove(&self.messages, number.to_be_bytes());
            batch.remove(&self.sent, id(number));
        }
        Ok(batch.commit()?)
    }

    fn index(&mut self) -> anyhow::Result<u64> {
        let mut mailboxes: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
        for entry in self.messages.iter() {
            let (number, value) = entry.into_inner()?;
            mailboxes.entry(value[..8].to_vec()).or_default().push(number.to_vec());
        }
        Ok(mailboxes.values().map(|numbers| numbers.len() as u64).sum())
    }

    fn compact(&mut self) -> anyhow::Result<()> {
        for keyspace in [&self.messages, &self.sent] {
            keyspace.rotate_memtable_and_wait()?;
            keyspace.major_compact()?;
        }
        Ok(())
    }
}
