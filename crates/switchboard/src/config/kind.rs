//! The kinds of value that a key can have: parsing, display and description of each.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use hyper::Uri;
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use super::layer::Raw;
use super::{Auth, KeySet, ListDevices, LogFormat};

/// Parses, shows and describes the values of a key.
pub(super) trait Kind {
    /// Type of the value in the checked configuration.
    type Value;

    /// Returns the accepted values, worded to follow "give …".
    fn wanted(&self) -> String;
    /// Returns the checked value, or `None` if `raw` is not as [`wanted`](Kind::wanted) says.
    fn parse(&self, raw: &Raw) -> Option<Self::Value>;
    /// Returns the value as TOML, which parses to the same value again.
    fn show(&self, value: &Self::Value) -> String;
}

/// A whole number within bounds.
pub(super) struct Count<T>(pub(super) RangeInclusive<T>);

impl<T: Copy + PartialOrd + Display + TryFrom<u64>> Kind for Count<T> {
    type Value = T;

    fn wanted(&self) -> String {
        format!("a whole number from {} to {}", self.0.start(), self.0.end())
    }

    fn parse(&self, raw: &Raw) -> Option<T> {
        let number = match raw {
            Raw::Integer(number) => u64::try_from(*number).ok()?,
            Raw::Text(text) => text.trim().replace('_', "").parse().ok()?,
            _ => return None,
        };
        T::try_from(number).ok().filter(|number| self.0.contains(number))
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }
}

/// A number of bytes within bounds.
pub(super) struct Bytes(pub(super) RangeInclusive<usize>);

impl Kind for Bytes {
    type Value = usize;

    fn wanted(&self) -> String {
        let [from, to] = [self.0.start(), self.0.end()].map(|bytes| bytes_in_words(*bytes));
        format!("a size from {from} to {to}, such as 65536 or \"64 KiB\"")
    }

    fn parse(&self, raw: &Raw) -> Option<usize> {
        let bytes = match raw {
            Raw::Integer(number) => u64::try_from(*number).ok()?,
            Raw::Text(text) => text.trim().replace('_', "").parse::<ByteSize>().ok()?.as_u64(),
            _ => return None,
        };
        usize::try_from(bytes).ok().filter(|bytes| self.0.contains(bytes))
    }

    fn show(&self, value: &usize) -> String {
        let words = bytes_in_words(*value);
        if words.ends_with("iB") { quote(&words) } else { value.to_string() }
    }
}

