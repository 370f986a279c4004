//! A server in miniature: brokers, queues between them, their store, their connections.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use switchboard_broker::{
    Broker, Conn, Content, DEVICE_BYTES, Digest, DigestKey, Directory, Effect, Envelope, HashKey,
    Hello, Input, LastRun, Limits, Moment, Now, PARTITIONS, PartitionId, Position, RECEIPT_BYTES,
    Replay, ShardId, StampClock, StoreGate, Want, owner,
};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::PublicId;

use crate::client::{Client, ClientKind, Link, Up, What};
use crate::config::Config;
use crate::done::Done;
use crate::ledger::{Answer, Arrival, Ledger};
use crate::oracle::serial_of;
use crate::random::Random;
use crate::store::{Store, Stored};

pub(crate) struct World {
    pub(crate) is_traced: bool,
    pub(crate) random: Random,
    pub(crate) config: Config,
    pub(crate) now: Now,
    /// Real time, which no jump of a clock moves; the server may be down while it passes.
    pub(crate) real_ms: u64,
    /// The clocks as the server noted them last.
    pub(crate) noted: LastRun,
    /// The clock by which records are stamped in this run.
    clock: StampClock,
    /// Number of starts of the server.
    pub(crate) run: u32,
    directory: Arc<Directory>,
    /// Bytes that may be promised for outcomes.
    promised_max: u64,
    pub(crate) brokers: Vec<Broker>,
    key: DigestKey,
    /// By shard of origin, then of destination.
    pub(crate) queues: Vec<Vec<VecDeque<Cargo>>>,
    /// Time for which there has been something in a queue.
    queued_ms: u64,
    /// True once something may have been in a queue for longer than ids are remembered.
    has_late: bool,
    pub(crate) store: Store,
    pub(crate) fetches: Vec<Fetch>,
    pub(crate) compaction: Option<Compaction>,
    /// Part of all mailboxes' names; another after each restore of a backup.
    pub(crate) epoch: u64,
    /// Position up to which everything counts as pushed: the end of the backup that was restored.
    pub(crate) unsure_to: Position,
    /// The log at an earlier time.
    pub(crate) backup: Option<VecDeque<(Position, Stored)>>,
    pub(crate) links: Vec<Link>,
    /// By shard and number of the connection.
    seats: Vec<Vec<Option<usize>>>,
    free: Vec<Vec<u32>>,
    pub(crate) clients: Vec<Client>,
    pub(crate) strangers: usize,
    pub(crate) ledger: Ledger,
    /// Time of each shard's last tick.
    pub(crate) ticked: Vec<Moment>,
    /// Shards that have ended while others go on.
    pub(crate) has_ended: Vec<bool>,
}

/// Something on its way between shards.
#[derive(Debug)]
pub(crate) enum Cargo {
    Envelope(Envelope),
    Text { from: DeviceId, to: DeviceId, text: Vec<u8> },
    Returned { from: DeviceId, digest: Digest },
}

#[derive(Debug)]
pub(crate) struct Fetch {
    shard: usize,
    device: DeviceId,
    session: u32,
    wants: Vec<Want>,
}

/// The oldest part of the log, which is being compacted.
#[derive(Debug)]
pub(crate) struct Compaction {
    records: Vec<(Position, Stored)>,
    /// By shard: number of its appends that must be synced first, once it has seen the records.
    until: Vec<Option<u64>>,
}

/// Prints what happens, in a world that is traced.
macro_rules! note {
    ($world:expr, $($words:tt)*) => {
        if $world.is_traced {
            eprintln!("{:>9} | {}", $world.now.at.ms(), format!($($words)*));
        }
    };
}
pub(crate) use note;

