//! `switchboard serve`: loads the configuration and runs the server.

use crate::auth::KeyError;
use crate::reload::Source;
use crate::tls;

use super::Exit;
use super::settings::Settings;

/// Runs the server until it is stopped.
pub(super) fn run(settings: &Settings) -> Exit {
    let loaded = match settings.load() {
        Ok(loaded) => loaded,
        Err(errors) => {
            complain!("switchboard: cannot start: {errors}");
            return Exit::Usage;
        }
    };
    let settings = settings.clone();
    let source = Source::new(&loaded, move || settings.reload());
    let ran = crate::server::run(loaded, source);
    match ran {
        Ok(()) => {
            crate::log::flush();
            Exit::Done
        }
        Err(error) => {
            let line = format!("switchboard: {error:#}");
            if !crate::log::last_line(&line) {
                complain!("{line}");
            }
            if is_usage(&error) { Exit::Usage } else { Exit::Failed }
        }
    }
}

/// Returns true for errors of the files that the configuration names: they count as wrong usage.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<tls::LoadError>()
        || error.downcast_ref().is_some_and(|error: &KeyError| error.is_of_operator())
}
