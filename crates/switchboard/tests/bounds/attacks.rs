//! The attackers: each one drives one bound to its limit repeatedly, and counts the errors it is
//! told.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Attack;
use crate::client::{Client, End, socket};
use crate::server::{Server, token};

/// One kind of attack.
pub(crate) struct Attacker {
    /// Creates the devices that it needs, while there is space for them.
    pub(crate) prepare: fn(&Server) -> Actors,
    /// Runs one round.
    pub(crate) run: fn(&Attack<'_>, &Actors),
    /// Errors that it must have been told by the end.
    pub(crate) is_told: &'static [&'static str],
}

/// Devices of an attacker, all of them named, with their tokens.
#[derive(Default)]
pub(crate) struct Actors(Vec<(String, String)>);

pub(crate) const ATTACKS: &[Attacker] = &[
    Attacker { prepare: nobody, run: crowd, is_told: &["connection: 503"] },
    Attacker { prepare: nobody, run: new_devices, is_told: &["new device: 1013"] },
    Attacker { prepare: two, run: fill_a_mailbox, is_told: &["send: mailbox_full"] },
    Attacker { prepare: two, run: ask_for_outcomes, is_told: &["send: outcomes_full"] },
    Attacker { prepare: many, run: fill_the_disk, is_told: &["send: store_full"] },
    Attacker { prepare: several, run: refuse_at_length, is_told: &["send: outcomes_full"] },
    Attacker { prepare: two, run: come_and_go, is_told: &[] },
    Attacker { prepare: two, run: use_up_ids, is_told: &[] },
    Attacker { prepare: two, run: send_too_large, is_told: &["send: too_large", "message: 1009"] },
    Attacker { prepare: nobody, run: read_nothing, is_told: &["slow reader: 4508"] },
    Attacker { prepare: nobody, run: never_finish, is_told: &["unfinished message: 1008"] },
    Attacker { prepare: nobody, run: ping_without_end, is_told: &["pings: 1008"] },
    Attacker { prepare: two, run: say_nonsense, is_told: &["nonsense: 4400"] },
    Attacker { prepare: two, run: watch_too_many, is_told: &["watch: bad_request"] },
    Attacker { prepare: no_mailbox, run: flap_before_watchers, is_told: &["flapping: 4409"] },
    Attacker {
        prepare: nobody,
        run: ask_slowly,
        is_told: &["request head: 408", "request head: 431"],
    },
];

/// Pause between two rounds: the load should reach the bounds, not take up the whole machine.
const PAUSE: Duration = Duration::from_millis(10);

fn nobody(_: &Server) -> Actors {
    Actors::default()
}

fn two(server: &Server) -> Actors {
    some(server, 2)
}

fn several(server: &Server) -> Actors {
    some(server, 4)
}

fn many(server: &Server) -> Actors {
    some(server, 30)
}

/// Returns a device that has never connected.
fn no_mailbox(server: &Server) -> Actors {
    let name = "flapper";
    Actors(vec![(name.to_owned(), token(server, name, None))])
}

/// Creates devices that have connected once, so they are not new when there is no space for new
/// ones.
fn some(server: &Server, count: usize) -> Actors {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let first = NEXT.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
    let names = (first..first + count).map(|number| format!("actor-{number}"));
    let actors = names.map(|name| {
        let token = token(server, &name, None);
        Client::v1(server, address(2), json!({"token": token})).expect("there is room");
        (name, token)
    });
    Actors(actors.collect())
}

/// Returns an address of the attackers, each of which has its own bound per client address.
fn address(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 9, host))
}

impl Actors {
    fn name(&self, index: usize) -> &str {
        &self.0[index].0
    }

    fn connect(&self, attack: &Attack<'_>, index: usize, host: u8) -> Option<Client> {
        let hello = json!({"token": self.0[index].1});
        match Client::v1(attack.server, address(host), hello) {
            Ok((client, _)) => Some(client),
            Err(End(why)) => {
                attack.is_told(format!("known device: {why}"));
                thread::sleep(PAUSE);
                None
            }
        }
    }
}

