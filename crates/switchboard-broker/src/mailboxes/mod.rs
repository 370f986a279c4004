//! Devices with mailboxes: the part of a broker that keeps what it accepted.
//!
//! Only the shard that owns a device decides about it: who holds its session, which of its sends are
//! retries, what waits in its mailbox. What must survive goes into the store as a [`Record`]; only
//! when the store says that it is synced is it answered, and shown to anybody.
//!
//! [`session`] is who is there, [`send`] a message on its way from the sender's shard to the
//! receiver's, [`push`] from the mailbox to the device, [`outcome`] how it ends, [`store`] what the
//! store says, [`quarantine`] what it cannot give back, [`recover`] what it does.

mod audit;
mod content;
mod crowd;
mod envelope;
mod expiries;
mod index;
mod mailbox;
mod outcome;
mod push;
mod quarantine;
mod record;
mod recover;
mod reserved;
mod send;
mod sent;
mod session;
mod shares;
mod store;
mod timers;
mod totals;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Outcome, PublicId, RejectCode};

pub use content::Content;
pub use envelope::{Cancel, Deliver, Envelope, Reply, ReplyTo, TextReplyTo};
pub use push::Want;
pub use record::{
    DeviceRecord, EndedRecord, MessageRecord, OutcomeRecord, Position, Record, SentIdRecord,
};
pub use recover::Replay;

use crate::broker::{Broker, Effect};
use crate::shrink::{KEPT_BY_SHARD, shrink};
use crate::{Moment, ShardId, StampClock};
use crowd::Crowd;
use mailbox::Mailbox;
use sent::Sent;
pub use session::Hello;
use session::Session;
use shares::Quota;
use store::Pending;
use timers::Timers;
use totals::OfAnonymous;

/// What devices with mailboxes may have.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Messages pushed ahead of their acks.
    pub in_flight_max: usize,
    /// Messages that a mailbox holds.
    pub mailbox_messages_max: usize,
    /// Bytes that a mailbox holds.
    pub mailbox_bytes_max: usize,
    /// What one sender may have of a mailbox, of what is free without his own, in percent.
    pub mailbox_sender_share: usize,
    /// Outcomes that a device may have asked for and not acked; of those that are pending at one
    /// receiver, [`Limits::mailbox_sender_share`] of what the others leave.
    pub outcomes_max: usize,
    /// Bytes that the messages of one shard may take that are in memory only.
    pub memory_messages_max_bytes: usize,
    /// Bytes that the store may take, for all shards.
    pub store_bytes_max: usize,
    /// How long an id counts as a retry, by the server's uptime.
    pub dedup_window: Duration,
    /// Ids remembered of one device.
    pub dedup_ids_per_device_max: usize,
    /// Ids remembered by one shard.
    pub dedup_ids_max: usize,
    /// Devices with a mailbox, on all shards.
    pub devices_max: usize,
    /// How long an anonymous device may be away; then it ends.
    pub device_ttl: Duration,
    /// The same for a named one; `None` is for ever.
    pub named_device_ttl: Option<Duration>,
    /// Bytes pushed to a connection before it must have taken them.
    pub push_bytes_max: usize,
    /// Whether devices may see each other.
    pub list_devices: bool,
    /// Told to devices: how often they are pinged.
    pub ping_interval: Duration,
    /// Told to devices: the longest frame.
    pub message_bytes_max: usize,
}

/// What the contract of v1 names, where it names a number.
impl Default for Limits {
    fn default() -> Limits {
        Limits {
            in_flight_max: 256,
            mailbox_messages_max: 1_000,
            mailbox_bytes_max: 16 << 20,
            mailbox_sender_share: 50,
            outcomes_max: 1_000,
            memory_messages_max_bytes: 1 << 30,
            store_bytes_max: 10 << 30,
            dedup_window: Duration::from_secs(600),
            dedup_ids_per_device_max: 100_000,
            dedup_ids_max: 500_000,
            devices_max: 1_000_000,
            device_ttl: Duration::from_secs(24 * 3_600),
            named_device_ttl: None,
            push_bytes_max: 1 << 20,
            list_devices: true,
            ping_interval: Duration::from_secs(25),
            message_bytes_max: 1 << 20,
        }
    }
}

impl Limits {
    /// Returns what the mailbox of this device may hold.
    fn quota_of(&self, id: DeviceId) -> Quota {
        Quota {
            messages_max: self.mailbox_messages_max,
            bytes_max: self.mailbox_bytes_max,
            share: self.mailbox_sender_share,
            limits_anonymous: !id.is_number(),
        }
    }

    /// Returns what outcomes this device may have asked for, and how many of them of messages to
    /// one receiver. Room for one is room for the longest: bytes are not counted.
    fn outcomes_quota_of(&self, id: DeviceId) -> Quota {
        Quota { messages_max: self.outcomes_max, bytes_max: 0, ..self.quota_of(id) }
    }
}

