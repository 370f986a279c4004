//! `switchboard mailbox`: shows the mailboxes of a stopped server, and drops one.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use switchboard_broker::Record;
use switchboard_proto::v1::DeviceRef;

use super::Exit;
use super::append::Appender;
use super::data::{self, Problem, read_all};
use super::mailboxes::{Entry, Mailbox, Mailboxes};
use super::output::{self, escaped, one_line};
use crate::clock;
use crate::store::{DataDir, LogOptions};

/// Subcommands of `switchboard mailbox`.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// List all mailboxes, with the messages that wait in them
    List {
        #[command(flatten)]
        data: data::Args,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show the messages that wait in a mailbox
    Show {
        /// The device's id or name
        id: String,
        #[command(flatten)]
        data: data::Args,
        /// Print one JSON object a line, bodies whole
        #[arg(long)]
        json: bool,
    },
    /// End a device as if it had been away for too long: its mailbox is removed, and after the next
    /// start senders who asked for the outcome are told that their messages were evicted
    Drop {
        /// The device's id or name
        id: String,
        #[command(flatten)]
        data: data::Args,
        /// Do not ask; required if standard input is not a terminal
        #[arg(long)]
        yes: bool,
    },
}

pub(super) const EXAMPLES: &str = "\
They work on the data directory of a stopped server.

Exit codes: 0 done, 1 failed, or the server runs, 2 wrong usage,
  4 no such device";

/// Maximum characters of a body shown as text.
const SHOWN_MAX: usize = 60;

/// Runs `command`.
pub(super) fn run(command: &Command) -> Exit {
    let (done, what) = match command {
        Command::List { data, json } => (list(data, *json), "list the mailboxes"),
        Command::Show { id, data, json } => (show(data, id, *json), "show the mailbox"),
        Command::Drop { id, data, yes } => (drop_device(data, id, *yes), "drop the mailbox"),
    };
    match done {
        Ok(text) => output::print(&text),
        Err(problem) => problem.report(what),
    }
}

fn read(disk: &DataDir, whole: Option<&str>) -> Result<Mailboxes, Problem> {
    let mut mailboxes = Mailboxes::with_bodies_of(whole);
    read_all(disk, |record| mailboxes.take(record)).map_err(Problem::failed)?;
    Ok(mailboxes)
}

fn find<'a>(mailboxes: &'a Mailboxes, id: &str) -> Result<&'a Mailbox, Problem> {
    let words = || format!("no device {id} has one");
    let none = || Problem { exit: Exit::NoSuchDevice, words: words() };
    mailboxes.find(id).ok_or_else(none)
}

fn list(data: &data::Args, as_json: bool) -> Result<String, Problem> {
    let mailboxes = read(&data.open()?, None)?;
    let mut out = String::new();
    if !as_json {
        out.push_str(&format!(
            "{:<24} {:>9} {:>12}  {}\n",
            "DEVICE", "MESSAGES", "BYTES", "AWAY SINCE"
        ));
    }
    for (id, mailbox) in mailboxes.sorted() {
        let (messages, bytes) =
            mailbox.waiting().fold((0, 0), |(count, sum), (_, entry)| (count + 1, sum + entry.len));
        if as_json {
            let row = json!({
                "device": id, "messages": messages, "bytes": bytes,
                "away_since_ms": mailbox.away_since_ms,
            });
            out.push_str(&format!("{row}\n"));
        } else {
            let away = mailbox.away_since_ms.map_or_else(|| "was connected".to_owned(), time);
            out.push_str(&format!("{id:<24} {messages:>9} {bytes:>12}  {away}\n"));
        }
    }
    Ok(out)
}

fn show(data: &data::Args, id: &str, as_json: bool) -> Result<String, Problem> {
    let mailboxes = read(&data.open()?, Some(id))?;
    let mailbox = find(&mailboxes, id)?;
    let now_ms = now_ms()?;
    let lines = mailbox.waiting().map(|(seq, entry)| {
        if as_json { line_json(seq, entry) } else { line_text(seq, entry, now_ms) }
    });
    Ok(lines.collect())
}

fn line_text(seq: u64, entry: &Entry, now_ms: u64) -> String {
    let Entry { from, id, len, at_ms, .. } = entry;
    let id = escaped(id);
    let age = humantime::format_duration(Duration::from_secs(now_ms.saturating_sub(*at_ms) / 1000));
    if let Some(outcome) = entry.outcome {
        return format!("{seq}  outcome of {id} to {from}: {outcome}  {age} old\n");
    }
    let expiry = match entry.expires_at_ms {
        Some(at_ms) if at_ms <= now_ms => "  expired".to_owned(),
        Some(at_ms) => format!("  expires {}", time(at_ms)),
        None => String::new(),
    };
    let receipt = if entry.receipt { "  receipt" } else { "" };
    let body = escaped(&one_line(entry.body.as_deref().unwrap_or_default()));
    let shown: String = body.chars().take(SHOWN_MAX).collect();
    let more = if shown.len() < body.len() { "..." } else { "" };
    format!("{seq}  from {from}  id {id}  {len} bytes  {age} old{expiry}{receipt}  {shown}{more}\n")
}

/// Formats an entry with its body as it was sent: parsing it could change its numbers.
fn line_json(seq: u64, entry: &Entry) -> String {
    let row = json!({
        "seq": seq, "from": entry.from, "id": entry.id, "bytes": entry.len, "at_ms": entry.at_ms,
        "expires_at_ms": entry.expires_at_ms, "receipt": entry.receipt,
        "outcome": entry.outcome.map(|outcome| Value::from(outcome.as_str())),
    });
    let row = row.to_string();
    match &entry.body {
        Some(body) => format!("{},\"body\":{}}}\n", &row[..row.len() - 1], one_line(body)),
        None => format!("{row}\n"),
    }
}

fn drop_device(data: &data::Args, id: &str, yes: bool) -> Result<String, Problem> {
    let is_asked = !yes && io::stdin().is_terminal();
    if !yes && !is_asked {
        return Err(Problem::usage("no terminal to ask for confirmation; give --yes"));
    }
    let disk = data.open_to_append()?;
    let mailboxes = read(&disk, None)?;
    let mailbox = find(&mailboxes, id)?;
    if is_asked && !agrees(&format!("End {id} with {} messages?", mailbox.waiting().count()))? {
        return Ok("nothing was dropped\n".to_owned());
    }
    let mut log = Appender::open(Arc::new(disk), LogOptions::default())?;
    // The next start evicts what waited for it.
    log.push(&Record::Gone { device: device(id)? })?;
    log.close()?;
    let messages = mailbox.waiting().count();
    let asked = mailbox.waiting().filter(|(_, entry)| entry.receipt).count();
    Ok(format!(
        "dropped {id}: {messages} messages; the next start of the server tells the senders of {asked}\n"
    ))
}

/// Asks on the terminal; any answer but yes means no.
fn agrees(question: &str) -> Result<bool, Problem> {
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(Problem::failed)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn device(id: &str) -> Result<DeviceRef<'_>, Problem> {
    DeviceRef::parse(id).ok_or_else(|| Problem::failed(format!("{id} is no device's id")))
}

fn time(at_ms: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
    humantime::format_rfc3339_seconds(at).to_string()
}

fn now_ms() -> Result<u64, Problem> {
    clock::now().map(|since| since.as_millis() as u64).map_err(Problem::failed)
}
