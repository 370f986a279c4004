//! Writer of frames: compact JSON, the fields always in the same order.

use std::borrow::Cow;

use super::scan::plain_end;
use super::{ClientFrame, DeviceRef, DeviceStatus, Send, ServerFrame, Welcome};

/// Bytes of an escaped control character, `\u0001`; no byte of a string takes more.
const ESCAPED_LEN_MAX: usize = 6;

/// Most bytes of an element of `devices` without its device's id: 36 of names and punctuation,
/// `false` and a number of 20 digits.
const STATUS_LEN_MAX: usize = 36 + 5 + 20;

/// Bytes of the greatest number in a frame.
const NUMBER_LEN_MAX: usize = 16;

const _: () = assert!(super::INTEGER_MAX.ilog10() as usize + 1 == NUMBER_LEN_MAX);

/// Bytes of a `message` without its strings and its body, the numbers at their longest.
const MESSAGE_FIXED_LEN: usize =
    r#"{"type":"message","seq":,"from":"","id":"","body":,"sent_at_ms":}"#.len()
        + 2 * NUMBER_LEN_MAX;

/// Bytes that `re` adds beside its value.
const RE_FIXED_LEN: usize = r#","re":"""#.len();

/// Returns whether a `message` is certainly no longer than `max` bytes, whatever its number, its
/// sender and the characters in its strings. `strings` is the number of bytes of its `id` and
/// its `re`.
#[inline]
pub fn is_short_message(body: usize, strings: usize, max: usize) -> bool {
    const REST: usize = MESSAGE_FIXED_LEN + RE_FIXED_LEN + super::NAME_LEN_MAX;
    body + ESCAPED_LEN_MAX * strings + REST <= max
}

/// Returns the bytes of a `message` with a body of `body` bytes, its numbers at their longest.
pub fn message_len(from: DeviceRef<'_>, id: &str, body: usize, re: Option<&str>) -> usize {
    let re = re.map_or(0, |re| RE_FIXED_LEN + escaped_len(re.as_bytes()));
    MESSAGE_FIXED_LEN + from.len() + escaped_len(id.as_bytes()) + body + re
}

/// Returns the bytes between the quotes of the JSON string for a text.
pub(super) fn escaped_len(text: &[u8]) -> usize {
    let len = |&byte: &u8| match byte {
        b'"' | b'\\' | 0x08 | 0x0C | b'\n' | b'\r' | b'\t' => 2,
        0..0x20 => ESCAPED_LEN_MAX,
        _ => 1,
    };
    text.iter().map(len).sum()
}

/// The text before the value of a field.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// The text before the value of a field that is a string, with its opening quote.
macro_rules! quoted {
    ($name:literal) => {
        concat!(",\"", $name, "\":\"")
    };
}

/// Begins a frame of this type.
macro_rules! begin {
    ($out:expr, $kind:literal) => {
        Object { out: $out }.raw(concat!("{\"type\":\"", $kind, "\""), b"")
    };
}

impl DeviceStatus<'_> {
    /// Returns the most bytes that it can take in a page.
    pub fn len_max(&self) -> usize {
        STATUS_LEN_MAX + self.device.len()
    }
}

