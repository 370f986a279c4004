//! The oracle: checks everything that clients are told and pushed.

use switchboard_broker::Refusal;
use switchboard_proto::v1::{Durability, RejectCode, ServerEvent, WelcomeEvent, Word};

use crate::client::{ClientKind, Marks, Request, Seen, What};
use crate::ledger::Answer;
use crate::world::World;

/// Time within which acks are recorded if the store is healthy, which has the rest of 100 ms.
const ACKS_WAIT_MS: u64 = 50;

impl World {
    /// Notes that the server takes a frame of an open connection.
    pub(crate) fn arrived(&mut self, link: usize, what: &What) {
        match what {
            What::Send { serial } => {
                let (serial, arrival) = (*serial, self.arrival(link, *serial));
                let id = self.ledger.messages[serial].id.clone();
                if self.links[link].is_text {
                    self.links[link].text_asked = Some((serial, arrival));
                } else {
                    self.links[link].asked.push((id, Request::Send { serial, arrival }));
                }
            }
            What::Cancel { serial } => {
                let id = self.ledger.messages[*serial].id.clone();
                self.ledger.cancel_asked(*serial);
                self.links[link].asked.push((id, Request::Cancel { serial: *serial }));
            }
            What::Ack { seq } => self.acked(link, *seq),
            What::Refuse { seq } => self.refuse_came(link, *seq),
            What::Ask { id } => self.links[link].asked.push((id.clone(), Request::Other)),
            What::Nonsense => self.links[link].errors_due += 1,
        }
    }

    fn marks_on(&mut self, link: usize) -> Option<&mut Marks> {
        let client = self.links[link].client;
        self.clients[client].marks()
    }

    fn acked(&mut self, link: usize, seq: u64) {
        let at = self.now.at;
        self.links[link].in_flight.retain(|&pushed| pushed > seq);
        let Some(marks) = self.marks_on(link) else { return };
        marks.acked_to = marks.acked_to.max(seq);
        marks.acks.push((at, seq));
        let serials: Vec<usize> =
            marks.seen.range(..=seq).filter_map(|(_, seen)| seen.message()).collect();
        self.ledger.acked(serials);
    }

    /// Notes the acks in a `hello`, once the session opens: everything up to `last_seq`.
    pub(crate) fn acked_by_hello(&mut self, client: usize, said: Option<&(String, u64)>) {
        let Some((mailbox, last_seq)) = said else { return };
        let Some(marks) = self.clients[client].marks.get(mailbox) else { return };
        let serials: Vec<usize> =
            marks.seen.range(..=last_seq).filter_map(|(_, seen)| seen.message()).collect();
        self.ledger.acked(serials);
    }

    fn refuse_came(&mut self, link: usize, seq: u64) {
        self.links[link].in_flight.remove(&seq);
        let Some(marks) = self.marks_on(link) else { return };
        if seq > marks.acked_to && marks.refused.insert(seq) {
            let serial = marks.seen.get(&seq).and_then(|seen| seen.message());
            if let Some(serial) = serial {
                self.ledger.refused(serial);
            }
        }
    }

    /// Checks a frame to a v1 device.
    pub(crate) fn told(&mut self, link: usize, event: ServerEvent) {
        assert!(!self.links[link].is_text, "a frame for a text device: {event:?}");
        match event {
            ServerEvent::Welcome(welcome) => self.welcomed(link, &welcome),
            ServerEvent::Accepted { id, durability: Word::Known(durability), duplicate } => {
                let request = self.answered(link, &id, |_, request| request.is_send());
                let Request::Send { serial, arrival } = request else { return };
                let now = (self.now.at, self.run);
                self.ledger.accepted(serial, arrival, durability, duplicate, now);
            }
            ServerEvent::Rejected { id, to, code: Word::Known(code), .. } => {
                self.rejected(link, &id, to.as_deref(), code);
            }
            ServerEvent::Cancelled { id, to } => {
                let Request::Cancel { serial } = self.cancel_answered(link, &id, &to) else {
                    return;
                };
                let message = &mut self.ledger.messages[serial];
                assert!(
                    !message.is_seen
                        || (message.is_void && !message.is_of_backup())
                        || message.may_repeat,
                    "m{serial} was seen and is cancelled: {message:?}"
                );
                message.is_cancelled = true;
            }
            ServerEvent::Watching { id } | ServerEvent::Devices { id, .. } => {
                self.answered(link, &id, |_, request| request == Request::Other);
            }
            ServerEvent::Pong { id } => {
                let id = id.expect("pings here have ids");
                self.answered(link, &id, |_, request| request == Request::Other);
            }
            ServerEvent::Presence { .. } => {}
            ServerEvent::Error { .. } => {
                let due = &mut self.links[link].errors_due;
                *due = due.checked_sub(1).expect("an error for something that was right");
            }
            other => panic!("nobody asked for {other:?}"),
        }
    }

