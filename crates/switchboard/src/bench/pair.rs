//! A sender and a receiver, and the check that messages get from one to the other.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Registry, Token};
use switchboard_proto::v1::{Durability, ServerEvent, Word, parse_server};

use super::connection::{Connection, append_text};
use super::mailbox::{Asked, Receiver};
use super::message::Script;
use super::tally::Tally;

/// The end of the pair that a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Sender,
    Receiver,
}

/// An event that a pair waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arrival {
    /// The message with this sequence number arrived correctly.
    Delivered(u64),
    /// v1: a message was accepted.
    Accepted {
        /// Time since it was queued.
        after: Duration,
        /// The durability that the server reported.
        durability: Option<Durability>,
    },
}

/// Two devices, and the progress of the messages between them.
pub(super) struct Pair {
    sender: Connection,
    /// `None` if the receiver is disconnected.
    receiver: Option<Connection>,
    progress: Progress,
}

/// The messages of a pair.
struct Progress {
    script: Script,
    /// Number of the next message to send.
    sent: u64,
    /// Number of the next message that should arrive.
    expected: u64,
    /// v1: when each message that is not accepted yet was queued.
    lined_up: VecDeque<Instant>,
    /// v1: messages received since the last ack.
    unacked: u64,
}

impl Progress {
    fn new(script: Script) -> Self {
        Self { script, sent: 0, expected: 0, lined_up: VecDeque::new(), unacked: 0 }
    }
}

impl Pair {
    pub(super) fn new(sender: Connection, receiver: Option<Connection>, script: Script) -> Self {
        Self { sender, receiver, progress: Progress::new(script) }
    }

    /// Makes both connections non-blocking and registers them.
    pub(super) fn register(
        &mut self,
        registry: &Registry,
        token: impl Fn(Role) -> Token,
    ) -> io::Result<()> {
        self.sender.register(registry, token(Role::Sender))?;
        self.receiver.as_mut().map_or(Ok(()), |it| it.register(registry, token(Role::Receiver)))
    }

    /// Appends the next message to the sender's output; returns true if that was empty before.
    pub(super) fn append_next(&mut self, is_v1: bool) -> bool {
        let was_empty = self.sender.out.is_empty();
        let Progress { script, sent, lined_up, .. } = &mut self.progress;
        script.append(*sent, &mut self.sender.out);
        *sent += 1;
        if is_v1 {
            lined_up.push_back(Instant::now());
        }
        was_empty
    }

    /// Writes the sender's output.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.sender.write()
    }

    /// Returns the number of messages sent and not received, or not accepted if the receiver is
    /// disconnected.
    pub(super) fn in_flight(&self) -> u64 {
        let Progress { sent, expected, lined_up, .. } = &self.progress;
        if self.receiver.is_some() { sent - expected } else { lined_up.len() as u64 }
    }

    /// Writes and reads as the event allows, and calls `on_arrival` for each correct arrival.
    pub(super) fn serve(
        &mut self,
        role: Role,
        event: &Event,
        input: &mut [u8],
        judge: &mut Judge<'_>,
        mut on_arrival: impl FnMut(Arrival),
    ) -> anyhow::Result<()> {
        let Self { sender, receiver, progress } = self;
        let is_away = receiver.is_none();
        let connection = match role {
            Role::Sender => sender,
            Role::Receiver => receiver.as_mut().expect("only who is there has events"),
        };
        if event.is_writable() {
            connection.write()?;
        }
        if !event.is_readable() {
            return Ok(());
        }
        let now = Instant::now();
        connection.read(input, |text, out| {
            let arrival = match role {
                Role::Sender => judge.answer(text, progress, now),
                Role::Receiver => judge.delivery(text, progress, out).map(Arrival::Delivered),
            };
            judge.tally.delivered += u64::from(is_away && arrival.is_some());
            arrival.into_iter().for_each(&mut on_arrival);
            Ok(())
        })?;
        Ok(connection.write()?)
    }
}

/// Settings that only a v1 load has.
#[derive(Clone, Copy, Debug)]
pub(super) struct V1 {
    pub(super) durability: Asked,
    pub(super) receiver: Receiver,
    /// Messages per ack.
    pub(super) ack_every: u64,
}

/// Checks and counts the received texts.
pub(super) struct Judge<'a> {
    /// `None` for the text protocol.
    pub(super) v1: Option<V1>,
    /// Text after the stamp in every received message.
    pub(super) suffix: &'a [u8],
    pub(super) tally: &'a mut Tally,
}

