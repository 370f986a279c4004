//! permessage-deflate: used if both want it, harmless if a peer cheats.

use std::io::Write;
use std::net::TcpStream;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::slow::peak_memory;
use super::wire::{Frame, REQUEST, TEXT, Wire, frame, read_head, request_with};
use crate::server::Server;
use crate::v1::client::V1;

/// FIN, RSV1 and text.
const DEFLATED: u8 = 0xC1;
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];
const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

const TURNS: &str = "switchboard_shard_turns_total{shard=\"0\"}";

/// A hand-written client of permessage-deflate.
struct Deflated {
    wire: Wire<TcpStream>,
    compress: Compress,
    decompress: Decompress,
    takeover: bool,
}

impl Deflated {
    fn open(server: &Server) -> Deflated {
        let wire = Wire::over(server.socket(), &request_with(OFFER));
        let answer = "\r\nSec-WebSocket-Extensions: permessage-deflate";
        assert!(wire.head.contains(answer), "{}", wire.head);
        Deflated {
            takeover: !wire.head.contains("no_context_takeover"),
            wire,
            compress: Compress::new(Compression::best(), false),
            decompress: Decompress::new(false),
        }
    }

    fn deflate(&mut self, text: &[u8]) -> Vec<u8> {
        if !self.takeover {
            self.compress.reset();
        }
        let mut out = Vec::with_capacity(text.len() + 1024);
        self.compress.compress_vec(text, &mut out, FlushCompress::Sync).unwrap();
        assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
        out
    }

    fn say(&mut self, text: &str) {
        let payload = self.deflate(text.as_bytes());
        self.wire.bytes(&frame(DEFLATED, &payload));
    }

    /// Returns the next text, and its length on the wire.
    fn hear(&mut self) -> (String, usize) {
        let Frame { first, payload } = self.wire.frame();
        let len = payload.len();
        if first == TEXT {
            return (String::from_utf8(payload).unwrap(), len);
        }
        assert_eq!(first, DEFLATED);
        if !self.takeover {
            self.decompress.reset(false);
        }
        let mut out = Vec::with_capacity(1 << 20);
        let input = [payload.as_slice(), &TAIL].concat();
        self.decompress.decompress_vec(&input, &mut out, FlushDecompress::Sync).unwrap();
        (String::from_utf8(out).unwrap(), len)
    }
}

#[test]
fn it_is_off_by_default() {
    let server = Server::start();
    let wire = Wire::over(server.socket(), &request_with(OFFER));
    assert!(!wire.head.contains("Extensions"), "{}", wire.head);
}

#[test]
fn large_messages_are_compressed_and_small_ones_are_not() {
    let server = Server::with(&["compression=true"]);
    let (mut a, mut b) = (Deflated::open(&server), Deflated::open(&server));
    for text in ["short".to_owned(), "long ".repeat(20_000), "größer ".repeat(100)] {
        a.say(&format!("send,{},{text}", b.wire.id));
        let (heard, bytes) = b.hear();
        assert_eq!(heard, format!("{}:{text}", a.wire.id));
        if text.len() > 256 {
            assert!(bytes < text.len() / 4, "{bytes} bytes for {}", text.len());
        } else {
            assert_eq!(bytes, heard.len(), "a short one goes as it is");
        }
    }
}

#[test]
fn peers_with_and_without_compression_understand_each_other() {
    let server = Server::with(&["compression=true", "shards=2"]);
    let (mut with, mut without) = (Deflated::open(&server), Wire::over(server.socket(), REQUEST));
    assert!(!without.head.contains("Extensions"), "nothing that was not offered");
    let text = "the same text ".repeat(1000);
    with.say(&format!("send,{},{text}", without.id));
    assert_eq!(without.hear(), format!("{}:{text}", with.wire.id));
    without.say(&format!("send,{},{text}", with.wire.id));
    assert_eq!(with.hear().0, format!("{}:{text}", without.id));
    // Compression is allowed, not required.
    with.wire.say(&format!("send,{},as it is", without.id));
    assert_eq!(without.hear(), format!("{}:as it is", with.wire.id));
}

#[test]
fn a_kept_window_makes_repeated_messages_smaller() {
    let settings = ["compression=true", "compression_context_takeover=true"];
    let server = Server::with(&settings);
    let (mut a, mut b) = (Deflated::open(&server), Deflated::open(&server));
    assert!(a.takeover, "{}", a.wire.head);
    // Hard to compress by itself, but easy once it has been seen.
    let text: String = (0..3000_u32)
        .map(|n| {
            char::from(b'a' + (n.wrapping_mul(n).wrapping_mul(2_654_435_761) >> 24) as u8 % 26)
        })
        .collect();
    let mut bytes = Vec::new();
    for n in 0..4 {
        a.say(&format!("send,{},{n}{text}", b.wire.id));
        let (heard, len) = b.hear();
        assert_eq!(heard, format!("{}:{n}{text}", a.wire.id));
        bytes.push(len);
    }
    assert!(bytes[1] < bytes[0] / 10 && bytes[3] < bytes[0] / 10, "{bytes:?}");
}

