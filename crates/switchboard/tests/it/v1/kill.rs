//! SIGKILL at random moments under load, with a ledger of the promises made to clients and of
//! what they received.
//!
//! `SWITCHBOARD_KILLS=200` makes it long. `SWITCHBOARD_KILLS_SEED` repeats the actions of the
//! clients; the moment at which a kill takes effect still depends on the machine.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tungstenite::{Error, Message};

use super::client::{Away, V1, send, with};
use crate::server::{PATIENCE, Server};

/// Number of devices, each of which sends to all others.
const PEERS: usize = 6;
/// Maximum number of unanswered messages of one device.
const UNANSWERED_MAX: usize = 24;
/// Time that a device waits for a frame before it continues.
const TICK: Duration = Duration::from_millis(2);

/// The history of one message.
#[derive(Debug, Default)]
struct Fate {
    to: usize,
    is_disk: bool,
    wants_receipt: bool,
    is_accepted: bool,
    is_cancelled: bool,
    received: u32,
    /// The outcome, and whether the message may have been seen.
    outcomes: Vec<(String, bool)>,
}

/// The knowledge of all clients together.
#[derive(Debug, Default)]
struct Ledger {
    /// By sender and number.
    messages: BTreeMap<(usize, u64), Fate>,
    /// By sender and receiver, in the order of the answers.
    accepted: BTreeMap<(usize, usize), Vec<u64>>,
    /// By sender and receiver, in the order of arrival.
    received: BTreeMap<(usize, usize), Vec<u64>>,
    unanswered: [usize; PEERS],
    heard: [Vec<String>; PEERS],
    kills: u64,
    events: u64,
}

#[derive(Debug)]
struct State {
    address: SocketAddr,
    phase: Phase,
    ledger: Ledger,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Load,
    /// No new messages are sent.
    Settle,
    End,
}

struct World {
    names: Vec<String>,
    state: Mutex<State>,
    changed: Condvar,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    /// True once in `n` times.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One device, with everything that it remembers over its connections.
struct Peer {
    index: usize,
    away: Away,
    random: Random,
    /// Entries it has seen: sender or receiver, and id.
    seen: HashMap<u64, (String, String)>,
    seen_to: u64,
    /// Like `seen_to`, on this connection only.
    heard_to: u64,
    acked_to: u64,
    /// Sent and not answered, in order; repeated on every connection.
    unanswered: VecDeque<(u64, Value)>,
    /// Messages that it has asked to cancel on this connection.
    cancels: HashSet<u64>,
    next: u64,
}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn index(&self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).expect("a known device")
    }

    /// Records something that a client was told.
    fn note(&self, note: impl FnOnce(&mut Ledger)) {
        let mut state = self.lock();
        note(&mut state.ledger);
        state.ledger.events += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Keeps a line that a device received, for the report of a failure.
    fn heard(&self, peer: usize, line: &str) {
        let ledger = &mut self.lock().ledger;
        let line = format!("after {} kills: {line}", ledger.kills);
        ledger.heard[peer].push(line);
    }

    /// Waits until a condition holds.
    fn wait(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, PATIENCE, |state| !holds(state));
        let (state, waited) = waited.unwrap();
        if waited.timed_out() {
            panic!("{what} takes too long; {:?}", state.ledger.open_points());
        }
    }
}

impl Ledger {
    /// Returns promises that are not fulfilled yet, at most a few.
    fn open_points(&self) -> Vec<String> {
        let unanswered = self.unanswered.iter().enumerate().filter(|(_, n)| **n > 0);
        let unanswered = unanswered.map(|(peer, n)| format!("{peer} has {n} unanswered"));
        let open = self.messages.iter().filter(|(_, fate)| fate.is_open());
        let open = open.map(|(key, fate)| format!("{key:?}: {fate:?}"));
        unanswered.chain(open).take(8).collect()
    }

    fn is_quiet(&self) -> bool {
        self.unanswered.iter().all(|n| *n == 0) && !self.messages.values().any(Fate::is_open)
    }

