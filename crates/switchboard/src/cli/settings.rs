//! The options that configure the server: one layer of its configuration.

use std::path::{Path, PathBuf};

use crate::config::{self, ConfigErrors, Flag, Loaded};
use crate::files::Occasion;

/// The server's options. Values are plain text here; the configuration validates all of them
/// together.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct Settings {
    /// Read only this file: TOML, or INI if it ends in .cfg or .ini [default: switchboard.toml and
    /// server.cfg in the working directory, if they exist]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address to listen on.
    #[arg(
        help = "Listen here, such as 127.0.0.1:8080 or [::]:8080",
        long,
        value_name = "ADDR:PORT"
    )]
    listen: Option<String>,
    /// Listen on this port; the address stays as it is
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    port: Option<String>,
    /// Serve connections on this many threads [default: one per core]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    shards: Option<String>,
    /// Serve TLS with this certificate chain (PEM)
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Keep mailboxes and the key of all tokens here [default: switchboard-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Keep nothing on disk: a restart forgets every device, message and token
    #[arg(long, conflicts_with = "data_dir")]
    memory: bool,
    /// Write log lines from this level on: error, warn, info, debug, trace or off
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Set any key of switchboard.toml; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

impl Settings {
    /// Returns the options that were given, `--set` last so that it wins.
    pub(super) fn flags(&self) -> Vec<Flag> {
        let memory = self.memory.then(String::new);
        let dedicated = [
            ("--listen", "listen", &self.listen),
            ("--port", "port", &self.port),
            ("--shards", "shards", &self.shards),
            ("--tls-cert", "tls_cert", &self.tls_cert),
            ("--tls-key", "tls_key", &self.tls_key),
            ("--data-dir", "data_dir", &self.data_dir),
            ("--memory", "data_dir", &memory),
            ("--log-level", "log_level", &self.log_level),
        ];
        let dedicated = dedicated.into_iter().filter_map(|(name, key, value)| {
            let value = value.clone()?;
            Some(Flag { name: name.to_owned(), key: key.to_owned(), value })
        });
        let set = self.set.iter().map(|(key, value)| Flag {
            name: "--set".to_owned(),
            key: key.clone(),
            value: value.clone(),
        });
        dedicated.chain(set).collect()
    }

    /// Returns true if no option was given.
    pub(super) fn is_empty(&self) -> bool {
        self.config.is_none() && self.flags().is_empty()
    }

    /// Loads the configuration of this process.
    pub(super) fn load(&self) -> Result<Loaded, ConfigErrors> {
        self.load_on(Occasion::Start)
    }

    /// Loads it again, for a server that runs with it.
    pub(super) fn reload(&self) -> Result<Loaded, ConfigErrors> {
        self.load_on(Occasion::Reload)
    }

    fn load_on(&self, occasion: Occasion) -> Result<Loaded, ConfigErrors> {
        let file = self.config.as_deref();
        config::load(Path::new(""), file, std::env::vars_os(), self.flags(), occasion)
    }
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("give it as KEY=VALUE, such as max_connections=5000".to_owned()),
    }
}