#[test]
fn a_compressed_message_in_fragments_arrives() {
    let server = Server::with(&["compression=true"]);
    let (mut from, mut to) = (Deflated::open(&server), Wire::open(&server));
    let text = "in pieces ".repeat(100);
    let payload = from.deflate(format!("send,{},{text}", to.id).as_bytes());
    let (first, rest) = payload.split_at(payload.len() / 2);
    from.wire.bytes(&frame(DEFLATED & 0x7F, first));
    from.wire.bytes(&frame(0x80, rest));
    assert_eq!(to.hear(), format!("{}:{text}", from.wire.id));
}

/// One read once asked for 85 MB to be deflated: turns took half a minute, longer than systemd's
/// watchdog waits.
#[test]
fn one_read_does_not_have_more_deflated_in_a_turn_than_the_bound() {
    let server = Server::with(&["compression=true", "shards=1"]);
    // Makes a page of some 5 KB; these devices are away, and listed.
    let _away: Vec<_> = (0..100).map(|_| V1::anonymous(&server).leave()).collect();
    let headers = format!("{OFFER}Sec-WebSocket-Protocol: switchboard.v1.json\r\n");
    let mut stream = server.socket();
    stream.write_all(request_with(&headers).as_bytes()).unwrap();
    let head = read_head(&mut stream);
    let mut asks = Wire { stream, id: 0, head };
    asks.say(r#"{"type":"hello","ephemeral":true}"#);
    asks.frame();
    let before = server.metric(TURNS);
    let request = frame(TEXT, br#"{"type":"devices","id":"1"}"#);
    asks.bytes(&request.repeat(1_000));
    for n in 0..1_000 {
        assert_eq!(asks.frame().first, DEFLATED, "answer {n}");
    }
    // 5 MB in all, of which a turn deflates 128 KiB and a page; it was once a single turn for
    // all.
    let turns = server.metric(TURNS) - before;
    assert!(turns > 30.0, "{turns} turns");
}

/// A kilobyte of it would become a megabyte in the server.
#[test]
fn a_bomb_is_too_big_and_costs_nobody_else() {
    let server = Server::with(&["compression=true", "max_message_bytes=64KiB", "shards=1"]);
    let (mut bomber, mut other) = (Deflated::open(&server), Deflated::open(&server));
    let bomb = bomber.deflate(&vec![b'a'; 50 << 20]);
    assert!(bomb.len() < 64 << 10);
    bomber.wire.bytes(&frame(DEFLATED, &bomb));
    assert_eq!(bomber.wire.end().0, Some(1009));
    // The contexts belong to the whole shard.
    other.say("help");
    assert!(other.hear().0.starts_with("Your ID: "));
}

/// One read of 64 KiB was once inflated to 60 MiB, all of which was put into the shard's queues
/// before a budget was checked.
#[test]
fn one_read_is_not_inflated_to_more_than_a_turn_may_bring() {
    let server = Server::with(&["compression=true", "shards=1"]);
    let mut bomber = Deflated::open(&server);
    let mut receivers: Vec<Wire> = (0..50).map(|_| Wire::open(&server)).collect();
    let text = "x".repeat(1_000_000);
    let bombs: Vec<u8> = receivers
        .iter()
        .flat_map(|Wire { id, .. }| {
            frame(DEFLATED, &bomber.deflate(format!("send,{id},{id}{text}").as_bytes()))
        })
        .collect();
    assert!(bombs.len() < 60_000, "one read: {}", bombs.len());
    let before = peak_memory(&server);
    std::thread::scope(|scope| {
        for to in &mut receivers {
            scope.spawn(|| assert!(to.hear().ends_with(&text)));
        }
        bomber.wire.bytes(&bombs);
    });
    bomber.say("help");
    assert!(bomber.hear().0.starts_with("Your ID: "), "all of it was carried out");
    let grew = peak_memory(&server) - before;
    assert!(grew < 24 << 20, "{grew} bytes more");
}

#[test]
fn a_damaged_message_is_1007_and_costs_nobody_else() {
    let server = Server::with(&["compression=true", "shards=1"]);
    let mut other = Deflated::open(&server);
    let mut not_text = Deflated::open(&server);
    let not_utf8 = not_text.deflate(b"help \xFF");
    for payload in [&[0xFF; 40][..], &[0x06, 0, 0, 0], &not_utf8] {
        let mut cheat = Deflated::open(&server);
        cheat.wire.bytes(&frame(DEFLATED, payload));
        assert_eq!(cheat.wire.end().0, Some(1007), "{payload:?}");
        other.say("help");
        assert!(other.hear().0.starts_with("Your ID: "));
    }
}

#[test]
fn the_compression_bit_in_the_wrong_place_is_a_violation() {
    let server = Server::with(&["compression=true"]);
    for bytes in [
        frame(0xC9, b"a ping"),
        [frame(0x01, b"a"), frame(0xC0, b"a")].concat(),
        frame(0xE1, b"with RSV2"),
    ] {
        let mut cheat = Deflated::open(&server);
        cheat.wire.bytes(&bytes);
        assert_eq!(cheat.wire.end().0, Some(1002));
    }
    let mut never_offered = Wire::open(&server);
    never_offered.bytes(&frame(DEFLATED, b"help"));
    assert_eq!(never_offered.end().0, Some(1002));
}
