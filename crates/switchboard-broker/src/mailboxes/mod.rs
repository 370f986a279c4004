//! Devices with mailboxes: the part of a broker that keeps what it accepted.
//!
//! Only the shard that owns a device decides about it: which connection has its session, which
//! of its messages are retries, what waits in its mailbox. What must survive is appended to the
//! store as a [`Record`], and shown only when the store has synced it; v1 senders are answered only
//! then, too.
//!
//! [`hello`]: opening, taking over and awaiting a session. [`session`]: `welcome`, end, tokens,
//! alarms. [`frames`]: what v1 clients ask for. [`presence`]: the list of devices, and watching
//! them. [`send`]: the way of a message from the sender's shard into the receiver's mailbox.
//! [`push`]: from the mailbox to the device. [`outcome`]: ends of messages and devices. [`store`]:
//! what is done when the store has synced, is full or fails. [`quarantine`]: records that it cannot
//! read. [`recover`]: the replay after a start, and compaction.

mod announcements;
mod asked;
mod audit;
mod cancel;
mod content;
mod crowd;
mod deliver;
mod entry;
mod envelope;
mod exchange;
mod expiries;
mod frames;
mod hello;
mod index;
mod mailbox;
mod outcome;
mod presence;
mod push;
mod quarantine;
mod record;
mod recover;
mod reserved;
mod send;
mod session;
mod shares;
mod store;
mod timers;
mod totals;
mod window;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{Outcome, PublicId, RejectCode};

pub use content::Content;
pub use envelope::{Cancel, Deliver, DeviceReplyTo, Envelope, NoRoom, Reply, ReplyTo, TextReplyTo};
pub use push::Want;
pub use record::{
    DeviceRecord, EndedOf, EndedRecord, ExchangeRecord, IdRecord, MessageRecord, OutcomeRecord,
    Position, Record,
};
pub use recover::Replay;
pub use reserved::OutcomesFull;
pub use store::StoreGate;

use crate::broker::{Broker, Effect};
use crate::shrink::{KEPT_BY_SHARD, shrink};
use crate::{Moment, PartitionId, ShardId, StampClock};
use announcements::Announcements;
use asked::Asked;
use deliver::Deferred;
pub use exchange::Numbered;
use exchange::{Exchanges, Pair};
pub use hello::Hello;
use mailbox::Mailbox;
use session::Session;
use shares::Quota;
use store::Pending;
use timers::{Alarm, Timers};
use totals::OfAnonymous;
use window::{Window, WindowMax};

/// Bounds on devices with mailboxes, and other settings for them.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Entries pushed to a device ahead of its acks.
    pub in_flight_max: usize,
    /// Messages in a mailbox.
    pub mailbox_messages_max: usize,
    /// Bytes of messages in a mailbox.
    pub mailbox_bytes_max: usize,
    /// Part of a mailbox that one sender may use, in percent of the space that the other senders
    /// leave free.
    pub mailbox_sender_share: usize,
    /// Outcomes that a device may have asked for and not acked. Those that are pending at one
    /// receiver may be [`Limits::mailbox_sender_share`] of what the others leave.
    pub outcomes_max: usize,
    /// Bytes that the messages of one shard which are in memory only may take.
    pub memory_messages_max_bytes: usize,
    /// Bytes that the store may take, for all shards.
    pub store_bytes_max: usize,
    /// Time, by the server's uptime, for which a message under the same id counts as a retry.
    pub dedup_window: Duration,
    /// Ids of messages of one sender that one shard remembers.
    pub dedup_ids_per_device_max: usize,
    /// Ids of messages that one shard remembers.
    pub dedup_ids_max: usize,
    /// Devices with a mailbox, on all shards.
    pub devices_max: usize,
    /// Time for which an anonymous device may be away before it ends.
    pub device_ttl: Duration,
    /// The same for a named one; `None` is for ever.
    pub named_device_ttl: Option<Duration>,
    /// Bytes pushed to a connection before it must have taken them.
    pub push_bytes_max: usize,
    /// True if devices may list and watch each other.
    pub list_devices: bool,
    /// Interval of pings, which `welcome` names.
    pub ping_interval: Duration,
    /// Length of the longest frame, which `welcome` names.
    pub message_bytes_max: usize,
    /// Messages that expire, or are evicted from devices that end, in one turn of the shard. Any
    /// number may be due at once, as clients choose when.
    pub endings_at_once: usize,
}

