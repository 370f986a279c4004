//! The checked configuration: what every other room reads.
//!
//! After this module a `Duration` is a duration and an address is an address; nobody checks twice.
//!
//! Loading takes two steps: each source becomes a raw [`Layer`], and [`resolve`] lays the layers
//! over the defaults, checks the whole and reports every error at once. To add a key, add a field
//! and its default here, a row in `keys.rs` and a paragraph in `switchboard.toml`.

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

    /// Connections held at once; above it a handshake is answered 503 with `Retry-After`.
    pub max_connections: usize,
    /// Connections held at once per client address (IPv6: per /64). 0 turns the check off.
    pub max_connections_per_ip: usize,
    /// Proxies whose X-Forwarded-For, Forwarded or PROXY protocol header is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Values of `Origin` that may connect; empty means any.
    pub allowed_origins: Vec<String>,

    /// Where what must outlive the process is kept; `None` keeps nothing.
    pub data_dir: Option<PathBuf>,
    /// Who may be a device.
    pub auth: Auth,
    /// What `aud` of a token must name, if it is signed with one of the operator's keys.
    pub auth_audience: Option<String>,
    /// What `iss` of such a token must be.
    pub auth_issuer: Option<String>,
    /// File with an HS256 secret that signs tokens.
    pub auth_hs256_secret_file: Option<PathBuf>,
    /// PEM files with Ed25519, P-256 or RSA keys that verify tokens.
    pub auth_public_keys: Vec<PathBuf>,
    /// A JSON Web Key Set with keys that verify tokens.
    pub auth_jwks: Option<KeySet>,
    /// Devices with a mailbox, in all; a new one above it is rejected with 1013.
    pub devices_max: usize,
    /// How long a device without a name may be away until its mailbox ends.
    pub device_ttl: Duration,
    /// The same for a device with a name; zero is for ever.
    pub named_device_ttl: Duration,

    /// Messages pushed to a device ahead of its acks.
    pub in_flight_max: usize,
    /// Messages that one mailbox holds; above it senders are told `mailbox_full`.
    pub mailbox_max_messages: usize,
    /// Bytes that one mailbox holds; above it senders are told `mailbox_full`.
    pub mailbox_max_bytes: usize,
    /// What one sender may have of a mailbox, of what is free without his own messages, in percent.
    pub mailbox_sender_share: usize,
    /// Outcomes that a device may have asked for and not acked; above it `outcomes_full`. One receiver has
    /// the share above of them.
    pub outcomes_max: usize,
    /// What messages may take in all that are in memory only; above it senders are told `store_full`.
    pub memory_messages_max_bytes: usize,
    /// How long the same id from the same device is a retry, by the server's uptime.
    pub dedup_window: Duration,
    /// Message ids remembered in all; those who sent the most lose their oldest.
    pub dedup_ids_max: usize,
    /// Bytes handed to the store and not yet durable; at it the senders are not read.
    pub store_queue_max_bytes: usize,
    /// What the log may take on disk; above it senders are told `store_full`. So they are when
    /// the file system has only a twentieth left.
    pub store_max_bytes: usize,
    /// Whether devices may see each other: the list, `devices`, `watch`.
    pub list_devices: ListDevices,

    /// Largest message in bytes, after decompression; a larger one closes with 1009, and one that
    /// would be larger as it is pushed to its receiver is rejected.
    pub max_message_bytes: usize,
    /// Time for a message to be complete once it has begun; then 1008.
    pub message_timeout: Duration,
    /// Bytes of all messages together that have begun and are not complete; above it the oldest of
    /// them is given up and its connection closed (1013).
    pub unfinished_messages_max_bytes: usize,
    /// Time for the whole opening handshake, TLS included; then 408 and close.
    pub handshake_timeout: Duration,
    /// Bytes of request line and headers; above it 431 and close.
    pub handshake_max_bytes: usize,
    /// A connection that was silent this long is sent a ping.
    pub ping_interval: Duration,
    /// A connection from which no byte came this long is gone.
    pub idle_timeout: Duration,
    /// Time for the peer to finish the closing handshake before the socket is closed.
    pub close_timeout: Duration,
    /// Bound of one connection's out queue in bytes. At four times the bound its senders are paused, and it
    /// has a second to come to twice the bound before it is closed; at sixteen times it is closed at once.
    pub out_queue_max_bytes: usize,
    /// Time without progress at a full out queue after which a connection is closed (4508); a mailbox
    /// keeps everything.
    pub out_queue_stall_timeout: Duration,
    /// Bytes that wait in all out queues together; above it the largest are closed (4508).
    pub out_queues_max_bytes: usize,
    /// Bound of the queue from one shard to another in bytes; at it the senders are not read.
    pub shard_queue_max_bytes: usize,
    /// Messages per second that one connection may send; 0 turns the limit off.
    pub rate_limit_messages_per_s: u32,
    /// Messages that one connection may send at once before the rate limit holds it back.
    pub rate_limit_burst: u32,

    /// Offer permessage-deflate (RFC 7692).
    pub compression: bool,
    /// Let a compressed connection keep its window between messages (better ratio, about 300 KiB
    /// of memory per connection).
    pub compression_context_takeover: bool,

    /// HTTP requests (page, health, metrics) served at once; as many again wait, above that 503.
    pub http_connections_max: usize,
    /// Where `/metrics` and the probes are served beside `listen`, in the clear and to everybody who
    /// reaches it; `listen` then shows no metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// Time over which a stopping server spreads the closing of its connections.
    pub drain: Duration,

    /// Least severe log lines to write: a `tracing` filter such as `info` or `switchboard=debug`.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// Devices that together may have all remembered ids: each may have its part, by default 100,000.
