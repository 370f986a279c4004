//! An entry of a mailbox: a message or an outcome that waits, and how far it has come.

use switchboard_proto::DeviceId;

use super::totals::{OfAnonymous, Totals, memory_of};
use super::{Content, Position};
use crate::Moment;
use crate::directory::RECEIPT_BYTES;

/// A message, or the outcome of one that this device sent. Kept at 56 bytes, as millions may wait.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    /// The sender of a message; of an outcome, the receiver of the message that it is about.
    pub(crate) from: DeviceId,
    /// Position of its record; nowhere while that is not synced, and for what is in memory only.
    pub(crate) position: Position,
    /// Time at which it expires, by the uptime, so that no jump of the wall clock matters.
    pub(crate) expires_at: Moment,
    pub(crate) len: u32,
    pub(crate) state: State,
    pub(crate) kind: Kind,
    pub(crate) kept: Kept,
    /// Set while it waits for its ack, after it was pushed in this session.
    pub(crate) is_in_flight: bool,
    pub(crate) content: Option<Content>,
}

const _: () = assert!(size_of::<Entry>() == 56);

/// Kinds of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message.
    Message,
    /// A message whose sender asked for its outcome.
    WithReceipt,
    /// The same, from an ephemeral sender: the outcome is not for the next device of that id.
    ReceiptOfEphemeral,
    /// The outcome of a message that this device sent.
    Outcome,
}

impl Kind {
    /// Returns the kind of a message.
    pub(crate) fn message(receipt: bool, is_of_ephemeral: bool) -> Kind {
        match (receipt, is_of_ephemeral) {
            (false, _) => Kind::Message,
            (true, false) => Kind::WithReceipt,
            (true, true) => Kind::ReceiptOfEphemeral,
        }
    }
}

/// Places in which an entry is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// In memory only.
    Here,
    /// Its record is or will be in the store.
    Stored,
}

impl Kept {
    pub(crate) fn stored(is_stored: bool) -> Kept {
        if is_stored { Kept::Stored } else { Kept::Here }
    }
}

/// Stages of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its record is not synced: it must not be seen.
    Unsynced,
    /// May be pushed.
    Ready,
    /// Out of the mailbox, while the record of its end is not synced, and not pushed in this
    /// session. Nothing behind it may be pushed: a crash could bring it back, and then it would
    /// come after what lies behind it.
    Leaving,
    /// Out of the mailbox for good; dropped with those before it.
    Gone,
}

/// The moment that never comes.
pub(crate) const NEVER: Moment = Moment::from_ms(u64::MAX);

impl Entry {
    /// Returns whether its sender asked for an outcome.
    pub(crate) fn receipt(&self) -> bool {
        matches!(self.kind, Kind::WithReceipt | Kind::ReceiptOfEphemeral)
    }

    pub(super) fn is_of_ephemeral(&self) -> bool {
        self.kind == Kind::ReceiptOfEphemeral
    }

    pub(crate) fn is_outcome(&self) -> bool {
        self.kind == Kind::Outcome
    }

    /// Returns whether it is in the mailbox for the device.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.state, State::Ready | State::Unsynced)
    }

    /// Returns whether its record is or will be in the store.
    pub(crate) fn is_stored(&self) -> bool {
        self.kept != Kept::Here
    }

    /// Returns the amount it adds to `Mailbox::totals` while it waits. A message counts for its
    /// sender, an outcome for the mailbox's device.
    #[inline]
    pub(super) fn totals(&self, is_devices_anonymous: bool) -> Totals {
        let takes = memory_of(self.len as usize);
        let (stored, memory) = if self.is_stored() { (takes, 0) } else { (0, takes) };
        let is_anonymous =
            if self.is_outcome() { is_devices_anonymous } else { self.from.is_number() };
        let anonymous = match is_anonymous {
            true => OfAnonymous { messages: 1, stored, memory },
            false => OfAnonymous::default(),
        };
        Totals { messages: 1, bytes: self.len as usize, memory, receipts: 0, anonymous }
    }

    /// Returns the amount that a message with a receipt adds to `Mailbox::totals` while it waits:
    /// the most that the outcome's records take in the store.
    pub(super) fn reserve(&self) -> Totals {
        if !self.is_stored() {
            return Totals::default();
        }
        let stored = if self.from.is_number() { RECEIPT_BYTES } else { 0 };
        let anonymous = OfAnonymous { stored, ..OfAnonymous::default() };
        Totals { receipts: 1, anonymous, ..Totals::default() }
    }

    /// Returns whether its content is in memory, and not only in the store.
    pub(crate) fn has_content(&self) -> bool {
        self.content.as_ref().is_some_and(|content| !content.is_bodiless())
    }

    /// Returns the amount it adds to `Mailbox::cached`.
    pub(super) fn cached_bytes(&self) -> usize {
        let counts =
            !self.position.is_nowhere() && self.has_content() && self.state == State::Ready;
        if counts { self.len as usize } else { 0 }
    }

    /// Drops its content, if the store has it too. The id stays if an outcome will name it.
    pub(super) fn drop_content(&mut self) {
        // Until it is synced this is the only content that can be pushed.
        if !self.is_stored() || self.position.is_nowhere() {
            return;
        }
        if !self.receipt() {
            self.content = None;
        } else if let Some(content) = &mut self.content {
            content.drop_body();
        }
    }
}
