//! Shards in miniature: real brokers, connections that are reused, and queues between them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use proptest::sample::Index;
use switchboard_broker::{
    Broker, Conn, Digest, DigestKey, Directory, Effect, HashKey, Input, Limits, Moment, Now,
    ShardId,
};
use switchboard_proto::DeviceId;

use crate::original::{Original, Verdict};
use crate::{Say, Step};

/// An effect that outlives the call; both kinds of answers are one here.
#[derive(Clone, Debug, PartialEq)]
enum Done {
    Tell { conn: Conn, text: String },
    Deliver { conn: Conn, from: u64, text: String },
    Forward { shard: usize, from: u64, to: u64, text: String },
    Return { shard: usize, from: u64, digest: Digest },
}

impl From<Effect<'_>> for Done {
    fn from(effect: Effect<'_>) -> Done {
        match effect {
            Effect::Inform { conn, info } => Done::Tell { conn, text: info.to_owned() },
            Effect::Refuse { conn, refusal } => {
                Done::Tell { conn, text: refusal.text().to_owned() }
            }
            Effect::Deliver { conn, from, text } => {
                Done::Deliver { conn, from: from.get(), text: as_string(text) }
            }
            Effect::Forward { shard, from, to, text } => {
                let (shard, from, to) = (usize::from(shard.0), from.get(), to.get());
                Done::Forward { shard, from, to, text: as_string(text) }
            }
            Effect::Return { shard, from, digest } => {
                Done::Return { shard: usize::from(shard.0), from: from.get(), digest }
            }
            other => panic!("no device here has a mailbox: {other:?}"),
        }
    }
}

/// A text on its way between shards.
#[derive(Clone, Debug)]
struct Envelope {
    letter: Letter,
    /// Digest of its text, on the way back after its receiver was gone.
    returned: Option<Digest>,
}

/// One accepted text; `serial` tells equal texts apart.
#[derive(Clone, Debug)]
struct Letter {
    serial: usize,
    from: u64,
    to: u64,
    text: String,
}

/// Ends of an accepted text.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Delivered,
    SenderTold,
    SenderGone,
}

/// Shard and connection of a device.
#[derive(Clone, Copy, Debug)]
struct Place {
    shard: usize,
    conn: Conn,
}

pub(crate) struct World {
    now_ms: u64,
    key: DigestKey,
    brokers: Vec<Broker>,
    /// By shard: connections that are free to be used again, the last freed first.
    free: Vec<Vec<Conn>>,
    /// By shard of origin, then of destination.
    queues: Vec<Vec<VecDeque<Envelope>>>,
    places: BTreeMap<u64, Place>,
    original: Original,
    /// By serial.
    fates: Vec<Option<Fate>>,
    /// The last serial that reached a receiver from a sender.
    last_delivered: BTreeMap<(u64, u64), usize>,
}

impl World {
    pub(crate) fn new(shards: usize, list_max: usize) -> World {
        let directory = Arc::new(Directory::new(shards, list_max, HashKey::new([7; HashKey::LEN])));
        let key = DigestKey::new(std::array::from_fn(|at| at as u8));
        let limits = Limits::default();
        let broker = |shard| {
            let shard = ShardId(shard as u16);
            Broker::new(shard, directory.clone(), key.clone(), limits.clone(), false)
        };
        World {
            now_ms: 0,
            brokers: (0..shards).map(broker).collect(),
            free: vec![(0..200).rev().map(Conn).collect(); shards],
            queues: vec![vec![VecDeque::new(); shards]; shards],
            places: BTreeMap::new(),
            original: Original::new(list_max),
            fates: Vec::new(),
            last_delivered: BTreeMap::new(),
            key,
        }
    }

    pub(crate) fn step(&mut self, step: &Step) {
        let shards = self.brokers.len();
        match step {
            Step::Connect { shard } => self.connect(shard.index(shards)),
            Step::Disconnect { who } => {
                if let Some(id) = self.somebody(who) {
                    self.disconnect(id);
                }
            }
            Step::Say { who, what } => {
                if let Some(id) = self.somebody(who) {
                    let message = self.message(what);
                    self.say(id, &message);
                }
            }
            Step::Carry { queue } => {
                let queues = self.queues_in_use();
                if !queues.is_empty() {
                    let &(from, to) = queue.get(&queues);
                    self.carry(from, to);
                }
            }
            Step::Miss { envelope } => self.miss(envelope),
            Step::Pass { ms } => self.now_ms += ms,
        }
    }

    /// Lets everything arrive; then every accepted text must have ended.
    pub(crate) fn settle(&mut self) {
        while let Some(&(from, to)) = self.queues_in_use().first() {
            self.carry(from, to);
        }
        for (serial, fate) in self.fates.iter().enumerate() {
            assert!(fate.is_some(), "text {serial} was lost in silence");
        }
    }

    /// Returns the queues that are not empty, by the shards from and to which they lead.
    fn queues_in_use(&self) -> Vec<(usize, usize)> {
        let shards = self.brokers.len();
        let all = (0..shards).flat_map(|from| (0..shards).map(move |to| (from, to)));
        all.filter(|&(from, to)| !self.queues[from][to].is_empty()).collect()
    }

    fn miss(&mut self, envelope: &Index) {
        let envelopes = self.queues.iter().flatten().flatten();
        let receivers: Vec<u64> = envelopes
            .map(|envelope| envelope.letter.to)
            .filter(|to| self.places.contains_key(to))
            .collect();
        if !receivers.is_empty() {
            self.disconnect(*envelope.get(&receivers));
        }
    }

    fn somebody(&self, who: &Index) -> Option<u64> {
        let ids: Vec<u64> = self.places.keys().copied().collect();
        (!ids.is_empty()).then(|| *who.get(&ids))
    }

