//! Reactions to the store: synced, full, failing, healthy; and the records of devices.

use std::time::Duration;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::Outcome;

use super::envelope::{Cancel, Reply, ReplyTo};
use super::exchange::Pair;
use super::outcome::Telling;
use super::{MessageKey, Now, Out, Position};
use crate::Digest;
use crate::broker::{Broker, Effect};
use crate::shrink::{KEPT_BY_SHARD, shrink};

/// Bytes of contents that are kept in memory for a connected device although the store has them
/// too, so that what is pushed next need not be fetched.
const CACHED_BYTES_MAX: usize = 128 << 10;
/// Most records of devices that were put off and are now written together. A pause follows, in
/// which the store can say that it is full again.
const STALE_RECORDS_AT_ONCE: usize = 256;
const STALE_RECORDS_PAUSE: Duration = Duration::from_millis(50);

/// Devices whose new messages the store takes; it takes all other records in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreGate {
    /// Those of all devices.
    #[default]
    Open,
    /// Those of devices with names: only the space that is reserved for them is left.
    NamedOnly,
    /// Nobody's.
    Closed,
}

/// Purposes of appends that are not synced: each says what to do when its record is.
#[derive(Debug)]
pub(crate) enum Pending {
    /// A message, whose sender waits for the reply.
    Message { of: MessageKey, key: Option<Digest>, reply_to: ReplyTo, is_told: bool },
    /// An outcome in the mailbox of the sender.
    Outcome { to: DeviceId, seq: u64, pair: Pair },
    /// The end of a message.
    Ended { of: MessageKey, mailbox_name: u64, telling: Telling },
    /// A copy of the record of an end whose outcome is not settled.
    EndedMoved { pair: Pair, number: u64 },
    /// The state of an exchange.
    Exchange(Pair),
    /// The state of a device, for which a session may wait.
    Device { id: DeviceId, born: u64, mailbox_name: u64, reserved_to: u64, session: Option<u32> },
    /// A copy of an entry's record, which was in the oldest part of the log.
    Moved { id: DeviceId, mailbox_name: u64, seq: u64 },
    /// The end of a device.
    Gone(DeviceId),
    /// A record that nothing waits for.
    Nothing,
}

impl Broker {
    /// Appends the state of a device; `session` opens when that is synced.
    pub(super) fn record_device(&mut self, id: DeviceId, session: Option<u32>, out: Out<'_>) {
        if !self.mailboxes.is_durable {
            return;
        }
        let shown = self.show(id);
        let clock = self.mailboxes.clock;
        let device = self.mailboxes.devices.get_mut(&id).filter(|device| !device.is_ephemeral);
        let Some(device) = device else { return };
        let reserved_to = device.reserves_to();
        out(Effect::Append(device.record(&shown, clock)));
        device.is_recorded_online = device.session.is_some();
        device.records_unsynced += 1;
        let (born, mailbox_name) = (device.born, device.mailbox_name);
        let pending = Pending::Device { id, born, mailbox_name, reserved_to, session };
        self.mailboxes.pending.push_back(pending);
        // Whatever was put off is in this record.
        self.mailboxes.stale_records.remove(&id);
    }

    /// Returns whether the record that a device came or went is put off, because the store is full
    /// and says already that the device is connected.
    pub(super) fn may_put_off_record(&self, id: DeviceId) -> bool {
        // A client that comes and goes would make a record each time, and so bring the log above
        // its bound. No promise depends on these: after a crash a device that the store has as
        // connected may have seen everything and is away since the start, like any that was
        // connected. So the store has it connected for longer than it was, and never for less.
        self.mailboxes.gate == StoreGate::Closed
            && self.mailboxes.devices.get(&id).is_some_and(|device| device.is_recorded_online)
    }

    /// Writes at most `count` records that were put off, unless the store is full again.
    pub(crate) fn write_stale_records(&mut self, count: usize, out: Out<'_>) {
        for _ in 0..count {
            if self.mailboxes.gate == StoreGate::Closed {
                return;
            }
            let Some(id) = self.mailboxes.stale_records.pop_first() else { return };
            let session = self.session(id).map(|session| session.number);
            self.record_device(id, session, out);
        }
    }

    /// Writes some of the records that were put off, if they are due.
    pub(crate) fn stale_records_tick(&mut self, now: Now, out: Out<'_>) {
        if self.mailboxes.stale_records_due().is_some_and(|at| at <= now.at) {
            self.mailboxes.stale_records_at = now.at.after(STALE_RECORDS_PAUSE);
            self.write_stale_records(STALE_RECORDS_AT_ONCE, out);
        }
    }

    /// Notes whose new messages the store takes from now on.
    pub(crate) fn store_gate(&mut self, now: Now, gate: StoreGate) {
        self.mailboxes.gate = gate;
        self.mailboxes.stale_records_at = now.at;
    }

    /// Returns the name of a device's mailbox, which tells it from an earlier device of the same
    /// id: a number may stand for a message of either.
    pub(super) fn incarnation(&self, id: DeviceId) -> u64 {
        self.mailboxes.devices.get(&id).map_or(0, |device| device.mailbox_name)
    }

