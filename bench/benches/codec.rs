//! The codec alone: decoding masked frames as a shard finds them in its buffer, many in one
//! read.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use switchboard::ws::{Decoder, Opcode, Role, mask, write_client_frame, write_server_frame};

const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Message sizes, and the number of messages in one read.
const READS: [(usize, usize); 2] = [(64, 32), (4096, 8)];

/// Returns the bytes of one read: `count` texts of `size` bytes each.
fn masked_texts(size: usize, count: usize) -> Vec<u8> {
    let text = vec![b'x'; size];
    let mut bytes = Vec::new();
    (0..count).for_each(|_| write_client_frame(&mut bytes, Opcode::Text, &text, KEY));
    bytes
}

/// Decodes all of `input`; returns the number of texts.
fn decode_all(decoder: &mut Decoder, mut input: &mut [u8]) -> usize {
    let mut texts = 0;
    while !input.is_empty() {
        let decoded = decoder.decode(input).expect("the frames are well formed");
        texts += usize::from(black_box(decoded.event).is_some());
        let consumed = decoded.consumed;
        input = &mut input[consumed..];
    }
    texts
}

/// Measures the time per message. The bytes are copied back before each pass, as decoding
/// unmasks them.
fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode masked texts");
    for (size, count) in READS {
        let read = masked_texts(size, count);
        let mut input = read.clone();
        let mut decoder = Decoder::new(Role::Server, MAX_MESSAGE_BYTES);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{count} x {size} B"), |bencher| {
            bencher.iter(|| {
                input.copy_from_slice(&read);
                assert_eq!(decode_all(&mut decoder, &mut input), count);
            });
        });
    }
    group.finish();
}

fn unmask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unmask");
    for size in [64, 4096] {
        let mut payload = vec![b'x'; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size} B"), |bencher| {
            bencher.iter(|| mask(black_box(&mut payload), black_box(KEY), 0));
        });
    }
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode text");
    for (size, count) in READS {
        let text = vec![b'x'; size];
        let mut out = Vec::with_capacity(count * (size + 16));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{count} x {size} B"), |bencher| {
            bencher.iter(|| {
                out.clear();
                (0..count).for_each(|_| write_server_frame(&mut out, Opcode::Text, &text));
                black_box(&out);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode, unmask, encode);
criterion_main!(benches);
