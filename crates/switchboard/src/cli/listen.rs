//! `switchboard listen`: acts as a device on a terminal, and prints the events that it receives.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use serde_json::{Value, json};
use switchboard_client::v1::{
    Ack, Cursor, Device, Event, Message, OpenError, Receipt, SessionOptions,
};
use switchboard_client::v1::{Session, State, Welcome};
use switchboard_client::{ConnectError, Ending};
use switchboard_proto::v1::PublicId;

use super::Exit;
use super::client::{Server, block_on, device, interrupted};
use super::output::{self, escaped, indented};
use super::state::{StateFile, StateFileError};

pub(super) const EXAMPLES: &str = "\
Examples:
  switchboard listen
  switchboard listen --json | jq 'select(.event == \"message\").body'
  switchboard listen --device alice --token-file alice.token
  switchboard listen --durable

Plain `listen` is a device that ends with its connection. One with a token, or
with --durable or --state, is the same in every run: what was sent meanwhile
has waited. Each message is acked when its line was taken.

A line is \"SENDER: MESSAGE\". Of a message of several lines all but the first
begin with four spaces; control characters are spelt out, as in \\u{1b}.

Exit codes: 0 ended by Ctrl-C, 1 failed, 2 wrong usage, 3 could not connect,
  6 the connection ended, and the device with it or for good";

/// The device to be, and the format of the output.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    server: Server,
    /// Print one JSON object a line: welcome, message, outcome, presence, offline, closed
    #[arg(long)]
    json: bool,
    /// Wait for a server that is not there yet. A device that ends with its connection also
    /// reconnects, with the same id; those that are kept always do
    #[arg(long)]
    reconnect: bool,
    /// Be this device, which the token must name
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Be a device without a name that keeps its id and its messages
    #[arg(long, conflicts_with = "token_file")]
    durable: bool,
    /// Keep the device's state in this file.
    #[arg(
        help = "Keep the position in the mailbox, and the token of a device without a name, here \
                [default: beside the token file; for --durable in $XDG_STATE_HOME/switchboard]",
        long,
        value_name = "FILE"
    )]
    state: Option<PathBuf>,
    /// Also report when this device comes and goes; may be repeated
    #[arg(long, value_name = "ID", value_parser = device)]
    watch: Vec<PublicId>,
}

/// Delay before connecting again, doubled after each failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Maximum delay.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Maximum number of events printed and acked together, if they arrive together.
const BATCH_MAX: usize = 256;

/// Reason why listening stopped.
enum Stop {
    Interrupted,
    NotConnected(OpenError),
    /// The token belongs to another device.
    Another(String),
    Ended(Ending),
    State(StateFileError),
    Output(io::Error),
    Watch(String),
}

impl Args {
    /// Returns true if the device outlives its connection.
    fn is_kept(&self) -> bool {
        self.durable || self.state.is_some() || self.server.token().is_some()
    }

    /// Returns the file for the cursor into the mailbox. For a device whose token is in a
    /// variable there is none unless a file is named: it relies on the server's memory of its
    /// cursor.
    fn state_file(&self) -> Result<Option<StateFile>, StateFileError> {
        match (&self.state, &self.server.token_file) {
            (Some(path), _) => Ok(Some(StateFile::new(path.clone(), self.server.token()))),
            (None, Some(token)) => Ok(Some(StateFile::beside(token))),
            (None, None) if self.durable => {
                StateFile::of_user("listen", &self.server.url).map(Some)
            }
            (None, None) => Ok(None),
        }
    }
}

/// Prints events until it is interrupted or the session ends.
pub(super) fn run(args: &Args) -> Exit {
    if args.server.is_twice_somebody(args.durable) {
        return Exit::Usage;
    }
    if let Some(name) = &args.device
        && args.server.token().is_none()
    {
        complain!(
            "switchboard: --device {name} requires its token: give it by --token-file FILE or \
             SWITCHBOARD_TOKEN"
        );
        return Exit::Usage;
    }
    match block_on(follow(args)) {
        Ok(()) => Exit::Done,
        Err(stop) => report(args, &stop),
    }
}

async fn follow(args: &Args) -> Result<(), Stop> {
    let file = args.state_file().map_err(Stop::State)?;
    let mut interrupt = pin!(interrupted());
    let mut session = tokio::select! {
        session = connect(args, file.as_ref()) => session?,
        () = &mut interrupt => return Err(Stop::Interrupted),
    };
    check_name(args, &session)?;
    if let Some(file) = &file {
        // A new device is lost if its token is, so save it before anything else.
        file.save(&session.state()).map_err(Stop::State)?;
    }
    let mut unread = pin!(output::reader_left());
    let listening = async {
        watch(args, session.device()).await?;
        print_all(args, file.as_ref(), &mut session).await
    };
    let stopped = tokio::select! {
        stopped = listening => stopped,
        () = &mut interrupt => Err(Stop::Interrupted),
        () = &mut unread => Err(Stop::Output(io::ErrorKind::BrokenPipe.into())),
    };
    session.close().await;
    stopped
}

