//! Sessions of devices with mailboxes: `welcome`, end, tokens, and a device's alarms.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, PublicId, ServerFrame, Welcome, close};

use super::envelope::DeviceReplyTo;
use super::frames::BadFrames;
use super::hello::Hello;
use super::timers::Alarm;
use super::{Device, Now, Out, Record, SendFilter};
use crate::broker::{Broker, Effect};
use crate::directory::Watcher;
use crate::{Conn, Moment, StampClock};

/// Time before the end of a token at which the device is sent `expiring`.
const EXPIRING_BEFORE: Duration = Duration::from_secs(60);

/// Pause after [`Limits::endings_at_once`](super::Limits::endings_at_once), in which the shard does
/// everything else.
const ENDINGS_PAUSE: Duration = Duration::from_millis(1);

/// One connection of a device.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) conn: Conn,
    /// Its number on this shard, so that a reply to one session is not given to another; 0 stands
    /// for no session.
    pub(crate) number: u32,
    pub(super) is_text: bool,
    /// False while the record that the device is connected is not synced; true at once if no record
    /// is needed. While it is false nothing is pushed: after a crash the device would count as
    /// away, and what it had seen would count as never pushed.
    pub(super) is_open: bool,
    /// The `welcome` that is still to be sent: the store must first know the device and the name of
    /// its mailbox.
    pub(super) unwelcomed: Option<Box<Unwelcomed>>,
    /// Bytes pushed since the connection had last taken everything.
    pub(super) pushed_bytes: usize,
    pub(super) filter: Option<Arc<dyn SendFilter>>,
    /// Time at which its token expires, by the uptime and by the wall clock.
    pub(super) token_ends: Option<(Moment, u64)>,
    pub(super) is_warned: bool,
    pub(super) bad_frames: BadFrames,
    pub(super) watching: BTreeSet<PublicId>,
}

/// The session on a connection, as far as each frame needs it, so that most find it without a look-up
/// of the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speaker {
    pub(super) device: DeviceId,
    /// The number of the session.
    pub(super) session: u32,
    /// See [`Device::incarnation`].
    pub(super) incarnation: Option<u64>,
    /// True if its token names the receivers that it allows.
    pub(super) is_filtered: bool,
}

/// Parts of a `welcome` that is still to be sent.
#[derive(Debug)]
pub(super) struct Unwelcomed {
    pub(super) token: Option<Box<str>>,
    pub(super) resumed: bool,
}

impl Broker {
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
    pub(super) fn end_session(&mut self, now: Now, id: DeviceId, code: Option<u16>, out: Out<'_>) {
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
            // Before `end_device`, which makes the directory forget the device, and announces
            // nothing.
            self.announce(now, id, false, out);
            self.end_device(now, id, out);
        } else if code != Some(close::TAKEN_OVER) {
            // After a takeover nothing of this is due: the new session follows in the same step.
            if may_put_off {
                self.mailboxes.stale_records.insert(id);
            } else {
                self.record_device(id, None, out);
            }
            self.announce(now, id, false, out);
            self.set_away_alarm(id, now);
            self.note_idle(id);
        }
    }

    pub(super) fn set_away_alarm(&mut self, id: DeviceId, now: Now) {
        if let Some(ttl) = self.ttl(id)
            && let Some(device) = self.mailboxes.devices.get(&id)
        {
            self.mailboxes.set_alarm(device.away_since.after(ttl).max(now.at), Alarm::Away, id);
        }
    }

    /// Returns how long a device may be away before it ends; `None` is for ever.
    pub(super) fn ttl(&self, id: DeviceId) -> Option<Duration> {
        let limits = &self.mailboxes.limits;
        if id.is_number() { Some(limits.device_ttl) } else { limits.named_device_ttl }
    }

    /// Returns the device whose session is on a connection.
    pub(crate) fn session_on(&self, conn: Conn) -> Option<DeviceId> {
        self.speaker(conn).map(|speaker| speaker.device)
    }

    /// Returns the session on a connection.
    #[inline]
    pub(super) fn speaker(&self, conn: Conn) -> Option<Speaker> {
        self.mailboxes.sessions.get(conn.0 as usize).copied().flatten()
    }

    /// Returns the address for the reply to a request of a session.
    #[inline]
    pub(super) fn reply_to(&self, conn: Conn, speaker: Speaker, receipt: bool) -> DeviceReplyTo {
        let Speaker { device, session, incarnation, .. } = speaker;
        let shard = self.shard;
        DeviceReplyTo { shard, device, conn, session, is_told: false, incarnation, receipt }
    }

    /// Returns whether the session that made a request is still on its connection.
    #[inline]
    pub(super) fn awaits(&self, reply_to: &DeviceReplyTo) -> bool {
        self.speaker(reply_to.conn).is_some_and(|speaker| speaker.session == reply_to.session)
    }

    pub(crate) fn session(&mut self, id: DeviceId) -> Option<&mut Session> {
        self.mailboxes.devices.get_mut(&id)?.session.as_deref_mut()
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
        if let Some(Some(speaker)) = self.mailboxes.sessions.get_mut(conn.0 as usize) {
            speaker.is_filtered = filter.is_some();
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
        self.mailboxes.set_alarm(at, Alarm::Token, id);
    }

    fn token_alarm(&mut self, now: Now, id: DeviceId, out: Out<'_>) {
        let Some(session) = self.session(id) else { return };
        let Some((ends, at_ms)) = session.token_ends else { return };
        // The alarm may have been set for an earlier token: alarms are never moved later.
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
            || self.mailboxes.announcements.due().is_some_and(|at| at <= now)
            || self.mailboxes.window_due().is_some_and(|at| at <= now)
            || self.mailboxes.endings_due().is_some_and(|at| at <= now)
            || self.mailboxes.resend_at.is_some_and(|at| at <= now)
            || self.mailboxes.asked.due().is_some_and(|at| at <= now)
    }

    /// Returns the next moment at which [`Input::Tick`](crate::Input::Tick) may have something
    /// to do.
    pub fn next_tick(&self) -> Option<Moment> {
        let mailboxes = &self.mailboxes;
        let others = [
            mailboxes.acks_due(),
            mailboxes.stale_records_due(),
            mailboxes.announcements.due(),
            mailboxes.window_due(),
            mailboxes.endings_due(),
            mailboxes.resend_at,
            mailboxes.asked.due(),
        ];
        mailboxes.timers.next().into_iter().chain(others.into_iter().flatten()).min()
    }

    /// Does everything that is due.
    pub(crate) fn tick(&mut self, now: Now, may_end: bool, out: Out<'_>) {
        while let Some((alarm, id)) = self.mailboxes.timers.take_due(now.at) {
            match alarm {
                Alarm::Token => self.token_alarm(now, id, out),
                Alarm::Waiting => self.waiting_alarm(now, id, out),
                Alarm::Expiry | Alarm::Away => {}
            }
        }
        self.end_some(now, may_end, out);
        self.resend_tick(now, out);
        self.asked_tick(now);
        if self.mailboxes.acks_due().is_some_and(|at| at <= now.at) {
            self.record_acks(out);
        }
        self.stale_records_tick(now, out);
        self.tell_watchers(now, out);
        self.mailboxes.window.forget(now.at, self.mailboxes.limits.dedup_window);
    }

    /// Ends what is due, but not too many messages at once.
    fn end_some(&mut self, now: Now, may_end: bool, out: Out<'_>) {
        if self.mailboxes.endings_due().is_none_or(|at| at > now.at) {
            return;
        }
        let mut left = if may_end { self.mailboxes.limits.endings_at_once } else { 0 };
        while left > 0
            && let Some((alarm, id)) = self.mailboxes.endings.take_due(now.at)
        {
            let ended = match alarm {
                Alarm::Away => self.away_alarm(now, id, out),
                _ => self.expire(now, id, left, out),
            };
            // A look costs something, too.
            left = left.saturating_sub(1 + ended);
        }
        if left == 0 {
            self.mailboxes.endings_from = now.at.after(ENDINGS_PAUSE);
        }
    }

    /// Ends a device whose time to live is over; returns the number of messages that it had.
    pub(super) fn away_alarm(&mut self, now: Now, id: DeviceId, out: Out<'_>) -> usize {
        let Some(device) = self.mailboxes.devices.get(&id) else { return 0 };
        if device.session.is_some() {
            return 0;
        }
        let waiting = device.mailbox.waiting();
        if device.is_ephemeral {
            self.end_device(now, id, out);
            return waiting;
        }
        let Some(ttl) = self.ttl(id) else { return 0 };
        if device.away_since.after(ttl) <= now.at {
            self.end_device(now, id, out);
            return waiting;
        }
        // It came back and left again since the alarm was set.
        self.set_away_alarm(id, now);
        0
    }
}