/// Wall clock and uptime at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The server's uptime over all its runs; never goes backward.
    pub at: Moment,
    /// Unix time in milliseconds; may jump.
    pub wall_ms: u64,
}

/// Whether a token lets a device send to another.
pub trait SendFilter: fmt::Debug + Send + Sync {
    /// Returns whether it may send to the device that is shown so.
    fn allows(&self, to: &str) -> bool;
}

/// Which message an outcome is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageKey {
    /// In whose mailbox it is.
    pub device: DeviceId,
    /// Its number there.
    pub seq: u64,
}

/// How a message ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageOutcome {
    /// Which message.
    pub of: MessageKey,
    /// How.
    pub kind: Outcome,
    /// When, wall clock.
    pub at_ms: u64,
    /// Whether the receiver may have seen it although it did not ack.
    pub maybe_seen: bool,
    /// Why it was refused.
    pub reason: Option<Box<str>>,
    /// Whether the message was in the store, and so its outcome must be.
    pub is_stored: bool,
}

/// What is worth counting beside what is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message was accepted, with this durability.
    Accepted(switchboard_proto::v1::Durability),
    /// A message was not accepted.
    Rejected(switchboard_proto::v1::RejectCode),
    /// A retry was recognised.
    Duplicate,
    /// A message left its mailbox.
    Ended(Outcome),
    /// An entry left its mailbox because its record cannot be read; its messages also count as
    /// [`Outcome::Evicted`].
    Quarantined,
    /// A connection took a device over.
    Takeover,
    /// A takeover was made to wait, because two clients fight for one device.
    Flapping(DeviceId),
    /// A device came whose id this store has not given: it was rolled back.
    RolledBack(DeviceId),
    /// A device without session came to its end.
    DeviceEnded,
    /// A frame could not be obeyed.
    BadFrame,
}

pub(crate) type Out<'a> = &'a mut dyn FnMut(Effect<'_>);

/// What a broker keeps of devices with mailboxes.
#[derive(Debug)]
pub(crate) struct Mailboxes {
    limits: Limits,
    shards: u16,
    /// There is a store: what it holds survives.
    is_durable: bool,
    /// The store cannot sync for now.
    is_failing: bool,
    /// The store takes no new messages for now, but all else.
    pub(crate) is_full: bool,
    devices: FxHashMap<DeviceId, Box<Device>>,
    /// By [`crate::Conn`].
    sessions: Vec<Option<DeviceId>>,
    next_session: u32,
    /// What each append that is not synced was for, in order.
    pending: VecDeque<Pending>,
    timers: Timers,
    /// Anonymous devices that are away, the oldest first, with since when: all that have an empty
    /// mailbox, and others. Those end first where a new device finds no slot.
    idle: BTreeSet<(Moment, DeviceId)>,
    /// Devices whose acks are in no record yet.
    acked: Vec<DeviceId>,
    acks_due: Option<Moment>,
    /// Devices that came or went while the store was full, so that its record of them is not how they
    /// stand; and when the next of them are recorded, if it is not full.
    stale_records: BTreeSet<DeviceId>,
    stale_records_at: Moment,
    /// Who sent under how many ids.
    crowd: Crowd,
    /// From this shard to itself.
    local: VecDeque<Envelope>,
    /// The id of a message whose sender is told about it; kept for its memory.
    answered_id: String,
    stats: Stats,
    /// What is here of devices without a name.
    anonymous: OfAnonymous,
    /// Connections that the flap guard makes wait.
    waiting: FxHashMap<crate::Conn, DeviceId>,
    /// What all mailboxes are named after, beside their own number.
    epoch: u64,
    /// What times are stored by.
    clock: StampClock,
    /// Numbers below these may have been given to messages for a device that ended: anonymous ones,
    /// and those with names. One that comes back begins here, so that what is still known of a
    /// message by its number is not taken for another.
    used_to: [u64; 2],
}

/// What waits, over all mailboxes of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Devices with a mailbox.
    pub mailboxes: u64,
    /// Those that are connected.
    pub sessions: u64,
    /// Messages that wait.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What those take that are in memory only.
    pub memory: u64,
    /// Ids remembered.
    pub sent_ids: u64,
}

