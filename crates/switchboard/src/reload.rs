//! SIGHUP: reads the configuration and all its files again, and applies the changes that a
//! running server can make. If the configuration has an error, or one of its files cannot be
//! used, nothing changes.

use std::sync::Arc;

use crate::config::{Config, ConfigErrors, Loaded, Reread};
use crate::log;
use crate::server::fit_to_machine;
use crate::shard::Shared;
use crate::tls::Acceptor;

/// Loads the configuration from the sources that the server was started with.
pub(crate) type Source<'a> = dyn Fn() -> Result<Loaded, ConfigErrors> + 'a;

/// Rereads everything and logs the result. Returns false if the configuration was rejected.
pub(crate) fn reload(shared: &Shared, source: &Source<'_>) -> bool {
    let applied = apply(shared, source);
    let is_applied = applied.is_ok();
    shared.metrics.settings.reloads.at(usize::from(!is_applied)).add(1);
    match applied {
        Ok(reread) => {
            let changed = reread.live.join(", ");
            tracing::info!(changed, "SIGHUP: configuration, keys and certificate reread");
            if !reread.restart.is_empty() {
                let (keys, in_force) = (reread.restart.join(", "), reread.in_force());
                tracing::warn!(keys, in_force, "SIGHUP: keys that have changed and need a restart");
            }
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(error, "SIGHUP: refused; everything stays as it was");
        }
    }
    is_applied
}

fn apply(shared: &Shared, source: &Source<'_>) -> anyhow::Result<Reread> {
    let mut loaded = source()?;
    log::ignored(&loaded.warnings);
    let running = shared.config();
    fit_to_machine(&mut loaded.config, Some(&running));
    let reread = running.reread(&loaded.config);
    let config = Arc::new(reread.config.clone());
    // Everything that may fail comes before the first change.
    let acceptor = certificate(&config)?;
    shared.keyring.reload(&config)?;
    log::set_filter(&config)?;
    if let (Some(tls), Some(acceptor)) = (&shared.tls, acceptor) {
        tls.replace(acceptor);
    }
    shared.configure(&config);
    Ok(reread)
}

/// Loads the certificate that the configuration names, if any.
pub(crate) fn certificate(config: &Config) -> Result<Option<Acceptor>, crate::tls::LoadError> {
    match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => Acceptor::load(cert, key).map(Some),
        _ => Ok(None),
    }
}
