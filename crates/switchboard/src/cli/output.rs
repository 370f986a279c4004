//! Writing to standard output, for people and for pipes.

use std::io::{self, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use switchboard_proto::v1::write_text_of_body;

use super::Exit;

/// Prints `text` as it is, at once. A reader that left is no failure.
pub(super) fn print(text: &str) -> Exit {
    match write(text) {
        Ok(()) => Exit::Done,
        Err(e) => failed(&e),
    }
}

/// Writes `text` and flushes, so that a reader sees each line when it happens.
pub(super) fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// How often [`reader_left`] looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Completes when the reader of standard output has left; never where that cannot be seen, as with a
/// file.
pub(super) async fn reader_left() {
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        looks.tick().await;
        let stdout = io::stdout();
        // Errors are reported whether they are asked for or not.
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        let looked = rustix::event::poll(&mut polled, Some(&Timespec::default()));
        if looked.is_ok() && polled[0].revents().contains(PollFlags::ERR) {
            return;
        }
    }
}

/// How to end when standard output took no more: quietly if its reader left, as in `| head -1`.
pub(super) fn failed(error: &io::Error) -> Exit {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Exit::Done;
    }
    complain!("switchboard: cannot write to standard output: {error}");
    Exit::Failed
}

/// `text` in one line: what another device says must neither steer this terminal nor look like a
/// line of ours.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_harmless(&mut out, c);
    }
    out
}

/// `text` over as many lines as it has, all but the first indented: no line of ours begins so.
/// Other control characters are spelt out, but for tabs.
pub(super) fn indented(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\n    "),
            '\t' => out.push(c),
            c => push_harmless(&mut out, c),
        }
    }
    out
}

fn push_harmless(out: &mut String, c: char) {
    // Line and paragraph separators, and what reverses the direction of writing.
    let misleads = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || misleads { out.extend(c.escape_default()) } else { out.push(c) }
}

/// JSON as it stands, without the white space between its parts, and so in one line.
pub(super) fn one_line(json: &str) -> String {
    if json.starts_with('"') {
        return json.to_owned();
    }
    let mut out = Vec::with_capacity(json.len());
    write_text_of_body(&mut out, json.as_bytes());
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_comes_in_one_line_and_unchanged() {
        for (json, line) in [
            ("{ \"a\":\n[1e400, 2] }", "{\"a\":[1e400,2]}"),
            ("\"a b\"", "\"a b\""),
            ("12345678901234567890.0", "12345678901234567890.0"),
        ] {
            assert_eq!(one_line(json), line);
        }
    }

    #[test]
    fn control_characters_are_spelt_out() {
        assert_eq!(escaped("a\u{1b}[2Jb\r\u{9b}\n\t"), "a\\u{1b}[2Jb\\r\\u{9b}\\n\\t");
        assert_eq!(escaped("\u{202e}ö 😀\u{2028}"), "\\u{202e}ö 😀\\u{2028}");
    }

    #[test]
    fn a_line_that_another_device_wrote_begins_unlike_ours() {
        assert_eq!(indented("two\nlines\tö\r\n"), "two\n    lines\tö\\r\n    ");
        assert_eq!(indented("a\u{85}b\u{b}c"), "a\\u{85}b\\u{b}c");
    }
}
