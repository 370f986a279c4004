//! Sends messages over one connection, many at a time, and tracks the progress of each.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::time::Duration;

use switchboard_client::Ending;
use switchboard_client::v1::{
    Accepted, Ack, Cursor, Durability, Event, OpenError, Outcome, Outgoing, Receipt, RejectCode,
    SendError, Session, SessionOptions, State, Word,
};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Exit;
use super::report::{Report, Status};
use super::send::{Args, print};
use super::state::{StateFile, StateFileError};

/// Maximum number of messages in progress. Far below the number of outcomes that a server lets
/// one device ask for (1,000).
const WINDOW: usize = 128;

/// Sends the messages of `input` and prints a result for each. Returns the worst exit code.
pub(super) async fn send(args: &Args, input: Receiver<io::Result<Vec<u8>>>) -> Exit {
    let started = Instant::now();
    let (session, file) = match open(args).await {
        Ok(opened) => opened,
        Err(status) => return not_sent(args, input, status).await,
    };
    let mut delivery = Delivery::new(args, session, started);
    let worst = delivery.run(input).await;
    let state = delivery.session.close().await;
    match file.map(|file| file.save(&state)) {
        Some(Err(error)) => {
            complain!("switchboard: {error}");
            worst.worse(Exit::Failed)
        }
        _ => worst,
    }
}

/// Opens the session. Its identity is on disk before anything is sent, as only the same device
/// gets the outcomes.
async fn open(args: &Args) -> Result<(Session, Option<StateFile>), Status> {
    let failed = |error: StateFileError| Status::Failed(error.to_string());
    let file = args.state_file().map_err(failed)?;
    let state = match &file {
        Some(file) => file.load().map_err(failed)?,
        None => {
            let token = args.server.token().map(|source| source.read());
            State { token: token.transpose().map_err(failed)?, ..State::default() }
        }
    };
    let options = SessionOptions {
        connect: args.server.options(),
        ephemeral: !args.is_kept(),
        // An ephemeral device's message ids end with it: a retry by the next one could deliver
        // twice.
        reconnect: args.is_kept(),
        ack: Ack::ByHand,
        ..SessionOptions::default()
    };
    let opened = Session::open(&args.server.url, options, state).await;
    let session = opened.map_err(|error: OpenError| Status::NotConnected {
        exit: args.server.exit_of(&error),
        reason: args.server.cannot_connect(&error, file.as_ref()),
    })?;
    match file.as_ref().map(|file| file.save(&session.state())) {
        Some(Err(error)) => {
            session.close().await;
            Err(failed(error))
        }
        _ => Ok((session, file)),
    }
}

/// Reports that there was no connection; with --lines once, since nothing was read.
async fn not_sent(args: &Args, mut input: Receiver<io::Result<Vec<u8>>>, status: Status) -> Exit {
    let text = if args.lines { None } else { input.recv().await };
    let message = args.message(text.and_then(Result::ok).unwrap_or_default());
    let mut report = message.map_or_else(|report| *report, |it| Report::new(it, Status::Accepted));
    report.status = status;
    print(args, &report)
}

/// A message in progress.
struct Slot {
    message: Outgoing,
    accepted: Option<Accepted>,
    /// Deadline for the server's reply, then for the outcome.
    until: Instant,
    /// An outcome that arrived before the reply.
    early: Option<Status>,
    /// The result, once it is known.
    status: Option<Status>,
}

impl Slot {
    fn new(message: Outgoing, until: Instant, status: Option<Status>) -> Slot {
        Slot { message, accepted: None, until, early: None, status }
    }
}

struct Delivery<'a> {
    args: &'a Args,
    session: Session,
    from: String,
    /// In the order of the input, which is also the order of the results.
    slots: VecDeque<Slot>,
    /// Number of the first slot.
    first: u64,
    replies: JoinSet<(u64, Result<Accepted, SendError>)>,
    refusals: JoinSet<()>,
    /// Maximum number of messages in progress: one until the server has replied to the first.
    window: usize,
    asks_receipts: bool,
    /// Ids of stored messages that were not acked in time. A device acks in order, so while
    /// there is one, nothing behind it is acked: later messages ask for no outcome, as the
    /// number that may be asked for at once is limited.
    overdue: HashSet<String>,
    /// False once something has come that is not ours to ack: an ack covers everything before
    /// it.
    may_ack: bool,
    /// Cursor of the last outcome that was received and is not acked.
    taken: Option<Cursor>,
    /// Deadline for the reply to the first message.
    replied_until: Option<Instant>,
    ending: Option<Ending>,
    worst: Exit,
}