impl Judge<'_> {
    /// Handles a text at a sender: in the text protocol that is always an error.
    fn answer(&mut self, text: &[u8], progress: &mut Progress, now: Instant) -> Option<Arrival> {
        if self.v1.is_some()
            && let Ok(ServerEvent::Accepted { durability, duplicate: false, .. }) =
                parse_server(text)
            && let Some(since) = progress.lined_up.pop_front()
        {
            let durability = match durability {
                Word::Known(durability) => Some(durability),
                Word::Other(_) => None,
            };
            return Some(Arrival::Accepted { after: now - since, durability });
        }
        self.tally.refused += 1;
        self.tally.complain(text);
        None
    }

    /// Handles a text at a receiver; returns its sequence number if it is the next message or a
    /// later one.
    fn delivery(&mut self, text: &[u8], progress: &mut Progress, out: &mut Vec<u8>) -> Option<u64> {
        let Some(V1 { ack_every, .. }) = self.v1 else {
            return self.message(text, text, progress);
        };
        let Ok(ServerEvent::Message { seq, body, .. }) = parse_server(text) else {
            self.foreign(text);
            return None;
        };
        progress.unacked += 1;
        if progress.unacked >= ack_every {
            progress.unacked = 0;
            append_text(out, &format!(r#"{{"type":"ack","seq":{seq}}}"#));
        }
        self.message(text, body.as_bytes(), progress)
    }

    fn message(&mut self, text: &[u8], body: &[u8], progress: &mut Progress) -> Option<u64> {
        let Progress { script, sent, expected, .. } = progress;
        let sequence = script.recognise(body, *expected, self.suffix);
        match sequence.filter(|sequence| *sequence < *sent) {
            Some(sequence) if sequence >= *expected => {
                self.tally.lost += sequence - *expected;
                self.tally.delivered += 1;
                *expected = sequence + 1;
                return Some(sequence);
            }
            Some(_) => self.tally.repeated += 1,
            None => self.foreign(text),
        }
        None
    }

    fn foreign(&mut self, text: &[u8]) {
        self.tally.foreign += 1;
        self.tally.complain(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the tally of `texts` at a receiver that was sent three messages.
    fn judged(v1: Option<V1>, prefix: &str, suffix: &[u8], texts: &[&str]) -> Tally {
        let mut tally = Tally::default();
        let script = Script::new(1, "", prefix.to_owned());
        let mut progress = Progress { sent: 3, ..Progress::new(script) };
        let mut judge = Judge { v1, suffix, tally: &mut tally };
        for text in texts {
            judge.delivery(text.as_bytes(), &mut progress, &mut Vec::new());
        }
        tally
    }

    fn by_text(texts: &[&str]) -> Tally {
        judged(None, "7:", b"..", texts)
    }

    fn by_v1(texts: &[&str]) -> Tally {
        let (durability, receiver, ack_every) = (Asked::Strongest, Receiver::Online, 1);
        judged(Some(V1 { durability, receiver, ack_every }), "\"", b"..\"", texts)
    }

    #[test]
    fn each_message_must_come_once_and_in_order() {
        let [text, v1] = [
            |n| format!("7:000001{n:010x}.."),
            |n| {
                format!(
                    r#"{{"type":"message","seq":{n},"from":"a","id":"b","body":"000001{n:010x}..","sent_at_ms":1}}"#
                )
            },
        ]
        .map(|message: fn(u64) -> String| [0, 1, 2].map(message));
        for (judged, [first, second, third]) in
            [(by_text as fn(&[&str]) -> Tally, text), (by_v1, v1)]
        {
            assert!(judged(&[&first, &second, &third]).is_clean());
            assert_eq!(judged(&[&first, &second, &third]).delivered, 3);
            assert_eq!(judged(&[&first, &first]).repeated, 1);
            assert_eq!(judged(&[&first, &third]).lost, 1);
            assert_eq!(judged(&[&second, &first]).repeated, 1);
        }
    }

    #[test]
    fn a_text_that_was_not_sent_is_foreign() {
        for text in ["7:0000010000000003..", "anything"] {
            for tally in [by_text(&[text]), by_v1(&[text])] {
                assert_eq!((tally.foreign, tally.first_complaint.as_deref()), (1, Some(text)));
            }
        }
    }
}