    fn message(&self, what: &Say) -> String {
        match what {
            Say::Help => "help".to_owned(),
            Say::Other(message) => (*message).to_owned(),
            Say::Send { to, text } => {
                let to = self.somebody(to).expect("the speaker is there");
                format!("send,{to},{text}")
            }
            Say::SendToNone { id, text } => {
                // From two below the first id to one above the last.
                let ids = self.original.next_id() - 99_999_998 + 1;
                let id = 99_999_998 + id.index(ids as usize) as u64;
                format!(" send , 0{id} ,{text}")
            }
        }
    }

    fn connect(&mut self, shard: usize) {
        let Some(conn) = self.free[shard].pop() else { return };
        let id = self.original.register();
        let text = self.original.info(id);
        self.places.insert(id, Place { shard, conn });
        let done = self.handle(shard, Input::Connected(conn));
        assert_eq!(done, [Done::Tell { conn, text }]);
        assert_eq!(self.brokers[shard].device(conn), Some(DeviceId::new(id)));
    }

    fn disconnect(&mut self, id: u64) {
        let Place { shard, conn } = self.places.remove(&id).expect("it is connected");
        self.original.unregister(id);
        assert_eq!(self.handle(shard, Input::Disconnected(conn)), []);
        assert_eq!(self.brokers[shard].device(conn), None);
        self.free[shard].push(conn);
    }

    fn say(&mut self, from: u64, message: &str) {
        let Place { shard, conn } = self.places[&from];
        let done = self.said(shard, conn, message.as_bytes());
        match self.original.communicate(self.now_ms, from, message) {
            Verdict::Tell(text) => assert_eq!(done, [Done::Tell { conn, text }]),
            Verdict::Forward { to, text } => {
                let serial = self.fates.len();
                self.fates.push(None);
                let letter = Letter { serial, from, to, text };
                self.forward(shard, letter, &done);
            }
        }
    }

    /// An accepted text is delivered at once on its own shard, and forwarded to another.
    fn forward(&mut self, sender_shard: usize, letter: Letter, done: &[Done]) {
        let Place { shard, conn } = self.places[&letter.to];
        let (from, to, text) = (letter.from, letter.to, letter.text.clone());
        if shard == sender_shard {
            assert_eq!(done, [Done::Deliver { conn, from, text }]);
            self.delivered(&letter);
        } else {
            assert_eq!(done, [Done::Forward { shard, from, to, text }]);
            let envelope = Envelope { letter, returned: None };
            self.queues[sender_shard][shard].push_back(envelope);
        }
    }

    /// The oldest envelope from one shard reaches the other.
    fn carry(&mut self, from: usize, to: usize) {
        let envelope = self.queues[from][to].pop_front().expect("the queue is in use");
        match envelope.returned {
            None => self.arrive(from, to, envelope.letter),
            Some(digest) => self.come_back(to, &envelope.letter, digest),
        }
    }

    fn arrive(&mut self, sender_shard: usize, shard: usize, letter: Letter) {
        let input = Input::Forwarded {
            shard: ShardId(sender_shard as u16),
            from: DeviceId::new(letter.from),
            to: DeviceId::new(letter.to),
            text: letter.text.as_bytes(),
        };
        let done = self.handle(shard, input);
        let from = letter.from;
        if self.original.is_connected(letter.to) {
            let conn = self.places[&letter.to].conn;
            assert_eq!(done, [Done::Deliver { conn, from, text: letter.text.clone() }]);
            self.delivered(&letter);
        } else {
            let digest = self.key.digest(letter.text.as_bytes());
            assert_eq!(done, [Done::Return { shard: sender_shard, from, digest }]);
            let envelope = Envelope { letter, returned: Some(digest) };
            self.queues[shard][sender_shard].push_back(envelope);
        }
    }

    fn come_back(&mut self, shard: usize, letter: &Letter, digest: Digest) {
        let from = DeviceId::new(letter.from);
        let done = self.handle(shard, Input::Returned { from, digest });
        match self.original.take_back(letter.from, &letter.text) {
            Some(Verdict::Tell(text)) => {
                let conn = self.places[&letter.from].conn;
                assert_eq!(done, [Done::Tell { conn, text }]);
                self.end(letter, Fate::SenderTold);
            }
            Some(other) => panic!("{other:?} is no answer to the sender"),
            None => {
                assert_eq!(done, []);
                self.end(letter, Fate::SenderGone);
            }
        }
    }

    fn delivered(&mut self, letter: &Letter) {
        self.end(letter, Fate::Delivered);
        let before = self.last_delivered.insert((letter.from, letter.to), letter.serial);
        assert!(before < Some(letter.serial), "{letter:?} overtook {before:?}");
    }

    fn end(&mut self, letter: &Letter, fate: Fate) {
        let before = self.fates[letter.serial].replace(fate);
        assert_eq!(before, None, "{letter:?} ended twice");
    }

    fn handle(&mut self, shard: usize, input: Input<'_>) -> Vec<Done> {
        let (mut done, now) = (Vec::new(), self.now());
        self.brokers[shard].handle(now, input, &mut |effect| done.push(Done::from(effect)));
        done
    }

    fn said(&mut self, shard: usize, conn: Conn, message: &[u8]) -> Vec<Done> {
        let (mut done, now) = (Vec::new(), self.now());
        self.brokers[shard].said(now, conn, message, &mut |effect| done.push(Done::from(effect)));
        done
    }

    fn now(&self) -> Now {
        Now { at: Moment::from_ms(self.now_ms), wall_ms: self.now_ms }
    }
}

fn as_string(text: &[u8]) -> String {
    std::str::from_utf8(text).expect("what was said was text").to_owned()
}
