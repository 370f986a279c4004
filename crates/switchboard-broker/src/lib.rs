//! Every decision of a Switchboard, as a pure machine: input in, effects out.
//!
//! A [`Broker`] serves the devices of one shard. It is told what happened ([`Input`]) and when,
//! and returns what is to be done ([`Effect`]). Sockets, clocks and randomness belong to its
//! caller. The brokers of one process share a [`Directory`], which knows the shard of each
//! device.

mod broker;
mod clock;
mod device_slots;
mod directory;
mod duplicates;
mod mailboxes;
mod names;
mod partition;
mod shrink;

pub use broker::{Broker, Conn, Effect, Input, Moment, Refusal, ShardId};
pub use clock::{Jump, LastRun, StampClock};
pub use directory::{DEVICE_BYTES, Directory, Presence, RECEIPT_BYTES};
pub use duplicates::{Digest, DigestKey};
pub use mailboxes::{
    Cancel, Content, Deliver, DeviceRecord, DeviceReplyTo, EndedOf, EndedRecord, Envelope, Event,
    ExchangeRecord, Hello, IdRecord, Limits, MessageKey, MessageOutcome, MessageRecord, NoRoom,
    Now, Numbered, OutcomeRecord, OutcomesFull, Position, Record, Replay, Reply, ReplyTo,
    SendFilter, Stats, StoreGate, TextReplyTo, Want, owner,
};
pub use names::{HashKey, Names};
pub use partition::{PARTITIONS, PartitionId};
