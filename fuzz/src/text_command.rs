//! The text protocol: messages of devices.

use switchboard_proto::text::{self, Command};

/// Parses the bytes as a device's message.
///
/// Checked: a valid command parses to the same when written plainly or padded with white space;
/// the text is the end of the message.
pub fn text_command(data: &[u8]) {
    let Ok(message) = std::str::from_utf8(data) else { return };
    let command = text::parse(message.as_bytes());
    if let Command::Send { to, text } = command {
        let before = message.as_bytes().strip_suffix(text).expect("the text is the message's end");
        assert!(before.ends_with(b","));
        assert_eq!(
            before.iter().filter(|&&byte| byte == b',').count(),
            2,
            "commas before the text"
        );
        let plain = [format!("send,{to},").as_bytes(), text].concat();
        assert_eq!(text::parse(&plain), command);
    }
    match command {
        Command::Help => assert_eq!(message, "help"),
        Command::Send { .. } | Command::SendNowhere | Command::Named { .. } | Command::Unknown => {
            let padded = format!("\u{a0}{}", message.replacen(',', "\x1c,\u{3000}", 1));
            assert_eq!(text::parse(padded.as_bytes()), command, "padded");
        }
        Command::Unreadable => {}
    }
}