impl<'a> Delivery<'a> {
    fn new(args: &'a Args, session: Session, started: Instant) -> Delivery<'a> {
        let from = session.id().to_owned();
        Delivery {
            args,
            session,
            from,
            slots: VecDeque::new(),
            first: 0,
            replies: JoinSet::new(),
            refusals: JoinSet::new(),
            window: 1,
            asks_receipts: args.receipt || !args.wait.is_zero(),
            overdue: HashSet::new(),
            // An outcome requested by --receipt is left for `listen`.
            may_ack: !args.receipt,
            taken: None,
            replied_until: (!args.lines).then_some(started + args.server.timeout),
            ending: None,
            worst: Exit::Done,
        }
    }

    async fn run(&mut self, mut input: Receiver<io::Result<Vec<u8>>>) -> Exit {
        let mut is_read = false;
        while !is_read || !self.slots.is_empty() {
            let has_room = self.slots.len() < self.window;
            let next_due = self.slots.iter().filter(|slot| slot.status.is_none());
            let next_due = next_due.map(|slot| slot.until).min();
            tokio::select! {
                // Events come first: they free slots, and are acked before more is sent.
                biased;
                event = self.session.next(), if self.ending.is_none() => self.heard(event),
                Some(replied) = self.replies.join_next() => {
                    let (number, reply) = replied.expect("waiting for a reply does not panic");
                    self.replied(number, reply).await;
                }
                Some(_) = self.refusals.join_next() => self.ack(),
                () = sleep_until(next_due.unwrap_or_else(Instant::now)), if next_due.is_some() => {
                    self.time_is_over();
                }
                line = input.recv(), if !is_read && has_room => match line {
                    Some(Ok(line)) => self.begin(line).await,
                    Some(Err(error)) => {
                        complain!("switchboard: cannot read standard input: {error}");
                        self.worst = self.worst.worse(Exit::Failed);
                        is_read = true;
                    }
                    None => is_read = true,
                },
            }
            if !is_read && self.stops() {
                is_read = true;
            }
            self.print_known();
        }
        self.worst
    }

    /// Returns true if nothing more can be sent; the rest of the input stays unsent.
    fn stops(&mut self) -> bool {
        if self.ending.is_none() && self.worst != Exit::Failed {
            return false;
        }
        if self.args.lines
            && let Some(ending) = &self.ending
        {
            complain!("switchboard: {ending}; lines without a result were not sent");
            self.worst = self.worst.worse(Exit::ConnectionEnded);
        }
        true
    }

    async fn begin(&mut self, line: Vec<u8>) {
        let timeout = self.args.server.timeout;
        let until = self.replied_until.unwrap_or_else(|| Instant::now() + timeout);
        match self.args.message(line) {
            Ok(mut message) => {
                let asks = self.asks_receipts && self.overdue.is_empty();
                message.receipt = self.args.receipt || asks;
                self.slots.push_back(Slot::new(message, until, None));
                self.say(self.first + self.slots.len() as u64 - 1).await;
            }
            Err(report) => {
                let Report { message, status, .. } = *report;
                self.slots.push_back(Slot::new(message, until, Some(status)));
            }
        }
    }

    /// Passes the message to the session. This waits while the server is unreachable.
    async fn say(&mut self, number: u64) {
        let Some(slot) = self.slots.get_mut((number - self.first) as usize) else { return };
        let begun = self.session.device().begin_send(slot.message.clone());
        match timeout_at(slot.until, begun).await {
            Ok(Ok(reply)) => {
                self.replies.spawn(async move { (number, reply.await) });
            }
            Ok(Err(error)) => slot.status = Some(status_of(error, self.args)),
            Err(_) => slot.status = Some(Status::Unknown(no_answer(self.args.server.timeout))),
        }
    }

    async fn replied(&mut self, number: u64, reply: Result<Accepted, SendError>) {
        self.window = WINDOW;
        // The result of a message that timed out has been printed already.
        let Some(index) = number.checked_sub(self.first) else { return };
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        if slot.status.is_some() {
            return;
        }
        match reply {
            Ok(accepted) => {
                let asked = slot.message.receipt && !self.args.wait.is_zero();
                let is_overdue = !self.overdue.is_empty();
                slot.until = Instant::now() + self.args.wait;
                slot.status = match asked {
                    true => slot.early.take(),
                    false if is_overdue && is_kept(&accepted) => Some(Status::Stored(None)),
                    false => Some(Status::Accepted),
                };
                slot.accepted = Some(accepted);
            }
            Err(SendError::Rejected(why)) if may_go_without(slot, self.args, &why.code) => {
                slot.message.receipt = false;
                self.asks_receipts = false;
                self.say(number).await;
            }
            Err(error) => slot.status = Some(status_of(error, self.args)),
        }
    }

    fn heard(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Outcome(receipt)) => self.ended(receipt),
            Some(Event::Message(message)) if self.is_deaf() => {
                // This tells its sender, and lets the outcomes pushed after it be acked.
                let device = self.session.device().clone();
                self.refusals.spawn(async move {
                    let _ = device.refuse(message.cursor, Some("it only sends")).await;
                });
            }
            Some(Event::Message(_)) => self.may_ack = false,
            Some(Event::Closed(ending)) => self.close(Some(ending)),
            None => self.close(None),
            Some(_) => {}
        }
    }

    /// Returns true if nobody will ever read what is sent to this device.
    fn is_deaf(&self) -> bool {
        !self.args.is_kept() && self.args.server.token().is_none()
    }

    fn ended(&mut self, receipt: Receipt) {
        let slot = self.slots.iter_mut().find(|slot| slot.message.id == receipt.id);
        let is_ours = slot.is_some() | self.overdue.remove(&receipt.id);
        self.may_ack &= is_ours;
        if let Some(slot) = slot {
            let known = if slot.accepted.is_some() { &mut slot.status } else { &mut slot.early };
            known.get_or_insert(status_of_outcome(&receipt));
        }
        if self.may_ack {
            self.taken = Some(receipt.cursor);
            self.ack();
        }
    }

    /// Acks the outcomes received. An ack covers everything before it, so pending refusals must
    /// complete first.
    fn ack(&mut self) {
        if self.refusals.is_empty()
            && let Some(cursor) = self.taken.take()
        {
            self.session.device().ack(cursor);
        }
    }

    /// Ends the session: no more outcomes will come. Missing replies are reported as errors.
    fn close(&mut self, ending: Option<Ending>) {
        let reason = "the session ended".to_owned();
        let ending = ending.unwrap_or(Ending { code: 1006, reason });
        for slot in self.slots.iter_mut().filter(|slot| slot.accepted.is_some()) {
            slot.status.get_or_insert(Status::Stored(Some(ending.clone())));
        }
        self.ending = Some(ending);
    }

    fn time_is_over(&mut self) {
        let now = Instant::now();
        let unknown = || Status::Unknown(no_answer(self.args.server.timeout));
        for slot in &mut self.slots {
            if slot.status.is_some() || slot.until > now {
                continue;
            }
            slot.status = Some(match &slot.accepted {
                // The outcome of the first send may have been reported long ago.
                Some(accepted) if accepted.duplicate => Status::Accepted,
                Some(_) => {
                    self.overdue.insert(slot.message.id.clone());
                    Status::Stored(None)
                }
                None => unknown(),
            });
        }
    }

    fn print_known(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.status.is_some()) {
            let Some(Slot { message, accepted, status: Some(status), .. }) = self.slots.pop_front()
            else {
                return;
            };
            self.first += 1;
            let from = Some(self.from.clone());
            let report = Report { message, from, accepted, status };
            self.worst = self.worst.worse(print(self.args, &report));
        }
    }
}

