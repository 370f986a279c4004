//! Sessions of devices with mailboxes: hello, takeover, end, tokens, presence, and a device's
//! alarms.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{
    BAD_FRAMES_MAX, BAD_FRAMES_WINDOW, ClientFrame, DEVICES_LIMIT_MAX, DeviceRef, DeviceStatus,
    FrameError, FrameErrorCode, PublicId, RejectCode, ServerFrame, WATCH_MAX, Welcome, close,
    parse_client,
};

use super::timers::Alarm;
use super::{Device, Envelope, Event, Now, Out, Position, Record, SendFilter};
use crate::broker::{Broker, Effect};
use crate::device_slots::DeviceSlotsMax;
use crate::directory::Watcher;
use crate::{Conn, Moment, StampClock};

/// Number of takeovers of one device within [`FLAP_WINDOW`] from which on a newcomer must wait.
const FLAP_MIN: usize = 5;
const FLAP_WINDOW: Duration = Duration::from_secs(10);
/// Time for which it waits.
const FLAP_WAIT: Duration = Duration::from_secs(2);
/// Interval at which a newcomer checks again if the device before it has ended.
const LEAVING_WAIT: Duration = Duration::from_millis(50);
/// Time before the end of a token at which the device is sent `expiring`.
const EXPIRING_BEFORE: Duration = Duration::from_secs(60);

/// One connection of a device.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) conn: Conn,
    /// Its number on this shard, never 0: a reply to one session must not be given to another.
    pub(crate) number: u32,
    pub(super) is_text: bool,
    /// Set once the store has recorded that the device is connected. Before that nothing is pushed:
    /// after a crash the device would count as away, and so what it saw as never pushed.
    pub(super) is_open: bool,
    /// The `welcome` that is still to be sent: the store must first know the device and the name of
    /// its mailbox.
    unwelcomed: Option<Box<Unwelcomed>>,
    /// Bytes pushed since the connection had last taken everything.
    pub(super) pushed_bytes: usize,
    filter: Option<Arc<dyn SendFilter>>,
    /// Time at which its token expires, by the uptime and by the wall clock.
    token_ends: Option<(Moment, u64)>,
    is_warned: bool,
    bad_frames: BadFrames,
    pub(super) watching: BTreeSet<PublicId>,
}

/// Parts of a `welcome` that is still to be sent.
#[derive(Debug)]
struct Unwelcomed {
    token: Option<Box<str>>,
    resumed: bool,
}

/// Number of invalid frames within [`BAD_FRAMES_WINDOW`].
#[derive(Debug, Default)]
struct BadFrames {
    since: Moment,
    count: u32,
}

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