async fn connect(args: &Args, file: Option<&StateFile>) -> Result<Session, Stop> {
    let mut pause = PAUSE_MIN;
    loop {
        let state = match file {
            Some(file) => file.load(),
            None => token(args).map(|token| State { token, ..State::default() }),
        };
        let state = state.map_err(Stop::State)?;
        let options = SessionOptions {
            connect: args.server.options(),
            ephemeral: !args.is_kept(),
            reconnect: args.reconnect || args.is_kept(),
            ack: Ack::ByHand,
            pause_min: PAUSE_MIN,
            pause_max: PAUSE_MAX,
            ..SessionOptions::default()
        };
        let error = match Session::open(&args.server.url, options, state).await {
            Ok(session) => return Ok(session),
            Err(error) if args.reconnect && may_help(&error) => error,
            Err(error) => return Err(Stop::NotConnected(error)),
        };
        let why = args.server.cannot_connect(&error, file);
        let again = humantime::format_duration(pause);
        complain!("switchboard: {why}; connecting again in {again}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn token(args: &Args) -> Result<Option<String>, StateFileError> {
    args.server.token().map(|source| source.read()).transpose()
}

/// Returns true if waiting may help.
fn may_help(error: &OpenError) -> bool {
    match error {
        OpenError::Connect(ConnectError::Address { .. } | ConnectError::Roots(_)) => false,
        OpenError::Connect(_) => true,
        OpenError::Closed(ending) => ending.code < 4000,
    }
}

/// Checks the token against `--device`: a wrong token file would show another device's messages,
/// and remove them from its mailbox.
fn check_name(args: &Args, session: &Session) -> Result<(), Stop> {
    match &args.device {
        Some(name) if name != session.id() => Err(Stop::Another(session.id().to_owned())),
        _ => Ok(()),
    }
}

async fn watch(args: &Args, device: &Device) -> Result<(), Stop> {
    if args.watch.is_empty() {
        return Ok(());
    }
    let watched: Vec<String> = args.watch.iter().map(PublicId::to_string).collect();
    let watched: Vec<&str> = watched.iter().map(String::as_str).collect();
    device.watch(&watched).await.map_err(|error| Stop::Watch(error.to_string()))
}

/// Prints, saves and then acks, in this order: after a crash in between, events are printed
/// twice rather than lost.
async fn print_all(
    args: &Args,
    file: Option<&StateFile>,
    session: &mut Session,
) -> Result<(), Stop> {
    let form = if args.json { Form::Json } else { Form::Text };
    let mut is_first = true;
    loop {
        let first = session.next().await.expect("the last event ends the loop");
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Some(event) = session.try_next()
        {
            batch.push(event);
        }
        let mut lines = String::new();
        for event in &batch {
            lines.push_str(&form.event(event, is_first));
            is_first &= !matches!(event, Event::Online(_));
        }
        if !lines.is_empty() {
            output::write(&lines).map_err(Stop::Output)?;
        }
        keep(file, session, batch.iter().filter_map(Event::cursor).next_back())?;
        for event in batch {
            match event {
                Event::Closed(ending) => return Err(Stop::Ended(ending)),
                Event::Expiring { .. } => refresh(args, session.device()).await,
                Event::Offline { why, retry_in } => offline(&why, retry_in),
                _ => {}
            }
        }
    }
}

fn keep(file: Option<&StateFile>, session: &Session, last: Option<Cursor>) -> Result<(), Stop> {
    let Some(last) = last else { return Ok(()) };
    if let Some(file) = file {
        file.save(&session.device().state_with(last)).map_err(Stop::State)?;
    }
    session.device().ack(last);
    Ok(())
}

/// Switches to a newer token if the token file has one.
async fn refresh(args: &Args, device: &Device) {
    let token = match token(args) {
        Ok(Some(token)) if device.state().token.as_ref() != Some(&token) => token,
        Ok(_) => return complain!("switchboard: the token ends within a minute; renew its file"),
        Err(error) => return complain!("switchboard: {error}"),
    };
    if let Err(error) = device.refresh(&token).await {
        complain!("switchboard: cannot renew the token: {error}");
    }
}

fn offline(why: &str, retry_in: Duration) {
    let retry_in = Duration::from_millis(retry_in.as_millis() as u64);
    let again = humantime::format_duration(retry_in);
    complain!("switchboard: offline: {}; connecting again in {again}", escaped(why));
}

fn report(args: &Args, stop: &Stop) -> Exit {
    let url = &args.server.url;
    let (exit, words) = match stop {
        Stop::Interrupted => return Exit::Done,
        Stop::Output(error) => return output::failed(error),
        Stop::NotConnected(error) => {
            let file = args.state_file().ok().flatten();
            (args.server.exit_of(error), args.server.cannot_connect(error, file.as_ref()))
        }
        Stop::Another(device) => {
            (Exit::Usage, format!("the token is that of {device}; nothing was read or acked"))
        }
        Stop::Ended(ending) => {
            let kept = if args.is_kept() {
                "what waits is kept for the next run"
            } else {
                "the device ended with its connection"
            };
            let words = format!("no longer connected to {url}: {ending}; {kept}");
            (Exit::ConnectionEnded, escaped(&words))
        }
        Stop::State(error) => (Exit::Failed, error.to_string()),
        Stop::Watch(error) => (Exit::Failed, format!("cannot watch: {error}")),
    };
    complain!("switchboard: {words}");
    exit
}

/// Format of the output.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Json,
}

impl Form {
    /// Returns the line for `event`, or an empty string if it has none.
    fn event(self, event: &Event, is_first: bool) -> String {
        match (self, event) {
            (Form::Text, event) => text(event, is_first),
            (Form::Json, Event::Message(message)) => message_json(message),
            (Form::Json, event) => json(event).map_or_else(String::new, |json| format!("{json}\n")),
        }
    }
}

/// Formats an event as text. No id contains a space, so only the line of a message has a colon
/// after its first word.
fn text(event: &Event, is_first: bool) -> String {
    match event {
        Event::Online(welcome) if is_first => format!("your id is {}\n", escaped(&welcome.device)),
        Event::Message(message) => {
            format!("{}: {}\n", escaped(&message.from), indented(&message.text()))
        }
        Event::Outcome(receipt) => {
            let seen = if receipt.maybe_seen { ", may have been seen" } else { "" };
            let reason = receipt.reason.as_deref().map(|why| format!(", {}", escaped(why)));
            let (id, to) = (escaped(&receipt.id), escaped(&receipt.to));
            let outcome = escaped(&receipt.outcome.to_string());
            format!("outcome {id} to {to}: {outcome}{seen}{}\n", reason.unwrap_or_default())
        }
        Event::Presence { device, online, .. } => {
            let word = if *online { "online" } else { "offline" };
            format!("presence {}: {word}\n", escaped(device))
        }
        // Printed on standard error, with an explanation.
        _ => String::new(),
    }
}

fn json(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Online(welcome) => welcome_json(welcome),
        Event::Outcome(receipt) => outcome_json(receipt),
        Event::Presence { device, online, at_ms } => {
            json!({ "event": "presence", "device": device, "online": online, "at_ms": at_ms })
        }
        Event::Expiring { at_ms } => json!({ "event": "expiring", "at_ms": at_ms }),
        Event::Offline { why, retry_in } => json!({
            "event": "offline", "reason": why, "retry_in_ms": retry_in.as_millis() as u64,
        }),
        Event::Closed(end) => json!({ "event": "closed", "code": end.code, "reason": end.reason }),
        Event::Message(_) => return None,
    })
}

fn welcome_json(welcome: &Welcome) -> Value {
    json!({
        "event": "welcome", "id": welcome.device, "mailbox": welcome.mailbox,
        "resumed": welcome.resumed, "pending": welcome.pending,
    })
}

fn outcome_json(receipt: &Receipt) -> Value {
    json!({
        "event": "outcome", "seq": receipt.cursor.seq(), "id": receipt.id, "to": receipt.to,
        "outcome": receipt.outcome.to_string(), "at_ms": receipt.at_ms,
        "maybe_seen": receipt.maybe_seen, "reason": receipt.reason,
    })
}

/// Formats a message with its body as it was sent, without line breaks between its parts:
/// parsing it could change its numbers.
fn message_json(message: &Message) -> String {
    let Message { cursor, from, id, sent_at_ms, re, .. } = message;
    let quoted = |text: &str| Value::from(text).to_string();
    let re = re.as_deref().map_or_else(|| "null".to_owned(), quoted);
    format!(
        "{{\"event\":\"message\",\"seq\":{},\"from\":{},\"id\":{},\"body\":{},\"sent_at_ms\":{sent_at_ms},\"re\":{re}}}\n",
        cursor.seq(),
        quoted(from),
        quoted(id),
        output::one_line(&message.body),
    )
}
