//! Quarantine: entries whose records cannot be read any more leave their mailboxes.
//!
//! A message counts as evicted, and its sender is told if it asked for the outcome. What follows it
//! in the mailbox is pushed as if the message had expired.

use std::ops::Range;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::Outcome;

use super::entry::State;
use super::{Event, Now, Out, Position, Want};
use crate::broker::{Broker, Effect};

impl Broker {
    /// Quarantines an entry whose record was to be fetched and cannot be read.
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
        // A record that was copied since can be read at its new position.
        if entry.is_some_and(|entry| entry.position == want.position) {
            self.quarantine(now, id, want.seq, out);
        }
        self.push_ready(id, out);
    }

    /// Quarantines all entries whose records are in a damaged part of the store, and appends new
    /// records for the devices whose latest records are in it.
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
        // Nothing is lost with these records: the broker knows the state of a device without them.
        for (id, session) in stale {
            self.record_device(id, session, out);
        }
        for (id, seq) in hit {
            self.quarantine(now, id, seq, out);
            self.push_ready(id, out);
        }
        self.record_exchanges_in(&part, out);
    }

    fn quarantine(&mut self, now: Now, id: DeviceId, seq: u64, out: Out<'_>) {
        if self.take_one(now, id, seq, Outcome::Evicted, None, out) {
            out(Effect::Count(Event::Quarantined));
        }
    }
}