impl Device {
    /// Returns the connection to which frames for it go, if it is connected by v1.
    pub(super) fn told_on(&self) -> Option<Conn> {
        let session = self.session.as_ref().filter(|session| !session.is_text);
        session.map(|session| session.conn)
    }

    /// Returns whether it is away, and no newcomer waits.
    pub(super) fn is_idle(&self) -> bool {
        self.session.is_none() && self.waiting.is_none()
    }

    /// Returns a number that tells an ephemeral device from others of its id.
    #[inline]
    pub(super) fn incarnation(&self) -> Option<u64> {
        // It ends with its connection, and the next device of its id may use the same message ids
        // for other messages.
        self.is_ephemeral.then_some(self.mailbox_name)
    }

    /// Returns whether `last_seq` of a newcomer is about this mailbox.
    pub(super) fn knows(&self, hello: &Hello, epoch: u64) -> bool {
        hello.mailbox.as_deref() == Some(&format!("{:016x}", self.mailbox_name ^ epoch))
    }

    /// Returns the number below which none is given again, once a record says so.
    pub(super) fn reserves_to(&self) -> u64 {
        // Never below the next number: messages with lower ones may have left the log, and then
        // only this record says that those were given.
        self.mailbox.reserved_to().max(self.reserving_to).max(self.mailbox.next_seq())
    }

    /// Returns the record of its state.
    pub(super) fn record<'a>(&self, shown: &'a PublicId, clock: StampClock) -> Record<'a> {
        let is_away = self.session.is_none();
        Record::Device(super::DeviceRecord {
            device: shown.as_ref(),
            mailbox: self.mailbox_name,
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
pub(super) const FRAME_LEN_MIN: usize = 4_096;

const SERVER: &str = concat!("switchboard/", env!("CARGO_PKG_VERSION"));

/// Returns a device for a replay that has not come to the device's own record yet.
pub(super) fn provisional(id: DeviceId, now: Now) -> Device {
    // No mailbox is named 0: if the record never comes, the end of the replay drops the device.
    Device::new(id, 0, now)
}

pub(super) fn taken_over(conn: Conn) -> Effect<'static> {
    let reason = "taken over by a newer connection of this device";
    Effect::Close { conn, code: close::TAKEN_OVER, reason }
}

/// Returns the moment of the uptime at which the wall clock will show `wall_ms`, if it does not
/// jump.
pub(super) fn moment_of(now: Now, wall_ms: u64) -> Moment {
    Moment::from_ms(now.at.ms() + wall_ms.saturating_sub(now.wall_ms))
}