/// Formats `bytes` in the largest binary unit that divides it: `1 MiB`, `1500 B`.
fn bytes_in_words(bytes: usize) -> String {
    [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(|| format!("{bytes} B"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

/// A length of time within bounds, both in milliseconds.
pub(super) struct Span(pub(super) RangeInclusive<u64>);

impl Kind for Span {
    type Value = Duration;

    fn wanted(&self) -> String {
        let [from, to] = [self.0.start(), self.0.end()]
            .map(|ms| humantime::format_duration(Duration::from_millis(*ms)));
        format!("a time from {from} to {to}, such as \"10s\" or \"1m 30s\"")
    }

    fn parse(&self, raw: &Raw) -> Option<Duration> {
        let Raw::Text(text) = raw else { return None };
        let [from, to] = [self.0.start(), self.0.end()].map(|ms| Duration::from_millis(*ms));
        humantime::parse_duration(text.trim()).ok().filter(|time| (from..=to).contains(time))
    }

    fn show(&self, value: &Duration) -> String {
        quote(&humantime::format_duration(*value).to_string())
    }
}

/// An IP address and a port.
pub(super) struct Address;

impl Kind for Address {
    type Value = SocketAddr;

    fn wanted(&self) -> String {
        "an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<SocketAddr> {
        let Raw::Text(text) = raw else { return None };
        text.trim().parse().ok()
    }

    fn show(&self, value: &SocketAddr) -> String {
        quote(&value.to_string())
    }
}

/// Like [`Address`]; an empty string means none.
pub(super) struct OptionalAddress;

impl Kind for OptionalAddress {
    type Value = Option<SocketAddr>;

    fn wanted(&self) -> String {
        format!("{}, or \"\" for none", Address.wanted())
    }

    fn parse(&self, raw: &Raw) -> Option<Option<SocketAddr>> {
        match raw {
            Raw::Text(text) if text.trim().is_empty() => Some(None),
            raw => Address.parse(raw).map(Some),
        }
    }

    fn show(&self, value: &Option<SocketAddr>) -> String {
        value.map_or_else(|| quote(""), |address| Address.show(&address))
    }
}

/// A path; an empty string means none.
pub(super) struct File;

impl Kind for File {
    type Value = Option<PathBuf>;

    fn wanted(&self) -> String {
        "the path of a file".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<Option<PathBuf>> {
        let Raw::Text(text) = raw else { return None };
        Some((!text.is_empty()).then(|| PathBuf::from(text)))
    }

    fn show(&self, value: &Option<PathBuf>) -> String {
        quote(&value.as_ref().map(|path| path.to_string_lossy()).unwrap_or_default())
    }
}

/// A directory; an empty string means none.
pub(super) struct Directory;

impl Kind for Directory {
    type Value = Option<PathBuf>;

    fn wanted(&self) -> String {
        "the path of a directory, or \"\" for none".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<Option<PathBuf>> {
        File.parse(raw)
    }

    fn show(&self, value: &Option<PathBuf>) -> String {
        File.show(value)
    }
}

/// Paths of files.
pub(super) struct Files;

impl Kind for Files {
    type Value = Vec<PathBuf>;

    fn wanted(&self) -> String {
        "a list of files, such as [\"a.pem\", \"b.pem\"] or \"a.pem, b.pem\"".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<Vec<PathBuf>> {
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        items(raw)?.into_iter().map(path).collect()
    }

    fn show(&self, value: &Vec<PathBuf>) -> String {
        list(value.iter().map(|path| path.to_string_lossy().into_owned()))
    }
}

/// Any text; an empty string means none.
pub(super) struct Text;

impl Kind for Text {
    type Value = Option<String>;

    fn wanted(&self) -> String {
        "a text".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<Option<String>> {
        let Raw::Text(text) = raw else { return None };
        Some((!text.is_empty()).then(|| text.clone()))
    }

    fn show(&self, value: &Option<String>) -> String {
        quote(value.as_deref().unwrap_or_default())
    }
}

/// Location of a JSON Web Key Set: a file, or a URL whose answer nobody on the way can change,
/// which means https, or http to this machine. An empty string means none.
pub(super) struct KeySetPlace;

impl Kind for KeySetPlace {
    type Value = Option<KeySet>;

    fn wanted(&self) -> String {
        "the path of a file, an https URL, or an http URL of this machine, such as \
         \"http://127.0.0.1:9000/jwks.json\""
            .to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<Option<KeySet>> {
        let Raw::Text(text) = raw else { return None };
        if text.is_empty() {
            return Some(None);
        }
        if !text.contains("://") {
            return Some(Some(KeySet::File(text.into())));
        }
        let url: Uri = text.parse().ok()?;
        let host = url.host().filter(|host| !host.is_empty())?;
        let is_secret = match url.scheme_str()? {
            "https" => true,
            "http" => is_this_machine(host),
            _ => false,
        };
        // A password in a URL would end up in logs.
        let is_bare = !url.authority()?.as_str().contains('@');
        (is_secret && is_bare).then_some(Some(KeySet::Url(url)))
    }

    fn show(&self, value: &Option<KeySet>) -> String {
        match value {
            None => quote(""),
            Some(KeySet::File(path)) => quote(&path.to_string_lossy()),
            Some(KeySet::Url(url)) => quote(&url.to_string()),
        }
    }
}

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse();
    host == "localhost" || address.is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Authentication that a device needs.
pub(super) struct AuthMode;

impl AuthMode {
    const NAMES: [(&'static str, Auth); 2] = [("open", Auth::Open), ("token", Auth::Token)];
}

impl Kind for AuthMode {
    type Value = Auth;

    fn wanted(&self) -> String {
        "open or token".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<Auth> {
        let Raw::Text(text) = raw else { return None };
        Self::NAMES.iter().find(|(name, _)| *name == text.trim()).map(|(_, auth)| *auth)
    }

    fn show(&self, value: &Auth) -> String {
        quote(Self::NAMES.iter().find(|(_, auth)| auth == value).map_or("", |(name, _)| *name))
    }
}

/// On or off.
pub(super) struct Switch;

impl Kind for Switch {
    type Value = bool;

    fn wanted(&self) -> String {
        "true or false".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<bool> {
        match raw {
            Raw::Bool(on) => Some(*on),
            Raw::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// IP networks; a bare address is a network of one address.
pub(super) struct Networks;

impl Kind for Networks {
    type Value = Vec<IpNet>;

    fn wanted(&self) -> String {
        "a list of networks, such as [\"10.0.0.0/8\", \"::1\"] or \"10.0.0.0/8, ::1\"".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<Vec<IpNet>> {
        let network = |text: &String| {
            let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
            text.parse::<IpNet>().ok().or_else(address).map(|net| net.trunc())
        };
        items(raw)?.iter().map(network).collect()
    }

    fn show(&self, value: &Vec<IpNet>) -> String {
        list(value.iter().map(IpNet::to_string))
    }
}

/// Origins as browsers send them (RFC 6454 section 7): scheme, host, and the port unless it is the
/// scheme's own; or `null`.
pub(super) struct Origins;

impl Kind for Origins {
    type Value = Vec<String>;

    fn wanted(&self) -> String {
        "a list of origins without a path, such as [\"https://example.org\"]".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<Vec<String>> {
        let origin = |text: &String| {
            let host = text.split_once("://").filter(|(scheme, _)| !scheme.is_empty())?.1;
            let bare = !host.is_empty() && !host.contains(['/', ' ', '*']);
            bare.then(|| text.to_ascii_lowercase())
        };
        items(raw)?
            .iter()
            .map(|text| if text == "null" { Some(text.clone()) } else { origin(text) })
            .collect()
    }

    fn show(&self, value: &Vec<String>) -> String {
        list(value.iter().cloned())
    }
}

/// A filter of log lines in the syntax of `tracing`.
pub(super) struct LogFilter;

impl Kind for LogFilter {
    type Value = String;

    fn wanted(&self) -> String {
        "error, warn, info, debug, trace or off, or a filter such as \"info,switchboard=debug\""
            .to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let Raw::Text(text) = raw else { return None };
        let text = text.trim();
        // `tracing` takes a lone unknown word for a target; here it is a misspelt level.
        let misspelt = |part: &str| {
            let word = part.trim();
            !word.contains(['=', ':', '[']) && !LEVELS.contains(&&*word.to_ascii_lowercase())
        };
        let good = !text.split(',').any(misspelt) && EnvFilter::try_new(text).is_ok();
        good.then(|| text.to_owned())
    }

    fn show(&self, value: &String) -> String {
        quote(value)
    }
}

/// Visibility of devices to each other.
pub(super) struct ListMode;

impl Kind for ListMode {
    type Value = ListDevices;

    fn wanted(&self) -> String {
        "all or none".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<ListDevices> {
        let Raw::Text(text) = raw else { return None };
        match text.trim() {
            "all" => Some(ListDevices::All),
            "none" => Some(ListDevices::None),
            _ => None,
        }
    }

    fn show(&self, value: &ListDevices) -> String {
        quote(match value {
            ListDevices::All => "all",
            ListDevices::None => "none",
        })
    }
}

/// Format of log lines.
pub(super) struct Format;

impl Format {
    const NAMES: [(&'static str, LogFormat); 3] =
        [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
}

impl Kind for Format {
    type Value = LogFormat;

    fn wanted(&self) -> String {
        "auto, text or json".to_owned()
    }

    fn parse(&self, raw: &Raw) -> Option<LogFormat> {
        let Raw::Text(text) = raw else { return None };
        Self::NAMES.iter().find(|(name, _)| *name == text.trim()).map(|(_, format)| *format)
    }

    fn show(&self, value: &LogFormat) -> String {
        quote(Self::NAMES.iter().find(|(_, format)| format == value).map_or("", |(name, _)| *name))
    }
}

/// Returns the items of a list: a TOML array, or text with commas between them.
fn items(raw: &Raw) -> Option<Vec<String>> {
    match raw {
        Raw::List(items) => Some(items.clone()),
        Raw::Text(text) if text.trim().is_empty() => Some(Vec::new()),
        Raw::Text(text) => Some(text.split(',').map(|item| item.trim().to_owned()).collect()),
        _ => None,
    }
}

/// Returns `text` as a TOML string.
fn quote(text: &str) -> String {
    toml_edit::Value::from(text).to_string()
}

/// Returns a TOML array of strings.
fn list(items: impl Iterator<Item = String>) -> String {
    toml_edit::Array::from_iter(items).to_string()
}
