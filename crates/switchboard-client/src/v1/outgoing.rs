//! A message to another device.

use std::borrow::Cow;
use std::time::Duration;

use switchboard_proto::v1::{ClientFrame, Durability, Send, parse_client, write_body_of_text};

use super::SendError;
use super::kept::frame;

/// A message to another device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// This device's id for the message, 1 to 64 bytes. The same id is accepted only once within
    /// the server's deduplication window, so a message may be sent again if its result is
    /// unknown.
    pub id: String,
    /// The receiver's id.
    pub to: String,
    /// Any JSON value.
    pub body: String,
    /// Time that it may wait for an ack; `None` means as long as the mailbox exists.
    pub ttl: Option<Duration>,
    /// The `id` of the message that this one answers.
    pub re: Option<String>,
    /// Durability to wait for; `None` means the strongest that the receiver has.
    pub durability: Option<Durability>,
    /// True to be told the outcome, by [`Event::Outcome`](super::Event::Outcome).
    pub receipt: bool,
}

impl Outgoing {
    /// Creates a message with a text, as a JSON string, under a new random id.
    pub fn text(to: impl Into<String>, text: &str) -> Outgoing {
        let mut body = Vec::with_capacity(text.len() + 2);
        write_body_of_text(&mut body, text.as_bytes());
        Outgoing::json(to, String::from_utf8(body).expect("text stays text"))
    }

    /// Creates a message with JSON as it is, under a new random id. The JSON is validated when
    /// it is sent.
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

    /// Returns the frame, or an error if it is invalid: the server could not even answer it.
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
            // A body that closes itself, as `1,"to":"x"` does, makes a frame that was not
            // intended.
            Ok(_) => Err(SendError::Invalid("the body is not JSON".to_owned())),
            Err(error) => Err(SendError::Invalid(error.message)),
        }
    }
}

/// Returns a unique id.
pub(super) fn random_id() -> String {
    format!("{:016x}{:016x}", random(), random())
}

/// Returns a random number. Panics if the system has no randomness: no id would be unique then.
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
