//! The first words of a server that is up: where it is, who may connect, and what to do next.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Auth, Config};

/// Says that the server is there, and on standard output what to do next.
pub(crate) fn greet(address: SocketAddr, metrics: Option<SocketAddr>, config: &Config) {
    tracing::info!(
        %address,
        metrics = metrics.map(tracing::field::display),
        shards = config.shards,
        tls = config.tls_cert.is_some(),
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
    for warning in warnings(address.ip(), config) {
        tracing::warn!("{warning}");
    }
    let reachable = SocketAddr::new(reachable(address.ip()), address.port());
    let (http, ws) = if config.tls_cert.is_some() { ("https", "wss") } else { ("http", "ws") };
    let metrics = metrics
        .map(|address| format!("metrics     http://{address}/metrics\n  "))
        .unwrap_or_default();
    let greeting = format!(
        "Switchboard is listening on {address}\n\n  \
         web page    {http}://{reachable}/\n  \
         by hand     websocat --linemode-strip-newlines {ws}://{reachable}/\n  \
         {metrics}stop        {stop}\n\n",
        stop = if io::stdout().is_terminal() { "Ctrl-C" } else { "SIGTERM" },
    );
    // Nobody may be reading; that is no reason not to serve.
    let _: io::Result<()> = io::stdout().write_all(greeting.as_bytes());
}

/// What an operator may not be aware of, each with the line that changes it.
fn warnings(listens_on: IpAddr, config: &Config) -> Vec<&'static str> {
    let mut warnings = Vec::new();
    if config.auth == Auth::Open && !listens_on.is_loopback() {
        warnings.push(
            "everybody who reaches this port may connect, send to any device and read /metrics; \
             auth = \"token\" lets in only who shows a token, listen = \"127.0.0.1:8080\" only this \
             machine",
        );
    }
    if config.auth == Auth::Open && config.allowed_origins.is_empty() {
        warnings.push(
            "web pages of any origin may connect from the browsers of those who reach this port; \
             allowed_origins = [\"https://your.page\"] admits yours only",
        );
    }
    if config.auth_jwks.is_some() && config.auth_audience.is_none() {
        warnings.push(
            "tokens that the issuer of auth_jwks made for other services are accepted here, too; \
             set auth_audience to what `aud` of yours names",
        );
    }
    warnings
}

/// An address by which this machine reaches a server that listens on `ip`.
pub(crate) fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        known => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeySet;

    #[test]
    fn an_open_server_says_who_may_connect_and_what_changes_it() {
        let open = Config::default();
        let (all, loopback) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(warnings(all, &open).len(), 2);
        assert_eq!(warnings(loopback, &open).len(), 1);
        let closed = Config { auth: Auth::Token, ..Config::default() };
        assert!(warnings(all, &closed).is_empty());
    }

    #[test]
    fn a_key_set_without_an_audience_is_warned_of() {
        let jwks = Some(KeySet::File("keys.json".into()));
        let config = Config { auth: Auth::Token, auth_jwks: jwks, ..Config::default() };
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert!(warnings(loopback, &config)[0].contains("auth_audience"));
        let config = Config { auth_audience: Some("switchboard".into()), ..config };
        assert!(warnings(loopback, &config).is_empty());
    }
}
