//! `switchboard listen`: is a device on a terminal, and prints what it is told.

use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use serde_json::json;
use switchboard_client::{Client, ConnectError, DeviceId, Ending, Event, Info};

use super::Exit;
use super::client::{Server, block_on, interrupted};
use super::output::{self, harmless};

pub(super) const EXAMPLES: &str = "\
Examples:
  switchboard listen
  switchboard listen --json | jq 'select(.event == \"message\").text'

Exit codes: 0 ended by Ctrl-C, 1 failed, 2 wrong usage, 3 could not connect,
  6 the server ended the connection";

/// Where to listen, and how to print.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    server: Server,
    /// Print one JSON object a line: welcome, message, closed
    #[arg(long)]
    json: bool,
    /// Connect again when the connection ends. Each connection has a new id: the text protocol
    /// knows no other way
    #[arg(long)]
    reconnect: bool,
}

/// The pause before connecting again, doubled after each failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The pause stops growing here.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Why listening stopped, at least to one connection.
enum Stop {
    Interrupted,
    NotConnected(ConnectError),
    Ended(Ending),
    Output(io::Error),
}

/// Prints what arrives until Ctrl-C, or until the connection ends.
pub(super) fn run(args: &Args) -> Exit {
    block_on(listen(args))
}

async fn listen(args: &Args) -> Exit {
    let mut interrupt = pin!(interrupted());
    let mut pause = PAUSE_MIN;
    loop {
        let connected = tokio::select! {
            connected = args.server.connect() => connected,
            () = &mut interrupt => return Exit::Done,
        };
        let stop = match connected {
            Ok(client) => {
                pause = PAUSE_MIN;
                follow(args, client, interrupt.as_mut()).await
            }
            Err(e) => Stop::NotConnected(e),
        };
        let exit = report(args, &stop);
        if !args.reconnect || !matches!(exit, Exit::NotConnected | Exit::ConnectionEnded) {
            return exit;
        }
        eprintln!("switchboard: connecting again in {}", humantime::format_duration(pause));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut interrupt => return Exit::Done,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Prints the welcome and every event of one connection.
async fn follow(
    args: &Args,
    mut client: Client,
    mut interrupt: Pin<&mut impl Future<Output = ()>>,
) -> Stop {
    let form = if args.json { Form::Json } else { Form::Text };
    if let Err(e) = output::write(&form.welcome(client.welcome())) {
        return Stop::Output(e);
    }
    let mut unread = pin!(output::reader_left());
    loop {
        let event = tokio::select! {
            event = client.next() => event.expect("a connection's last event ends the loop"),
            () = &mut interrupt => {
                client.close().await;
                return Stop::Interrupted;
            }
            () = &mut unread => return Stop::Output(io::ErrorKind::BrokenPipe.into()),
        };
        if let Err(e) = output::write(&form.event(&event)) {
            return Stop::Output(e);
        }
        if let Event::Closed(end) = event {
            return Stop::Ended(end);
        }
    }
}

fn report(args: &Args, stop: &Stop) -> Exit {
    let url = &args.server.url;
    match stop {
        Stop::Interrupted => Exit::Done,
        Stop::Output(e) => output::failed(e),
        Stop::NotConnected(e) => {
            eprintln!("switchboard: cannot connect to {url}: {e}");
            let usage = matches!(e, ConnectError::Address { .. });
            if usage { Exit::Usage } else { Exit::NotConnected }
        }
        Stop::Ended(end) => {
            eprintln!("switchboard: no longer connected to {url}: {end}; the id went with it");
            Exit::ConnectionEnded
        }
    }
}

/// How events are printed.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Json,
}

impl Form {
    fn welcome(self, info: &Info) -> String {
        match self {
            Form::Text => format!("your id is {}\n", info.id),
            Form::Json => line(&json!({
                "event": "welcome", "id": info.id.get(), "devices": numbers(&info.listed),
                "more": info.more,
            })),
        }
    }

    /// The line for `event`, if it has one.
    fn event(self, event: &Event) -> String {
        match (self, event) {
            (Form::Text, Event::Message { from, text }) => format!("{from}: {}\n", harmless(text)),
            (Form::Text, Event::Unknown(text)) => format!("{}\n", harmless(text)),
            // The end is told on standard error, with what it means.
            (Form::Text, Event::Closed(_)) => String::new(),
            (Form::Json, Event::Message { from, text }) => {
                line(&json!({ "event": "message", "from": from.get(), "text": text }))
            }
            (Form::Json, Event::Unknown(text)) => {
                line(&json!({ "event": "unknown", "text": text }))
            }
            (Form::Json, Event::Closed(end)) => {
                line(&json!({ "event": "closed", "code": end.code, "reason": end.reason }))
            }
            // Answers to commands; a listener gives none.
            (_, Event::Info(_) | Event::Refused(_)) => String::new(),
        }
    }
}

fn numbers(ids: &[DeviceId]) -> Vec<u64> {
    ids.iter().map(|id| id.get()).collect()
}

fn line(value: &serde_json::Value) -> String {
    format!("{value}\n")
}
