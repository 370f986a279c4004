//! Merges the raw layers into the checked configuration and reports every error at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, ConfigErrors};
use super::keys::{self, KEYS, RULES, Rule};
use super::layer::{CONFIG_VARIABLE, Layer, Origin, Setting};
use super::{Config, Flag};
use crate::files::{self, Occasion};

/// Read from the working directory unless `--config` names another file.
const TOML_NAME: &str = "switchboard.toml";
/// Read likewise; the file of the system that Switchboard replaces.
const CFG_NAME: &str = "server.cfg";

/// Maximum bytes of a configuration file; one with every key and its description has 30 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A checked configuration that knows the origin of each value.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration itself.
    pub config: Config,
    /// Origins by field; a field that was not set is absent.
    origins: BTreeMap<&'static str, Origin>,
    /// Settings that were found and ignored.
    pub warnings: Vec<ConfigError>,
    /// The files that were read and are not empty.
    pub files: Vec<PathBuf>,
}

/// Loads the configuration of a process: files, then `variables`, then `flags`, later ones winning.
///
/// `file` is the argument of `--config`; without it `SWITCHBOARD_CONFIG` names the file, and
/// without that `server.cfg` and `switchboard.toml` in `dir` are read if they exist. A named
/// file is the only one read, and must exist.
pub fn load(
    dir: &Path,
    file: Option<&Path>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    flags: impl IntoIterator<Item = Flag>,
    occasion: Occasion,
) -> Result<Loaded, ConfigErrors> {
    let variables: Vec<_> = variables.into_iter().collect();
    let named = file
        .map(|path| (path.to_owned(), Origin::Flag("--config".to_owned())))
        .or_else(|| named_by_variable(&variables));
    let mut layers = match named {
        Some((path, origin)) => vec![named_file(&path, origin, occasion)],
        None => [CFG_NAME, TOML_NAME].map(|name| file_if_present(&dir.join(name), occasion)).into(),
    };
    layers.push(Layer::from_variables(variables));
    layers.push(Layer::from_flags(flags));
    resolve(layers)
}

fn named_by_variable(variables: &[(OsString, OsString)]) -> Option<(PathBuf, Origin)> {
    let (_, path) = variables.iter().find(|(name, _)| name == OsStr::new(CONFIG_VARIABLE))?;
    (!path.is_empty()).then(|| (path.into(), Origin::Variable(CONFIG_VARIABLE.to_owned())))
}

fn named_file(path: &Path, origin: Origin, occasion: Occasion) -> Layer {
    match read(path, occasion) {
        Ok(text) => file_layer(path, &text),
        Err(e) => {
            let problem = format!("cannot read {}: {e}", path.display());
            Layer::failed(ConfigError::of_source(origin, &problem, "name a file that can be read"))
        }
    }
}

fn file_if_present(path: &Path, occasion: Occasion) -> Layer {
    match read(path, occasion) {
        Ok(text) => file_layer(path, &text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Layer::default(),
        Err(e) => Layer::failed(ConfigError::of_source(
            Origin::file(path, None),
            &format!("cannot read the file: {e}"),
            "make it readable, or name another with --config",
        )),
    }
}

fn read(path: &Path, occasion: Occasion) -> io::Result<String> {
    let bytes = files::read(path, FILE_BYTES_MAX, occasion)?;
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()))
}

fn file_layer(path: &Path, text: &str) -> Layer {
    let layer = match path.extension().and_then(OsStr::to_str) {
        Some("cfg" | "ini") => Layer::from_cfg(path, text),
        _ => Layer::from_toml(path, text),
    };
    Layer { file: (!text.trim().is_empty()).then(|| path.to_owned()), ..layer }
}

