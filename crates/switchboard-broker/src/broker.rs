//! The broker of one shard: every decision about its devices and their messages.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use switchboard_proto::DeviceId;
use switchboard_proto::text::{self, Command};

use crate::Directory;
use crate::duplicates::{Digest, DigestKey, LastText};

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
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A device of the text protocol is there.
    Connected(Conn),
    /// A device said something.
    Said {
        /// Who.
        conn: Conn,
        /// The whole message.
        message: &'a [u8],
    },
    /// Another shard's device sent a text to one of ours.
    HandedOver {
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
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Hand a text to the shard of its receiver ([`Input::HandedOver`] there), in order.
    HandOver {
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
}

impl Refusal {
    /// The answer in the text protocol.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::Duplicate => text::DUPLICATE_MESSAGE,
            Refusal::NoSuchDevice => text::INVALID_DESTINATION,
            Refusal::UnknownCommand => text::INVALID_COMMAND,
            Refusal::Unreadable => text::UNREADABLE,
        }
    }
}

/// Decides for the devices of one shard.
#[derive(Debug)]
pub struct Broker {
    shard: ShardId,
    directory: Arc<Directory>,
    key: DigestKey,
    /// By [`Conn`].
    devices: Vec<Option<Device>>,
    conns: FxHashMap<DeviceId, Conn>,
    /// Where an info text is put together; kept for its memory.
    info: String,
}

/// Where a text is to go.
enum Receiver {
    Here(Conn),
    There(ShardId),
}

#[derive(Clone, Copy, Debug)]
struct Device {
    id: DeviceId,
    last: Option<LastText>,
}

impl Broker {
    /// A broker without devices. All brokers of one directory get the same key.
    pub fn new(shard: ShardId, directory: Arc<Directory>, key: DigestKey) -> Broker {
        let (devices, conns) = (Vec::new(), FxHashMap::default());
        Broker { shard, directory, key, devices, conns, info: String::new() }
    }

    /// Takes one input and says, by calling `effect`, what is to be done, in order.
    ///
    /// `now` never goes backward from call to call. Borrowed parts of an effect are lent for the
    /// call only.
    #[inline]
    pub fn handle(&mut self, now: Moment, input: Input<'_>, effect: &mut impl FnMut(Effect<'_>)) {
        match input {
            Input::Said { conn, message } => self.said(now, conn, message, effect),
            Input::HandedOver { shard, from, to, text } => {
                effect(match self.conns.get(&to) {
                    Some(&conn) => Effect::Deliver { conn, from, text },
                    None => Effect::Return { shard, from, digest: self.key.digest(text) },
                });
            }
            Input::Returned { from, digest } => self.returned(from, digest, effect),
            Input::Connected(conn) => self.connected(conn, effect),
            Input::Disconnected(conn) => self.disconnected(conn),
        }
    }

    /// The id of the device on a connection.
    pub fn device(&self, conn: Conn) -> Option<DeviceId> {
        self.devices.get(conn.0 as usize)?.map(|device| device.id)
    }

    #[inline]
    fn said(
        &mut self,
        now: Moment,
        conn: Conn,
        message: &[u8],
        effect: &mut impl FnMut(Effect<'_>),
    ) {
        let refusal = match text::parse(message) {
            Command::Send { to, text } => match self.send(now, conn, to, text, effect) {
                Ok(()) => return,
                Err(refusal) => refusal,
            },
            Command::Help => return self.inform(conn, effect),
            Command::SendNowhere => Refusal::NoSuchDevice,
            Command::Unknown => Refusal::UnknownCommand,
            Command::Unreadable => Refusal::Unreadable,
        };
        effect(Effect::Refuse { conn, refusal });
    }

    #[inline]
    fn send(
        &mut self,
        now: Moment,
        sender: Conn,
        to: DeviceId,
        text: &[u8],
        effect: &mut impl FnMut(Effect<'_>),
    ) -> Result<(), Refusal> {
        let receiver = match self.conns.get(&to) {
            Some(&conn) => Receiver::Here(conn),
            None => Receiver::There(self.directory.shard_of(to).ok_or(Refusal::NoSuchDevice)?),
        };
        let device = self.devices[sender.0 as usize].as_mut();
        let device = device.expect("a connection speaks between Connected and Disconnected");
        let digest = self.key.digest(text);
        if device.last.is_some_and(|last| last.is_repeated_by(digest, now)) {
            return Err(Refusal::Duplicate);
        }
        device.last = Some(LastText::new(digest, now));
        let from = device.id;
        effect(match receiver {
            Receiver::Here(conn) => Effect::Deliver { conn, from, text },
            Receiver::There(shard) => Effect::HandOver { shard, from, to, text },
        });
        Ok(())
    }

    /// Tells the sender, and takes the text out of his duplicate window, as if refused at once.
    fn returned(&mut self, from: DeviceId, digest: Digest, effect: &mut impl FnMut(Effect<'_>)) {
        let Some(&conn) = self.conns.get(&from) else { return };
        let device = self.devices[conn.0 as usize].as_mut().expect("conns names only devices");
        if device.last.is_some_and(|last| last.digest() == digest) {
            device.last = None;
        }
        effect(Effect::Refuse { conn, refusal: Refusal::NoSuchDevice });
    }

    fn connected(&mut self, conn: Conn, effect: &mut impl FnMut(Effect<'_>)) {
        let id = self.directory.add(self.shard);
        let index = conn.0 as usize;
        if self.devices.len() <= index {
            self.devices.resize(index + 1, None);
        }
        self.devices[index] = Some(Device { id, last: None });
        self.conns.insert(id, conn);
        self.inform(conn, effect);
    }

    fn inform(&mut self, conn: Conn, effect: &mut impl FnMut(Effect<'_>)) {
        let own = self.device(conn).expect("a connection asks after Connected");
        self.info.clear();
        self.directory.write_info(own, &mut self.info);
        effect(Effect::Inform { conn, info: &self.info });
    }

    /// Forgets the device; a connection that never was one is no matter.
    fn disconnected(&mut self, conn: Conn) {
        let Some(device) = self.devices.get_mut(conn.0 as usize).and_then(Option::take) else {
            return;
        };
        self.conns.remove(&device.id);
        self.directory.remove(device.id);
    }
}
