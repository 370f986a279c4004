//! `switchboard send --durable`: sends over v1 and says what was reached.

use std::time::Duration;

use serde_json::{Value, json};
use switchboard_client::Ending;
use switchboard_client::v1::{
    Accepted, Ack, Event, OpenError, Options, Outcome, Outgoing, RejectCode, Rejection, SendError,
    Session, State, Word,
};
use tokio::time::{Instant, timeout, timeout_at};

use super::Exit;
use super::output::{self, harmless};
use super::send::Args;
use super::state::{StateFile, StateFileError, token_in};

/// Time for the server's verdict; the device tries again by itself until then.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(30);

/// What became of a message.
#[derive(Debug)]
enum Fate {
    /// The server has it, and more was not asked for.
    Accepted(Accepted),
    /// The server has it; how it ended was not known in time, or the connection ended for good.
    Stored(Accepted, Option<Ending>),
    /// It ended.
    Ended {
        outcome: Word<Outcome>,
        maybe_seen: bool,
        reason: Option<String>,
    },
    Rejected(Rejection),
    /// It was not sent.
    Unsent(String),
    Unknown(String),
    NotConnected(OpenError),
    State(StateFileError),
}

/// Sends, prints what was reached, and ends with its code.
pub(super) async fn send(args: &Args, text: &str) -> Exit {
    let to = args.id.to_string();
    let mut message =
        if args.durable.body_json { Outgoing::json(&to, text) } else { Outgoing::text(&to, text) };
    if let Some(id) = &args.durable.message_id {
        message.id.clone_from(id);
    }
    message.ttl = args.durable.ttl;
    message.receipt = args.durable.receipt || args.durable.wait.is_some();
    let id = message.id.clone();
    let (from, fate) = deliver(args, message).await;
    report(args, &id, from.as_deref(), &fate)
}

/// Where the device's state is kept; an anonymous device that nobody named is forgotten.
fn state_file(args: &Args) -> Result<(Option<StateFile>, State), StateFileError> {
    let (token_file, url) = (args.durable.token_file.as_deref(), &args.server.url);
    if let Some(path) = args.durable.state.as_deref() {
        let file = StateFile::new(Some(path), token_file, url)?;
        let state = file.load()?;
        return Ok((Some(file), state));
    }
    let token = token_file.map(token_in).transpose()?;
    Ok((None, State { token, ..State::default() }))
}

async fn deliver(args: &Args, message: Outgoing) -> (Option<String>, Fate) {
    let (file, state) = match state_file(args) {
        Ok(kept) => kept,
        Err(error) => return (None, Fate::State(error)),
    };
    let connect = args.server.options();
    let options = Options { connect, ack: Ack::ByHand, ..Options::default() };
    let mut session = match Session::open(&args.server.url, options, state).await {
        Ok(session) => session,
        Err(error) => return (None, Fate::NotConnected(error)),
    };
    let from = Some(session.id().to_owned());
    // Before the message goes: its outcome comes to nobody else.
    if let Some(Err(error)) = file.as_ref().map(|file| file.save(&session.state())) {
        return (from, Fate::State(error));
    }
    let id = message.id.clone();
    let fate = match timeout(VERDICT_TIMEOUT, session.device().send(message)).await {
        Ok(Ok(accepted)) => match args.durable.wait {
            Some(wait) => ended(&mut session, &id, accepted, wait).await,
            None => Fate::Accepted(accepted),
        },
        Ok(Err(SendError::Rejected(rejection))) => Fate::Rejected(rejection),
        Ok(Err(error @ SendError::Ended(_))) => Fate::Unknown(error.to_string()),
        Ok(Err(error)) => Fate::Unsent(error.to_string()),
        Err(_) => Fate::Unknown("no answer in time; whether it was accepted is unknown".to_owned()),
    };
    let state = session.close().await;
    match file.map(|file| file.save(&state)) {
        Some(Err(error)) => (from, Fate::State(error)),
        _ => (from, fate),
    }
}

/// Waits for the message's outcome. Messages to this device are left where they are; an ack would
/// be for all before it, so the outcome is acked only if it is the first thing that came.
async fn ended(session: &mut Session, id: &str, accepted: Accepted, wait: Duration) -> Fate {
    let until = Instant::now() + wait;
    let mut is_first = true;
    loop {
        let Ok(event) = timeout_at(until, session.next()).await else {
            return Fate::Stored(accepted, None);
        };
        match event {
            Some(Event::Outcome(receipt)) if receipt.id == id => {
                if is_first {
                    session.device().ack(receipt.place);
                }
                let (outcome, maybe_seen) = (receipt.outcome, receipt.maybe_seen);
                return Fate::Ended { outcome, maybe_seen, reason: receipt.reason };
            }
            Some(Event::Closed(ending)) => return Fate::Stored(accepted, Some(ending)),
            Some(event) => is_first &= event.place().is_none(),
            None => return Fate::Stored(accepted, None),
        }
    }
}

