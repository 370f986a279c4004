//! `switchboard send`: sends one text and says what became of it.

use std::io::{self, Read};

use serde_json::{Value, json};
use switchboard_client::{ConnectError, DeviceId, Refusal, SendError};

use super::Exit;
use super::client::{Server, block_on};
use super::output;

pub(super) const EXAMPLES: &str = "\
Examples:
  switchboard send 100000000 'hello, world'
  date | switchboard send 100000000 -
  switchboard send --url wss://example.org --json 100000000 hello

Exit codes: 0 delivered, 1 failed, 2 wrong usage, 3 could not connect,
  4 no such device, 5 duplicate, 6 the connection ended before the answer";

/// What to send, where.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The device to send to: its page, or `switchboard listen`, shows its id
    #[arg(value_parser = device_id)]
    id: DeviceId,
    /// The text; - reads it from standard input, less one final new line
    #[arg(value_name = "MSG", allow_hyphen_values = true)]
    message: String,
    #[command(flatten)]
    server: Server,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
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
    let outcome = block_on(deliver(args, &text));
    let exit = outcome.exit();
    if args.json {
        let printed = output::print(&format!("{}\n", outcome.to_json(args.id)));
        return if exit == Exit::Done { printed } else { exit };
    }
    match &outcome {
        Outcome::Delivered { from } => {
            output::print(&format!("delivered to {} from {from}\n", args.id))
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
    let sent = client.send(args.id, text).await;
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
                SendError::Closed(end) if !end.is_refusal() => Exit::ConnectionEnded,
                SendError::Closed(_) | SendError::Refused(_) | SendError::EventsWaiting => {
                    Exit::Failed
                }
            },
        }
    }

    fn to_json(&self, to: DeviceId) -> Value {
        let result = match self.exit() {
            Exit::Done => "delivered",
            Exit::NoSuchDevice => "no_such_device",
            Exit::Duplicate => "duplicate",
            Exit::ConnectionEnded => "connection_ended",
            Exit::NotConnected | Exit::Usage => "not_connected",
            Exit::Failed => "failed",
        };
        match self {
            Outcome::Delivered { from } => {
                json!({ "result": result, "to": to.get(), "from": from.get() })
            }
            Outcome::Refused { from, error } => json!({
                "result": result, "to": to.get(), "from": from.get(), "reason": error.to_string(),
            }),
            Outcome::NotConnected(e) => {
                json!({ "result": result, "to": to.get(), "reason": e.to_string() })
            }
        }
    }
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

fn device_id(text: &str) -> Result<DeviceId, String> {
    DeviceId::from_decimal(text)
        .ok_or_else(|| "a device id is a number such as 100000000".to_owned())
}