impl ServerFrame<'_> {
    /// Appends the frame.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>) {
        match *self {
            ServerFrame::Message { seq, from, id, body, sent_at_ms, re } => {
                write_message(out, (seq, sent_at_ms), from, id, body, re);
            }
            ServerFrame::Accepted { id, durability, duplicate } => begin!(out, "accepted")
                .text(quoted!("id"), id)
                .word(quoted!("durability"), durability.as_str())
                .flag_if_set(key!("duplicate"), duplicate)
                .end(),
            _ => self.write_other(out),
        }
    }

    /// Appends a frame of a kind that is not sent for every message.
    fn write_other(&self, out: &mut Vec<u8>) {
        match *self {
            ServerFrame::Message { .. } | ServerFrame::Accepted { .. } => self.write(out),
            ServerFrame::Welcome(ref welcome) => write_welcome(out, welcome),
            ServerFrame::Rejected { id, to, code, message, retry_after_ms } => {
                begin!(out, "rejected")
                    .text(quoted!("id"), id)
                    .text_if_set(quoted!("to"), to)
                    .word(quoted!("code"), code.as_str())
                    .text(quoted!("message"), message)
                    .number_if_set(key!("retry_after_ms"), retry_after_ms)
                    .end();
            }
            ServerFrame::Cancelled { id, to } => {
                begin!(out, "cancelled").text(quoted!("id"), id).device(quoted!("to"), to).end();
            }
            ServerFrame::Outcome { seq, id, to, outcome, at_ms, maybe_seen, reason } => {
                begin!(out, "outcome")
                    .number(key!("seq"), seq)
                    .text(quoted!("id"), id)
                    .device(quoted!("to"), to)
                    .word(quoted!("outcome"), outcome.as_str())
                    .number(key!("at_ms"), at_ms)
                    .flag_if_set(key!("maybe_seen"), maybe_seen)
                    .text_if_set(quoted!("reason"), reason)
                    .end();
            }
            ServerFrame::Devices { id, devices, next } => write_devices(out, id, devices, next),
            ServerFrame::Watching { id } => begin!(out, "watching").text(quoted!("id"), id).end(),
            ServerFrame::Presence { device, online, at_ms } => begin!(out, "presence")
                .device(quoted!("device"), device)
                .flag(key!("online"), online)
                .number(key!("at_ms"), at_ms)
                .end(),
            ServerFrame::Refreshed { expires_at_ms } => {
                begin!(out, "refreshed").number_if_set(key!("expires_at_ms"), expires_at_ms).end();
            }
            ServerFrame::Expiring { at_ms } => {
                begin!(out, "expiring").number(key!("at_ms"), at_ms).end();
            }
            ServerFrame::Pong { id } => begin!(out, "pong").text_if_set(quoted!("id"), id).end(),
            ServerFrame::Bye { reconnect_in_ms, reason } => begin!(out, "bye")
                .number(key!("reconnect_in_ms"), reconnect_in_ms)
                .text(quoted!("reason"), reason)
                .end(),
            ServerFrame::Error { code, message, id } => begin!(out, "error")
                .word(quoted!("code"), code.as_str())
                .text(quoted!("message"), message)
                .text_if_set(quoted!("id"), id)
                .end(),
        }
    }
}

#[inline]
fn write_message(
    out: &mut Vec<u8>,
    (seq, sent_at_ms): (u64, u64),
    from: DeviceRef<'_>,
    id: &str,
    body: &[u8],
    re: Option<&str>,
) {
    begin!(out, "message")
        .number(key!("seq"), seq)
        .device(quoted!("from"), from)
        .text(quoted!("id"), id)
        .raw(key!("body"), body)
        .number(key!("sent_at_ms"), sent_at_ms)
        .text_if_set(quoted!("re"), re)
        .end();
}

fn write_welcome(out: &mut Vec<u8>, welcome: &Welcome<'_>) {
    begin!(out, "welcome")
        .device(quoted!("device"), welcome.device)
        .text_if_set(quoted!("token"), welcome.token)
        .text(quoted!("mailbox"), welcome.mailbox)
        .flag(key!("resumed"), welcome.resumed)
        .number(key!("pending"), welcome.pending)
        .number(key!("last_seq"), welcome.last_seq)
        .number(key!("ping_every_ms"), welcome.ping_every_ms)
        .number(key!("max_message_bytes"), welcome.max_message_bytes)
        .word(quoted!("durability"), welcome.durability.as_str())
        .text(quoted!("server"), welcome.server)
        .end();
}

fn write_devices(
    out: &mut Vec<u8>,
    id: &str,
    devices: &[DeviceStatus<'_>],
    next: Option<DeviceRef<'_>>,
) {
    let mut frame = begin!(out, "devices").text(quoted!("id"), id).raw(key!("devices"), b"[");
    for (index, status) in devices.iter().enumerate() {
        frame = frame
            .device(if index == 0 { "{\"device\":\"" } else { ",{\"device\":\"" }, status.device)
            .flag(key!("online"), status.online)
            .number(key!("since_ms"), status.since_ms)
            .raw("}", b"");
    }
    let frame = frame.raw("]", b"");
    match next {
        Some(next) => frame.device(quoted!("next"), next).end(),
        None => frame.end(),
    }
}

impl ClientFrame<'_> {
    /// Appends the frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            ClientFrame::Hello { token, mailbox, last_seq, ephemeral } => begin!(out, "hello")
                .text_if_set(quoted!("token"), token.as_deref())
                .text_if_set(quoted!("mailbox"), mailbox.as_deref())
                .number_if_set(key!("last_seq"), *last_seq)
                .flag_if_set(key!("ephemeral"), *ephemeral)
                .end(),
            ClientFrame::Send(send) => write_send(out, send),
            ClientFrame::Ack { seq } => begin!(out, "ack").number(key!("seq"), *seq).end(),
            ClientFrame::Refuse { seq, reason } => begin!(out, "refuse")
                .number(key!("seq"), *seq)
                .text_if_set(quoted!("reason"), reason.as_deref())
                .end(),
            ClientFrame::Cancel { id, to } => {
                begin!(out, "cancel").text(quoted!("id"), id).text(quoted!("to"), to).end();
            }
            ClientFrame::Devices { id, after, limit } => {
                let frame = begin!(out, "devices").text(quoted!("id"), id);
                let frame = match after {
                    Some(after) => frame.text(quoted!("after"), after),
                    None => frame,
                };
                frame.number_if_set(key!("limit"), limit.map(u64::from)).end();
            }
            ClientFrame::Watch { id, devices } => {
                begin!(out, "watch")
                    .text(quoted!("id"), id)
                    .devices(key!("devices"), devices)
                    .end();
            }
            ClientFrame::Unwatch { id, devices } => {
                let frame = begin!(out, "unwatch").text(quoted!("id"), id);
                match devices {
                    Some(devices) => frame.devices(key!("devices"), devices).end(),
                    None => frame.end(),
                }
            }
            ClientFrame::Refresh { token } => {
                begin!(out, "refresh").text(quoted!("token"), token).end();
            }
            ClientFrame::Ping { id } => {
                begin!(out, "ping").text_if_set(quoted!("id"), id.as_deref()).end();
            }
        }
    }
}