/// The numbers of the contract of v1, where it names one.
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
            // About a millisecond of work.
            endings_at_once: 2_048,
        }
    }
}

impl Limits {
    /// Returns the quota of this device's mailbox.
    fn quota_of(&self, id: DeviceId) -> Quota {
        Quota {
            messages_max: self.mailbox_messages_max,
            bytes_max: self.mailbox_bytes_max,
            share: self.mailbox_sender_share,
            limits_anonymous: !id.is_number(),
        }
    }

    /// Returns the quota of the outcomes that this device asks for.
    fn outcomes_quota_of(&self, id: DeviceId) -> Quota {
        // Bytes do not count: room for one outcome is room for the longest.
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

/// The receivers to which a token lets its device send.
pub trait SendFilter: fmt::Debug + Send + Sync {
    /// Returns whether the device may send to `to`, a number or a name as on the wire.
    fn allows(&self, to: &str) -> bool;
}

/// Identifies a message by its place in a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageKey {
    /// The device whose mailbox it is in.
    pub device: DeviceId,
    /// Its number there.
    pub seq: u64,
}

/// The outcome of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageOutcome {
    /// The message.
    pub of: MessageKey,
    /// Kind of its end.
    pub kind: Outcome,
    /// Time of its end, by the wall clock.
    pub at_ms: u64,
    /// True if the receiver may have seen it although it did not ack.
    pub maybe_seen: bool,
    /// Reason that the receiver gave when it refused it.
    pub reason: Option<Box<str>>,
}

/// Events that are counted, beside the effects.
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
    /// A device connected whose id this store has not given: the store was rolled back.
    RolledBack(DeviceId),
    /// A device with a mailbox ended.
    DeviceEnded,
    /// A frame was invalid.
    BadFrame,
}

pub(crate) type Out<'a> = &'a mut dyn FnMut(Effect<'_>);

/// The devices with mailboxes of a broker, and what it keeps for all of them.
#[derive(Debug)]
pub(crate) struct Mailboxes {
    limits: Limits,
    shards: u16,
    /// True if there is a store.
    is_durable: bool,
    /// Set while the store cannot sync.
    is_failing: bool,
    pub(crate) gate: StoreGate,
    devices: FxHashMap<DeviceId, Box<Device>>,
    /// By [`crate::Conn`].
    sessions: Vec<Option<session::Speaker>>,
    next_session: u32,
    /// The purpose of each append that is not synced, in order.
    pending: VecDeque<Pending>,
    timers: Timers,
    /// The alarms that end messages, which go off at a rate.
    endings: Timers,
    /// Time at which the next of these may go off.
    endings_from: Moment,
    /// Time of the input that is being handled.
    pub(crate) now: Now,
    /// Changes of presence that watchers are still to be told.
    announcements: Announcements,
    /// Anonymous devices that are away, the longest away first: all for which nothing waits, and
    /// some others. The first for which nothing waits gives way if a new device finds no slot.
    idle: BTreeSet<(Moment, DeviceId)>,
    /// Devices whose acks are in no record yet.
    acked: Vec<DeviceId>,
    acks_due: Option<Moment>,
    /// Devices that came or went while the store was full, so that their records in it are stale.
    stale_records: BTreeSet<DeviceId>,
    /// Time at which the next of these records are written, if the store is not full then.
    stale_records_at: Moment,
    /// The ids of messages that its devices were sent.
    window: Window,
    /// Messages with receipts whose replies have not come.
    asked: Asked,
    /// The exchanges of outcomes with other partitions.
    exchanges: Exchanges,
    /// Time at which outcomes are sent again, if they are not settled before.
    resend_at: Option<Moment>,
    /// Devices that have ended, each with the number of its `Gone` records that are not synced.
    gone: FxHashMap<DeviceId, u32>,
    /// Requests about messages that wait for a record.
    deferred: FxHashMap<MessageKey, Vec<Deferred>>,
    /// Envelopes from this shard to itself.
    local: VecDeque<Envelope>,
    /// Buffer for the id of a message that is answered; kept for its memory.
    answered_id: String,
    stats: Stats,
    /// Sums over what devices without a name have here.
    anonymous: OfAnonymous,
    /// Connections that wait for a session.
    waiting: FxHashMap<crate::Conn, DeviceId>,
    /// Number that is part of the names of all mailboxes.
    epoch: u64,
    /// The clock by which times are stored.
    clock: StampClock,
    /// One number for all anonymous devices, and one for all named ones: numbers below it may have
    /// been given to messages for devices that have ended. A device that comes back numbers its
    /// messages from here, so a number that is still remembered, such as a `cancel`'s, never means
    /// one of the new messages.
    used_to: [u64; 2],
}

/// Sums over all mailboxes of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Number of devices with a mailbox, without ephemeral ones.
    pub mailboxes: u64,
    /// Number of devices that are connected, ephemeral ones too.
    pub sessions: u64,
    /// Number of messages and outcomes that wait.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of memory for messages and outcomes that are in memory only, and bytes set aside for
    /// outcomes that will be in memory only.
    pub memory: u64,
    /// Number of ids of messages that are remembered.
    pub ids: u64,
}

