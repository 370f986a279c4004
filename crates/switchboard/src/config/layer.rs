//! Raw layers: the settings of each source as written, with their origin.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, Value};

use super::error::ConfigError;

/// The settings of one source, in no particular order, and the errors of the source itself.
#[derive(Debug, Default)]
pub struct Layer {
    pub(super) settings: Vec<Setting>,
    pub(super) errors: Vec<ConfigError>,
    /// Settings that are ignored; they do not keep the server from starting.
    pub(super) warnings: Vec<ConfigError>,
    /// The file that it is from, unless that is empty.
    pub(super) file: Option<PathBuf>,
}

/// One setting as its source wrote it; neither key nor value is checked yet.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) value: Raw,
    pub(super) origin: Origin,
}

/// A value before its key determines the type. Variables and flags are always text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<String>),
    /// TOML of a type that no key takes, as written.
    Other(String),
}

/// Origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Not set anywhere.
    Default,
    /// A file, and the line if it is known.
    File {
        /// Path as the operator wrote it, or relative to the working directory.
        path: PathBuf,
        /// Line number, counted from 1.
        line: Option<usize>,
    },
    /// An environment variable, by name.
    Variable(String),
    /// A flag of the command line, such as `--port`.
    Flag(String),
}

/// One flag that sets a key, as the command line gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag's name for messages, such as `--port`.
    pub name: String,
    /// The key that it sets.
    pub key: String,
    /// The value, unchecked.
    pub value: String,
}

/// Every variable with this prefix is a setting or one of [`OTHER_VARIABLES`].
const VARIABLE_PREFIX: &str = "SWITCHBOARD_";
/// Names the configuration file, as `--config` does.
pub(super) const CONFIG_VARIABLE: &str = "SWITCHBOARD_CONFIG";
/// Variables with the prefix that are not keys: the configuration file, and those read by `send`
/// and `listen`.
const OTHER_VARIABLES: [&str; 3] = [CONFIG_VARIABLE, "SWITCHBOARD_URL", "SWITCHBOARD_TOKEN"];

/// The section of `server.cfg` and its only key.
const CFG_SECTION: &str = "Settings";
const CFG_KEY: &str = "port";

impl Layer {
    /// Reads the port from the `server.cfg` of the system that Switchboard replaces: INI,
    /// `[Settings]`, `port = 8080`. `path` is for messages only.
    pub fn from_cfg(path: &Path, text: &str) -> Layer {
        let ini = match ini::Ini::load_from_str(text) {
            Ok(ini) => ini,
            Err(e) => return Layer::unreadable(path, Some(e.line), "valid INI", &e.msg),
        };
        let mut layer = Layer::default();
        for (section, properties) in &ini {
            for (key, value) in properties {
                let origin = Origin::file(path, line_of_key(text, key));
                if section == Some(CFG_SECTION) && key.eq_ignore_ascii_case(CFG_KEY) {
                    layer.set(CFG_KEY, Raw::Text(value.to_owned()), origin);
                } else {
                    let fix = "only `port` in `[Settings]` is read; use switchboard.toml for more";
                    layer.warnings.push(ConfigError::new(origin, key, "is ignored", fix));
                }
            }
        }
        if layer.settings.is_empty() {
            let origin = Origin::file(path, None);
            let fix = "write `[Settings]` and below it `port = 8080`, or remove the file";
            layer.warnings.push(ConfigError::new(origin, CFG_KEY, "missing", fix));
        }
        layer
    }

    /// Reads the flat keys of a `switchboard.toml`. `path` is for messages only.
    pub fn from_toml(path: &Path, text: &str) -> Layer {
        let document = match Document::parse(text) {
            Ok(document) => document,
            Err(e) => {
                let line = e.span().map(|span| line_at(text, span.start));
                return Layer::unreadable(path, line, "valid TOML", e.message());
            }
        };
        let mut layer = Layer::default();
        for (name, _) in document.iter() {
            let Some((key, item)) = document.get_key_value(name) else { continue };
            let line = key.span().or(item.span()).map(|span| line_at(text, span.start));
            let origin = Origin::file(path, line);
            match item {
                Item::Value(value) => layer.set(name, Raw::from_toml(value), origin),
                _ => {
                    let fix = "write keys without sections: `key = value`, one a line";
                    layer.errors.push(ConfigError::new(origin, name, "is a section", fix));
                }
            }
        }
        layer
    }

