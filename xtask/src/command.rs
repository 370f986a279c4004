//! Finds programs and runs them in the project's root.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::step::Failure;

/// A program with its arguments, which runs in the project's root unless another folder is set.
pub(crate) struct Program {
    command: Command,
}

impl Program {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Program {
        let mut command = Command::new(program);
        command.current_dir(root());
        // `cargo xtask` describes the xtask package in these variables. Build scripts of
        // dependencies ask to be rerun when they change, so an inner cargo that inherits them
        // would rebuild for nothing.
        for (name, _) in env::vars_os() {
            let shown = name.to_string_lossy();
            if shown.starts_with("CARGO_PKG_") || shown.starts_with("CARGO_MANIFEST_") {
                command.env_remove(name);
            }
        }
        Program { command }
    }

    /// Returns the cargo that runs this program.
    pub(crate) fn cargo() -> Program {
        Program::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    /// Adds arguments, given in one string with spaces between them.
    pub(crate) fn args(mut self, words: &str) -> Program {
        self.command.args(words.split_whitespace());
        self
    }

    /// Adds one argument unchanged, spaces included.
    pub(crate) fn arg(mut self, word: impl AsRef<OsStr>) -> Program {
        self.command.arg(word);
        self
    }

    /// Runs the program in this folder.
    pub(crate) fn dir(mut self, folder: &Path) -> Program {
        self.command.current_dir(folder);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Program {
        self.command.env(name, value);
        self
    }

    /// Prints the command line, runs the program, and fails with its exit code.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let line = self.line();
        println!("    $ {line}");
        let status = self
            .command
            .status()
            .map_err(|error| Failure::new(format!("`{line}` could not be started: {error}")))?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::exited(format!("`{line}` failed: {status}"), status.code()))
    }

    /// Returns the output of the program without surrounding white space; `None` if it fails.
    pub(crate) fn output(mut self) -> Option<String> {
        let output = self.command.stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    }

    /// Returns the command line as a person would type it.
    fn line(&self) -> String {
        let program = Path::new(self.command.get_program());
        let mut line = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for arg in self.command.get_args() {
            line.push(' ');
            line.push_str(&arg.to_string_lossy());
        }
        line
    }
}

/// Returns the project's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the project's root")
}

/// Returns the first of these programs that is on `PATH`.
pub(crate) fn find(names: &[&str]) -> Option<PathBuf> {
    find_where(names, |_| true)
}

/// Returns the first of these programs on `PATH` that satisfies `will_do`.
pub(crate) fn find_where(names: &[&str], will_do: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    let mut places = names.iter().flat_map(|name| folders.iter().map(move |dir| dir.join(name)));
    places.find(|place| is_executable(place) && will_do(place))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_shown_as_one_would_type_it() {
        let program = Program::new("/usr/bin/env").args("true  --flag");
        assert_eq!(program.line(), "env true --flag");
    }

    #[test]
    fn a_failure_keeps_the_exit_code() {
        let failure = Program::new("false").run();
        assert_eq!(failure.unwrap_err().exit_code, 1);
    }

    #[test]
    fn a_program_is_found_on_the_path_by_its_first_known_name() {
        let found = find(&["no-such-program-anywhere", "sh"]).unwrap();
        assert!(found.ends_with("sh"));
        assert_eq!(find(&["no-such-program-anywhere"]), None);
    }
}
