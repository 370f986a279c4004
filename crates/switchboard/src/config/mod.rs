//! The checked configuration, which all other modules read.
//!
//! Past this module a `Duration` is a duration and an address is an address; nothing is checked
//! twice.
//!
//! Loading takes two steps: each source becomes a raw [`Layer`]; then [`resolve`] lays the
//! layers over the defaults, checks the result and reports every error at once. To add a key,
//! add a field and its default here, a row in `keys.rs` and a paragraph in `switchboard.toml`.

mod error;
mod keys;
mod kind;
mod layer;
mod load;
mod reload;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use ipnet::IpNet;

pub use error::{ConfigError, ConfigErrors};
pub use layer::{Flag, Layer, Origin};
pub use load::{Loaded, load, resolve};
pub(crate) use reload::Reread;

/// The default configuration file, with every key described and commented out.
pub const DEFAULT_TOML: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../switchboard.toml"));

/// Everything an operator can set, checked. Field names are the keys of `switchboard.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Address and port to listen on. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Threads that serve connections, one epoll loop each. 0 means one per available core.
    pub shards: usize,

    /// PEM file with the certificate chain; set together with `tls_key`.
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of `tls_cert`.
    pub tls_key: Option<PathBuf>,

    /// Maximum number of connections; above it a handshake is answered 503 with `Retry-After`.
    pub max_connections: usize,
    /// Maximum number of connections per client address (IPv6: per /64). 0 turns the check off.
    pub max_connections_per_ip: usize,
    /// Proxies whose X-Forwarded-For, Forwarded or PROXY protocol header is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Values of `Origin` that may connect; empty means any.
    pub allowed_origins: Vec<String>,

    /// Directory for everything that must outlive the process; with `None` nothing is kept.
    pub data_dir: Option<PathBuf>,
    /// Authentication that a device needs.
    pub auth: Auth,
    /// Value that `aud` of a token must contain, if it is signed with one of the operator's
    /// keys.
    pub auth_audience: Option<String>,
    /// Value that `iss` of such a token must have.
    pub auth_issuer: Option<String>,
    /// File with an HS256 secret that signs tokens.
    pub auth_hs256_secret_file: Option<PathBuf>,
    /// PEM files with Ed25519, P-256 or RSA keys that verify tokens.
    pub auth_public_keys: Vec<PathBuf>,
    /// A JSON Web Key Set with keys that verify tokens.
    pub auth_jwks: Option<KeySet>,
    /// Maximum number of devices with a mailbox; above it a new one is rejected with 1013.
    pub devices_max: usize,
    /// Time that a device without a name may be offline before its mailbox ends.
    pub device_ttl: Duration,
    /// The same for a device with a name; zero means for ever.
    pub named_device_ttl: Duration,

    /// Maximum number of messages pushed to a device and not yet acked.
    pub in_flight_max: usize,
    /// Maximum number of messages in one mailbox; above it senders are told `mailbox_full`.
    pub mailbox_max_messages: usize,
    /// Maximum bytes of messages in one mailbox; above it senders are told `mailbox_full`.
    pub mailbox_max_bytes: usize,
    /// Part of a mailbox that one sender may use, in percent of the space that the other senders
    /// leave free.
    pub mailbox_sender_share: usize,
    /// Maximum number of outcomes that a device has asked for and not acked; above it
    /// `outcomes_full`. Those pending at one receiver may use `mailbox_sender_share` of what the
    /// others leave.
    pub outcomes_max: usize,
    /// Maximum bytes of all messages that are in memory only; above it senders are told
    /// `store_full`, and also if more messages wait, in memory or on disk, than one for every 128
    /// bytes.
    pub memory_messages_max_bytes: usize,
    /// Time, by the server's uptime, during which the same id from the same sender to the same
    /// receiver is a retry.
    pub dedup_window: Duration,
    /// Maximum number of message ids remembered in all; the devices with the most lose their
    /// oldest.
    pub dedup_ids_max: usize,
    /// Maximum bytes of messages and records that are not durable yet, anywhere in memory; when
    /// that is reached, senders to mailboxes are paused.
    pub store_queue_max_bytes: usize,
    /// Maximum size of the log on disk; above it senders are told `store_full`, as they are when
    /// less than a twentieth of the file system is free.
    pub store_max_bytes: usize,
    /// Visibility of devices to each other: the list, `devices`, `watch`.
    pub list_devices: ListDevices,

    /// Largest message in bytes, after decompression; a larger one closes the connection with
    /// 1009, and one that would become larger when it is pushed is rejected.
    pub max_message_bytes: usize,
    /// Time for a message to be completed once it has begun; then the connection is closed
    /// (1008).
    pub message_timeout: Duration,
    /// Maximum bytes of all messages that have begun and are not complete; above it the oldest
    /// of them is discarded and its connection closed (1013).
    pub unfinished_messages_max_bytes: usize,
    /// Time for the whole opening handshake, TLS included; then 408 and close.
    pub handshake_timeout: Duration,
    /// Maximum bytes of request line and headers; above it 431 and close.
    pub handshake_max_bytes: usize,
    /// A connection that is silent this long is sent a ping.
    pub ping_interval: Duration,
    /// A connection from which no byte comes for this long is closed.
    pub idle_timeout: Duration,
    /// Time for the peer to finish the closing handshake before the socket is closed.
    pub close_timeout: Duration,
    /// Bound of one connection's out queue in bytes. At four times the bound, senders on the same
    /// shard are paused, and the queue has a second to come down to twice the bound before the
    /// connection is closed; at sixteen times the bound it is closed at once.
    pub out_queue_max_bytes: usize,
    /// Time without progress at a full out queue after which a connection is closed (4508); a
    /// mailbox keeps its messages.
    pub out_queue_stall_timeout: Duration,
    /// Maximum bytes in all out queues together; above it the largest are closed (4508).
    pub out_queues_max_bytes: usize,
    /// Bound of the queue from one shard to another in bytes; when it is reached, senders are
    /// paused.
    pub shard_queue_max_bytes: usize,
    /// Messages per second that one connection may send; 0 turns the limit off.
    pub rate_limit_messages_per_s: u32,
    /// Messages that one connection may send at once before the rate limit applies.
    pub rate_limit_burst: u32,

    /// Offer of permessage-deflate (RFC 7692).
    pub compression: bool,
    /// Permission for a compressed connection to keep its window between messages (better ratio,
    /// about 300 KiB of memory per connection).
    pub compression_context_takeover: bool,

    /// Maximum number of HTTP requests (page, health, metrics) served at once; as many again may
    /// wait, above that 503.
    pub http_connections_max: usize,
    /// Address that serves `/metrics` and the probes beside `listen`, unencrypted and without
    /// authentication; `listen` then shows no metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// Time over which a stopping server spreads the closing of its connections.
    pub drain: Duration,

    /// Log filter: a level such as `info`, or `tracing` directives such as `switchboard=debug`.
    pub log_level: String,
    /// Format of log lines.
    pub log_format: LogFormat,
}