    /// Reads the variables `SWITCHBOARD_<KEY IN UPPER CASE>`; others are ignored.
    pub fn from_variables(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Layer {
        let mut layer = Layer::default();
        for (name, value) in variables {
            let Some(name) = name.to_str().map(str::to_owned) else { continue };
            let Some(key) = name.strip_prefix(VARIABLE_PREFIX) else { continue };
            if OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            // A lower-case name must not pass for the key: two variables could then set it
            // differently.
            let key = if key.chars().any(|c| c.is_ascii_lowercase()) {
                name.clone()
            } else {
                key.to_ascii_lowercase()
            };
            let origin = Origin::Variable(name.clone());
            match value.into_string() {
                Ok(text) => layer.set(&key, Raw::Text(text), origin),
                Err(_) => layer.errors.push(ConfigError::new(
                    origin,
                    &key,
                    "the value is not UTF-8",
                    "give it as UTF-8 text",
                )),
            }
        }
        layer
    }

    /// Reads the flags of the command line, dedicated ones and `--set` alike.
    pub fn from_flags(flags: impl IntoIterator<Item = Flag>) -> Layer {
        let mut layer = Layer::default();
        for flag in flags {
            layer.set(&flag.key, Raw::Text(flag.value), Origin::Flag(flag.name));
        }
        layer
    }

    /// Returns a layer with no settings and one error that concerns the whole source.
    pub(super) fn failed(error: ConfigError) -> Layer {
        Layer { errors: vec![error], ..Layer::default() }
    }

    fn unreadable(path: &Path, line: Option<usize>, expected: &str, why: &str) -> Layer {
        let why = why.trim().replace('\n', ", ");
        let problem = format!("not {expected}: {why}");
        Layer::failed(ConfigError::of_source(
            Origin::file(path, line),
            &problem,
            "correct the line",
        ))
    }

    fn set(&mut self, key: &str, value: Raw, origin: Origin) {
        self.settings.push(Setting { key: key.to_owned(), value, origin });
    }
}

impl Raw {
    fn from_toml(value: &Value) -> Raw {
        match value {
            Value::String(text) => Raw::Text(text.value().clone()),
            Value::Integer(number) => Raw::Integer(*number.value()),
            Value::Boolean(on) => Raw::Bool(*on.value()),
            Value::Array(array) => array
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .map_or_else(|| Raw::Other(value.to_string().trim().to_owned()), Raw::List),
            _ => Raw::Other(value.to_string().trim().to_owned()),
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::Text(text) => write!(f, "{text:?}"),
            Raw::Integer(number) => write!(f, "{number}"),
            Raw::Bool(on) => write!(f, "{on}"),
            Raw::List(items) => write!(f, "{items:?}"),
            Raw::Other(written) => f.write_str(written),
        }
    }
}

impl Origin {
    pub(super) fn file(path: &Path, line: Option<usize>) -> Origin {
        Origin::File { path: path.to_owned(), line }
    }
}

/// `switchboard.toml:3`, `SWITCHBOARD_PORT`, `--port` or `default`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line: None } => write!(f, "{}", path.display()),
            Origin::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Origin::Variable(name) | Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// Returns the line, counted from 1, that holds the byte at `offset`.
fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

/// Returns the line of an INI key, which the INI parser does not keep.
fn line_of_key(text: &str, key: &str) -> Option<usize> {
    text.lines()
        .position(|line| {
            let rest = line.trim_start().strip_prefix(key).map(str::trim_start);
            rest.is_some_and(|rest| rest.starts_with(['=', ':']))
        })
        .map(|index| index + 1)
}