impl Fate {
    fn exit(&self, args: &Args) -> Exit {
        match self {
            Fate::Accepted(_) | Fate::Ended { outcome: Word::Known(Outcome::Delivered), .. } => {
                Exit::Done
            }
            Fate::Stored(..) => Exit::Stored,
            Fate::Ended { .. } => Exit::NotDelivered,
            Fate::Rejected(rejection) => match rejection.code {
                Word::Known(RejectCode::NoSuchDevice) => Exit::NoSuchDevice,
                _ => Exit::Rejected,
            },
            Fate::Unsent(_) | Fate::State(_) => Exit::Failed,
            Fate::Unknown(_) => Exit::ConnectionEnded,
            Fate::NotConnected(error) => args.server.exit_of(error),
        }
    }

    /// One word for it.
    fn result(&self) -> String {
        match self {
            Fate::Accepted(_) => "accepted".to_owned(),
            Fate::Stored(..) => "stored".to_owned(),
            Fate::Ended { outcome, .. } => outcome.to_string(),
            Fate::Rejected(_) => "rejected".to_owned(),
            Fate::Unsent(_) | Fate::State(_) => "failed".to_owned(),
            Fate::Unknown(_) => "unknown".to_owned(),
            Fate::NotConnected(_) => "not_connected".to_owned(),
        }
    }

    fn to_json(&self, id: &str, to: &str, from: Option<&str>) -> Value {
        let mut said = json!({ "result": self.result(), "id": id, "to": to, "from": from });
        let mut say = |name: &str, value: Value| said[name] = value;
        match self {
            Fate::Accepted(accepted) | Fate::Stored(accepted, _) => {
                say("durability", accepted.durability.to_string().into());
                say("duplicate", accepted.duplicate.into());
            }
            Fate::Ended { maybe_seen, reason, .. } => {
                say("maybe_seen", (*maybe_seen).into());
                say("reason", reason.as_deref().into());
            }
            Fate::Rejected(rejection) => {
                say("code", rejection.code.to_string().into());
                say("reason", rejection.message.as_str().into());
            }
            Fate::Unsent(why) | Fate::Unknown(why) => say("reason", why.as_str().into()),
            Fate::NotConnected(error) => say("reason", error.to_string().into()),
            Fate::State(error) => say("reason", error.to_string().into()),
        }
        said
    }
}

fn report(args: &Args, id: &str, from: Option<&str>, fate: &Fate) -> Exit {
    let (exit, to) = (fate.exit(args), args.id.to_string());
    if args.json {
        let printed = output::print(&format!("{}\n", fate.to_json(id, &to, from)));
        return if exit == Exit::Done { printed } else { exit };
    }
    let from = from.unwrap_or_default();
    match fate {
        Fate::Accepted(accepted) => {
            let again = if accepted.duplicate { ", again" } else { "" };
            let reached = reached(accepted);
            output::print(&format!("accepted {reached} for {to} from {from}{again}, as {id}\n"))
        }
        Fate::Ended { outcome: Word::Known(Outcome::Delivered), .. } => {
            output::print(&format!("delivered to {to} from {from}\n"))
        }
        fate => {
            eprintln!("switchboard: {}", trouble(args, id, fate));
            exit
        }
    }
}

/// What was not reached, in words.
fn trouble(args: &Args, id: &str, fate: &Fate) -> String {
    let to = &args.id;
    match fate {
        Fate::Accepted(_) => String::new(),
        Fate::Stored(accepted, ending) => {
            let why = ending.as_ref().map_or(String::new(), |ending| format!(": {ending}"));
            format!("accepted {} for {to}, as {id}, and not delivered yet{why}", reached(accepted))
        }
        Fate::Ended { outcome, maybe_seen, reason } => {
            let seen = if *maybe_seen { "; it may have been seen" } else { "" };
            let reason = reason.as_deref().map_or(String::new(), |why| format!(": {why}"));
            harmless(&format!("not delivered to {to}: {outcome}{reason}{seen}"))
        }
        Fate::Rejected(rejection) => harmless(&format!("cannot send to {to}: {rejection}")),
        Fate::Unsent(why) => format!("cannot send to {to}: {why}"),
        Fate::Unknown(why) => format!(
            "{why}. Send it again with --id {id}, as the same device, and it is delivered once"
        ),
        Fate::NotConnected(error) => format!("cannot connect to {}: {error}", args.server.url),
        Fate::State(error) => error.to_string(),
    }
}

fn reached(accepted: &Accepted) -> String {
    match accepted.durability.to_string().as_str() {
        "disk" => "on disk".to_owned(),
        "memory" => "in memory".to_owned(),
        "none" => "by the device's connection".to_owned(),
        other => other.to_owned(),
    }
}
