//! The outbox: input for one other shard, collected in a turn.

use std::collections::BTreeMap;

use switchboard_broker::Envelope;
use switchboard_proto::DeviceId;

use super::conn::Key;
use super::inbox::Batch;

/// Collects during a turn, and is offered at its end.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) batch: Batch,
    /// Presence of watched devices that waits while the batch is at its bound.
    ///
    /// No connection can be paused for it, as devices come and go with their connections. But
    /// presence is a state: only the latest counts, so there is never more of it than is
    /// watched.
    presence: BTreeMap<Watch, Presence>,
    /// Connections whose reading is paused until the shard has taken the batch.
    pub(super) paused: Vec<Key>,
    /// Set while the other shard is full; it wakes this one when it is not.
    pub(super) is_refused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Watch {
    to: DeviceId,
    device: DeviceId,
}

#[derive(Clone, Copy, Debug)]
struct Presence {
    online: bool,
    at_ms: u64,
}

impl Outbox {
    /// Adds an envelope. Presence waits beside a batch of `max_bytes` or more.
    pub(super) fn push_envelope(&mut self, envelope: Envelope, max_bytes: usize) {
        // Once some presence waits, all of it has to, or an older state could come after a newer
        // one.
        if let Envelope::Presence { to, device, online, at_ms } = envelope
            && (self.batch.bytes() >= max_bytes || !self.presence.is_empty())
        {
            self.presence.insert(Watch { to, device }, Presence { online, at_ms });
        } else {
            self.batch.push_envelope(envelope);
        }
    }

    /// Makes the next batch, after one was taken, from the presence that waited beside that one.
    pub(super) fn refill(&mut self, max_bytes: usize) {
        while self.batch.bytes() < max_bytes
            && let Some((Watch { to, device }, presence)) = self.presence.pop_first()
        {
            let Presence { online, at_ms } = presence;
            self.batch.push_envelope(Envelope::Presence { to, device, online, at_ms });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(to: u64, at_ms: u64) -> Envelope {
        Envelope::Presence {
            to: DeviceId::new(to),
            device: DeviceId::FIRST,
            online: at_ms.is_multiple_of(2),
            at_ms,
        }
    }

    /// A device that came and went again and again, faster than the other shard told its watchers,
    /// once filled the memory.
    #[test]
    fn beside_a_full_batch_only_the_latest_presence_waits() {
        const MAX: usize = 1_000;
        let mut outbox = Outbox::default();
        for at_ms in 0..1_000 {
            (2..7).for_each(|to| outbox.push_envelope(presence(to, at_ms), MAX));
        }
        assert!(outbox.batch.bytes() < MAX + size_of::<Envelope>());
        assert_eq!(outbox.presence.len(), 5);
        let mut told = std::mem::take(&mut outbox.batch).envelopes;
        outbox.refill(MAX);
        assert!(outbox.presence.is_empty());
        told.append(&mut outbox.batch.envelopes);
        assert_eq!(told[..5], (2..7).map(|to| presence(to, 0)).collect::<Vec<_>>());
        assert!(told.ends_with(&(2..7).map(|to| presence(to, 999)).collect::<Vec<_>>()));
    }

    #[test]
    fn what_waits_beside_a_batch_comes_in_batches() {
        const MAX: usize = 1_000;
        let mut outbox = Outbox::default();
        (2..200).for_each(|to| outbox.push_envelope(presence(to, 0), MAX));
        let mut batches = 0;
        while !outbox.batch.is_empty() {
            assert!(outbox.batch.bytes() < MAX + size_of::<Envelope>());
            outbox.batch = Batch::default();
            outbox.refill(MAX);
            batches += 1;
        }
        assert!(batches > 10 && outbox.presence.is_empty());
    }
}
