//! `switchboard send`: sends one text and says what became of it.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use switchboard_client::{Address, ConnectError, DeviceId, DeviceRef, Refusal, SendError};

use super::Exit;
use super::client::{Server, block_on};
use super::listen::id_json;
use super::output;
use super::send_v1;

pub(super) const EXAMPLES: &str = "\
Examples:
  switchboard send 100000000 'hello, world'
  date | switchboard send 100000000 -
  switchboard send --url wss://example.org --json 100000000 hello
  switchboard send --durable --ttl 1h alice 'back at noon'
  switchboard send --durable --wait 10s --body-json alice '{\"lamp\": true}'

Exit codes: 0 delivered; with --durable and without --wait: accepted,
  1 failed, 2 wrong usage, 3 could not connect, 4 no such device, 5 duplicate,
  6 unknown: the connection ended before the answer; --durable: no answer,
  7 --wait: stored, and not delivered in time, 8 rejected, for the reason told,
  9 --wait: refused, expired, or evicted with its device";

/// What to send, where.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The device to send to, by its id, which its page or `switchboard listen` shows, or its name
    #[arg(value_parser = device)]
    pub(super) id: Address<'static>,
    /// The text; - reads it from standard input, less one final new line
    #[arg(value_name = "MSG", allow_hyphen_values = true)]
    message: String,
    #[command(flatten)]
    pub(super) server: Server,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) durable: Durable,
}

/// What is asked of the v1 protocol.
#[derive(clap::Args, Debug)]
pub(super) struct Durable {
    /// Send over v1: the message waits for a device that is away, on disk; say when it does
    #[arg(long)]
    durable: bool,
    /// Give up on it after this time, such as 1h [default: never]
    #[arg(long, value_name = "TIME", requires = "durable", value_parser = time)]
    pub(super) ttl: Option<Duration>,
    /// Wait so long for its outcome
    #[arg(long, value_name = "TIME", requires = "durable", value_parser = time)]
    pub(super) wait: Option<Duration>,
    /// Have the outcome wait for the sender, to be read by `listen`; wants --state or --token-file
    #[arg(long, requires = "durable")]
    pub(super) receipt: bool,
    /// Send as the device of this token [default: a new device]
    #[arg(long, value_name = "FILE", requires = "durable")]
    pub(super) token_file: Option<PathBuf>,
    /// Send as the device whose state this is, as `listen --state` keeps it, or make one
    #[arg(long, value_name = "FILE", requires = "durable")]
    pub(super) state: Option<PathBuf>,
    /// Send under this id: the same device's same message is accepted once [default: a random one]
    #[arg(long = "id", id = "message_id", value_name = "ID", requires = "durable")]
    pub(super) message_id: Option<String>,
    /// MSG is JSON, to be sent as it is [default: it is sent as a JSON string]
    #[arg(long, requires = "durable")]
    pub(super) body_json: bool,
}

/// What became of a text.
#[derive(Debug)]
enum Outcome {
    Delivered { from: DeviceId },
    Refused { from: DeviceId, error: SendError },
    NotConnected(ConnectError),
}

/// Sends, prints the outcome, and ends with its code.
pub(super) fn run(args: &Args) -> Exit {
    let text = match text(&args.message) {
        Ok(text) => text,
        Err(e) => {
            eprintln!("switchboard: cannot read the message from standard input: {e}");
            return Exit::Failed;
        }
    };
    if args.durable.durable {
        if args.durable.receipt && args.durable.state.is_none() && args.durable.token_file.is_none()
        {
            eprintln!(
                "switchboard: --receipt wants --state FILE or --token-file FILE: the outcome"
            );
            eprintln!("  of a device that nobody can be again is read by nobody");
            return Exit::Usage;
        }
        return block_on(send_v1::send(args, &text));
    }
    let outcome = block_on(deliver(args, &text));
    let exit = outcome.exit();
    if args.json {
        let printed = output::print(&format!("{}\n", outcome.to_json(&args.id)));
        return if exit == Exit::Done { printed } else { exit };
    }
    match &outcome {
        Outcome::Delivered { from } => {
            let done = if is_mailbox(&args.id) { "handed over for" } else { "delivered to" };
            output::print(&format!("{done} {} from {from}\n", args.id))
        }
        Outcome::Refused { error, .. } => {
            fail(exit, &format!("cannot send to {}: {error}", args.id))
        }
        Outcome::NotConnected(e) => {
            fail(exit, &format!("cannot connect to {}: {e}", args.server.url))
        }
    }
}

async fn deliver(args: &Args, text: &str) -> Outcome {
    let mut client = match args.server.connect().await {
        Ok(client) => client,
        Err(e) => return Outcome::NotConnected(e),
    };
    let from = client.id();
    let to = args.id.device().expect("it was read as one");
    let sent = client.send(to, text).await;
    client.close().await;
    match sent {
        Ok(()) => Outcome::Delivered { from },
        Err(error) => Outcome::Refused { from, error },
    }
}

impl Outcome {
    fn exit(&self) -> Exit {
        match self {
            Outcome::Delivered { .. } => Exit::Done,
            Outcome::NotConnected(ConnectError::Address { .. }) => Exit::Usage,
            Outcome::NotConnected(_) => Exit::NotConnected,
            Outcome::Refused { error, .. } => match error {
                SendError::Refused(Refusal::NoSuchDevice) => Exit::NoSuchDevice,
                SendError::Refused(Refusal::Duplicate) => Exit::Duplicate,
                SendError::Refused(Refusal::MailboxFull) => Exit::Rejected,
                SendError::Closed(end) if !end.is_refusal() => Exit::ConnectionEnded,
                SendError::Closed(_) | SendError::Refused(_) | SendError::EventsWaiting => {
                    Exit::Failed
                }
            },
        }
    }

    fn to_json(&self, to: &Address<'_>) -> Value {
        let result = match self.exit() {
            Exit::Done if is_mailbox(to) => "handed_over",
            Exit::Done => "delivered",
            Exit::NoSuchDevice => "no_such_device",
            Exit::Duplicate => "duplicate",
            Exit::ConnectionEnded => "connection_ended",
            Exit::NotConnected | Exit::Usage => "not_connected",
            Exit::Rejected => "rejected",
            Exit::Failed | Exit::Stored | Exit::NotDelivered => "failed",
        };
        let to = id_json(to);
        match self {
            Outcome::Delivered { from } => {
                json!({ "result": result, "to": to, "from": from.get() })
            }
            Outcome::Refused { from, error } => json!({
                "result": result, "to": to, "from": from.get(), "reason": error.to_string(),
            }),
            Outcome::NotConnected(e) => {
                json!({ "result": result, "to": to, "reason": e.to_string() })
            }
        }
    }
}

/// A device with a name has a mailbox, and the text protocol does not tell whether the device is
/// there.
fn is_mailbox(to: &Address<'_>) -> bool {
    matches!(to, Address::Name(_))
}

fn fail(exit: Exit, what: &str) -> Exit {
    eprintln!("switchboard: {what}");
    exit
}

fn text(message: &str) -> io::Result<String> {
    if message != "-" {
        return Ok(message.to_owned());
    }
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text)?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

fn device(text: &str) -> Result<Address<'static>, String> {
    let number = DeviceId::from_decimal(text).map(DeviceRef::Number);
    let device = number.or_else(|| DeviceRef::parse(text)).map(DeviceRef::into_owned);
    device.ok_or_else(|| {
        "a device's id is a number such as 100000000, or its name: a letter, then A-Z a-z 0-9 . _ : \
         @ -"
        .to_owned()
    })
}

fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; give a time such as 10s"))
}