    fn rejected(&mut self, link: usize, id: &str, to: Option<&str>, code: RejectCode) {
        let request = match (to, code) {
            (Some(to), RejectCode::TooLate | RejectCode::StoreUnavailable) => {
                self.cancel_answered(link, id, to)
            }
            (Some(_), _) | (None, RejectCode::TooLate) => panic!("{code} for {id} to {to:?}"),
            (None, RejectCode::IdReused) => self.answered(link, id, |world, request| {
                matches!(request, Request::Send { serial, .. }
                    if world.ledger.messages[serial].reuses.is_some())
            }),
            (None, _) => {
                self.answered(link, id, |_, request| !matches!(request, Request::Cancel { .. }))
            }
        };
        if let Request::Send { serial, arrival } = request {
            let window = self.config.window();
            self.ledger.rejected(serial, arrival, code, window);
        }
    }

    /// Checks the answer to a `cancel`, which names the receiver as the `cancel` did.
    fn cancel_answered(&mut self, link: usize, id: &str, to: &str) -> Request {
        self.answered(link, id, |world, request| {
            matches!(request, Request::Cancel { serial }
                if world.ledger.messages[serial].address == to)
        })
    }

    /// Checks an answer: there must have been a request.
    fn answered(
        &mut self,
        link: usize,
        id: &str,
        fits: impl Fn(&World, Request) -> bool,
    ) -> Request {
        let at = self.links[link]
            .asked
            .iter()
            .position(|(other, request)| other == id && fits(self, *request));
        let asked = &mut self.links[link].asked;
        let at = at.unwrap_or_else(|| panic!("an answer without question: {id}; open: {asked:?}"));
        asked.remove(at).1
    }

    fn welcomed(&mut self, link: usize, welcome: &WelcomeEvent) {
        let client = self.links[link].client;
        let said = self.links[link].said.clone();
        assert!(!self.links[link].is_welcome, "a second welcome");
        self.links[link].is_welcome = true;
        if let Some((mailbox, last_seq)) = &said {
            assert_eq!(
                welcome.resumed,
                *mailbox == welcome.mailbox,
                "resumed is wrong after {said:?}: {welcome:?}"
            );
            assert!(
                !welcome.resumed || welcome.last_seq >= *last_seq,
                "after {last_seq} was said, welcome.last_seq is {}",
                welcome.last_seq
            );
        }
        assert!(said.is_some() || !welcome.resumed, "resumed what nobody knew: {welcome:?}");
        let device = self.clients[client].device.as_ref();
        if device.is_some_and(|shown| shown.as_ref().to_string() == welcome.device) {
            self.check_name(client, &welcome.mailbox);
        }
        self.links[link].incarnation = self.clients[client].incarnation;
        if !self.links[link].is_live {
            return;
        }
        self.clients[client].named = Some(welcome.mailbox.clone());
        let (at, has_restores) = (self.now.at, self.config.has_restores);
        let client = &mut self.clients[client];
        if client.device.is_none() {
            let device = switchboard_proto::v1::DeviceRef::parse(&welcome.device);
            client.device = device.map(Into::into);
        }
        client.mailbox = Some(welcome.mailbox.clone());
        let marks = client.marks.entry(welcome.mailbox.clone()).or_default();
        assert!(
            has_restores
                || !welcome.resumed
                || welcome.last_seq <= marks.last_seq.max(marks.acked_to),
            "acked what was never seen: {welcome:?}"
        );
        // More than it knows only if the mailbox was renamed.
        marks.acked_to = marks.acked_to.max(welcome.last_seq);
        if welcome.resumed {
            let seq = said.map_or(0, |(_, seq)| seq);
            marks.acked_to = marks.acked_to.max(seq);
            marks.acks.push((at, seq));
        }
    }