/// Returns true if the message is stored in a mailbox; one to a device of the text protocol is
/// not.
fn is_kept(accepted: &Accepted) -> bool {
    accepted.durability != Word::Known(Durability::None)
}

/// Returns true if the message was rejected only for the receipt that this command itself
/// wanted: the receiver speaks the text protocol, which has no acks, or too many outcomes wait
/// for this device.
fn may_go_without(slot: &Slot, args: &Args, code: &Word<RejectCode>) -> bool {
    let is_for_receipt = match code {
        Word::Known(RejectCode::DurabilityUnavailable) => slot.message.ttl.is_none(),
        Word::Known(RejectCode::OutcomesFull) => true,
        _ => false,
    };
    is_for_receipt && slot.message.receipt && !args.receipt
}

fn status_of(error: SendError, args: &Args) -> Status {
    match error {
        SendError::Rejected(rejection) => rejection.into(),
        // With the code that the server would use.
        error @ SendError::TooLarge { .. } => {
            Status::Rejected { code: Word::Known(RejectCode::TooLarge), reason: error.to_string() }
        }
        error @ (SendError::Invalid(_) | SendError::InFlight) => Status::Rejected {
            code: Word::Known(RejectCode::BadRequest),
            reason: error.to_string(),
        },
        SendError::Ended(ending) if args.is_kept() => Status::Unknown(format!(
            "{ending}. Send it again under the same id, as the same device: it is delivered once"
        )),
        SendError::Ended(ending) => {
            Status::Unknown(format!("{ending}. If it is sent again it may be delivered twice"))
        }
    }
}

fn status_of_outcome(receipt: &Receipt) -> Status {
    match &receipt.outcome {
        Word::Known(Outcome::Delivered) => Status::Delivered,
        outcome => Status::Ended {
            outcome: outcome.clone(),
            maybe_seen: receipt.maybe_seen,
            reason: receipt.reason.clone(),
        },
    }
}

fn no_answer(timeout: Duration) -> String {
    format!("no answer within {}", humantime::format_duration(timeout))
}
