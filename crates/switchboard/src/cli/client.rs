//! Shared parts of `send` and `listen`: the server's address, the token, and error messages.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use switchboard_client::v1::OpenError;
use switchboard_client::{ConnectError, ConnectOptions, TlsError};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, PublicId};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::Exit;
use super::output::escaped;
use super::state::{StateFile, TokenSource};

/// The variable that holds a token. There is no such option, because everybody on the machine
/// can read the arguments of a process.
const TOKEN_VARIABLE: &str = "SWITCHBOARD_TOKEN";

/// The variable that holds the server's address.
pub(super) const URL_VARIABLE: &str = "SWITCHBOARD_URL";

/// Advice if a server's certificate is not trusted.
pub(super) const UNTRUSTED: &str = "certificate not trusted: use --ca FILE (PEM), with the \
                                    certificate of the authority that signed it; a self-signed \
                                    one is its own";

/// The server and the options of the connection.
#[derive(clap::Args, Debug)]
pub(super) struct Server {
    /// The server: HOST (port 8080), HOST:PORT, or ws://, wss://, http:// or https:// and these
    #[arg(
        long,
        env = URL_VARIABLE,
        default_value = "ws://127.0.0.1:8080",
        value_parser = address
    )]
    pub(super) url: String,
    /// Trust the authorities in this PEM file for wss://, not the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Be the device of this token, as `switchboard token` prints it [default: the token in
    /// `SWITCHBOARD_TOKEN`, if that is set; else a new device without a name]
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Give up if connecting or the server's answer takes longer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = timeout)]
    pub(super) timeout: Duration,
}

impl Server {
    /// Returns the SDK's connection options.
    pub(super) fn options(&self) -> ConnectOptions {
        ConnectOptions { ca: self.ca.clone(), timeout: self.timeout }
    }

    /// Returns the source of the token, if there is one.
    pub(super) fn token(&self) -> Option<TokenSource> {
        let variable = || std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        let file = self.token_file.clone().map(TokenSource::File);
        file.or_else(|| variable().map(TokenSource::Variable))
    }

    /// Rejects `--durable` together with a token: it is for devices without a name. Returns true
    /// if it did.
    pub(super) fn is_twice_somebody(&self, is_durable: bool) -> bool {
        let is_twice = is_durable && self.token().is_some();
        if is_twice {
            complain!(
                "switchboard: --durable is for a device without a name, and {TOKEN_VARIABLE} is \
                 set: use --state FILE, or unset it"
            );
        }
        is_twice
    }

    /// Returns the exit code of a command that could not connect.
    pub(super) fn exit_of(&self, error: &OpenError) -> Exit {
        match error {
            OpenError::Connect(ConnectError::Address { .. } | ConnectError::Roots(_)) => {
                Exit::Usage
            }
            _ => Exit::NotConnected,
        }
    }

    /// Returns the reason why there is no connection, and the remedy. `state` is the device's
    /// own file, if it has one.
    pub(super) fn cannot_connect(&self, error: &OpenError, state: Option<&StateFile>) -> String {
        let why = match error {
            // The error names the address itself.
            OpenError::Connect(error @ ConnectError::Address { .. }) => return error.to_string(),
            OpenError::Connect(ConnectError::Tls(TlsError::Untrusted)) => UNTRUSTED.to_owned(),
            OpenError::Closed(ending) if ending.code == 4401 && self.token().is_none() => {
                match state.and_then(StateFile::path_of_token) {
                    Some(path) => format!(
                        "{error}; the device's token is in {}: delete that file to be a new device, or \
                         start the server with the data directory that it had",
                        path.display()
                    ),
                    None => format!("{error}; give one by --token-file FILE or SWITCHBOARD_TOKEN"),
                }
            }
            error => error.to_string(),
        };
        escaped(&format!("cannot connect to {}: {why}", self.url))
    }
}

/// Adds the scheme and port that an address lacks. It is validated only when it is used.
pub(super) fn address(text: &str) -> Result<String, Infallible> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let scheme = match scheme {
            "http" => "ws",
            "https" => "wss",
            other => other,
        };
        return Ok(format!("{scheme}://{rest}"));
    }
    let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    // The colons in [::1] do not introduce a port.
    let has_port = host.rsplit_once(']').map_or(host, |(_, rest)| rest).contains(':');
    let port = if has_port || host.is_empty() { "" } else { ":8080" };
    Ok(format!("ws://{host}{port}{path}"))
}

/// Parses a device's number or name.
pub(super) fn device(text: &str) -> Result<PublicId, String> {
    let number = DeviceId::from_decimal(text).map(DeviceRef::Number);
    let device = number.or_else(|| DeviceRef::parse(text)).map(PublicId::from);
    device.ok_or_else(|| {
        "a device's id is a number such as 100000000, or its name: a letter, then A-Z a-z 0-9 . _ : \
         @ -"
        .to_owned()
    })
}

/// Parses a time such as `10s`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; give a time such as 10s"))
}

/// Parses a time above zero.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    let is_some = |time: &Duration| !time.is_zero();
    Some(time(text)?).filter(is_some).ok_or_else(|| "give a time above 0s, such as 10s".to_owned())
}

/// Runs a client's future on this thread.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> T {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread needs only an epoll descriptor")
        .block_on(work)
}

/// Completes at Ctrl-C or SIGTERM.
pub(super) async fn interrupted() {
    let mut terminated =
        signal(SignalKind::terminate()).expect("SIGTERM is a signal that may be caught");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_written_in_short() {
        for (text, url) in [
            ("example.org", "ws://example.org:8080"),
            ("example.org:80", "ws://example.org:80"),
            ("10.0.0.1/a/b", "ws://10.0.0.1:8080/a/b"),
            ("[::1]", "ws://[::1]:8080"),
            ("[::1]:9000/", "ws://[::1]:9000/"),
            ("example.org:http", "ws://example.org:http"),
            ("http://h", "ws://h"),
            ("https://h:1/x", "wss://h:1/x"),
            ("wss://h", "wss://h"),
            ("ftp://h", "ftp://h"),
            ("", "ws://"),
        ] {
            assert_eq!(address(text).as_deref(), Ok(url));
        }
    }
}
