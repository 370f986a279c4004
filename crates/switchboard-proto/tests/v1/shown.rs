//! Frames in the form of the vectors.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use switchboard_proto::v1::{
    ClientFrame, DeviceRef, DeviceStatus, Durability, FrameError, Send, ServerEvent, ServerFrame,
    Welcome, WelcomeEvent, Word,
};

/// Returns an object without the members that are null or false, as frames are written, too.
fn object(members: Value) -> Value {
    let Value::Object(members) = members else { panic!("{members} is no object") };
    let set = |value: &Value| !value.is_null();
    Value::Object(members.into_iter().filter(|(_, value)| set(value)).collect::<Map<_, _>>())
}

/// Returns `None` for false, so that [`object`] leaves it out.
fn if_true(flag: bool) -> Option<bool> {
    flag.then_some(true)
}

fn device(id: &str) -> Value {
    match DeviceRef::parse(id) {
        None => json!({"impossible": id}),
        Some(_) => json!(id),
    }
}

fn all(ids: &[Cow<'_, str>]) -> Value {
    ids.iter().map(|id| device(id)).collect()
}

fn raw(body: &[u8]) -> &str {
    std::str::from_utf8(body).unwrap()
}

pub(crate) fn client(frame: &ClientFrame<'_>) -> Value {
    object(match frame {
        ClientFrame::Hello { token, mailbox, last_seq, ephemeral } => json!({
            "type": "hello", "token": token, "mailbox": mailbox, "last_seq": last_seq,
            "ephemeral": if_true(*ephemeral),
        }),
        ClientFrame::Send(Send { id, to, body, ttl_ms, re, durability, receipt }) => json!({
            "type": "send", "id": id, "to": device(to), "body": raw(body), "ttl_ms": ttl_ms,
            "re": re, "durability": durability.map(Durability::as_str),
            "receipt": if_true(*receipt),
        }),
        ClientFrame::Ack { seq } => json!({"type": "ack", "seq": seq}),
        ClientFrame::Refuse { seq, reason } => {
            json!({"type": "refuse", "seq": seq, "reason": reason})
        }
        ClientFrame::Cancel { id, to } => json!({"type": "cancel", "id": id, "to": device(to)}),
        ClientFrame::Devices { id, after, limit } => {
            let after = after.as_deref().map(device);
            json!({"type": "devices", "id": id, "after": after, "limit": limit})
        }
        ClientFrame::Watch { id, devices } => {
            json!({"type": "watch", "id": id, "devices": all(devices)})
        }
        ClientFrame::Unwatch { id, devices } => {
            json!({"type": "unwatch", "id": id, "devices": devices.as_deref().map(all)})
        }
        ClientFrame::Refresh { token } => json!({"type": "refresh", "token": token}),
        ClientFrame::Ping { id } => json!({"type": "ping", "id": id}),
    })
}

/// Returns an error without its message, which is for people and may change.
pub(crate) fn error(error: &FrameError) -> Value {
    object(json!({"code": error.code.as_str(), "id": error.id}))
}

fn word<T: std::fmt::Display>(word: &Word<T>) -> Value {
    match word {
        Word::Known(word) => json!(word.to_string()),
        Word::Other(word) => json!({"other": word}),
    }
}

pub(crate) fn server(event: &ServerEvent) -> Value {
    object(match event {
        ServerEvent::Welcome(event) => welcome(event),
        ServerEvent::Accepted { id, durability, duplicate } => json!({
            "type": "accepted", "id": id, "durability": word(durability),
            "duplicate": if_true(*duplicate),
        }),
        ServerEvent::Rejected { id, to, code, message, retry_after_ms } => json!({
            "type": "rejected", "id": id, "to": to, "code": word(code), "message": message,
            "retry_after_ms": retry_after_ms,
        }),
        ServerEvent::Cancelled { id, to } => json!({"type": "cancelled", "id": id, "to": to}),
        ServerEvent::Message { seq, from, id, body, sent_at_ms, re } => json!({
            "type": "message", "seq": seq, "from": from, "id": id, "body": body,
            "sent_at_ms": sent_at_ms, "re": re,
        }),
        ServerEvent::Outcome { seq, id, to, outcome, at_ms, maybe_seen, reason } => json!({
            "type": "outcome", "seq": seq, "id": id, "to": to, "outcome": word(outcome),
            "at_ms": at_ms, "maybe_seen": if_true(*maybe_seen), "reason": reason,
        }),
        ServerEvent::Devices { id, devices, next } => {
            let devices = devices.iter().map(|status| {
                json!({"device": status.device, "online": status.online,
                    "since_ms": status.since_ms})
            });
            let devices: Value = devices.collect();
            json!({"type": "devices", "id": id, "devices": devices, "next": next})
        }
        ServerEvent::Watching { id } => json!({"type": "watching", "id": id}),
        ServerEvent::Presence { device, online, at_ms } => {
            json!({"type": "presence", "device": device, "online": online, "at_ms": at_ms})
        }
        ServerEvent::Refreshed { expires_at_ms } => {
            json!({"type": "refreshed", "expires_at_ms": expires_at_ms})
        }
        ServerEvent::Expiring { at_ms } => json!({"type": "expiring", "at_ms": at_ms}),
        ServerEvent::Pong { id } => json!({"type": "pong", "id": id}),
        ServerEvent::Bye { reconnect_in_ms, reason } => {
            json!({"type": "bye", "reconnect_in_ms": reconnect_in_ms, "reason": reason})
        }
        ServerEvent::Error { code, message, id } => {
            json!({"type": "error", "code": word(code), "message": message, "id": id})
        }
        ServerEvent::Other { kind } => json!({"other": kind}),
    })
}

fn welcome(event: &WelcomeEvent) -> Value {
    json!({
        "type": "welcome", "device": event.device, "token": event.token,
        "mailbox": event.mailbox, "resumed": event.resumed, "pending": event.pending,
        "last_seq": event.last_seq, "ping_every_ms": event.ping_every_ms,
        "max_message_bytes": event.max_message_bytes, "durability": word(&event.durability),
        "server": event.server,
    })
}

/// Returns the frame that a server writes for an event; `None` if no server of this version
/// writes such a frame. `devices` is a buffer for the list of devices.
pub(crate) fn as_frame<'a>(
    event: &'a ServerEvent,
    devices: &'a mut Vec<DeviceStatus<'a>>,
) -> Option<ServerFrame<'a>> {
    Some(match event {
        ServerEvent::Welcome(event) => ServerFrame::Welcome(as_welcome(event)?),
        ServerEvent::Accepted { id, durability, duplicate } => {
            ServerFrame::Accepted { id, durability: known(durability)?, duplicate: *duplicate }
        }
        ServerEvent::Rejected { id, to, code, message, retry_after_ms } => ServerFrame::Rejected {
            id,
            to: to.as_deref(),
            code: known(code)?,
            message,
            retry_after_ms: *retry_after_ms,
        },
        ServerEvent::Cancelled { id, to } => {
            ServerFrame::Cancelled { id, to: DeviceRef::parse(to)? }
        }
        ServerEvent::Message { seq, from, id, body, sent_at_ms, re } => ServerFrame::Message {
            seq: *seq,
            from: DeviceRef::parse(from)?,
            id,
            body: body.as_bytes(),
            sent_at_ms: *sent_at_ms,
            re: re.as_deref(),
        },
        ServerEvent::Outcome { seq, id, to, outcome, at_ms, maybe_seen, reason } => {
            ServerFrame::Outcome {
                seq: *seq,
                id,
                to: DeviceRef::parse(to)?,
                outcome: known(outcome)?,
                at_ms: *at_ms,
                maybe_seen: *maybe_seen,
                reason: reason.as_deref(),
            }
        }
        ServerEvent::Devices { id, devices: events, next } => {
            for event in events {
                let device = DeviceRef::parse(&event.device)?;
                devices.push(DeviceStatus {
                    device,
                    online: event.online,
                    since_ms: event.since_ms,
                });
            }
            let next = next.as_deref().and_then(DeviceRef::parse);
            ServerFrame::Devices { id, devices, next }
        }
        ServerEvent::Watching { id } => ServerFrame::Watching { id },
        ServerEvent::Presence { device, online, at_ms } => {
            let device = DeviceRef::parse(device)?;
            ServerFrame::Presence { device, online: *online, at_ms: *at_ms }
        }
        &ServerEvent::Refreshed { expires_at_ms } => ServerFrame::Refreshed { expires_at_ms },
        &ServerEvent::Expiring { at_ms } => ServerFrame::Expiring { at_ms },
        ServerEvent::Pong { id } => ServerFrame::Pong { id: id.as_deref() },
        ServerEvent::Bye { reconnect_in_ms, reason } => {
            ServerFrame::Bye { reconnect_in_ms: *reconnect_in_ms, reason }
        }
        ServerEvent::Error { code, message, id } => {
            ServerFrame::Error { code: known(code)?, message, id: id.as_deref() }
        }
        ServerEvent::Other { .. } => return None,
    })
}

fn as_welcome(event: &WelcomeEvent) -> Option<Welcome<'_>> {
    Some(Welcome {
        device: DeviceRef::parse(&event.device)?,
        token: event.token.as_deref(),
        mailbox: &event.mailbox,
        resumed: event.resumed,
        pending: event.pending,
        last_seq: event.last_seq,
        ping_every_ms: event.ping_every_ms,
        max_message_bytes: event.max_message_bytes,
        durability: known(&event.durability)?,
        server: &event.server,
    })
}

fn known<T: Copy>(word: &Word<T>) -> Option<T> {
    match word {
        Word::Known(word) => Some(*word),
        Word::Other(_) => None,
    }
}
