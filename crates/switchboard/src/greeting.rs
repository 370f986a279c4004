//! The greeting of a server that has started: its address, who may connect, and what to do next.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Auth, Config};
use crate::log;

/// Logs that the server listens, and returns the greeting: the next steps.
pub(crate) fn greet(address: SocketAddr, metrics: Option<SocketAddr>, config: &Config) -> String {
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
    let http = if config.tls_cert.is_some() { "https" } else { "http" };
    let metrics = metrics
        .map(|address| format!("metrics     http://{address}/metrics\n  "))
        .unwrap_or_default();
    format!(
        "Switchboard is listening on {address}\n\n  \
         web page    {http}://{reachable}/\n  \
         by hand     {by_hand}\n  \
         {metrics}may connect {may_connect}\n  \
         to change   {WHERE_TO_CHANGE}{INDENT}{to_change}\n  \
         stop        {stop}\n\n",
        by_hand = by_hand(reachable, config).join(INDENT),
        may_connect = access.may_connect.join(&format!(";{INDENT}")),
        to_change = access.to_change_aligned().join(INDENT),
        stop = if io::stdout().is_terminal() { "Ctrl-C" } else { "SIGTERM" },
    )
}

/// Prints the greeting to standard output. Its reader may hang, and this with it.
pub(crate) fn print(greeting: &str) {
    // A reader that waits for the greeting finds the log lines before it.
    log::flush();
    // An error is ignored: the server runs even if nobody reads this.
    let _: io::Result<()> = io::stdout().write_all(greeting.as_bytes());
}

/// Start of a continuation line in a paragraph of the greeting.
const INDENT: &str = "\n              ";

/// The places in which a key can be set. The path of the running server's file is not named,
/// because a key may come from any of them.
const WHERE_TO_CHANGE: &str =
    "in switchboard.toml here, in the file of --config, or by --set; then restart:";

/// Returns the commands that make a device on a terminal, which depend on who may connect.
fn by_hand(reachable: SocketAddr, config: &Config) -> Vec<String> {
    let has_tls = config.tls_cert.is_some();
    let url = match has_tls {
        // The certificate is issued for the name that devices use.
        true => format!("wss://HOST:{}/", reachable.port()),
        false => format!("ws://{reachable}/"),
    };
    let needs_token = config.auth == Auth::Token;
    let mut lines = Vec::new();
    // Without a data directory the command has no key, only the operator has.
    if needs_token && let Some(dir) = &config.data_dir {
        let is_default = Some(dir) == Config::default().data_dir.as_ref();
        let dir = if is_default { String::new() } else { format!(" --data-dir {}", dir.display()) };
        lines.push(format!("switchboard token --device NAME{dir} > FILE"));
    }
    if let Some(origin) = config.allowed_origins.first() {
        // `listen` sends no Origin header.
        let token = if needs_token { " -H \"Authorization: Bearer $(cat FILE)\"" } else { "" };
        lines.push(format!("websocat --linemode-strip-newlines --origin {origin}{token} {url}"));
        return lines;
    }
    let token = if needs_token { " --token-file FILE" } else { "" };
    let is_default = !has_tls && reachable == SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let url = if is_default { String::new() } else { format!(" --url {url}") };
    lines.push(format!("switchboard listen{token}{url}"));
    lines
}

/// Returns the status that systemd shows for a running server, in one line.
pub(crate) fn status(address: SocketAddr, config: &Config) -> String {
    let Access { may_connect, .. } = Access::new(address, config);
    format!("Listening on {address}; may connect: {}", may_connect.join("; "))
}

/// Separate from [`Access`]: it is about which tokens are accepted, not about who needs one.
fn takes_any_audience(config: &Config) -> bool {
    config.auth_jwks.is_some() && config.auth_audience.is_none()
}

