//! The table of keys: one row for each field of [`Config`], and the rules between them.

use super::kind::{
    Address, AuthMode, Bytes, Count, Directory, File, Files, Format, KeySetPlace, Kind, ListMode,
    LogFilter, Networks, OptionalAddress, Origins, Span, Switch, Text,
};
use super::layer::Raw;
use super::{Auth, Config};
use Reload::{Live, LiveWhile, Restart};

/// One key that an operator can set.
pub(super) struct Key {
    /// Name in `switchboard.toml`; in upper case with the prefix `SWITCHBOARD_` it is the
    /// variable.
    pub(super) name: &'static str,
    /// The field that the key sets: the one of the same name, except for `port`.
    pub(super) field: &'static str,
    /// Writes the checked value; the error says what would be accepted.
    pub(super) set: fn(&mut Config, &Raw) -> Result<(), String>,
    /// Returns the value as TOML.
    pub(super) show: fn(&Config) -> String,
    /// Copies the value from another configuration.
    pub(super) copy: fn(&mut Config, &Config),
    pub(super) reload: Reload,
}

/// The moment at which a changed value takes effect after a reload.
#[derive(Clone, Copy)]
pub(super) enum Reload {
    Live,
    /// Live if this is true of the configuration before and after.
    LiveWhile(fn(&Config) -> bool),
    /// After a restart: sockets, threads or files were created with the old value.
    Restart,
}

/// A condition on several keys.
pub(super) struct Rule {
    /// The keys that it concerns; it is not checked if one of them could not be read.
    pub(super) keys: &'static [&'static str],
    pub(super) holds: fn(&Config) -> bool,
    /// Advice for the operator if it does not hold.
    pub(super) fix: &'static str,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
/// 365.25 days, as `humantime` defines a year.
const YEAR: u64 = 8766 * HOUR;

/// Makes the key for the field of the same name; live unless stated otherwise.
macro_rules! key {
    ($name:ident, $kind:expr) => {
        key!($name, $kind, Live)
    };
    ($name:ident, $kind:expr, $reload:expr) => {
        Key {
            name: stringify!($name),
            field: stringify!($name),
            set: |config, raw| {
                config.$name = $kind.parse(raw).ok_or_else(|| $kind.wanted())?;
                Ok(())
            },
            show: |config| $kind.show(&config.$name),
            copy: |config, from| config.$name.clone_from(&from.$name),
            reload: $reload,
        }
    };
}

/// Sets the port of `listen` and keeps its address. It comes after `listen` in [`KEYS`], and so
/// wins if one layer sets both.
const PORT: Key = Key {
    name: "port",
    field: "listen",
    set: |config, raw| {
        let kind = Count(0..=u16::MAX);
        config.listen.set_port(kind.parse(raw).ok_or_else(|| kind.wanted())?);
        Ok(())
    },
    show: |config| config.listen.port().to_string(),
    copy: |config, from| config.listen.set_port(from.listen.port()),
    reload: Restart,
};

/// Live only with TLS on: the acceptor is created at the start, or not at all.
const WITH_TLS: Reload = LiveWhile(|config| config.tls_cert.is_some());

/// Every key, in the order of [`Config`] and `switchboard.toml`.
pub(super) const KEYS: &[Key] = &[
    key!(listen, Address, Restart),
    PORT,
    key!(shards, Count(0..=1024), Restart),
    key!(tls_cert, File, WITH_TLS),
    key!(tls_key, File, WITH_TLS),
    key!(max_connections, Count(1..=10_000_000)),
    key!(max_connections_per_ip, Count(0..=10_000_000)),
    key!(trusted_proxies, Networks),
    key!(allowed_origins, Origins),
    key!(data_dir, Directory, Restart),
    key!(auth, AuthMode, Restart),
    key!(auth_audience, Text),
    key!(auth_issuer, Text),
    key!(auth_hs256_secret_file, File),
    key!(auth_public_keys, Files),
    key!(auth_jwks, KeySetPlace),
    key!(devices_max, Count(1..=100_000_000)),
    key!(device_ttl, Span(SECOND..=YEAR)),
    key!(named_device_ttl, Span(0..=10 * YEAR)),
    key!(in_flight_max, Count(1..=100_000)),
    key!(mailbox_max_messages, Count(1..=10_000_000)),
    key!(mailbox_max_bytes, Bytes(KIB..=64 * GIB)),
    // In percent.
    key!(mailbox_sender_share, Count(1..=100)),
    key!(outcomes_max, Count(1..=10_000_000)),
    key!(memory_messages_max_bytes, Bytes(MIB..=1024 * GIB)),
    key!(dedup_window, Span(SECOND..=24 * HOUR)),
    key!(dedup_ids_max, Count(1..=100_000_000)),
    key!(store_queue_max_bytes, Bytes(MIB..=GIB), Restart),
    key!(store_max_bytes, Bytes(8 * MIB..=65_536 * GIB), Restart),
    key!(list_devices, ListMode, Restart),
    // 125 bytes is the payload that a control frame may carry (RFC 6455 section 5.5). At the
    // upper end a record, which is little more than the pushed message, stays far below the
    // limits of 4 GiB for the log's lengths and 1 GiB for its batches.
    key!(max_message_bytes, Bytes(125..=256 * MIB)),
    key!(message_timeout, Span(1..=24 * HOUR)),
    key!(unfinished_messages_max_bytes, Bytes(MIB..=1024 * GIB)),
    key!(handshake_timeout, Span(1..=HOUR)),
    key!(handshake_max_bytes, Bytes(512..=MIB)),
    key!(ping_interval, Span(1..=24 * HOUR)),
    key!(idle_timeout, Span(1..=48 * HOUR)),
    key!(close_timeout, Span(1..=HOUR)),
    key!(out_queue_max_bytes, Bytes(KIB..=GIB)),
    key!(out_queue_stall_timeout, Span(1..=HOUR)),
    key!(out_queues_max_bytes, Bytes(MIB..=1024 * GIB)),
    key!(shard_queue_max_bytes, Bytes(KIB..=GIB), Restart),
    key!(rate_limit_messages_per_s, Count(0..=10_000_000)),
    key!(rate_limit_burst, Count(0..=10_000_000)),
    key!(compression, Switch),
    key!(compression_context_takeover, Switch),
    key!(http_connections_max, Count(1..=100_000), Restart),
    key!(metrics_listen, OptionalAddress, Restart),
    key!(drain, Span(0..=HOUR)),
    key!(log_level, LogFilter),
    key!(log_format, Format, Restart),
];