/// Number of senders that can use up all remembered ids of one shard: there one may take a fifth of
/// those of all shards, by default 100,000.
const SENDERS_FOR_ALL_IDS: usize = 5;

/// Maximum number of device ids that a welcome lists: 256 numbers of 9 digits with their
/// separators are 2.8 KB, which are copied for each welcome. The others are only counted.
const LISTED_MAX: usize = 256;

/// Visibility of devices to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListDevices {
    /// Each sees all.
    All,
    /// Each sees only itself.
    None,
}

/// Authentication that a device needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// None; a client without a token is given a number.
    Open,
    /// A valid token.
    Token,
}

/// Location of a JSON Web Key Set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySet {
    /// A file, read at the start and after SIGHUP.
    File(PathBuf),
    /// A URL, fetched regularly: https, or http to this machine.
    Url(Uri),
}

impl Config {
    /// Returns the limits for devices with mailboxes on each of `shards` shards.
    pub(crate) fn limits(&self, shards: usize) -> switchboard_broker::Limits {
        switchboard_broker::Limits {
            in_flight_max: self.in_flight_max,
            mailbox_messages_max: self.mailbox_max_messages,
            mailbox_bytes_max: self.mailbox_max_bytes,
            mailbox_sender_share: self.mailbox_sender_share,
            outcomes_max: self.outcomes_max,
            memory_messages_max_bytes: self.memory_messages_max_bytes.div_ceil(shards),
            store_bytes_max: self.store_max_bytes,
            dedup_window: self.dedup_window,
            dedup_ids_per_device_max: (self.dedup_ids_max / SENDERS_FOR_ALL_IDS).max(1),
            dedup_ids_max: self.dedup_ids_max.div_ceil(shards),
            devices_max: self.devices_max,
            device_ttl: self.device_ttl,
            named_device_ttl: Some(self.named_device_ttl).filter(|ttl| !ttl.is_zero()),
            push_bytes_max: self.out_queue_max_bytes,
            list_devices: self.list_devices == ListDevices::All,
            ping_interval: self.ping_interval,
            message_bytes_max: self.max_message_bytes,
            ..switchboard_broker::Limits::default()
        }
    }

