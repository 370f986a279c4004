//! SIGHUP: reads the configuration and all its files again, and applies the changes that a
//! running server can make. If the configuration has an error, or one of its files cannot be
//! used, nothing changes.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{Config, ConfigErrors, Loaded, Reread};
use crate::files::Occasion;
use crate::log;
use crate::server::fit_to_machine;
use crate::shard::Shared;
use crate::tls::Acceptor;

/// The sources of the configuration that the server was started with.
pub(crate) struct Source {
    load: Box<dyn Fn() -> Result<Loaded, ConfigErrors> + Send + Sync>,
    /// The files that had content when the configuration in force was read.
    files: Mutex<Vec<PathBuf>>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Source {
    /// Returns the source of a configuration that `load` reads again.
    pub(crate) fn new(
        loaded: &Loaded,
        load: impl Fn() -> Result<Loaded, ConfigErrors> + Send + Sync + 'static,
    ) -> Source {
        Source { load: Box::new(load), files: Mutex::new(loaded.files.clone()) }
    }

    /// Loads it again. A file that has lost all that it had is an error: it is being written, or
    /// was moved away for a moment, and the defaults that would be in force allow more.
    fn reload(&self) -> anyhow::Result<Loaded> {
        let loaded = (self.load)()?;
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lost) = files.iter().find(|file| !loaded.files.contains(file)) {
            anyhow::bail!(
                "{}: it is empty or gone, and settings in force are from it; write them again, or a \
                 comment if the defaults are meant",
                lost.display()
            );
        }
        Ok(loaded)
    }
}

/// Rereads everything and logs the result. Returns false if the configuration was rejected. Waits
/// for the files, which may be on a network.
pub(crate) fn reload(shared: &Shared, source: &Source) -> bool {
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

fn apply(shared: &Shared, source: &Source) -> anyhow::Result<Reread> {
    let mut loaded = source.reload()?;
    log::ignored(&loaded.warnings);
    let running = shared.config();
    fit_to_machine(&mut loaded.config, Some(&running));
    let reread = running.reread(&loaded.config);
    let config = Arc::new(reread.config.clone());
    // Everything that may fail comes before the first change.
    let acceptor = certificate(&config, Occasion::Reload)?;
    shared.keyring.reload(&config)?;
    log::set_filter(&config)?;
    if let (Some(tls), Some(acceptor)) = (&shared.tls, acceptor) {
        tls.replace(acceptor);
    }
    shared.configure(&config);
    *source.files.lock().unwrap_or_else(PoisonError::into_inner) = loaded.files;
    Ok(reread)
}

/// Loads the certificate that the configuration names, if any.
pub(crate) fn certificate(
    config: &Config,
    occasion: Occasion,
) -> Result<Option<Acceptor>, crate::tls::LoadError> {
    match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => Acceptor::load(cert, key, occasion).map(Some),
        _ => Ok(None),
    }
}
