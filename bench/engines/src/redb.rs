//! redb: a copy-on-write B-tree, synced with every commit.

use std::collections::HashMap;
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::engine::{BODY, Engine, id, mailbox};

const MESSAGES: TableDefinition<'_, u64, (u64, &[u8])> = TableDefinition::new("message");
const SENT: TableDefinition<'_, &[u8; 24], u64> = TableDefinition::new("sent");

pub(crate) struct Redb(Database);

impl Redb {
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let database = Database::create(folder.join("store.redb"))?;
        let commit = database.begin_write()?;
        commit.open_table(MESSAGES)?;
        commit.open_table(SENT)?;
        commit.commit()?;
        Ok(Self(database))
    }
}

impl Engine for Redb {
    fn append(&mut self, first: u64, count: u64) -> anyhow::Result<()> {
        let commit = self.0.begin_write()?;
        {
            let mut messages = commit.open_table(MESSAGES)?;
            let mut sent = commit.open_table(SENT)?;
            for number in first..first + count {
                messages.insert(number, (mailbox(number), &BODY[..]))?;
                sent.insert(&id(number), number)?;
            }
        }
        Ok(commit.commit()?)
    }

    fn remove(&mut self, numbers: &[u64]) -> anyhow::Result<()> {
        let commit = self.0.begin_write()?;
        {
            let mut messages = commit.open_table(MESSAGES)?;
            let mut sent = commit.open_table(SENT)?;
            for &number in numbers {
                messages.remove(number)?;
                sent.remove(&id(number))?;
            }
        }
        Ok(commit.commit()?)
    }

    fn index(&mut self) -> anyhow::Result<u64> {
        let mut mailboxes: HashMap<u64, Vec<u64>> = HashMap::new();
        for entry in self.0.begin_read()?.open_table(MESSAGES)?.iter()? {
            let (number, value) = entry?;
            mailboxes.entry(value.value().0).or_default().push(number.value());
        }
        Ok(mailboxes.values().map(|numbers| numbers.len() as u64).sum())
    }

    fn compact(&mut self) -> anyhow::Result<()> {
        while self.0.compact()? {}
        Ok(())
    }
}