    /// Returns the maximum number of device names kept, those of ended devices included.
    pub(crate) fn names_max(&self) -> usize {
        2 * self.devices_max
    }

    /// Returns the maximum number of device ids that a welcome lists.
    pub(crate) fn listed_max(&self) -> usize {
        match self.list_devices {
            ListDevices::All => LISTED_MAX,
            ListDevices::None => 0,
        }
    }

    /// Returns true if somebody other than the server may sign tokens.
    pub(crate) fn has_operator_keys(&self) -> bool {
        self.auth_hs256_secret_file.is_some()
            || !self.auth_public_keys.is_empty()
            || self.auth_jwks.is_some()
    }
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080),
            shards: 0,
            tls_cert: None,
            tls_key: None,
            max_connections: 100_000,
            max_connections_per_ip: 0,
            trusted_proxies: Vec::new(),
            allowed_origins: Vec::new(),
            data_dir: Some("switchboard-data".into()),
            auth: Auth::Open,
            auth_audience: None,
            auth_issuer: None,
            auth_hs256_secret_file: None,
            auth_public_keys: Vec::new(),
            auth_jwks: None,
            devices_max: 1_000_000,
            device_ttl: Duration::from_secs(24 * 3600),
            named_device_ttl: Duration::ZERO,
            in_flight_max: 256,
            mailbox_max_messages: 1_000,
            mailbox_max_bytes: 16 << 20,
            mailbox_sender_share: 50,
            outcomes_max: 1_000,
            memory_messages_max_bytes: 1 << 30,
            dedup_window: Duration::from_secs(600),
            dedup_ids_max: 500_000,
            store_queue_max_bytes: 64 << 20,
            store_max_bytes: 10 << 30,
            list_devices: ListDevices::All,
            max_message_bytes: 1 << 20,
            message_timeout: Duration::from_secs(60),
            unfinished_messages_max_bytes: 256 << 20,
            handshake_timeout: Duration::from_secs(10),
            handshake_max_bytes: 16 << 10,
            ping_interval: Duration::from_secs(25),
            idle_timeout: Duration::from_secs(60),
            close_timeout: Duration::from_secs(5),
            out_queue_max_bytes: 1 << 20,
            out_queue_stall_timeout: Duration::from_secs(30),
            out_queues_max_bytes: 1 << 30,
            shard_queue_max_bytes: 4 << 20,
            rate_limit_messages_per_s: 0,
            rate_limit_burst: 100,
            compression: false,
            compression_context_takeover: false,
            http_connections_max: 256,
            metrics_listen: None,
            drain: Duration::from_secs(5),
            log_level: "info".to_owned(),
            log_format: LogFormat::Auto,
        }
    }
}
