//! The `switchboard` command; see `cli` for its subcommands.

use std::process::ExitCode;

fn main() -> ExitCode {
    switchboard::cli::main()
}
