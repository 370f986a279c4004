//! Parser of a text device's message as a command.

use super::python::{self, Integer};
use crate::DeviceId;
use crate::v1::DeviceRef;

/// Command of a text device: one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Asks for the own id and the connected devices.
    Help,
    /// Asks to deliver a text to a device, which may or may not exist.
    Send {
        /// The receiver.
        to: DeviceId,
        /// The text, exactly as it was sent; it may be empty, and may have commas.
        text: &'a [u8],
    },
    /// A command whose destination is no integer but may be a device's name. If no device has that
    /// name, the command is to be taken for [`Command::Unreadable`].
    Named {
        /// True if the command word is `send`.
        is_send: bool,
        /// The name, valid.
        name: &'a str,
        /// The text, exactly as it was sent.
        text: &'a [u8],
    },
    /// A `send` to an integer that no device can have: below zero or above `u64`.
    SendNowhere,
    /// Readable, but the command word is not `send`.
    Unknown,
    /// Not readable as a command at all.
    Unreadable,
}

/// Parses a message as a command, without copying its text.
///
/// Never fails: a message that cannot be read is [`Command::Unreadable`]. The rules are those of
/// the original server, which was written in Python: `help` must match exactly; everything else
/// is `<word>,<integer>,<text>`. White space around the word and the integer is ignored as
/// `str.strip()` does, and the integer is what `int()` accepts. The integer is judged before the
/// word. Unlike the original, the text keeps its commas.
///
/// `message` should be UTF-8. If it is not, and that is noticed, it is unreadable.
///
/// Takes time independent of the text's length for `send,<1 to 19 ASCII digits>,<text>`, and time
/// linear in the message's length otherwise.
#[inline]
pub fn parse(message: &[u8]) -> Command<'_> {
    match parse_ordinary(message) {
        Some(command) => command,
        None => std::str::from_utf8(message).map_or(Command::Unreadable, parse_any),
    }
}

/// Parses `send,<1 to 19 ASCII digits>,<text>`, the form that nearly all clients send; returns
/// `None` for any other message.
#[inline(always)]
fn parse_ordinary(message: &[u8]) -> Option<Command<'_>> {
    // The greatest number of 19 digits is below 2^64, so the sum cannot overflow.
    const DIGITS_MAX: usize = 19;

    let rest = message.strip_prefix(b"send,")?;
    let mut number = 0;
    for (at, &byte) in rest.iter().enumerate().take(DIGITS_MAX + 1) {
        match byte {
            b'0'..=b'9' if at < DIGITS_MAX => number = number * 10 + u64::from(byte - b'0'),
            b',' if at > 0 => {
                return Some(Command::Send { to: DeviceId::new(number), text: &rest[at + 1..] });
            }
            _ => return None,
        }
    }
    None
}

/// Parses any message, by the rules as they are written.
#[cold]
fn parse_any(message: &str) -> Command<'_> {
    if message == "help" {
        return Command::Help;
    }
    let mut parts = message.splitn(3, ',');
    let (Some(word), Some(id), Some(text)) = (parts.next(), parts.next(), parts.next()) else {
        return Command::Unreadable;
    };
    let is_send = python::strip(word) == "send";
    let id = python::strip(id);
    let Some(id) = python::int(id) else {
        return match DeviceRef::parse(id) {
            Some(DeviceRef::Name(name)) => Command::Named { is_send, name, text: text.as_bytes() },
            _ => Command::Unreadable,
        };
    };
    if !is_send {
        return Command::Unknown;
    }
    match id {
        Integer::U64(number) => Command::Send { to: DeviceId::new(number), text: text.as_bytes() },
        Integer::OutOfRange => Command::SendNowhere,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn send(to: u64, text: &str) -> Command<'_> {
        Command::Send { to: DeviceId::new(to), text: text.as_bytes() }
    }

    fn named(is_send: bool, name: &str) -> Command<'_> {
        Command::Named { is_send, name, text: b"x" }
    }

    #[test]
    fn the_ordinary_form_needs_no_slow_path() {
        assert_eq!(parse_ordinary(b"send,100000001,a,b,,c"), Some(send(100_000_001, "a,b,,c")));
        assert_eq!(parse_ordinary(b"send,0,"), Some(send(0, "")));
        assert_eq!(
            parse_ordinary(b"send,9999999999999999999,x"),
            Some(send(9_999_999_999_999_999_999, "x"))
        );
    }

    #[test]
    fn the_fast_path_leaves_everything_unusual_alone() {
        for message in [
            "help",
            "send",
            "send,",
            "send,,x",
            "send,1",
            "send,+1,x",
            "send, 1,x",
            "send,1 ,x",
            "send,1_0,x",
            " send,1,x",
            "send,18446744073709551615,x",
            "send,00000000000000000000,x",
        ] {
            assert_eq!(parse_ordinary(message.as_bytes()), None, "{message:?}");
        }
    }

    #[test]
    fn the_integer_is_judged_before_the_word() {
        assert_eq!(parse(b"foo,bar,x"), named(false, "bar"));
        assert_eq!(parse(b" send , bar ,x"), named(true, "bar"));
        assert_eq!(parse(b"foo,-bar,x"), Command::Unreadable);
        assert_eq!(parse(b"foo,1,x"), Command::Unknown);
        assert_eq!(parse(b"foo,-1,x"), Command::Unknown);
        assert_eq!(parse(b"foo,1"), Command::Unreadable);
    }

    #[test]
    fn integers_that_no_device_can_have_lead_nowhere() {
        assert_eq!(parse(b"send,-1,x"), Command::SendNowhere);
        assert_eq!(parse(b"send,18446744073709551616,x"), Command::SendNowhere);
        assert_eq!(parse(b"send,18446744073709551615,x"), send(u64::MAX, "x"));
        assert_eq!(parse(b"send,-0,x"), send(0, "x"));
    }

    /// Messages near the border between the two paths: each part is ordinary or nearly so.
    fn near_commands() -> impl Strategy<Value = String> {
        let word =
            prop_oneof![4 => Just("send"), 1 => Just(" send"), 1 => Just("sen"), 1 => Just("")];
        let id = prop_oneof![
            4 => "[0-9]{0,22}",
            1 => "[ \t\u{a0}]?[+-]?[0-9_]{0,12}[ \u{1f}]?",
            1 => r"[\p{Nd}]{1,4}",
            1 => any::<u64>().prop_map(|number| number.to_string()),
        ];
        (word, id, prop_oneof![Just(","), Just("")], ".{0,20}")
            .prop_map(|(word, id, comma, text)| format!("{word},{id}{comma}{text}"))
    }

    proptest! {
        #[test]
        fn the_fast_path_agrees_with_the_slow_path(message in near_commands()) {
            if let Some(command) = parse_ordinary(message.as_bytes()) {
                prop_assert_eq!(command, parse_any(&message));
            }
            prop_assert_eq!(parse(message.as_bytes()), parse_any(&message));
        }

        #[test]
        fn any_message_is_answered(message in any::<String>()) {
            prop_assert_eq!(parse(message.as_bytes()), parse_any(&message));
        }

        #[test]
        fn a_send_is_read_as_it_was_written(to: u64, text: String) {
            let message = format!("send,{to},{text}");
            prop_assert_eq!(parse(message.as_bytes()), send(to, &text));
        }
    }
}