/// One device with a mailbox.
#[derive(Debug)]
pub(crate) struct Device {
    /// Name of its mailbox; 0 in a replay that has not come to its record.
    mailbox_name: u64,
    mailbox: Mailbox,
    session: Option<Box<Session>>,
    /// A newer connection that waits for the session.
    waiting: Option<Box<hello::Waiting>>,
    takeovers: hello::Takeovers,
    /// Time since which it is connected or away, by the wall clock, as the device list shows it.
    since_ms: u64,
    /// Time at which it went away, by the uptime.
    away_since: Moment,
    /// Position of its last [`Record::Device`]. Nowhere until the store has one, and also while
    /// `welcome` must wait for a new one.
    recorded_at: Position,
    /// True if the last appended [`Record::Device`] says that it is connected.
    is_recorded_online: bool,
    /// Number of appended [`Record::Device`]s that are not synced.
    records_unsynced: u32,
    /// Tells it from an earlier device of its id, even after its mailbox got another name.
    born: u64,
    /// The session whose fetch is under way; it may have ended.
    fetching: Option<u32>,
    /// The `reserved_to` that is being recorded; 0 is none.
    reserving_to: u64,
    /// Set while its acks are to be recorded.
    is_ack_dirty: bool,
    /// True if it ends with its connection. The store knows nothing of it.
    is_ephemeral: bool,
    /// The messages whose outcomes will come and be in memory only; at most `outcomes_max`.
    receipts: Option<Box<FxHashSet<MessageKey>>>,
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
            gate: StoreGate::Open,
            devices: FxHashMap::default(),
            sessions: Vec::new(),
            next_session: 1,
            pending: VecDeque::new(),
            timers: Timers::default(),
            endings: Timers::default(),
            endings_from: Moment::default(),
            now: Now { at: Moment::default(), wall_ms: 0 },
            announcements: Announcements::default(),
            idle: BTreeSet::new(),
            acked: Vec::new(),
            acks_due: None,
            stale_records: BTreeSet::new(),
            stale_records_at: Moment::default(),
            window: Window::default(),
            asked: Asked::default(),
            exchanges: Exchanges::default(),
            resend_at: None,
            gone: FxHashMap::default(),
            deferred: FxHashMap::default(),
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
    /// Returns the reason for which the store takes no new message now, if it does not.
    fn store_refuses(&self) -> Option<RejectCode> {
        // A full disk is both full and failing. `store_full` says more: the message is certainly
        // not kept.
        match (self.gate == StoreGate::Closed, self.is_failing) {
            (true, _) => Some(RejectCode::StoreFull),
            (false, true) => Some(RejectCode::StoreUnavailable),
            (false, false) => None,
        }
    }

    /// Returns the bounds on the duplicate window.
    fn window_max(&self) -> WindowMax {
        WindowMax {
            time: self.limits.dedup_window,
            of_one: self.limits.dedup_ids_per_device_max,
            of_all: self.limits.dedup_ids_max,
        }
    }

