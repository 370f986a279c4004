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
    TextReplyTo, Want,
};
use crate::shrink::{KEPT_BY_SHARD, shrink};

/// Time as the caller tells it: milliseconds since some start of its own, never backward.
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

    /// Time passed since an earlier moment; none when it is not earlier.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_millis(self.ms.saturating_sub(earlier.ms))
    }

    /// The moment `duration` later, in whole milliseconds.
    #[must_use]
    pub const fn after(self, duration: Duration) -> Moment {
        Moment { ms: self.ms.saturating_add(duration.as_millis() as u64) }
    }
}

/// One of the shards of this process, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShardId(pub u16);

/// A connection as its shard counts them. Used again after [`Input::Disconnected`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conn(pub u32);

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A device of the text protocol is there.
    Connected(Conn),
    /// Another shard's device sent a text to one of ours.
    Forwarded {
        /// The sender's shard, which hears of it when the receiver is gone.
        shard: ShardId,
        /// The sender.
        from: DeviceId,
        /// The receiver.
        to: DeviceId,
        /// The text.
        text: &'a [u8],
    },
    /// What one of our devices sent to another shard could not be delivered: the receiver left
    /// while it was on its way.
    Returned {
        /// The sender.
        from: DeviceId,
        /// Stands for the text.
        digest: Digest,
    },
    /// A device is gone.
    Disconnected(Conn),
    /// A device with a mailbox is there.
    Hello(Hello),
    /// A device showed another token, and it was found good.
    Refreshed {
        /// Who.
        conn: Conn,
        /// Whom the token names.
        device: DeviceId,
        /// When it ends, wall clock.
        token_ends_ms: Option<u64>,
        /// To whom it lets the device send.
        filter: Option<Arc<dyn SendFilter>>,
    },
    /// A connection has taken all that was pushed to it, as [`Effect::AwaitDrain`] asked.
    Drained(Conn),
    /// From another shard's broker.
    Envelope(Envelope),
    /// What [`Effect::Fetch`] asked for.
    Fetched {
        /// For whom.
        device: DeviceId,
        /// The session that it was for.
        session: u32,
        /// Number and content; what could not be read is missing, and is asked for again.
        contents: Vec<(u64, Content)>,
    },
    /// The oldest appends are synced, and lie here.
    Synced(&'a [Position]),
    /// The store cannot sync for now.
    StoreFailing,
    /// It syncs again.
    StoreHealthy,
    /// Whether the store has no space left for new messages; all else may still be appended.
    StoreFull(bool),
    /// The record of an entry is damaged, or cannot be read for good: what [`Effect::Fetch`] asked
    /// for will not come.
    Unreadable {
        /// For whom it was asked.
        device: DeviceId,
        /// The session that it was for.
        session: u32,
        /// The entry, and where its record was looked for.
        want: Want,
    },
    /// No record in a part of the store can be read, from here to before there.
    Damaged {
        /// Its first place.
        from: Position,
        /// The first place behind it.
        to: Position,
    },
    /// Time passed.
    Tick,
    /// The process is about to end: what waits to share a record is recorded now.
    Ending,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect<'a> {
    /// Send this info text to the connection.
    Inform {
        /// Who is answered.
        conn: Conn,
        /// The whole text.
        info: &'a str,
    },
    /// Answer the connection with an error text.
    Refuse {
        /// Who is answered.
        conn: Conn,
        /// With what.
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
    /// Hand a text to the shard of its receiver ([`Input::Forwarded`] there), in order.
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
    /// Tell the sender's shard that its text found nobody ([`Input::Returned`] there).
    Return {
        /// The sender's shard.
        shard: ShardId,
        /// The sender.
        from: DeviceId,
        /// Stands for the text.
        digest: Digest,
    },
    /// Tell a v1 device something that it asked for, or that is not its mailbox's.
    Tell {
        /// Who.
        conn: Conn,
        /// What.
        frame: &'a ServerFrame<'a>,
    },
    /// Push to a v1 device what was in its mailbox.
    Push {
        /// Who.
        conn: Conn,
        /// What.
        frame: &'a ServerFrame<'a>,
    },
    /// Push a message to a device of the text protocol, from its mailbox.
    PushBody {
        /// Who.
        conn: Conn,
        /// The sender.
        from: DeviceRef<'a>,
        /// Raw JSON; a string is shown bare.
        body: &'a [u8],
    },
    /// As [`Effect::PushBody`], to one without a mailbox.
    DeliverBody {
        /// Who.
        conn: Conn,
        /// The sender.
        from: DeviceRef<'a>,
        /// Raw JSON; a string is shown bare.
        body: &'a [u8],
    },
    /// Say [`Input::Drained`] when the connection has taken what was pushed.
    AwaitDrain {
        /// Which.
        conn: Conn,
    },
    /// Close a connection. It is in no session any more.
    Close {
        /// Which.
        conn: Conn,
        /// With what code.
        code: u16,
        /// And what reason.
        reason: &'a str,
    },
    /// Append a record to the store; [`Input::Synced`] counts these.
    Append(Record<'a>),
    /// Read contents from the store, and say [`Input::Fetched`].
    Fetch {
        /// For whom.
        device: DeviceId,
        /// Comes back with the answer.
        session: u32,
        /// Which.
        wants: &'a [Want],
    },
    /// Send this to another shard's broker.
    Send {
        /// Which.
        shard: ShardId,
        /// What.
        envelope: Envelope,
    },
    /// Do not read a connection until [`Effect::Replied`].
    AwaitReply {
        /// Which.
        conn: Conn,
    },
    /// See [`Effect::AwaitReply`].
    Replied {
        /// Which.
        conn: Conn,
    },
    /// What a device of the text protocol sent is in a mailbox.
    TextAccepted {
        /// Who.
        conn: Conn,
    },
    /// Judge a token, and say [`Input::Refreshed`] or close with 4401.
    Verify {
        /// Who showed it.
        conn: Conn,
        /// The token.
        token: &'a str,
    },
    /// Count this.
    Count(Event),
}

/// Why a command was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// The same text was delivered less than five seconds ago.
    Duplicate,
    /// Nobody with that id is connected.
    NoSuchDevice,
    /// The command is not `send`.
    UnknownCommand,
    /// It is no command at all.
    Unreadable,
    /// The receiver's mailbox is at its bound.
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
    pub(crate) devices: Vec<Option<Device>>,
    /// Anonymous devices of the text protocol.
    pub(crate) conns: FxHashMap<DeviceId, Conn>,
    /// Where an info text is put together; kept for its memory.
    info: String,
    /// Devices with mailboxes.
    pub(crate) mailboxes: Mailboxes,
}

/// Where a text is to go.
enum Receiver {
    Here(Conn),
    There(ShardId),
    /// It has a mailbox, here or there.
    Mailbox,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) last: Option<LastText>,
    /// Its token's `allow_send` names some receivers only; the session has the filter.
    is_filtered: bool,
}