/// Sends a frame and counts the answer; pushes that arrive first are skipped.
fn send(attack: &Attack<'_>, client: &mut Client, frame: &Value) -> Result<(), End> {
    client.say(frame)?;
    loop {
        let answer = client.hear()?;
        match answer["type"].as_str() {
            Some("accepted") => return Ok(()),
            Some("rejected") => {
                attack.is_told(format!("send: {}", answer["code"].as_str().expect("a code")));
                return Ok(());
            }
            _ => {}
        }
    }
}

fn note(attack: &Attack<'_>, what: &str, done: Result<(), End>) {
    if let Err(End(why)) = done {
        attack.is_told(format!("{what}: {why}"));
    }
    thread::sleep(PAUSE);
}

/// Returns a message id that has not been used.
fn fresh_id() -> String {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string()
}

/// Opens as many connections as possible, from several addresses.
fn crowd(attack: &Attack<'_>, _: &Actors) {
    let mut inside = Vec::new();
    for number in 0..200 {
        match Client::text(attack.server, address(20 + number % 8)) {
            Ok(client) => inside.push(client),
            Err(End(why)) => {
                attack.is_told(format!("connection: {why}"));
                break;
            }
        }
    }
    thread::sleep(20 * PAUSE);
}

/// Creates new devices, each with a waiting message, so that none of them can be evicted.
fn new_devices(attack: &Attack<'_>, _: &Actors) {
    let one = || {
        let (mut client, welcome) = Client::v1(attack.server, address(3), json!({}))?;
        let Some(device) = welcome["device"].as_str() else { return Ok(()) };
        client.say(
            &json!({"type": "send", "id": "1", "to": device, "body": 1, "durability": "memory"}),
        )?;
        client.hear().map(drop)
    };
    note(attack, "new device", one());
}

/// Sends more messages than a mailbox holds to an absent device.
fn fill_a_mailbox(attack: &Attack<'_>, actors: &Actors) {
    let Some(mut client) = actors.connect(attack, 0, 4) else { return };
    for _ in 0..50 {
        let frame = json!({"type": "send", "id": fresh_id(), "to": actors.name(1), "body": "x"});
        if let Err(end) = send(attack, &mut client, &frame) {
            return note(attack, "mailbox", Err(end));
        }
    }
    thread::sleep(PAUSE);
}

/// Asks for more outcomes than may be pending: the receiver never connects.
fn ask_for_outcomes(attack: &Attack<'_>, actors: &Actors) {
    let Some(mut client) = actors.connect(attack, 0, 4) else { return };
    for _ in 0..1_200 {
        let frame = json!({
            "type": "send", "id": fresh_id(), "to": actors.name(1), "body": 1, "receipt": true,
            "durability": "memory", "ttl_ms": 3_600_000
        });
        if let Err(end) = send(attack, &mut client, &frame) {
            return note(attack, "outcomes", Err(end));
        }
        // Its mailbox is soon full; whoever empties it refuses, and each refusal is an outcome.
        if let Some(mut receiver) = actors.connect(attack, 1, 4) {
            while let Ok(frame) = receiver.hear() {
                if frame["type"] != "message" {
                    break;
                }
                if receiver.say(&json!({"type": "refuse", "seq": frame["seq"]})).is_err() {
                    break;
                }
                if receiver.say(&json!({"type": "ping"})).is_err() {
                    break;
                }
            }
        }
        if !attack.goes_on() {
            return;
        }
    }
}

/// Fills the disk with messages for many devices; then some of them connect and take theirs.
fn fill_the_disk(attack: &Attack<'_>, actors: &Actors) {
    let body = "x".repeat(50_000);
    if let Some(mut client) = actors.connect(attack, 0, 5) {
        for to in 1..actors.0.len() {
            let frame =
                json!({"type": "send", "id": fresh_id(), "to": actors.name(to), "body": body});
            if let Err(end) = send(attack, &mut client, &frame) {
                return note(attack, "disk", Err(end));
            }
        }
    }
    let ids: usize = fresh_id().parse().expect("a number");
    if !ids.is_multiple_of(4) {
        return;
    }
    for index in 1..actors.0.len() {
        let Some(mut receiver) = actors.connect(attack, index, 5) else { return };
        note(attack, "receiver", take_all(&mut receiver));
    }
}

