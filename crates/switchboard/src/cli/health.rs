//! `switchboard health`: whether a server is ready, as an exit code.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use switchboard_client::{ConnectError, Options, TlsError, Trust};

use super::client::{address, block_on, time};
use super::settings::Settings;
use super::{Exit, output};
use crate::config::Config;
use crate::greeting::reachable;

pub(super) const EXAMPLES: &str = "\
Examples:
  switchboard health                                  the server of this machine
  switchboard health --config /etc/switchboard/switchboard.toml
  switchboard health --url https://example.org --timeout 2s

In a container: HEALTHCHECK CMD [\"switchboard\", \"health\"], with the variables,
files and options that the server was started with.";

/// Which server is asked.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The server: HOST (port 8080), HOST:PORT, or http:// or https:// and these [default: where the
    /// configuration has it listen]
    #[arg(long)]
    url: Option<String>,
    /// Trust the authorities in this PEM file for https:// [default: the system's; without --url any
    /// certificate, as that of the own server may be for another name]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Give up where it takes longer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    timeout: Duration,
    #[command(flatten)]
    settings: Settings,
}

/// Asks `/readyz`. Every "no" is exit code 1: more than two are not for a `HEALTHCHECK`.
pub(super) fn run(args: &Args) -> Exit {
    match ask(args) {
        Ok(()) => output::print("ready\n"),
        Err(why) => {
            eprintln!("switchboard: {why}");
            Exit::Failed
        }
    }
}

fn ask(args: &Args) -> Result<(), String> {
    let url = match &args.url {
        Some(url) => by_http(url),
        None => own_url(&args.settings)?,
    };
    let is_own = args.url.is_none() && args.ca.is_none();
    let trust = if is_own { Trust::Anyone } else { Trust::Authorities };
    let options = Options { ca: args.ca.clone(), timeout: args.timeout };
    let asked = block_on(switchboard_client::ready(&url, &options, trust));
    asked.map_err(|error| output::escaped(&in_words(&error, &url)))
}

/// Completes an address as clients do, which know the same server by the other scheme.
fn by_http(url: &str) -> String {
    let Ok(url) = address(url);
    url.strip_prefix("ws").map_or(url.clone(), |rest| format!("http{rest}"))
}

/// Where the server of this configuration listens.
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
