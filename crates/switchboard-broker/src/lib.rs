//! What a Switchboard decides: a pure machine, input in, effects out.
//!
//! A [`Broker`] serves the devices of one shard. It is told what happened ([`Input`]) and when,
//! and says what is to be done ([`Effect`]); sockets, clocks and chance are its caller's. The
//! brokers of one process share a [`Directory`], which says on which shard a device is.

mod broker;
mod clock;
mod device_slots;
mod directory;
mod duplicates;
mod mailboxes;
mod names;
mod shrink;

pub use broker::{Broker, Conn, Effect, Input, Moment, Refusal, ShardId};
pub use clock::{Jump, LastRun, StampClock};
pub use directory::{DEVICE_BYTES, Directory, Presence, RECEIPT_BYTES};
pub use duplicates::{Digest, DigestKey};
pub use mailboxes::{
    Cancel, Content, Deliver, DeviceRecord, EndedRecord, Envelope, Event, Hello, Limits,
    MessageKey, MessageOutcome, MessageRecord, Now, OutcomeRecord, Position, Record, Replay, Reply,
    ReplyTo, SendFilter, SentIdRecord, Stats, TextReplyTo, Want, owner,
};
pub use names::{HashKey, Names};
