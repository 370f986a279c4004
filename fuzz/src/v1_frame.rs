//! The v1 protocol: what clients send, and what servers answer.

use serde_json::Value;
use switchboard_proto::v1::{self, ClientFrame, DEPTH_MAX};

/// Reads the bytes as a frame of either side, and as a body within one.
///
/// Promises held: a frame that is read is JSON, and reads the same when it is written anew; a body
/// is taken exactly if `serde_json` takes it, and handed out as it was sent; a frame that is plain
/// reads as it does with a space in front, which leads past the way for plain ones.
pub fn v1_frame(data: &[u8]) {
    let _ = v1::parse_server(data);
    let spaced = [b" ", data].concat();
    assert_eq!(v1::parse_client(data).ok(), v1::parse_client(&spaced).ok());
    let Ok(text) = std::str::from_utf8(data) else { return };
    as_frame(text);
    as_body(text);
}

fn as_frame(text: &str) {
    match v1::parse_client(text.as_bytes()) {
        Ok(frame) => {
            serde_json::from_str::<serde::de::IgnoredAny>(text).expect("a frame is JSON");
            let mut written = Vec::new();
            frame.write(&mut written);
            assert_eq!(v1::parse_client(&written).as_ref(), Ok(&frame));
        }
        Err(error) => assert!(!error.message.is_empty()),
    }
}

fn as_body(text: &str) {
    let frame = format!(r#"{{"type":"send","id":"a","to":"b","body":{text}}}"#);
    let read = v1::parse_client(frame.as_bytes());
    match (serde_json::from_str::<Value>(text), read) {
        (Ok(value), Ok(ClientFrame::Send(send))) => {
            assert_eq!(send.body, text.trim_matches([' ', '\t', '\n', '\r']).as_bytes());
            assert!(depth(&value) < DEPTH_MAX, "deeper than it may be");
        }
        (Ok(value), read) => assert!(depth(&value) >= DEPTH_MAX, "not taken: {read:?}"),
        (Err(_), Err(_)) => {}
        // `serde_json` has no room for some numbers.
        (Err(error), Ok(_)) if error.to_string().starts_with("number out of range") => {}
        // What closes the body may go on with fields of its own.
        (Err(error), Ok(_)) => {
            serde_json::from_str::<Value>(&frame).unwrap_or_else(|_| panic!("taken: {error}"));
        }
    }
}

/// Returns how deep a value nests; 0 for what is no array or object.
fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Array(elements) => elements.iter().map(depth).max(),
        Value::Object(members) => members.values().map(depth).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}
