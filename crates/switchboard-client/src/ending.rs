//! The end of a connection.

use std::fmt;

use switchboard_proto::v1::close;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// The code and reason with which a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The close code (RFC 6455 section 7.4): 1005 if the server gave none, 1006 if the
    /// connection broke off.
    pub code: u16,
    /// The server's text, or the cause of the break; may be empty.
    pub reason: String,
}

impl Ending {
    pub(crate) fn from_frame(frame: Option<&CloseFrame>) -> Ending {
        match frame {
            Some(frame) => {
                Ending { code: frame.code.into(), reason: frame.reason.as_str().to_owned() }
            }
            None => Ending { code: 1005, reason: String::new() },
        }
    }

    /// Creates the ending of a connection without a closing handshake.
    pub(crate) fn broken(reason: impl fmt::Display) -> Ending {
        Ending { code: 1006, reason: reason.to_string() }
    }
}

/// Formats as in `the server went away (1001: restart)`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_speaks() {
        let ending = |code, reason: &str| Ending { code, reason: reason.to_owned() }.to_string();
        assert_eq!(ending(1001, ""), "the server went away (1001)");
        assert_eq!(ending(4508, "slow"), "the server ended the connection (4508: slow)");
    }
}
