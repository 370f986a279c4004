//! The results of `send`: one word each, the same in text and JSON, and an exit code.

use serde_json::{Value, json};
use switchboard_client::Ending;
use switchboard_client::v1::{
    Accepted, Durability, Outcome, Outgoing, RejectCode, Rejection, Word,
};

use super::Exit;
use super::output::escaped;

/// The last known state of a message.
#[derive(Debug)]
pub(super) enum Status {
    /// The receiver acked it.
    Delivered,
    /// The server has it; more was not asked for or cannot be known.
    Accepted,
    /// The server has it, but the receiver did not ack it in time, or before the connection
    /// ended.
    Stored(Option<Ending>),
    /// It ended otherwise than by an ack.
    Ended { outcome: Word<Outcome>, maybe_seen: bool, reason: Option<String> },
    /// The server rejected it.
    Rejected { code: Word<RejectCode>, reason: String },
    /// The connection ended, or the time ran out, before the server's reply.
    Unknown(String),
    /// It was not sent: there was no connection.
    NotConnected { exit: Exit, reason: String },
    /// It was not sent because of an error of this command.
    Failed(String),
}

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Status {
        Status::Rejected { code: rejection.code, reason: rejection.message }
    }
}

/// A message and its status.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) message: Outgoing,
    /// The sender, once the server has told its id.
    pub(super) from: Option<String>,
    pub(super) accepted: Option<Accepted>,
    pub(super) status: Status,
}

impl Report {
    /// Creates the report of a message that was not sent.
    pub(super) fn new(message: Outgoing, status: Status) -> Report {
        Report { message, from: None, accepted: None, status }
    }

    pub(super) fn exit(&self) -> Exit {
        match &self.status {
            Status::Delivered | Status::Accepted => Exit::Done,
            Status::Stored(_) => Exit::Stored,
            Status::Ended { .. } => Exit::NotDelivered,
            Status::Rejected { code: Word::Known(RejectCode::NoSuchDevice), .. } => {
                Exit::NoSuchDevice
            }
            Status::Rejected { .. } => Exit::Rejected,
            Status::Unknown(_) => Exit::ConnectionEnded,
            Status::NotConnected { exit, .. } => *exit,
            Status::Failed(_) => Exit::Failed,
        }
    }

    /// Returns the result in one word.
    fn result(&self) -> String {
        match &self.status {
            Status::Delivered => "delivered".to_owned(),
            Status::Accepted => "accepted".to_owned(),
            Status::Stored(_) => "stored".to_owned(),
            Status::Ended { outcome, .. } => outcome.to_string(),
            Status::Rejected { .. } => "rejected".to_owned(),
            Status::Unknown(_) => "unknown".to_owned(),
            Status::NotConnected { .. } => "not_connected".to_owned(),
            Status::Failed(_) => "failed".to_owned(),
        }
    }

    /// Returns an object that always has all fields, so that programs need not check for them.
    pub(super) fn to_json(&self) -> Value {
        let (mut code, mut reason, mut maybe_seen) = (None, None, false);
        match &self.status {
            Status::Delivered | Status::Accepted => {}
            Status::Stored(ending) => reason = ending.as_ref().map(ToString::to_string),
            Status::Ended { maybe_seen: seen, reason: why, .. } => {
                (maybe_seen, reason) = (*seen, why.clone());
            }
            Status::Rejected { code: word, reason: why } => {
                (code, reason) = (Some(word.to_string()), Some(why.clone()));
            }
            Status::Unknown(why)
            | Status::NotConnected { reason: why, .. }
            | Status::Failed(why) => reason = Some(why.clone()),
        }
        let accepted = self.accepted.as_ref();
        json!({
            "result": self.result(), "id": self.message.id, "to": self.message.to, "from": self.from,
            "durability": accepted.map(|accepted| accepted.durability.to_string()),
            "duplicate": accepted.is_some_and(|accepted| accepted.duplicate),
            "code": code, "reason": reason, "maybe_seen": maybe_seen,
        })
    }

    /// Returns one line that begins with the result.
    pub(super) fn to_text(&self) -> String {
        let (result, to) = (self.result(), &self.message.to);
        let from = self.from.as_ref().map_or(String::new(), |from| format!(" from {from}"));
        let kept = self.accepted.as_ref().map_or("", kept);
        escaped(&match &self.status {
            Status::Delivered => format!("{result} to {to}{from}"),
            Status::Accepted => format!("{result} for {to}{from}: {kept}{}", self.again()),
            Status::Stored(None) => {
                format!("{result} for {to}{from}: it waits {kept} until {to} comes back")
            }
            Status::Stored(Some(ending)) => {
                format!(
                    "{result} for {to}{from}: it waits {kept}; how it ends is not known: {ending}"
                )
            }
            Status::Ended { maybe_seen, reason, .. } => {
                let seen = if *maybe_seen { "; it may have been seen" } else { "" };
                let why = reason.as_ref().map_or(String::new(), |why| format!(": {why}"));
                format!("{result}, not delivered to {to}{from}{why}{seen}")
            }
            Status::Rejected { code, reason } => format!("{result} for {to}: {code}: {reason}"),
            Status::Unknown(why) => {
                format!("{result} for {to}{from}, as {}: {why}", self.message.id)
            }
            Status::NotConnected { reason, .. } => reason.clone(),
            Status::Failed(reason) => reason.clone(),
        })
    }

    fn again(&self) -> &'static str {
        let is_duplicate = self.accepted.as_ref().is_some_and(|accepted| accepted.duplicate);
        if is_duplicate { ", by an earlier send under this id" } else { "" }
    }
}

/// Returns the place where the message is kept.
fn kept(accepted: &Accepted) -> &'static str {
    match accepted.durability {
        Word::Known(Durability::None) => "written to its connection, which does not say more",
        Word::Known(Durability::Memory) => "in memory",
        Word::Known(Durability::Disk) => "on disk",
        _ => "on the server",
    }
}
