//! Ledger of all messages, with their answers and ends: the truth with which the server's words are
//! compared.

use switchboard_broker::Moment;
use switchboard_proto::v1::{Durability, Outcome, RejectCode};

/// Every message of a world, by its serial number.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) messages: Vec<Message>,
    /// Number of sends that arrived, over all senders.
    pub(crate) arrived: u64,
    /// First deliveries, in order: sender, receiver, serial.
    pub(crate) sights: Vec<(Sender, usize, usize)>,
}

/// A client, in one incarnation of its device.
type Sender = (usize, u32);

/// One message, however often it was sent.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// The receiver's device id.
    pub(crate) address: String,
    pub(crate) id: String,
    pub(crate) body: String,
    pub(crate) durability: Option<Durability>,
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) receipt: bool,
    /// True if it was sent by the text protocol.
    pub(crate) is_text: bool,
    /// The earlier message that has the same id.
    pub(crate) reuses: Option<usize>,
    /// True if another message has its id.
    pub(crate) is_reused: bool,
    pub(crate) arrivals: Vec<Arrival>,
    /// Time at which its last send reached the receiver's shard.
    pub(crate) judged_at: Moment,
    /// Durability with which it was accepted, and the run in which its sender was told.
    pub(crate) accepted: Option<(Durability, u32)>,
    /// Time at which the sender was first told so.
    pub(crate) accepted_at: Moment,
    /// True once the receiver has it.
    pub(crate) is_seen: bool,
    /// True if it has it by the text protocol, so that a later push may repeat it.
    pub(crate) is_seen_by_text: bool,
    pub(crate) is_acked: bool,
    pub(crate) is_refused: bool,
    /// True if it was refused, and not acked before, in this run.
    pub(crate) is_refused_first: bool,
    /// True if a crash left an ack behind the refusal: it must not be told as acked.
    pub(crate) is_refused_for_good: bool,
    pub(crate) is_cancelled: bool,
    /// True if it may be cancelled although the connection that asked was not told.
    pub(crate) is_cancel_asked: bool,
    pub(crate) outcome: Option<(Outcome, bool)>,
    /// True if a retry may have made it two messages without breaking a promise.
    pub(crate) may_repeat: bool,
    /// True if an older backup was restored since: nothing is promised.
    pub(crate) is_void: bool,
    /// Number of arrivals when it was restored.
    pub(crate) arrivals_before_restore: Option<usize>,
}

/// One send, when it reached the server.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) order: u64,
    pub(crate) at: Moment,
    pub(crate) real_ms: u64,
    pub(crate) run: u32,
    /// The sender's and the receiver's incarnations at that time.
    pub(crate) incarnations: (u32, u32),
    pub(crate) answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// No answer, or one that leaves it open.
    Unknown,
    First,
    Duplicate,
    Rejected,
}

/// Window in which an id must be remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) ms: u64,
    pub(crate) ids_of_one: usize,
    /// A device with fewer ids loses none because of others.
    pub(crate) few: usize,
    /// No device loses any until there were more ids than this of all.
    pub(crate) ids: usize,
}

impl Ledger {
    /// Notes that a send reached the server; returns the number of this arrival.
    pub(crate) fn arrived(&mut self, serial: usize, mut arrival: Arrival, window: Window) -> usize {
        self.arrived += 1;
        arrival.order = self.arrived;
        let message = &self.messages[serial];
        // Each send counts, even one that was rejected: it may have been remembered for a while. So
        // does one of the same millisecond: their order is not in the store.
        let first = message.arrivals.first();
        let order = first.map_or(u64::MAX, |first| first.order);
        let at = first.map(|first| first.at);
        let counts = |other: &&Arrival| {
            other.order > order || (Some(other.at) == at && other.order != order)
        };
        let later = |other: &Message| other.arrivals.iter().filter(counts).count();
        let own = self.messages.iter().filter(|other| other.from == message.from);
        let own: usize = own.map(later).sum();
        let by_others = own + 1 >= window.few && self.arrived >= window.ids as u64;
        let is_forgotten = own + 1 >= window.ids_of_one || by_others;
        let message = &mut self.messages[serial];
        if let Some(first) = message.arrivals.first() {
            let is_weak = message.durability == Some(Durability::Memory)
                || message.is_text
                || message.accepted.is_some_and(|(durability, _)| durability < Durability::Disk);
            message.may_repeat |= is_forgotten
                || arrival.at.ms() - first.at.ms() >= window.ms
                || (is_weak && arrival.run != first.run)
                || arrival.incarnations != first.incarnations;
        }
        message.judged_at = arrival.at;
        message.arrivals.push(arrival);
        message.arrivals.len() - 1
    }