    /// Does what the oldest appends were for, as they are synced; `positions` has one for each.
    pub(crate) fn synced(&mut self, now: Now, positions: &[Position], out: Out<'_>) {
        for &position in positions {
            let pending =
                self.mailboxes.pending.pop_front().expect("the store syncs what was appended");
            self.synced_one(now, pending, position, out);
            // Before the next one, so that this shard decides in the order of the log.
            self.settle_local(now, out);
        }
        shrink(&mut self.mailboxes.pending, KEPT_BY_SHARD);
    }

    fn synced_one(&mut self, now: Now, pending: Pending, position: Position, out: Out<'_>) {
        match pending {
            Pending::Message { of, key, reply_to, is_told } => {
                if let Some(key) = key {
                    self.mailboxes.window.synced(now.at, key, of.seq);
                }
                // Before the entry is synced: the id is in its content, which is dropped then.
                let cancels = self.answer_synced(of, (reply_to, is_told), out);
                let cancels = key.map(|key| (key, cancels));
                self.entry_synced(now, of, position, cancels, out);
            }
            Pending::Outcome { to, seq, pair } => {
                self.outcome_recorded(to, seq, pair, position, out);
            }
            Pending::Ended { of, mailbox_name, telling } => {
                self.end_recorded(of, mailbox_name, telling, position, out);
            }
            Pending::EndedMoved { pair, number } => {
                self.mailboxes.exchanges.of(pair).moved(number, position);
            }
            Pending::Exchange(pair) => self.mailboxes.exchanges.of(pair).recorded(position),
            Pending::Device { id, born, mailbox_name, reserved_to, session } => {
                let device = self.mailboxes.devices.get_mut(&id);
                // Otherwise it is about a device that has ended, and not the one of its id now.
                if let Some(device) = device.filter(|device| device.born == born) {
                    device.records_unsynced = device.records_unsynced.saturating_sub(1);
                    self.device_synced(id, (mailbox_name, reserved_to), session, position, out);
                }
            }
            Pending::Moved { id, mailbox_name, seq } => {
                if let Some(device) = self.mailboxes.devices.get_mut(&id)
                    && device.mailbox_name == mailbox_name
                {
                    device.mailbox.moved(seq, position);
                }
            }
            Pending::Gone(id) => self.gone_recorded(id, out),
            Pending::Nothing => {}
        }
    }

    fn entry_synced(
        &mut self,
        now: Now,
        of: MessageKey,
        position: Position,
        cancels: Option<(Digest, Vec<Cancel>)>,
        out: Out<'_>,
    ) {
        let MessageKey { device: to, seq } = of;
        let Some(device) = self.mailboxes.devices.get_mut(&to) else { return };
        let Some(entry) = device.mailbox.synced(seq, position) else { return };
        if entry.expires_at <= now.at {
            // Its alarm went off before it was synced, and does not come again.
            self.take_one(now, to, seq, Outcome::Expired, None, out);
        }
        // Before it is pushed.
        if let Some((key, cancels)) = cancels {
            // This message is meant, even if another one has the id by now.
            let mut is_cancelled = false;
            for cancel in cancels {
                is_cancelled = self.cancel_at(now, (key, seq), is_cancelled, cancel, out);
            }
        }
        self.push_ready(to, out);
        self.keep_cache_small(to, seq);
    }

    /// Drops the content of an entry that is not about to be pushed, as the store has it too.
    pub(super) fn keep_cache_small(&mut self, id: DeviceId, seq: u64) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        if device.session.is_none() || device.mailbox.cached() > CACHED_BYTES_MAX {
            device.mailbox.drop_content(seq);
        }
    }

    /// Opens and welcomes the session that waits for a record of its device's state.
    fn device_synced(
        &mut self,
        id: DeviceId,
        (mailbox_name, reserved_to): (u64, u64),
        session: Option<u32>,
        position: Position,
        out: Out<'_>,
    ) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let is_newest = device.records_unsynced == 0 && device.is_recorded_online;
        let is_named = device.mailbox_name == mailbox_name;
        if !is_named && !is_newest {
            // Its mailbox has another name by now, and `welcome` waits for the record with that
            // name.
            return;
        }
        device.recorded_at = position;
        if is_named {
            device.mailbox.reserve_to(reserved_to);
        }
        // The newest record opens whichever session there is: while the store is full, a session
        // that begins after that record makes none of its own.
        if let Some(current) = device.session.as_deref_mut()
            && (is_newest || Some(current.number) == session)
        {
            current.is_open = true;
        }
        self.welcome(id, out);
        self.push_ready(id, out);
    }

    /// Notes that the store cannot sync for now, and tells senders that wait that nothing is known.
    pub(crate) fn store_failing(&mut self, now: Now, out: Out<'_>) {
        self.mailboxes.is_failing = true;
        // Their messages stay appended, and are accepted if the store recovers.
        let mut told = Vec::new();
        for pending in &mut self.mailboxes.pending {
            if let Pending::Message { of, reply_to, is_told, .. } = pending
                && !*is_told
            {
                *is_told = true;
                told.push((*of, *reply_to));
            }
        }
        for (of, reply_to) in told {
            self.answer_from(of, reply_to, Reply::Unknown, out);
        }
        self.answer_deferred_unknown(out);
        self.settle_local(now, out);
    }

    /// Notes that the store syncs again.
    pub(crate) fn store_healthy(&mut self) {
        self.mailboxes.is_failing = false;
    }
}
