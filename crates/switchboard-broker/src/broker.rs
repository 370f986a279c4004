//! The broker of one shard: every decision about its devices and their messages.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;
use switchboard_proto::text::{self, Command};
use switchboard_proto::v1::{DeviceRef, ServerFrame};

use crate::Directory;
use crate::directory::Owner;
use crate::duplicates::{Digest, DigestKey, LastText};
use crate::mailboxes::{
    Content, Envelope, Event, Hello, Limits, Mailboxes, Now, Position, Record, SendFilter,
    StoreGate, TextReplyTo, Want,
};
use crate::shrink::{KEPT_BY_SHARD, shrink};

/// A point in time, as the caller passes it in: milliseconds since a start of its choice, never
/// backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment {
    ms: u64,
}

impl Moment {
    /// The moment `ms` milliseconds after the start.
    pub const fn from_ms(ms: u64) -> Moment {
        Moment { ms }
    }

    /// Milliseconds since the start.
    pub const fn ms(self) -> u64 {
        self.ms
    }

    /// Time passed since an earlier moment; zero if that is not earlier.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_millis(self.ms.saturating_sub(earlier.ms))
    }

    /// The moment `duration` later, in whole milliseconds.
    #[must_use]
    pub const fn after(self, duration: Duration) -> Moment {
        Moment { ms: self.ms.saturating_add(duration.as_millis() as u64) }
    }
}

/// One of the shards of this process, numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShardId(pub u16);

/// A connection, by its number on its shard. Numbers are used again after [`Input::Disconnected`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conn(pub u32);

/// Something that happened, and that a broker decides about.
#[derive(Debug)]
pub enum Input<'a> {
    /// An anonymous device of the text protocol connected.
    Connected(Conn),
    /// A device of another shard sent a text to one of ours.
    Forwarded {
        /// The sender's shard, which is told if the receiver is gone.
        shard: ShardId,
        /// The sender.
        from: DeviceId,
        /// The receiver.
        to: DeviceId,
        /// The text.
        text: &'a [u8],
    },
    /// A text that one of our devices sent to another shard could not be delivered: the receiver
    /// left while it was on its way.
    Returned {
        /// The sender.
        from: DeviceId,
        /// Digest of the text.
        digest: Digest,
    },
    /// A connection is gone.
    Disconnected(Conn),
    /// A connection opens the session of a device with a mailbox.
    Hello(Hello),
    /// A connection showed another token, which is valid.
    Refreshed {
        /// The connection.
        conn: Conn,
        /// The device that the token names.
        device: DeviceId,
        /// Time at which the token expires, by the wall clock; `None` is never.
        token_ends_ms: Option<u64>,
        /// The receivers that the token allows; `None` allows all.
        filter: Option<Arc<dyn SendFilter>>,
    },
    /// A connection has taken all that was pushed to it, as [`Effect::AwaitDrain`] asked.
    Drained(Conn),
    /// An envelope from another shard's broker.
    Envelope(Envelope),
    /// Contents that [`Effect::Fetch`] asked for.
    Fetched {
        /// The device whose mailbox they are for.
        device: DeviceId,
        /// The session that asked.
        session: u32,
        /// `seq` and content of each entry. One that could not be read is left out and fetched
        /// again.
        contents: Vec<(u64, Content)>,
    },
    /// The oldest appends are synced: the position of each, in the order of the appends.
    Synced(&'a [Position]),
    /// The store cannot sync for now.
    StoreFailing,
    /// The store can sync again.
    StoreHealthy,
    /// Whose new messages the store takes from now on.
    StoreGate(StoreGate),
    /// The record of an entry is damaged, or can never be read: what [`Effect::Fetch`] asked for
    /// will not come.
    Unreadable {
        /// The device whose mailbox the entry is in.
        device: DeviceId,
        /// The session that asked.
        session: u32,
        /// The entry, and the position from which it could not be read.
        want: Want,
    },
    /// No record in this part of the store can be read.
    Damaged {
        /// Its first position.
        from: Position,
        /// The first position behind it.
        to: Position,
    },
    /// A deadline may be due (see [`Broker::next_tick`]).
    Tick {
        /// False while the store is behind: messages that expire and devices that end wait until it
        /// has caught up, as each makes a record.
        may_end: bool,
    },
    /// The process is about to end: records that were put off are appended now.
    Ending,
}