    /// Checks the invariants that hold for every run, whatever happened in it.
    fn judge(&self) {
        for ((from, n), fate) in &self.messages {
            let story = || {
                let heard = self.heard[fate.to].join("\n");
                format!("message {n} of {from}: {fate:?}; the receiver heard\n{heard}")
            };
            fate.judge(&story);
        }
        // No mailbox is ever full here: otherwise a message whose rejection was lost in a crash
        // could be accepted after a later one.
        for (pair, received) in &self.received {
            if let Some(wrong) = received.windows(2).find(|pair| pair[0] >= pair[1]) {
                let fates = wrong.iter().map(|n| &self.messages[&(pair.0, *n)]);
                let fates: Vec<_> = fates.collect();
                let heard = self.heard[pair.1].join("\n");
                panic!("order of {pair:?}: {wrong:?} {fates:?}; the receiver heard\n{heard}");
            }
        }
        for (pair, accepted) in &self.accepted {
            let fate = |n: &u64| &self.messages[&(pair.0, *n)];
            let stored = |n: &u64| fate(n).is_disk && fate(n).received > 0;
            let accepted: Vec<_> = accepted.iter().copied().filter(stored).collect();
            let received = self.received.get(pair).into_iter().flatten();
            let received: Vec<_> = received.copied().filter(stored).collect();
            assert_eq!(accepted, received, "first accepted and received, {pair:?}");
        }
    }
}

impl Fate {
    /// Returns true if something promised has not arrived.
    fn is_open(&self) -> bool {
        let is_kept = self.is_accepted && self.is_disk;
        is_kept && if self.wants_receipt { self.outcomes.is_empty() } else { self.received == 0 }
    }

    fn judge(&self, story: &dyn Fn() -> String) {
        assert!(self.received <= 1, "twice: {}", story());
        if !(self.is_accepted && self.is_disk) {
            return;
        }
        if !self.wants_receipt {
            return assert_eq!(self.received, 1, "lost: {}", story());
        }
        let [(outcome, maybe_seen)] = self.outcomes.as_slice() else {
            panic!("not one outcome: {}", story())
        };
        let seen = match outcome.as_str() {
            "delivered" | "refused" => Some(1),
            "cancelled" => Some(0),
            "expired" => (!maybe_seen).then_some(0),
            _ => panic!("{}", story()),
        };
        assert!(seen.is_none_or(|seen| seen == self.received), "{}", story());
        assert!(!self.is_cancelled || outcome == "cancelled", "{}", story());
    }
}

impl Peer {
    /// Reconnects until the end of the test.
    fn run(mut self, world: &World) -> (Away, u64) {
        loop {
            let (address, phase) = {
                let state = world.lock();
                (state.address, state.phase)
            };
            if phase == Phase::End {
                return (self.away, self.seen_to);
            }
            if self.session(world, address).is_err() {
                // Usually the server is down; a change announces its successor.
                let state = world.lock();
                let _state = world.changed.wait_timeout(state, TICK).unwrap();
            }
        }
    }

