//! Clients' frames, well-formed and damaged in many ways, against the oracle.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use switchboard_proto::v1::{self, check_body};

use crate::{oracle, shown};

const NAMES: &[&str] = &[
    "type",
    "id",
    "to",
    "body",
    "ttl_ms",
    "re",
    "durability",
    "receipt",
    "seq",
    "reason",
    "token",
    "mailbox",
    "last_seq",
    "devices",
    "after",
    "limit",
    "t\\u0079pe",
    "\\u0069d",
    "x",
    "",
    "Type",
    "device",
    "message",
    "é",
];

const TYPES: &[&str] = &[
    "hello",
    "send",
    "ack",
    "refuse",
    "cancel",
    "devices",
    "watch",
    "unwatch",
    "refresh",
    "ping",
    "s\\u0065nd",
    "pong",
    "",
];

/// Values as they may be written, valid for some field or for none.
const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "1",
    "7",
    "1000",
    "1001",
    "-1",
    "-0",
    "1.0",
    "1.5",
    "1e2",
    "1E400",
    "9007199254740991",
    "9007199254740992",
    "18446744073709551616",
    "\"\"",
    "\"a\"",
    "\"disk\"",
    "\"memory\"",
    "\"none\"",
    "\"100000001\"",
    "\"kitchen\"",
    "\"a b\"",
    "\"k\\u0069tchen\"",
    "\"\\ud83d\\ude00\"",
    "\"é😀\"",
    "\"a\\n\\\"\\\\b\"",
    "\"0123456789abcdef0123456789abcdef\"",
    "[]",
    "{}",
    "[\"a\",\"1\"]",
    "[ \"a\" , \"b c\" ]",
    "[1,[2,{\"a\":[]}]]",
    "{\"a\":1,\"a\":{}}",
];

/// Pieces that make invalid or other JSON of JSON.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u",
    "\\ud800",
    "\\udc00",
    "\\u0000",
    "0",
    "-",
    ".",
    "e",
    "+",
    "1e400",
    "true",
    "nul",
    "null",
    " ",
    "\t",
    "\n",
    "\r",
    "\x0c",
    "\0",
    "\x1f",
    "\x7f",
    "é",
    "\u{a0}",
    "\u{feff}",
    "\"a\":1,",
    "[[[[[[[[[[[[[[[[",
    "]]]]]]]]]]]]]]]]",
    "\"\"",
    "a",
];

/// A member of a frame, usually one that makes sense.
fn member() -> impl Strategy<Value = String> {
    let kind = select(TYPES).prop_map(|kind| format!("\"type\":\"{kind}\""));
    let any = (select(NAMES), select(VALUES), select(&["", " ", "\n\t\r"][..]))
        .prop_map(|(name, value, space)| format!("{space}\"{name}\"{space}:{space}{value}{space}"));
    let good = select(
        &[
            "\"id\":\"m1\"",
            "\"to\":\"kitchen\"",
            "\"body\":{\"x\": 1}",
            "\"seq\":7",
            "\"token\":\"a.b\"",
            "\"devices\":[\"a\"]",
        ][..],
    )
    .prop_map(str::to_owned);
    prop_oneof![2 => kind, 3 => any, 3 => good]
}

fn object() -> impl Strategy<Value = String> {
    proptest::collection::vec(member(), 0..8)
        .prop_map(|members| format!("{{{}}}", members.join(",")))
}

/// A text with some pieces inserted, or in place of others.
fn damaged(text: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let damages = proptest::collection::vec((any::<Index>(), select(PIECES), 0..3usize), 0..4);
    (text, damages).prop_map(|(text, damages)| {
        damages.into_iter().fold(text, |text, (at, piece, removed)| {
            let mut characters: Vec<char> = text.chars().collect();
            let at = at.index(characters.len() + 1);
            let end = (at + removed).min(characters.len());
            characters.splice(at..end, piece.chars());
            characters.into_iter().collect()
        })
    })
}

fn soup() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof![select(PIECES), select(VALUES)], 0..12)
        .prop_map(|pieces| pieces.concat())
}

fn agrees_with_the_oracle(frame: &str) {
    let read = v1::parse_client(frame.as_bytes());
    let read = read.map(|read| shown::client(&read)).map_err(|error| shown::error(&error));
    assert_eq!(read, oracle::read(frame), "{frame}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn frames_are_read_as_the_oracle_reads_them(frame in object()) {
        agrees_with_the_oracle(&frame);
    }

    #[test]
    fn damaged_frames_are_read_as_the_oracle_reads_them(frame in damaged(object())) {
        agrees_with_the_oracle(&frame);
    }

    #[test]
    fn bodies_are_what_the_oracle_takes_for_json(body in prop_oneof![damaged(soup()), soup()]) {
        agrees_with_the_oracle(&format!(r#"{{"type":"send","id":"a","to":"b","body":{body}}}"#));
    }

    #[test]
    fn bodies_nest_as_deep_as_they_may(
        depth in 60..70usize, brackets in select(&[("[", "]"), ("{\"a\":", "}"), ("[[],", "]")][..]),
    ) {
        let (opening, closing) = brackets;
        let body = format!("{}1{}", opening.repeat(depth), closing.repeat(depth));
        agrees_with_the_oracle(&format!(r#"{{"type":"send","id":"a","to":"b","body":{body}}}"#));
    }

    /// Strings are scanned in steps of several sizes.
    #[test]
    fn a_string_ends_where_the_oracle_sees_its_end(
        before in 0..200usize, odd in select(&["\"", "\\\"", "\\", "\n", "\x1f", "\x20", "é", "\x7f", ""][..]),
        after in 0..100usize,
    ) {
        let text = format!("{}{odd}{}", "a".repeat(before), "b".repeat(after));
        agrees_with_the_oracle(&format!(r#"{{"type":"send","id":"a","to":"b","body":"{text}"}}"#));
    }

    #[test]
    fn any_bytes_are_answered(bytes: Vec<u8>, frame in object(), at: Index, byte: u8) {
        let _ = v1::parse_client(&bytes);
        let _ = v1::parse_server(&bytes);
        let mut frame = frame.into_bytes();
        let at = at.index(frame.len());
        frame[at] = byte;
        let _ = v1::parse_client(&frame);
        let _ = v1::parse_server(&frame);
    }
}

#[test]
fn a_faulty_body_says_where() {
    let deep = "[".repeat(70);
    for (body, at) in [("{lamp", 1), ("{\"a\":1,\n}", 8), ("", 0), ("1 2", 2), (&deep, 63)] {
        assert_eq!(check_body(body.as_bytes()).unwrap_err().at, at, "{body}");
    }
    assert_eq!(check_body(b" {\"a\": [1e400]} \n"), Ok(()));
}
