//! `switchboard config`: shows or checks the configuration without starting the server.

use std::fmt::Display;

use super::settings::Settings;
use super::{Exit, output};
use crate::auth::Keyring;
use crate::config::DEFAULT_TOML;
use crate::reload;

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
    /// Say "ok", or every error with its place and what would be right; the files that it names
    /// are read
    Check(Settings),
}

/// Carries out `command`.
pub(super) fn run(command: &Command) -> Exit {
    match command {
        Command::Print { default: true, .. } => output::print(DEFAULT_TOML),
        Command::Print { settings, .. } => match settings.load() {
            Ok(loaded) => output::print(&loaded.to_toml()),
            Err(errors) => fail("cannot print the configuration", &errors),
        },
        Command::Check(settings) => check(settings),
    }
}

/// Returns whether a server would start with it, as far as that shows without a data directory and a port.
fn check(settings: &Settings) -> Exit {
    let loaded = match settings.load() {
        Ok(loaded) => loaded,
        Err(errors) => return fail("cannot use the configuration", &errors),
    };
    for warning in &loaded.warnings {
        complain!("switchboard: {warning}");
    }
    if let Err(error) = reload::certificate(&loaded.config) {
        return fail("cannot use the certificate", &error);
    }
    match Keyring::check(&loaded.config) {
        Ok(()) => output::print("ok\n"),
        Err(error) => fail("cannot use the keys of tokens", &error),
    }
}

fn fail(what: &str, why: &dyn Display) -> Exit {
    complain!("switchboard: {what}: {why}");
    Exit::Usage
}