    /// Returns the time at which the oldest ids of the window are forgotten even if nothing is
    /// sent.
    pub(crate) fn window_due(&self) -> Option<Moment> {
        // Deliberately a little late: each new message forgets old ids anyway, so not every id
        // needs a deadline.
        let window = self.limits.dedup_window;
        self.window.oldest_at().map(|at| at.after(window).after(window / 16))
    }

    /// Returns the number at which the mailbox of a device begins if an earlier device may have had
    /// its id.
    fn used_to(&mut self, id: DeviceId) -> &mut u64 {
        &mut self.used_to[usize::from(!id.is_number())]
    }

    /// Removes a device that has ended, and returns it.
    pub(crate) fn remove(&mut self, id: DeviceId) -> Option<Box<Device>> {
        let device = self.devices.remove(&id)?;
        shrink(&mut self.devices, KEPT_BY_SHARD);
        self.timers.clear(id);
        self.endings.clear(id);
        self.stale_records.remove(&id);
        self.idle.remove(&(device.away_since, id));
        // A sender may still cancel a message to it, which is found by its number: a later device
        // of the id must not give that number to another message.
        self.use_up(id, device.mailbox.next_seq());
        Some(device)
    }

    /// Notes that numbers below this one were given to messages for a device that has ended.
    pub(crate) fn use_up(&mut self, id: DeviceId, next_seq: u64) {
        // One number for all, and not one for each id: nothing is kept of devices that have ended.
        let used_to = self.used_to(id);
        *used_to = next_seq.max(*used_to);
    }

    /// Notes that a connection does not wait for a session any more; returns the device that it
    /// waited for.
    fn end_wait(&mut self, conn: crate::Conn) -> Option<DeviceId> {
        let device = self.waiting.remove(&conn);
        shrink(&mut self.waiting, KEPT_BY_SHARD);
        device
    }

    /// Sets an alarm of a device, unless it goes off earlier anyway.
    fn set_alarm(&mut self, at: Moment, alarm: Alarm, id: DeviceId) {
        let timers = if alarm.ends_messages() { &mut self.endings } else { &mut self.timers };
        timers.set(at, alarm, id);
    }

    /// Notes that outcomes are sent again at this time.
    fn will_resend(&mut self, at: Moment) {
        self.resend_at = Some(self.resend_at.map_or(at, |other| other.min(at)));
    }

    /// Returns the time at which messages may expire, or devices end.
    pub(crate) fn endings_due(&self) -> Option<Moment> {
        self.endings.next().map(|at| at.max(self.endings_from))
    }

    /// Returns the time at which acks are to be recorded.
    pub(crate) fn acks_due(&self) -> Option<Moment> {
        // While the store cannot sync, records would pile up. Acks wait as one mark for each
        // device.
        self.acks_due.filter(|_| !self.is_failing)
    }

    /// Returns the time at which the records of devices that were put off are written.
    pub(crate) fn stale_records_due(&self) -> Option<Moment> {
        // As for acks; and while the store is full there is no room for them.
        let is_due =
            !self.stale_records.is_empty() && self.gate != StoreGate::Closed && !self.is_failing;
        is_due.then_some(self.stale_records_at)
    }

    /// Returns whether a device's mailbox is on this shard.
    pub(crate) fn has(&self, id: DeviceId) -> bool {
        self.devices.contains_key(&id)
    }

    /// Takes an envelope from another shard, to be handled next.
    pub(crate) fn accept(&mut self, envelope: Envelope) {
        self.local.push_back(envelope);
    }
}

impl Device {
    /// Gives back the memory that is kept for what may come, if the device is away.
    fn rest_if_away(&mut self) {
        if self.session.is_none() {
            self.mailbox.rest();
        }
    }

    fn new(id: DeviceId, mailbox_name: u64, now: Now) -> Device {
        Device {
            mailbox_name,
            mailbox: Mailbox::new(id.is_number()),
            session: None,
            waiting: None,
            takeovers: hello::Takeovers::default(),
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
        }
    }
}