    /// Runs one connection to its end.
    fn session(&mut self, world: &World, address: SocketAddr) -> Result<(), Error> {
        let mut device = self.connect(world, address)?;
        (self.heard_to, self.acked_to) = (0, 0);
        self.cancels.clear();
        for (_, frame) in &self.unanswered {
            device.socket().write(Message::text(frame.to_string()))?;
        }
        loop {
            let phase = world.lock().phase;
            if phase == Phase::End || (phase == Phase::Load && self.random.one_in(2_000)) {
                return Ok(());
            }
            if phase == Phase::Load {
                self.send_some(world, &mut device)?;
            }
            device.socket().flush()?;
            match device.socket().read() {
                Ok(Message::Text(text)) => {
                    let frame = serde_json::from_str(text.as_str()).unwrap();
                    self.hear(world, &mut device, &frame)?;
                }
                Ok(Message::Close(frame)) => panic!("closed: {frame:?}"),
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.ack(&mut device)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn connect(&mut self, world: &World, address: SocketAddr) -> Result<V1, Error> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut device = V1::over(stream, format!("ws://{address}/"))?;
        let Away { token, mailbox, .. } = &self.away;
        let last_seq = if self.random.one_in(2) { self.seen_to } else { self.acked_to };
        let hello =
            json!({"type": "hello", "token": token, "mailbox": mailbox, "last_seq": last_seq});
        device.socket().send(Message::text(hello.to_string()))?;
        let welcome = loop {
            match device.socket().read()? {
                Message::Text(text) => break serde_json::from_str::<Value>(text.as_str()).unwrap(),
                Message::Close(frame) => panic!("closed: {frame:?}"),
                _ => {}
            }
        };
        world.heard(self.index, &format!("hello {last_seq}, {}", welcome["pending"]));
        assert_eq!(welcome["mailbox"], *mailbox, "{welcome}");
        assert_eq!(welcome["resumed"], true, "{welcome}");
        assert_eq!(welcome["device"], self.away.device);
        device.socket().get_mut().set_read_timeout(Some(TICK))?;
        Ok(device)
    }

    fn send_some(&mut self, world: &World, device: &mut V1) -> Result<(), Error> {
        while self.unanswered.len() < UNANSWERED_MAX && !self.random.one_in(4) {
            let (n, to) = (self.next, self.random.below(PEERS as u64) as usize);
            self.next += 1;
            let (is_disk, wants_receipt) = (!self.random.one_in(8), self.random.one_in(2));
            let more = match (is_disk, wants_receipt) {
                (false, _) => json!({"durability": "memory"}),
                (true, false) => json!({}),
                (true, true) if self.random.one_in(8) => json!({"receipt": true, "ttl_ms": 20}),
                (true, true) => json!({"receipt": true}),
            };
            let frame = with(send(&world.names[to], &n.to_string()), &more);
            device.socket().write(Message::text(frame.to_string()))?;
            let wants_receipt = is_disk && wants_receipt;
            let fate = Fate { to, is_disk, wants_receipt, ..Fate::default() };
            world.note(|ledger| {
                ledger.messages.insert((self.index, n), fate);
                ledger.unanswered[self.index] += usize::from(is_disk);
            });
            // A message in memory may be accepted a second time after a crash, so it is not
            // retried.
            if is_disk {
                self.unanswered.push_back((n, frame));
            }
        }
        Ok(())
    }

    fn hear(&mut self, world: &World, device: &mut V1, frame: &Value) -> Result<(), Error> {
        if frame["seq"].is_u64() {
            let Value::String(kind) = &frame["type"] else { panic!("{frame}") };
            let peer = if kind == "message" { &frame["from"] } else { &frame["to"] };
            world.heard(self.index, &format!("{} {kind} {} {peer}", frame["seq"], frame["id"]));
        }
        match frame["type"].as_str().unwrap() {
            "message" => self.message(world, device, frame),
            "outcome" => {
                if self.is_new(frame, "to") {
                    let what = frame["outcome"].as_str().unwrap().to_owned();
                    let maybe_seen = frame["maybe_seen"] == true;
                    self.note(world, frame, |fate| fate.outcomes.push((what, maybe_seen)));
                }
                Ok(())
            }
            "accepted" => self.accepted(world, device, frame),
            "rejected" if frame["code"] == "too_late" => {
                self.cancel_answered(world, frame);
                Ok(())
            }
            "cancelled" => {
                self.cancel_answered(world, frame);
                self.note(world, frame, |fate| fate.is_cancelled = true);
                Ok(())
            }
            _ => panic!("{frame}"),
        }
    }

    /// Records something about a message of this device.
    fn cancel_answered(&mut self, world: &World, frame: &Value) {
        let n = number(frame);
        assert!(self.cancels.remove(&n), "{frame}");
        let to = world.lock().ledger.messages[&(self.index, n)].to;
        assert_eq!(frame["to"], world.names[to], "{frame}");
    }

    fn note(&self, world: &World, frame: &Value, note: impl FnOnce(&mut Fate)) {
        let n = number(frame);
        world.note(|ledger| note(ledger.messages.get_mut(&(self.index, n)).expect("it was sent")));
    }

    /// Returns true if a `seq` was not seen before; if it was, it must have stood for the same
    /// entry.
    fn is_new(&mut self, frame: &Value, peer: &str) -> bool {
        let seq = frame["seq"].as_u64().unwrap();
        let word = |name: &str| frame[name].as_str().unwrap().to_owned();
        let what = (format!("{peer} {}", word(peer)), word("id"));
        self.seen_to = self.seen_to.max(seq);
        self.heard_to = self.heard_to.max(seq);
        match self.seen.get(&seq) {
            Some(before) => {
                assert_eq!(before, &what, "seq {seq} stands for two things");
                false
            }
            None => self.seen.insert(seq, what).is_none(),
        }
    }

    fn message(&mut self, world: &World, device: &mut V1, frame: &Value) -> Result<(), Error> {
        if self.is_new(frame, "from") {
            let (from, n) = (world.index(frame["from"].as_str().unwrap()), number(frame));
            let to = self.index;
            world.note(|ledger| {
                let fate = ledger.messages.get_mut(&(from, n)).expect("it was sent");
                assert_eq!(fate.to, to);
                fate.received += 1;
                ledger.received.entry((from, to)).or_default().push(n);
            });
        }
        if self.random.one_in(16) {
            let refuse = json!({"type": "refuse", "seq": frame["seq"], "reason": "why not"});
            device.socket().write(Message::text(refuse.to_string()))?;
        }
        if self.random.one_in(4) { self.ack(device) } else { Ok(()) }
    }

    /// Acks everything that was pushed on this connection.
    fn ack(&mut self, device: &mut V1) -> Result<(), Error> {
        if self.heard_to > self.acked_to {
            self.acked_to = self.heard_to;
            let ack = json!({"type": "ack", "seq": self.acked_to});
            device.socket().write(Message::text(ack.to_string()))?;
            device.socket().flush()?;
        }
        Ok(())
    }

    fn accepted(&mut self, world: &World, device: &mut V1, frame: &Value) -> Result<(), Error> {
        let (n, from) = (number(frame), self.index);
        let is_asked = self.unanswered.iter().any(|(unanswered, _)| *unanswered == n);
        self.answered(world, n);
        world.note(|ledger| {
            let fate = ledger.messages.get_mut(&(from, n)).expect("it was sent");
            let durability = if fate.is_disk { "disk" } else { "memory" };
            assert_eq!(frame["durability"], durability, "{frame}");
            assert_eq!(is_asked, fate.is_disk, "an answer too many: {frame}");
            fate.is_accepted = true;
            let to = fate.to;
            ledger.accepted.entry((from, to)).or_default().push(n);
        });
        // Without a receipt nobody would know whether a crash undid the cancellation.
        let (may_cancel, to) = {
            let fate = &world.lock().ledger.messages[&(from, n)];
            (fate.wants_receipt, fate.to)
        };
        if may_cancel && self.random.one_in(8) {
            let cancel = json!({"type": "cancel", "id": frame["id"], "to": world.names[to]});
            device.socket().write(Message::text(cancel.to_string()))?;
            self.cancels.insert(n);
        }
        Ok(())
    }

    fn answered(&mut self, world: &World, n: u64) {
        self.unanswered.retain(|(unanswered, _)| *unanswered != n);
        world.note(|ledger| ledger.unanswered[self.index] = self.unanswered.len());
    }
}

fn number(frame: &Value) -> u64 {
    frame["id"].as_str().unwrap().parse().unwrap()
}

/// Returns a number from the environment.
fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn nothing_accepted_is_lost_or_doubled_by_kills() {
    let kills = number_of("SWITCHBOARD_KILLS").unwrap_or(20);
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    let seed = number_of("SWITCHBOARD_KILLS_SEED").unwrap_or_else(clock);
    println!("SWITCHBOARD_KILLS={kills} SWITCHBOARD_KILLS_SEED={seed}");
    let mut random = Random(seed);
    let mut server =
        Server::with(&["in_flight_max=16", "mailbox_max_messages=1000000", "shards=3"]);
    let peers = peers(&server, &mut random);
    let world = World {
        names: peers.iter().map(|peer| peer.away.device.clone()).collect(),
        state: Mutex::new(State {
            address: server.address,
            phase: Phase::Load,
            ledger: Ledger::default(),
        }),
        changed: Condvar::new(),
    };
    let world = &world;
    let left: Vec<(Away, u64)> = std::thread::scope(|scope| {
        let peers = peers.into_iter().map(|peer| scope.spawn(move || peer.run(world)));
        let peers: Vec<_> = peers.collect();
        for _ in 0..kills {
            let events = world.lock().ledger.events + random.below(400);
            world.wait("work", |state| state.ledger.events >= events);
            server.kill();
            world.lock().ledger.kills += 1;
            // With another number of shards, devices have other owners.
            server.restart_with(&[&format!("shards={}", 1 + random.below(3))]);
            world.lock().address = server.address;
            world.changed.notify_all();
        }
        world.lock().phase = Phase::Settle;
        world.wait("settling", |state| state.ledger.is_quiet());
        world.lock().phase = Phase::End;
        peers.into_iter().map(|peer| peer.join().unwrap()).collect()
    });
    for (away, seen_to) in &left {
        let mut device = away.back(&server, *seen_to);
        assert_eq!(device.welcome["pending"], 0, "{}", device.welcome);
        device.hears_nothing();
    }
    let ledger = &world.lock().ledger;
    ledger.judge();
    println!("{} messages, {} events", ledger.messages.len(), ledger.events);
}

/// Creates devices, some with names, some without.
fn peers(server: &Server, random: &mut Random) -> Vec<Peer> {
    let away = |index: usize| match index % 2 {
        0 => V1::named(server, &format!("peer-{index}")).leave(),
        _ => V1::anonymous(server).leave(),
    };
    let peer = |index| Peer {
        index,
        away: away(index),
        random: Random(random.below(u64::MAX)),
        seen: HashMap::new(),
        seen_to: 0,
        heard_to: 0,
        acked_to: 0,
        unanswered: VecDeque::new(),
        cancels: HashSet::new(),
        next: 0,
    };
    (0..PEERS).map(peer).collect()
}
