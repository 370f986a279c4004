//! Rig for rule tests: one broker, and its effects as words.

use std::sync::Arc;

use switchboard_broker::{
    Broker, Conn, DigestKey, Directory, Effect, Envelope, HashKey, Hello, IdRecord, Input, Limits,
    Moment, Now, Position, Record, Replay, ShardId, StampClock, Want,
};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, ServerFrame};

pub(crate) const NOW: Now = Now { at: Moment::from_ms(100_000), wall_ms: 1_000_000 };

/// A broker of one shard, and a store that keeps all records and syncs on demand.
pub(crate) struct Rig {
    pub(crate) broker: Broker,
    pub(crate) directory: Arc<Directory>,
    pub(crate) now: Now,
    /// True if devices say in `hello` that they are ephemeral.
    pub(crate) is_ephemeral: bool,
    pub(crate) nonce: u64,
    /// Appends that are not synced.
    unsynced: usize,
    last_position: u64,
}

/// Effects of a broker.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Frames as they go out, each with its connection.
    pub(crate) frames: Vec<(u32, String)>,
    /// Connections that were closed.
    pub(crate) closed: Vec<(u32, u16)>,
    /// Records, by their kinds.
    pub(crate) appended: Vec<&'static str>,
    /// The `pushed_to` of the devices' records among them.
    pub(crate) pushed_to: Vec<u64>,
    /// Fetches: device, session and contents.
    pub(crate) fetches: Vec<(DeviceId, u32, Vec<Want>)>,
    /// Envelopes to other shards.
    pub(crate) sent: Vec<Envelope>,
}

impl Done {
    fn note(&mut self, effect: Effect<'_>) {
        match effect {
            Effect::Tell { conn, frame } | Effect::Push { conn, frame } => {
                self.frames.push((conn.0, written(frame)));
            }
            Effect::Close { conn, code, .. } => self.closed.push((conn.0, code)),
            Effect::Append(record) => {
                self.appended.push(kind(&record));
                if let Record::Device(device) = record {
                    self.pushed_to.push(device.pushed_to);
                }
            }
            Effect::Fetch { device, session, wants, .. } => {
                self.fetches.push((device, session, wants.to_vec()));
            }
            Effect::Send { envelope, .. } => self.sent.push(envelope),
            _ => {}
        }
    }

    /// Returns the only frame that went to a connection.
    pub(crate) fn told(&self, conn: u32) -> &str {
        let mut frames = self.frames.iter().filter(|(to, _)| *to == conn);
        let (_, frame) = frames.next().unwrap_or_else(|| panic!("nothing was told: {self:?}"));
        assert!(frames.next().is_none(), "more than one: {self:?}");
        frame
    }
}

fn written(frame: &ServerFrame<'_>) -> String {
    let mut text = Vec::new();
    frame.write(&mut text);
    String::from_utf8(text).expect("frames are UTF-8")
}

