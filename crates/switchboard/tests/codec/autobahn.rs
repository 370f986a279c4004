//! The sections of the Autobahn test suite, with vectors of our own, against `examples/echo.rs`
//! over loopback connections.
//!
//! Numbers such as 5.19 are those of Autobahn's cases whose idea a test takes up.

mod compression;
mod talk;

use std::net::TcpStream;

use talk::{Talk, fails, says_back, says_back_chopped};

use crate::stream::{
    BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, Said, TEXT, bytes_of, close_payload, text_of,
};

/// The example itself; cargo builds no binary of it for tests.
#[path = "../../examples/echo.rs"]
#[expect(dead_code, reason = "its main is called by nobody here")]
mod echo;

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    crate::stream::frame(switchboard::ws::Role::Server, first, payload)
}

fn text(text: &str) -> Vec<u8> {
    frame(FIN | TEXT, text.as_bytes())
}

fn close(code: u16) -> Vec<u8> {
    frame(FIN | CLOSE, &code.to_be_bytes())
}

/// A message in fragments of this many bytes.
fn fragments(opcode: u8, payload: &[u8], fragment_len: usize) -> Vec<u8> {
    let last = payload.len().div_ceil(fragment_len) - 1;
    let frames = payload.chunks(fragment_len).enumerate().map(|(at, fragment)| {
        let fin = if at == last { FIN } else { 0 };
        frame(fin | if at == 0 { opcode } else { CONTINUATION }, fragment)
    });
    frames.collect::<Vec<_>>().concat()
}

#[test]
fn section_1_messages_of_all_framings() {
    for len in [0, 125, 126, 127, 128, 65_535, 65_536] {
        let (words, bytes) = (text_of(len, 0), bytes_of(len, 0));
        says_back_chopped(
            &[text(&words), frame(FIN | BINARY, &bytes)],
            &[Said::Text(words), Said::Binary(bytes)],
        );
    }
}

#[test]
fn section_2_pings_are_answered_in_order_and_pongs_are_not() {
    for payload in [b"".as_slice(), b"Hello, world!", &[0, 0xFF, 0xFE, 0xFD], &[0xFE; 125]] {
        says_back_chopped(&[frame(FIN | PING, payload)], &[Said::Pong(payload.to_vec())]);
    }
    says_back_chopped(&[frame(FIN | PONG, b""), frame(FIN | PONG, b"unasked")], &[]);
    let pong_then_ping = [frame(FIN | PONG, b"unasked"), frame(FIN | PING, b"asked")];
    says_back_chopped(&pong_then_ping, &[Said::Pong(b"asked".to_vec())]);
    let pings: Vec<Vec<u8>> = (0..10).map(|at| frame(FIN | PING, &[at])).collect();
    let pongs: Vec<Said> = (0..10).map(|at| Said::Pong(vec![at])).collect();
    says_back_chopped(&pings, &pongs);
    fails(&[frame(FIN | PING, &[0xFE; 126])], &[], 1002);
}

#[test]
fn section_3_reserved_bits_fail() {
    for bits in 1..8u8 {
        for opcode in [TEXT, BINARY, PING, CLOSE] {
            let bad = frame(FIN | bits << 4 | opcode, b"");
            fails(&[text("before"), bad], &[Said::text("before")], 1002);
        }
    }
}

#[test]
fn section_4_reserved_opcodes_fail() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        for payload in [b"".as_slice(), b"reserved opcode payload"] {
            let bad = frame(FIN | opcode, payload);
            fails(&[text("before"), bad, frame(FIN | PING, b"")], &[Said::text("before")], 1002);
        }
    }
}

