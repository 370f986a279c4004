//! `switchboard health`: reports as an exit code whether a server is ready.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use switchboard_client::{ConnectError, ConnectOptions, TlsError, Trust};

use super::client::{URL_VARIABLE, address, block_on, timeout};
use super::settings::Settings;
use super::{Exit, output};
use crate::config::Config;
use crate::greeting::reachable;

pub(super) const EXAMPLES: &str = "\
Examples:
  switchboard health                                  the server of this machine
  switchboard health --config /etc/switchboard/switchboard.toml
  switchboard health --url https://example.org/switchboard/ --timeout 2s

In a container: HEALTHCHECK CMD [\"switchboard\", \"health\"]. The server's
variables and files say where it is; options that it was given must be repeated.

Exit codes: 0 ready, 1 not ready, not reached, or wrong usage";

/// The server to ask.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The server: HOST (port 8080), HOST:PORT, or http:// or https:// and these; readyz beneath its
    /// path is asked [default: `SWITCHBOARD_URL`, if that is set and no option says where the server
    /// is; else where the configuration has it listen]
    #[arg(long, conflicts_with = "Settings")]
    url: Option<String>,
    /// Trust the authorities in this PEM file for https:// [default: the system's; without an address
    /// any certificate, as that of the own server may be for another name]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Give up if it takes longer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = timeout)]
    timeout: Duration,
    #[command(flatten)]
    settings: Settings,
}

/// Asks `/readyz`. Every failure is exit code 1, the only one that a `HEALTHCHECK` may use.
pub(super) fn run(args: &Args) -> Exit {
    match ask(args) {
        Ok(()) => output::print("ready\n"),
        Err(why) => {
            complain!("switchboard: {why}");
            Exit::Failed
        }
    }
}

fn ask(args: &Args) -> Result<(), String> {
    let given = args.url.clone().or_else(|| variable(&args.settings));
    let url = match &given {
        Some(url) => by_http(url),
        None => own_url(&args.settings)?,
    };
    if args.ca.is_some() && url.starts_with("http://") {
        return Err(format!("--ca is for https://, and the server's address is {url}"));
    }
    let is_own = given.is_none() && args.ca.is_none();
    let trust = if is_own { Trust::Anyone } else { Trust::Authorities };
    let options = ConnectOptions { ca: args.ca.clone(), timeout: args.timeout };
    let asked = block_on(switchboard_client::ready(&url, &options, trust));
    asked.map_err(|error| output::escaped(&in_words(&error, &url)))
}

/// Returns the address in the variable that `send` and `listen` use, too. Options take
/// precedence, as they describe another server.
fn variable(settings: &Settings) -> Option<String> {
    let variable = std::env::var(URL_VARIABLE).ok().filter(|url| !url.is_empty());
    variable.filter(|_| settings.is_empty())
}

/// Completes an address as clients do, and replaces their scheme by that of HTTP.
fn by_http(url: &str) -> String {
    let Ok(url) = address(url);
    url.strip_prefix("ws").map_or(url.clone(), |rest| format!("http{rest}"))
}

/// Returns the URL at which the server of this configuration listens.
fn own_url(settings: &Settings) -> Result<String, String> {
    let loaded =
        settings.load().map_err(|errors| format!("cannot tell where the server is: {errors}"))?;
    let Config { listen, tls_cert, .. } = loaded.config;
    if listen.port() == 0 {
        return Err(
            "cannot tell where the server is: it took a free port (port 0); give --url".to_owned()
        );
    }
    let scheme = if tls_cert.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{}", SocketAddr::new(reachable(listen.ip()), listen.port())))
}

fn in_words(error: &ConnectError, url: &str) -> String {
    let why = match error {
        ConnectError::Http { .. } => return format!("not ready: {error}"),
        ConnectError::NoProbe => return format!("not ready: {url}: {error}"),
        ConnectError::Address { url } => {
            return format!("{url:?} is no address; give one such as http://127.0.0.1:8080");
        }
        ConnectError::Tls(TlsError::PlainPort) => {
            "this port does not speak TLS: use http://".to_owned()
        }
        ConnectError::Tls(TlsError::TlsPort) => "this port speaks TLS: use https://".to_owned(),
        ConnectError::Tls(TlsError::Untrusted) => super::client::UNTRUSTED.to_owned(),
        error => error.to_string(),
    };
    format!("cannot reach {url}: {why}")
}