    /// Notes that a send reached the receiver's shard, which judges by the time of that whether it
    /// is a retry.
    pub(crate) fn judged(&mut self, serial: usize, at: Moment, window: Window) {
        let message = &mut self.messages[serial];
        message.judged_at = at;
        message.may_repeat |= at.ms() - message.arrivals[0].at.ms() >= window.ms;
    }

    /// Notes that the sender was told that it is accepted.
    pub(crate) fn accepted(
        &mut self,
        serial: usize,
        arrival: usize,
        durability: Durability,
        duplicate: bool,
        now: (Moment, u32),
    ) {
        let message = &mut self.messages[serial];
        let is_strict = !message.may_repeat && !message.is_void;
        message.arrivals[arrival].answer =
            if duplicate { Answer::Duplicate } else { Answer::First };
        if duplicate {
            assert!(
                message.arrivals.len() >= 2,
                "m{serial} was sent once and called a duplicate: {message:?}"
            );
        }
        match message.accepted {
            Some((first, _)) if is_strict => {
                assert!(duplicate, "m{serial} was accepted twice as new: {message:?}");
                assert_eq!(durability, first, "m{serial} has two durabilities: {message:?}");
            }
            Some(_) if duplicate => {}
            _ => {
                message.accepted = Some((durability, now.1));
                message.accepted_at = now.0;
            }
        }
        if let Some(asked) = message.durability {
            assert!(durability >= asked, "m{serial} got less than it asked for: {message:?}");
        }
    }

    /// Notes that the sender was told that it is rejected.
    pub(crate) fn rejected(
        &mut self,
        serial: usize,
        arrival: usize,
        code: RejectCode,
        window: Window,
    ) {
        if code == RejectCode::StoreUnavailable {
            return;
        }
        let message = &mut self.messages[serial];
        message.arrivals[arrival].answer = Answer::Rejected;
        if code != RejectCode::IdReused {
            // Nothing is kept of what went to a device without a mailbox once that is gone.
            let is_gone = code == RejectCode::NoSuchDevice
                && message.accepted.is_some_and(|(durability, _)| durability == Durability::None);
            let is_strict = !message.may_repeat && !message.is_void && !is_gone;
            assert!(
                !is_strict || message.accepted.is_none(),
                "m{serial} was accepted and then rejected ({code}): {message:?}"
            );
            return;
        }
        let judged_at = message.judged_at;
        let first = message.reuses.expect("only a used id is reused");
        let first = &self.messages[first];
        let is_over = first.accepted.is_some()
            && first.arrivals.iter().all(|arrival| arrival.answer != Answer::Unknown)
            && judged_at.since(first.accepted_at).as_millis() >= u128::from(window.ms);
        assert!(!is_over, "m{serial} was said to reuse an id whose window is over: {first:?}");
    }

    /// Notes that its sender cancels it, or whatever stands under its id by now.
    pub(crate) fn cancel_asked(&mut self, serial: usize) {
        let Message { from, to, ref id, .. } = self.messages[serial];
        let id = id.clone();
        let is_it = |other: &&mut Message| (other.from, other.to, &other.id) == (from, to, &id);
        for message in self.messages.iter_mut().filter(is_it) {
            message.is_cancel_asked = true;
        }
    }

    /// Notes that the receiver has it.
    pub(crate) fn seen(&mut self, serial: usize, is_text: bool) {
        let message = &mut self.messages[serial];
        let is_strict = !message.may_repeat && !message.is_void;
        assert!(!message.arrivals.is_empty(), "m{serial} came out of nowhere");
        if is_strict && !is_text {
            assert!(
                !message.is_seen || message.is_seen_by_text,
                "m{serial} was delivered twice: {message:?}"
            );
        }
        if is_strict {
            assert!(!message.is_cancelled, "m{serial} was cancelled and delivered: {message:?}");
            if let Some((outcome, maybe_seen)) = message.outcome {
                assert!(
                    message.is_seen && (maybe_seen || outcome == Outcome::Delivered),
                    "m{serial} was delivered after its outcome: {message:?}"
                );
            }
        }
        message.is_seen_by_text |= is_text && !message.is_seen;
        if !std::mem::replace(&mut message.is_seen, true) {
            let sender = (message.from, message.arrivals[0].incarnations.0);
            self.sights.push((sender, message.to, serial));
        }
    }

    /// Notes that the receiver acked these, or said that it had seen them.
    pub(crate) fn acked(&mut self, serials: Vec<usize>) {
        for serial in serials {
            let message = &mut self.messages[serial];
            message.is_acked |= !message.is_refused_first;
        }
    }

    /// Notes that the receiver refused it.
    pub(crate) fn refused(&mut self, serial: usize) {
        let message = &mut self.messages[serial];
        message.is_refused = true;
        message.is_refused_first = !message.is_acked;
    }

