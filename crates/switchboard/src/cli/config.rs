//! `switchboard config`: shows or checks the configuration without starting the server.

use std::fmt::Display;

use super::settings::Settings;
use super::{Exit, output};
use crate::config::{Config, DEFAULT_TOML};
use crate::tls;

/// What to do with the configuration.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Print the configuration in force as TOML, with the place that each set value came from
    Print {
        /// Print the default switchboard.toml instead, every key described: a start for your own
        #[arg(long)]
        default: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Say "ok", or every mistake with its place and what would be right; the certificate is read
    Check(Settings),
}

/// Carries out `command`.
pub(super) fn run(command: &Command) -> Exit {
    match command {
        Command::Print { default: true, .. } => output::print(DEFAULT_TOML),
        Command::Print { settings, .. } => match settings.load() {
            Ok(loaded) => output::print(&loaded.to_toml()),
            Err(mistakes) => fail("cannot print the configuration", &mistakes),
        },
        Command::Check(settings) => match settings.load().map(|loaded| certificate(&loaded.config))
        {
            Ok(Ok(())) => output::print("ok\n"),
            Ok(Err(e)) => fail("cannot use the certificate", &e),
            Err(mistakes) => fail("cannot use the configuration", &mistakes),
        },
    }
}

/// Whether the certificate and its key can be served, where they are set.
fn certificate(config: &Config) -> Result<(), tls::LoadError> {
    match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => tls::Acceptor::load(cert, key).map(drop),
        _ => Ok(()),
    }
}

fn fail(what: &str, why: &dyn Display) -> Exit {
    eprintln!("switchboard: {what}: {why}");
    Exit::Usage
}
