//! `/metrics`, by what a real server shows and promtool says.

mod formats;
mod process;

use std::io::Write;
use std::process::{Command, Stdio};

/// Runs promtool with this on its standard input; it must find nothing to say.
fn promtool(arguments: &str, input: &str) {
    let mut promtool = Command::new("promtool")
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(
            "`promtool` checks metrics and alerts: install it (Debian: apt-get install prometheus)",
        );
    let mut stdin = promtool.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    assert!(output.status.success(), "promtool {arguments}: {}\n{}", said.concat(), output.status);
}