impl World {
    pub(crate) fn new(seed: u64, is_traced: bool) -> World {
        let mut random = Random::new(seed);
        let config = Config::drawn(&mut random);
        let named = (0..config.named).map(|at| {
            let name = PublicId::Name(["ann", "bob", "cleo", "dora"][at].into());
            Client::new(ClientKind::Named, Some(name))
        });
        let anonymous = (0..config.anonymous).map(|_| Client::new(ClientKind::Anonymous, None));
        let text = (0..config.texts).map(|_| Client::new(ClientKind::Text, None));
        let ephemeral = ["eve", "fay"].into_iter().take(config.ephemeral).map(|name| Client {
            is_ephemeral: true,
            ..Client::new(ClientKind::Named, Some(PublicId::Name(name.into())))
        });
        let clients = named.chain(ephemeral).chain(anonymous).chain(text).collect();
        let at = Moment::from_ms(1_000);
        let mut world = World {
            is_traced,
            random,
            config,
            now: Now { at, wall_ms: 1_700_000_000_000 },
            real_ms: 1_000_000,
            noted: LastRun::default(),
            clock: StampClock::default(),
            run: 0,
            directory: Arc::new(Directory::new(1, 3, HashKey::new([7; HashKey::LEN]))),
            promised_max: u64::MAX,
            brokers: Vec::new(),
            key: DigestKey::new(std::array::from_fn(|at| at as u8)),
            queues: Vec::new(),
            queued_ms: 0,
            has_late: false,
            store: Store::default(),
            fetches: Vec::new(),
            compaction: None,
            epoch: 0,
            unsure_to: Position(0),
            backup: None,
            links: Vec::new(),
            seats: Vec::new(),
            free: Vec::new(),
            clients,
            strangers: 0,
            ledger: Ledger::default(),
            ticked: Vec::new(),
            has_ended: Vec::new(),
        };
        note!(world, "{:?}", world.config);
        world.start();
        world
    }

