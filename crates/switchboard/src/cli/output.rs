//! Writing to standard output, for people and for pipes.

use std::io::{self, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use switchboard_proto::v1::write_text_of_body;

use super::Exit;

/// Prints `text` unchanged and flushes. A reader that has left is not an error.
pub(super) fn print(text: &str) -> Exit {
    match write(text) {
        Ok(()) => Exit::Done,
        Err(e) => failed(&e),
    }
}

/// Writes `text` and flushes, so that a reader sees each line at once.
pub(super) fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Interval between checks of [`reader_left`].
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Completes once the reader of standard output has left; never if that cannot be detected, as
/// with a file.
pub(super) async fn reader_left() {
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        looks.tick().await;
        let stdout = io::stdout();
        // Poll reports errors whether they are requested or not.
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        let looked = rustix::event::poll(&mut polled, Some(&Timespec::default()));
        if looked.is_ok() && polled[0].revents().contains(PollFlags::ERR) {
            return;
        }
    }
}

/// Returns the exit code after standard output failed: success if its reader left, as in `| head
/// -1`.
pub(super) fn failed(error: &io::Error) -> Exit {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Exit::Done;
    }
    complain!("switchboard: cannot write to standard output: {error}");
    Exit::Failed
}

/// Returns `text` on one line, with control characters escaped: another device's text must
/// neither control this terminal nor pass for a line of ours.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_harmless(&mut out, c);
    }
    out
}

/// Returns `text` with all lines but the first indented, as no line of ours is. Control
/// characters other than tabs are escaped.
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
    // Line and paragraph separators, and characters that change the direction of writing.
    let misleads = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || misleads { out.extend(c.escape_default()) } else { out.push(c) }
}

/// Returns JSON on one line: without the white space between its parts, otherwise unchanged.
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