/// Acks what is pushed; a `pong` means that nothing more comes at once.
fn take_all(receiver: &mut Client) -> Result<(), End> {
    receiver.say(&json!({"type": "ping"}))?;
    loop {
        let frame = receiver.hear()?;
        if frame["type"] == "pong" {
            return Ok(());
        }
        receiver.say(&json!({"type": "ack", "seq": frame["seq"]}))?;
    }
}

/// Sends small messages that ask for outcomes, each of which is refused with the longest
/// possible reason. Nobody acks the outcomes, so the waiting data is larger than what was sent.
fn refuse_at_length(attack: &Attack<'_>, actors: &Actors) {
    for sender in 1..actors.0.len() {
        let Some(mut client) = actors.connect(attack, sender, 16) else { return };
        for _ in 0..15 {
            let frame = json!({
                "type": "send", "id": fresh_id(), "to": actors.name(0), "body": 1, "receipt": true
            });
            if let Err(end) = send(attack, &mut client, &frame) {
                return note(attack, "long refusals", Err(end));
            }
        }
        let Some(mut receiver) = actors.connect(attack, 0, 16) else { return };
        note(attack, "long refusals", refuse_all(&mut receiver));
    }
}

fn refuse_all(receiver: &mut Client) -> Result<(), End> {
    let reason = "r".repeat(256);
    receiver.say(&json!({"type": "ping"}))?;
    loop {
        let frame = receiver.hear()?;
        if frame["type"] == "pong" {
            return Ok(());
        }
        receiver.say(&json!({"type": "refuse", "seq": frame["seq"], "reason": reason}))?;
    }
}

/// Connects known devices that leave at once, even while the store is full.
fn come_and_go(attack: &Attack<'_>, actors: &Actors) {
    for index in 0..50 {
        actors.connect(attack, index % 2, 17);
    }
}

/// Sends many small messages with unique ids.
fn use_up_ids(attack: &Attack<'_>, actors: &Actors) {
    let Some(mut client) = actors.connect(attack, 0, 6) else { return };
    let Some(mut receiver) = actors.connect(attack, 1, 6) else { return };
    for _ in 0..200 {
        let id = fresh_id();
        let frame = json!({"type": "send", "id": id, "to": actors.name(1), "body": 1, "durability": "memory"});
        let done = send(attack, &mut client, &frame)
            .and_then(|()| receiver.hear())
            .and_then(|came| receiver.say(&json!({"type": "ack", "seq": came["seq"]})));
        if let Err(end) = done {
            return note(attack, "ids", Err(end));
        }
    }
    thread::sleep(PAUSE);
}

/// Sends a frame above the limit, and one that fits but would exceed it when pushed.
fn send_too_large(attack: &Attack<'_>, actors: &Actors) {
    let Some(mut client) = actors.connect(attack, 0, 7) else { return };
    let whole = 64 << 10;
    let head =
        json!({"type": "send", "id": fresh_id(), "to": actors.name(1), "body": ""}).to_string();
    let body = "x".repeat(whole - head.len());
    let frame = json!({"type": "send", "id": fresh_id(), "to": actors.name(1), "body": body});
    note(attack, "large", send(attack, &mut client, &frame));
    let said = client.say_text(&"x".repeat(whole + 1));
    note(attack, "message", said.and_then(|()| Err(client.end())));
}

/// Sends to a device that does not read.
fn read_nothing(attack: &Attack<'_>, _: &Actors) {
    let flood = || {
        let (mut slow, id) = Client::text(attack.server, address(8))?;
        let (mut sender, _) = Client::text(attack.server, address(8))?;
        let text = "x".repeat(60_000);
        for number in 0..400 {
            sender.say_text(&format!("send,{id},{number}{text}"))?;
        }
        Err(slow.end())
    };
    note(attack, "slow reader", flood());
}

