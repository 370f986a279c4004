//! `switchboard listen`: is a device on a terminal, and prints what it is told.

use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::time::Duration;

use serde_json::{Value, json};
use switchboard_client::{Address, Client, ConnectError, Ending, Event, Info};

use super::Exit;
use super::client::{Server, block_on, interrupted};
use super::listen_v1;
use super::output::{self, harmless};

pub(super) const EXAMPLES: &str = "\
Examples:
  switchboard listen
  switchboard listen --json | jq 'select(.event == \"message\").text'
  switchboard listen --device alice --token-file alice.token
  switchboard listen --durable --json | jq 'select(.event == \"message\").body'

With --device or --durable the id is the same in every run, and what was sent
meanwhile has waited; each message is acked when its line was taken.

Exit codes: 0 ended by Ctrl-C, 1 failed, 2 wrong usage, 3 could not connect,
  6 the server ended the connection";

/// Where to listen, and how to print.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) server: Server,
    /// Print one JSON object a line: welcome, message, closed
    #[arg(long)]
    pub(super) json: bool,
    /// Connect again when the connection ends. Each connection has a new id: the text protocol
    /// knows no other way. With --device or --durable, which come back by themselves: also wait
    /// for a server that is not there yet
    #[arg(long)]
    pub(super) reconnect: bool,
    /// Be this device, which the token must name
    #[arg(long, value_name = "NAME", requires = "token_file")]
    pub(super) device: Option<String>,
    /// The device's token, as `switchboard token` prints it
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Be a device without a name that keeps its id and its messages
    #[arg(long, conflicts_with = "token_file")]
    pub(super) durable: bool,
    /// Where the place in the mailbox is kept, and the token of --durable.
    #[arg(
        help = "Keep the place in the mailbox, and the token of --durable, here [default: beside \
                the token file, or in $XDG_STATE_HOME/switchboard]",
        long,
        value_name = "FILE"
    )]
    pub(super) state: Option<PathBuf>,
    /// Also tell when this device comes and goes; may be given again
    #[arg(long, value_name = "ID")]
    pub(super) watch: Vec<String>,
}

/// The pause before connecting again, doubled after each failure.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The pause stops growing here.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Why listening stopped, at least to one connection.
enum Stop {
    Interrupted,
    NotConnected(ConnectError),
    Ended(Ending),
    Output(io::Error),
}

/// Prints what arrives until Ctrl-C, or until the connection ends.
pub(super) fn run(args: &Args) -> Exit {
    if args.durable || args.token_file.is_some() {
        return block_on(listen_v1::listen(args));
    }
    if args.state.is_some() || !args.watch.is_empty() {
        eprintln!("switchboard: --state and --watch want --durable, or --token-file FILE");
        return Exit::Usage;
    }
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
                "event": "welcome", "id": info.id.get(), "devices": ids_json(&info.listed),
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
                line(&json!({ "event": "message", "from": id_json(from), "text": text }))
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

fn ids_json(ids: &[Address<'_>]) -> Vec<Value> {
    ids.iter().map(id_json).collect()
}

/// A number, or a device's name.
pub(super) fn id_json(id: &Address<'_>) -> Value {
    match id {
        Address::Number(id) => id.get().into(),
        named => named.to_string().into(),
    }
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}
