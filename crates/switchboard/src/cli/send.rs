//! `switchboard send`: sends a message, or one for each line of its input, and prints the
//! results.

use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::time::Duration;

use switchboard_client::v1::{Outgoing, RejectCode, Word};
use switchboard_proto::v1::{ID_LEN_MAX, PublicId, check_body};
use tokio::sync::mpsc::{self, Receiver};

use super::Exit;
use super::client::{Server, block_on, device, time};
use super::delivery;
use super::output;
use super::report::{Report, Status};
use super::state::{StateFile, StateFileError};

pub(super) const EXAMPLES: &str = "\
Examples:
  switchboard send 100000000 'hello, world'
  switchboard send --url wss://example.org --token-file me.token alice hello
  switchboard send --ttl 1h --wait 1min alice 'back at noon'
  switchboard send --body-json alice '{\"lamp\": true}'
  date | switchboard send alice -
  tail -f events.log | switchboard send --lines --json collector

Results, one word each, the same with --json:
  delivered      the device acked it
  stored         the server has it, and the device did not ack it within --wait:
                 it waits until the device comes back
  accepted       the server has it, and more was not asked for (--wait 0s) or
                 is not known (a device of the text protocol sends no acks)
  rejected       the server does not take it; the code says why
  refused, expired, evicted, cancelled    it ended so within --wait
  unknown        no answer came; it may have been delivered
  not_connected  there was no connection; nothing was sent

Exit codes: 0 delivered or accepted, 1 failed, 2 wrong usage,
  3 not connected, 4 rejected: no such device, 6 unknown, 7 stored,
  8 rejected, 9 refused, expired, evicted or cancelled;
  with --lines that of the worst result, in the order 1 3 6 8 4 9 7 0";

/// A message, its receiver, and the sender.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The device to send to: its id, which its page or `switchboard listen` shows, or its name
    #[arg(value_parser = device)]
    pub(super) to: PublicId,
    /// The message; - reads it from standard input, without one final newline
    #[arg(value_name = "MSG", allow_hyphen_values = true, required_unless_present = "lines")]
    message: Option<String>,
    /// Send each line of standard input as a message, over one connection; prints a result for
    /// each
    #[arg(long, conflicts_with_all = ["message", "message_id"])]
    pub(super) lines: bool,
    #[command(flatten)]
    pub(super) server: Server,
    /// Print results as JSON objects, one per line
    #[arg(long)]
    pub(super) json: bool,
    /// Wait this long for the device's ack; 0s does not wait
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    pub(super) wait: Duration,
    /// Give up on the message after this time, such as 1h [default: never]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(super) ttl: Option<Duration>,
    /// Keep the outcome for the sender, to be read by `listen`; requires --state, --durable or
    /// --token-file
    #[arg(long)]
    pub(super) receipt: bool,
    /// Send as the same device in every run.
    #[arg(
        help = "Send as the same device in every run, kept in $XDG_STATE_HOME/switchboard \
                [default: a device that ends with the command]",
        long,
        conflicts_with = "token_file"
    )]
    durable: bool,
    /// Send as the same device in every run, kept in this file, as `listen --state` keeps it
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Send under this id: a message that the same device sends again is accepted once
    /// [default: a random one]
    #[arg(long = "id", id = "message_id", value_name = "ID", value_parser = message_id)]
    message_id: Option<String>,
    /// The message is JSON, to be sent as it is [default: it is sent as a JSON string]
    #[arg(long)]
    pub(super) body_json: bool,
}

/// Sends, prints the results and returns the worst exit code.
pub(super) fn run(args: &Args) -> Exit {
    if args.server.is_twice_somebody(args.durable) {
        return Exit::Usage;
    }
    if args.receipt && !args.is_kept() {
        complain!("switchboard: --receipt requires --state FILE, --durable or --token-file FILE:");
        complain!(
            "  without one, no later command can connect as this device and hear the outcome"
        );
        return Exit::Usage;
    }
    let Some(message) = &args.message else {
        return block_on(delivery::send(args, input_lines()));
    };
    let text = match text(message) {
        Ok(text) => text,
        Err(e) => {
            complain!("switchboard: cannot read the message from standard input: {e}");
            return Exit::Failed;
        }
    };
    if let Err(fault) = args.check(&text) {
        complain!("switchboard: {fault}");
        return Exit::Usage;
    }
    let (lines, input) = mpsc::channel(1);
    lines.try_send(Ok(text.into_bytes())).expect("the channel is open and has room");
    drop(lines);
    block_on(delivery::send(args, input))
}

