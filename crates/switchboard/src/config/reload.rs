//! The configuration after a reload: which changes take effect at once.

use super::Config;
use super::keys::{KEYS, Key, RULES, Reload, Rule};

/// Outcome of rereading the configuration in a running server.
#[derive(Debug)]
pub(crate) struct Reread {
    /// The configuration from now on.
    pub(crate) config: Config,
    /// Keys whose new values are in `config`.
    pub(crate) live: Vec<&'static str>,
    /// Keys that keep their old values until a restart.
    pub(crate) restart: Vec<&'static str>,
}

impl Reread {
    /// Returns the keys that wait for a restart, with the values in force until then.
    pub(crate) fn in_force(&self) -> String {
        let keys = KEYS.iter().filter(|key| self.restart.contains(&key.name));
        let shown = keys.map(|key| format!("{} = {}", key.name, (key.show)(&self.config)));
        shown.collect::<Vec<_>>().join(", ")
    }
}

impl Config {
    /// Applies the changes in `read` that may take effect live to the running configuration.
    pub(crate) fn reread(&self, read: &Config) -> Reread {
        let mut live: Vec<_> = changed(self, read).filter(|key| key.is_live(self, read)).collect();
        let config = loop {
            let mut config = self.clone();
            live.iter().for_each(|key| (key.copy)(&mut config, read));
            // Both configurations are valid, but mixing them may break a rule: a key that waits
            // for a restart may not go together with one that does not. Then both wait.
            let names_live = |rule: &&Rule| live.iter().any(|key| rule.keys.contains(&key.name));
            let broken = RULES.iter().filter(names_live).find(|rule| !(rule.holds)(&config));
            let Some(broken) = broken else { break config };
            live.retain(|key| !broken.keys.contains(&key.name));
        };
        let restart = changed(&config, read).map(|key| key.name).collect();
        Reread { config, live: live.into_iter().map(|key| key.name).collect(), restart }
    }
}

fn changed(from: &Config, to: &Config) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.name == key.field && (key.show)(from) != (key.show)(to))
}

impl Key {
    fn is_live(&self, from: &Config, to: &Config) -> bool {
        match self.reload {
            Reload::Live => true,
            Reload::LiveWhile(holds) => holds(from) && holds(to),
            Reload::Restart => false,
        }
    }
}
