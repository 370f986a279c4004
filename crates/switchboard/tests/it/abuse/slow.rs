//! A device that does not read: only that device is affected.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::wire::{TEXT, Wire, frame};
use crate::device::Device;
use crate::server::Server;

/// Sends `text`s to `to`, one after the other, until the server says that the device does not
/// exist; returns the number of accepted ones.
fn send_until_gone(from: &mut Wire, to: u64, text: &str, max: usize) -> usize {
    for n in 0..max {
        from.say(&format!("send,{to},{n}{text}"));
        let answer = from.ask("help");
        if answer == "Invalid destinationId" {
            // From another shard, answers to earlier messages may come this late.
            while from.hear() == answer {}
            return n;
        }
        assert!(answer.starts_with("Your ID: "), "{answer}");
    }
    panic!("{to} is still there after {max} messages");
}

/// Returns the peak memory of the server, in bytes.
pub(super) fn peak_memory(server: &Server) -> u64 {
    let pid = server.pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn who_does_not_read_is_closed_at_four_times_the_bound() {
    closed_at_four_times_the_bound("shards=1");
}

#[test]
fn who_does_not_read_is_closed_also_when_the_sender_is_on_another_shard() {
    closed_at_four_times_the_bound("shards=2");
}

/// Checks that it is closed at once at four times the bound: senders are told, memory stays
/// bounded, and two other devices hear each other all the time.
fn closed_at_four_times_the_bound(shards: &str) {
    // Also where the receiver's shard gets no processor for a while, and texts wait between the shards.
    let between = "shard_queue_max_bytes=1MiB";
    let settings = [shards, between, "out_queue_max_bytes=256KiB", "out_queue_stall_timeout=1h"];
    let server = Server::with(&settings);
    let slow = Wire::open_small(&server);
    let mut flood = Wire::open(&server);
    let before = peak_memory(&server);
    let accepted = std::thread::scope(|scope| {
        let bystanders = scope.spawn(|| {
            let (mut a, mut b) = (Device::connect(&server), Device::connect(&server));
            let mut slowest = Duration::ZERO;
            for n in 0..300 {
                let began = Instant::now();
                a.send(b.id, &n.to_string());
                assert_eq!(b.hear(), format!("{}:{n}", a.id));
                slowest = slowest.max(began.elapsed());
            }
            slowest
        });
        let accepted = send_until_gone(&mut flood, slow.id, &"x".repeat(100_000), 1000);
        // Generous, for a busy machine; blocking would take for ever.
        assert!(bystanders.join().unwrap() < Duration::from_secs(2));
        accepted
    });
    assert!(accepted >= 10, "four times the bound were to be kept, not {accepted} messages");
    assert_eq!(server.metric("switchboard_out_queue_overflows_total"), 1.0);
    let grew = peak_memory(&server) - before;
    assert!(grew < 8 << 20, "{grew} bytes more for 1 MiB in each queue");
    flood.say(&format!("send,{},later", slow.id));
    assert_eq!(flood.hear(), "Invalid destinationId");
}

/// Senders that each complete a large message in the same turn once filled the queue over its
/// last bound before anything was written, and the receiver was closed as too slow.
#[test]
fn who_reads_all_the_time_is_not_closed_however_many_send_at_once() {
    for shards in ["shards=1", "shards=2"] {
        let server = Server::with(&[shards]);
        let mut reads = Wire::open(&server);
        let mut senders: Vec<Wire> = (0..12).map(|_| Wire::open(&server)).collect();
        let text = "x".repeat(1_000_000);
        let mut last = Vec::new();
        for sender in &mut senders {
            let message = frame(TEXT, format!("send,{},{}{text}", reads.id, sender.id).as_bytes());
            sender.bytes(&message[..message.len() - 1]);
            last.push(message[message.len() - 1]);
        }
        let received = "switchboard_received_bytes_total";
        server.await_metric(received, |bytes| bytes > 12.0 * text.len() as f64);
        // Everything that arrives while it is stopped is read in one turn.
        server.freeze();
        for (sender, byte) in senders.iter_mut().zip(last) {
            sender.bytes(&[byte]);
        }
        server.signal(Signal::CONT);
        let mut heard = Vec::new();
        for _ in &senders {
            heard.push(reads.hear());
        }
        heard.sort_unstable();
        let expected = senders.iter().map(|sender| format!("{0}:{0}{text}", sender.id));
        assert!(heard.into_iter().eq(expected), "not what was sent");
        assert_eq!(server.metric("switchboard_out_queue_overflows_total"), 0.0);
    }
}

/// A device that reads in the end gets all accepted messages, in order, and then the reason for
/// the close.
#[test]
fn who_reads_late_finds_its_messages_and_the_close_frame() {
    let server = Server::with(&["shards=1", "out_queue_max_bytes=64KiB"]);
    let mut slow = Wire::open_small(&server);
    let mut flood = Wire::open(&server);
    let text = "x".repeat(20_000);
    let accepted = send_until_gone(&mut flood, slow.id, &text, 5000);
    // The last accepted one was over the bound, and is kept all the same.
    for n in 0..accepted {
        assert_eq!(slow.hear(), format!("{}:{n}{text}", flood.id));
    }
    let (code, reason) = slow.end();
    assert_eq!(code, Some(4508));
    assert!(reason.contains("too slow"), "{reason}");
}

/// Between the bound and four times the bound there is time to catch up, and no more.
#[test]
fn who_makes_no_progress_at_a_full_queue_is_closed_after_the_stall_timeout() {
    let settings = ["out_queue_max_bytes=8MiB", "out_queue_stall_timeout=400ms"];
    let server = Server::with(&settings);
    let (slow, mut from) = (Wire::open_small(&server), Wire::open(&server));
    // Sockets hold a few MiB of these 20, so the queue is over 8 and under 32.
    for n in 0..20 {
        from.say(&format!("send,{},{n}{}", slow.id, "x".repeat(1_000_000)));
    }
    assert!(from.ask("help").starts_with("Your ID: "));
    let full = Instant::now();
    assert_eq!(server.metric("switchboard_out_queue_overflows_total"), 0.0);
    server.await_metric("switchboard_out_queue_overflows_total", |closed| closed == 1.0);
    assert!(full.elapsed() >= Duration::from_millis(200), "it was given no time");
    assert_eq!(from.ask(&format!("send,{},later", slow.id)), "Invalid destinationId");
}

/// As above, but it reads a little now and then: that is progress, so it stays.
#[test]
fn who_reads_slowly_at_a_full_queue_stays() {
    let settings = ["out_queue_max_bytes=8MiB", "out_queue_stall_timeout=400ms"];
    let server = Server::with(&settings);
    let (mut slow, mut from) = (Wire::open_small(&server), Wire::open(&server));
    for n in 0..20 {
        from.say(&format!("send,{},{n}{}", slow.id, "x".repeat(1_000_000)));
    }
    assert!(from.ask("help").starts_with("Your ID: "));
    for n in 0..20 {
        assert!(slow.hear().starts_with(&format!("{}:{n}x", from.id)));
        // Slower than one stall timeout in all, but faster than one between two reads.
        std::thread::sleep(Duration::from_millis(40));
    }
    assert!(slow.ask("help").starts_with("Your ID: "));
    assert_eq!(server.metric("switchboard_out_queue_overflows_total"), 0.0);
}

#[test]
fn one_message_larger_than_the_bound_fits() {
    let server = Server::with(&["out_queue_max_bytes=1KiB"]);
    let (mut from, mut to) = (Wire::open(&server), Wire::open_small(&server));
    let text = "x".repeat(1_000_000);
    for n in 0..3 {
        from.say(&format!("send,{},{n}{text}", to.id));
        assert_eq!(to.hear(), format!("{}:{n}{text}", from.id));
    }
    assert!(to.ask("help").starts_with("Your ID: "));
}

/// Its own answers fill the queue: it is paused until it reads, and nothing is lost.
#[test]
fn who_asks_without_reading_is_held_and_loses_nothing() {
    let server = Server::with(&["out_queue_max_bytes=16KiB"]);
    let mut crowd: Vec<Wire> = (0..100).map(|_| Wire::open(&server)).collect();
    let mut asks = Wire::open_small(&server);
    let before = peak_memory(&server);
    let bytes = frame(TEXT, b"help").repeat(10_000);
    asks.bytes(&bytes);
    let held = "switchboard_reader_pauses_total{reason=\"out_queue\"}";
    server.await_metric(held, |pauses| pauses >= 1.0);
    // A message to it while it is paused waits with the rest.
    let me = asks.id;
    crowd[0].say(&format!("send,{me},in between"));
    assert!(crowd[0].ask("help").starts_with("Your ID: "));
    let mut infos = 0;
    let mut others = Vec::new();
    while infos < 10_000 {
        let heard = asks.hear();
        if heard.starts_with(&format!("Your ID: {me}\n")) {
            infos += 1;
        } else {
            others.push(heard);
        }
    }
    assert_eq!(others, [format!("{}:in between", crowd[0].id)]);
    let grew = peak_memory(&server) - before;
    assert!(grew < 4 << 20, "{grew} bytes more for a queue of 16 KiB");
    assert_eq!(server.metric("switchboard_out_queue_overflows_total"), 0.0);
}

/// Queues of connections being closed were once not counted anywhere: reconnecting again and
/// again took memory for `close_timeout` each time.
#[test]
fn those_who_are_being_closed_cannot_hold_more_than_a_part_of_what_may_wait() {
    let settings = [
        "shards=1",
        "out_queue_max_bytes=1MiB",
        "out_queues_max_bytes=8MiB",
        "out_queue_stall_timeout=1h",
        "close_timeout=1h",
    ];
    let server = Server::with(&settings);
    let mut flood = Wire::open(&server);
    let before = peak_memory(&server);
    let slow: Vec<Wire> = (0..24)
        .map(|_| {
            let slow = Wire::open_small(&server);
            send_until_gone(&mut flood, slow.id, &"x".repeat(1_000_000), 100);
            slow
        })
        .collect();
    let grew = peak_memory(&server) - before;
    assert!(grew < 32 << 20, "{grew} bytes more for 8 MiB of queues and a quarter of that");
    drop(slow);
}