// Each message of the text protocol finds its sender here.
const _: () = assert!(size_of::<Option<Device>>() == 40);

impl Broker {
    /// A broker without devices. All brokers of one directory get the same key.
    ///
    /// `is_durable` says whether there is a store: whether appends will be synced.
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

    /// Goes by these limits from now on. What is above them already stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.mailboxes.set_limits(limits);
    }

    /// Takes one input and says, by calling `effect`, what is to be done, in order.
    ///
    /// `now` never goes backward from call to call. Borrowed parts of an effect are lent for the
    /// call only.
    #[inline]
    pub fn handle(&mut self, now: Now, input: Input<'_>, effect: &mut impl FnMut(Effect<'_>)) {
        match input {
            Input::Forwarded { shard, from, to, text } => {
                effect(match self.conns.get(&to) {
                    Some(&conn) => Effect::Deliver { conn, from, text },
                    None => Effect::Return { shard, from, digest: self.key.digest(text) },
                });
            }
            input => self.handle_more(now, input, effect),
        }
    }

    /// As [`Broker::handle`], of a device that said something by v1: `text` is the whole frame.
    #[inline]
    pub fn framed(
        &mut self,
        now: Now,
        conn: Conn,
        text: &[u8],
        effect: &mut dyn FnMut(Effect<'_>),
    ) {
        self.frame(now, conn, text, effect);
        self.settle_local(now, effect);
    }

    /// What is rarer, or costs more, than a text.
    fn handle_more(&mut self, now: Now, input: Input<'_>, effect: &mut dyn FnMut(Effect<'_>)) {
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
            Input::StoreFull(is_full) => self.store_full(now, is_full),
            Input::Unreadable { device, session, want } => {
                self.unreadable(now, device, session, want, effect);
            }
            Input::Damaged { from, to } => self.damaged(now, from..to, effect),
            Input::Tick => self.tick(now, effect),
            Input::Ending => {
                self.record_acks(effect);
                self.write_stale_records(usize::MAX, effect);
            }
        }
        self.settle_local(now, effect);
    }

    /// The id of the device on a connection.
    pub fn device(&self, conn: Conn) -> Option<DeviceId> {
        self.devices.get(conn.0 as usize)?.map(|device| device.id)
    }

    /// As [`Broker::handle`], of a device that said something: `message` is all of it. No [`Input`],
    /// which would be put together and taken apart for nothing where there are millions of them.
    #[inline]
    pub fn said(
        &mut self,
        now: Now,
        conn: Conn,
        message: &[u8],
        effect: &mut impl FnMut(Effect<'_>),
    ) {
        let device = self.devices.get(conn.0 as usize).and_then(Option::as_ref);
        let Some(&Device { id, is_filtered, .. }) = device else { return };
        // Before all else, so that no way to a receiver can forget to ask.
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

    /// Returns how a command is refused whose receiver the sender's token does not allow. By the
    /// token alone, before the receiver is looked for: the answer does not tell whether it is
    /// there.
    #[cold]
    fn forbidden(&self, id: DeviceId, message: &[u8]) -> Option<Refusal> {
        let (to, refusal) = match text::parse(message) {
            Command::Send { to, .. } => (to.into(), Refusal::NoSuchDevice),
            Command::Named { is_send: true, name, .. } => {
                (DeviceRef::Name(name), Refusal::NoSuchDevice)
            }
            // Sent to nobody, but the answer depends on whether there is such a device.
            Command::Named { is_send: false, name, .. } => {
                (DeviceRef::Name(name), Refusal::Unreadable)
            }
            Command::Help | Command::SendNowhere | Command::Unknown | Command::Unreadable => {
                return None;
            }
        };
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
            return self.send_to_mailbox(now, sender, to, text, effect);
        }
        device.last = Some(LastText::new(digest, now.at));
        let from = device.id;
        match receiver {
            Receiver::Here(conn) => effect(Effect::Deliver { conn, from, text }),
            Receiver::There(shard) => effect(Effect::Forward { shard, from, to, text }),
            Receiver::Mailbox => {}
        }
        Ok(())
    }

    /// A receiver that is no anonymous device of this shard.
    fn receiver_elsewhere(&self, to: DeviceId) -> Result<Receiver, Refusal> {
        if !to.is_number() {
            return Err(Refusal::NoSuchDevice);
        }
        if self.mailboxes.has(to) {
            return Ok(Receiver::Mailbox);
        }
        match self.directory.owner_of(to) {
            Some(Owner { has_mailbox: true, .. }) => Ok(Receiver::Mailbox),
            Some(Owner { shard, .. }) => Ok(Receiver::There(shard)),
            None => Err(Refusal::NoSuchDevice),
        }
    }

    /// Returns whether a message of the text protocol goes into a mailbox, for which the store must have
    /// room. Who has a name has a mailbox, if there is such a device.
    pub fn goes_to_mailbox(&self, message: &[u8]) -> bool {
        match text::parse(message) {
            Command::Send { to, .. } => {
                let receiver = self.receiver_elsewhere(to);
                !self.conns.contains_key(&to) && matches!(receiver, Ok(Receiver::Mailbox))
            }
            Command::Named { is_send, .. } => is_send,
            _ => false,
        }
    }

    /// To a device that was addressed by its name.
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
        // A word that is no device's name is no destination, whatever the command.
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
        self.settle_local(now, effect);
        Ok(())
    }

    /// Tells the sender, and takes the text out of his duplicate window, as if refused at once.
    fn returned(&mut self, from: DeviceId, digest: Digest, effect: &mut dyn FnMut(Effect<'_>)) {
        let Some(&conn) = self.conns.get(&from) else { return };
        let device = self.devices[conn.0 as usize].as_mut().expect("conns names only devices");
        if device.last.is_some_and(|last| last.digest() == digest) {
            device.last = None;
        }
        effect(Effect::Refuse { conn, refusal: Refusal::NoSuchDevice });
    }

    fn connected(&mut self, now: Now, conn: Conn, effect: &mut dyn FnMut(Effect<'_>)) {
        let id = self.directory.add(self.shard);
        self.seat(conn, id, false);
        self.conns.insert(id, conn);
        self.announce(id, true, now.wall_ms, effect);
        self.inform(conn, effect);
    }

    /// From now on the connection speaks the text protocol for a device.
    fn seat(&mut self, conn: Conn, id: DeviceId, is_filtered: bool) {
        let index = conn.0 as usize;
        if self.devices.len() <= index {
            self.devices.resize(index + 1, None);
        }
        self.devices[index] = Some(Device { id, last: None, is_filtered });
    }

    /// Seats a device with a mailbox and tells it who is there.
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

    /// The device on a connection was taken over: what it says from now on changes nothing.
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

    /// Forgets the device; a connection that never was one is no matter.
    fn disconnected(&mut self, now: Now, conn: Conn, effect: &mut dyn FnMut(Effect<'_>)) {
        self.session_ended(now, conn, effect);
        let Some(device) = self.devices.get_mut(conn.0 as usize).and_then(Option::take) else {
            return;
        };
        if device.id.is_number() && self.conns.remove(&device.id).is_some() {
            shrink(&mut self.conns, KEPT_BY_SHARD);
            self.end_anonymous(device.id, now, effect);
        }
    }
}
