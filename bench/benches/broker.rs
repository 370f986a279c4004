//! The broker alone: one command, from its text to its effects, without a socket.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use switchboard_broker::{
    Broker, Conn, DigestKey, Directory, Effect, HashKey, Input, Limits, Moment, Now, ShardId,
};

const NOW: Now = Now { at: Moment::from_ms(1_000), wall_ms: 1_000 };
const LIST_MAX: usize = 256;
const SENDER: Conn = Conn(0);

/// Returns a broker with `devices` devices on the connections from 0 upward.
fn broker_with(devices: u32) -> Broker {
    let directory = Arc::new(Directory::new(1, LIST_MAX, HashKey::new([7; HashKey::LEN])));
    let mut broker = Broker::new(
        ShardId(0),
        directory,
        DigestKey::new([7; DigestKey::LEN]),
        Limits::default(),
        false,
    );
    for conn in 0..devices {
        broker.handle(NOW, Input::Connected(Conn(conn)), &mut |_| ());
    }
    broker
}

/// Returns the sender's commands to the device on connection `to`: two texts, which in turn are
/// no duplicates.
fn commands(broker: &Broker, to: Conn, size: usize) -> [String; 2] {
    let id = broker.device(to).expect("the device is connected");
    ["x", "y"].map(|filler| format!("send,{id},{}", filler.repeat(size)))
}

fn send(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("send on one shard");
    group.throughput(Throughput::Elements(2));
    for (devices, size) in [(2, 64), (2, 4096), (10_000, 64)] {
        let mut broker = broker_with(devices);
        let commands = commands(&broker, Conn(devices - 1), size);
        group.bench_function(format!("{size} B among {devices} devices"), |bencher| {
            bencher.iter(|| {
                let mut delivered = 0;
                for message in &commands {
                    let message = black_box(message.as_bytes());
                    broker.said(NOW, SENDER, message, &mut |effect| {
                        delivered += u32::from(matches!(effect, Effect::Deliver { .. }));
                    });
                }
                assert_eq!(delivered, 2);
            });
        });
    }
    group.finish();
}

fn come_and_go(criterion: &mut Criterion) {
    const NEXT: Conn = Conn(10_000);
    let mut broker = broker_with(NEXT.0);
    criterion.bench_function("connect and disconnect among 10000 devices", |bencher| {
        bencher.iter(|| {
            broker.handle(NOW, Input::Connected(NEXT), &mut |effect| {
                black_box(effect);
            });
            broker.handle(NOW, Input::Disconnected(NEXT), &mut |_| ());
        });
    });
}

criterion_group!(benches, send, come_and_go);
criterion_main!(benches);
