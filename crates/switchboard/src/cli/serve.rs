//! `switchboard serve`: loads the configuration and runs the server.

use super::Exit;
use super::settings::Settings;

/// Runs the server until it is told to stop.
pub(super) fn run(settings: &Settings) -> Exit {
    let loaded = match settings.load() {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            eprintln!("switchboard: cannot start: {mistakes}");
            return Exit::Usage;
        }
    };
    match crate::server::run(loaded.config) {
        Ok(()) => Exit::Done,
        Err(e) => {
            eprintln!("switchboard: {e:#}");
            Exit::Failed
        }
    }
}
