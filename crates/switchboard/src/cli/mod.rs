//! The command line: the arguments of each command, and the exit codes.

/// Like `eprintln!`, but does not panic if standard error cannot be written, as on a full disk:
/// the message is lost, and the exit code still tells the result.
macro_rules! complain {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod append;
mod client;
mod config;
mod data;
mod delivery;
mod exchanges;
mod generate;
mod health;
mod listen;
mod mailbox;
mod mailboxes;
mod output;
#[cfg(test)]
mod records;
mod repair;
mod report;
mod send;
mod serve;
mod settings;
mod state;
mod store;
mod token;

use std::process::ExitCode;
use std::{env, io};

use clap::{Parser, Subcommand};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use settings::Settings;

/// A broker for messages between devices: a device connects by WebSocket, is given an id, and sends
/// text to other ids
///
/// Without a command the server starts: on port 8080 of every address, or as switchboard.toml,
/// SWITCHBOARD_* variables and the options below say.
#[derive(Parser, Debug)]
#[command(
    name = "switchboard",
    version = VERSION,
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"),
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start the server; the same as no command
    Serve(Settings),
    /// Show or check the configuration without starting
    #[command(subcommand)]
    Config(config::Command),
    /// Send a message to a device and report how far it got
    #[command(after_help = send::EXAMPLES)]
    Send(send::Args),
    /// Be a device: print its id, then whatever arrives, until Ctrl-C
    #[command(after_help = listen::EXAMPLES)]
    Listen(listen::Args),
    /// Ask a server whether it is ready: exit code 0 if so, else 1 and the reason
    #[command(
        after_help = health::EXAMPLES,
        // Most server options are hidden: they are accepted, but do not tell where the server
        // is.
        mut_args(|arg| {
            let others = ["shards", "tls_key", "data_dir", "memory", "log_level"];
            let is_other = others.contains(&arg.get_id().as_str());
            arg.hide(is_other)
        }),
    )]
    Health(health::Args),
    /// Print a token by which a device proves its name
    #[command(after_help = token::EXAMPLES)]
    Token(token::Args),
    /// Inspect the mailboxes of a stopped server
    #[command(subcommand, after_help = mailbox::EXAMPLES)]
    Mailbox(mailbox::Command),
    /// Check or repair the store of a stopped server
    #[command(subcommand)]
    Store(store::Command),
    /// Put load on a server on this machine and measure it
    Bench(crate::bench::Args),
    /// Print a script that makes a shell complete commands and options
    #[command(after_help = generate::COMPLETIONS)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write a man page for each command
    #[command(after_help = generate::MAN)]
    Man {
        /// The directory to write to; created if it does not exist
        #[arg(value_name = "DIR")]
        directory: std::path::PathBuf,
    },
}

/// With the commit if it was built from a clone; build.rs finds it.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("BUILT_FROM"));

const EXAMPLES: &str = "\
Examples:
  switchboard                                   start the server on port 8080
  switchboard --port 9000 --shards 2            elsewhere, on two threads
  switchboard --tls-cert c.pem --tls-key k.pem  serve wss:// and https://
  switchboard config print --default            every setting, described
  switchboard listen                            be a device on a terminal
  switchboard send 100000000 hello              send it something";

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for the server and listen: ended as asked; for send: delivered or
     accepted
  1  failed while running; health: not ready, not reached, or wrong usage
  2  wrong usage or configuration; nothing was started or sent
  3  send, listen: could not connect
  4  send: rejected, there is no such device; mailbox: the same
  6  send: unknown, no answer came; listen: the connection ended
  7  send: stored, and not delivered in time
  8  send: rejected, for the reason that is told
  9  send: refused, expired, evicted or cancelled";

/// Exit code of the process; [`EXIT_CODES`] describes them to users. 5 was once used by the text
/// protocol's duplicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotConnected = 3,
    NoSuchDevice = 4,
    ConnectionEnded = 6,
    Stored = 7,
    Rejected = 8,
    NotDelivered = 9,
}

impl Exit {
    /// All codes but success, the worst first.
    const ALL: [Exit; 9] = [
        Exit::Failed,
        Exit::Usage,
        Exit::NotConnected,
        Exit::ConnectionEnded,
        Exit::Rejected,
        Exit::NoSuchDevice,
        Exit::NotDelivered,
        Exit::Stored,
        Exit::Done,
    ];

