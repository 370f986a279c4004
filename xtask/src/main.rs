//! The project's own commands; `cargo xtask help` lists them.

mod browser;
mod command;
mod fuzz;
mod machine;
mod step;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
The project's own commands.

Usage: cargo xtask <command>

  test [--no-browser]          Check everything: format, lints, tests, fuzz targets, docs.
                               Stops at the first step that fails, with its exit code.
                               Wants strace, promtool, nginx, caddy, python3 with websockets and
                               venv, and Chromium for the page; apt installs them where this runs
                               as root. Linters come from PyPI into target/linters.
                               --no-browser leaves the page out.
  fuzz [target] [--seconds N]  Fuzz one target, or each in turn, for N seconds (default 60).
                               Wants a nightly toolchain and cargo-fuzz.
  help                         Print this.
";

/// A command line as the user gave it, understood.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Test(test::Options),
    Fuzz(fuzz::Options),
    Help,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match parse(&words) {
        Ok(Task::Test(options)) => test::run(&options),
        Ok(Task::Fuzz(options)) => fuzz::run(&options),
        Ok(Task::Help) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("xtask: {error}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn parse(words: &[String]) -> Result<Task> {
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["help" | "--help" | "-h"] | [] => Ok(Task::Help),
        ["test", options @ ..] => test::Options::parse(options).map(Task::Test),
        ["fuzz", options @ ..] => fuzz::Options::parse(options).map(Task::Fuzz),
        [unknown, ..] => bail!("there is no command {unknown:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(line: &str) -> Result<Task> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn commands_and_their_options_are_understood() {
        let test = |browser| Task::Test(test::Options { browser });
        assert_eq!(task("test").unwrap(), test(true));
        assert_eq!(task("test --no-browser").unwrap(), test(false));
        let fuzz = |target: Option<&str>, seconds| {
            Task::Fuzz(fuzz::Options { target: target.map(str::to_owned), seconds })
        };
        assert_eq!(task("fuzz").unwrap(), fuzz(None, 60));
        assert_eq!(task("fuzz codec --seconds 5").unwrap(), fuzz(Some("codec"), 5));
        assert_eq!(task("fuzz --seconds 5 codec").unwrap(), fuzz(Some("codec"), 5));
        assert_eq!(task("").unwrap(), Task::Help);
        assert_eq!(task("--help").unwrap(), Task::Help);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, named) in [
            ("tset", "tset"),
            ("test --browser", "--browser"),
            ("fuzz --seconds", "--seconds"),
            ("fuzz --seconds x", "\"x\""),
            ("fuzz --seconds 0", "\"0\""),
            ("fuzz --minutes 1", "--minutes"),
            ("fuzz codec handshake", "handshake"),
        ] {
            let error = task(line).unwrap_err().to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
    }
}