/// One device with a mailbox.
#[derive(Debug)]
pub(crate) struct Device {
    /// What its mailbox is called.
    mailbox_name: u64,
    mailbox: Mailbox,
    sent: Sent,
    session: Option<Box<Session>>,
    /// A newer connection that waits for the flap guard.
    waiting: Option<Box<session::Waiting>>,
    takeovers: session::Takeovers,
    /// Since when it is there or away, wall clock; what the device list shows.
    since_ms: u64,
    /// When it went away, by uptime.
    away_since: Moment,
    /// Where its last [`Record::Device`] lies.
    recorded_at: Position,
    /// Whether the last one that was appended says that it is there.
    is_recorded_online: bool,
    /// How many are not synced.
    records_unsynced: u32,
    /// Tells it from one of its id that ended, also when its mailbox gets another name.
    born: u64,
    /// The session whose fetch is under way, also when it has ended: one that comes and goes in a loop would
    /// let more and more fetches wait for the reader.
    fetching: Option<u32>,
    /// The `reserved_to` that is being recorded; 0 is none.
    reserving_to: u64,
    is_ack_dirty: bool,
    /// It ends with its connection, and the store knows nothing of it.
    is_ephemeral: bool,
    /// The messages of an ephemeral device whose outcomes will come; at most `outcomes_max`.
    receipts: Option<Box<FxHashSet<MessageKey>>>,
    /// It is ending: outcomes for senders are being recorded.
    is_ending: bool,
}

impl Mailboxes {
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    pub(crate) fn new(limits: Limits, shards: u16, is_durable: bool) -> Mailboxes {
        Mailboxes {
            limits,
            shards,
            is_durable,
            is_failing: false,
            is_full: false,
            devices: FxHashMap::default(),
            sessions: Vec::new(),
            next_session: 1,
            pending: VecDeque::new(),
            timers: Timers::default(),
            idle: BTreeSet::new(),
            acked: Vec::new(),
            acks_due: None,
            stale_records: BTreeSet::new(),
            stale_records_at: Moment::default(),
            crowd: Crowd::default(),
            local: VecDeque::new(),
            answered_id: String::new(),
            stats: Stats::default(),
            anonymous: OfAnonymous::default(),
            waiting: FxHashMap::default(),
            epoch: 0,
            clock: StampClock::default(),
            used_to: [1; 2],
        }
    }
}

impl Mailboxes {
    /// Why the store takes no new message for now. A full disk is both full and failing, and then
    /// `store_full` says more: the message is certainly not kept.
    fn store_refuses(&self) -> Option<RejectCode> {
        match (self.is_full, self.is_failing) {
            (true, _) => Some(RejectCode::StoreFull),
            (false, true) => Some(RejectCode::StoreUnavailable),
            (false, false) => None,
        }
    }

    /// See the field.
    fn used_to(&mut self, id: DeviceId) -> &mut u64 {
        &mut self.used_to[usize::from(!id.is_number())]
    }

    /// A device is no more. Its numbers are not given again to one of its id.
    pub(crate) fn remove(&mut self, id: DeviceId) -> Option<Box<Device>> {
        let device = self.devices.remove(&id)?;
        shrink(&mut self.devices, KEPT_BY_SHARD);
        self.ids_end(id, &device.sent);
        self.timers.clear(id);
        self.stale_records.remove(&id);
        self.idle.remove(&(device.away_since, id));
        self.use_up(id, device.mailbox.next_seq());
        Some(device)
    }

    /// Numbers below this one were given to messages for a device that is no more.
    pub(crate) fn use_up(&mut self, id: DeviceId, next_seq: u64) {
        let used_to = self.used_to(id);
        *used_to = next_seq.max(*used_to);
    }

    /// A connection does not wait for the flap guard any more; returns for which device it did.
    fn end_wait(&mut self, conn: crate::Conn) -> Option<DeviceId> {
        let device = self.waiting.remove(&conn);
        shrink(&mut self.waiting, KEPT_BY_SHARD);
        device
    }

    /// When acks are to be recorded. While the store cannot sync they wait here, one mark for each
    /// device, where records would pile up.
    pub(crate) fn acks_due(&self) -> Option<Moment> {
        self.acks_due.filter(|_| !self.is_failing)
    }

    /// When records are made up for that were put off while the store was full.
    pub(crate) fn stale_records_due(&self) -> Option<Moment> {
        let is_due = !self.stale_records.is_empty() && !self.is_full && !self.is_failing;
        is_due.then_some(self.stale_records_at)
    }

    /// Returns whether a device's mailbox is here.
    pub(crate) fn has(&self, id: DeviceId) -> bool {
        self.devices.contains_key(&id)
    }

    /// Takes an envelope from another shard, to be dealt with next.
    pub(crate) fn accept(&mut self, envelope: Envelope) {
        self.local.push_back(envelope);
    }
}

impl Device {
    /// While it is away memory is kept only for what is there.
    fn rest_if_away(&mut self) {
        if self.session.is_none() {
            self.mailbox.rest();
            self.sent.rest();
        }
    }

