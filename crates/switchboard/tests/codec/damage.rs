//! Damaged input never panics, never stalls, and costs no more memory than the limit allows.

use std::borrow::Cow;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use switchboard::ws::{Decoder, Event, Role};

use crate::cases;
use crate::stream::{BINARY, FIN, PING, Said, TEXT, conversation, decode_reads, frame};

const MAX: usize = 4 << 10;

/// A way to damage a stream.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    Flip(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    /// The rest of the stream from one position is repeated at another.
    Splice(Index, Index),
    CutOff(Index),
}

impl Damage {
    pub(crate) fn apply(&self, stream: &mut Vec<u8>) {
        let len = stream.len();
        match *self {
            Damage::Insert(at, byte) => stream.insert(at.index(len + 1), byte),
            _ if len == 0 => {}
            Damage::Flip(at, bit) => stream[at.index(len)] ^= 1 << bit,
            Damage::Remove(at) => drop(stream.remove(at.index(len))),
            Damage::Splice(to, from) => {
                let again = stream[from.index(len)..].to_vec();
                stream.truncate(to.index(len));
                stream.extend(again);
            }
            Damage::CutOff(at) => stream.truncate(at.index(len)),
        }
    }
}

pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        1 => at().prop_map(Damage::Remove),
        1 => (at(), at()).prop_map(|(to, from)| Damage::Splice(to, from)),
        1 => at().prop_map(Damage::CutOff),
    ]
}

/// Decodes in reads of this length; the decoder's progress is checked as well.
fn survives(role: Role, deflate: bool, stream: &[u8], read_len: usize) {
    let mut decoder = Decoder::new(role, MAX);
    if deflate {
        decoder.allow_deflate();
    }
    let outcome = decode_reads(&mut decoder, stream.chunks(read_len));
    assert!(outcome.is_over() || outcome.consumed == stream.len(), "input is left");
    for said in outcome.said {
        let len = match said {
            Said::Text(text) => text.len(),
            Said::Binary(payload) | Said::Compressed { payload, .. } => payload.len(),
            Said::Ping(payload) | Said::Pong(payload) => {
                assert!(payload.len() <= 125);
                continue;
            }
            Said::EmptyFragment | Said::Close(_) => continue,
        };
        assert!(len <= MAX, "{len} bytes");
    }
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn random_bytes_are_survived(
        stream in vec(any::<u8>(), 0..600),
        deflate: bool,
        read_len in 1usize..100,
    ) {
        survives(Role::Server, deflate, &stream, read_len);
        survives(Role::Client, deflate, &stream, read_len);
    }

    #[test]
    fn a_damaged_conversation_is_survived(
        conversation in conversation(Role::Server, 5),
        damages in vec(damage(), 1..5),
        deflate: bool,
        read_len in 1usize..2_000,
    ) {
        let mut stream = conversation.stream;
        for damage in damages {
            damage.apply(&mut stream);
        }
        survives(Role::Server, deflate, &stream, read_len);
    }
}

#[test]
fn every_first_two_bytes_are_survived_and_judged_alike_in_one_read_and_two() {
    for first in 0..=u8::MAX {
        for second in 0..=u8::MAX {
            for role in [Role::Server, Role::Client] {
                let mut stream = vec![first, second];
                stream.resize(300, 0);
                let whole = decode_reads(&mut Decoder::new(role, 200), [stream.as_slice()]);
                let (one, other) = stream.split_at(1);
                let split = decode_reads(&mut Decoder::new(role, 200), [one, other]);
                assert_eq!(split.said, whole.said, "{first:02X} {second:02X}");
                assert_eq!(split.violation, whole.violation, "{first:02X} {second:02X}");
                assert!(whole.is_over() || whole.consumed == stream.len());
            }
        }
    }
}

#[test]
fn a_decoder_between_messages_is_sixteen_bytes() {
    assert_eq!(size_of::<Decoder>(), 16);
}

/// If memory were reserved for a declared length, these would take 64 GiB.
#[cfg(target_os = "linux")]
#[test]
fn a_declared_length_costs_no_memory() {
    let before = address_space_bytes();
    let mut decoders = Vec::new();
    for _ in 0..64 {
        let mut decoder = Decoder::new(Role::Client, 1 << 30);
        let mut begun = vec![FIN | BINARY, 127];
        begun.extend((1u64 << 30).to_be_bytes());
        begun.extend(b"the first bytes");
        let reads = [begun.as_slice()];
        assert_eq!(decode_reads(&mut decoder, reads).consumed, begun.len());
        decoders.push(decoder);
    }
    let grown = address_space_bytes().saturating_sub(before);
    assert!(grown < 8 << 30, "{grown} bytes for {} decoders", decoders.len());
}

#[cfg(target_os = "linux")]
fn address_space_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("in KiB");
    kib.parse::<u64>().expect("a number") << 10
}

#[test]
fn a_message_in_many_pieces_takes_at_most_twice_its_size() {
    let payload = vec![b'x'; 100_000];
    let mut stream = frame(Role::Server, FIN | TEXT, &payload);
    let mut decoder = Decoder::new(Role::Server, payload.len());
    for piece in stream.chunks_mut(7) {
        let mut rest = piece;
        while !rest.is_empty() {
            let decoded = decoder.decode(rest).expect("it is a good message");
            let consumed = decoded.consumed;
            if let Some(Event::Text(Cow::Owned(text))) = decoded.event {
                assert!(text.capacity() <= 2 * payload.len(), "{}", text.capacity());
                return;
            }
            rest = &mut rest[consumed..];
        }
    }
    panic!("the message never ended");
}

#[test]
fn a_whole_frame_is_lent_out_where_it_lies() {
    for opcode in [TEXT, BINARY, PING] {
        let mut stream = frame(Role::Server, FIN | opcode, b"in place");
        let decoded = Decoder::new(Role::Server, 100).decode(&mut stream).expect("it is good");
        match decoded.event {
            Some(Event::Text(Cow::Borrowed(b"in place"))) => assert_eq!(opcode, TEXT),
            Some(Event::Binary(Cow::Borrowed(b"in place"))) => assert_eq!(opcode, BINARY),
            Some(Event::Ping(Cow::Borrowed(b"in place"))) => assert_eq!(opcode, PING),
            other => panic!("{other:?}"),
        }
    }
}