/// Something that the caller is to do.
#[derive(Debug)]
pub enum Effect<'a> {
    /// Send this info text to the connection.
    Inform {
        /// The connection.
        conn: Conn,
        /// The whole text.
        info: &'a str,
    },
    /// Answer the connection with an error text.
    Refuse {
        /// The connection.
        conn: Conn,
        /// Reason for it, which chooses the text.
        refusal: Refusal,
    },
    /// Send `<from>:<text>` to the connection.
    Deliver {
        /// The receiver.
        conn: Conn,
        /// The sender.
        from: DeviceId,
        /// The text.
        text: &'a [u8],
    },
    /// Pass a text to the shard of its receiver ([`Input::Forwarded`] there), in order.
    Forward {
        /// The receiver's shard.
        shard: ShardId,
        /// The sender.
        from: DeviceId,
        /// The receiver.
        to: DeviceId,
        /// The text.
        text: &'a [u8],
    },
    /// Tell the sender's shard that the receiver of its text is gone ([`Input::Returned`] there).
    Return {
        /// The sender's shard.
        shard: ShardId,
        /// The sender.
        from: DeviceId,
        /// Digest of the text.
        digest: Digest,
    },
    /// Send a v1 device a frame that is no entry of its mailbox.
    Tell {
        /// The connection.
        conn: Conn,
        /// The frame.
        frame: &'a ServerFrame<'a>,
    },
    /// Push an entry of its mailbox to a v1 device.
    Push {
        /// The connection.
        conn: Conn,
        /// The frame.
        frame: &'a ServerFrame<'a>,
    },
    /// Push a message from its mailbox to a device of the text protocol.
    PushBody {
        /// The connection.
        conn: Conn,
        /// The sender.
        from: DeviceRef<'a>,
        /// Raw JSON; a string is shown bare.
        body: &'a [u8],
    },
    /// As [`Effect::PushBody`], to a device without a mailbox.
    DeliverBody {
        /// The connection.
        conn: Conn,
        /// The sender.
        from: DeviceRef<'a>,
        /// Raw JSON; a string is shown bare.
        body: &'a [u8],
    },
    /// Report [`Input::Drained`] once the connection has taken what was pushed.
    AwaitDrain {
        /// The connection.
        conn: Conn,
    },
    /// Close a connection, which is in no session any more.
    Close {
        /// The connection.
        conn: Conn,
        /// Close code.
        code: u16,
        /// Reason for the close frame.
        reason: &'a str,
    },
    /// Append a record to the store; [`Input::Synced`] counts these.
    Append(Record<'a>),
    /// Read contents from the store, and report [`Input::Fetched`] or [`Input::Unreadable`].
    Fetch {
        /// The device whose mailbox they are for.
        device: DeviceId,
        /// The session that asks; comes back with the answer.
        session: u32,
        /// The session's connection. Once it has ended, an answer without contents is enough.
        conn: Conn,
        /// The entries.
        wants: &'a [Want],
    },
    /// Send an envelope to another shard's broker.
    Send {
        /// The other shard.
        shard: ShardId,
        /// The envelope.
        envelope: Envelope,
    },
    /// Do not read a connection until [`Effect::Replied`].
    AwaitReply {
        /// The connection.
        conn: Conn,
    },
    /// End what [`Effect::AwaitReply`] began.
    Replied {
        /// The connection.
        conn: Conn,
    },
    /// Count a text that was sent by the text protocol and put into a mailbox.
    TextAccepted {
        /// The connection.
        conn: Conn,
    },
    /// Verify a token, and report [`Input::Refreshed`] or close with 4401.
    Verify {
        /// The connection that showed it.
        conn: Conn,
        /// The token.
        token: &'a str,
    },
    /// Count an event.
    Count(Event),
}

