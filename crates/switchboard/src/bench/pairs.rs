//! Pairs of devices, one that sends and one that receives, on one epoll loop.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::ensure;
use clap::ValueEnum;
use mio::{Events, Poll, Token};

use super::connection::Connection;
use super::limits;
use super::mailbox::{Asked, Receiver};
use super::message::{STAMP_BYTES, Script};
use super::pair::{Arrival, Judge, Pair, Role, V1};
use super::tally::Tally;
use super::target::Target;
use super::wire::Dialer;

const EVENTS_PER_TURN: usize = 1024;
const INPUT_BYTES: usize = 256 * 1024;
const PAIRS_MAX: u64 = 1 << 16;
const SIZE_MAX: u64 = 1 << 20;
/// The hello of a new v1 device.
pub(super) const HELLO: &str = r#"{"type":"hello"}"#;

/// The pairs of devices, and the length of their messages.
#[derive(clap::Args, Clone, Debug)]
#[group(id = "talk")]
pub struct PairsOptions {
    /// Pairs of devices, one sending and one receiving
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=PAIRS_MAX))]
    pub pairs: u64,
    /// Bytes of a message, without `send,<id>,`
    #[arg(
        long,
        default_value_t = 64,
        value_parser = clap::value_parser!(u64).range(STAMP_BYTES as u64..=SIZE_MAX)
    )]
    pub size: u64,
    /// Put the devices of a pair on one shard of the server or on two
    #[arg(long, value_enum, default_value_t = Pairing::Same)]
    pub pairing: Pairing,
    /// Shards of the server, which assigns connections in turn; 1 pairs devices as they connect
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub server_shards: u64,
}

/// Placement of the two devices of a pair.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// On the same shard.
    Same,
    /// On two shards.
    Cross,
}

impl PairsOptions {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.pairs.is_multiple_of(self.server_shards),
            "--pairs must be a multiple of --server-shards"
        );
        ensure!(
            self.pairing == Pairing::Same || self.server_shards > 1,
            "--pairing cross needs --server-shards 2 or more"
        );
        Ok(())
    }
}

/// All pairs. Only [`Pairs::turn`] blocks.
pub(super) struct Pairs {
    poll: Poll,
    events: Events,
    input: Vec<u8>,
    pairs: Vec<Pair>,
    /// `None` for the text protocol.
    v1: Option<V1>,
    /// Text after the stamp in every received message.
    suffix: Vec<u8>,
    /// Pairs whose sender has something to write.
    due: Vec<usize>,
    tally: Tally,
}