    /// Starts the server with the records of the log.
    pub(crate) fn start(&mut self) {
        self.run += 1;
        let shards = 1 + self.random.below(self.config.shards_max);
        note!(
            self,
            "start {} with {shards} shards, {} records",
            self.run,
            self.store.durable.len()
        );
        let next_id = self.directory.next_id();
        self.directory = Arc::new(Directory::new(shards, 3, HashKey::new([7; HashKey::LEN])));
        self.directory.begin_ids_at(next_id);
        self.promised_max = u64::MAX;
        self.store.begin(shards);
        self.queues = (0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect();
        self.seats = vec![vec![None; 64]; shards];
        self.free = vec![(0..64).rev().collect(); shards];
        self.ticked = vec![Moment::default(); shards];
        self.has_ended = vec![false; shards];
        self.fetches.clear();
        self.compaction = None;
        self.brokers.clear();
        let (clock, jump) = StampClock::resume(self.noted, self.now.at, self.now.wall_ms);
        note!(self, "the clock jumped: {jump:?}");
        self.clock = clock;
        self.note_clocks();
        for shard in 0..shards {
            let (directory, key) = (Arc::clone(&self.directory), self.key.clone());
            let limits = self.config.limits.clone();
            let shard = ShardId(shard as u16);
            let is_durable = self.config.is_durable;
            let mut broker = Broker::new(shard, directory, key, limits, is_durable);
            broker.name_mailboxes_after(self.epoch);
            broker.stamp_by(clock);
            self.brokers.push(broker);
        }
        self.replay();
        self.audit();
        if self.random.percent(5) {
            self.check_partitions();
        }
    }

    /// Checks that the records of each partition alone restore all of it.
    fn check_partitions(&self) {
        let mut whole = self.replayed(|_| true).describe();
        let mut parts: Vec<String> = (0..PARTITIONS)
            .filter_map(PartitionId::new)
            .flat_map(|own| self.replayed(|partition| partition == own).describe())
            .collect();
        whole.sort_unstable();
        parts.sort_unstable();
        assert_eq!(whole, parts, "partitions that were replayed alone differ");
    }

    /// Returns a broker for which the records of some partitions were replayed.
    fn replayed(&self, is_meant: impl Fn(PartitionId) -> bool) -> Broker {
        let directory = Arc::new(Directory::new(1, 3, HashKey::new([7; HashKey::LEN])));
        // The bounds on ids are on all of a shard.
        let limits = Limits {
            dedup_ids_max: 1_000_000,
            dedup_ids_per_device_max: 1_000_000,
            ..self.config.limits.clone()
        };
        let mut broker = Broker::new(ShardId(0), directory, self.key.clone(), limits, true);
        broker.stamp_by(self.clock);
        let mut replay = Replay::default();
        let records =
            self.store.durable.iter().map(|(position, stored)| (position, stored.record()));
        for (position, record) in records.filter(|(_, record)| is_meant(record.partition())) {
            broker.replay(self.now, &mut replay, &record, *position);
        }
        broker.end_replay(self.now, &mut replay, &mut |_| ());
        broker
    }

    fn replay(&mut self) {
        let now = self.now;
        let mut replays: Vec<Replay> = self.brokers.iter().map(|_| Replay::default()).collect();
        let mut is_unsure = true;
        for (position, stored) in &self.store.durable {
            note!(self, "  replay {position:?} {stored:?}");
            if *position > self.unsure_to && std::mem::take(&mut is_unsure) {
                self.brokers.iter_mut().for_each(Broker::all_may_have_been_pushed);
            }
            for (broker, replay) in self.brokers.iter_mut().zip(&mut replays) {
                broker.replay(now, replay, &stored.record(), *position);
            }
        }
        if is_unsure && self.unsure_to > Position(0) {
            self.brokers.iter_mut().for_each(Broker::all_may_have_been_pushed);
        }
        for (shard, replay) in replays.into_iter().enumerate() {
            let mut done = Vec::new();
            self.brokers[shard].replayed_all(now, replay, &mut |effect| done.push(effect.into()));
            self.perform_all(shard, done);
        }
    }

    /// Ends the process; records that are not synced may or may not be in the log.
    pub(crate) fn crash(&mut self) {
        for shard in 0..self.brokers.len() {
            if self.random.percent(50) {
                self.store.submit(shard);
            }
        }
        let kept = self.random.below(self.store.unsynced.len() + 1);
        note!(self, "CRASH, {kept} of {} unsynced are kept", self.store.unsynced.len());
        self.store.sync(kept);
        self.all_links_end();
    }

    /// Ends all connections with the process.
    pub(crate) fn all_links_end(&mut self) {
        let real_ms = self.real_ms;
        for at in 0..self.links.len() {
            let link = &mut self.links[at];
            if link.is_open && link.is_recorded {
                self.clients[link.client].away_since_ms = real_ms;
            }
            let link = &mut self.links[at];
            (link.is_open, link.is_live, link.is_over) = (false, false, true);
        }
        self.links.clear();
        let acked = self.store.acked_to();
        for client in &mut self.clients {
            client.link = None;
            let acked_to = client.device.as_ref().and_then(|device| acked.get(device));
            let acked_to = acked_to.copied().unwrap_or_default();
            for marks in client.marks.values() {
                for seq in &marks.refused {
                    let serial = marks.seen.get(seq).and_then(|seen| seen.message());
                    if let Some(serial) = serial {
                        self.ledger.refused_before_end(serial, *seq <= acked_to);
                    }
                }
            }
            if client.kind == ClientKind::Text {
                client.device = None;
            }
            for marks in client.marks.values_mut() {
                marks.acked_to = marks.durable_to;
                marks.acks.clear();
                marks.refused.clear();
            }
        }
    }

    pub(crate) fn shards(&self) -> usize {
        self.brokers.len()
    }

    // ---- the brokers ----

    pub(crate) fn handle(&mut self, shard: usize, input: Input<'_>) {
        let mut done = Vec::new();
        self.brokers[shard].handle(self.now, input, &mut |effect| done.push(Done::from(effect)));
        self.perform_all(shard, done);
    }

    fn perform_all(&mut self, shard: usize, done: Vec<Done>) {
        for done in done {
            note!(self, "    {shard}: {done:?}");
            self.perform(shard, done);
        }
    }

    fn perform(&mut self, shard: usize, done: Done) {
        match done {
            Done::Tell { conn, event } => self.told(self.link_on(shard, conn), event),
            Done::Push { conn, event } => self.pushed(self.link_on(shard, conn), event),
            Done::Inform { conn } => self.informed(self.link_on(shard, conn)),
            Done::Refuse { conn, refusal } => self.refused(self.link_on(shard, conn), refusal),
            Done::TextAccepted { conn } => self.text_accepted(self.link_on(shard, conn)),
            Done::Deliver { conn, body } => self.text_came(self.link_on(shard, conn), &body, false),
            Done::PushBody { conn, body } => self.text_came(self.link_on(shard, conn), &body, true),
            Done::Forward { shard: to_shard, from, to, text } => {
                let cargo = Cargo::Text { from, to, text };
                self.queues[shard][usize::from(to_shard.0)].push_back(cargo);
            }
            Done::Return { shard: to_shard, from, digest } => {
                let cargo = Cargo::Returned { from, digest };
                self.queues[shard][usize::from(to_shard.0)].push_back(cargo);
            }
            Done::Send { shard: to_shard, envelope } => {
                self.queues[shard][usize::from(to_shard.0)].push_back(Cargo::Envelope(envelope));
            }
            Done::AwaitDrain { conn } => {
                let link = self.link_on(shard, conn);
                self.links[link].awaits_drain = true;
            }
            Done::AwaitReply { conn } => {
                let link = self.link_on(shard, conn);
                self.links[link].is_held = true;
            }
            Done::Replied { conn } => self.replied(self.link_on(shard, conn)),
            Done::Close { conn, code } => self.closed(self.link_on(shard, conn), code),
            Done::Append(stored) => {
                assert!(self.config.is_durable, "there is no store for {stored:?}");
                if let Stored::Device(record) = &stored {
                    let may_be_new = !self.store.is_full || self.store.knows(&record.device);
                    assert!(may_be_new, "a new device while the store is full: {record:?}");
                }
                self.store.append(shard, stored);
            }
            Done::Fetch { device, session, wants } => {
                self.fetches.push(Fetch { shard, device, session, wants });
            }
            Done::Count => {}
        }
    }

    /// Returns the link on a connection. No effect may be for one that is closed or gone.
    fn link_on(&self, shard: usize, conn: Conn) -> usize {
        let link = self.seats[shard][conn.0 as usize].expect("an effect is for a connection");
        assert!(self.links[link].is_open, "an effect for a closed connection: {conn:?}");
        link
    }

    // ---- connections ----

    /// Connects a client, which may have lost its memory.
    pub(crate) fn connect(&mut self, client: usize, is_text: bool, memory: Memory) {
        if let (None, Some(link)) = (&self.clients[client].device, self.clients[client].link) {
            // It will get another device.
            self.vanish(link);
        }
        let away_ms = self.real_ms - self.clients[client].away_since_ms;
        self.clients[client].away_ms_max = self.clients[client].away_ms_max.max(away_ms);
        let device = match &self.clients[client].device {
            Some(shown) => self.directory.names().intern(shown.as_ref()),
            None => self.directory.new_id(),
        };
        let shard = usize::from(owner(device, self.shards() as u16).0);
        let nonce = self.random.next() | 1;
        let said = self.memory(client, memory).filter(|_| !is_text);
        let link = self.sit(client, shard, is_text);
        note!(self, "client {client} connects as {device:?} on link {link}, saying {said:?}");
        let conn = self.links[link].conn;
        self.links[link].said = said.clone();
        self.acked_by_hello(client, said.as_ref());
        let (mailbox, last_seq) = said.map_or((None, 0), |(name, seq)| (Some(name.into()), seq));
        self.handle(
            shard,
            Input::Hello(Hello {
                conn,
                device,
                is_text,
                mailbox,
                last_seq,
                token: None,
                token_ends_ms: None,
                filter: None,
                nonce,
                is_ephemeral: self.clients[client].is_ephemeral && !is_text,
            }),
        );
    }

    fn memory(&mut self, client: usize, memory: Memory) -> Option<(String, u64)> {
        let client = &mut self.clients[client];
        let last_seq = client.marks().map_or(0, |marks| marks.last_seq);
        match memory {
            Memory::None => None,
            Memory::Good => Some((client.mailbox.clone()?, last_seq)),
            Memory::OfAnother => Some(("00000000000000aa".to_owned(), last_seq)),
        }
    }

    /// Connects an anonymous device of the text protocol, on any shard.
    pub(crate) fn connect_text(&mut self, client: usize) {
        let shard = self.random.below(self.shards());
        let link = self.sit(client, shard, true);
        note!(self, "client {client} connects by text on link {link}");
        let conn = self.links[link].conn;
        self.handle(shard, Input::Connected(conn));
        let device = self.brokers[shard].device(conn).expect("it is there");
        self.clients[client].device = Some(self.directory.names().show(device));
        self.clients[client].incarnation += 1;
        self.links[link].incarnation = self.clients[client].incarnation;
    }

    fn sit(&mut self, client: usize, shard: usize, is_text: bool) -> usize {
        let conn = Conn(self.free[shard].pop().expect("there are connections enough"));
        let link = self.links.len();
        self.seats[shard][conn.0 as usize] = Some(link);
        self.clients[client].link = Some(link);
        self.links.push(Link {
            client,
            shard,
            conn,
            is_text,
            is_open: true,
            is_live: true,
            is_over: false,
            is_welcome: false,
            is_recorded: false,
            said: None,
            incarnation: 0,
            up: VecDeque::new(),
            is_held: false,
            awaits_drain: false,
            undrained: Vec::new(),
            asked: Vec::new(),
            errors_due: 0,
            text_asked: None,
            pushed_to: 0,
            in_flight: BTreeSet::new(),
        });
        link
    }

    /// Ends the client's end of a link without the server's knowledge.
    pub(crate) fn vanish(&mut self, link: usize) {
        note!(self, "link {link} is half-open");
        self.links[link].is_live = false;
        let client = self.links[link].client;
        if self.clients[client].link == Some(link) {
            self.clients[client].link = None;
        }
    }

    /// Lets the server notice that a connection is gone, even one that it closed.
    pub(crate) fn disconnect(&mut self, link: usize) {
        note!(self, "link {link} is gone");
        self.vanish(link);
        let (shard, conn) = (self.links[link].shard, self.links[link].conn);
        if self.links[link].is_open && self.links[link].is_recorded {
            self.clients[self.links[link].client].away_since_ms = self.real_ms;
        }
        (self.links[link].is_open, self.links[link].is_over) = (false, true);
        self.seats[shard][conn.0 as usize] = None;
        self.free[shard].push(conn.0);
        self.handle(shard, Input::Disconnected(conn));
    }

    fn closed(&mut self, link: usize, code: u16) {
        note!(self, "link {link} is closed with {code}");
        let client = self.links[link].client;
        if code != 4409 && self.links[link].is_recorded {
            self.clients[client].away_since_ms = self.real_ms;
        }
        (self.links[link].is_open, self.links[link].is_live) = (false, false);
        if self.clients[client].link == Some(link) {
            self.clients[client].link = None;
        }
    }

    /// Lets the oldest frame of a link reach the server, even on a connection that was closed.
    pub(crate) fn arrive(&mut self, link: usize) {
        let Some(up) = self.links[link].up.pop_front() else { return };
        let (shard, conn, is_open) =
            (self.links[link].shard, self.links[link].conn, self.links[link].is_open);
        note!(self, "link {link} says {}", String::from_utf8_lossy(&up.bytes));
        if is_open {
            self.arrived(link, &up.what);
        }
        let mut done = Vec::new();
        let (broker, is_text) = (&mut self.brokers[shard], self.links[link].is_text);
        let mut note = |effect: Effect<'_>| done.push(Done::from(effect));
        match is_text {
            true => broker.said(self.now, conn, &up.bytes, &mut note),
            false => broker.framed(self.now, conn, &up.bytes, &mut note),
        }
        self.perform_all(shard, done);
        if is_text {
            let link = &mut self.links[link];
            link.text_asked = link.text_asked.filter(|_| link.is_held);
        }
    }

    /// Notes that a send reached the server; returns the number of this arrival.
    pub(crate) fn arrival(&mut self, link: usize, serial: usize) -> usize {
        let message = &self.ledger.messages[serial];
        let incarnations = (self.links[link].incarnation, self.clients[message.to].incarnation);
        let arrival = Arrival {
            order: 0,
            at: self.now.at,
            real_ms: self.real_ms,
            run: self.run,
            incarnations,
            answer: Answer::Unknown,
        };
        self.ledger.arrived(serial, arrival, self.config.window())
    }

    pub(crate) fn say(&mut self, link: usize, bytes: Vec<u8>, what: What) {
        self.links[link].up.push_back(Up { bytes, what });
    }

    /// Lets a connection take what was pushed to it.
    pub(crate) fn drain(&mut self, link: usize) {
        let (shard, conn) = (self.links[link].shard, self.links[link].conn);
        self.links[link].awaits_drain = false;
        note!(self, "link {link} is drained");
        for serial in std::mem::take(&mut self.links[link].undrained) {
            let message = &mut self.ledger.messages[serial];
            message.is_acked = true;
            // The text protocol promises no more than that it was written to a socket.
            if !std::mem::replace(&mut message.is_seen, true) {
                message.is_seen_by_text = true;
            }
        }
        self.handle(shard, Input::Drained(conn));
    }

    // ---- between shards ----

    pub(crate) fn carry(&mut self, from: usize, to: usize) {
        let Some(cargo) = self.queues[from][to].pop_front() else { return };
        if self.has_ended[to] {
            note!(self, "{from} -> {to}: {cargo:?} is lost");
            return;
        }
        note!(self, "{from} -> {to}: {cargo:?}");
        match cargo {
            Cargo::Envelope(envelope) => {
                if let Envelope::Deliver(deliver) = &envelope {
                    let serial = serial_of(&String::from_utf8_lossy(&deliver.body));
                    self.ledger.judged(serial, self.now.at, self.config.window());
                }
                self.handle(to, Input::Envelope(envelope));
            }
            Cargo::Text { from: sender, to: receiver, text } => {
                let shard = ShardId(from as u16);
                let input = Input::Forwarded { shard, from: sender, to: receiver, text: &text };
                self.handle(to, input);
            }
            Cargo::Returned { from: sender, digest } => {
                self.handle(to, Input::Returned { from: sender, digest });
            }
        }
    }

    /// Returns the queues that are not empty.
    pub(crate) fn queues_in_use(&self) -> Vec<(usize, usize)> {
        let shards = self.shards();
        let all = (0..shards).flat_map(|from| (0..shards).map(move |to| (from, to)));
        all.filter(|&(from, to)| !self.queues[from][to].is_empty()).collect()
    }

    // ---- the store ----

    /// Tells a shard which of its appends are synced.
    pub(crate) fn tell_synced(&mut self, shard: usize) {
        let positions = std::mem::take(&mut self.store.untold[shard]);
        if !positions.is_empty() && !self.has_ended[shard] {
            note!(self, "shard {shard} hears that {positions:?} are synced");
            self.handle(shard, Input::Synced(&positions));
        }
    }

    pub(crate) fn fail(&mut self, is_failing: bool) {
        note!(self, "the store is {}", if is_failing { "failing" } else { "healthy" });
        self.store.is_failing = is_failing;
        // Acks are not submitted to a store that fails: the time for that begins anew.
        let marks = self.clients.iter_mut().flat_map(|client| client.marks.values_mut());
        marks.for_each(|marks| marks.acks.iter_mut().for_each(|(at, _)| *at = self.now.at));
        for shard in 0..self.shards() {
            let input = if is_failing { Input::StoreFailing } else { Input::StoreHealthy };
            self.handle(shard, input);
        }
    }

    /// Tells all shards that the store is full, or is not any more.
    pub(crate) fn fill(&mut self, is_full: bool) {
        note!(self, "the store is {}", if is_full { "full" } else { "not full" });
        self.store.is_full = is_full;
        for shard in 0..self.shards() {
            let gate = if is_full { StoreGate::Closed } else { StoreGate::Open };
            self.handle(shard, Input::StoreGate(gate));
        }
        self.bound_promises();
    }

    /// Sets the store's room for promised outcomes.
    fn bound_promises(&mut self) {
        let few = self.random.pick(&[None, Some(0), Some(2), Some(5)]);
        let more = few.map(|few: u64| few * RECEIPT_BYTES as u64);
        let promised = self.directory.promised_bytes();
        self.directory.set_store_room(more.map_or(u64::MAX, |more| promised + more), 0);
        self.promised_max = more.map_or(u64::MAX, |more| self.promised_for_outcomes() + more);
    }

    fn promised_for_outcomes(&self) -> u64 {
        self.directory.promised_bytes() - (self.directory.devices() * DEVICE_BYTES) as u64
    }

    /// Answers a fetch, perhaps not in full.
    pub(crate) fn answer_fetch(&mut self, at: usize, loss_percent: usize) {
        let Fetch { shard, device, session, wants } = self.fetches.swap_remove(at);
        let shown = self.directory.names().show(device);
        let mut contents = Vec::new();
        for want in wants {
            let is_lost = self.random.percent(loss_percent);
            if let Some(stored) = self.store.read(want.position)
                && !is_lost
            {
                contents.push((want.seq, self.content(stored, &shown, want.seq)));
            }
        }
        note!(self, "fetched for {shown:?}: {contents:?}");
        self.handle(shard, Input::Fetched { device, session, contents });
    }

    fn content(&self, stored: &Stored, device: &PublicId, seq: u64) -> Content {
        match stored {
            Stored::Message(message) => {
                assert_eq!((&message.to, message.seq), (device, seq), "another's record");
                message.record().content()
            }
            Stored::Outcome(outcome) => {
                assert_eq!((&outcome.to, outcome.seq), (device, seq), "another's record");
                outcome.record().content()
            }
            other => panic!("{other:?} has no content"),
        }
    }

    /// Begins to compact the oldest `count` records.
    pub(crate) fn begin_compaction(&mut self, count: usize) {
        let records: Vec<_> = self.store.durable.iter().take(count).cloned().collect();
        note!(self, "compact up to {:?}", records.last().map(|(position, _)| position));
        self.compaction = Some(Compaction { records, until: vec![None; self.shards()] });
    }

    /// Gives the records that are compacted to the next shard; deletes them when all shards have
    /// seen them and what they appended is synced.
    pub(crate) fn go_on_compacting(&mut self) {
        let Some(mut compaction) = self.compaction.take() else { return };
        if let Some(shard) = compaction.until.iter().position(Option::is_none) {
            // It must know their positions.
            self.tell_synced(shard);
            let mut done = Vec::new();
            note!(self, "shard {shard} looks at what is to go");
            for (position, stored) in &compaction.records {
                let record = stored.record();
                self.brokers[shard]
                    .compact(self.now, &record, *position, &mut |effect| done.push(effect.into()));
            }
            self.perform_all(shard, done);
            compaction.until[shard] = Some(self.store.appended[shard]);
        } else {
            let shards = 0..self.shards();
            let is_synced =
                shards.into_iter().all(|at| Some(self.store.synced[at]) >= compaction.until[at]);
            if is_synced {
                if let Some((position, _)) = compaction.records.last() {
                    note!(self, "all up to {position:?} is gone");
                    self.store.compact(*position);
                }
                return;
            }
        }
        self.compaction = Some(compaction);
    }

    // ---- time ----

    /// Notes the clocks, as the server does every ten seconds and at a planned stop.
    pub(crate) fn note_clocks(&mut self) {
        let Now { at, wall_ms } = self.now;
        self.noted = LastRun { uptime: at, stamp_ms: self.clock.stamp(at), wall_ms };
    }

    pub(crate) fn pass(&mut self, ms: u64) {
        note!(self, "{ms} ms pass");
        let is_queued = self.queues.iter().flatten().any(|queue| !queue.is_empty());
        self.queued_ms = if is_queued { self.queued_ms + ms } else { 0 };
        self.has_late |= self.queued_ms >= self.config.limits.dedup_window.as_millis() as u64;
        self.now.at = Moment::from_ms(self.now.at.ms() + ms);
        self.now.wall_ms += ms;
        self.real_ms += ms;
    }

    pub(crate) fn tick(&mut self, shard: usize) {
        if self.has_ended[shard] {
            return;
        }
        note!(self, "tick on {shard}");
        let may_end = self.random.percent(90);
        self.handle(shard, Input::Tick { may_end });
        self.ticked[shard] = self.now.at;
    }

    /// Checks the sums that brokers keep.
    pub(crate) fn audit(&self) {
        // Messages whose acks are not recorded may come back with a crash, beside those that
        // came since, which may have been acked, too; and outcomes for a device that ended and
        // is back come without room reserved for them. So does that of a retry which arrives when
        // its id is forgotten, over time or because its sender sent many more: it is a message of its
        // own.
        let may_forget = self.has_late || self.config.has_floods;
        let is_exact = self.run == 1 && !self.config.has_ends && !may_forget;
        let runs = if is_exact { 1 } else { 4 };
        let messages_max = runs * self.config.limits.mailbox_messages_max;
        let outcomes_max = runs * self.config.limits.outcomes_max;
        let mailboxes: u64 = self.brokers.iter().map(|broker| broker.stats().mailboxes).sum();
        assert_eq!(mailboxes, self.directory.devices() as u64, "devices with a mailbox");
        // As much more may be promised for devices that end; a world has fewer than 20.
        let devices = 20 * DEVICE_BYTES as u64;
        let promised_max = self.promised_max.saturating_add(devices);
        assert!(self.promised_for_outcomes() <= promised_max, "outcomes are promised");
        for broker in &self.brokers {
            if let Err(fault) = broker.audit(messages_max, outcomes_max) {
                panic!("{fault}");
            }
        }
    }
}

/// Kinds of memory with which a client connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    Good,
    None,
    OfAnother,
}
