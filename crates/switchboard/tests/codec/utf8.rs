//! Text must be UTF-8, however it is split; bad text is reported at the byte that makes it bad.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use switchboard::ws::{Decoder, Role, Violation};

use crate::cases;
use crate::stream::{CONTINUATION, FIN, Outcome, Said, TEXT, decode, frame};

/// Sequences that are not UTF-8, and the number of bytes after which that is certain; `None` if
/// only the end of the message makes it so (RFC 3629 section 4).
const BAD: [(&[u8], Option<usize>); 24] = [
    // Bytes that never occur.
    (b"\xC0", Some(1)),
    (b"\xC1\xBF", Some(1)),
    (b"\xF5\x80\x80\x80", Some(1)),
    (b"\xFE", Some(1)),
    (b"\xFF", Some(1)),
    // Continuation bytes without a start byte.
    (b"\x80", Some(1)),
    (b"\xBF", Some(1)),
    // Overlong forms: of `/`, and of the largest code point that a shorter form holds.
    (b"\xC0\xAF", Some(1)),
    (b"\xE0\x80\xAF", Some(2)),
    (b"\xF0\x80\x80\xAF", Some(2)),
    (b"\xE0\x9F\xBF", Some(2)),
    (b"\xF0\x8F\xBF\xBF", Some(2)),
    (b"\xF8\x80\x80\x80\xAF", Some(1)),
    // Surrogates, alone and in a pair (CESU-8).
    (b"\xED\xA0\x80", Some(2)),
    (b"\xED\xBF\xBF", Some(2)),
    (b"\xED\xA0\xBD\xED\xB8\x80", Some(2)),
    // Above U+10FFFF.
    (b"\xF4\x90\x80\x80", Some(2)),
    // Interrupted by another character.
    (b"\xC3(", Some(2)),
    (b"\xE2\x82(", Some(3)),
    (b"\xF0\x9F\x98(", Some(4)),
    // Truncated by the end.
    (b"\xC3", None),
    (b"\xE2\x82", None),
    (b"\xF0\x9F", None),
    (b"\xF0\x9F\x98", None),
];

/// Border cases that are valid UTF-8.
const GOOD: [&str; 10] = [
    "\0",
    "\u{7F}",
    "\u{80}",
    "\u{7FF}",
    "\u{800}",
    "\u{D7FF}\u{E000}",
    "\u{FFFE}\u{FFFF}",
    "\u{10000}",
    "\u{10FFFF}",
    "κόσμε",
];

#[test]
fn bad_text_is_refused_in_one_frame() {
    for (bad, _) in BAD {
        for message in [bad.to_vec(), [b"before ", bad].concat(), ["é".as_bytes(), bad].concat()] {
            let outcome = decode(Role::Server, 100, &frame(Role::Server, FIN | TEXT, &message));
            assert_eq!(outcome.violation, Some(Violation::NotUtf8), "{message:X?}");
        }
    }
}

#[test]
fn bad_text_is_told_at_the_byte_that_no_later_byte_can_mend() {
    for (bad, certain) in BAD {
        for before in ["", "before é€😀"] {
            let message = [before.as_bytes(), bad, b" and after"].concat();
            let certain_at = before.len() + certain.unwrap_or(bad.len() + 1);
            assert_eq!(told_after(&message), Some(certain_at), "{bad:X?} after {before:?}");
        }
    }
}

/// Returns the number of bytes of a message, fed one by one, after which its text is rejected.
fn told_after(message: &[u8]) -> Option<usize> {
    let stream = frame(Role::Client, FIN | TEXT, message);
    let header_len = stream.len() - message.len();
    let mut decoder = Decoder::new(Role::Client, 1_000);
    let mut outcome = Outcome::default();
    for (at, byte) in stream.chunks(1).enumerate() {
        outcome.feed(&mut decoder, byte);
        if outcome.violation.is_some() {
            assert_eq!(outcome.violation, Some(Violation::NotUtf8));
            return Some(at + 1 - header_len);
        }
    }
    None
}

#[test]
fn text_that_ends_within_a_character_is_refused_only_at_its_end() {
    for (bad, certain) in BAD {
        if certain.is_some() {
            continue;
        }
        let begun = frame(Role::Server, TEXT, bad);
        assert_eq!(decode(Role::Server, 100, &begun).violation, None, "{bad:X?}");
        let ended = [begun, frame(Role::Server, FIN | CONTINUATION, b"")].concat();
        let outcome = decode(Role::Server, 100, &ended);
        assert_eq!(outcome.violation, Some(Violation::NotUtf8), "{bad:X?}");
    }
}

#[test]
fn good_text_is_heard_with_a_fragment_border_anywhere() {
    for text in GOOD {
        for cut in 0..=text.len() {
            let stream = [
                frame(Role::Server, TEXT, &text.as_bytes()[..cut]),
                frame(Role::Server, FIN | CONTINUATION, &text.as_bytes()[cut..]),
            ]
            .concat();
            let outcome = decode(Role::Server, 100, &stream);
            assert_eq!(outcome.violation, None, "{text:?} cut at {cut}");
            assert_eq!(outcome.said.last(), Some(&Said::text(text)), "{text:?} cut at {cut}");
            assert_eq!(told_after(text.as_bytes()), None, "{text:?}");
        }
    }
}

#[test]
fn binary_messages_may_hold_anything() {
    for (bad, _) in BAD {
        let stream = frame(Role::Server, FIN | 0x2, bad);
        assert_eq!(decode(Role::Server, 100, &stream).said, [Said::Binary(bad.to_vec())]);
    }
}

/// Returns the number of bytes after which a text is certainly bad, by the standard library.
fn certainly_bad_after(message: &[u8]) -> Option<usize> {
    (1..=message.len()).find(|&len| {
        std::str::from_utf8(&message[..len]).is_err_and(|error| error.error_len().is_some())
    })
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn any_text_is_judged_as_early_as_by_definition(
        parts in vec(
            prop_oneof![
                any::<char>().prop_map(|char| char.to_string().into_bytes()),
                select(BAD.map(|(bad, _)| bad).to_vec()).prop_map(<[u8]>::to_vec),
                vec(any::<u8>(), 0..3),
            ],
            0..12,
        ),
    ) {
        let message = parts.concat();
        let at_the_end = std::str::from_utf8(&message).is_err().then_some(message.len());
        prop_assert_eq!(told_after(&message), certainly_bad_after(&message).or(at_the_end));
    }
}
