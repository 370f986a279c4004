//! A message to another device.

use std::borrow::Cow;
use std::time::Duration;

use switchboard_proto::v1::{ClientFrame, Durability, Send, parse_client, write_body_of_text};

use super::SendError;
use super::kept::frame;

/// A message to another device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// This device's name for it, 1 to 64 bytes; the same id is accepted once within the server's
    /// window, so that a message may be sent again when it is not known what became of it.
    pub id: String,
    /// The receiver's id.
    pub to: String,
    /// Any JSON value.
    pub body: String,
    /// How long it may wait for an ack; none: as long as the mailbox lives.
    pub ttl: Option<Duration>,
    /// The `id` of the message that this one answers.
    pub re: Option<String>,
    /// What to wait for; none: the strongest that the receiver's side has.
    pub durability: Option<Durability>,
    /// Whether to be told how it ends, by [`Event::Outcome`](super::Event::Outcome).
    pub receipt: bool,
}

impl Outgoing {
    /// A text, as a JSON string, under a new random id.
    pub fn text(to: impl Into<String>, text: &str) -> Outgoing {
        let mut body = Vec::with_capacity(text.len() + 2);
        write_body_of_text(&mut body, text.as_bytes());
        Outgoing::json(to, String::from_utf8(body).expect("text stays text"))
    }

    /// JSON as it is, under a new random id. Whether it is JSON is found out when it is sent.
    pub fn json(to: impl Into<String>, json: impl Into<String>) -> Outgoing {
        Outgoing {
            id: random_id(),
            to: to.into(),
            body: json.into(),
            ttl: None,
            re: None,
            durability: None,
            receipt: false,
        }
    }

    /// The frame, if it is one: what the server cannot read it could not answer either.
    pub(super) fn frame(&self) -> Result<String, SendError> {
        let text = frame(&ClientFrame::Send(Send {
            id: Cow::Borrowed(&self.id),
            to: Cow::Borrowed(&*self.to),
            body: self.body.trim_ascii().as_bytes(),
            ttl_ms: self.ttl.map(|ttl| ttl.as_millis().try_into().unwrap_or(u64::MAX)),
            re: self.re.as_deref().map(Cow::Borrowed),
            durability: self.durability,
            receipt: self.receipt,
        }));
        match parse_client(text.as_bytes()) {
            Ok(ClientFrame::Send(read)) if read.body == self.body.trim_ascii().as_bytes() => {
                Ok(text)
            }
            // A body that ends itself, as `1,"to":"x"` does, makes another frame than was meant.
            Ok(_) => Err(SendError::Invalid("the body is not JSON".to_owned())),
            Err(error) => Err(SendError::Invalid(error.message)),
        }
    }
}

/// An id that nobody else has.
pub(super) fn random_id() -> String {
    format!("{:016x}{:016x}", random(), random())
}

/// A random number; without randomness from the system no id is worth having.
pub(super) fn random() -> u64 {
    getrandom::u64().expect("the system has randomness")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_message_is_not_sent() {
        for (body, ok) in [
            ("{\"a\":[1, 2]}", true),
            (" 1 \n", true),
            ("\"text\"", true),
            ("", false),
            ("text", false),
            ("1,\"to\":\"x\"", false),
            ("1}{", false),
        ] {
            assert_eq!(Outgoing::json("7", body).frame().is_ok(), ok, "{body:?}");
        }
        let no_id = Outgoing { id: String::new(), ..Outgoing::text("7", "x") };
        assert!(matches!(no_id.frame(), Err(SendError::Invalid(_))));
    }
}
