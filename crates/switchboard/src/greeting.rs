//! The first words of a server that is up: where it is, who may connect, and what to do next.

use std::fmt;
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
    let access = Access::new(address, config);
    match config.auth {
        Auth::Open => tracing::warn!("{access}"),
        Auth::Token => tracing::info!("{access}"),
    }
    if takes_any_audience(config) {
        tracing::warn!(
            "tokens that the issuer of auth_jwks made for other services are accepted here, too; \
             set auth_audience to what `aud` of yours names"
        );
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
         {metrics}may connect {may_connect}\n  \
         to change   {to_change}\n  \
         stop        {stop}\n\n",
        may_connect = access.may_connect,
        to_change = access.to_change,
        stop = if io::stdout().is_terminal() { "Ctrl-C" } else { "SIGTERM" },
    );
    // Nobody may be reading; that is no reason not to serve.
    let _: io::Result<()> = io::stdout().write_all(greeting.as_bytes());
}

/// What systemd shows of a server that is up, in one line.
pub(crate) fn status(address: SocketAddr, config: &Config) -> String {
    let Access { may_connect, .. } = Access::new(address, config);
    format!("Listening on {address}; may connect: {may_connect}")
}

/// Not in [`Access`]: it is about which tokens count, not about who needs one.
fn takes_any_audience(config: &Config) -> bool {
    config.auth_jwks.is_some() && config.auth_audience.is_none()
}

/// Who may connect from where, and the settings that change it.
struct Access {
    may_connect: String,
    to_change: String,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "may connect: {}; to change it: {}", self.may_connect, self.to_change)
    }
}

impl Access {
    fn new(address: SocketAddr, config: &Config) -> Access {
        let (who, auth) = match config.auth {
            Auth::Open => ("everybody", "auth = \"token\" admits only who shows a token"),
            Auth::Token => ("who shows a token", "auth = \"open\" admits everybody"),
        };
        let (from, listen) = match address.ip() {
            ip if ip.is_loopback() => (
                "this machine only".to_owned(),
                format!("listen = \"{}\" other machines", on(unspecified(ip), address)),
            ),
            ip => (
                format!("any machine that reaches {}", one_or_all(ip)),
                format!("listen = \"{}\" this machine only", on(loopback(ip), address)),
            ),
        };
        // Where a token is needed, a page in somebody's browser does not get in without one.
        let any_page = config.auth == Auth::Open && config.allowed_origins.is_empty();
        let (pages, origins) = match any_page {
            true => ("; so may web pages of any origin", ", allowed_origins your pages only"),
            false => ("", ""),
        };
        Access {
            may_connect: format!("{who}, from {from}{pages}"),
            to_change: format!("{auth}, {listen}{origins}"),
        }
    }
}

/// What is listened on, in words.
fn one_or_all(ip: IpAddr) -> String {
    if ip.is_unspecified() { "this one".to_owned() } else { ip.to_string() }
}

/// The same port of another address.
fn on(ip: IpAddr, address: SocketAddr) -> SocketAddr {
    SocketAddr::new(ip, address.port())
}

/// An address by which this machine reaches a server that listens on `ip`.
pub(crate) fn reachable(ip: IpAddr) -> IpAddr {
    if ip.is_unspecified() { loopback(ip) } else { ip }
}

/// The loopback address of the same family.
fn loopback(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// All addresses of the same family.
fn unspecified(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeySet;

    #[test]
    fn a_key_set_without_an_audience_is_warned_of() {
        let jwks = Some(KeySet::File("keys.json".into()));
        let config = Config { auth: Auth::Token, auth_jwks: jwks, ..Config::default() };
        assert!(takes_any_audience(&config));
        assert!(!takes_any_audience(&Config { auth_audience: Some("a".into()), ..config }));
    }

    #[test]
    fn who_may_connect_from_where_is_told_with_what_changes_it() {
        let open = Config::default();
        let token = Config { auth: Auth::Token, ..Config::default() };
        let pages =
            Config { allowed_origins: vec!["https://a.example".into()], ..Config::default() };
        for (config, listen, may_connect, to_change) in [
            (
                &open,
                "0.0.0.0:8080",
                "everybody, from any machine that reaches this one; so may web pages of any origin",
                "auth = \"token\" admits only who shows a token, listen = \"127.0.0.1:8080\" this \
                 machine only, allowed_origins your pages only",
            ),
            (
                &open,
                "127.0.0.1:8080",
                "everybody, from this machine only; so may web pages of any origin",
                "auth = \"token\" admits only who shows a token, listen = \"0.0.0.0:8080\" other \
                 machines, allowed_origins your pages only",
            ),
            (
                &token,
                "[::]:443",
                "who shows a token, from any machine that reaches this one",
                "auth = \"open\" admits everybody, listen = \"[::1]:443\" this machine only",
            ),
            (
                &token,
                "[::1]:443",
                "who shows a token, from this machine only",
                "auth = \"open\" admits everybody, listen = \"[::]:443\" other machines",
            ),
            (
                &pages,
                "10.0.0.5:80",
                "everybody, from any machine that reaches 10.0.0.5",
                "auth = \"token\" admits only who shows a token, listen = \"127.0.0.1:80\" this \
                 machine only",
            ),
        ] {
            let access = Access::new(listen.parse().unwrap(), config);
            assert_eq!((&*access.may_connect, &*access.to_change), (may_connect, to_change));
        }
    }
}