    /// Returns the worse of two.
    fn worse(self, other: Exit) -> Exit {
        let either = Exit::ALL.into_iter().find(|&exit| exit == self || exit == other);
        either.expect("all are in the list")
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Ignored if it fails, as only a limit on the size of files makes a difference.
    let _: io::Result<()> = outlive_file_size_limit();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // A HEALTHCHECK may end with 0 or 1 only: Docker reserves 2.
        Err(error)
            if error.use_stderr() && env::args_os().nth(1).is_some_and(|arg| arg == "health") =>
        {
            // Ignored if nobody reads it; the exit code says it as well.
            let _: io::Result<()> = error.print();
            return Exit::Failed.into();
        }
        Err(error) => error.exit(),
    };
    match cli.command.unwrap_or(Command::Serve(cli.settings)) {
        Command::Serve(settings) => serve::run(&settings).into(),
        Command::Config(command) => config::run(&command).into(),
        Command::Send(args) => send::run(&args).into(),
        Command::Listen(args) => listen::run(&args).into(),
        Command::Health(args) => health::run(&args).into(),
        Command::Token(args) => token::run(&args).into(),
        Command::Mailbox(command) => mailbox::run(&command).into(),
        Command::Store(command) => store::run(&command).into(),
        Command::Bench(args) => crate::bench::run(args).unwrap_or_else(|e| {
            complain!("switchboard: cannot run the bench: {e:#}");
            Exit::Usage.into()
        }),
        Command::Completions { shell } => generate::completions(shell).into(),
        Command::Man { directory } => generate::man_pages(&directory).into(),
    }
}

/// Lets a write beyond the limit on the size of files (`ulimit -f`) fail with an error, which is
/// handled as any other; by default the signal SIGXFSZ ends the process.
fn outlive_file_size_limit() -> io::Result<()> {
    // Only to register a handler, which stays when the runtime is gone.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_may_be_left_out() {
        for line in
            ["switchboard --port 1 --set shards=2", "switchboard serve --port 1 --set shards=2"]
        {
            let cli = parse(line).unwrap();
            let settings = match cli.command {
                Some(Command::Serve(settings)) => settings,
                None => cli.settings,
                other => panic!("{other:?}"),
            };
            let keys: Vec<_> = settings.flags().into_iter().map(|flag| flag.key).collect();
            assert_eq!(keys, ["port", "shards"], "{line}");
        }
    }

    #[test]
    fn server_options_before_another_command_are_refused() {
        let error = parse("switchboard --port 1 send 100000000 x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ArgumentConflict);
    }

    #[test]
    fn an_id_must_be_one() {
        for id in ["a/b", "-1", "01", "1.5"] {
            assert!(parse(&format!("switchboard send {id} hello")).is_err(), "{id}");
            assert!(parse(&format!("switchboard listen --watch={id}")).is_err(), "{id}");
        }
    }

    #[test]
    fn set_takes_a_key_and_a_value() {
        assert!(parse("switchboard --set shards").is_err());
        assert!(parse("switchboard --set =4").is_err());
        assert!(parse("switchboard --set tls_cert=").is_ok());
    }

    #[test]
    fn every_exit_code_is_documented() {
        let table = include_str!("../../../../docs/operations.md");
        let (_, table) = table.split_once("## Exit codes").unwrap();
        let (table, _) = table.split_once("\n## ").unwrap();
        for exit in 0..=10 {
            let is_one = Exit::ALL.iter().any(|&one| one as u8 == exit);
            let in_help = EXIT_CODES.lines().any(|line| line.starts_with(&format!("  {exit}  ")));
            let in_docs = table.lines().any(|line| line.starts_with(&format!("| {exit} |")));
            assert_eq!((in_help, in_docs), (is_one, is_one), "{exit}");
        }
    }

    #[test]
    fn help_fits_a_terminal() {
        let lines = [
            EXAMPLES,
            EXIT_CODES,
            send::EXAMPLES,
            listen::EXAMPLES,
            health::EXAMPLES,
            token::EXAMPLES,
            mailbox::EXAMPLES,
            generate::COMPLETIONS,
            generate::MAN,
        ];
        let lines = lines.map(str::lines);
        for line in lines.into_iter().flatten() {
            assert!(line.len() <= 80, "{line}");
        }
    }
}
