//! Replays the golden vectors of the text protocol, which a real Python made by the original's
//! rules.

use serde_json::{Value, json};
use switchboard_proto::text::{self, Command};

const TEXT_COMMANDS: &str = include_str!("../vectors/text-commands.jsonl");

#[test]
fn every_message_is_read_as_the_original_read_it() {
    let vectors: Vec<Value> =
        TEXT_COMMANDS.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(vectors.len() >= 2000, "only {} vectors", vectors.len());
    for expected in vectors {
        let message = expected["message"].as_str().unwrap();
        assert_eq!(as_vector(message, text::parse(message.as_bytes())), expected);
    }
}

/// Returns a message and its command in the form of a line of the vectors.
fn as_vector(message: &str, command: Command<'_>) -> Value {
    match command {
        Command::Help => json!({"message": message, "command": "help"}),
        Command::Send { to, text } => {
            json!({"message": message, "command": "send", "to": to.to_string(),
                "text": std::str::from_utf8(text).expect("it is a part of a text")})
        }
        Command::SendNowhere => json!({"message": message, "command": "nowhere"}),
        Command::Unknown => json!({"message": message, "command": "unknown"}),
        // No device has a name here.
        Command::Named { .. } | Command::Unreadable => {
            json!({"message": message, "command": "unreadable"})
        }
    }
}