impl Pairs {
    /// Connects the devices one after the other, so that the server sees them in that order; by
    /// the text protocol if `v1` is `None`.
    pub(super) fn connect(
        target: Target,
        options: &PairsOptions,
        v1: Option<V1>,
    ) -> anyhow::Result<Self> {
        options.check()?;
        let filler = ".".repeat(options.size as usize - STAMP_BYTES);
        let hello = v1.map(|_| HELLO);
        let devices = connect_devices(target, hello, 2 * options.pairs as usize)?;
        let poll = Poll::new()?;
        let mut pairs = form_pairs(devices, options, v1, &filler);
        for (number, pair) in pairs.iter_mut().enumerate() {
            pair.register(poll.registry(), |role| token(number, role))?;
        }
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_PER_TURN),
            input: vec![0; INPUT_BYTES],
            pairs,
            v1,
            suffix: (if v1.is_some() { filler + "\"" } else { filler }).into_bytes(),
            due: Vec::new(),
            tally: Tally::default(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns the tally of a finished run: messages that have not arrived by now are lost.
    pub(super) fn into_tally(mut self) -> Tally {
        self.tally.lost += self.in_flight();
        self.tally
    }

    /// Returns the number of messages sent and not received.
    pub(super) fn in_flight(&self) -> u64 {
        self.pairs.iter().map(Pair::in_flight).sum()
    }

    /// Queues the next message of `pair`, to be written with the others of this turn.
    pub(super) fn send(&mut self, pair: usize) {
        if self.pairs[pair].append_next(self.v1.is_some()) {
            self.due.push(pair);
        }
        self.tally.sent += 1;
    }

    /// Runs one turn of the loop: writes queued messages, waits at most `timeout` for something
    /// to arrive, and calls `on_arrival` for it; if that returns true the pair sends its next
    /// message.
    pub(super) fn turn(
        &mut self,
        timeout: Duration,
        mut on_arrival: impl FnMut(usize, Arrival) -> bool,
    ) -> anyhow::Result<()> {
        let Self { poll, events, pairs, due, tally, .. } = self;
        for pair in due.drain(..) {
            pairs[pair].write()?;
        }
        match poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &*events {
            let (number, role) = whose(event.token());
            let pair = &mut pairs[number];
            let mut judge = Judge { v1: self.v1, suffix: &self.suffix, tally };
            let mut released = 0;
            pair.serve(role, event, &mut self.input, &mut judge, |arrival| {
                released += u64::from(on_arrival(number, arrival));
            })?;
            tally.sent += released;
            let was_empty = (0..released)
                .fold(false, |was_empty, _| pair.append_next(self.v1.is_some()) || was_empty);
            if self.v1.is_some() {
                // Written at once: a server that syncs works on them while the other senders'
                // answers are read.
                pair.write()?;
            } else if was_empty {
                due.push(number);
            }
        }
        Ok(())
    }
}

/// A device's connection and id.
type Device = (Connection, String);

fn connect_devices(
    target: Target,
    hello: Option<&str>,
    count: usize,
) -> anyhow::Result<Vec<Device>> {
    limits::check_open_files(count)?;
    let mut dialer = Dialer::new(target);
    (0..count).map(|_| Connection::open(&mut dialer, hello)).collect()
}

fn form_pairs(
    devices: Vec<Device>,
    options: &PairsOptions,
    v1: Option<V1>,
    filler: &str,
) -> Vec<Pair> {
    let mut devices: Vec<_> = devices.into_iter().map(Some).collect();
    let mut take = |device: usize| devices[device].take().expect("every device is in one pair");
    (0..options.pairs as usize)
        .map(|number| {
            let (sender, receiver) = devices_of(number, options);
            let ((sender, from), (receiver, to)) = (take(sender), take(receiver));
            let (stamp, pair) = (Script::STAMP, number as u32);
            let Some(v1) = v1 else {
                let text = format!("send,{to},{stamp}{filler}");
                return Pair::new(sender, Some(receiver), Script::new(pair, &text, from + ":"));
            };
            let durability = match v1.durability {
                Asked::Strongest => "",
                Asked::Memory => r#","durability":"memory""#,
            };
            let text = format!(
                r#"{{"type":"send","id":"{stamp}","to":"{to}","body":"{stamp}{filler}"{durability}}}"#
            );
            let receiver = (v1.receiver == Receiver::Online).then_some(receiver);
            Pair::new(sender, receiver, Script::new(pair, &text, "\"".to_owned()))
        })
        .collect()
}

/// Returns the devices of pair `number`, by the order in which they connect. The server assigns
/// connections to its shards in turn, so device `n` is on shard `n % shards`.
fn devices_of(number: usize, options: &PairsOptions) -> (usize, usize) {
    let shards = options.server_shards as usize;
    match options.pairing {
        Pairing::Cross => (2 * number, 2 * number + 1),
        Pairing::Same => {
            let first = number / shards * 2 * shards + number % shards;
            (first, first + shards)
        }
    }
}

fn token(pair: usize, role: Role) -> Token {
    Token(2 * pair + usize::from(role == Role::Receiver))
}

fn whose(Token(token): Token) -> (usize, Role) {
    (token / 2, if token.is_multiple_of(2) { Role::Sender } else { Role::Receiver })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn options(pairing: Pairing, server_shards: u64) -> PairsOptions {
        PairsOptions { pairs: 12, size: 64, pairing, server_shards }
    }

    #[test]
    fn every_device_is_in_one_pair_and_on_the_shard_that_was_asked_for() {
        for (pairing, shards) in
            [(Pairing::Same, 1), (Pairing::Same, 2), (Pairing::Same, 3), (Pairing::Cross, 2)]
        {
            let options = options(pairing, shards as u64);
            options.check().unwrap();
            let pairs: Vec<_> = (0..12).map(|number| devices_of(number, &options)).collect();
            let devices: HashSet<_> = pairs.iter().flat_map(|&(a, b)| [a, b]).collect();
            assert_eq!(devices, (0..24).collect());
            let same = pairing == Pairing::Same;
            assert!(pairs.iter().all(|(a, b)| (a % shards == b % shards) == same));
        }
    }

    #[test]
    fn pairs_that_cannot_be_placed_are_refused() {
        assert!(options(Pairing::Cross, 1).check().is_err());
        assert!(options(Pairing::Same, 5).check().is_err());
    }
}
