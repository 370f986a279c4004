//! Parser of a client's frames.

use std::borrow::Cow;
use std::fmt;

use super::plain;
use super::read::{Read, required};
use super::scan::Fields;
use super::words::{ClientKind, Field};
use super::{
    ClientFrame, DEVICES_LIMIT_MAX, Durability, FrameError, FrameErrorCode, ID_LEN_MAX,
    MAILBOX_LEN_MAX, REASON_LEN_MAX, Send, TOKEN_LEN_MAX,
};

/// Parses a frame of a client.
///
/// `text` should be UTF-8. Bytes that are not are an error where the frame's meaning depends on
/// them, and pass unnoticed elsewhere.
///
/// The text must be one JSON value by RFC 8259, without escaped halves of surrogate pairs, and
/// nested no deeper than [`DEPTH_MAX`](super::DEPTH_MAX). Fields that the frame's type does not
/// know are ignored, even if they are repeated; one that it knows must not be repeated. `null`
/// means that an optional field is left out.
///
/// Takes time linear in the length of the text.
///
/// # Errors
///
/// The first error in the frame. It has an `id` if the text is well-formed and has exactly one
/// valid `id`, whatever the frame's type.
#[inline]
pub fn parse_client(text: &[u8]) -> Result<ClientFrame<'_>, FrameError> {
    match plain::parse(text) {
        Some(frame) => Ok(frame),
        None => parse_any(text),
    }
}

/// Parses a frame that may be written in any way.
fn parse_any(text: &[u8]) -> Result<ClientFrame<'_>, FrameError> {
    let mut fields = Fields::new(text);
    if let Err(fault) = fields.scan() {
        return Err(bad_frame(fault.to_string(), None));
    }
    let fields = fields;
    match client_kind(&fields) {
        Ok(Ok(kind)) => match read_frame(kind, &fields) {
            Ok(frame) => Ok(frame),
            Err(message) => Err(bad_frame(message, Some(&fields))),
        },
        Ok(Err(unknown)) => Err(unknown_type(&unknown, &fields)),
        Err(message) => Err(bad_frame(message, Some(&fields))),
    }
}

#[cold]
fn bad_frame(message: String, fields: Option<&Fields<'_>>) -> FrameError {
    FrameError { code: FrameErrorCode::BadFrame, message, id: fields.and_then(id_of) }
}

#[cold]
fn unknown_type(unknown: &[u8], fields: &Fields<'_>) -> FrameError {
    let known: Vec<&str> = ClientKind::ALL.iter().map(|kind| kind.as_str()).collect();
    let shown: String = String::from_utf8_lossy(unknown).chars().take(32).collect();
    let message = format!("no client sends a `{shown}`; it may send {}", known.join(", "));
    FrameError { code: FrameErrorCode::UnknownType, message, id: id_of(fields) }
}

fn id_of(fields: &Fields<'_>) -> Option<String> {
    fields.name(Field::Id, ID_LEN_MAX).ok().flatten().map(Cow::into_owned)
}

/// Returns the type of the frame, or the unknown one that it names.
#[inline]
fn client_kind<'a>(fields: &Fields<'a>) -> Read<Result<ClientKind, Cow<'a, [u8]>>> {
    let name = required(Field::Type, fields.bytes(Field::Type)?)?;
    Ok(ClientKind::parse(&name).ok_or(name))
}

#[inline]
fn read_frame<'a>(kind: ClientKind, fields: &Fields<'a>) -> Read<ClientFrame<'a>> {
    Ok(match kind {
        ClientKind::Send => ClientFrame::Send(read_send(fields)?),
        ClientKind::Ack => ClientFrame::Ack { seq: seq(fields)? },
        ClientKind::Refuse => ClientFrame::Refuse {
            seq: seq(fields)?,
            reason: fields.text_max(Field::Reason, REASON_LEN_MAX)?,
        },
        ClientKind::Cancel => ClientFrame::Cancel { id: id(fields)?, to: to(fields)? },
        ClientKind::Ping => ClientFrame::Ping { id: fields.name(Field::Id, ID_LEN_MAX)? },
        ClientKind::Hello => ClientFrame::Hello {
            token: fields.text_max(Field::Token, TOKEN_LEN_MAX)?,
            mailbox: fields.text_max(Field::Mailbox, MAILBOX_LEN_MAX)?,
            last_seq: fields.integer(Field::LastSeq)?,
            ephemeral: fields.flag(Field::Ephemeral)?,
        },
        ClientKind::Devices => ClientFrame::Devices {
            id: id(fields)?,
            after: fields.device(Field::After)?,
            limit: fields.count(Field::Limit, DEVICES_LIMIT_MAX)?,
        },
        ClientKind::Watch => ClientFrame::Watch {
            id: id(fields)?,
            devices: required(Field::Devices, fields.devices(Field::Devices)?)?,
        },
        ClientKind::Unwatch => {
            ClientFrame::Unwatch { id: id(fields)?, devices: fields.devices(Field::Devices)? }
        }
        ClientKind::Refresh => ClientFrame::Refresh {
            token: required(Field::Token, fields.text_max(Field::Token, TOKEN_LEN_MAX)?)?,
        },
    })
}

#[inline]
fn read_send<'a>(fields: &Fields<'a>) -> Read<Send<'a>> {
    Ok(Send {
        id: id(fields)?,
        to: to(fields)?,
        body: required(Field::Body, fields.any(Field::Body)?)?,
        ttl_ms: fields.integer(Field::TtlMs)?,
        re: fields.name(Field::Re, ID_LEN_MAX)?,
        durability: durability(fields)?,
        receipt: fields.flag(Field::Receipt)?,
    })
}

#[inline]
fn id<'a>(fields: &Fields<'a>) -> Read<Cow<'a, str>> {
    required(Field::Id, fields.name(Field::Id, ID_LEN_MAX)?)
}

#[inline]
fn to<'a>(fields: &Fields<'a>) -> Read<Cow<'a, str>> {
    required(Field::To, fields.device(Field::To)?)
}

#[inline]
fn seq(fields: &Fields<'_>) -> Read<u64> {
    required(Field::Seq, fields.integer(Field::Seq)?)
}

/// Returns the durability that a sender asks for.
#[inline]
fn durability(fields: &Fields<'_>) -> Read<Option<Durability>> {
    let Some(word) = fields.text(Field::Durability)? else { return Ok(None) };
    match Durability::parse(&*word) {
        None | Some(Durability::None) => {
            Err("`durability` must be \"memory\", \"disk\" or \"replicated\"".to_owned())
        }
        asked => Ok(asked),
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for FrameError {}
