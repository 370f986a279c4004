//! Fast path for the two frames that every message costs, `send` and `ack`, as nearly all
//! clients write them: without white space and escapes, and the fields in the order of the
//! documentation.
//!
//! The result is that of [`Fields`](super::scan::Fields), to which all other frames are left.

use std::borrow::Cow;

use super::scan::{element_end, plain_end};
use super::{ClientFrame, Durability, ID_LEN_MAX, INTEGER_MAX, Send};

/// Parses a plain frame; returns `None` if it is not plain, right or wrong.
#[inline]
pub(super) fn parse(text: &[u8]) -> Option<ClientFrame<'_>> {
    let rest = text.strip_prefix(b"{\"type\":\"")?;
    if let Some(rest) = rest.strip_prefix(b"send\",\"id\":\"") {
        return send(rest).map(ClientFrame::Send);
    }
    let (seq, rest) = integer(rest.strip_prefix(b"ack\",\"seq\":")?)?;
    (rest == b"}").then_some(ClientFrame::Ack { seq })
}

/// Parses a `send`; the bytes given begin after the opening quote of its `id`.
#[inline]
fn send(rest: &[u8]) -> Option<Send<'_>> {
    let (id, rest) = id(rest)?;
    let (to, rest) = string(rest.strip_prefix(b",\"to\":\"")?)?;
    let to = Cow::Borrowed(utf8(to)?);
    let rest = rest.strip_prefix(b",\"body\":")?;
    let (body, rest) = rest.split_at(element_end(rest)?);
    let send = Send { id, to, body, ttl_ms: None, re: None, durability: None, receipt: false };
    if rest == b"}" { Some(send) } else { options(send, rest) }
}

/// Parses the optional fields of a `send`; the bytes given begin after its body.
fn options<'a>(mut send: Send<'a>, mut rest: &'a [u8]) -> Option<Send<'a>> {
    if let Some(value) = rest.strip_prefix(b",\"ttl_ms\":") {
        let (ttl_ms, behind) = integer(value)?;
        (send.ttl_ms, rest) = (Some(ttl_ms), behind);
    }
    if let Some(value) = rest.strip_prefix(b",\"re\":\"") {
        let (re, behind) = id(value)?;
        (send.re, rest) = (Some(re), behind);
    }
    if let Some(value) = rest.strip_prefix(b",\"durability\":\"") {
        let (word, behind) = string(value)?;
        let durability = Durability::parse(word).filter(|asked| *asked != Durability::None)?;
        (send.durability, rest) = (Some(durability), behind);
    }
    if let Some(behind) = rest.strip_prefix(b",\"receipt\":true") {
        (send.receipt, rest) = (true, behind);
    }
    (rest == b"}").then_some(send)
}

/// Returns the id at the beginning, whose opening quote is not included, and the rest behind it.
#[inline]
fn id(rest: &[u8]) -> Option<(Cow<'_, str>, &[u8])> {
    let (id, rest) = string(rest)?;
    let has_length = (1..=ID_LEN_MAX).contains(&id.len());
    Some((Cow::Borrowed(utf8(id).filter(|_| has_length)?), rest))
}

/// Returns the string at the beginning, without escapes and without its opening quote, and the rest
/// behind it.
#[inline]
fn string(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (string, rest) = rest.split_at(plain_end(rest, 0));
    Some((string, rest.strip_prefix(b"\"")?))
}

/// Returns the integer at the beginning, if a frame may have it, and the rest behind it.
#[inline]
fn integer(rest: &[u8]) -> Option<(u64, &[u8])> {
    /// Digits of [`INTEGER_MAX`].
    const DIGITS_MAX: usize = 16;

    let is_zero_led = rest.first() == Some(&b'0');
    let (mut integer, mut at) = (0, 0);
    while let Some(digit) = rest.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|&d| d <= 9) {
        if at == DIGITS_MAX {
            return None;
        }
        integer = integer * 10 + u64::from(digit);
        at += 1;
    }
    let is_one = at > 0 && !(is_zero_led && at > 1) && integer <= INTEGER_MAX;
    is_one.then_some((integer, &rest[at..]))
}

#[inline]
fn utf8(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