/// Sends halves of messages on many connections.
fn never_finish(attack: &Attack<'_>, _: &Actors) {
    let mut open = Vec::new();
    for _ in 0..20 {
        let Ok((mut client, _)) = Client::text(attack.server, address(9)) else { break };
        // A final text frame of 60,000 bytes, masked with zeros, of which only 59,000 are sent.
        let mut half = vec![0x81, 0x80 | 126];
        half.extend(60_000_u16.to_be_bytes());
        half.extend([0; 4 + 59_000]);
        if client.raw().write_all(&half).is_ok() {
            open.push(client);
        }
    }
    for mut client in open {
        note(attack, "unfinished message", Err(client.end()));
    }
}

fn ping_without_end(attack: &Attack<'_>, _: &Actors) {
    let flood = || {
        let (mut client, _) = Client::text(attack.server, address(10))?;
        for _ in 0..200 {
            client.ping()?;
        }
        Err(client.end())
    };
    note(attack, "pings", flood());
}

fn say_nonsense(attack: &Attack<'_>, actors: &Actors) {
    let Some(mut client) = actors.connect(attack, 0, 11) else { return };
    for _ in 0..20 {
        if client.say_text("{\"type\":\"send\"}").is_err() {
            break;
        }
    }
    note(attack, "nonsense", Err(client.end()));
}

fn watch_too_many(attack: &Attack<'_>, actors: &Actors) {
    let Some(mut client) = actors.connect(attack, 0, 12) else { return };
    for part in 0..12_u64 {
        let devices: Vec<String> =
            (0..100).map(|number| (200_000_000 + part * 100 + number).to_string()).collect();
        let told =
            client.say(&json!({"type": "watch", "id": "w", "devices": devices})).and_then(|()| {
                loop {
                    let answer = client.hear()?;
                    match answer["type"].as_str() {
                        Some("watching") => return Ok(()),
                        Some("rejected") => {
                            return Err(End(answer["code"].as_str().expect("a code").to_owned()));
                        }
                        _ => {}
                    }
                }
            });
        if told.is_err() {
            return note(attack, "watch", told);
        }
    }
    thread::sleep(PAUSE);
}

/// Takes a device without a mailbox over again and again, in front of watchers that read
/// nothing.
fn flap_before_watchers(attack: &Attack<'_>, actors: &Actors) {
    let watch = json!({"type": "watch", "id": "w", "devices": [actors.name(0)]});
    let mut watchers = Vec::new();
    for _ in 0..8 {
        let watcher = Client::v1(attack.server, address(14), json!({"ephemeral": true}));
        let Ok((mut watcher, _)) = watcher else { break };
        if watcher.say(&watch).is_ok() {
            watchers.push(watcher);
        }
    }
    let hello = json!({"token": actors.0[0].1, "ephemeral": true});
    let mut holder = None;
    for _ in 0..6 {
        let newer = Client::v1(attack.server, address(15), hello.clone());
        let Ok((newer, _)) = newer else { break };
        if let Some(mut older) = holder.replace(newer) {
            note(attack, "flapping", Err(Client::end(&mut older)));
        }
    }
    thread::sleep(PAUSE);
}

/// Sends requests that never end, and one that is too long.
fn ask_slowly(attack: &Attack<'_>, _: &Actors) {
    for head in ["GET / HTTP/1.1\r\nHost: a\r\n".to_owned(), "x".repeat(20_000)] {
        let Ok(mut socket) = socket(attack.server, address(13)) else { continue };
        let mut answer = String::new();
        let written = socket.write_all(head.as_bytes());
        // A reset may follow the answer to a request that was not read to its end.
        let read = socket.read_to_string(&mut answer);
        let status = answer.split(' ').nth(1).unwrap_or(match (written, read) {
            (Ok(()), Ok(_)) => "nothing",
            _ => "reset",
        });
        attack.is_told(format!("request head: {status}"));
    }
}