/// The clients that may connect, and the settings that change it.
struct Access {
    /// Parts of one sentence.
    may_connect: Vec<String>,
    /// Settings, each with the clients that it admits.
    to_change: Vec<(String, &'static str)>,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to_change =
            self.to_change.iter().map(|(setting, admits)| format!("{setting} {admits}"));
        let to_change = to_change.collect::<Vec<_>>().join(", ");
        let may_connect = self.may_connect.join("; ");
        write!(f, "may connect: {may_connect}; to change it, {WHERE_TO_CHANGE} {to_change}")
    }
}

impl Access {
    fn new(address: SocketAddr, config: &Config) -> Access {
        let any_origin = config.allowed_origins.is_empty();
        let (who, auth) = match config.auth {
            Auth::Open if any_origin => ("everybody", AUTH_TOKEN),
            Auth::Open => {
                ("clients that send an Origin of allowed_origins, as browsers do", AUTH_TOKEN)
            }
            Auth::Token if any_origin => ("clients with a token", AUTH_OPEN),
            Auth::Token => ("clients with a token and an Origin of allowed_origins", AUTH_OPEN),
        };
        let ip = address.ip();
        let from = match ip.is_loopback() {
            true if config.trusted_proxies.is_empty() => "this machine only".to_owned(),
            true => "this machine".to_owned(),
            false => format!("any machine that reaches {}", one_or_all(ip)),
        };
        let (listen, admits) = match ip.is_loopback() {
            true => (unspecified(ip), "other machines, too"),
            false => (loopback(ip), "this machine only"),
        };
        let mut access = Access {
            may_connect: vec![format!("{who}, from {from}")],
            to_change: vec![
                (auth.0.to_owned(), auth.1),
                (format!("listen = \"{}\"", on(listen, address)), admits),
            ],
        };
        if ip.is_loopback() && !config.trusted_proxies.is_empty() {
            let proxied = "so may clients that the proxies in trusted_proxies let through";
            access.may_connect.push(proxied.to_owned());
        }
        // If a token is required, a page in somebody's browser does not get in without one.
        if config.auth == Auth::Open && any_origin {
            access.may_connect.push("so may web pages of any origin".to_owned());
            access.to_change.push(("allowed_origins = [...]".to_owned(), "those pages only"));
        }
        access
    }

    /// Formats the settings in one column and the clients they admit in the next.
    fn to_change_aligned(&self) -> Vec<String> {
        let width = self.to_change.iter().map(|(setting, _)| setting.len()).max().unwrap_or(0);
        let line = |(setting, admits): &(String, &str)| format!("{setting:width$}  {admits}");
        self.to_change.iter().map(line).collect()
    }
}

const AUTH_TOKEN: (&str, &str) = ("auth = \"token\"", "only clients with a token");
const AUTH_OPEN: (&str, &str) = ("auth = \"open\"", "everybody");

/// Returns the listening address in words.
fn one_or_all(ip: IpAddr) -> String {
    if ip.is_unspecified() { "this one".to_owned() } else { ip.to_string() }
}

/// Returns the same port at another address.
fn on(ip: IpAddr, address: SocketAddr) -> SocketAddr {
    SocketAddr::new(ip, address.port())
}

/// Returns an address by which this machine reaches a server that listens on `ip`.
pub(crate) fn reachable(ip: IpAddr) -> IpAddr {
    if ip.is_unspecified() { loopback(ip) } else { ip }
}

