//! `switchboard completions` and `switchboard man`: files that packages install beside the
//! binary.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Exit, output};

pub(super) const COMPLETIONS: &str = "\
Examples:
  switchboard completions bash > /etc/bash_completion.d/switchboard
  switchboard completions zsh > ~/.zfunc/_switchboard
  switchboard completions fish > ~/.config/fish/completions/switchboard.fish";

pub(super) const MAN: &str = "\
Examples:
  switchboard man ~/.local/share/man/man1 && man switchboard-send";

/// Prints the completion script for a shell.
pub(super) fn completions(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "switchboard", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

/// Writes `switchboard.1`, `switchboard-send.1` and so on to `directory`.
pub(super) fn man_pages(directory: &Path) -> Exit {
    let written = fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    match written {
        Ok(()) => Exit::Done,
        Err(error) => {
            complain!("switchboard: cannot write to {}: {error}", directory.display());
            Exit::Failed
        }
    }
}
