//! What the store says: synced, failing, healthy.

use std::time::Duration;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Durability, Outcome};

use super::envelope::{Envelope, Reply, ReplyTo};
use super::{MessageKey, Now, Out, Position};
use crate::Digest;
use crate::broker::{Broker, Effect};
use crate::shrink::{KEPT_BY_SHARD, shrink};

/// Contents of an online device that the store has too are kept up to this many bytes, so that
/// what is pushed next need not be fetched.
const CACHED_BYTES_MAX: usize = 128 << 10;
/// So many records of devices that were put off are made up for at once, and then there is a pause in
/// which the store can say that it is full again.
const STALE_RECORDS_AT_ONCE: usize = 256;
const STALE_RECORDS_PAUSE: Duration = Duration::from_millis(50);

/// What an append was for.
#[derive(Debug)]
pub(crate) enum Pending {
    /// A message that its sender waits for.
    Message { to: DeviceId, seq: u64, reply_to: ReplyTo, digest: Digest, is_told: bool },
    /// An outcome, and perhaps the answer to a `cancel`.
    Outcome { to: DeviceId, seq: u64, of: MessageKey, cancelled: Option<(Box<str>, u32)> },
    /// A message is out.
    Removed { of: MessageKey, mailbox_name: u64 },
    /// A cancelled message is out.
    Cancelled { of: MessageKey, mailbox_name: u64, to: DeviceId, id: Box<str>, session: u32 },
    /// How a device stands; a session waits for it.
    Device { id: DeviceId, born: u64, mailbox_name: u64, reserved_to: u64, session: Option<u32> },
    /// An entry was copied out of the oldest part of the log.
    Moved { id: DeviceId, mailbox_name: u64, seq: u64 },
    /// Nobody waits for it.
    Nothing,
}

impl Broker {
    /// Appends how a device stands; `session` opens when that is synced.
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
        self.mailboxes.stale_records.remove(&id);
    }

    /// Returns whether a device came or went is recorded later, because the store is full and has
    /// it that it is there.
    ///
    /// A client that comes and goes would make a record each time, and so bring the log above its
    /// bound. Nothing that is promised depends on it: after a crash one that is there by the store
    /// may have seen everything and is away since the start, which is what a crash always leaves of
    /// those that were connected. So it is seen as present longer than it was, and never shorter.
    pub(super) fn may_put_off_record(&self, id: DeviceId) -> bool {
        self.mailboxes.is_full
            && self.mailboxes.devices.get(&id).is_some_and(|device| device.is_recorded_online)
    }

    /// Makes up for records that were put off, unless the store is full again.
    pub(crate) fn write_stale_records(&mut self, count: usize, out: Out<'_>) {
        for _ in 0..count {
            if self.mailboxes.is_full {
                return;
            }
            let Some(id) = self.mailboxes.stale_records.pop_first() else { return };
            let session = self.session(id).map(|session| session.number);
            self.record_device(id, session, out);
        }
    }

    pub(crate) fn stale_records_tick(&mut self, now: Now, out: Out<'_>) {
        if self.mailboxes.stale_records_due().is_some_and(|at| at <= now.at) {
            self.mailboxes.stale_records_at = now.at.after(STALE_RECORDS_PAUSE);
            self.write_stale_records(STALE_RECORDS_AT_ONCE, out);
        }
    }

    /// The store takes no new messages for now, or takes them again.
    pub(crate) fn store_full(&mut self, now: Now, is_full: bool) {
        self.mailboxes.is_full = is_full;
        self.mailboxes.stale_records_at = now.at;
    }

    /// Returns what tells a device from itself before it ended: numbers begin anew.
    pub(super) fn incarnation(&self, id: DeviceId) -> u64 {
        self.mailboxes.devices.get(&id).map_or(0, |device| device.mailbox_name)
    }

    /// The oldest appends are synced; `places` says where each one lies.
    pub(crate) fn synced(&mut self, now: Now, positions: &[Position], out: Out<'_>) {
        for &position in positions {
            let pending =
                self.mailboxes.pending.pop_front().expect("the store syncs what was appended");
            self.synced_one(now, pending, position, out);
            self.settle_local(now, out);
        }
        shrink(&mut self.mailboxes.pending, KEPT_BY_SHARD);
    }

    fn synced_one(&mut self, now: Now, pending: Pending, position: Position, out: Out<'_>) {
        match pending {
            Pending::Message { to, seq, reply_to, digest, .. } => {
                let reply = Reply::Accepted { seq, durability: Durability::Disk };
                self.answer_from(now, reply_to, (to, seq), digest, reply, out);
                self.entry_synced(now, to, seq, position, out);
            }
            Pending::Outcome { to, seq, of, cancelled } => {
                let Some(device) = self.mailboxes.devices.get_mut(&to) else { return };
                device.mailbox.synced(seq, position);
                self.outcome_recorded(to, of, cancelled, out);
                self.keep_cache_small(to, seq);
            }
            Pending::Removed { of, mailbox_name } => self.left(of, mailbox_name, out),
            Pending::Cancelled { of, mailbox_name, to, id, session } => {
                self.left(of, mailbox_name, out);
                let envelope = Envelope::CancelReply { to, id, session, result: Ok(of) };
                self.send_to_owner(to, envelope, out);
            }
            Pending::Device { id, born, mailbox_name, reserved_to, session } => {
                let device = self.mailboxes.devices.get_mut(&id);
                // Else it is about a device that ended, and not about the one that came back.
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
            Pending::Nothing => {}
        }
    }

    fn entry_synced(&mut self, now: Now, to: DeviceId, seq: u64, position: Position, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get_mut(&to) else { return };
        let Some(entry) = device.mailbox.synced(seq, position) else { return };
        if entry.expires_at <= now.at {
            // Its alarm came before it was synced.
            self.take_one(now, to, seq, Outcome::Expired, None, out);
            return self.push_ready(to, out);
        }
        self.push_ready(to, out);
        self.keep_cache_small(to, seq);
    }

    /// Drops what the store has, where it is not about to be pushed.
    fn keep_cache_small(&mut self, id: DeviceId, seq: u64) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        if device.session.is_none() || device.mailbox.cached() > CACHED_BYTES_MAX {
            device.mailbox.drop_content(seq);
        }
    }

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
            // Its mailbox has another name by now, which is on its way into the store.
            return;
        }
        device.recorded_at = position;
        if is_named {
            device.mailbox.reserve_to(reserved_to);
        }
        if let Some(current) = device.session.as_deref_mut()
            && (is_newest || Some(current.number) == session)
        {
            current.is_open = true;
        }
        self.welcome(id, out);
        self.push_ready(id, out);
    }

    /// The store cannot sync for now: who waits is told that nothing is known.
    pub(crate) fn store_failing(&mut self, now: Now, out: Out<'_>) {
        self.mailboxes.is_failing = true;
        let mut told = Vec::new();
        for pending in &mut self.mailboxes.pending {
            if let Pending::Message { to, seq, reply_to, digest, is_told } = pending
                && !*is_told
            {
                *is_told = true;
                told.push((*reply_to, *to, *seq, *digest));
            }
        }
        for (reply_to, to, seq, digest) in told {
            self.answer_from(now, reply_to, (to, seq), digest, Reply::Unknown, out);
        }
        self.settle_local(now, out);
    }

    /// The store syncs again.
    pub(crate) fn store_healthy(&mut self) {
        self.mailboxes.is_failing = false;
    }
}