/// Returns the shard that owns a device with a mailbox.
#[inline]
pub fn owner(device: DeviceId, shards: u16) -> ShardId {
    PartitionId::of_id(device).shard(shards)
}

impl Broker {
    /// Sends an envelope to a shard, which may be this one.
    fn send_to_shard(&mut self, shard: ShardId, envelope: Envelope, out: Out<'_>) {
        if shard == self.shard {
            // Queued, not handled in place: the caller may be in the middle of a change to the
            // device that it is about.
            self.mailboxes.local.push_back(envelope);
        } else {
            out(Effect::Send { shard, envelope });
        }
    }

    fn send_to_owner(&mut self, device: DeviceId, envelope: Envelope, out: Out<'_>) {
        self.send_to_shard(owner(device, self.mailboxes.shards), envelope, out);
    }

    /// Handles all envelopes that this shard has for itself.
    #[inline]
    pub(crate) fn settle_local(&mut self, now: Now, out: Out<'_>) {
        if !self.mailboxes.local.is_empty() {
            self.settle_envelopes(now, out);
        }
    }

    fn settle_envelopes(&mut self, now: Now, out: Out<'_>) {
        // One by one from the front: handling one may add others, which come after all that wait.
        while let Some(envelope) = self.mailboxes.local.pop_front() {
            self.envelope(now, envelope, out);
        }
        shrink(&mut self.mailboxes.local, KEPT_BY_SHARD);
    }

    /// Handles an envelope from another shard, or from this one.
    fn envelope(&mut self, now: Now, envelope: Envelope, out: Out<'_>) {
        match envelope {
            Envelope::Deliver(deliver) => self.deliver(now, &deliver, out),
            Envelope::Reply { reply_to, of, id, reply } => {
                self.reply(reply_to, of, &id, reply, out);
            }
            Envelope::TextReply { reply_to, reply } => self.text_reply(now, reply_to, reply, out),
            Envelope::Cancel(cancel) => self.cancel_here(now, cancel, out),
            Envelope::CancelReply { reply_to, of, id, result } => {
                self.cancel_reply(reply_to, of, &id, result, out);
            }
            Envelope::Outcome { to, id, outcome, numbered } => {
                self.told_outcome(to, &id, &outcome, numbered, out);
            }
            Envelope::Settled { source, target, to } => {
                self.settled(now, Pair { own: source, other: target }, to, out);
            }
            Envelope::Presence { to, device, online, at_ms } => {
                self.presence(to, device, online, at_ms, out);
            }
        }
    }

    /// Makes this number part of the names of all mailboxes. When it changes all mailboxes have new
    /// names, and no device resumes.
    pub fn name_mailboxes_after(&mut self, epoch: u64) {
        self.mailboxes.epoch = epoch;
    }

    /// Sets the clock of times in records. Must be called before [`Broker::replayed_all`].
    pub fn stamp_by(&mut self, clock: StampClock) {
        self.mailboxes.clock = clock;
    }

    /// Returns the numbers of mailboxes and of waiting messages, while the replay is not over.
    pub fn replayed_so_far(&self) -> (u64, u64) {
        let messages =
            self.mailboxes.devices.values().map(|device| device.mailbox.waiting() as u64);
        (self.mailboxes.devices.len() as u64, messages.sum())
    }

    /// Returns a mailbox's name as it is on the wire.
    fn mailbox_name(&self, device: &Device) -> String {
        format!("{:016x}", device.mailbox_name ^ self.mailboxes.epoch)
    }

    /// Returns the sums over all mailboxes of this shard.
    pub fn stats(&self) -> Stats {
        Stats { ids: self.mailboxes.window.len() as u64, ..self.mailboxes.stats }
    }

    fn show(&self, device: DeviceId) -> PublicId {
        self.directory.names().show(device)
    }

    fn owns(&self, device: DeviceId) -> bool {
        owner(device, self.mailboxes.shards) == self.shard
    }

    /// Returns the strongest durability that a message can be accepted with.
    fn strongest(&self) -> switchboard_proto::v1::Durability {
        use switchboard_proto::v1::Durability;
        if self.mailboxes.is_durable { Durability::Disk } else { Durability::Memory }
    }
}
