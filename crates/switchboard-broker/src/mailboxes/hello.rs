//! `hello`: opening the session of a device, taking it over, and waiting for it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::close;

use super::frames::BadFrames;
use super::session::{Session, Speaker, Unwelcomed, moment_of, taken_over};
use super::store::StoreGate;
use super::timers::Alarm;
use super::{Device, Event, Now, Out, Position, SendFilter};
use crate::broker::{Broker, Effect};
use crate::device_slots::DeviceSlotsMax;
use crate::{Conn, Moment};

/// Number of takeovers of one device within [`FLAP_WINDOW`] from which on a newcomer must wait.
const FLAP_MIN: usize = 5;
const FLAP_WINDOW: Duration = Duration::from_secs(10);
/// Time for which it waits.
const FLAP_WAIT: Duration = Duration::from_secs(2);

/// Times of the latest takeovers of a device.
#[derive(Debug, Default)]
pub(crate) struct Takeovers(VecDeque<Moment>);

/// Request of an authenticated connection to open the session of its device.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The connection.
    pub conn: Conn,
    /// The device that the connection has proved to be.
    pub device: DeviceId,
    /// True if it speaks the text protocol.
    pub is_text: bool,
    /// Name of the mailbox that `last_seq` is about, as the client remembers it.
    pub mailbox: Option<Box<str>>,
    /// The greatest `seq` up to which the client has seen everything.
    pub last_seq: u64,
    /// Token that a new device gets, to prove itself later; `None` for one that came with its own.
    pub token: Option<Box<str>>,
    /// Time at which the token that it came with expires, by the wall clock; `None` is never.
    pub token_ends_ms: Option<u64>,
    /// The receivers that its token allows; `None` allows all.
    pub filter: Option<Arc<dyn SendFilter>>,
    /// A random number, of which the name of a new mailbox is made.
    pub nonce: u64,
    /// True if the device, should it be new, ends with its connection and leaves nothing behind.
    pub is_ephemeral: bool,
}

/// A newcomer that must wait for the flap guard.
#[derive(Debug)]
pub(crate) struct Waiting {
    hello: Hello,
    until: Moment,
}

impl Takeovers {
    /// Counts a takeover; returns whether it is one too many within [`FLAP_WINDOW`].
    fn count(&mut self, now: Moment) -> bool {
        while self.0.front().is_some_and(|&at| now.since(at) >= FLAP_WINDOW) {
            self.0.pop_front();
        }
        // No more than the rule needs, however fast they come.
        if self.0.len() >= FLAP_MIN {
            self.0.pop_front();
        }
        self.0.push_back(now);
        self.0.len() >= FLAP_MIN
    }
}

impl Broker {
    /// Opens a session. An older one of the same device is closed at once, and fenced.
    pub(crate) fn hello(&mut self, now: Now, hello: Hello, out: Out<'_>) {
        let id = hello.device;
        // A crash may have come after the device's time to live and before the record of its end.
        // Then it must end before it is welcomed, or it would be told that nothing was lost.
        self.away_alarm(now, id, out);
        let device = self.mailboxes.devices.get(&id);
        if device.is_some_and(|device| device.is_ephemeral && device.session.is_some()) {
            return self.take_over_ephemeral(now, hello, out);
        }
        match self.mailboxes.devices.get(&id) {
            None => self.begin(now, hello, out),
            Some(_) => self.come_back(now, hello, out),
        }
    }

    /// Lets a newcomer take over an ephemeral device. As that ends with its connection, the
    /// newcomer begins a new device of the same id.
    fn take_over_ephemeral(&mut self, now: Now, hello: Hello, out: Out<'_>) {
        // Counted over all devices of the id: each takeover sends two frames to every watcher, so
        // two clients that fight for the id must be slowed down.
        if self.is_flapping(now, hello.device, out) {
            return self.wait(now, hello, FLAP_WAIT, out);
        }
        self.replace_ephemeral(now, hello, out);
    }

