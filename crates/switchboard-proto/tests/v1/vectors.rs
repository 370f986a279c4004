//! Replays `vectors/v1-frames.jsonl`; its lines are explained in `vectors/README.md`.

use serde_json::Value;
use switchboard_proto::v1::{self, RejectCode};

use crate::shown;

const FRAMES: &str = include_str!("../../vectors/v1-frames.jsonl");

fn vectors(direction: &str) -> Vec<Value> {
    let all = FRAMES.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let vectors: Vec<_> = all.filter(|vector| vector["dir"] == direction).collect();
    assert!(vectors.len() > 50, "only {} vectors of {direction}s", vectors.len());
    vectors
}

#[test]
fn every_frame_of_a_client_is_read_as_the_vectors_say() {
    for vector in vectors("client") {
        let frame = vector["frame"].as_str().unwrap();
        match v1::parse_client(frame.as_bytes()) {
            Ok(read) => {
                assert_eq!(shown::client(&read), vector["reads"], "{frame}");
                if vector["exact"] == true {
                    let mut written = Vec::new();
                    read.write(&mut written);
                    assert_eq!(String::from_utf8(written).unwrap(), frame);
                }
            }
            Err(error) => assert_eq!(shown::error(&error), vector["error"], "{frame}: {error}"),
        }
    }
}

#[test]
fn every_frame_of_a_server_is_read_as_the_vectors_say() {
    for vector in vectors("server") {
        let frame = vector["frame"].as_str().unwrap();
        match v1::parse_server(frame.as_bytes()) {
            Ok(event) => {
                assert_eq!(shown::server(&event), vector["reads"], "{frame}");
                if vector["exact"] == true {
                    let mut devices = Vec::new();
                    let mut written = Vec::new();
                    shown::as_frame(&event, &mut devices).unwrap().write(&mut written);
                    assert_eq!(String::from_utf8(written).unwrap(), frame);
                }
            }
            Err(error) => assert!(vector["error"].is_object(), "{frame}: {error}"),
        }
    }
}

/// Texts that the author of a client reads when a frame is wrong.
#[test]
fn an_error_says_what_was_wrong_and_what_would_be_right() {
    let cases = [
        ("help", "a frame is one JSON object, which begins with `{`; it does not at byte 0"),
        (r#"{"type":"ack" "seq":1}"#, "expected `,` or `}` at byte 14"),
        (
            r#"{"type":"ack","seq":"1"}"#,
            "`seq` must be an integer from 0 to 2^53-1, in digits alone, and is a string",
        ),
        (r#"{"type":"ack"}"#, "`seq` is missing"),
        (r#"{"type":"cancel","id":"a"}"#, "`to` is missing"),
        (
            r#"{"type":"send","id":"a","to":1,"body":1}"#,
            "`to` must be a device id, which is always a string, as in \"100000000\", and is an integer",
        ),
        (r#"{"type":"devices","id":"a","limit":1001}"#, "`limit` must be 1 to 1000, and is 1001"),
        (r#"{"type":"ping","id":""}"#, "`id` must have 1 to 64 bytes, and is empty"),
        (r#"{"type":"ping","id":"a","id":"a"}"#, "`id` stands there more than once"),
        (
            r#"{"type":"pong"}"#,
            "no client sends a `pong`; it may send send, ack, refuse, cancel, ping, hello, devices, watch, unwatch, refresh",
        ),
    ];
    for (frame, message) in cases {
        assert_eq!(v1::parse_client(frame.as_bytes()).unwrap_err().message, message);
    }
}

/// SDKs rely on the vectors to be complete.
#[test]
fn every_reject_code_has_a_vector() {
    let vectors = vectors("server");
    for code in RejectCode::ALL {
        let has_code = |vector: &Value| vector["reads"]["code"] == code.as_str();
        assert!(vectors.iter().any(has_code), "{code}");
    }
}
