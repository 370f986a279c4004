//! The way from a mailbox to its device: pushes, acks, refusals, expiry.

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Outcome, ServerFrame};

use super::mailbox::{Next, Taken};
use super::outcome::End;
use super::session::Session;
use super::store::Pending;
use super::{Content, Event, Now, Out, Position, Record};
use crate::Moment;
use crate::broker::{Broker, Effect};
use std::time::Duration;

/// Contents that one fetch asks the store for.
const FETCH_ENTRIES_MAX: usize = 64;
const FETCH_BYTES_MAX: usize = 256 << 10;
/// Time for which acks wait to share a record: half of the time in which they must be on disk.
const ACKS_WAIT: Duration = Duration::from_millis(50);

/// A content that is wanted from the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The entry's number in its mailbox.
    pub seq: u64,
    /// Position of its record.
    pub position: Position,
    /// Bytes of its content.
    pub len: u32,
}

impl Broker {
    /// Pushes everything that may be pushed to a device now.
    pub(super) fn push_ready(&mut self, id: DeviceId, out: Out<'_>) {
        self.push_with(id, None, out);
    }

    /// As [`Broker::push_ready`], with the number and the frame of the newest entry, if the
    /// caller has them.
    pub(super) fn push_with(
        &mut self,
        id: DeviceId,
        newest: Option<(u64, &ServerFrame<'_>)>,
        out: Out<'_>,
    ) {
        let limits = &self.mailboxes.limits;
        let (in_flight_max, bytes_max) = (limits.in_flight_max, limits.push_bytes_max);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let Some(session) = device.session.as_deref_mut().filter(|session| session.is_open) else {
            return;
        };
        let names = self.directory.names();
        loop {
            if session.pushed_bytes >= bytes_max {
                return out(Effect::AwaitDrain { conn: session.conn });
            }
            match device.mailbox.next(in_flight_max, session.is_text) {
                Next::Push(index) | Next::Fetch(index)
                    if device.mailbox.at(index).expires_at <= self.mailboxes.now.at =>
                {
                    // Many expire at once, and it was not this one's turn yet.
                    let now = self.mailboxes.now;
                    self.expire(now, id, usize::MAX, out);
                    return;
                }
                Next::Push(index) => {
                    let entry = device.mailbox.at(index);
                    let from = names.show(entry.from);
                    session.pushed_bytes += entry.len as usize + PUSH_OVERHEAD;
                    let kept;
                    let frame = match newest {
                        // Pushed as it came, and not read back from its content.
                        Some((seq, frame)) if seq == entry.seq => frame,
                        _ => {
                            let content = entry.content.as_ref();
                            let content = content.expect("next pushes only contents");
                            kept = content.frame(entry.seq, from.as_ref());
                            &kept
                        }
                    };
                    out(push(session, frame));
                    device.mailbox.pushed(index);
                    // It is pushed again only in another session, where it can be fetched.
                    device.mailbox.drop_content_at(index);
                }
                Next::Fetch(index) => {
                    // The one under way may be for a session that has ended: a device that comes
                    // and goes in a loop must not queue one fetch after the other.
                    if device.fetching.is_none() {
                        device.fetching = Some(session.number);
                        let wants: Vec<Want> = device
                            .mailbox
                            .to_fetch(index, FETCH_ENTRIES_MAX, FETCH_BYTES_MAX)
                            .map(|entry| Want {
                                seq: entry.seq,
                                position: entry.position,
                                len: entry.len,
                            })
                            .collect();
                        let (session, conn) = (session.number, session.conn);
                        out(Effect::Fetch { device: id, session, conn, wants: &wants });
                    }
                    return;
                }
                Next::Wait => {
                    // A text device sends no acks: it acks by taking everything.
                    if session.is_text && session.pushed_bytes > 0 {
                        out(Effect::AwaitDrain { conn: session.conn });
                    }
                    return;
                }
            }
        }
    }

    /// Goes on pushing to a connection that has taken everything that was pushed to it.
    pub(crate) fn drained(&mut self, now: Now, conn: crate::Conn, out: Out<'_>) {
        let Some(id) = self.session_on(conn) else { return };
        let Some(session) = self.session(id) else { return };
        session.pushed_bytes = 0;
        if session.is_text {
            let Some(device) = self.mailboxes.devices.get(&id) else { return };
            for seq in device.mailbox.pushed_messages() {
                self.take_one(now, id, seq, Outcome::Delivered, None, out);
            }
        }
        self.push_ready(id, out);
    }

    /// Takes contents from the store and pushes them. One that is missing is fetched again.
    pub(crate) fn fetched(
        &mut self,
        id: DeviceId,
        session: u32,
        contents: impl Iterator<Item = (u64, Content)>,
        out: Out<'_>,
    ) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        if device.fetching != Some(session) {
            return;
        }
        device.fetching = None;
        // Contents for a session that has ended are not kept: the device may be away.
        if device.session.as_ref().is_some_and(|current| current.number == session) {
            for (seq, content) in contents {
                device.mailbox.fetched(seq, content);
            }
        }
        self.push_ready(id, out);
    }

