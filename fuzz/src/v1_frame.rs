//! The v1 protocol: frames of clients and of servers.

use serde_json::Value;
use switchboard_proto::v1::{self, ClientFrame, DEPTH_MAX};

/// Parses the bytes as a frame of either side, and as a body within one.
///
/// Checked: an accepted frame is JSON, and parses to the same when it is written again; a body
/// is accepted exactly if `serde_json` accepts it, and returned as it was sent; a frame in plain
/// form parses as it does with a leading space, which avoids the fast path for plain ones.
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
        // `serde_json` cannot represent some numbers.
        (Err(error), Ok(_)) if error.to_string().starts_with("number out of range") => {}
        // A body that closes itself may add fields to the frame.
        (Err(error), Ok(_)) => {
            serde_json::from_str::<Value>(&frame).unwrap_or_else(|_| panic!("taken: {error}"));
        }
    }
}

/// Returns the nesting depth of a value; 0 unless it is an array or object.
fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Array(elements) => elements.iter().map(depth).max(),
        Value::Object(members) => members.values().map(depth).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}
