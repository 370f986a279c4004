//! SQLite: WAL, and a sync with every commit.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{Connection, params};

use crate::engine::{BODY, Engine, id, mailbox};

pub(crate) struct Sqlite(Connection);

impl Sqlite {
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let connection = Connection::open(folder.join("store.sqlite"))?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             CREATE TABLE IF NOT EXISTS message
                 (number INTEGER PRIMARY KEY, mailbox INTEGER NOT NULL, body BLOB NOT NULL);
             CREATE TABLE IF NOT EXISTS sent
                 (id BLOB PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;",
        )?;
        Ok(Self(connection))
    }
}

impl Engine for Sqlite {
    fn append(&mut self, first: u64, count: u64) -> anyhow::Result<()> {
        let commit = self.0.transaction()?;
        {
            let mut message = commit.prepare_cached("INSERT INTO message VALUES (?, ?, ?)")?;
            let mut sent = commit.prepare_cached("INSERT INTO sent VALUES (?, ?)")?;
            for number in first..first + count {
                message.execute(params![number as i64, mailbox(number) as i64, BODY])?;
                sent.execute(params![id(number), number as i64])?;
            }
        }
        Ok(commit.commit()?)
    }

    fn remove(&mut self, numbers: &[u64]) -> anyhow::Result<()> {
        let commit = self.0.transaction()?;
        {
            let mut message = commit.prepare_cached("DELETE FROM message WHERE number = ?")?;
            let mut sent = commit.prepare_cached("DELETE FROM sent WHERE id = ?")?;
            for &number in numbers {
                message.execute(params![number as i64])?;
                sent.execute(params![id(number)])?;
            }
        }
        Ok(commit.commit()?)
    }

    fn index(&mut self) -> anyhow::Result<u64> {
        let mut mailboxes: HashMap<i64, Vec<i64>> = HashMap::new();
        let mut all = self.0.prepare("SELECT number, mailbox FROM message")?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            mailboxes.entry(row.get(1)?).or_default().push(row.get(0)?);
        }
        Ok(mailboxes.values().map(|numbers| numbers.len() as u64).sum())
    }

    fn compact(&mut self) -> anyhow::Result<()> {
        Ok(self.0.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")?)
    }
}
