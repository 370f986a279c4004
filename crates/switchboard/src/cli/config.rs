//! `switchboard config`: shows or checks the configuration without starting the server.

use std::fmt::Display;

use super::settings::Settings;
use super::{Exit, output};
use crate::auth::Keyring;
use crate::config::DEFAULT_TOML;
use crate::files::Occasion;
use crate::reload;

/// Subcommands of `switchboard config`.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Print the configuration in force as TOML, with the origin of each value that was set
    Print {
        /// Print the default switchboard.toml instead, with every key described, as a start for
        /// your own
        #[arg(long)]
        default: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Print "ok", or every error with its place and how to fix it; files that are named are
    /// read
    Check(Settings),
}

/// Runs `command`.
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

/// Checks that a server would start with the configuration, as far as possible without its data
/// directory and port.
fn check(settings: &Settings) -> Exit {
    let loaded = match settings.load() {
        Ok(loaded) => loaded,
        Err(errors) => return fail("cannot use the configuration", &errors),
    };
    for warning in &loaded.warnings {
        complain!("switchboard: {warning}");
    }
    if let Err(error) = reload::certificate(&loaded.config, Occasion::Start) {
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
