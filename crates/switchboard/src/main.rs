//! The `switchboard` command; `cli` says what it can do.

use std::process::ExitCode;

fn main() -> ExitCode {
    switchboard::cli::main()
}