/// Returns the loopback address of the same family.
fn loopback(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// Returns the unspecified address of the same family.
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

    fn says(listen: &str, config: &Config, may_connect: &str, to_change: &str) {
        let access = Access::new(listen.parse().unwrap(), config);
        assert_eq!(
            access.to_string(),
            format!("may connect: {may_connect}; to change it, {WHERE_TO_CHANGE} {to_change}")
        );
    }

    #[test]
    fn who_may_connect_from_where_is_told_with_what_changes_it() {
        let open = Config::default();
        let token = Config { auth: Auth::Token, ..Config::default() };
        says(
            "0.0.0.0:8080",
            &open,
            "everybody, from any machine that reaches this one; so may web pages of any origin",
            "auth = \"token\" only clients with a token, listen = \"127.0.0.1:8080\" this machine only, \
             allowed_origins = [...] those pages only",
        );
        says(
            "127.0.0.1:8080",
            &open,
            "everybody, from this machine only; so may web pages of any origin",
            "auth = \"token\" only clients with a token, listen = \"0.0.0.0:8080\" other machines, too, \
             allowed_origins = [...] those pages only",
        );
        says(
            "[::]:443",
            &token,
            "clients with a token, from any machine that reaches this one",
            "auth = \"open\" everybody, listen = \"[::1]:443\" this machine only",
        );
        says(
            "[::1]:443",
            &token,
            "clients with a token, from this machine only",
            "auth = \"open\" everybody, listen = \"[::]:443\" other machines, too",
        );
    }

    /// The greeting used to say "this machine only" for a server that a proxy opens to the
    /// world.
    #[test]
    fn a_proxy_on_this_machine_lets_others_in() {
        let proxied =
            Config { trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()], ..Config::default() };
        says(
            "127.0.0.1:80",
            &proxied,
            "everybody, from this machine; so may clients that the proxies in trusted_proxies let \
             through; so may web pages of any origin",
            "auth = \"token\" only clients with a token, listen = \"0.0.0.0:80\" other machines, too, \
             allowed_origins = [...] those pages only",
        );
    }

    /// The greeting used to say "everybody", but programs were answered 403.
    #[test]
    fn where_origins_are_listed_programs_need_one_too() {
        let pages =
            Config { allowed_origins: vec!["https://a.example".into()], ..Config::default() };
        says(
            "10.0.0.5:80",
            &pages,
            "clients that send an Origin of allowed_origins, as browsers do, from any machine that reaches \
             10.0.0.5",
            "auth = \"token\" only clients with a token, listen = \"127.0.0.1:80\" this machine only",
        );
        let both = Config { auth: Auth::Token, ..pages };
        says(
            "127.0.0.1:80",
            &both,
            "clients with a token and an Origin of allowed_origins, from this machine only",
            "auth = \"open\" everybody, listen = \"0.0.0.0:80\" other machines, too",
        );
    }

    #[test]
    fn the_commands_by_hand_are_those_that_get_in() {
        let commands = |address: &str, config: &Config| by_hand(address.parse().unwrap(), config);
        let open = Config::default();
        assert_eq!(commands("127.0.0.1:8080", &open), ["switchboard listen"]);
        assert_eq!(
            commands("127.0.0.1:80", &open),
            ["switchboard listen --url ws://127.0.0.1:80/"]
        );
        let tls = Config { tls_cert: Some("c".into()), ..Config::default() };
        assert_eq!(commands("127.0.0.1:8080", &tls), ["switchboard listen --url wss://HOST:8080/"]);
        let token = Config { auth: Auth::Token, ..Config::default() };
        let listen = "switchboard listen --token-file FILE";
        assert_eq!(
            commands("127.0.0.1:8080", &token),
            ["switchboard token --device NAME > FILE", listen]
        );
        let elsewhere = Config { data_dir: Some("/data".into()), ..token.clone() };
        assert_eq!(
            commands("127.0.0.1:8080", &elsewhere),
            ["switchboard token --device NAME --data-dir /data > FILE", listen]
        );
        let memory = Config { data_dir: None, ..token };
        assert_eq!(commands("127.0.0.1:8080", &memory), [listen]);
        let pages = Config { allowed_origins: vec!["https://a.example".into()], ..open };
        let websocat = "websocat --linemode-strip-newlines --origin https://a.example";
        assert_eq!(
            commands("127.0.0.1:8080", &pages),
            [format!("{websocat} ws://127.0.0.1:8080/")]
        );
        let both = Config { auth: Auth::Token, ..pages };
        let token = "-H \"Authorization: Bearer $(cat FILE)\"";
        assert_eq!(
            commands("127.0.0.1:8080", &both).last(),
            Some(&format!("{websocat} {token} ws://127.0.0.1:8080/"))
        );
    }
}
