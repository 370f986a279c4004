//! Errors of a configuration: the place, the problem and the fix.

use std::fmt;

use super::layer::Origin;

/// One error in one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Place of the error.
    pub origin: Origin,
    /// The key; `None` if the source as a whole is at fault.
    pub key: Option<String>,
    /// The problem.
    pub problem: String,
    /// The fix.
    pub fix: String,
}

/// Every error of a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigError {
    pub(super) fn new(origin: Origin, key: &str, problem: &str, fix: &str) -> ConfigError {
        let key = Some(key.to_owned());
        ConfigError { origin, key, problem: problem.to_owned(), fix: fix.to_owned() }
    }

    pub(super) fn of_source(origin: Origin, problem: &str, fix: &str) -> ConfigError {
        ConfigError { origin, key: None, problem: problem.to_owned(), fix: fix.to_owned() }
    }
}

/// One line: `switchboard.toml:3: shards: got "four"; give a whole number from 0 to 1024`.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        write!(f, "{}; {}", self.problem, self.fix)
    }
}

/// A heading, then one error a line.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("1 error in the configuration:")?,
            count => write!(f, "{count} errors in the configuration:")?,
        }
        for error in &self.0 {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}
