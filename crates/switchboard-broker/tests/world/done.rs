//! Effects that outlive the call.

use switchboard_broker::{Conn, Digest, Effect, Envelope, Refusal, ShardId, Want};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{ServerEvent, ServerFrame, parse_server};

use crate::store::Stored;

/// As [`Effect`]; frames are as the client reads them.
#[derive(Debug)]
pub(crate) enum Done {
    Tell {
        conn: Conn,
        event: ServerEvent,
    },
    Push {
        conn: Conn,
        event: ServerEvent,
    },
    Inform {
        conn: Conn,
    },
    Refuse {
        conn: Conn,
        refusal: Refusal,
    },
    /// For a device of the text protocol without a mailbox.
    Deliver {
        conn: Conn,
        body: String,
    },
    /// For one with a mailbox.
    PushBody {
        conn: Conn,
        body: String,
    },
    Forward {
        shard: ShardId,
        from: DeviceId,
        to: DeviceId,
        text: Vec<u8>,
    },
    Return {
        shard: ShardId,
        from: DeviceId,
        digest: Digest,
    },
    AwaitDrain {
        conn: Conn,
    },
    Close {
        conn: Conn,
        code: u16,
    },
    Append(Stored),
    Fetch {
        device: DeviceId,
        session: u32,
        wants: Vec<Want>,
    },
    Send {
        shard: ShardId,
        envelope: Envelope,
    },
    AwaitReply {
        conn: Conn,
    },
    Replied {
        conn: Conn,
    },
    TextAccepted {
        conn: Conn,
    },
    Count,
}

impl From<Effect<'_>> for Done {
    fn from(effect: Effect<'_>) -> Done {
        match effect {
            Effect::Tell { conn, frame } => Done::Tell { conn, event: heard(frame) },
            Effect::Push { conn, frame } => Done::Push { conn, event: heard(frame) },
            Effect::Inform { conn, .. } => Done::Inform { conn },
            Effect::Refuse { conn, refusal } => Done::Refuse { conn, refusal },
            Effect::Deliver { conn, text, .. } => Done::Deliver { conn, body: string(text) },
            Effect::DeliverBody { conn, body, .. } => Done::Deliver { conn, body: string(body) },
            Effect::PushBody { conn, body, .. } => Done::PushBody { conn, body: string(body) },
            Effect::Forward { shard, from, to, text } => {
                Done::Forward { shard, from, to, text: text.to_vec() }
            }
            Effect::Return { shard, from, digest } => Done::Return { shard, from, digest },
            Effect::AwaitDrain { conn } => Done::AwaitDrain { conn },
            Effect::Close { conn, code, .. } => Done::Close { conn, code },
            Effect::Append(record) => Done::Append((&record).into()),
            Effect::Fetch { device, session, wants, .. } => {
                Done::Fetch { device, session, wants: wants.to_vec() }
            }
            Effect::Send { shard, envelope } => Done::Send { shard, envelope },
            Effect::AwaitReply { conn } => Done::AwaitReply { conn },
            Effect::Replied { conn } => Done::Replied { conn },
            Effect::TextAccepted { conn } => Done::TextAccepted { conn },
            Effect::Verify { .. } => panic!("nobody here shows a token"),
            Effect::Count(_) => Done::Count,
        }
    }
}

/// Returns a frame as the client reads it, by way of its text.
fn heard(frame: &ServerFrame<'_>) -> ServerEvent {
    let mut text = Vec::new();
    frame.write(&mut text);
    parse_server(&text).expect("a server's frame is one")
}

fn string(text: &[u8]) -> String {
    String::from_utf8(text.to_vec()).expect("what was said was text")
}
