//! Draining with mailboxes: a shard is needed by the devices of the other shards.

use rustix::process::Signal;
use serde_json::json;
use switchboard_broker::{ShardId, owner};
use switchboard_proto::DeviceId;

use super::client::{V1, send};
use crate::server::Server;

/// Returns a new device whose owner is this shard of two.
pub(super) fn anonymous_on(server: &Server, shard: u16) -> V1 {
    loop {
        let device = V1::anonymous(server);
        let id = DeviceId::new(device.device().parse().unwrap());
        if owner(id, 2) == ShardId(shard) {
            return device;
        }
        device.leave();
    }
}

/// A shard without connections once ended at once, and with it half of the mailboxes: messages
/// to them were never answered for as long as the drain lasted.
#[test]
fn until_the_last_is_closed_every_mailbox_answers() {
    let server = Server::with(&["shards=2", "drain=2s", "mailbox_max_messages=1000000"]);
    let away = anonymous_on(&server, 0).leave();
    let mut senders: Vec<V1> = (0..4).map(|_| anonymous_on(&server, 1)).collect();
    server.signal(Signal::TERM);
    let mut accepted = 0;
    // Each is closed after a `bye` at some point; until then it is answered.
    for round in 0.. {
        senders.retain_mut(|sender| {
            let id = format!("{round}");
            sender.say(&send(&away.device, &id));
            match sender.hear() {
                frame if frame["type"] == "accepted" => accepted += 1,
                frame => {
                    assert_eq!(frame["type"], "bye", "{frame}");
                    assert_eq!(sender.end().0, 1001);
                    return false;
                }
            }
            true
        });
        if senders.is_empty() {
            break;
        }
    }
    assert!(accepted > 100, "{accepted}");
    assert!(server.wait().status.success());
}

/// The refusal of a message once got stuck in the outbox of the receiver's shard, because the
/// sender's shard had ended; the sender was then told `delivered`.
#[test]
fn what_a_receiver_says_while_the_server_goes_down_reaches_the_sender() {
    let mut server = Server::with(&["shards=2", "drain=2s"]);
    let (mut sender, mut receiver) = (anonymous_on(&server, 0), anonymous_on(&server, 1));
    let to = receiver.device();
    sender.send_with(&to, "no", &json!({"receipt": true}));
    sender.send_with(&to, "yes", &json!({"receipt": true}));
    let (no, yes) = (receiver.take("no"), receiver.take("yes"));
    let sender = sender.leave();
    server.signal(Signal::TERM);
    receiver.say(&json!({"type": "refuse", "seq": no, "reason": "not now"}));
    receiver.ack(yes);
    receiver.hears_nothing();
    assert!(server.await_end().success());
    server.restart();
    let mut sender = sender.back(&server, 0);
    let refused = json!({"type": "outcome", "id": "no", "outcome": "refused", "reason": "not now"});
    sender.expect(refused);
    sender.expect(json!({"type": "outcome", "id": "yes", "outcome": "delivered"}));
}
