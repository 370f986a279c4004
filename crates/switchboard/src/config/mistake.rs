//! What is wrong with a configuration, in words that say where and what would be right.

use std::fmt;

use super::layer::Origin;

/// One mistake in one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where the mistake stands.
    pub origin: Origin,
    /// The key, or none when the source as a whole is at fault.
    pub key: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub fix: String,
}

/// Every mistake of a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistake {
    pub(super) fn new(origin: Origin, key: &str, problem: &str, fix: &str) -> Mistake {
        let key = Some(key.to_owned());
        Mistake { origin, key, problem: problem.to_owned(), fix: fix.to_owned() }
    }

    pub(super) fn of_source(origin: Origin, problem: &str, fix: &str) -> Mistake {
        Mistake { origin, key: None, problem: problem.to_owned(), fix: fix.to_owned() }
    }
}

/// One line: `switchboard.toml:3: shards: got "four"; give a whole number from 0 to 1024`.
impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        write!(f, "{}; {}", self.problem, self.fix)
    }
}

/// A heading, then one mistake a line.
impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("1 mistake in the configuration:")?,
            count => write!(f, "{count} mistakes in the configuration:")?,
        }
        for mistake in &self.0 {
            write!(f, "\n  {mistake}")?;
        }
        Ok(())
    }
}
