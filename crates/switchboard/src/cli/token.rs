//! `switchboard token`: signs a token for a device with the server's own key.

use std::io::{self, ErrorKind, IsTerminal};
use std::time::Duration;

use switchboard_proto::v1::{DeviceRef, PublicId};

use super::{Exit, data, output};
use crate::auth::{KeyError, OwnKey, Patterns, TOKEN_LEN_MAX};

pub(super) const EXAMPLES: &str = "\
Examples:
  switchboard token --device sensor-7 > sensor-7.token
  switchboard token --device alice --ttl 24h --data-dir /var/lib/switchboard
  switchboard token --device meter --allow-send 'hub-*' --allow-send billing
  sudo -u switchboard switchboard token --device lamp \\
      --config /etc/switchboard/switchboard.toml        of the Debian package

The key is in the data directory of the server, which makes it when it starts
the first time. Run this as the user that the server runs as. A token cannot
be taken back; to end all of them, stop the server, remove token.key, run
`switchboard store repair` and start it again.

Exit codes: 0 printed, 1 failed, 2 wrong usage or no server's data there";

/// Latest end of a token, in seconds since 1970: the greatest number that JavaScript has exactly.
const EXP_MAX: u64 = (1 << 53) - 1;

/// The token's device and lifetime.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The device's name: a letter, then up to 127 of A-Z a-z 0-9 . _ : @ -
    #[arg(long, value_name = "NAME", value_parser = name)]
    device: PublicId,
    /// Lifetime of the token, such as 24h or 30days [default: as long as the key]
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    ttl: Option<Duration>,
    /// Let the device send only to ids that match, * being any characters; may be repeated
    #[arg(long, value_name = "PATTERN")]
    allow_send: Vec<String>,
    #[command(flatten)]
    data: data::Args,
}

/// Prints only the token to standard output, for use in a shell script.
pub(super) fn run(args: &Args) -> Exit {
    match mint(args) {
        Ok(token) => {
            let exit = output::print(&format!("{token}\n"));
            if exit == Exit::Done && io::stdout().is_terminal() {
                complain!("{}", hint(args));
            }
            exit
        }
        Err((exit, problem)) => {
            complain!("switchboard: cannot make a token: {problem}");
            exit
        }
    }
}

fn mint(args: &Args) -> Result<String, (Exit, String)> {
    let usage = |problem: &dyn ToString| (Exit::Usage, problem.to_string());
    let patterns = match args.allow_send.as_slice() {
        [] => None,
        given => Some(
            Patterns::new(given.iter().map(String::as_str))
                .map_err(|error| usage(&format!("--allow-send: {error}")))?,
        ),
    };
    let dir = args.data.resolve().map_err(|problem| (problem.exit, problem.words))?;
    let failed = |problem: &dyn ToString| (Exit::Failed, problem.to_string());
    let now = crate::clock::now().map_err(|error| failed(&error))?;
    let key = OwnKey::open(&dir).map_err(|error| match error {
        KeyError::NoData { .. } => usage(&error),
        error if error.io().is_some_and(|io| io.kind() == ErrorKind::PermissionDenied) => failed(
            &format!("{error}; run it as the server's user, such as by `sudo -u switchboard`"),
        ),
        error => failed(&error),
    })?;
    // A larger number is another one in JavaScript, and in most JSON libraries.
    if args.ttl.is_some_and(|ttl| now.as_secs().saturating_add(ttl.as_secs()) > EXP_MAX) {
        return Err(usage(
            &"--ttl: it ends later than a token can say; leave it out, and it lasts as long as the key",
        ));
    }
    let token = key.mint(args.device.as_ref(), args.ttl, patterns.as_ref(), now.as_secs());
    if token.len() > TOKEN_LEN_MAX {
        return Err(usage(&"--allow-send: these patterns are too long for one token"));
    }
    Ok(token)
}

/// Returns a note on the token for a user at a terminal.
fn hint(args: &Args) -> String {
    let until = match args.ttl {
        Some(ttl) => format!("for {}", humantime::format_duration(ttl)),
        None => "until the server's key is replaced".to_owned(),
    };
    format!("Valid {until}. Whoever has it is {}: keep it secret.", args.device)
}

fn name(text: &str) -> Result<PublicId, String> {
    match DeviceRef::parse(text) {
        Some(device @ DeviceRef::Name(_)) => Ok(device.into()),
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() => Err(
            "numbers are given by the server, with a token, to devices that come without a name; \
             choose a name that starts with a letter"
                .to_owned(),
        ),
        _ => Err("a name is a letter, then up to 127 of A-Z a-z 0-9 . _ : @ -".to_owned()),
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(ttl) if ttl.as_secs() > 0 => Ok(ttl),
        Ok(_) => Err("give at least 1s".to_owned()),
        Err(error) => Err(format!("{error}; give a time such as 24h or 30days")),
    }
}
