//! The server's frames as a client reads them, into values that own their parts.

use std::fmt;

use super::read::{Read, required};
use super::scan::{Elements, Fields};
use super::words::{Field, ServerKind};
use super::{Durability, FrameErrorCode, Outcome, RejectCode};

/// A word of a frame from a list to which newer servers may add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word<T> {
    /// A word that this client knows.
    Known(T),
    /// Another word.
    Other(String),
}

impl<T: fmt::Display> fmt::Display for Word<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Known(word) => word.fmt(out),
            Word::Other(word) => word.fmt(out),
        }
    }
}

/// A frame from the server, as [`ServerFrame`](super::ServerFrame) describes it.
///
/// Device ids are strings, as on the wire. Clients must ignore frames and words that they do not
/// know, so that servers can add some.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of `ServerFrame`")]
pub enum ServerEvent {
    /// The session is open.
    Welcome(WelcomeEvent),
    /// A message has reached this durability.
    Accepted { id: String, durability: Word<Durability>, duplicate: bool },
    /// A request was not carried out.
    Rejected {
        id: String,
        to: Option<String>,
        code: Word<RejectCode>,
        message: String,
        retry_after_ms: Option<u64>,
    },
    /// A message was cancelled.
    Cancelled { id: String, to: String },
    /// A message for this device; `body` is JSON.
    Message {
        seq: u64,
        from: String,
        id: String,
        body: String,
        sent_at_ms: u64,
        re: Option<String>,
    },
    /// The outcome of a message that this device sent.
    Outcome {
        seq: u64,
        id: String,
        to: String,
        outcome: Word<Outcome>,
        at_ms: u64,
        maybe_seen: bool,
        reason: Option<String>,
    },
    /// A page of the list of devices.
    Devices { id: String, devices: Vec<DeviceEvent>, next: Option<String> },
    /// The answer to `watch` and `unwatch`.
    Watching { id: String },
    /// A watched device is connected, or away.
    Presence { device: String, online: bool, at_ms: u64 },
    /// The new token is in use.
    Refreshed { expires_at_ms: Option<u64> },
    /// The token expires soon.
    Expiring { at_ms: u64 },
    /// The answer to a ping.
    Pong { id: Option<String> },
    /// The server is about to close.
    Bye { reconnect_in_ms: u64, reason: String },
    /// The server could not obey a frame of ours.
    Error { code: Word<FrameErrorCode>, message: String, id: Option<String> },
    /// A frame of a type that this client does not know.
    Other { kind: String },
}

/// A [`Welcome`](super::Welcome), as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of `Welcome`")]
pub struct WelcomeEvent {
    pub device: String,
    pub token: Option<String>,
    pub mailbox: String,
    pub resumed: bool,
    pub pending: u64,
    pub last_seq: u64,
    pub ping_every_ms: u64,
    pub max_message_bytes: u64,
    pub durability: Word<Durability>,
    pub server: String,
}

/// A [`DeviceStatus`](super::DeviceStatus), as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of `DeviceStatus`")]
pub struct DeviceEvent {
    pub device: String,
    pub online: bool,
    pub since_ms: u64,
}

/// Reason for which a text is no frame of a server, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoServerFrame {
    message: String,
}

impl fmt::Display for NoServerFrame {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the server sent no frame: {}", self.message)
    }
}

impl std::error::Error for NoServerFrame {}

/// Parses a frame of the server, by the same rules as [`parse_client`](super::parse_client()) but
/// without bounds on strings.
///
/// # Errors
///
/// The text is no JSON object, or lacks a field that its type needs. No server of this protocol
/// writes such a frame, not even a newer one.
pub fn parse_server(text: &[u8]) -> Result<ServerEvent, NoServerFrame> {
    let read = || {
        let mut fields = Fields::new(text);
        fields.scan().map_err(|fault| fault.to_string())?;
        let kind = text_of(&fields, Field::Type)?;
        match ServerKind::parse(&kind) {
            Some(kind) => read_event(kind, &fields),
            None => Ok(ServerEvent::Other { kind }),
        }
    };
    read().map_err(|message| NoServerFrame { message })
}

