//! The opening handshake: the first bytes of a connection.

use switchboard::ws::{DeflateOffer, Parsed, parse_request};

const MAX_BYTES: usize = 4096;

/// Parses the bytes as the start of a connection.
///
/// Checked: bytes after a head do not change how it is parsed; no prefix of an acceptable head
/// is accepted; every answer is one HTTP response; waiting ends at the limit.
pub fn handshake(data: &[u8]) {
    match parse_request(data, MAX_BYTES) {
        Parsed::Incomplete => assert!(data.len() < MAX_BYTES, "waits beyond the limit"),
        Parsed::Http(_) => {}
        Parsed::Refused(refusal) => {
            let mut answer = Vec::new();
            refusal.write(&mut answer);
            check_answer(&answer, refusal.status());
        }
        Parsed::Upgrade(mut upgrade) => {
            let head = &data[..upgrade.head_len];
            check_head(head);
            for context_takeover in [false, true] {
                upgrade.negotiate_deflate(context_takeover);
                let mut answer = Vec::new();
                upgrade.write_accept(None, &mut answer);
                check_answer(&answer, "101");
            }
        }
    }
    if let Ok(offer) = std::str::from_utf8(data) {
        check_offer(offer);
    }
}

fn check_head(head: &[u8]) {
    assert!(head.len() <= MAX_BYTES);
    assert!(matches!(parse_request(head, MAX_BYTES), Parsed::Upgrade(_)), "the head by itself");
    for len in [head.len() - 1, head.len() / 2, head.len() / 4, 0] {
        let parsed = parse_request(&head[..len], MAX_BYTES);
        assert!(matches!(parsed, Parsed::Incomplete), "{len} bytes of a head: {parsed:?}");
    }
}

/// Checks that a response has one head, of known lines, and a body of the length that it names.
fn check_answer(answer: &[u8], status: &str) {
    let answer = std::str::from_utf8(answer).expect("answers are text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head ends");
    let mut lines = head.split("\r\n");
    let status_line = lines.next().expect("a head has a first line");
    assert!(status_line.starts_with(&format!("HTTP/1.1 {status} ")), "{status_line}");
    let mut body_len = 0;
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a header has a name and a value");
        assert!(name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-'), "{line}");
        assert!(!value.contains(['\r', '\n']), "{line}");
        if name == "Content-Length" {
            body_len = value.parse().expect("a length is a number");
        }
    }
    assert_eq!(body.len(), body_len);
}

fn check_offer(header: &str) {
    for context_takeover in [false, true] {
        let Some(agreed) = DeflateOffer::negotiate(header, context_takeover) else { continue };
        assert!((9..=15).contains(&agreed.server_window_bits));
        assert!(context_takeover || agreed.is_shareable());
    }
}
