//! Forwarding between shards: texts, envelopes and sockets, in batches, with one wake-up.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mio::Waker;
use switchboard_broker::{Digest, Envelope, ShardId};
use switchboard_proto::DeviceId;

use super::accept::Accepted;
use super::ending::Ending;
use super::mailboxes::{Moved, StoreEvent};
use crate::config::Config;

/// Input of one shard from other threads.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// Set while `state` may have something; read without the lock before the shard sleeps.
    filled: AtomicBool,
    /// Set while there are events of the store; read without the lock once a turn.
    has_store_events: AtomicBool,
    /// Set while the shard is in, or about to be in, a poll that only the waker ends.
    asleep: AtomicBool,
    /// Number of the shard's connections that wait for their TLS handshake, and of sockets on
    /// their way to it (see [`super::tls`]).
    pub(super) waiting_handshakes: AtomicUsize,
    /// Bytes of contents that the reader of the store gave and the shard has not dealt with.
    content_bytes: AtomicUsize,
    waker: Waker,
    max_bytes: usize,
    ending: Arc<Ending>,
}

#[derive(Debug, Default)]
struct State {
    batch: Batch,
    orders: Orders,
    /// Events of the store and its reader: at most one for each batch, fetch and chunk.
    store: Vec<StoreEvent>,
    /// Shards that found the batch full and are to be woken when it is taken.
    waiting: Vec<ShardId>,
    /// Set while the shard drains and is at rest, as [`Ending`] counts it.
    is_at_rest: bool,
    /// Set once the shard has ended: nothing stirs it any more.
    has_ended: bool,
}

/// Orders of the operator, given by signals.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// Close the connections over this time, and end.
    pub(super) drain: Option<Duration>,
    /// Go on under this configuration.
    pub(super) config: Option<Arc<Config>>,
}

/// Input of one shard from another, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    texts: Vec<TextEntry>,
    /// All texts, one after the other.
    text: Vec<u8>,
    pub(super) returned: Vec<Returned>,
    pub(super) sockets: Vec<Accepted>,
    /// Connections whose devices that shard owns.
    pub(super) moved: Vec<Moved>,
    /// Envelopes from broker to broker.
    pub(super) envelopes: Vec<Envelope>,
    /// Bytes of the envelopes and the late refusals.
    other_bytes: usize,
    /// Times at which `texts` were received, with their numbers, for the latency histogram.
    pub(super) received: Vec<(Instant, u64)>,
}

/// A text whose receiver had left: its sender, and its digest in the duplicate window.
pub(super) type Returned = (DeviceId, Digest);

/// Bytes of contents, some milliseconds of work, at which the reader of the store gives no more
/// until the shard has dealt with some.
const CONTENT_BYTES_MAX: usize = 1 << 20;

/// Most memory that an empty batch keeps.
const KEPT_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct TextEntry {
    from: DeviceId,
    to: DeviceId,
    len: u32,
    shard: ShardId,
}

/// One text of a batch.
pub(super) struct Forwarded<'a> {
    pub(super) shard: ShardId,
    pub(super) from: DeviceId,
    pub(super) to: DeviceId,
    pub(super) text: &'a [u8],
}

impl Batch {
    pub(super) fn push_text(&mut self, shard: ShardId, from: DeviceId, to: DeviceId, text: &[u8]) {
        self.text.extend_from_slice(text);
        self.texts.push(TextEntry { from, to, len: text.len() as u32, shard });
    }

    pub(super) fn push_envelope(&mut self, envelope: Envelope) {
        self.other_bytes += envelope.held_bytes();
        self.envelopes.push(envelope);
    }

