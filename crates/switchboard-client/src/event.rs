//! What a server tells a device, read from the text protocol.

use std::fmt;

use switchboard_proto::text::{
    DUPLICATE_MESSAGE, INVALID_COMMAND, INVALID_DESTINATION, Info, MAILBOX_FULL, UNREADABLE,
    parse_delivery, parse_info,
};
use switchboard_proto::v1::{Address, close};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// Something that a device is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another device, or this one, sent a text.
    Message {
        /// The sender.
        from: Address<'static>,
        /// What was sent, whole.
        text: String,
    },
    /// The own id and the connected devices.
    Info(Info),
    /// A command was not carried out.
    Refused(Refusal),
    /// A text that this client does not know.
    Unknown(String),
    /// The connection ended; nothing follows.
    Closed(Ending),
}

/// Why the server did not carry out a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The same text was delivered for this device less than 5 s ago.
    #[error("the same text was sent less than 5 seconds ago")]
    Duplicate,
    /// No connected device has the id.
    #[error("no such device is connected")]
    NoSuchDevice,
    /// The device has a mailbox, and it is full.
    #[error("the device's mailbox is full")]
    MailboxFull,
    /// The server knows no such command.
    #[error("the server does not know the command")]
    UnknownCommand,
    /// The server could not read the command.
    #[error("the server could not read the command")]
    Unreadable,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The close code (RFC 6455 section 7.4): 1005 when the server gave none, 1006 when the
    /// connection broke off.
    pub code: u16,
    /// The server's words, or the cause of the break; may be empty.
    pub reason: String,
}

impl Ending {
    /// Whether the server ended the connection for what it was sent last: too large a message
    /// (1009), which it then did not carry out.
    pub fn is_refusal(&self) -> bool {
        self.code == 1009
    }

    pub(crate) fn from_frame(frame: Option<&CloseFrame>) -> Ending {
        match frame {
            Some(frame) => {
                Ending { code: frame.code.into(), reason: frame.reason.as_str().to_owned() }
            }
            None => Ending { code: 1005, reason: String::new() },
        }
    }

    /// A connection that ended without a closing handshake.
    pub(crate) fn broken(reason: impl fmt::Display) -> Ending {
        Ending { code: 1006, reason: reason.to_string() }
    }
}

/// `the server went away (1001: restart)`.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.code {
            1000 | 1005 => "the server closed the connection",
            1001 => "the server went away",
            1006 => "the connection broke off",
            1009 => "the message is too large for the server",
            close::NOT_AUTHENTICATED => "the server does not accept the token",
            close::TAKEN_OVER => "another connection has taken the device over",
            _ => "the server ended the connection",
        };
        write!(f, "{words} ({}", self.code)?;
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        f.write_str(")")
    }
}

impl Event {
    /// Reads one text of the server.
    pub(crate) fn from_text(text: &str) -> Event {
        // A delivery is looked for first: its text may look like anything else.
        if let Some((from, text)) = parse_delivery(text) {
            return Event::Message { from: from.into_owned(), text: text.to_owned() };
        }
        match text {
            DUPLICATE_MESSAGE => Event::Refused(Refusal::Duplicate),
            INVALID_DESTINATION => Event::Refused(Refusal::NoSuchDevice),
            MAILBOX_FULL => Event::Refused(Refusal::MailboxFull),
            INVALID_COMMAND => Event::Refused(Refusal::UnknownCommand),
            UNREADABLE => Event::Refused(Refusal::Unreadable),
            _ => parse_info(text).map_or_else(|| Event::Unknown(text.to_owned()), Event::Info),
        }
    }
}

#[cfg(test)]
mod tests {
    use switchboard_proto::DeviceId;

    use super::*;

    #[test]
    fn every_text_of_the_server_is_read() {
        let info = "Your ID: 7\nConnected Devices: \n[7, 8]\nChat usage: send,destinationId,msg";
        let [seven, eight] = [7, 8].map(DeviceId::new);
        let message = |from, text: &str| Event::Message { from, text: text.to_owned() };
        assert_eq!(Event::from_text("7:a:b"), message(Address::Number(seven), "a:b"));
        assert_eq!(Event::from_text("al:a"), message(Address::Name("al".into()), "a"));
        assert_eq!(Event::from_text("Mailbox full"), Event::Refused(Refusal::MailboxFull));
        assert_eq!(
            Event::from_text(info),
            Event::Info(Info {
                id: seven,
                listed: [seven, eight].map(Address::Number).into(),
                more: 0
            })
        );
        assert_eq!(Event::from_text("Duplicate message"), Event::Refused(Refusal::Duplicate));
        assert_eq!(
            Event::from_text("Invalid destinationId"),
            Event::Refused(Refusal::NoSuchDevice)
        );
        assert_eq!(Event::from_text("Invalid Command"), Event::Refused(Refusal::UnknownCommand));
        assert_eq!(
            Event::from_text("Error reading the command"),
            Event::Refused(Refusal::Unreadable)
        );
        assert_eq!(Event::from_text("Hello"), Event::Unknown("Hello".to_owned()));
    }

    #[test]
    fn a_message_that_looks_like_an_answer_is_a_message() {
        for text in ["Duplicate message", "Invalid destinationId", "Your ID: 7\nConnected"] {
            let from = Address::Number(DeviceId::new(7));
            let expected = Event::Message { from, text: text.to_owned() };
            assert_eq!(Event::from_text(&format!("7:{text}")), expected);
        }
    }

    #[test]
    fn an_ending_speaks() {
        let ending = |code, reason: &str| Ending { code, reason: reason.to_owned() }.to_string();
        assert_eq!(ending(1001, ""), "the server went away (1001)");
        assert_eq!(ending(4508, "slow"), "the server ended the connection (4508: slow)");
    }
}