/// Lays `layers` over the defaults, later ones winning, and checks the result.
pub fn resolve(layers: impl IntoIterator<Item = Layer>) -> Result<Loaded, ConfigErrors> {
    let mut loaded = Loaded {
        config: Config::default(),
        origins: BTreeMap::new(),
        warnings: Vec::new(),
        files: Vec::new(),
    };
    let mut errors = Vec::new();
    let mut misread = BTreeSet::new();
    for mut layer in layers {
        errors.append(&mut layer.errors);
        loaded.warnings.append(&mut layer.warnings);
        loaded.files.extend(layer.file);
        // In the order of the table: which key wins within a layer must not depend on the order
        // in the source (`port` after `listen`).
        layer.settings.sort_by_key(|setting| keys::find(&setting.key).map(|(index, _)| index));
        for setting in layer.settings {
            if let Err(error) = loaded.apply(&setting) {
                misread.extend(keys::find(&setting.key).map(|(_, key)| key.field));
                errors.push(error);
            }
        }
    }
    // A misread value would break rules that the intended one keeps: report only the misreading.
    let judged = RULES.iter().filter(|rule| !rule.keys.iter().any(|key| misread.contains(key)));
    errors.extend(judged.filter_map(|rule| loaded.judge(rule)));
    if errors.is_empty() { Ok(loaded) } else { Err(ConfigErrors(errors)) }
}

impl Loaded {
    fn apply(&mut self, setting: &Setting) -> Result<(), ConfigError> {
        let Setting { key: name, value, origin } = setting;
        let Some((_, key)) = keys::find(name) else { return Err(unknown_key(setting)) };
        (key.set)(&mut self.config, value).map_err(|wanted| {
            let fix = format!("give {wanted}{}", kubernetes_hint(name, &value.to_string()));
            ConfigError::new(origin.clone(), name, &format!("got {value}"), &fix)
        })?;
        self.origins.insert(key.field, origin.clone());
        Ok(())
    }

    fn judge(&self, rule: &Rule) -> Option<ConfigError> {
        if (rule.holds)(&self.config) {
            return None;
        }
        let values: Vec<String> = rule.keys.iter().map(|key| self.describe(key)).collect();
        let key = rule.keys.iter().find(|key| self.origins.contains_key(*key))?;
        let problem = format!("does not go together: {}", values.join(", "));
        Some(ConfigError::new(self.origins[key].clone(), key, &problem, rule.fix))
    }

    /// Formats a key with its origin, as in `ping_interval = "25s" (default)`.
    fn describe(&self, name: &str) -> String {
        let value = keys::find(name).map(|(_, key)| (key.show)(&self.config)).unwrap_or_default();
        format!("{name} = {value} ({})", self.origin(name))
    }

    /// Returns the origin of the field `name`.
    pub fn origin(&self, name: &str) -> &Origin {
        self.origins.get(name).unwrap_or(&Origin::Default)
    }

    /// Returns the whole configuration as TOML, with the origin of each value that was set as a
    /// comment. Loading it gives the same configuration again.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for key in KEYS.iter().filter(|key| key.name == key.field) {
            let _ = write!(text, "{} = {}", key.name, (key.show)(&self.config));
            if let Some(origin) = self.origins.get(key.name) {
                let _ = write!(text, "  # {origin}");
            }
            text.push('\n');
        }
        text
    }
}

fn unknown_key(setting: &Setting) -> ConfigError {
    let Setting { key: name, origin, .. } = setting;
    let spelt = |key: &str| match origin {
        Origin::Variable(_) => format!("SWITCHBOARD_{}", key.to_ascii_uppercase()),
        _ => key.to_owned(),
    };
    let name = name.to_ascii_lowercase().replace('-', "_");
    let name = name.strip_prefix("switchboard_").unwrap_or(&name);
    if let Some(fix) = keys::retired(name) {
        return ConfigError::new(origin.clone(), &setting.key, "is no longer a key", fix);
    }
    let hint = kubernetes_hint(name, "");
    let fix = match keys::nearest(name) {
        _ if !hint.is_empty() => format!("unset it{hint}"),
        Some(key) => format!("did you mean {}?", spelt(key)),
        None => "`switchboard config print` lists every key".to_owned(),
    };
    ConfigError::new(origin.clone(), &setting.key, "unknown key", &fix)
}

/// Kubernetes sets such variables in every pod of a namespace that has a service named
/// `switchboard`.
fn kubernetes_hint(key: &str, value: &str) -> &'static str {
    let service = key.starts_with("service_") || key.starts_with("port_");
    if service || value.contains("tcp://") {
        " (Kubernetes sets it for a service named switchboard: use `enableServiceLinks: false`)"
    } else {
        ""
    }
}