    fn replace_ephemeral(&mut self, now: Now, hello: Hello, out: Out<'_>) {
        let id = hello.device;
        // First: the end of the device would let in the connection that waits already, and this one
        // is newer.
        self.end_waiting(id, out);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let takeovers = std::mem::take(&mut device.takeovers);
        self.end_session(now, id, Some(close::TAKEN_OVER), out);
        self.begin(now, hello, out);
        self.go_on_counting(id, takeovers);
    }

    /// Gives a device the takeovers that were counted for the earlier device of its id.
    fn go_on_counting(&mut self, id: DeviceId, takeovers: Takeovers) {
        if let Some(device) = self.mailboxes.devices.get_mut(&id) {
            device.takeovers = takeovers;
        }
    }

    /// Counts a takeover; returns whether there are too many of this device.
    fn is_flapping(&mut self, now: Now, id: DeviceId, out: Out<'_>) -> bool {
        out(Effect::Count(Event::Takeover));
        let device = self.mailboxes.devices.get_mut(&id);
        let is_flapping = device.is_some_and(|device| device.takeovers.count(now.at));
        if is_flapping {
            out(Effect::Count(Event::Flapping(id)));
        }
        is_flapping
    }

    /// Opens the first session of a new device.
    fn begin(&mut self, now: Now, hello: Hello, out: Out<'_>) {
        if !hello.is_ephemeral
            && let Err(reason) = self.take_slot(now, hello.device, out)
        {
            let (conn, code) = (hello.conn, close::TRY_AGAIN_LATER);
            return out(Effect::Close { conn, code, reason });
        }
        // Only a device that was never here is given a token of its own.
        let is_new = hello.token.is_some();
        if hello.device.is_number() && hello.device.get() >= self.directory.next_id() {
            // We signed its token but never gave this id: the store was rolled back in place.
            // Others may have got ids of that time, too.
            self.directory.begin_ids_at(hello.device.get() + 1);
            self.directory.skip_unknown_ids(now.wall_ms);
            out(Effect::Count(Event::RolledBack(hello.device)));
        }
        self.add_device(now, &hello, is_new);
        self.open(now, hello, out);
    }

    /// Opens the session of a device that has a mailbox.
    fn come_back(&mut self, now: Now, hello: Hello, out: Out<'_>) {
        let id = hello.device;
        let (ttl, is_full) = (self.ttl(id), self.mailboxes.gate == StoreGate::Closed);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let is_over = ttl.is_some_and(|ttl| device.away_since.after(ttl) <= now.at);
        // While the store is full, a device that is connected according to the store gets no new
        // record, so `welcome` must not wait for one.
        let is_there = is_full && device.is_recorded_online && device.records_unsynced == 0;
        if is_over && device.session.is_none() && !is_there {
            // The device's time is over, but a message that is not synced keeps it from ending. Its
            // old record would make a start after a crash end it, so there must be a new record
            // before `welcome`.
            device.recorded_at = Position::NOWHERE;
        }
        if device.session.is_some() && self.is_flapping(now, id, out) {
            return self.wait(now, hello, FLAP_WAIT, out);
        }
        self.open(now, hello, out);
    }