    fn new(id: DeviceId, mailbox_name: u64, now: Now) -> Device {
        Device {
            mailbox_name,
            mailbox: Mailbox::new(id.is_number()),
            sent: Sent::default(),
            session: None,
            waiting: None,
            takeovers: session::Takeovers::default(),
            since_ms: now.wall_ms,
            away_since: now.at,
            recorded_at: Position::NOWHERE,
            is_recorded_online: false,
            records_unsynced: 0,
            born: mailbox_name,
            fetching: None,
            reserving_to: 0,
            is_ack_dirty: false,
            is_ephemeral: false,
            receipts: None,
            is_ending: false,
        }
    }
}

/// The shard of a device with a mailbox.
pub fn owner(device: DeviceId, shards: u16) -> ShardId {
    // Fibonacci hashing: neighbouring numbers go to different shards.
    let hash = device.get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    ShardId((hash % u64::from(shards)) as u16)
}

impl Broker {
    /// Gives an envelope to the shard that it is for.
    fn send_to_shard(&mut self, shard: ShardId, envelope: Envelope, out: Out<'_>) {
        if shard == self.shard {
            self.mailboxes.local.push_back(envelope);
        } else {
            out(Effect::Send { shard, envelope });
        }
    }

    fn send_to_owner(&mut self, device: DeviceId, envelope: Envelope, out: Out<'_>) {
        self.send_to_shard(owner(device, self.mailboxes.shards), envelope, out);
    }

    /// Deals with what this shard had for itself.
    #[inline]
    pub(crate) fn settle_local(&mut self, now: Now, out: Out<'_>) {
        if !self.mailboxes.local.is_empty() {
            self.settle_envelopes(now, out);
        }
    }

    fn settle_envelopes(&mut self, now: Now, out: Out<'_>) {
        while let Some(envelope) = self.mailboxes.local.pop_front() {
            self.envelope(now, envelope, out);
        }
        shrink(&mut self.mailboxes.local, KEPT_BY_SHARD);
    }

    /// Deals with an envelope from another shard, or from this one.
    fn envelope(&mut self, now: Now, envelope: Envelope, out: Out<'_>) {
        match envelope {
            Envelope::Deliver(deliver) => self.deliver(now, &deliver, out),
            Envelope::Reply { to, digest, id, reply } => {
                self.reply(now, to, digest, &id, reply, out);
            }
            Envelope::TextReply { reply_to, reply } => self.text_reply(now, reply_to, reply, out),
            Envelope::Cancel(cancel) => self.cancel_here(now, cancel, out),
            Envelope::CancelReply { to, id, session, result } => {
                self.cancel_reply(to, &id, session, result, out);
            }
            Envelope::Outcome { to, id, outcome, answers_cancel, is_of_ephemeral } => {
                self.told_outcome(to, id, outcome, (answers_cancel, is_of_ephemeral), out);
            }
            Envelope::Settled(of) => self.settled(now, of, out),
            Envelope::Unwanted(of) => self.unwanted(now, of, out),
            Envelope::Presence { to, device, online, at_ms } => {
                self.presence(to, device, online, at_ms, out);
            }
        }
    }

    /// Names all mailboxes after this number too: when it changes, devices forget what they saw.
    pub fn name_mailboxes_after(&mut self, epoch: u64) {
        self.mailboxes.epoch = epoch;
    }

    /// Keeps times in records by this clock. To be told before [`Broker::replayed_all`].
    pub fn stamp_by(&mut self, clock: StampClock) {
        self.mailboxes.clock = clock;
    }

    /// Mailboxes and waiting messages, while the replay is not over.
    pub fn replayed_so_far(&self) -> (u64, u64) {
        let messages =
            self.mailboxes.devices.values().map(|device| device.mailbox.waiting() as u64);
        (self.mailboxes.devices.len() as u64, messages.sum())
    }

    /// A mailbox's name as it stands on the wire.
    fn mailbox_name(&self, device: &Device) -> String {
        format!("{:016x}", device.mailbox_name ^ self.mailboxes.epoch)
    }

    /// Returns how much waits.
    pub fn stats(&self) -> Stats {
        self.mailboxes.stats
    }

    fn show(&self, device: DeviceId) -> PublicId {
        self.directory.names().show(device)
    }

    /// Stands for a message's receiver and body; the same in every run.
    fn content(&self, to: DeviceId, body: &[u8]) -> crate::Digest {
        let to = match self.show(to) {
            PublicId::Number(id) => id.get(),
            PublicId::Name(name) => self.key.digest(name.as_bytes()).half(),
        };
        self.key.content(to, body)
    }

    fn owns(&self, device: DeviceId) -> bool {
        owner(device, self.mailboxes.shards) == self.shard
    }

    /// Returns whether what is accepted now is said to be on disk.
    fn strongest(&self) -> switchboard_proto::v1::Durability {
        use switchboard_proto::v1::Durability;
        if self.mailboxes.is_durable { Durability::Disk } else { Durability::Memory }
    }
}