    pub(super) fn ack_frame(&mut self, now: Now, id: DeviceId, seq: u64, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        let pushed_to = device.mailbox.pushed_to();
        if seq > pushed_to {
            let message = format!("nothing above seq {pushed_to} was pushed to this device");
            return self.complain(now, id, &message, out);
        }
        // Asked before the ack frees credit: if nothing waits for credit, there is nothing to look
        // for.
        let is_all_pushed = device.mailbox.is_all_pushed();
        self.ack_to(now, id, seq, out);
        if !is_all_pushed {
            self.push_ready(id, out);
        }
    }

    /// Takes out everything up to `seq`, which the device has acked.
    pub(super) fn ack_to(&mut self, now: Now, id: DeviceId, seq: u64, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let before = device.mailbox.totals();
        let acked = device.mailbox.ack(seq);
        let after = device.mailbox.totals();
        self.recount(before, after);
        for _ in 0..acked.messages - acked.outcomes {
            out(Effect::Count(Event::Ended(Outcome::Delivered)));
        }
        // Entries that were only in memory need no record: a crash removes them anyway.
        if acked.any_stored {
            self.note_ack(now.at, id);
        }
        for taken in acked.with_receipt {
            self.message_ended(now, id, taken, Outcome::Delivered, out);
        }
    }

    /// Marks a device whose acks are to be recorded soon.
    fn note_ack(&mut self, now: Moment, id: DeviceId) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        if !device.is_ack_dirty {
            device.is_ack_dirty = true;
            self.mailboxes.acked.push(id);
            self.mailboxes.acks_due.get_or_insert(now.after(ACKS_WAIT));
        }
    }

    /// Records the acks that are in no record yet, one record for each device.
    pub(crate) fn record_acks(&mut self, out: Out<'_>) {
        self.mailboxes.acks_due = None;
        for id in std::mem::take(&mut self.mailboxes.acked) {
            let Some(device) = self.mailboxes.devices.get_mut(&id) else { continue };
            device.is_ack_dirty = false;
            let seq = device.mailbox.acked_to();
            let shown = self.directory.names().show(id);
            out(Effect::Append(Record::Acked { device: shown.as_ref(), seq }));
            self.mailboxes.pending.push_back(Pending::Nothing);
        }
    }

    pub(super) fn refuse_frame(
        &mut self,
        now: Now,
        id: DeviceId,
        seq: u64,
        reason: Option<&str>,
        out: Out<'_>,
    ) {
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        let pushed_to = device.mailbox.pushed_to();
        if seq > pushed_to {
            let message = format!("nothing above seq {pushed_to} was pushed to this device");
            return self.complain(now, id, &message, out);
        }
        self.take_one(now, id, seq, Outcome::Refused, reason.map(Into::into), out);
        self.push_ready(id, out);
    }

    /// Takes one entry out of a mailbox, for whatever reason but an ack by number, and records that.
    /// Returns false if it was out already.
    pub(super) fn take_one(
        &mut self,
        now: Now,
        id: DeviceId,
        seq: u64,
        outcome: Outcome,
        reason: Option<Box<str>>,
        out: Out<'_>,
    ) -> bool {
        let Some(taken) = self.take(id, seq, outcome, out) else { return false };
        self.message_ended(now, id, taken, End { outcome, reason, cancelled: None }, out);
        true
    }

    /// Takes one entry out of a mailbox in memory, and counts how it ended.
    pub(super) fn take(
        &mut self,
        id: DeviceId,
        seq: u64,
        outcome: Outcome,
        out: Out<'_>,
    ) -> Option<Taken> {
        let device = self.mailboxes.devices.get_mut(&id)?;
        let before = device.mailbox.totals();
        let taken = device.mailbox.take(seq)?;
        let after = device.mailbox.totals();
        self.recount(before, after);
        if !taken.is_outcome {
            out(Effect::Count(Event::Ended(outcome)));
        }
        self.note_idle(id);
        Some(taken)
    }

    /// Takes out messages of a device that have expired, at most `max`; returns their number.
    pub(super) fn expire(&mut self, now: Now, id: DeviceId, max: usize, out: Out<'_>) -> usize {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return 0 };
        let (over, next) = device.mailbox.expired(now.at, max);
        let count = over.len();
        for seq in over {
            self.take_one(now, id, seq, Outcome::Expired, None, out);
        }
        if let Some(next) = next {
            self.set_expiry_alarm(id, next);
        }
        // An expired message may have been in flight, and so frees credit.
        self.push_ready(id, out);
        count
    }
}

/// About the bytes of a pushed frame beside body and id.
const PUSH_OVERHEAD: usize = 128;

/// Returns the effect that pushes a frame, by the protocol of the session.
fn push<'a>(session: &Session, frame: &'a ServerFrame<'a>) -> Effect<'a> {
    let conn = session.conn;
    match *frame {
        ServerFrame::Message { from, body, .. } if session.is_text => {
            Effect::PushBody { conn, from, body }
        }
        _ => Effect::Push { conn, frame },
    }
}