    /// Takes a slot for a new device. If there is none, an anonymous device that is away and for
    /// which nothing waits ends, and gives up its slot.
    ///
    /// # Errors
    ///
    /// The reason with which the connection is closed, if there is no slot.
    fn take_slot(&mut self, now: Now, id: DeviceId, out: Out<'_>) -> Result<(), &'static str> {
        let is_closed = match self.mailboxes.gate {
            StoreGate::Open => false,
            StoreGate::NamedOnly => id.is_number(),
            StoreGate::Closed => true,
        };
        if is_closed {
            // The record of a new device stays for as long as the device. A stranger that opens one
            // after the other would keep the store full, and bring the log above its bound.
            return Err(STORE_FULL);
        }
        let directory = Arc::clone(&self.directory);
        let max = self.mailboxes.limits.devices_max;
        let anonymous = if directory.names().has_any() { max - max / 4 } else { max };
        let max = DeviceSlotsMax { all: max, anonymous };
        let has_slot = directory.slots().try_take(id, max)
            || (self.end_idle(now, out) && directory.slots().try_take(id, max));
        has_slot.then_some(()).ok_or(DEVICES_FULL)
    }

    /// Ends the anonymous device of this shard that is away the longest and for which nothing
    /// waits; returns whether there was one.
    fn end_idle(&mut self, now: Now, out: Out<'_>) -> bool {
        // Each device is looked at once: if something waits for it, `note_idle` puts it back when
        // that is gone.
        while let Some((_, id)) = self.mailboxes.idle.pop_first() {
            let device = self.mailboxes.devices.get(&id);
            if device.is_some_and(|device| device.is_idle() && device.mailbox.is_unused()) {
                self.end_device(now, id, out);
                return true;
            }
        }
        false
    }

    /// Notes a device that may be idle now, if it is away: its session ended, or an entry left its
    /// mailbox.
    pub(super) fn note_idle(&mut self, id: DeviceId) {
        let device = self.mailboxes.devices.get_mut(&id);
        let Some(device) = device.filter(|device| device.is_idle()) else { return };
        device.rest_if_away();
        // Only anonymous devices give way to new ones: anybody can make any number of them.
        if id.is_number() {
            self.mailboxes.idle.insert((device.away_since, id));
        }
    }

    fn add_device(&mut self, now: Now, hello: &Hello, is_new: bool) {
        let id = hello.device;
        // Never 0, which is no device.
        let mut device = Device::new(id, hello.nonce | 1, now);
        device.is_ephemeral = hello.is_ephemeral;
        self.mailboxes.stats.mailboxes += u64::from(!hello.is_ephemeral);
        if !self.mailboxes.is_durable || hello.is_ephemeral {
            // No crash can make it give a number twice, because the mailbox is lost in it, too.
            device.mailbox.reserve_to(u64::MAX);
        }
        if !is_new {
            // A device of this id may have ended, and what is still known of messages to it,
            // such as a `cancel`, goes by their numbers.
            device.mailbox.begin_at(*self.mailboxes.used_to(id));
        }
        self.mailboxes.devices.insert(id, Box::new(device));
        self.directory.add_owner(id, self.shard);
    }

    /// Lets in the connection that waited for the end of its device. It opens a new device, which
    /// needs a slot like any other.
    pub(super) fn begin_anew(
        &mut self,
        now: Now,
        waiting: Waiting,
        takeovers: Takeovers,
        out: Out<'_>,
    ) {
        let id = waiting.hello.device;
        self.mailboxes.end_wait(waiting.hello.conn);
        self.begin(now, waiting.hello, out);
        self.go_on_counting(id, takeovers);
    }

    /// Makes a newcomer wait; one that waited already gives way.
    fn wait(&mut self, now: Now, hello: Hello, wait: Duration, out: Out<'_>) {
        let id = hello.device;
        let until = now.at.after(wait);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let conn = hello.conn;
        // Frames that it has sent already are for the session that it waits for.
        out(Effect::AwaitReply { conn });
        if let Some(older) = device.waiting.replace(Box::new(Waiting { hello, until })) {
            self.mailboxes.end_wait(older.hello.conn);
            out(taken_over(older.hello.conn));
        }
        self.mailboxes.waiting.insert(conn, id);
        self.mailboxes.set_alarm(until, Alarm::Waiting, id);
    }

    /// Opens a session of a device that exists, in place of the one that it may have.
    fn open(&mut self, now: Now, hello: Hello, out: Out<'_>) {
        let id = hello.device;
        // First, so that there is no time at which both connections are in a session.
        self.end_session(now, id, Some(close::TAKEN_OVER), out);
        self.end_waiting(id, out);
        let number = self.mailboxes.next_session;
        // 0 stands for no session.
        self.mailboxes.next_session = number.wrapping_add(1).max(1);
        let (is_durable, epoch) = (self.mailboxes.is_durable, self.mailboxes.epoch);
        let may_put_off = self.may_put_off_record(id);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let is_kept = is_durable && !device.is_ephemeral;
        let is_recorded = is_kept && !may_put_off;
        // The session is open at once if there is no record to wait for: nothing of the device is
        // stored, or the store says already that it is connected, by a record that is synced. An
        // ephemeral device also waits for the record of the end of an earlier device of its id:
        // otherwise a crash could bring the earlier device back.
        let awaits_end = device.is_ephemeral && self.mailboxes.gone.contains_key(&id);
        let is_open = !is_recorded && device.records_unsynced == 0 && !awaits_end;
        self.mailboxes.idle.remove(&(device.away_since, id));
        let knows = device.knows(&hello, epoch);
        let resumed = knows && hello.last_seq <= device.mailbox.pushed_to();
        if knows && !resumed {
            // The client has seen a seq that was never pushed: the log was rolled back. Numbers up
            // to the one it names may be given to other messages now, which it would skip. A mere
            // crash brings no truthful client here: after it everything up to the last reserved seq
            // counts as pushed.
            //
            // Where the name is not recorded now, a crash brings back the old one. That is safe:
            // the client remembers only the new one, so it does not resume.
            device.mailbox_name = hello.nonce | 1;
            // It may have read what waits as well.
            device.mailbox.all_may_have_been_pushed();
            if is_recorded {
                device.recorded_at = Position::NOWHERE;
            } else if is_kept {
                self.mailboxes.stale_records.insert(id);
            }
        }
        device.mailbox.rewind();
        device.since_ms = now.wall_ms;
        let token_ends = hello.token_ends_ms.map(|ms| (moment_of(now, ms), ms));
        device.session = Some(Box::new(Session {
            conn: hello.conn,
            number,
            is_text: hello.is_text,
            is_open,
            unwelcomed: Some(Box::new(Unwelcomed { token: hello.token.clone(), resumed })),
            pushed_bytes: 0,
            filter: hello.filter.clone(),
            token_ends,
            is_warned: false,
            bad_frames: BadFrames::default(),
            watching: BTreeSet::new(),
        }));
        self.mailboxes.stats.sessions += 1;
        let index = hello.conn.0 as usize;
        if self.mailboxes.sessions.len() <= index {
            self.mailboxes.sessions.resize(index + 1, None);
        }
        self.mailboxes.sessions[index] = Some(Speaker {
            device: id,
            session: number,
            incarnation: device.incarnation(),
            is_filtered: hello.filter.is_some(),
        });
        // Before its record and `welcome`, which both say how far it has acked.
        if resumed {
            self.ack_to(now, id, hello.last_seq, out);
        }
        if is_recorded {
            self.record_device(id, Some(number), out);
        }
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        if awaits_end || is_kept && device.recorded_at.is_nowhere() {
            // The store does not know it yet, and must before it sends: a crash would leave its
            // messages, but forget the device with its ids and the outcomes that it asked for.
            out(Effect::AwaitReply { conn: hello.conn });
        } else {
            self.welcome(id, out);
        }
        self.announce(now, id, true, out);
        self.push_ready(id, out);
    }

    /// Closes the newcomer that waits, as it gives way to a newer one.
    fn end_waiting(&mut self, id: DeviceId, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        if let Some(older) = device.waiting.take() {
            self.mailboxes.end_wait(older.hello.conn);
            out(taken_over(older.hello.conn));
        }
    }

    pub(super) fn waiting_alarm(&mut self, now: Now, id: DeviceId, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        // The wait for which the alarm was set may be over, and another newcomer may wait now.
        let until = device.waiting.as_ref().map(|waiting| waiting.until);
        if let Some(until) = until.filter(|until| *until > now.at) {
            return self.mailboxes.set_alarm(until, Alarm::Waiting, id);
        }
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        if let Some(waiting) = device.waiting.take() {
            let is_ephemeral = device.is_ephemeral;
            self.mailboxes.end_wait(waiting.hello.conn);
            if is_ephemeral {
                return self.replace_ephemeral(now, waiting.hello, out);
            }
            self.open(now, waiting.hello, out);
        }
    }
}

/// Reasons for refusing a new device. A close frame has room for 123 bytes.
const DEVICES_FULL: &str =
    "full: no more devices are taken now (devices_max); those that exist may come";
const STORE_FULL: &str = "full: the store has no space for a new device now (store_full); come back later, or say \
                          \"ephemeral\": true";
const _: () = assert!(DEVICES_FULL.len() <= 123 && STORE_FULL.len() <= 123);