#[test]
fn section_5_fragments_make_one_message() {
    let (one, two) = (|| frame(TEXT, b"fragment1"), || frame(FIN, b"fragment2"));
    let whole = || Said::text("fragment1fragment2");
    // 5.3 to 5.5
    says_back_chopped(&[one(), two()], &[whole()]);
    // 5.6 to 5.8
    let ping = || frame(FIN | PING, b"ping payload");
    let pong = || Said::Pong(b"ping payload".to_vec());
    says_back_chopped(&[one(), ping(), two()], &[pong(), whole()]);
    // 5.19, 5.20
    let more = |payload: &[u8]| frame(CONTINUATION, payload);
    let between = |payload: &[u8]| frame(FIN | PING, payload);
    says_back_chopped(
        &[one(), more(b"f2"), between(b"p1"), more(b"f3"), more(b"f4"), between(b"p2"), two()],
        &[
            Said::Pong(b"p1".to_vec()),
            Said::Pong(b"p2".to_vec()),
            Said::text("fragment1f2f3f4fragment2"),
        ],
    );
    // 6.1.2, 6.1.3: fragments without payload.
    says_back_chopped(&[frame(TEXT, b""), more(b""), frame(FIN, b"")], &[Said::text("")]);
    says_back_chopped(
        &[frame(TEXT, b""), more(b"middle"), frame(FIN, b"")],
        &[Said::text("middle")],
    );
}

#[test]
fn section_5_fragments_out_of_place_fail() {
    // 5.1, 5.2
    fails(&[frame(PING, b"one"), frame(FIN, b"two")], &[], 1002);
    fails(&[frame(PONG, b"one"), frame(FIN, b"two")], &[], 1002);
    // 5.9 to 5.14
    for fin in [FIN, 0] {
        fails(&[frame(fin, b"non-continuation payload"), text("Hello")], &[], 1002);
    }
    // 5.15
    let whole = [frame(TEXT, b"fragment1"), frame(FIN, b"fragment2")].concat();
    let echoed = [Said::text("fragment1fragment2")];
    fails(&[whole, frame(CONTINUATION, b"fragment3"), text("fragment4")], &echoed, 1002);
    // 5.16, 5.17
    fails(&[frame(CONTINUATION, b"1"), frame(TEXT, b"2"), frame(FIN, b"3")], &[], 1002);
    // 5.18
    fails(&[frame(TEXT, b"fragment1"), frame(FIN | TEXT, b"fragment2")], &[], 1002);
}

#[test]
fn section_6_text_is_utf8_and_is_judged_as_it_comes() {
    let good = [
        "Hello-µ@ßöäüàá-UTF-8!!",
        "κόσμε",
        "\u{0}",
        "\u{80}\u{800}\u{10000}",
        "\u{7F}\u{7FF}\u{FFFF}\u{10FFFF}",
        "\u{D7FF}\u{E000}\u{FFFD}",
        "\u{FFFE}\u{1FFFF}\u{2FFFE}",
    ];
    for words in good {
        says_back_chopped(&[text(words)], &[Said::text(words)]);
        // 6.2: each byte a fragment.
        says_back(&[fragments(TEXT, words.as_bytes(), 1)], &[Said::text(words)]);
    }
    let bad: [&[u8]; 9] = [
        b"\xCE\xBA\xE1\xBD\xB9\xCF\x83\xCE\xBC\xCE\xB5\xED\xA0\x80edited",
        b"\xF8\x88\x80\x80\x80",
        b"\xFC\x84\x80\x80\x80\x80",
        b"\xC0\xAF",
        b"\xE0\x80\xAF",
        b"\xF4\x90\x80\x80",
        b"\xED\xAD\xBF\xED\xBF\xBF",
        b"\x80",
        b"\xFE\xFE\xFF\xFF",
    ];
    for words in bad {
        fails(&[frame(FIN | TEXT, words)], &[], 1007);
        fails(&[fragments(TEXT, words, 1)], &[], 1007);
    }
    // 6.3.2, cut off within a character.
    fails(&[frame(FIN | TEXT, "κόσμ".as_bytes().split_last().expect("it has bytes").1)], &[], 1007);
}

#[test]
fn section_6_4_bad_text_fails_before_its_message_ends() {
    let good = "κόσμε".as_bytes();
    // In a fragment that is not the last.
    fails(&[frame(TEXT, good), frame(CONTINUATION, b"\xF4\x90")], &[], 1007);
    // In a frame of which the rest never comes.
    let message = [good, b"\xF4\x90\x80\x80edited"].concat();
    let begun = frame(FIN | TEXT, &message);
    fails(&[begun[..begun.len() - 8].to_vec()], &[], 1007);
}