    /// Checks the name of a mailbox, which may change only if the mailbox was lost.
    fn check_name(&mut self, client: usize, name: &str) {
        // An anonymous device may have given way to a new one, and an ephemeral one ends.
        let gives_way = self.clients[client].kind == ClientKind::Anonymous
            && self.config.limits.devices_max < 1_000
            || self.clients[client].is_ephemeral;
        let ttl = match self.clients[client].kind {
            ClientKind::Named => self.config.limits.named_device_ttl,
            _ => Some(self.config.limits.device_ttl),
        };
        let client = &mut self.clients[client];
        let was_restored = std::mem::take(&mut client.was_restored);
        let Some(before) = client.named.replace(name.to_owned()) else {
            // It may have been there before without the client being told.
            client.incarnation += 1;
            return;
        };
        if before == name {
            assert!(!was_restored, "an old backup was restored and the mailbox is still {name}");
            return;
        }
        client.incarnation += 1;
        let away = std::mem::take(&mut client.away_ms_max);
        let has_ended = ttl.is_some_and(|ttl| u128::from(away) >= ttl.as_millis());
        assert!(
            was_restored || has_ended || gives_way,
            "a new mailbox {name} instead of {before} after {away} ms"
        );
        assert!(!client.marks.contains_key(name), "the name {name} is used again");
    }

    /// Checks an entry that is pushed to a v1 device.
    pub(crate) fn pushed(&mut self, link: usize, event: ServerEvent) {
        assert!(self.links[link].is_welcome, "a push before welcome: {event:?}");
        assert!(!self.links[link].is_text, "a frame for a text device: {event:?}");
        let (seq, seen) = match &event {
            ServerEvent::Message { seq, body, .. } => (*seq, Seen::Message(serial_of(body))),
            ServerEvent::Outcome { seq, id, to, outcome: Word::Known(outcome), .. } => {
                (*seq, Seen::Outcome(self.message_of(link, id, to), *outcome))
            }
            other => panic!("{other:?} is not pushed"),
        };
        self.check_push(link, seq, seen);
        if !self.links[link].is_live {
            return;
        }
        let marks = self.marks_on(link).expect("a welcome came before");
        marks.last_seq = marks.last_seq.max(seq);
        if let Some(before) = marks.seen.insert(seq, seen) {
            assert_eq!(before, seen, "the number {seq} was used twice");
            return;
        }
        match (seen, event) {
            (Seen::Message(serial), ServerEvent::Message { id, body, .. }) => {
                let message = &self.ledger.messages[serial];
                assert!(message.is_text || message.id == id, "another id: {id}, {message:?}");
                assert!(message.body == body, "another body: {body}, {message:?}");
                assert_eq!(message.to, self.links[link].client, "m{serial} is not for this one");
                self.ledger.seen(serial, false);
            }
            (Seen::Outcome(serial, outcome), ServerEvent::Outcome { maybe_seen, .. }) => {
                let is_over = self.is_expired(serial);
                self.ledger.outcome(serial, (outcome, maybe_seen), is_over);
            }
            _ => unreachable!("both are of one event"),
        }
    }

    fn check_push(&mut self, link: usize, seq: u64, seen: Seen) {
        let before = std::mem::replace(&mut self.links[link].pushed_to, seq);
        assert!(seq > before, "{seq} was pushed after {before}");
        let in_flight_max = self.config.limits.in_flight_max;
        let ends_by_ack = seen.message().is_none_or(|at| self.ledger.messages[at].ttl_ms.is_none());
        if ends_by_ack {
            let in_flight = &mut self.links[link].in_flight;
            in_flight.insert(seq);
            assert!(in_flight.len() <= in_flight_max, "too many pushed ahead: {in_flight:?}");
        }
        if !self.links[link].is_live {
            return;
        }
        if let Some(serial) = seen.message() {
            self.check_time(link, serial);
        }
        let Some(marks) = self.marks_on(link) else { return };
        assert!(seq > marks.acked_to, "{seq} comes back though {} was acked", marks.acked_to);
        assert!(!marks.refused.contains(&seq), "{seq} comes back though it was refused");
    }

    /// Checks that a pushed message had not expired when its shard last looked at the clock.
    fn check_time(&self, link: usize, serial: usize) {
        let message = &self.ledger.messages[serial];
        let (Some(ttl_ms), Some(last)) = (message.ttl_ms, message.arrivals.last()) else { return };
        let ticked = self.ticked[self.links[link].shard].ms();
        // A message in memory only is pushed as it comes, and may have expired on its way.
        let is_stored = self.config.is_durable
            && message.durability != Some(Durability::Memory)
            && !self.clients[message.to].is_ephemeral;
        assert!(
            !is_stored || last.at.ms().saturating_add(ttl_ms) > ticked,
            "m{serial} is pushed at {ticked} though its time was over: {message:?}"
        );
    }