    pub(super) fn push_returned(&mut self, returned: Returned) {
        self.other_bytes += size_of::<Returned>();
        self.returned.push(returned);
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = Forwarded<'_>> {
        let mut end = 0;
        self.texts.iter().map(move |&TextEntry { from, to, len, shard }| {
            let start = end;
            end += len as usize;
            Forwarded { shard, from, to, text: &self.text[start..end] }
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.texts.is_empty()
            && self.returned.is_empty()
            && self.sockets.is_empty()
            && self.moved.is_empty()
            && self.envelopes.is_empty()
    }

    /// Returns the bytes that count toward `shard_queue_max_bytes`.
    pub(super) fn bytes(&self) -> usize {
        self.text.len() + self.texts.len() * size_of::<TextEntry>() + self.other_bytes
    }

    fn append(&mut self, other: &mut Batch) {
        if self.is_empty() {
            return mem::swap(self, other);
        }
        self.texts.append(&mut other.texts);
        self.text.append(&mut other.text);
        self.returned.append(&mut other.returned);
        self.sockets.append(&mut other.sockets);
        self.moved.append(&mut other.moved);
        self.envelopes.append(&mut other.envelopes);
        self.other_bytes += mem::take(&mut other.other_bytes);
        self.received.append(&mut other.received);
    }

    /// Empties the batch and keeps its memory, unless a burst made it large.
    pub(super) fn clear(&mut self) {
        if self.kept_bytes() > KEPT_BYTES {
            *self = Batch::default();
        }
        self.texts.clear();
        self.text.clear();
        self.returned.clear();
        self.sockets.clear();
        self.moved.clear();
        self.envelopes.clear();
        self.other_bytes = 0;
        self.received.clear();
    }

    /// Returns the memory of a batch, full or empty.
    fn kept_bytes(&self) -> usize {
        self.text.capacity()
            + self.texts.capacity() * size_of::<TextEntry>()
            + self.returned.capacity() * size_of::<Returned>()
            + self.sockets.capacity() * size_of::<Accepted>()
            + self.moved.capacity() * size_of::<Moved>()
            + self.envelopes.capacity() * size_of::<Envelope>()
            + self.received.capacity() * size_of::<(Instant, u64)>()
    }
}

/// Returns the charge of a message to the budget while it is on its way; 0 for any other envelope.
pub(super) fn message_bytes(envelope: &Envelope) -> usize {
    /// More bytes than a record and an entry take beside the message's content.
    const OVERHEAD: usize = 256;
    // No less than it will take as a record and as the content of a mailbox (see `budget`):
    // taking it in must not use up more of the budget than sending it did.
    let Envelope::Deliver(deliver) = envelope else { return 0 };
    let re = deliver.re.as_ref().map_or(0, |re| re.len());
    2 * (deliver.body.len() + deliver.id.len() + re + OVERHEAD)
}

/// The receiving shard's queue is at its bound; the sender will be woken when there is room.
#[derive(Debug)]
pub(super) struct Full;

impl Inbox {
    /// Returns an empty inbox for the shard that `waker` wakes; a batch in it has at most
    /// `max_bytes`.
    pub(crate) fn new(waker: Waker, max_bytes: usize, ending: Arc<Ending>) -> Inbox {
        Inbox {
            state: Mutex::default(),
            filled: AtomicBool::new(false),
            has_store_events: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            waiting_handshakes: AtomicUsize::new(0),
            content_bytes: AtomicUsize::new(0),
            waker,
            max_bytes,
            ending,
        }
    }

    /// Moves a whole batch in, from shard `from`, or nothing of it if it would pass the bound.
    pub(super) fn offer(&self, from: ShardId, batch: &mut Batch) -> Result<(), Full> {
        let mut state = self.lock();
        let had = state.batch.bytes();
        // Whole or not at all, which keeps the order between two devices. An empty inbox takes any
        // batch, or one above the bound would wait for ever. A batch of sockets alone has no bytes,
        // and is always taken.
        if had > 0 && batch.bytes() > 0 && had + batch.bytes() > self.max_bytes {
            if !state.waiting.contains(&from) {
                state.waiting.push(from);
            }
            return Err(Full);
        }
        state.batch.append(batch);
        self.notify(state);
        Ok(())
    }

    /// Asks the shard to close its connections over this time and to end.
    pub(crate) fn drain(&self, over: Duration) {
        let mut state = self.lock();
        state.orders.drain = Some(over);
        self.notify(state);
    }

    /// Orders the shard to go on under this configuration.
    pub(crate) fn configure(&self, config: Arc<Config>) {
        let mut state = self.lock();
        state.orders.config = Some(config);
        self.notify(state);
    }

    /// Hands the shard an event of the store.
    pub(crate) fn store(&self, event: StoreEvent) {
        let mut state = self.lock();
        state.store.push(event);
        self.has_store_events.store(true, Ordering::SeqCst);
        self.notify(state);
    }

    /// Returns true if the reader of the store may give more contents. A turn deals with all that
    /// there are, so this also bounds the turn.
    pub(super) fn has_room_for_contents(&self) -> bool {
        self.content_bytes.load(Ordering::SeqCst) < CONTENT_BYTES_MAX
    }

    /// Notes that the reader gives this many bytes of contents.
    pub(super) fn add_contents(&self, bytes: usize) {
        self.content_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Notes that the shard has dealt with this many bytes of contents; returns true if there was
    /// no room for more before.
    pub(super) fn took_contents(&self, bytes: usize) -> bool {
        let had = self.content_bytes.fetch_sub(bytes, Ordering::SeqCst);
        had >= CONTENT_BYTES_MAX && had - bytes < CONTENT_BYTES_MAX
    }

    /// Returns true if there are events of the store.
    #[inline]
    pub(super) fn has_store_events(&self) -> bool {
        self.has_store_events.load(Ordering::SeqCst)
    }

    /// Takes the events of the store.
    pub(super) fn take_store(&self) -> Vec<StoreEvent> {
        // Before the events are taken: one that comes in between sets it again.
        self.has_store_events.store(false, Ordering::SeqCst);
        mem::take(&mut self.lock().store)
    }

    /// Makes the shard take a turn, though there is nothing new for it.
    pub(crate) fn wake(&self) {
        // An eventfd write fails only when its counter is full, and then it wakes anyway.
        let _: io::Result<()> = self.waker.wake();
    }

    /// Wakes the shard, for example because another one has room for its batch again, or
    /// because it is to count anew what waits.
    pub(crate) fn wake_up(&self) {
        let state = self.lock();
        self.notify(state);
    }

    fn notify(&self, mut state: MutexGuard<'_, State>) {
        // Under the lock under which the rest began, so that no shard sees all at rest in between.
        self.end_rest(&mut state);
        self.filled.store(true, Ordering::SeqCst);
        drop(state);
        // After `filled`; see `may_sleep`. Because of the swap, only one of many senders makes the
        // system call.
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Notes that the draining shard has nothing to do: it is at rest until something is put in
    /// here.
    pub(super) fn rest(&self) {
        let mut state = self.lock();
        let is_empty =
            state.batch.is_empty() && state.store.is_empty() && state.orders.drain.is_none();
        if is_empty && !state.is_at_rest {
            state.is_at_rest = true;
            self.ending.rests();
        }
    }

    /// Notes that the shard has found something to do by itself.
    pub(super) fn stir(&self) {
        self.end_rest(&mut self.lock());
    }

    /// Notes that the shard has ended, or failed: the others need not wait for it.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        if !state.is_at_rest {
            state.is_at_rest = true;
            self.ending.rests();
        }
        state.has_ended = true;
    }

    /// Returns true if [`Inbox::end`] was called.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    fn end_rest(&self, state: &mut State) {
        if state.is_at_rest && !state.has_ended {
            state.is_at_rest = false;
            self.ending.stirs();
        }
    }

    /// Announces sleep; false if something is here, and the shard must not sleep.
    pub(super) fn may_sleep(&self) -> bool {
        // Sleeper and sender each write their flag before they read the other's, so that one of
        // them sees the other and no wake-up is lost. This needs the single order of SeqCst.
        self.asleep.store(true, Ordering::SeqCst);
        !self.filled.load(Ordering::SeqCst)
    }

    /// Ends what [`Inbox::may_sleep`] announced.
    pub(super) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Swaps the batch with an empty one; returns the shards that wait for room, and the operator's
    /// orders. `None` if there is nothing.
    pub(super) fn take(&self, batch: &mut Batch) -> Option<(Vec<ShardId>, Orders)> {
        if !self.filled.load(Ordering::SeqCst) {
            return None;
        }
        let mut state = self.lock();
        // Under the lock, as senders set it: else it could be cleared behind a batch that is
        // not taken.
        self.filled.store(false, Ordering::SeqCst);
        mem::swap(&mut state.batch, batch);
        Some((mem::take(&mut state.waiting), mem::take(&mut state.orders)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inboxes(count: usize) -> (Arc<Ending>, Vec<Inbox>, Vec<mio::Poll>) {
        let ending = Arc::new(Ending::new(count));
        let (inboxes, polls) = (0..count)
            .map(|_| {
                let poll = mio::Poll::new().unwrap();
                let waker = Waker::new(poll.registry(), mio::Token(0)).unwrap();
                (Inbox::new(waker, 1_000, Arc::clone(&ending)), poll)
            })
            .unzip();
        (ending, inboxes, polls)
    }

    fn something() -> Batch {
        let mut batch = Batch::default();
        batch.push_returned((DeviceId::FIRST, Digest::default()));
        batch
    }

    fn presence() -> Envelope {
        let (to, device) = (DeviceId::FIRST, DeviceId::FIRST);
        Envelope::Presence { to, device, online: true, at_ms: 0 }
    }

    /// Such envelopes once counted as no bytes, and those for idle watchers filled the memory.
    #[test]
    fn envelopes_without_messages_count_too() {
        let (_, inboxes, _polls) = inboxes(1);
        let mut batch = Batch::default();
        (0..10).for_each(|_| batch.push_envelope(presence()));
        assert!(batch.bytes() >= 10 * size_of::<Envelope>());
        inboxes[0].offer(ShardId(0), &mut batch).unwrap();
        (0..10).for_each(|_| batch.push_envelope(presence()));
        assert!(inboxes[0].offer(ShardId(0), &mut batch).is_err());
        assert_eq!(batch.envelopes.len(), 10, "it stays with the sender");
    }

    #[test]
    fn a_batch_that_a_burst_made_large_gives_its_memory_back() {
        let mut batch = Batch::default();
        batch.push_envelope(presence());
        batch.envelopes.drain(..);
        batch.clear();
        assert!(batch.is_empty() && batch.bytes() == 0 && batch.envelopes.capacity() > 0);
        (0..20_000).for_each(|_| batch.push_envelope(presence()));
        // This is what the shard that takes the batch does.
        batch.envelopes.drain(..);
        batch.clear();
        assert_eq!((batch.bytes(), batch.kept_bytes()), (0, 0));
    }

    #[test]
    fn shards_end_when_all_are_at_rest_at_once() {
        let (ending, inboxes, _polls) = inboxes(2);
        inboxes[0].rest();
        inboxes[0].rest();
        assert!(!ending.is_over());
        // The second has something for the first before it rests itself.
        inboxes[0].offer(ShardId(1), &mut something()).unwrap();
        inboxes[1].rest();
        assert!(!ending.is_over());
        // The first is not at rest before the batch is taken, either.
        inboxes[0].rest();
        assert!(!ending.is_over());
        inboxes[0].take(&mut Batch::default()).unwrap();
        inboxes[0].rest();
        assert!(ending.is_over());
    }

    #[test]
    fn a_shard_that_found_something_to_do_is_waited_for() {
        let (ending, inboxes, _polls) = inboxes(2);
        inboxes[0].rest();
        inboxes[0].stir();
        inboxes[1].rest();
        assert!(!ending.is_over());
        inboxes[0].rest();
        assert!(ending.is_over());
        inboxes[0].stir();
        assert!(ending.is_over(), "it is over for good");
    }

    #[test]
    fn a_shard_that_failed_is_not_waited_for() {
        let (ending, inboxes, _polls) = inboxes(2);
        inboxes[0].end();
        inboxes[0].offer(ShardId(1), &mut something()).unwrap();
        inboxes[1].rest();
        assert!(ending.is_over());
    }

    /// Threads pass one batch to each other; at the end it must have been passed often enough.
    #[test]
    fn no_rest_overtakes_what_is_on_its_way() {
        let (ending, inboxes, _polls) = inboxes(3);
        let forwarded = std::sync::atomic::AtomicUsize::new(0);
        const TIMES: usize = 3_000;
        inboxes[0].offer(ShardId(0), &mut something()).unwrap();
        std::thread::scope(|scope| {
            for shard in 0..inboxes.len() {
                let (inboxes, ending, forwarded) = (&inboxes, &ending, &forwarded);
                scope.spawn(move || {
                    while !ending.is_over() {
                        let mut batch = Batch::default();
                        inboxes[shard].take(&mut batch);
                        if !batch.is_empty() && forwarded.fetch_add(1, Ordering::SeqCst) < TIMES {
                            let next = (shard + 1) % inboxes.len();
                            inboxes[next].offer(ShardId(shard as u16), &mut batch).unwrap();
                        }
                        inboxes[shard].rest();
                    }
                });
            }
        });
        assert!(forwarded.load(Ordering::SeqCst) > TIMES);
    }
}