    /// Notes that the server ended after the receiver had refused it; `is_acked_in_log` is true
    /// if the log has an ack that covers it.
    pub(crate) fn refused_before_end(&mut self, serial: usize, is_acked_in_log: bool) {
        let message = &mut self.messages[serial];
        let was_first = std::mem::take(&mut message.is_refused_first);
        message.is_refused_for_good |= was_first && is_acked_in_log;
    }

    /// Notes that the sender was told the outcome.
    pub(crate) fn outcome(&mut self, serial: usize, told: (Outcome, bool), is_over: bool) {
        let message = &mut self.messages[serial];
        let (outcome, maybe_seen) = told;
        if message.is_of_backup() && message.is_seen {
            let is_wrong = match outcome {
                Outcome::Cancelled => true,
                Outcome::Expired | Outcome::Evicted => !maybe_seen,
                Outcome::Delivered | Outcome::Refused => false,
            };
            assert!(
                !is_wrong,
                "m{serial} is in a backup, was seen since, and {told:?}: {message:?}"
            );
        }
        if message.is_void {
            return;
        }
        assert!(message.receipt, "m{serial} asked for no outcome: {message:?}");
        assert!(
            message.outcome.is_none() || message.may_repeat,
            "m{serial} has a second outcome {told:?}: {message:?}"
        );
        message.outcome = Some(told);
        let is_true = message.may_repeat
            || match outcome {
                Outcome::Delivered => message.is_acked && !message.is_refused_for_good,
                Outcome::Refused => message.is_refused,
                Outcome::Cancelled => !message.is_seen,
                Outcome::Expired => is_over && (maybe_seen || !message.is_seen),
                Outcome::Evicted => maybe_seen || !message.is_seen,
            };
        assert!(is_true, "m{serial} did not end so ({told:?}): {message:?}");
    }

    /// Checks that messages arrived in order, for each sender and receiver.
    pub(crate) fn check_order(&self) {
        let mut pairs: Vec<(Sender, usize)> =
            self.sights.iter().map(|&(from, to, _)| (from, to)).collect();
        pairs.sort_unstable();
        pairs.dedup();
        for pair in pairs {
            let mut before = 0;
            for &(_, _, serial) in self.sights.iter().filter(|sight| (sight.0, sight.1) == pair) {
                let message = &self.messages[serial];
                if message.may_repeat || message.is_void || message.is_seen_by_text {
                    continue;
                }
                let next = message.orders().find(|&order| order > before);
                before = next.unwrap_or_else(|| {
                    panic!("m{serial} came too late after arrival {before}: {message:?}")
                });
            }
        }
    }

    /// Checks, at the end, that no accepted message was lost and no rejected one delivered.
    pub(crate) fn check_complete(&self, run: u32, incarnations: impl Fn(usize) -> u32) {
        for (serial, message) in self.messages.iter().enumerate() {
            if message.is_void || message.arrivals.is_empty() {
                continue;
            }
            let first = &message.arrivals[0];
            let same = (
                first.incarnations.0 == incarnations(message.from),
                first.incarnations.1 == incarnations(message.to),
            );
            if message.arrivals.iter().all(|arrival| arrival.answer == Answer::Rejected) {
                assert!(!message.is_seen, "m{serial} was rejected and delivered: {message:?}");
            }
            let Some((durability, in_run)) = message.accepted else { continue };
            let is_kept = durability == Durability::Disk
                || (durability == Durability::Memory && in_run == run);
            let has_ended = message.is_seen
                || message.is_cancel_asked
                || message.is_refused
                || message.ttl_ms.is_some()
                || message.outcome.is_some()
                || !same.1;
            assert!(!is_kept || has_ended, "m{serial} was lost: {message:?}");
            if message.receipt && is_kept && same.0 && !message.may_repeat {
                assert!(message.outcome.is_some(), "m{serial} has no outcome: {message:?}");
            }
            if let Some((Outcome::Evicted, _)) = message.outcome {
                assert!(!same.1, "m{serial} was evicted from a device that lives: {message:?}");
            }
        }
    }
}

impl Message {
    /// Returns true if all that the server can know of it is in a backup that was restored.
    pub(crate) fn is_of_backup(&self) -> bool {
        self.arrivals_before_restore == Some(self.arrivals.len()) && !self.may_repeat
    }

    /// Returns the arrivals with which it may have been accepted.
    fn orders(&self) -> impl Iterator<Item = u64> {
        // While the store fails, a retry is answered before the first attempt, which is still open.
        let first = self.arrivals.iter().find(|arrival| arrival.answer == Answer::First);
        let last = first.map_or(u64::MAX, |first| first.order);
        let may_be = move |arrival: &&Arrival| {
            matches!(arrival.answer, Answer::First | Answer::Unknown) && arrival.order <= last
        };
        self.arrivals.iter().filter(may_be).map(|arrival| arrival.order)
    }
}
