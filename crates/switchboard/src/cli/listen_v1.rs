//! `switchboard listen` over v1: a device that keeps its id and its place, over any number of runs.

use std::io;
use std::pin::pin;
use std::time::Duration;

use serde_json::{Value, json};
use switchboard_client::Ending;
use switchboard_client::v1::{Ack, Device, Event, Message, OpenError, Options, Receipt, Session};
use switchboard_client::v1::{Place, Welcome};

use super::Exit;
use super::client::interrupted;
use super::listen::{Args, PAUSE_MAX, PAUSE_MIN};
use super::output::{self, harmless};
use super::state::{StateFile, StateFileError};

/// Events that are printed, and acked, at once when they come at once.
const BATCH_MAX: usize = 256;

/// Why listening stopped.
enum Stop {
    Interrupted,
    NotConnected(OpenError),
    /// The token is another device's.
    Another(String),
    Ended(Ending),
    State(StateFileError),
    Output(io::Error),
    Watch(String),
}

/// Prints what arrives until Ctrl-C, or until the server ends it for good.
pub(super) async fn listen(args: &Args) -> Exit {
    match follow(args).await {
        Ok(()) => Exit::Done,
        Err(stop) => report(args, &stop),
    }
}

async fn follow(args: &Args) -> Result<(), Stop> {
    let file = StateFile::new(args.state.as_deref(), args.token_file.as_deref(), &args.server.url)
        .map_err(Stop::State)?;
    let mut interrupt = pin!(interrupted());
    let mut session = tokio::select! {
        session = connect(args, &file) => session?,
        () = &mut interrupt => return Err(Stop::Interrupted),
    };
    check_name(args, &session)?;
    // A device that is new is lost if its token is.
    file.save(&session.state()).map_err(Stop::State)?;
    let mut unread = pin!(output::reader_left());
    let listening = async {
        watch(args, session.device()).await?;
        print_all(args, &file, &mut session).await
    };
    let stopped = tokio::select! {
        stopped = listening => stopped,
        () = &mut interrupt => Err(Stop::Interrupted),
        () = &mut unread => Err(Stop::Output(io::ErrorKind::BrokenPipe.into())),
    };
    session.close().await;
    stopped
}

async fn connect(args: &Args, file: &StateFile) -> Result<Session, Stop> {
    let mut pause = PAUSE_MIN;
    loop {
        let state = file.load().map_err(Stop::State)?;
        let options = Options {
            connect: args.server.options(),
            ack: Ack::ByHand,
            pause_min: PAUSE_MIN,
            pause_max: PAUSE_MAX,
            ..Options::default()
        };
        let error = match Session::open(&args.server.url, options, state).await {
            Ok(session) => return Ok(session),
            Err(error @ OpenError::Connect(_)) if args.reconnect => error,
            Err(error) => return Err(Stop::NotConnected(error)),
        };
        let again = humantime::format_duration(pause);
        eprintln!("switchboard: cannot connect: {error}; connecting again in {again}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// A wrong token file would show another device's messages, and take them away from it.
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
    let watched: Vec<&str> = args.watch.iter().map(String::as_str).collect();
    device.watch(&watched).await.map_err(|error| Stop::Watch(error.to_string()))
}

/// Prints, keeps and then acks, in this order: what a crash comes between is printed again rather
/// than lost.
async fn print_all(args: &Args, file: &StateFile, session: &mut Session) -> Result<(), Stop> {
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
        keep(file, session, batch.iter().filter_map(Event::place).next_back())?;
        for event in batch {
            match event {
                Event::Closed(ending) => return Err(Stop::Ended(ending)),
                Event::Expiring { .. } => refresh(file, session.device()).await,
                Event::Offline { why, retry_in } => offline(&why, retry_in),
                _ => {}
            }
        }
    }
}

fn keep(file: &StateFile, session: &Session, last: Option<Place>) -> Result<(), Stop> {
    let Some(last) = last else { return Ok(()) };
    file.save(&session.device().state_with(last)).map_err(Stop::State)?;
    session.device().ack(last);
    Ok(())
}

/// Takes up a newer token, if its file has one.
async fn refresh(file: &StateFile, device: &Device) {
    let token = match file.token() {
        Ok(Some(token)) if device.state().token.as_ref() != Some(&token) => token,
        Ok(_) => return eprintln!("switchboard: the token ends within a minute; renew its file"),
        Err(error) => return eprintln!("switchboard: {error}"),
    };
    if let Err(error) = device.refresh(&token).await {
        eprintln!("switchboard: cannot renew the token: {error}");
    }
}

fn offline(why: &str, retry_in: Duration) {
    let retry_in = Duration::from_millis(retry_in.as_millis() as u64);
    let again = humantime::format_duration(retry_in);
    eprintln!("switchboard: offline: {why}; connecting again in {again}");
}

fn report(args: &Args, stop: &Stop) -> Exit {
    let url = &args.server.url;
    let (exit, words) = match stop {
        Stop::Interrupted => return Exit::Done,
        Stop::Output(error) => return output::failed(error),
        Stop::NotConnected(error) => {
            (args.server.exit_of(error), format!("cannot connect to {url}: {error}"))
        }
        Stop::Another(device) => {
            (Exit::Usage, format!("the token is that of {device}; nothing was read or acked"))
        }
        Stop::Ended(ending) => (
            Exit::ConnectionEnded,
            format!("no longer connected to {url}: {ending}; what waits is kept for the next run"),
        ),
        Stop::State(error) => (Exit::Failed, error.to_string()),
        Stop::Watch(error) => (Exit::Failed, format!("cannot watch: {error}")),
    };
    eprintln!("switchboard: {words}");
    exit
}

/// How events are printed.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Json,
}