impl Args {
    /// Returns true if the sender outlives the command. The server keeps nothing of a sender
    /// that does not.
    pub(super) fn is_kept(&self) -> bool {
        let is_asked_to_last = self.receipt || self.message_id.is_some();
        self.durable || self.state.is_some() || (is_asked_to_last && self.server.token().is_some())
    }

    /// Returns the file for the sender's identity, if it is kept.
    ///
    /// `listen --durable` has a separate file: two commands of one user with the same identity
    /// would disconnect each other.
    pub(super) fn state_file(&self) -> Result<Option<StateFile>, StateFileError> {
        match &self.state {
            Some(path) => Ok(Some(StateFile::new(path.clone(), self.server.token()))),
            None if self.durable => StateFile::of_user("send", &self.server.url).map(Some),
            None => Ok(None),
        }
    }

    /// Converts a text into a message, or returns the report of the reason why it is none.
    pub(super) fn message(&self, text: Vec<u8>) -> Result<Outgoing, Box<Report>> {
        let checked = match String::from_utf8(text) {
            Ok(text) => self.check(&text).map(|()| text),
            Err(_) => Err("the line is not UTF-8".to_owned()),
        };
        let to = self.to.to_string();
        let mut message = match &checked {
            Ok(text) if self.body_json => Outgoing::json(to, text),
            Ok(text) => Outgoing::text(to, text),
            Err(_) => Outgoing::text(to, ""),
        };
        if let Some(id) = &self.message_id {
            message.id.clone_from(id);
        }
        message.ttl = self.ttl;
        match checked {
            Ok(_) => Ok(message),
            Err(reason) => {
                let code = Word::Known(RejectCode::BadRequest);
                let status = Status::Rejected { code, reason };
                Err(Box::new(Report::new(message, status)))
            }
        }
    }

    /// Checks a text before it is sent.
    fn check(&self, text: &str) -> Result<(), String> {
        if !self.body_json {
            return Ok(());
        }
        check_body(text.as_bytes()).map_err(|fault| {
            let before = text.as_bytes().get(..fault.at).unwrap_or_default();
            let before = String::from_utf8_lossy(before);
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
            format!("the message is not JSON: {} at line {line}, column {column}", fault.what)
        })
    }
}

/// Returns the lines of standard input, read one ahead of the receiver.
fn input_lines() -> Receiver<io::Result<Vec<u8>>> {
    let (lines, input) = mpsc::channel(1);
    // On a thread, because reading from a pipe or a terminal blocks. It ends with the process.
    std::thread::spawn(move || {
        for line in io::stdin().lock().split(b'\n') {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    input
}

fn text(message: &str) -> io::Result<String> {
    if message != "-" {
        return Ok(message.to_owned());
    }
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text)?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Prints a result; an error of printing decides the exit code only if nothing else failed.
pub(super) fn print(args: &Args, report: &Report) -> Exit {
    let exit = report.exit();
    if args.json {
        return exit.worse(output::print(&format!("{}\n", report.to_json())));
    }
    let line = report.to_text();
    match exit {
        Exit::Done | Exit::Stored => exit.worse(output::print(&format!("{line}\n"))),
        _ if args.lines => exit.worse(output::print(&format!("{line}\n"))),
        _ => {
            complain!("switchboard: {line}");
            exit
        }
    }
}

fn message_id(text: &str) -> Result<String, String> {
    match text.len() {
        1..=ID_LEN_MAX => Ok(text.to_owned()),
        _ => Err(format!("an id has 1 to {ID_LEN_MAX} bytes")),
    }
}
