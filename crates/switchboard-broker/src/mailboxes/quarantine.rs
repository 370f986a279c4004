//! Entries whose records cannot be read any more: they leave their mailboxes, and whoever waits for
//! an outcome is told.
//!
//! A message counts as evicted. What follows it in the mailbox is pushed as if it had expired.

use std::ops::Range;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::Outcome;

use super::mailbox::State;
use super::{Event, Now, Out, Position, Want};
use crate::broker::{Broker, Effect};

impl Broker {
    /// The record of an entry that was to be fetched cannot be read.
    pub(crate) fn unreadable(
        &mut self,
        now: Now,
        id: DeviceId,
        session: u32,
        want: Want,
        out: Out<'_>,
    ) {
        if let Some(device) = self.mailboxes.devices.get_mut(&id)
            && device.fetching == Some(session)
        {
            device.fetching = None;
        }
        let entry =
            self.mailboxes.devices.get(&id).and_then(|device| device.mailbox.find(want.seq));
        // A record that was copied meanwhile can be read at its new place.
        if entry.is_some_and(|entry| entry.position == want.position) {
            self.quarantine(now, id, want.seq, out);
        }
        self.push_ready(id, out);
    }

    /// A part of the store is damaged: whatever has its record there is quarantined, and what is
    /// known beside the record is recorded again.
    pub(crate) fn damaged(&mut self, now: Now, part: Range<Position>, out: Out<'_>) {
        let mut hit = Vec::new();
        let mut stale = Vec::new();
        for (&id, device) in &self.mailboxes.devices {
            let waiting = device
                .mailbox
                .iter()
                .filter(|entry| entry.state == State::Ready && part.contains(&entry.position));
            hit.extend(waiting.map(|entry| (id, entry.seq)));
            if part.contains(&device.recorded_at) {
                stale.push((id, device.session.as_ref().map(|session| session.number)));
            }
        }
        for (id, session) in stale {
            self.record_device(id, session, out);
        }
        for (id, seq) in hit {
            self.quarantine(now, id, seq, out);
            self.push_ready(id, out);
        }
    }

    fn quarantine(&mut self, now: Now, id: DeviceId, seq: u64, out: Out<'_>) {
        if self.take_one(now, id, seq, Outcome::Evicted, None, out) {
            out(Effect::Count(Event::Quarantined));
        }
    }

    /// Returns whether a damaged part of the store may be deleted. Not before all outcomes of the messages
    /// in it are recorded: their records are all that a start would know of them.
    pub fn may_drop_damaged(&self, part: &Range<Position>) -> bool {
        let mut entries = self.mailboxes.devices.values().flat_map(|device| device.mailbox.iter());
        !entries.any(|entry| entry.state == State::AwaitsOutcome && part.contains(&entry.position))
    }
}