#[test]
fn section_7_the_closing_handshake() {
    // 7.1.1
    says_back(&[text("Hello World!")], &[Said::text("Hello World!")]);
    // 7.1.2 to 7.1.4: nothing after a close frame counts.
    for late in [close(1000), frame(FIN | PING, b""), text("late"), frame(FIN | 0x3, b"")] {
        let talk = Talk::plain(&[close(1000), late].concat());
        assert_eq!(talk.said, [Said::close(1000)]);
    }
    // 7.1.5: not even the end of a message.
    let unfinished = [frame(TEXT, b"fragment1"), close(1000), frame(FIN, b"fragment2")];
    assert_eq!(Talk::plain(&unfinished.concat()).said, [Said::close(1000)]);
    // 7.1.6
    let large = text_of(256 << 10, 0);
    let talk = Talk::plain(&[text(&large), close(1000), frame(FIN | PING, b"")].concat());
    assert_eq!(talk.said, [Said::Text(large), Said::close(1000)]);
    // 7.3.1
    assert_eq!(Talk::plain(&frame(FIN | CLOSE, b"")).said, [Said::Close(None)]);
    // 7.3.3 to 7.3.5
    for reason in ["", "Hello World!", &"*".repeat(123)] {
        let talk = Talk::plain(&frame(FIN | CLOSE, &close_payload(1000, reason)));
        assert_eq!(talk.said, [Said::close(1000)]);
    }
    // 7.3.2, 7.3.6, 7.5.1
    fails(&[frame(FIN | CLOSE, b"a")], &[], 1002);
    fails(&[frame(FIN | CLOSE, &close_payload(1000, &"*".repeat(124)))], &[], 1002);
    fails(&[frame(FIN | CLOSE, b"\x03\xE8\xCE\xBA\xED\xA0\x80")], &[], 1007);
}

#[test]
fn section_7_close_codes() {
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        assert_eq!(Talk::plain(&close(code)).said, [Said::close(code)], "{code}");
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        fails(&[close(code)], &[], 1002);
    }
}

#[test]
fn section_9_large_messages_whole() {
    for len in [64 << 10, 1 << 20, 16 << 20] {
        let (words, bytes) = (text_of(len, 0), bytes_of(len, 0));
        says_back(&[text(&words)], &[Said::Text(words)]);
        says_back(&[frame(FIN | BINARY, &bytes)], &[Said::Binary(bytes)]);
    }
    fails(&[frame(FIN | BINARY, &bytes_of((16 << 20) + 1, 0))[..14].to_vec()], &[], 1009);
}

#[test]
fn section_9_large_messages_in_fragments_and_chops() {
    let (words, bytes) = (text_of(4 << 20, 0), bytes_of(4 << 20, 0));
    for fragment_len in [64, 1 << 10, 64 << 10, 4 << 20] {
        let fragmented = fragments(TEXT, words.as_bytes(), fragment_len);
        says_back(&[fragmented], &[Said::text(&words)]);
        let fragmented = fragments(BINARY, &bytes, fragment_len);
        says_back(&[fragmented], &[Said::Binary(bytes.clone())]);
    }
    let (words, bytes) = (text_of(1 << 20, 0), bytes_of(1 << 20, 0));
    for write_len in [64, 997, 2_048] {
        let input = [text(&words), frame(FIN | BINARY, &bytes), close(1000)].concat();
        let talk = Talk::chopped(&input, write_len);
        let expected = [Said::text(&words), Said::Binary(bytes.clone()), Said::close(1000)];
        assert!(talk.said == expected, "in writes of {write_len} bytes");
    }
}

#[test]
fn section_9_many_messages() {
    for len in [0, 16, 64, 256, 1_024, 4_096] {
        let words: Vec<String> = (0..1_000).map(|at| text_of(len, at as u8)).collect();
        let frames: Vec<Vec<u8>> = words.iter().map(|words| text(words)).collect();
        says_back(&frames, &words.iter().map(|words| Said::text(words)).collect::<Vec<_>>());
    }
}

#[test]
fn section_10_a_message_in_automatic_fragments() {
    let words = "*".repeat(65_536);
    says_back(&[fragments(TEXT, words.as_bytes(), 1_300)], &[Said::Text(words)]);
}

#[test]
fn a_handshake_that_asks_for_no_websocket_is_refused() {
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = talk::refused(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
    }
}

#[test]
fn a_client_that_leaves_without_a_word_is_let_go() {
    talk::serve_with(talk::OPTIONS, |socket: TcpStream| drop(socket));
}