/// A newcomer that must wait: for the flap guard, or until the device before it has ended.
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
        // A crash may have come after its time to live and before the record of its end. It must
        // end before it is welcomed, or it would be told that nothing was lost.
        self.away_alarm(now, id, out);
        let device = self.mailboxes.devices.get(&id);
        if device.is_some_and(|device| device.is_ephemeral && device.session.is_some()) {
            return self.take_over_ephemeral(now, hello, out);
        }
        match self.mailboxes.devices.get(&id) {
            None => self.begin(now, hello, out),
            // The outcomes of what waited for it are being recorded; then it begins anew.
            Some(device) if device.is_leaving() => self.wait(now, hello, LEAVING_WAIT, out),
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
        if self.mailboxes.devices.contains_key(&id) {
            // Outcomes of what waited for it are still pending.
            self.wait(now, hello, LEAVING_WAIT, out);
        } else {
            self.begin(now, hello, out);
        }
        self.go_on_counting(id, takeovers);
    }

    /// Gives a device the takeovers that were counted for the device of the same id before it.
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
        let (ttl, is_full) = (self.ttl(id), self.mailboxes.is_full);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let is_over = ttl.is_some_and(|ttl| device.away_since.after(ttl) <= now.at);
        // A full store says already that it is connected, and takes no second record of that, for
        // which `welcome` could wait.
        let is_there = is_full && device.is_recorded_online && device.records_unsynced == 0;
        if is_over && device.session.is_none() && !is_there {
            // An in-flight accept keeps this expired device alive. Re-log it before `welcome`, or a
            // crash would delete it.
            device.recorded_at = Position::NOWHERE;
        }
        if device.session.is_some() && self.is_flapping(now, id, out) {
            return self.wait(now, hello, FLAP_WAIT, out);
        }
        self.open(now, hello, out);
    }

    /// Takes a slot for a new device, if need be from an anonymous one that is away and for which
    /// nothing waits.
    ///
    /// # Errors
    ///
    /// The reason with which the connection is closed, if there is no slot.
    fn take_slot(&mut self, now: Now, id: DeviceId, out: Out<'_>) -> Result<(), &'static str> {
        if self.mailboxes.is_full {
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
        // Odd: in a record an even name marks a device that is ending.
        let mut device = Device::new(id, hello.nonce | 1, now);
        device.is_ephemeral = hello.is_ephemeral;
        device.receipts = hello.is_ephemeral.then(Box::default);
        self.mailboxes.stats.mailboxes += u64::from(!hello.is_ephemeral);
        if !self.mailboxes.is_durable || hello.is_ephemeral {
            // No crash can make it give a number twice: it takes the mailbox along.
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

    /// Lets the connection in that waited while its device ended. It opens a new device, which
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
        self.mailboxes.timers.set(until, Alarm::Waiting, id);
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
        // Without a record to wait for: nothing of it is stored, or the store says already that
        // it is connected. That record may still be on its way, though.
        let is_open = !is_recorded && device.records_unsynced == 0;
        self.mailboxes.idle.remove(&(device.away_since, id));
        let knows = device.knows(&hello, epoch);
        let resumed = knows && hello.last_seq <= device.mailbox.pushed_to();
        if knows && !resumed {
            // The client has seen a seq that was never pushed: the log was rolled back. Numbers up
            // to the one it names may be given to other messages now, which it would skip. After a
            // crash everything up to the last reserved seq counts as pushed, so no client that
            // only tells the truth comes here.
            //
            // Where the name is not recorded now, a crash brings back the old one. That is safe:
            // the client does not know it any more, and takes the mailbox for another again.
            device.mailbox_name = hello.nonce | 1;
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
        self.mailboxes.sessions[index] = Some(id);
        // Before its record and `welcome`, which both say how far it has acked.
        if resumed {
            self.ack_to(now, id, hello.last_seq, out);
        }
        if is_recorded {
            self.record_device(id, Some(number), out);
        }
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        if is_kept && device.recorded_at.is_nowhere() {
            // The store does not know it yet, and must before it sends: a crash would leave its
            // messages, but forget the device with its ids and the outcomes that it asked for.
            out(Effect::AwaitReply { conn: hello.conn });
        } else {
            self.welcome(id, out);
        }
        self.announce(id, true, now.wall_ms, out);
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

    /// Sends `welcome` to the connection of a device, once.
    pub(super) fn welcome(&mut self, id: DeviceId, out: Out<'_>) {
        let Some(session) = self.session(id) else { return };
        let Some(unwelcomed) = session.unwelcomed.take() else { return };
        let (conn, is_filtered) = (session.conn, session.filter.is_some());
        if session.is_text {
            self.inform_as(conn, id, is_filtered, out);
        } else {
            self.welcome_frame(id, conn, &unwelcomed, out);
        }
        out(Effect::Replied { conn });
        // Not before: the token may be about to expire, and `expiring` must come after `welcome`.
        self.set_token_alarm(id);
    }

    fn welcome_frame(&self, id: DeviceId, conn: Conn, unwelcomed: &Unwelcomed, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        let (shown, name) = (self.show(id), self.mailbox_name(device));
        let limits = &self.mailboxes.limits;
        let frame = ServerFrame::Welcome(Welcome {
            device: shown.as_ref(),
            token: unwelcomed.token.as_deref(),
            mailbox: &name,
            resumed: unwelcomed.resumed,
            pending: device.mailbox.waiting() as u64,
            last_seq: device.mailbox.acked_to(),
            ping_every_ms: limits.ping_interval.as_millis() as u64,
            max_message_bytes: self.frame_len_max(device) as u64,
            durability: self.strongest(),
            server: SERVER,
        });
        out(Effect::Tell { conn, frame: &frame });
    }

    /// Returns the longest frame that may be sent to a device: `max_message_bytes`, but at least
    /// [`FRAME_LEN_MIN`], and more for messages that an earlier run with a greater limit accepted.
    fn frame_len_max(&self, device: &Device) -> usize {
        let limit = self.mailboxes.limits.message_bytes_max;
        limit.max(FRAME_LEN_MIN).max(device.mailbox.longest())
    }

    /// Ends what a connection that is gone had: its session, or its wait for one.
    pub(crate) fn session_ended(&mut self, now: Now, conn: Conn, out: Out<'_>) {
        if let Some(id) = self.session_on(conn) {
            self.end_session(now, id, None, out);
            return;
        }
        if let Some(id) = self.mailboxes.end_wait(conn)
            && let Some(device) = self.mailboxes.devices.get_mut(&id)
        {
            device.waiting = None;
            self.note_idle(id);
        }
    }

    /// Ends a device's session, if it has one, and closes its connection if there is a code.
    fn end_session(&mut self, now: Now, id: DeviceId, code: Option<u16>, out: Out<'_>) {
        let may_put_off = self.may_put_off_record(id);
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        let Some(session) = device.session.take() else { return };
        let is_ephemeral = device.is_ephemeral;
        device.since_ms = now.wall_ms;
        device.away_since = now.at;
        device.mailbox.rewind();
        device.mailbox.drop_contents();
        // The fence: whatever still comes on the connection finds no session.
        self.mailboxes.sessions[session.conn.0 as usize] = None;
        self.mailboxes.stats.sessions -= 1;
        if session.is_text {
            self.unseat(session.conn);
        }
        let watcher = Watcher { device: id, shard: self.shard };
        for watched in &session.watching {
            self.directory.unwatch(watched, watcher);
        }
        match code {
            Some(close::TAKEN_OVER) => out(taken_over(session.conn)),
            Some(code) => {
                let reason = close::name(code).unwrap_or("closed");
                out(Effect::Close { conn: session.conn, code, reason });
            }
            None => {}
        }
        if is_ephemeral {
            // Not left to its end, which may have to wait for outcomes.
            self.announce(id, false, now.wall_ms, out);
            self.end_device(now, id, out);
        } else if code != Some(close::TAKEN_OVER) {
            // Not after a takeover, where the new session follows in the same step.
            if may_put_off {
                self.mailboxes.stale_records.insert(id);
            } else {
                self.record_device(id, None, out);
            }
            self.announce(id, false, now.wall_ms, out);
            self.set_away_alarm(id, now);
            self.note_idle(id);
        }
    }

    pub(super) fn set_away_alarm(&mut self, id: DeviceId, now: Now) {
        if let Some(ttl) = self.ttl(id)
            && let Some(device) = self.mailboxes.devices.get(&id)
        {
            self.mailboxes.timers.set(device.away_since.after(ttl).max(now.at), Alarm::Away, id);
        }
    }

    /// Returns how long a device may be away before it ends; `None` is for ever.
    pub(super) fn ttl(&self, id: DeviceId) -> Option<Duration> {
        let limits = &self.mailboxes.limits;
        if id.is_number() { Some(limits.device_ttl) } else { limits.named_device_ttl }
    }

    /// Returns the device whose session is on a connection.
    pub(crate) fn session_on(&self, conn: Conn) -> Option<DeviceId> {
        self.mailboxes.sessions.get(conn.0 as usize).copied().flatten()
    }

    pub(crate) fn session(&mut self, id: DeviceId) -> Option<&mut Session> {
        self.mailboxes.devices.get_mut(&id)?.session.as_deref_mut()
    }

    /// Sends a frame to a device, if it is connected by v1.
    pub(super) fn tell(&self, id: DeviceId, frame: &ServerFrame<'_>, out: Out<'_>) {
        if let Some(conn) = self.mailboxes.devices.get(&id).and_then(|device| device.told_on()) {
            out(Effect::Tell { conn, frame });
        }
    }

    pub(super) fn reject(
        &self,
        id: DeviceId,
        frame_id: &str,
        code: RejectCode,
        message: &str,
        out: Out<'_>,
    ) {
        out(Effect::Count(Event::Rejected(code)));
        let retry_after_ms = match code {
            RejectCode::StoreUnavailable | RejectCode::StoreFull | RejectCode::MailboxFull => {
                Some(1_000)
            }
            _ => None,
        };
        self.tell(id, &ServerFrame::Rejected { id: frame_id, code, message, retry_after_ms }, out);
    }

    /// Obeys a frame of a v1 device. What comes on a connection that is fenced changes nothing.
    pub(crate) fn frame(&mut self, now: Now, conn: Conn, text: &[u8], out: Out<'_>) {
        let Some(id) = self.session_on(conn) else { return };
        match parse_client(text) {
            Ok(frame) => self.obey(now, id, conn, frame, out),
            Err(error) => self.bad_frame(now, id, &error, out),
        }
    }

    fn obey(&mut self, now: Now, id: DeviceId, conn: Conn, frame: ClientFrame<'_>, out: Out<'_>) {
        match frame {
            ClientFrame::Send(send) => self.send_frame(now, id, &send, out),
            ClientFrame::Ack { seq } => self.ack_frame(now, id, seq, out),
            ClientFrame::Refuse { seq, reason } => {
                self.refuse_frame(now, id, seq, reason.as_deref(), out);
            }
            ClientFrame::Cancel { id: message } => self.cancel_frame(now, id, &message, out),
            ClientFrame::Devices { id: frame, after, limit } => {
                self.devices_frame(id, &frame, after.as_deref(), limit, out);
            }
            ClientFrame::Watch { id: frame, devices } => {
                self.watch_frame(now, id, &frame, &devices, out);
            }
            ClientFrame::Unwatch { id: frame, devices } => {
                self.unwatch_frame(id, &frame, devices.as_deref(), out);
            }
            ClientFrame::Refresh { token } => out(Effect::Verify { conn, token: &token }),
            ClientFrame::Ping { id: frame } => {
                self.tell(id, &ServerFrame::Pong { id: frame.as_deref() }, out);
            }
            ClientFrame::Hello { .. } => {
                self.complain(now, id, "hello is only the first frame of a connection", out);
            }
        }
    }

    /// Answers a frame that is well-formed and cannot be obeyed as a bad one.
    pub(super) fn complain(&mut self, now: Now, id: DeviceId, message: &str, out: Out<'_>) {
        let error =
            FrameError { code: FrameErrorCode::BadFrame, message: message.to_owned(), id: None };
        self.bad_frame(now, id, &error, out);
    }

    fn bad_frame(&mut self, now: Now, id: DeviceId, error: &FrameError, out: Out<'_>) {
        out(Effect::Count(Event::BadFrame));
        let frame = ServerFrame::Error {
            code: error.code,
            message: &error.message,
            id: error.id.as_deref(),
        };
        self.tell(id, &frame, out);
        let Some(session) = self.session(id) else { return };
        let bad = &mut session.bad_frames;
        if bad.count == 0 || now.at.since(bad.since) >= BAD_FRAMES_WINDOW {
            *bad = BadFrames { since: now.at, count: 0 };
        }
        bad.count += 1;
        if bad.count >= BAD_FRAMES_MAX {
            self.end_session(now, id, Some(close::PROTOCOL_ERROR), out);
        }
    }

    /// Returns whether a device's token lets it send to another.
    pub(super) fn may_send(&self, id: DeviceId, to: DeviceId) -> bool {
        self.allows(id, self.show(to).as_ref())
    }

    /// As [`Broker::may_send`], for a receiver that may not exist.
    pub(crate) fn allows(&self, id: DeviceId, to: DeviceRef<'_>) -> bool {
        let filter = self
            .mailboxes
            .devices
            .get(&id)
            .and_then(|device| device.session.as_ref())
            .and_then(|session| session.filter.as_ref());
        filter.is_none_or(|filter| filter.allows(&to.to_string()))
    }

    /// Applies a valid token that a connection showed. One for another device ends the session.
    pub(crate) fn refreshed(
        &mut self,
        now: Now,
        conn: Conn,
        device: DeviceId,
        token_ends_ms: Option<u64>,
        filter: Option<Arc<dyn SendFilter>>,
        out: Out<'_>,
    ) {
        let Some(id) = self.session_on(conn) else { return };
        if id != device {
            return self.end_session(now, id, Some(close::NOT_AUTHENTICATED), out);
        }
        if let Some(session) = self.session(id) {
            session.filter = filter;
            session.token_ends = token_ends_ms.map(|ms| (moment_of(now, ms), ms));
            session.is_warned = false;
        }
        self.tell(id, &ServerFrame::Refreshed { expires_at_ms: token_ends_ms }, out);
        self.set_token_alarm(id);
    }

    fn set_token_alarm(&mut self, id: DeviceId) {
        let Some(session) = self.session(id) else { return };
        let Some((ends, _)) = session.token_ends else { return };
        let is_warned = session.is_warned;
        let before = ends.ms().saturating_sub(EXPIRING_BEFORE.as_millis() as u64);
        let at = if is_warned { ends } else { Moment::from_ms(before) };
        self.mailboxes.timers.set(at, Alarm::Token, id);
    }

    fn token_alarm(&mut self, now: Now, id: DeviceId, out: Out<'_>) {
        let Some(session) = self.session(id) else { return };
        let Some((ends, at_ms)) = session.token_ends else { return };
        // The alarm may be that of an earlier token: alarms are never moved later.
        if ends <= now.at {
            return self.end_session(now, id, Some(close::NOT_AUTHENTICATED), out);
        }
        if now.at.after(EXPIRING_BEFORE) >= ends && !session.is_warned {
            session.is_warned = true;
            self.tell(id, &ServerFrame::Expiring { at_ms }, out);
        }
        self.set_token_alarm(id);
    }

    /// Returns whether [`Input::Tick`](crate::Input::Tick) has something to do.
    #[inline]
    pub fn is_due(&self, now: Moment) -> bool {
        self.mailboxes.timers.next().is_some_and(|at| at <= now)
            || self.mailboxes.acks_due().is_some_and(|at| at <= now)
            || self.mailboxes.stale_records_due().is_some_and(|at| at <= now)
    }

    /// Returns the next moment at which [`Input::Tick`](crate::Input::Tick) may have something
    /// to do.
    pub fn next_tick(&self) -> Option<Moment> {
        let others =
            self.mailboxes.acks_due().into_iter().chain(self.mailboxes.stale_records_due());
        self.mailboxes.timers.next().into_iter().chain(others).min()
    }

    /// Does everything that is due.
    pub(crate) fn tick(&mut self, now: Now, out: Out<'_>) {
        while let Some((alarm, id)) = self.mailboxes.timers.take_due(now.at) {
            match alarm {
                Alarm::Expiry => self.expire(now, id, out),
                Alarm::Token => self.token_alarm(now, id, out),
                Alarm::Waiting => self.waiting_alarm(now, id, out),
                Alarm::Away => self.away_alarm(now, id, out),
                Alarm::Window => self.window_alarm(now, id),
            }
        }
        if self.mailboxes.acks_due().is_some_and(|at| at <= now.at) {
            self.record_acks(out);
        }
        self.stale_records_tick(now, out);
    }

    fn waiting_alarm(&mut self, now: Now, id: DeviceId, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get_mut(&id) else { return };
        // The wait that the alarm was set for may have ended, and this be a later one.
        if let Some(waiting) = &device.waiting
            && waiting.until > now.at
        {
            return self.mailboxes.timers.set(waiting.until, Alarm::Waiting, id);
        }
        if let Some(waiting) = device.waiting.take() {
            let (is_leaving, is_ephemeral) = (device.is_leaving(), device.is_ephemeral);
            self.mailboxes.end_wait(waiting.hello.conn);
            if is_leaving {
                return self.wait(now, waiting.hello, LEAVING_WAIT, out);
            }
            if is_ephemeral {
                return self.replace_ephemeral(now, waiting.hello, out);
            }
            self.open(now, waiting.hello, out);
        }
    }

    fn away_alarm(&mut self, now: Now, id: DeviceId, out: Out<'_>) {
        let Some(device) = self.mailboxes.devices.get(&id) else { return };
        if device.session.is_some() || device.is_ending {
            return;
        }
        if device.is_ephemeral {
            return self.end_device(now, id, out);
        }
        let Some(ttl) = self.ttl(id) else { return };
        if device.away_since.after(ttl) <= now.at {
            self.end_device(now, id, out);
        } else {
            // It came back and left again since the alarm was set.
            self.set_away_alarm(id, now);
        }
    }

    /// Answers a `devices` frame with a page of the devices that there are.
    fn devices_frame(
        &self,
        id: DeviceId,
        frame_id: &str,
        after: Option<&str>,
        limit: Option<u32>,
        out: Out<'_>,
    ) {
        if !self.mailboxes.limits.list_devices {
            return self.reject(id, frame_id, RejectCode::NotAllowed, HIDDEN, out);
        }
        let Ok(after) = after.map(|after| DeviceRef::parse(after).ok_or(())).transpose() else {
            let message = "`after` is no device id; give the `next` of the page before";
            return self.reject(id, frame_id, RejectCode::BadRequest, message, out);
        };
        let limit = limit.unwrap_or(DEVICES_LIMIT_MAX).min(DEVICES_LIMIT_MAX) as usize;
        let (page, has_more) = self.directory.page(after, limit);
        // A page ends before it would be longer than `welcome` said that frames are.
        let mut bytes = self.mailboxes.limits.message_bytes_max.max(FRAME_LEN_MIN) - PAGE_LEN_MAX;
        let devices: Vec<DeviceStatus<'_>> = page
            .iter()
            .map(|(shown, presence)| DeviceStatus {
                device: shown.as_ref(),
                online: presence.online,
                since_ms: presence.since_ms,
            })
            .take_while(|status| {
                let is_room = status.len_max() <= bytes;
                bytes = bytes.saturating_sub(status.len_max());
                is_room
            })
            .collect();
        let has_more = has_more || devices.len() < page.len();
        let next = devices.last().filter(|_| has_more).map(|last| last.device);
        self.tell(id, &ServerFrame::Devices { id: frame_id, devices: &devices, next }, out);
    }

    fn watch_frame(
        &mut self,
        now: Now,
        id: DeviceId,
        frame_id: &str,
        devices: &[Cow<'_, str>],
        out: Out<'_>,
    ) {
        if !self.mailboxes.limits.list_devices {
            return self.reject(id, frame_id, RejectCode::NotAllowed, HIDDEN, out);
        }
        let Some(shown) = public_ids(devices) else {
            let message = "`devices` holds a string that is no device id";
            return self.reject(id, frame_id, RejectCode::BadRequest, message, out);
        };
        let shard = self.shard;
        let directory = Arc::clone(&self.directory);
        let Some(session) = self.session(id) else { return };
        let mut new = BTreeSet::new();
        let mut is_new =
            |shown: &PublicId| !session.watching.contains(shown) && new.insert(shown.clone());
        let added: Vec<PublicId> = shown.into_iter().filter(|shown| is_new(shown)).collect();
        if session.watching.len() + added.len() > WATCH_MAX {
            let message = format!("a connection watches at most {WATCH_MAX} devices");
            return self.reject(id, frame_id, RejectCode::BadRequest, &message, out);
        }
        session.watching.extend(added.iter().cloned());
        self.tell(id, &ServerFrame::Watching { id: frame_id }, out);
        for watched in added {
            let presence = directory.watch(&watched, Watcher { device: id, shard });
            let (online, at_ms) =
                presence.map_or((false, now.wall_ms), |now| (now.online, now.since_ms));
            let frame = ServerFrame::Presence { device: watched.as_ref(), online, at_ms };
            self.tell(id, &frame, out);
        }
    }

    fn unwatch_frame(
        &mut self,
        id: DeviceId,
        frame_id: &str,
        devices: Option<&[Cow<'_, str>]>,
        out: Out<'_>,
    ) {
        let watcher = Watcher { device: id, shard: self.shard };
        let directory = Arc::clone(&self.directory);
        let Some(session) = self.session(id) else { return };
        let ended: Vec<PublicId> = match devices {
            None => std::mem::take(&mut session.watching).into_iter().collect(),
            Some(devices) => {
                let meant = devices.iter().filter_map(|device| public_id(device));
                meant.filter(|shown| session.watching.remove(shown)).collect()
            }
        };
        for watched in &ended {
            directory.unwatch(watched, watcher);
        }
        self.tell(id, &ServerFrame::Watching { id: frame_id }, out);
    }

    /// Notes that a device came or went, and tells its watchers if that is a change.
    pub(crate) fn announce(&mut self, id: DeviceId, online: bool, at_ms: u64, out: Out<'_>) {
        let watchers = self.directory.present(id, online, at_ms);
        self.tell_watchers(watchers, id, online, at_ms, out);
    }

    /// Ends an anonymous device of the text protocol, with its id, and tells its watchers.
    pub(crate) fn end_anonymous(&mut self, id: DeviceId, now: Now, out: Out<'_>) {
        let watchers = self.directory.forget(id);
        self.tell_watchers(watchers, id, false, now.wall_ms, out);
    }

    fn tell_watchers(
        &mut self,
        watchers: Vec<Watcher>,
        id: DeviceId,
        online: bool,
        at_ms: u64,
        out: Out<'_>,
    ) {
        for Watcher { device: to, shard } in watchers {
            self.send_to_shard(shard, Envelope::Presence { to, device: id, online, at_ms }, out);
        }
    }

    pub(super) fn presence(
        &mut self,
        to: DeviceId,
        device: DeviceId,
        online: bool,
        at_ms: u64,
        out: Out<'_>,
    ) {
        let shown = self.show(device);
        let Some(session) = self.session(to) else { return };
        // The watch may have ended while this was on its way.
        if session.watching.contains(&shown) {
            let frame = ServerFrame::Presence { device: shown.as_ref(), online, at_ms };
            self.tell(to, &frame, out);
        }
    }
}

impl Device {
    /// Returns the connection to which frames for it go, if it is connected by v1.
    pub(super) fn told_on(&self) -> Option<Conn> {
        let session = self.session.as_ref().filter(|session| !session.is_text);
        session.map(|session| session.conn)
    }

    /// Returns whether it is away, is not ending, and no newcomer waits.
    fn is_idle(&self) -> bool {
        self.session.is_none() && self.waiting.is_none() && !self.is_leaving()
    }

    /// Returns whether it ends as soon as the outcomes that are pending are recorded.
    fn is_leaving(&self) -> bool {
        self.is_ending || (self.is_ephemeral && self.session.is_none())
    }

    /// Returns the digest under which it keeps the id of a message that it sends.
    #[inline]
    pub(super) fn own_digest(&self, id: crate::Digest) -> crate::Digest {
        // An ephemeral device may end before a message of it is answered, and another of the same
        // id send under the same id of a message: the answer must not be taken for one to that.
        if self.is_ephemeral { id.of_incarnation(self.mailbox_name) } else { id }
    }

    /// Returns whether `last_seq` of a newcomer is about this mailbox.
    fn knows(&self, hello: &Hello, epoch: u64) -> bool {
        hello.mailbox.as_deref() == Some(&format!("{:016x}", self.mailbox_name ^ epoch))
    }

    /// Returns the number below which none is given again, once a record says so.
    pub(super) fn reserves_to(&self) -> u64 {
        // Also above all that were given: the messages with those numbers may have left the log,
        // and then nothing else in it says so.
        self.mailbox.reserved_to().max(self.reserving_to).max(self.mailbox.next_seq())
    }

    /// Returns the record of its state.
    pub(super) fn record<'a>(&self, shown: &'a PublicId, clock: StampClock) -> Record<'a> {
        let is_away = self.session.is_none();
        Record::Device(super::DeviceRecord {
            device: shown.as_ref(),
            // Even while it is ending: evictions have no records of their own, so after a crash it
            // must go on ending, or what was evicted would be back.
            mailbox: if self.is_ending { !self.mailbox_name } else { self.mailbox_name },
            reserved_to: self.reserves_to(),
            acked_to: self.mailbox.acked_to(),
            pushed_to: self.mailbox.pushed_to(),
            away_since_ms: is_away.then(|| clock.stamp(self.away_since)),
        })
    }
}

/// Length that every frame may have, whatever `max_message_bytes` is. Only `message` and `devices`
/// can be longer: an `outcome` is about 2.2 KiB at most, with every byte of its id and its reason
/// escaped, and a `welcome` with a token at most 1 KiB.
const FRAME_LEN_MIN: usize = 4_096;

/// Room for a page of devices without the devices.
const PAGE_LEN_MAX: usize = 1_024;

const SERVER: &str = concat!("switchboard/", env!("CARGO_PKG_VERSION"));
const HIDDEN: &str = "this server does not show devices to each other (list_devices)";

/// Reasons for refusing a new device. A close frame has room for 123 bytes.
const DEVICES_FULL: &str =
    "full: no more devices are taken now (devices_max); those that exist may come";
const STORE_FULL: &str = "full: the store has no space for a new device now (store_full); come back later, or say \
                          \"ephemeral\": true";
const _: () = assert!(DEVICES_FULL.len() <= 123 && STORE_FULL.len() <= 123);

fn taken_over(conn: Conn) -> Effect<'static> {
    let reason = "taken over by a newer connection of this device";
    Effect::Close { conn, code: close::TAKEN_OVER, reason }
}

fn public_ids(devices: &[Cow<'_, str>]) -> Option<Vec<PublicId>> {
    devices.iter().map(|device| public_id(device)).collect()
}

fn public_id(device: &str) -> Option<PublicId> {
    DeviceRef::parse(device).map(PublicId::from)
}

/// Returns the moment of the uptime at which the wall clock will show `wall_ms`, if it does not
/// jump.
fn moment_of(now: Now, wall_ms: u64) -> Moment {
    Moment::from_ms(now.at.ms() + wall_ms.saturating_sub(now.wall_ms))
}

/// Returns a device for a replay that has not come to the device's own record yet.
pub(super) fn provisional(id: DeviceId, now: Now) -> Device {
    // No mailbox is named 0: if the record never comes, the end of the replay drops the device.
    Device::new(id, 0, now)
}