/// Reasons for not carrying out a command of the text protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// The same text was delivered less than five seconds ago.
    Duplicate,
    /// No device with that id is connected, or has a mailbox.
    NoSuchDevice,
    /// The command is not `send`.
    UnknownCommand,
    /// The message is no command at all.
    Unreadable,
    /// The message is not put into the mailbox of its receiver, whatever the reason.
    MailboxFull,
}

impl Refusal {
    /// The answer in the text protocol.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::Duplicate => text::DUPLICATE_MESSAGE,
            Refusal::NoSuchDevice => text::INVALID_DESTINATION,
            Refusal::UnknownCommand => text::INVALID_COMMAND,
            Refusal::Unreadable => text::UNREADABLE,
            Refusal::MailboxFull => text::MAILBOX_FULL,
        }
    }
}

/// Decides for the devices of one shard.
#[derive(Debug)]
pub struct Broker {
    pub(crate) shard: ShardId,
    pub(crate) directory: Arc<Directory>,
    pub(crate) key: DigestKey,
    /// Those that speak the text protocol, by [`Conn`].
    pub(crate) devices: Vec<Option<TextDevice>>,
    /// Anonymous devices of the text protocol.
    pub(crate) conns: FxHashMap<DeviceId, Conn>,
    /// Buffer for info texts; kept for its memory.
    info: String,
    /// Devices with mailboxes.
    pub(crate) mailboxes: Mailboxes,
}

/// Destination of a text.
enum Receiver {
    Here(Conn),
    There(ShardId),
    /// It has a mailbox, here or there.
    Mailbox,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct TextDevice {
    pub(crate) id: DeviceId,
    pub(crate) last: Option<LastText>,
    /// True if its token's `allow_send` names some receivers only; the session has the filter.
    is_filtered: bool,
}

// Each message of the text protocol looks its sender up here: the smaller, the fewer cache misses.
const _: () = assert!(size_of::<Option<TextDevice>>() == 40);

impl Broker {
    /// Returns a broker without devices. All brokers of one directory get the same key.
    ///
    /// `is_durable` is true if there is a store, so that appends will be synced.
    pub fn new(
        shard: ShardId,
        directory: Arc<Directory>,
        key: DigestKey,
        limits: Limits,
        is_durable: bool,
    ) -> Broker {
        let (devices, conns) = (Vec::new(), FxHashMap::default());
        let mailboxes = Mailboxes::new(limits, directory.shards(), is_durable);
        Broker { shard, directory, key, devices, conns, info: String::new(), mailboxes }
    }

    /// Applies these limits from now on. What already exceeds them stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.mailboxes.set_limits(limits);
    }

