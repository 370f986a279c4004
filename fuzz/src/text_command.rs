//! The text protocol: what devices send, and what clients read.

use switchboard_proto::text::{self, Command};
use switchboard_proto::v1::{Address, DeviceRef};

/// Reads the bytes as a device's message and as a server's answer.
///
/// Promises held: a readable command reads the same when written plainly or padded with white
/// space; the text is the message's own end; what clients read is what could have been written.
pub fn text_command(data: &[u8]) {
    let Ok(message) = std::str::from_utf8(data) else { return };
    as_command(message);
    as_delivery(message);
    as_info(message);
}

fn as_command(message: &str) {
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

fn as_delivery(message: &str) {
    let Some((from, text)) = text::parse_delivery(message) else { return };
    // Names are written by the server elsewhere.
    let DeviceRef::Number(from) = from else { return };
    let mut written = Vec::new();
    let sender = text::Sender::new(from);
    text::write_delivery(&mut written, &sender, text.as_bytes());
    assert_eq!(written, message.as_bytes());
    assert_eq!(written.len(), text::delivery_len(&sender, text.as_bytes()));
}

fn as_info(message: &str) {
    let Some(info) = text::parse_info(message) else { return };
    let mut list = String::new();
    let listed = info.listed.iter().filter_map(Address::device);
    text::write_list(&mut list, listed, info.more);
    let mut written = String::new();
    text::write_info(&mut written, DeviceRef::Number(info.id), &list);
    assert_eq!(written, message);
}
