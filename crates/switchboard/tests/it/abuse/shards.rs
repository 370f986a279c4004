//! Between shards nothing is lost, duplicated or reordered.

use std::collections::BTreeSet;

use super::wire::{TEXT, Wire, frame};
use crate::server::{Server, binary};

/// Has each of `pairs` neighbours send `count` messages to the other and receive as many.
///
/// Sockets are assigned to the shards in turn, so with two shards the neighbours are on
/// different ones.
fn exchange(server: &Server, pairs: usize, count: usize, text: &str) {
    std::thread::scope(|scope| {
        for _ in 0..pairs {
            let (a, b) = (Wire::open(server), Wire::open(server));
            let (a_id, b_id) = (a.id, b.id);
            for (mut wire, to) in [(a, b_id), (b, a_id)] {
                let mut writer = wire.stream.try_clone().unwrap();
                scope.spawn(move || {
                    for from in (0..count).step_by(50) {
                        let batch: Vec<u8> = (from..count.min(from + 50))
                            .flat_map(|n| frame(TEXT, format!("send,{to},{n}{text}").as_bytes()))
                            .collect();
                        std::io::Write::write_all(&mut writer, &batch).unwrap();
                    }
                });
                scope.spawn(move || {
                    for n in 0..count {
                        assert_eq!(wire.hear(), format!("{to}:{n}{text}"));
                    }
                    assert!(wire.ask("help").starts_with("Your ID: "), "nothing more came");
                });
            }
        }
    });
}

#[test]
fn messages_between_two_shards_come_once_and_in_order() {
    let server = Server::with(&["shards=2"]);
    exchange(&server, 4, 3000, "");
    assert!(server.metric("switchboard_messages_total{result=\"forwarded\"}") >= 24_000.0);
    assert_eq!(server.metric("switchboard_messages_total{result=\"delivered\"}"), 24_000.0);
}

#[test]
fn messages_among_three_shards_come_once_and_in_order() {
    let server = Server::with(&["shards=3"]);
    exchange(&server, 3, 3000, "");
}

/// Senders are paused while the queue is full; nobody is told, and nothing is lost.
#[test]
fn a_full_queue_between_shards_holds_its_senders() {
    let settings = ["shards=2", "shard_queue_max_bytes=4KiB", "max_message_bytes=4KiB"];
    let server = Server::with(&settings);
    exchange(&server, 3, 2000, &"x".repeat(2000));
    assert!(server.metric("switchboard_reader_pauses_total{reason=\"shard_queue\"}") > 0.0);
}

/// The receiver leaves while messages are under way: each is delivered, or its sender is told.
#[test]
fn a_sender_is_told_of_each_message_that_found_nobody() {
    let server = Server::with(&["shards=2"]);
    for _ in 0..20 {
        let (mut from, mut to) = (Wire::open(&server), Wire::open(&server));
        let batch: Vec<u8> =
            (0..500).flat_map(|n| frame(TEXT, format!("send,{},{n}", to.id).as_bytes())).collect();
        from.bytes(&batch);
        to.bytes(&frame(super::wire::CLOSE, b""));
        let mut heard = 0;
        let close = loop {
            let next = to.frame();
            match next.first {
                TEXT => heard += 1,
                _ => break next,
            }
        };
        assert_eq!(close.first, super::wire::CLOSE);
        // Messages queued before it said goodbye were delivered, and the rest were reported.
        let mut told = 0;
        from.say("help");
        loop {
            let answer = from.hear();
            match answer.as_str() {
                "Invalid destinationId" => told += 1,
                _ => break,
            }
        }
        // Those under way come back with the other shard's next turn.
        while heard + told < 500 {
            assert_eq!(from.hear(), "Invalid destinationId");
            told += 1;
        }
        assert_eq!(heard + told, 500);
        assert!(from.ask("help").starts_with("Your ID: "), "nothing more came");
    }
}

#[test]
fn ids_are_unique_and_ascend_for_each_who_connects() {
    let server = Server::with(&["shards=3"]);
    let per_thread: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let connecting: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (0..40).map(|_| Wire::open(&server).id).collect()))
            .collect();
        connecting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(per_thread.iter().all(|ids| ids.is_sorted()));
    let unique: BTreeSet<u64> = per_thread.into_iter().flatten().collect();
    assert_eq!(unique, (100_000_000..100_000_320).collect());
}

#[test]
fn a_device_list_is_the_same_from_every_shard() {
    let server = Server::with(&["shards=3"]);
    let mut wires: Vec<Wire> = (0..6).map(|_| Wire::open(&server)).collect();
    let list = |info: String| info.lines().nth(2).unwrap().to_owned();
    let expected = list(wires[0].ask("help"));
    assert!(expected.contains("100000005"), "{expected}");
    for wire in &mut wires {
        assert_eq!(list(wire.ask("help")), expected);
    }
}

#[test]
fn a_second_server_on_the_port_fails() {
    let server = Server::start();
    let second = binary()
        .args(["--listen", &server.address.to_string()])
        .current_dir(server.directory.path())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains(&format!("cannot listen on {}", server.address)), "{said}");
    assert!(Wire::open(&server).ask("help").starts_with("Your ID: "));
}