impl Form {
    /// The line for `event`, if it has one.
    fn event(self, event: &Event, is_first: bool) -> String {
        match (self, event) {
            (Form::Text, event) => text(event, is_first),
            (Form::Json, Event::Message(message)) => message_json(message),
            (Form::Json, event) => json(event).map_or_else(String::new, |json| format!("{json}\n")),
        }
    }
}

/// No id holds a space, so only a message's line has its colon behind the first word.
fn text(event: &Event, is_first: bool) -> String {
    match event {
        Event::Online(welcome) if is_first => format!("your id is {}\n", welcome.device),
        Event::Message(message) => {
            format!("{}: {}\n", harmless(&message.from), harmless(&message.text()))
        }
        Event::Outcome(receipt) => {
            let seen = if receipt.maybe_seen { ", may have been seen" } else { "" };
            let reason = receipt.reason.as_deref().map(|why| format!(", {}", harmless(why)));
            let (id, to) = (harmless(&receipt.id), harmless(&receipt.to));
            let outcome = harmless(&receipt.outcome.to_string());
            format!("outcome {id} to {to}: {outcome}{seen}{}\n", reason.unwrap_or_default())
        }
        Event::Presence { device, online, .. } => {
            let word = if *online { "online" } else { "offline" };
            format!("presence {}: {word}\n", harmless(device))
        }
        // Told on standard error, with what it means.
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
        "event": "outcome", "seq": receipt.place.seq(), "id": receipt.id, "to": receipt.to,
        "outcome": receipt.outcome.to_string(), "at_ms": receipt.at_ms,
        "maybe_seen": receipt.maybe_seen, "reason": receipt.reason,
    })
}

/// The body stands as it was sent, without line breaks between its parts: reading it into numbers
/// could change them.
fn message_json(message: &Message) -> String {
    let Message { place, from, id, sent_at_ms, re, .. } = message;
    let quoted = |text: &str| Value::from(text).to_string();
    let re = re.as_deref().map_or_else(|| "null".to_owned(), quoted);
    format!(
        "{{\"event\":\"message\",\"seq\":{},\"from\":{},\"id\":{},\"body\":{},\"sent_at_ms\":{sent_at_ms},\"re\":{re}}}\n",
        place.seq(),
        quoted(from),
        quoted(id),
        output::one_line(&message.body),
    )
}