fn kind(record: &Record<'_>) -> &'static str {
    match record {
        Record::Message(_) => "message",
        Record::Outcome(_) => "outcome",
        Record::Acked { .. } => "acked",
        Record::Ended(_) => "ended",
        Record::Device(_) => "device",
        Record::Gone { .. } => "gone",
        Record::Id(_) => "id",
        Record::Exchange(_) => "exchange",
    }
}

impl Rig {
    pub(crate) fn new(limits: Limits, is_durable: bool) -> Rig {
        let directory = Arc::new(Directory::new(1, 100, HashKey::new([7; HashKey::LEN])));
        let key = DigestKey::new([7; DigestKey::LEN]);
        let mut broker = Broker::new(ShardId(0), Arc::clone(&directory), key, limits, is_durable);
        broker.stamp_by(StampClock::at(NOW.at, NOW.wall_ms));
        Rig {
            broker,
            directory,
            now: NOW,
            nonce: 1,
            is_ephemeral: false,
            unsynced: 0,
            last_position: 0,
        }
    }

    /// Returns a rig whose store has these records, the first one at position 1.
    pub(crate) fn replayed(records: &[Record<'_>]) -> (Rig, Done) {
        Rig::restored(&[], records)
    }

    /// As [`Rig::replayed`], with a store that was restored from a backup of the first records.
    pub(crate) fn restored(backup: &[Record<'_>], since: &[Record<'_>]) -> (Rig, Done) {
        let mut rig = Rig::new(Limits::default(), true);
        let mut replay = Replay::default();
        let mut next = |broker: &mut Broker, record: &Record<'_>| {
            rig.last_position += 1;
            broker.replay(NOW, &mut replay, record, Position(rig.last_position));
        };
        backup.iter().for_each(|record| next(&mut rig.broker, record));
        rig.broker.all_may_have_been_pushed();
        since.iter().for_each(|record| next(&mut rig.broker, record));
        let mut done = Done::default();
        rig.broker.replayed_all(NOW, replay, &mut |effect| done.note(effect));
        rig.unsynced += done.appended.len();
        (rig, done)
    }

    pub(crate) fn handle(&mut self, input: Input<'_>) -> Done {
        let mut done = Done::default();
        self.broker.handle(self.now, input, &mut |effect| done.note(effect));
        self.unsynced += done.appended.len();
        done
    }

    pub(crate) fn say(&mut self, conn: u32, frame: &str) -> Done {
        let mut done = Done::default();
        let (conn, text) = (Conn(conn), frame.as_bytes());
        self.broker.framed(self.now, conn, text, &mut |effect| done.note(effect));
        self.unsynced += done.appended.len();
        done
    }

    /// Opens the session of a device; `seen` is the mailbox that it knows, and the last `seq`.
    pub(crate) fn hello(&mut self, conn: u32, name: &str, seen: Option<(u64, u64)>) -> Done {
        self.hello_as(conn, DeviceRef::Name(name), seen)
    }

    /// As [`Rig::hello`], for a device with or without a name.
    pub(crate) fn hello_as(
        &mut self,
        conn: u32,
        device: DeviceRef<'_>,
        seen: Option<(u64, u64)>,
    ) -> Done {
        let device = self.directory.names().intern(device);
        self.handle(Input::Hello(Hello {
            conn: Conn(conn),
            device,
            is_text: false,
            mailbox: seen.map(|(mailbox, _)| format!("{mailbox:016x}").into()),
            last_seq: seen.map_or(0, |(_, seq)| seq),
            token: None,
            token_ends_ms: None,
            filter: None,
            nonce: self.nonce,
            is_ephemeral: self.is_ephemeral,
        }))
    }

    /// Ends a device's connection.
    pub(crate) fn leave(&mut self, conn: u32) -> Done {
        self.handle(Input::Disconnected(Conn(conn)))
    }

    /// Syncs everything that was appended, and what is appended because of that.
    pub(crate) fn sync(&mut self) -> Done {
        let mut all = Done::default();
        while self.unsynced > 0 {
            let Done { frames, closed, appended, pushed_to, fetches, sent } =
                self.sync_first(self.unsynced);
            all.frames.extend(frames);
            all.closed.extend(closed);
            all.appended.extend(appended);
            all.pushed_to.extend(pushed_to);
            all.fetches.extend(fetches);
            all.sent.extend(sent);
        }
        all
    }

    /// Syncs the first appends.
    pub(crate) fn sync_first(&mut self, count: usize) -> Done {
        self.unsynced -= count;
        let positions: Vec<Position> = (0..count)
            .map(|_| {
                self.last_position += 1;
                Position(self.last_position)
            })
            .collect();
        self.handle(Input::Synced(&positions))
    }

    /// Compacts the part of the log in which this record lies; returns the record of an id of ann's that
    /// is kept of it.
    pub(crate) fn kept_id(&mut self, record: &Record<'_>) -> Option<IdRecord<'static>> {
        let mut kept = None;
        let (to, from) = (DeviceRef::Name("bob"), DeviceRef::Name("ann"));
        self.broker.compact(self.now, record, Position(1), &mut |effect| {
            self.unsynced += usize::from(matches!(effect, Effect::Append(_)));
            if let Effect::Append(Record::Id(id)) = effect {
                let IdRecord { key, content, seq, is_cancelled, at, .. } = id;
                kept = Some(IdRecord { to, from, key, content, seq, is_cancelled, at });
            }
        });
        kept
    }

    /// Compacts the part of the log in which this record lies.
    pub(crate) fn compact(&mut self, record: &Record<'_>, position: u64) -> Done {
        let mut done = Done::default();
        self.broker.compact(self.now, record, Position(position), &mut |effect| done.note(effect));
        self.unsynced += done.appended.len();
        done
    }
}
