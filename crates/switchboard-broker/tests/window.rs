//! The window in which an id is known as a retry: what it may hold.

use std::sync::Arc;

use switchboard_broker::{
    Broker, Conn, DigestKey, Directory, Hello, Input, Limits, Moment, Now, ShardId,
};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::ServerFrame;

const NOW: Now = Now { at: Moment::from_ms(1_000), wall_ms: 1_000 };

struct World {
    broker: Broker,
    devices: [DeviceId; 2],
}

impl World {
    /// Two devices that keep what they send in memory.
    fn new(limits: Limits) -> World {
        let directory = Arc::new(Directory::new(1, 100));
        let devices = [directory.new_id(), directory.new_id()];
        let key = DigestKey::new([7; DigestKey::LEN]);
        let mut broker = Broker::new(ShardId(0), directory, key, limits, false);
        for (index, &device) in devices.iter().enumerate() {
            let hello = Hello {
                conn: Conn(index as u32),
                device,
                is_text: false,
                mailbox: None,
                last_seq: 0,
                token: None,
                token_ends_ms: None,
                filter: None,
                nonce: 1,
            };
            broker.handle(NOW, Input::Hello(hello), &mut |_| {});
        }
        World { broker, devices }
    }

    /// Sends to the other device; gives whether the answer says that it is a retry.
    fn send(&mut self, from: usize, id: u32) -> bool {
        let to = self.devices[1 - from];
        let text = format!(r#"{{"type":"send","id":"m-{id}","to":"{to}","body":{id}}}"#);
        let frame = Input::Frame { conn: Conn(from as u32), text: text.as_bytes() };
        let mut answers = Vec::new();
        self.broker.handle(NOW, frame, &mut |effect| {
            if let switchboard_broker::Effect::Tell { frame, .. } = effect {
                match frame {
                    ServerFrame::Accepted { duplicate, .. } => answers.push(*duplicate),
                    other => panic!("{other:?}"),
                }
            }
        });
        assert_eq!(answers.len(), 1);
        answers[0]
    }
}

/// It once held as many as were sent between two ticks, and a server without deadlines never ticks.
#[test]
fn no_more_ids_are_kept_than_may_be_also_when_no_time_passes() {
    let mut world = World::new(Limits { dedup_ids_max: 10, ..Limits::default() });
    for id in 0..100 {
        assert!(!world.send(id as usize % 2, id));
        assert!(world.broker.stats().sent_ids <= 10);
    }
    assert!(world.send(1, 99), "the newest are kept");
    assert!(world.send(0, 90));
    assert!(!world.send(1, 89), "the oldest are not");
}