    /// Decides about one input; calls `effect` for each thing to be done, in order.
    ///
    /// `now` must not go backward from call to call. What an effect borrows is valid during that
    /// call of `effect` only.
    #[inline]
    pub fn handle(&mut self, now: Now, input: Input<'_>, effect: &mut impl FnMut(Effect<'_>)) {
        match input {
            // The only input that comes once for each text. Handled here, where `effect` is
            // generic, it costs no dynamic call.
            Input::Forwarded { shard, from, to, text } => {
                effect(match self.conns.get(&to) {
                    Some(&conn) => Effect::Deliver { conn, from, text },
                    // The directory knew the receiver when the sender's shard took the text; it has
                    // left since.
                    None => Effect::Return { shard, from, digest: self.key.digest(text) },
                });
            }
            input => self.handle_more(now, input, effect),
        }
    }

    /// As [`Broker::handle`], for a frame of a v1 device: `text` is the whole frame.
    #[inline]
    pub fn framed(
        &mut self,
        now: Now,
        conn: Conn,
        text: &[u8],
        effect: &mut dyn FnMut(Effect<'_>),
    ) {
        self.mailboxes.now = now;
        self.frame(now, conn, text, effect);
        self.settle_local(now, effect);
    }

    /// Handles all inputs that are rarer, or cost more, than a forwarded text.
    fn handle_more(&mut self, now: Now, input: Input<'_>, effect: &mut dyn FnMut(Effect<'_>)) {
        self.mailboxes.now = now;
        match input {
            Input::Forwarded { .. } => {}
            Input::Returned { from, digest } => self.returned(from, digest, effect),
            Input::Connected(conn) => self.connected(now, conn, effect),
            Input::Disconnected(conn) => self.disconnected(now, conn, effect),
            Input::Hello(hello) => self.hello(now, hello, effect),
            Input::Refreshed { conn, device, token_ends_ms, filter } => {
                self.refreshed(now, conn, device, token_ends_ms, filter, effect);
            }
            Input::Drained(conn) => self.drained(now, conn, effect),
            Input::Envelope(envelope) => self.mailboxes.accept(envelope),
            Input::Fetched { device, session, contents } => {
                self.fetched(device, session, contents.into_iter(), effect);
            }
            Input::Synced(positions) => self.synced(now, positions, effect),
            Input::StoreFailing => self.store_failing(now, effect),
            Input::StoreHealthy => self.store_healthy(),
            Input::StoreGate(gate) => self.store_gate(now, gate),
            Input::Unreadable { device, session, want } => {
                self.unreadable(now, device, session, want, effect);
            }
            Input::Damaged { from, to } => self.damaged(now, from..to, effect),
            Input::Tick { may_end } => self.tick(now, may_end, effect),
            Input::Ending => {
                self.record_acks(effect);
                // All at once: there is no later tick to spread them over.
                self.write_stale_records(usize::MAX, effect);
            }
        }
        self.settle_local(now, effect);
    }

    /// Returns the id of the text device on a connection.
    pub fn device(&self, conn: Conn) -> Option<DeviceId> {
        self.devices.get(conn.0 as usize)?.map(|device| device.id)
    }

    /// As [`Broker::handle`], for a message of a text device: `message` is the whole message.
    #[inline]
    pub fn said(
        &mut self,
        now: Now,
        conn: Conn,
        message: &[u8],
        effect: &mut impl FnMut(Effect<'_>),
    ) {
        // Not an `Input`: some of those own memory, so one that is built for each of millions of
        // texts would have to be dropped for each, too.
        let device = self.devices.get(conn.0 as usize).and_then(Option::as_ref);
        let Some(&TextDevice { id, is_filtered, .. }) = device else { return };
        // Checked before everything else, so that no path to a receiver can forget the filter.
        if is_filtered && let Some(refusal) = self.forbidden(id, message) {
            return effect(Effect::Refuse { conn, refusal });
        }
        let refusal = match text::parse(message) {
            Command::Send { to, text } => match self.send_plain(now, conn, to, text, effect) {
                Ok(()) => return,
                Err(refusal) => refusal,
            },
            Command::Help => return self.inform(conn, effect),
            Command::SendNowhere => Refusal::NoSuchDevice,
            Command::Named { is_send, name, text } => {
                match self.send_to_name(now, conn, is_send, name, text, effect) {
                    Ok(()) => return,
                    Err(refusal) => refusal,
                }
            }
            Command::Unknown => Refusal::UnknownCommand,
            Command::Unreadable => Refusal::Unreadable,
        };
        effect(Effect::Refuse { conn, refusal });
    }

    /// Returns the refusal of a command whose receiver the sender's token does not allow.
    #[cold]
    fn forbidden(&self, id: DeviceId, message: &[u8]) -> Option<Refusal> {
        let (to, refusal) = match text::parse(message) {
            Command::Send { to, .. } => (to.into(), Refusal::NoSuchDevice),
            Command::Named { is_send: true, name, .. } => {
                (DeviceRef::Name(name), Refusal::NoSuchDevice)
            }
            // Not a `send`, but the answer to it tells whether there is such a device.
            Command::Named { is_send: false, name, .. } => {
                (DeviceRef::Name(name), Refusal::Unreadable)
            }
            Command::Help | Command::SendNowhere | Command::Unknown | Command::Unreadable => {
                return None;
            }
        };
        // By the token alone, before the receiver is looked up: the answer must not tell whether it
        // exists.
        (!self.allows(id, to)).then_some(refusal)
    }

    #[inline]
    fn send_plain(
        &mut self,
        now: Now,
        sender: Conn,
        to: DeviceId,
        text: &[u8],
        effect: &mut impl FnMut(Effect<'_>),
    ) -> Result<(), Refusal> {
        // Before the duplicate window, in the order of the original's checks: the same text to a
        // device that is gone is no duplicate.
        let receiver = match self.conns.get(&to) {
            Some(&conn) => Receiver::Here(conn),
            None => self.receiver_elsewhere(to)?,
        };
        let device = self.devices[sender.0 as usize].as_mut();
        let device = device.expect("a connection speaks between Connected and Disconnected");
        let digest = self.key.digest(text);
        if device.last.is_some_and(|last| last.is_repeated_by(digest, now.at)) {
            return Err(Refusal::Duplicate);
        }
        if let Receiver::Mailbox = receiver {
            // Does not count for the window yet: the receiver's shard may still refuse it.
            return self.send_to_mailbox(now, sender, to, text, effect);
        }
        // Noted even if the receiver is on another shard: a late refusal takes it out again
        // (`returned`).
        device.last = Some(LastText::new(digest, now.at));
        let from = device.id;
        match receiver {
            Receiver::Here(conn) => effect(Effect::Deliver { conn, from, text }),
            Receiver::There(shard) => effect(Effect::Forward { shard, from, to, text }),
            Receiver::Mailbox => {}
        }
        Ok(())
    }

    /// Returns the destination for a receiver that is no anonymous text device of this shard.
    fn receiver_elsewhere(&self, to: DeviceId) -> Result<Receiver, Refusal> {
        // In this process such an id stands for a name: a client must not reach it by number.
        if !to.is_number() {
            return Err(Refusal::NoSuchDevice);
        }
        // Asked first: with one shard the directory knows no owners.
        if self.mailboxes.has(to) {
            return Ok(Receiver::Mailbox);
        }
        match self.directory.owner_of(to) {
            Some(Owner { has_mailbox: true, .. }) => Ok(Receiver::Mailbox),
            Some(Owner { shard, .. }) => Ok(Receiver::There(shard)),
            None => Err(Refusal::NoSuchDevice),
        }
    }

    /// Returns whether a message of the text protocol is for a mailbox. While the store has no room
    /// for more, its connection must not be read any further.
    pub fn goes_to_mailbox(&self, message: &[u8]) -> bool {
        match text::parse(message) {
            Command::Send { to, .. } => {
                let receiver = self.receiver_elsewhere(to);
                !self.conns.contains_key(&to) && matches!(receiver, Ok(Receiver::Mailbox))
            }
            // Every device with a name has a mailbox. That there may be no such device is found out
            // when the command is carried out.
            Command::Named { is_send, .. } => is_send,
            _ => false,
        }
    }

    /// Sends to a device that was addressed by its name.
    #[cold]
    fn send_to_name(
        &mut self,
        now: Now,
        sender: Conn,
        is_send: bool,
        name: &str,
        text: &[u8],
        effect: &mut dyn FnMut(Effect<'_>),
    ) -> Result<(), Refusal> {
        // In the order of the original's checks: a word that is no device's name is no id, so the
        // message cannot be read, whatever the command.
        let to = self.directory.names().find(DeviceRef::Name(name)).ok_or(Refusal::Unreadable)?;
        if self.shard_with(to).is_none() {
            return Err(Refusal::Unreadable);
        }
        if !is_send {
            return Err(Refusal::UnknownCommand);
        }
        let digest = self.key.digest(text);
        let device = self.devices[sender.0 as usize].as_ref();
        if device
            .and_then(|device| device.last)
            .is_some_and(|last| last.is_repeated_by(digest, now.at))
        {
            return Err(Refusal::Duplicate);
        }
        self.send_to_mailbox(now, sender, to, text, effect)
    }

    #[cold]
    fn send_to_mailbox(
        &mut self,
        now: Now,
        conn: Conn,
        to: DeviceId,
        text: &[u8],
        effect: &mut dyn FnMut(Effect<'_>),
    ) -> Result<(), Refusal> {
        let device = self.device(conn).expect("a connection speaks while it is a device");
        let session = self.session(device).map_or(0, |session| session.number);
        let text_digest = self.key.digest(text);
        let reply_to = TextReplyTo { shard: self.shard, conn, device, session, text: text_digest };
        self.send_text(now, reply_to, to, text, effect)?;
        // A reply of this shard is in the local queue: it must be sent before the answer to the
        // next command of the same read.
        self.settle_local(now, effect);
        Ok(())
    }

    /// Tells the sender that its text was refused, and takes the text out of its duplicate window,
    /// as if it had been refused at once.
    fn returned(&mut self, from: DeviceId, digest: Digest, effect: &mut dyn FnMut(Effect<'_>)) {
        let Some(&conn) = self.conns.get(&from) else { return };
        let device = self.devices[conn.0 as usize].as_mut().expect("conns names only devices");
        // Only if it is still the last one: a later text has replaced it otherwise.
        if device.last.is_some_and(|last| last.digest() == digest) {
            device.last = None;
        }
        effect(Effect::Refuse { conn, refusal: Refusal::NoSuchDevice });
    }

    fn connected(&mut self, now: Now, conn: Conn, effect: &mut dyn FnMut(Effect<'_>)) {
        let id = self.directory.add(self.shard);
        self.seat(conn, id, false);
        self.conns.insert(id, conn);
        // Before the welcome, whose list of connected devices contains the new one.
        self.announce(now, id, true, effect);
        self.inform(conn, effect);
    }

    /// Notes that the connection speaks the text protocol for a device from now on.
    fn seat(&mut self, conn: Conn, id: DeviceId, is_filtered: bool) {
        let index = conn.0 as usize;
        if self.devices.len() <= index {
            self.devices.resize(index + 1, None);
        }
        self.devices[index] = Some(TextDevice { id, last: None, is_filtered });
    }

    /// Seats a device with a mailbox, and sends it the info text.
    pub(crate) fn inform_as(
        &mut self,
        conn: Conn,
        id: DeviceId,
        is_filtered: bool,
        effect: &mut dyn FnMut(Effect<'_>),
    ) {
        self.seat(conn, id, is_filtered);
        self.inform(conn, effect);
    }

    /// Undoes [`Broker::seat`]: whatever still comes on the connection changes nothing.
    pub(crate) fn unseat(&mut self, conn: Conn) {
        if let Some(device) = self.devices.get_mut(conn.0 as usize) {
            *device = None;
        }
    }

    fn inform(&mut self, conn: Conn, effect: &mut (impl FnMut(Effect<'_>) + ?Sized)) {
        let own = self.device(conn).expect("a connection asks after Connected");
        self.info.clear();
        self.directory.write_info(own, &mut self.info);
        effect(Effect::Inform { conn, info: &self.info });
    }

    /// Forgets the device on a connection, if there is one.
    fn disconnected(&mut self, now: Now, conn: Conn, effect: &mut dyn FnMut(Effect<'_>)) {
        // First: it unseats a text device with a mailbox, which stays. An anonymous one ends below.
        self.session_ended(now, conn, effect);
        let Some(device) = self.devices.get_mut(conn.0 as usize).and_then(Option::take) else {
            return;
        };
        if device.id.is_number() && self.conns.remove(&device.id).is_some() {
            shrink(&mut self.conns, KEPT_BY_SHARD);
            self.end_anonymous(now, device.id, effect);
        }
    }
}