    fn is_expired(&self, serial: usize) -> bool {
        let message = &self.ledger.messages[serial];
        let Some(ttl_ms) = message.ttl_ms else { return false };
        self.real_ms - message.arrivals[0].real_ms >= ttl_ms
    }

    /// Returns the message that an outcome is about.
    fn message_of(&self, link: usize, id: &str, to: &str) -> usize {
        let client = self.links[link].client;
        let found = self.ledger.messages.iter().position(|message| {
            message.from == client && message.id == id && message.receipt && message.address == to
        });
        found.unwrap_or_else(|| panic!("an outcome of nothing: {id} to {to}"))
    }

    // ---- the text protocol ----

    pub(crate) fn informed(&mut self, link: usize) {
        assert!(self.links[link].is_text, "an info text for a v1 device");
        self.links[link].is_welcome = true;
    }

    pub(crate) fn refused(&mut self, link: usize, refusal: Refusal) {
        if self.links[link].is_held && refusal == Refusal::NoSuchDevice {
            // It may be about an earlier text; the answer that comes with the reply counts.
            return;
        }
        let Some((serial, arrival)) = self.links[link].text_asked.take() else {
            assert_eq!(refusal, Refusal::NoSuchDevice, "only this can come late");
            return;
        };
        if refusal != Refusal::Duplicate {
            self.ledger.messages[serial].arrivals[arrival].answer = Answer::Rejected;
        }
    }

    /// Notes the end of a text device's wait for a reply: a text that was not accepted was refused.
    pub(crate) fn replied(&mut self, link: usize) {
        self.links[link].is_held = false;
        if let Some((serial, arrival)) = self.links[link].text_asked.take() {
            self.ledger.messages[serial].arrivals[arrival].answer = Answer::Rejected;
        }
    }

    pub(crate) fn text_accepted(&mut self, link: usize) {
        let (serial, arrival) = self.links[link].text_asked.take().expect("it sent something");
        let now = (self.now.at, self.run);
        self.ledger.accepted(serial, arrival, Durability::Memory, false, now);
    }

    /// Checks a body that is pushed to a device of the text protocol.
    pub(crate) fn text_came(&mut self, link: usize, body: &str, has_mailbox: bool) {
        assert!(self.links[link].is_text, "a text for a v1 device");
        let serial = serial_of(body);
        let client = self.links[link].client;
        assert_eq!(self.ledger.messages[serial].to, client, "m{serial} is not for this one");
        if has_mailbox {
            self.links[link].undrained.push(serial);
        }
        if self.links[link].is_live {
            self.ledger.seen(serial, true);
        }
    }

    // ---- always ----

    /// Notes acks that are certainly on disk by now.
    pub(crate) fn note_durable_acks(&mut self) {
        // While the store fails, acks are not submitted to it.
        if !self.config.is_durable || self.store.is_failing || !self.store.is_idle() {
            return;
        }
        let ticked = self.ticked.iter().map(|at| at.ms()).min().unwrap_or_default();
        for link in &mut self.links {
            link.is_recorded |= link.is_welcome;
        }
        for marks in self.clients.iter_mut().flat_map(|client| client.marks.values_mut()) {
            let is_old = |at: u64| at + ACKS_WAIT_MS <= ticked;
            let old = marks.acks.iter().filter(|(at, _)| is_old(at.ms())).map(|(_, seq)| *seq);
            marks.durable_to = old.max().unwrap_or(0).max(marks.durable_to);
            marks.acks.retain(|(at, _)| !is_old(at.ms()));
        }
    }
}

impl Seen {
    pub(crate) fn message(self) -> Option<usize> {
        match self {
            Seen::Message(serial) => Some(serial),
            Seen::Outcome(..) => None,
        }
    }
}

impl Request {
    fn is_send(self) -> bool {
        matches!(self, Request::Send { .. })
    }
}

/// Returns the serial number in a body.
pub(crate) fn serial_of(body: &str) -> usize {
    let digits: String =
        body.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().expect("bodies here carry a serial number")
}
