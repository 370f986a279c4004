//! A sender and a receiver, and whether what one sends comes to the other.

use mio::event::Event;

use super::end::End;
use super::message::Script;
use super::tally::Tally;

/// Which end of its pair a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Sender,
    Receiver,
}

/// Two devices, and how far the messages of one have come to the other.
pub(super) struct Pair {
    pub(super) sender: End,
    pub(super) receiver: End,
    pub(super) progress: Progress,
}

/// The messages of a pair: what was sent, and what is expected next.
pub(super) struct Progress {
    script: Script,
    sent: u64,
    expected: u64,
}

impl Pair {
    pub(super) fn new(sender: End, receiver: End, script: Script) -> Self {
        Self { sender, receiver, progress: Progress { script, sent: 0, expected: 0 } }
    }

    /// Appends the next message to the sender's output.
    pub(super) fn append_next(&mut self) {
        let Progress { script, sent, .. } = &mut self.progress;
        script.append(*sent, &mut self.sender.out);
        *sent += 1;
    }

    /// Messages that were sent and have not come.
    pub(super) fn in_flight(&self) -> u64 {
        self.progress.sent - self.progress.expected
    }

    /// Writes and reads what the event allows; every message that came as it should is told by its
    /// sequence number.
    pub(super) fn serve(
        &mut self,
        role: Role,
        event: &Event,
        input: &mut Vec<u8>,
        judge: &mut Judge<'_>,
        mut on_delivery: impl FnMut(u64),
    ) -> anyhow::Result<()> {
        let end = match role {
            Role::Sender => &mut self.sender,
            Role::Receiver => &mut self.receiver,
        };
        if event.is_writable() {
            end.write()?;
        }
        if !event.is_readable() {
            return Ok(());
        }
        let progress = &mut self.progress;
        end.read(input, |text| match role {
            Role::Sender => judge.refusal(text),
            Role::Receiver => {
                if let Some(sequence) = judge.message(text, progress) {
                    on_delivery(sequence);
                }
            }
        })
    }
}

/// Judges what came, and counts.
pub(super) struct Judge<'a> {
    /// What every message has behind its stamp.
    pub(super) filler: &'a [u8],
    pub(super) tally: &'a mut Tally,
}

impl Judge<'_> {
    /// A text at a sender: only errors come there.
    fn refusal(&mut self, text: &[u8]) {
        self.tally.refused += 1;
        self.tally.complain(text);
    }

    /// A text at a receiver: its sequence number if it is the next message or a later one.
    fn message(&mut self, text: &[u8], progress: &mut Progress) -> Option<u64> {
        let Progress { script, sent, expected } = progress;
        let sequence = script.recognise(text, *expected, self.filler);
        match sequence.filter(|sequence| *sequence < *sent) {
            Some(sequence) if sequence >= *expected => {
                self.tally.lost += sequence - *expected;
                self.tally.delivered += 1;
                *expected = sequence + 1;
                return Some(sequence);
            }
            Some(_) => self.tally.repeated += 1,
            None => {
                self.tally.foreign += 1;
                self.tally.complain(text);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on `texts` at a receiver that was sent three messages.
    fn judged(texts: &[&str]) -> Tally {
        let mut tally = Tally::default();
        let script = Script::new(1, 7, 8, b"..");
        let mut progress = Progress { script, sent: 3, expected: 0 };
        let mut judge = Judge { filler: b"..", tally: &mut tally };
        for text in texts {
            judge.message(text.as_bytes(), &mut progress);
        }
        tally
    }

    #[test]
    fn each_message_must_come_once_and_in_order() {
        let [first, second, third] = [0, 1, 2].map(|n| format!("7:000001{n:010x}.."));
        assert!(judged(&[&first, &second, &third]).is_clean());
        assert_eq!(judged(&[&first, &first]).repeated, 1);
        assert_eq!(judged(&[&first, &third]).lost, 1);
        assert_eq!(judged(&[&second, &first]).repeated, 1);
    }

    #[test]
    fn a_text_that_was_not_sent_is_foreign() {
        for text in ["7:0000010000000003..", "anything"] {
            let tally = judged(&[text]);
            assert_eq!((tally.foreign, tally.first_complaint.as_deref()), (1, Some(text)));
        }
    }
}
