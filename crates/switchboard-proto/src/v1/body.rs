//! Bodies of messages that go from one of the two protocols to the other.

use super::scan::text_of;
use super::write::{escaped_len, write_text};

/// Appends the body that a text becomes: a JSON string.
pub fn write_body_of_text(out: &mut Vec<u8>, text: &[u8]) {
    write_text(out, text);
}

/// Returns the number of bytes of the body that a text becomes.
pub fn body_len_of_text(text: &[u8]) -> usize {
    escaped_len(text) + 2
}

/// Appends the text that a body becomes: a string bare, anything else as compact JSON.
///
/// `body` is valid JSON; white space outside its strings is left out.
pub fn write_text_of_body(out: &mut Vec<u8>, body: &[u8]) {
    if let Some(text) = text_of(body) {
        return out.extend_from_slice(text.as_bytes());
    }
    let mut in_string = false;
    let mut is_escaped = false;
    for &byte in body {
        if !in_string && byte.is_ascii_whitespace() {
            continue;
        }
        if byte == b'"' && !is_escaped {
            in_string = !in_string;
        }
        is_escaped = in_string && byte == b'\\' && !is_escaped;
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body_of(text: &str) -> Vec<u8> {
        let mut body = Vec::new();
        write_body_of_text(&mut body, text.as_bytes());
        body
    }

    fn text_of_body(body: &[u8]) -> String {
        let mut text = Vec::new();
        write_text_of_body(&mut text, body);
        String::from_utf8(text).unwrap()
    }

    proptest! {
        #[test]
        fn the_length_of_a_body_is_known_before_it_is_written(text in any::<String>()) {
            prop_assert_eq!(body_len_of_text(text.as_bytes()), body_of(&text).len());
        }
    }

    #[test]
    fn what_is_no_string_shows_compactly() {
        for (body, text) in [
            ("{ \"a\" : [ 1 , \"x y\\\" z\" ] }", "{\"a\":[1,\"x y\\\" z\"]}"),
            ("[\"\\\\\" , 1]", "[\"\\\\\",1]"),
            ("null", "null"),
            ("-1.5e3", "-1.5e3"),
            ("\"a\\nb\"", "a\nb"),
            ("\"\"", ""),
        ] {
            assert_eq!(text_of_body(body.as_bytes()), text, "{body}");
        }
    }

    proptest! {
        #[test]
        fn a_text_comes_back_as_it_went(text: String) {
            let body = body_of(&text);
            let read: String = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(&read, &text);
            prop_assert_eq!(text_of_body(&body), text);
        }
    }
}