const DEVICES_FOR_ALL_IDS: usize = 5;

/// Device ids that a welcome lists: 256 numbers of 9 digits with their separators are 2.8 KB, which
/// each welcome copies. The rest is counted.
const LISTED_MAX: usize = 256;

/// Whether devices may see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListDevices {
    /// They may.
    All,
    /// Each sees itself only.
    None,
}

/// Who may be a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Everybody; who shows no token is given a number.
    Open,
    /// Who shows a valid token.
    Token,
}

/// Where a JSON Web Key Set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySet {
    /// Read at the start, and by SIGHUP.
    File(PathBuf),
    /// Fetched by itself: https, or http of this machine.
    Url(Uri),
}

impl Config {
    /// Returns what devices with mailboxes may have, on each of `shards` shards.
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
            dedup_ids_per_device_max: (self.dedup_ids_max / DEVICES_FOR_ALL_IDS).max(1),
            dedup_ids_max: self.dedup_ids_max.div_ceil(shards),
            devices_max: self.devices_max,
            device_ttl: self.device_ttl,
            named_device_ttl: Some(self.named_device_ttl).filter(|ttl| !ttl.is_zero()),
            push_bytes_max: self.out_queue_max_bytes,
            list_devices: self.list_devices == ListDevices::All,
            ping_interval: self.ping_interval,
            message_bytes_max: self.max_message_bytes,
        }
    }

    /// Names of devices that are kept, those of devices that ended among them.
    pub(crate) fn names_max(&self) -> usize {
        2 * self.devices_max
    }

    /// Device ids that a welcome lists.
    pub(crate) fn listed_max(&self) -> usize {
        match self.list_devices {
            ListDevices::All => LISTED_MAX,
            ListDevices::None => 0,
        }
    }

    /// Returns whether somebody else may sign tokens.
    pub(crate) fn has_operator_keys(&self) -> bool {
        self.auth_hs256_secret_file.is_some()
            || !self.auth_public_keys.is_empty()
            || self.auth_jwks.is_some()
    }
}

/// How log lines look.
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