fn write_send(out: &mut Vec<u8>, send: &Send<'_>) {
    begin!(out, "send")
        .text(quoted!("id"), &send.id)
        .text(quoted!("to"), &send.to)
        .raw(key!("body"), send.body)
        .number_if_set(key!("ttl_ms"), send.ttl_ms)
        .text_if_set(quoted!("re"), send.re.as_deref())
        .text_if_set(quoted!("durability"), send.durability.map(super::Durability::as_str))
        .flag_if_set(key!("receipt"), send.receipt)
        .end();
}

/// A frame that is being written.
struct Object<'o> {
    out: &'o mut Vec<u8>,
}

/// Every method takes the text before the value, with an opening quote if there is one, and the
/// value.
impl Object<'_> {
    #[inline]
    fn raw(self, key: &'static str, value: &[u8]) -> Self {
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(value);
        self
    }

    /// Appends a string in which nothing needs to be escaped.
    #[inline]
    fn word(self, key: &'static str, word: &str) -> Self {
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(word.as_bytes());
        self.out.push(b'"');
        self
    }

    #[inline]
    fn text(self, key: &'static str, text: &str) -> Self {
        self.out.extend_from_slice(key.as_bytes());
        write_inner(self.out, text.as_bytes());
        self.out.push(b'"');
        self
    }

    #[inline]
    fn text_if_set(self, key: &'static str, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.text(key, text),
            None => self,
        }
    }

    #[inline]
    fn device(self, key: &'static str, device: DeviceRef<'_>) -> Self {
        self.out.extend_from_slice(key.as_bytes());
        device.write(self.out);
        self.out.push(b'"');
        self
    }

    fn devices(self, key: &'static str, devices: &[Cow<'_, str>]) -> Self {
        let mut frame = self.raw(key, b"[");
        for (index, device) in devices.iter().enumerate() {
            frame = frame.text(if index == 0 { "\"" } else { ",\"" }, device);
        }
        frame.raw("]", b"")
    }

    #[inline]
    fn number(self, key: &'static str, number: u64) -> Self {
        self.raw(key, itoa::Buffer::new().format(number).as_bytes())
    }

    #[inline]
    fn number_if_set(self, key: &'static str, number: Option<u64>) -> Self {
        match number {
            Some(number) => self.number(key, number),
            None => self,
        }
    }

    fn flag(self, key: &'static str, flag: bool) -> Self {
        self.raw(key, if flag { b"true" } else { b"false" })
    }

    #[inline]
    fn flag_if_set(self, key: &'static str, flag: bool) -> Self {
        if flag { self.flag(key, true) } else { self }
    }

    #[inline]
    fn end(self) {
        self.out.push(b'}');
    }
}

/// Appends a JSON string.
#[inline]
pub(super) fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    write_inner(out, text);
    out.push(b'"');
}

/// Appends the part of a JSON string between its quotes.
#[inline]
fn write_inner(out: &mut Vec<u8>, text: &[u8]) {
    let plain = plain_end(text, 0);
    out.extend_from_slice(&text[..plain]);
    if plain < text.len() {
        write_escaped(out, &text[plain..]);
    }
}

/// Appends text with its quotes, backslashes and control characters escaped.
#[cold]
fn write_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let mut at = 0;
    while at < text.len() {
        let plain = plain_end(text, at);
        out.extend_from_slice(&text[at..plain]);
        if let Some(&byte) = text.get(plain) {
            write_escape(out, byte);
        }
        at = plain + 1;
    }
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";

    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        0x0C => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            return;
        }
    };
    out.extend([b'\\', short]);
}
