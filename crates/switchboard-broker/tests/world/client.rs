//! Clients of the simulated world: SDKs that remember, and their connections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use switchboard_broker::{Conn, Moment};
use switchboard_proto::v1::{ClientFrame, Durability, Outcome, PublicId, Send};

/// One user of the server.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) kind: ClientKind,
    /// True if it says in `hello` that it leaves nothing behind.
    pub(crate) is_ephemeral: bool,
    /// Its device, once it was told.
    pub(crate) device: Option<PublicId>,
    pub(crate) link: Option<usize>,
    /// Name of the mailbox in the last `welcome`.
    pub(crate) mailbox: Option<String>,
    /// Its memory of each mailbox.
    pub(crate) marks: BTreeMap<String, Marks>,
    /// Name of the mailbox in the last `welcome` that was sent, even if the client did not get it.
    pub(crate) named: Option<String>,
    /// Number of the incarnation of its device.
    pub(crate) incarnation: u32,
    /// Real time since which the server knows that it is away.
    pub(crate) away_since_ms: u64,
    /// Longest time that it was away since its last `welcome`.
    pub(crate) away_ms_max: u64,
    /// True if the server's memory of it may be older than its own.
    pub(crate) was_restored: bool,
    /// Serials of what it sent.
    pub(crate) sent: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientKind {
    Named,
    Anonymous,
    /// An anonymous device of the text protocol.
    Text,
    /// Anonymous, and connects only once.
    Stranger,
}

impl ClientKind {
    /// Returns whether it connects again, to the same mailbox.
    pub(crate) fn comes_back(self) -> bool {
        matches!(self, ClientKind::Named | ClientKind::Anonymous)
    }
}

/// A client's memory of one mailbox, and the world's of its acks there.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub(crate) seen: BTreeMap<u64, Seen>,
    /// The greatest number that it saw.
    pub(crate) last_seq: u64,
    /// The server took an ack up to here, in this run, or in an earlier one and has it on disk.
    pub(crate) acked_to: u64,
    /// Acks up to here are certainly on disk.
    pub(crate) durable_to: u64,
    /// Acks that may not be on disk.
    pub(crate) acks: Vec<(Moment, u64)>,
    /// Numbers that it refused in this run.
    pub(crate) refused: BTreeSet<u64>,
}

/// Entry that came under a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Message(usize),
    Outcome(usize, Outcome),
}

/// A connection, from both ends.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) client: usize,
    pub(crate) shard: usize,
    pub(crate) conn: Conn,
    pub(crate) is_text: bool,
    /// True while the server has not closed it and was not told that it is gone.
    pub(crate) is_open: bool,
    /// True while the client has its end.
    pub(crate) is_live: bool,
    /// True once the broker was told `Disconnected`: the connection's number is free.
    pub(crate) is_over: bool,
    pub(crate) is_welcome: bool,
    /// True if the store knows of it: an end that the store never hears of ends an older absence.
    pub(crate) is_recorded: bool,
    /// Name of the mailbox and `last_seq` in its `hello`.
    pub(crate) said: Option<(String, u64)>,
    /// Incarnation of the client's device in which it opened.
    pub(crate) incarnation: u32,
    /// Frames on their way to the server.
    pub(crate) up: VecDeque<Up>,
    pub(crate) is_held: bool,
    pub(crate) awaits_drain: bool,
    /// Messages pushed to a text device since it was drained.
    pub(crate) undrained: Vec<usize>,
    /// Requests without an answer.
    pub(crate) asked: Vec<(String, Request)>,
    pub(crate) errors_due: usize,
    /// The last text of a text session, while its answer may come.
    pub(crate) text_asked: Option<(usize, usize)>,
    pub(crate) pushed_to: u64,
    /// Messages that were pushed, can end only by an ack or a refusal, and had neither.
    pub(crate) in_flight: BTreeSet<u64>,
}

/// Something on its way to the server, and what the world makes of its arrival.
#[derive(Clone, Debug)]
pub(crate) struct Up {
    pub(crate) bytes: Vec<u8>,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Send {
        serial: usize,
    },
    Cancel {
        serial: usize,
    },
    Ack {
        seq: u64,
    },
    Refuse {
        seq: u64,
    },
    /// A request that is answered with its id.
    Ask {
        id: String,
    },
    /// A frame that is answered with `error`.
    Nonsense,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A send, and the number of its arrival.
    Send {
        serial: usize,
        arrival: usize,
    },
    Cancel {
        serial: usize,
    },
    Other,
}

impl Client {
    pub(crate) fn new(kind: ClientKind, name: Option<PublicId>) -> Client {
        Client {
            kind,
            is_ephemeral: false,
            device: name,
            link: None,
            mailbox: None,
            named: None,
            marks: BTreeMap::new(),
            incarnation: 0,
            away_since_ms: 0,
            away_ms_max: 0,
            was_restored: false,
            sent: Vec::new(),
        }
    }

    /// Returns its memory of the mailbox that it has now.
    pub(crate) fn marks(&mut self) -> Option<&mut Marks> {
        self.marks.get_mut(self.mailbox.as_ref()?)
    }
}

/// A `send` as its client writes it.
pub(crate) struct Sending<'a> {
    pub(crate) id: &'a str,
    pub(crate) to: &'a str,
    pub(crate) body: &'a str,
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) durability: Option<Durability>,
    pub(crate) receipt: bool,
}

impl Sending<'_> {
    pub(crate) fn write(&self) -> Vec<u8> {
        written(&ClientFrame::Send(Send {
            id: self.id.into(),
            to: self.to.into(),
            body: self.body.as_bytes(),
            ttl_ms: self.ttl_ms,
            re: self.receipt.then(|| "re".into()),
            durability: self.durability,
            receipt: self.receipt,
        }))
    }
}

pub(crate) fn written(frame: &ClientFrame<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    frame.write(&mut text);
    text
}