/// Keys of the previous version, and the advice for a configuration that still sets one.
/// `dedup_ids_per_device_max` and `push_stall_timeout` duplicated another key; nobody had a
/// reason to change the others.
const RETIRED: &[(&str, &str)] = &[
    ("tls_handshakes_per_turn", "remove it: a shard works on 16 TLS handshakes a turn"),
    ("auth_jwks_refresh", "remove it: the key set of a URL is fetched every 5 minutes"),
    ("auth_leeway", "remove it: the clocks of issuers may differ by 30 s"),
    ("dedup_ids_per_device_max", "set dedup_ids_max instead: one device has a fifth of it"),
    ("push_stall_timeout", "set out_queue_stall_timeout instead: it is for every connection"),
    ("control_frames_per_s_max", "remove it: 100 control frames a second are accepted"),
    ("compression_min_bytes", "remove it: messages of 256 bytes or more are compressed"),
    (
        "device_list_max",
        "remove it: a welcome lists 256 devices; list_devices = \"none\" hides them from each other",
    ),
];

/// Returns the advice for `name` if that was a key of an earlier version.
pub(super) fn retired(name: &str) -> Option<&'static str> {
    RETIRED.iter().find(|(key, _)| *key == name).map(|(_, fix)| *fix)
}

/// The conditions that concern more than one key.
pub(super) const RULES: &[Rule] = &[
    Rule {
        keys: &["tls_cert", "tls_key"],
        holds: |config| config.tls_cert.is_some() == config.tls_key.is_some(),
        fix: "set both, or neither",
    },
    Rule {
        keys: &["auth", "data_dir", "auth_hs256_secret_file", "auth_public_keys", "auth_jwks"],
        holds: |config| {
            config.auth == Auth::Open || config.data_dir.is_some() || config.has_operator_keys()
        },
        fix: "keep the server's own key in a data_dir, or name other keys; else no token exists that \
              lets a device in",
    },
    Rule {
        keys: &["idle_timeout", "ping_interval"],
        holds: |config| config.idle_timeout > config.ping_interval,
        fix: "make idle_timeout longer than ping_interval, or every quiet connection is closed",
    },
    Rule {
        keys: &["rate_limit_burst", "rate_limit_messages_per_s"],
        holds: |config| config.rate_limit_messages_per_s == 0 || config.rate_limit_burst > 0,
        fix: "make rate_limit_burst at least 1, or no message is ever let through",
    },
    Rule {
        keys: &["unfinished_messages_max_bytes", "max_message_bytes"],
        // The buffer of a message grows by doubling.
        holds: |config| config.unfinished_messages_max_bytes >= 2 * config.max_message_bytes,
        fix: "make unfinished_messages_max_bytes at least twice max_message_bytes, or the largest \
              message never arrives",
    },
    Rule {
        keys: &["out_queues_max_bytes", "out_queue_max_bytes"],
        holds: |config| config.out_queues_max_bytes >= config.out_queue_max_bytes,
        fix: "make out_queues_max_bytes at least out_queue_max_bytes, or no queue may fill up",
    },
    Rule {
        keys: &["shard_queue_max_bytes", "max_message_bytes"],
        holds: |config| config.shard_queue_max_bytes >= config.max_message_bytes,
        fix: "make shard_queue_max_bytes at least max_message_bytes, or the largest message never \
              reaches another shard",
    },
];

/// Returns the key called `name`, and its index in [`KEYS`].
pub(super) fn find(name: &str) -> Option<(usize, &'static Key)> {
    KEYS.iter().enumerate().find(|(_, key)| key.name == name)
}

/// Returns the key that `name` is probably a misspelling of.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    /// Below this similarity a suggestion would only confuse.
    const SIMILARITY_MIN: f64 = 0.8;
    KEYS.iter()
        .map(|key| (strsim::jaro_winkler(key.name, name), key.name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .map(|(_, name)| name)
}
