//! Content of a mailbox's entry, in one piece of memory: millions come and go.

use switchboard_proto::v1::{DeviceRef, Outcome, ServerFrame};

/// Content of a message or an outcome: everything that is pushed, and that its record also has.
///
/// A head of fixed length, then the id of the message, then the id that it answers and its body, or
/// the reason of the outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content(Box<[u8]>);

/// The fixed part at the beginning.
#[derive(Clone, Copy)]
struct Head {
    kind: Kind,
    /// Time at which the message was sent, or ended, by the wall clock.
    at_ms: u64,
    id_len: u32,
    /// Length of the note behind the id: the id that a message answers, or the reason of an
    /// outcome.
    note_len: u32,
    has_note: bool,
    /// Set for outcomes only.
    maybe_seen: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A message from another device.
    Message,
    /// The id of such a message, whose body is in the store only.
    Bodiless,
    /// The outcome of a message that this device sent.
    Outcome(Outcome),
}

impl Kind {
    fn to_byte(self) -> u8 {
        match self {
            Kind::Message => 0,
            Kind::Bodiless => 1,
            Kind::Outcome(outcome) => 2 + outcome as u8,
        }
    }

    fn of_byte(byte: u8) -> Kind {
        match byte {
            0 => Kind::Message,
            1 => Kind::Bodiless,
            outcome => Kind::Outcome(Outcome::ALL[usize::from(outcome) - 2]),
        }
    }
}

impl Head {
    const LEN: usize = 19;

    fn to_bytes(self) -> [u8; Head::LEN] {
        let mut bytes = [0; Head::LEN];
        bytes[..8].copy_from_slice(&self.at_ms.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.id_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.note_len.to_le_bytes());
        bytes[16] = self.kind.to_byte();
        bytes[17] = u8::from(self.has_note);
        bytes[18] = u8::from(self.maybe_seen);
        bytes
    }

    fn of_bytes(bytes: &[u8; Head::LEN]) -> Head {
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]));
        Head {
            at_ms: u64::from(number(0)) | u64::from(number(4)) << 32,
            id_len: number(8),
            note_len: number(12),
            kind: Kind::of_byte(bytes[16]),
            has_note: bytes[17] != 0,
            maybe_seen: bytes[18] != 0,
        }
    }
}

impl Content {
    /// Returns the content of a message.
    #[inline]
    pub(crate) fn message(id: &str, re: Option<&str>, sent_at_ms: u64, body: &[u8]) -> Content {
        Content::new(Kind::Message, sent_at_ms, id, re, body)
    }

    /// Returns the content of a message whose body is in the store only: its id, which the outcome
    /// will name.
    pub(crate) fn bodiless(id: &str) -> Content {
        Content::new(Kind::Bodiless, 0, id, None, b"")
    }

    /// Returns the content of the outcome of the message with this id.
    pub(crate) fn outcome(
        id: &str,
        outcome: Outcome,
        at_ms: u64,
        maybe_seen: bool,
        reason: Option<&str>,
    ) -> Content {
        let mut content = Content::new(Kind::Outcome(outcome), at_ms, id, reason, b"");
        content.0[18] = u8::from(maybe_seen);
        content
    }

    #[inline]
    fn new(kind: Kind, at_ms: u64, id: &str, note: Option<&str>, body: &[u8]) -> Content {
        let has_note = note.is_some();
        let note = note.unwrap_or_default();
        let (id_len, note_len) = (id.len() as u32, note.len() as u32);
        let head = Head { kind, at_ms, id_len, note_len, has_note, maybe_seen: false };
        let mut bytes = Vec::with_capacity(Head::LEN + id.len() + note.len() + body.len());
        bytes.extend_from_slice(&head.to_bytes());
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(note.as_bytes());
        bytes.extend_from_slice(body);
        Content(bytes.into_boxed_slice())
    }

    #[inline]
    fn parts(&self) -> (Head, &[u8], &[u8], &[u8]) {
        let (head, rest) = self.0.split_first_chunk().expect("a content has a head");
        let head = Head::of_bytes(head);
        let (id, rest) = rest.split_at(head.id_len as usize);
        let (note, body) = rest.split_at(head.note_len as usize);
        (head, id, note, body)
    }

    /// Returns the message's id.
    pub(crate) fn id(&self) -> &str {
        let (_, id, _, _) = self.parts();
        text(id)
    }

    /// Returns whether it is a message whose body is in the store only.
    #[inline]
    pub(crate) fn is_bodiless(&self) -> bool {
        self.0[16] == Kind::Bodiless.to_byte()
    }

    /// Drops all of a message but its id.
    pub(crate) fn drop_body(&mut self) {
        *self = Content::bodiless(self.id());
    }

    /// Returns the frame that is pushed. `device` is the sender of the message, or the receiver
    /// of the one that the outcome is about.
    #[inline]
    pub(crate) fn frame<'a>(&'a self, seq: u64, device: DeviceRef<'a>) -> ServerFrame<'a> {
        let (head, id, note, body) = self.parts();
        let note = head.has_note.then(|| text(note));
        match head.kind {
            Kind::Message | Kind::Bodiless => ServerFrame::Message {
                seq,
                from: device,
                id: text(id),
                body,
                sent_at_ms: head.at_ms,
                re: note,
            },
            Kind::Outcome(outcome) => ServerFrame::Outcome {
                seq,
                id: text(id),
                to: device,
                outcome,
                at_ms: head.at_ms,
                maybe_seen: head.maybe_seen,
                reason: note,
            },
        }
    }
}

#[inline]
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it was put in as text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_pushed() {
        let device = DeviceRef::Name("alice");
        for re in [None, Some(""), Some("earlier")] {
            let content = Content::message("m-1", re, u64::MAX - 1, b"{\"a\":1}");
            let (id, body, sent_at_ms) = ("m-1", &b"{\"a\":1}"[..], u64::MAX - 1);
            let frame = ServerFrame::Message { seq: 7, from: device, id, body, sent_at_ms, re };
            assert_eq!(content.frame(7, device), frame);
            assert!(!content.is_bodiless());
        }
        for (&outcome, reason) in
            Outcome::ALL.iter().zip([None, Some(""), Some("not now")].iter().cycle())
        {
            let content = Content::outcome("m-1", outcome, 5, reason.is_some(), *reason);
            let (id, to, maybe_seen) = ("m-1", device, reason.is_some());
            let frame = ServerFrame::Outcome {
                seq: 7,
                id,
                to,
                outcome,
                at_ms: 5,
                maybe_seen,
                reason: *reason,
            };
            assert_eq!(content.frame(7, device), frame);
            assert!(!content.is_bodiless());
        }
    }

    #[test]
    fn a_message_whose_body_goes_keeps_its_id() {
        let mut content = Content::message("é", Some("earlier"), 5, b"1");
        content.drop_body();
        assert!(content.is_bodiless());
        assert_eq!(content.id(), "é");
        assert_eq!(content, Content::bodiless("é"));
    }
}