fn read_event(kind: ServerKind, fields: &Fields<'_>) -> Read<ServerEvent> {
    let id = || text_of(fields, Field::Id);
    let at_ms = || number(fields, Field::AtMs);
    Ok(match kind {
        ServerKind::Message => ServerEvent::Message {
            seq: number(fields, Field::Seq)?,
            from: text_of(fields, Field::From)?,
            id: id()?,
            body: body(fields)?,
            sent_at_ms: number(fields, Field::SentAtMs)?,
            re: text_if_set(fields, Field::Re)?,
        },
        ServerKind::Accepted => ServerEvent::Accepted {
            id: id()?,
            durability: word(fields, Field::Durability, Durability::parse)?,
            duplicate: fields.flag(Field::Duplicate)?,
        },
        ServerKind::Rejected => ServerEvent::Rejected {
            id: id()?,
            to: text_if_set(fields, Field::To)?,
            code: word(fields, Field::Code, RejectCode::parse)?,
            message: text_if_set(fields, Field::Message)?.unwrap_or_default(),
            retry_after_ms: fields.integer(Field::RetryAfterMs)?,
        },
        ServerKind::Outcome => ServerEvent::Outcome {
            seq: number(fields, Field::Seq)?,
            id: id()?,
            to: text_of(fields, Field::To)?,
            outcome: word(fields, Field::Outcome, Outcome::parse)?,
            at_ms: at_ms()?,
            maybe_seen: fields.flag(Field::MaybeSeen)?,
            reason: text_if_set(fields, Field::Reason)?,
        },
        ServerKind::Cancelled => {
            ServerEvent::Cancelled { id: id()?, to: text_of(fields, Field::To)? }
        }
        ServerKind::Presence => ServerEvent::Presence {
            device: text_of(fields, Field::Device)?,
            online: flag(fields, Field::Online)?,
            at_ms: at_ms()?,
        },
        ServerKind::Pong => ServerEvent::Pong { id: text_if_set(fields, Field::Id)? },
        ServerKind::Welcome => ServerEvent::Welcome(welcome(fields)?),
        ServerKind::Devices => devices(id()?, fields)?,
        ServerKind::Watching => ServerEvent::Watching { id: id()? },
        ServerKind::Refreshed => {
            ServerEvent::Refreshed { expires_at_ms: fields.integer(Field::ExpiresAtMs)? }
        }
        ServerKind::Expiring => ServerEvent::Expiring { at_ms: at_ms()? },
        ServerKind::Bye => ServerEvent::Bye {
            reconnect_in_ms: number(fields, Field::ReconnectInMs)?,
            reason: text_if_set(fields, Field::Reason)?.unwrap_or_default(),
        },
        ServerKind::Error => ServerEvent::Error {
            code: word(fields, Field::Code, FrameErrorCode::parse)?,
            message: text_if_set(fields, Field::Message)?.unwrap_or_default(),
            id: text_if_set(fields, Field::Id)?,
        },
    })
}

fn welcome(fields: &Fields<'_>) -> Read<WelcomeEvent> {
    Ok(WelcomeEvent {
        device: text_of(fields, Field::Device)?,
        token: text_if_set(fields, Field::Token)?,
        mailbox: text_of(fields, Field::Mailbox)?,
        resumed: flag(fields, Field::Resumed)?,
        pending: number(fields, Field::Pending)?,
        last_seq: number(fields, Field::LastSeq)?,
        ping_every_ms: number(fields, Field::PingEveryMs)?,
        max_message_bytes: number(fields, Field::MaxMessageBytes)?,
        durability: word(fields, Field::Durability, Durability::parse)?,
        server: text_of(fields, Field::Server)?,
    })
}

fn devices(id: String, fields: &Fields<'_>) -> Read<ServerEvent> {
    let elements = fields.any(Field::Devices)?.and_then(Elements::of);
    let devices: Read<Vec<_>> = elements.ok_or("`devices` must be an array")?.map(device).collect();
    Ok(ServerEvent::Devices { id, devices: devices?, next: text_if_set(fields, Field::Next)? })
}

fn device(element: &[u8]) -> Read<DeviceEvent> {
    let mut fields = Fields::new(element);
    fields.scan().map_err(|fault| fault.to_string())?;
    Ok(DeviceEvent {
        device: text_of(&fields, Field::Device)?,
        online: flag(&fields, Field::Online)?,
        since_ms: number(&fields, Field::SinceMs)?,
    })
}

fn body(fields: &Fields<'_>) -> Read<String> {
    let body = required(Field::Body, fields.any(Field::Body)?)?;
    String::from_utf8(body.to_vec()).map_err(|_| "`body` is not UTF-8".to_owned())
}

fn text_of(fields: &Fields<'_>, field: Field) -> Read<String> {
    required(field, text_if_set(fields, field)?)
}

fn text_if_set(fields: &Fields<'_>, field: Field) -> Read<Option<String>> {
    Ok(fields.text(field)?.map(String::from))
}

fn number(fields: &Fields<'_>, field: Field) -> Read<u64> {
    required(field, fields.integer(field)?)
}

/// Reads a boolean that must not be left out.
fn flag(fields: &Fields<'_>, field: Field) -> Read<bool> {
    required(field, fields.optional(field)?)?;
    fields.flag(field)
}

fn word<T>(fields: &Fields<'_>, field: Field, parse: fn(String) -> Option<T>) -> Read<Word<T>> {
    let word = text_of(fields, field)?;
    Ok(parse(word.clone()).map_or(Word::Other(word), Word::Known))
}
