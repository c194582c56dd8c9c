//! What a header block costs: a call's nine ordinary headers, alone and with a trace of its own.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use heddle_relay::{
    head::{Head, Indexing},
    hpack::{Decoder, Encoder, Limits},
};

const LIMITS: Limits = Limits {
    list_bytes_max: 64 * 1024,
    fields_max: 100,
};

const CALL: [(&str, &str); 9] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/users.v1.Users/Get"),
    (":authority", "user-service:8080"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.62.1"),
    ("te", "trailers"),
    ("grpc-accept-encoding", "identity, deflate, gzip"),
    ("x-tenant", "blue-team-7"),
];

/// Traces, so many that none is remembered when it comes again.
const TRACES: u32 = 1024;

fn call() -> Head {
    let mut head = Head::new();
    for (name, value) in CALL {
        head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
    }
    head
}

fn traced(n: u32) -> Head {
    let mut head = call();
    let id = n.wrapping_mul(0x9e37_79b9);
    let trace = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b71{id:08x}-01");
    head.push(b"traceparent", trace.as_bytes(), Indexing::Allowed);
    head
}

/// Heads as they come from a connection, which has them in its table, and their blocks.
struct Steady {
    encoder: Encoder,
    decoder: Decoder,
    passed: Vec<(Vec<u8>, Head)>,
}

impl Steady {
    fn of(heads: &[Head]) -> Self {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        let mut pass = |head: &Head| {
            let (mut block, mut decoded) = (Vec::new(), Head::new());
            encoder.encode(head, &mut block);
            let taken = decoder.decode(&block, LIMITS, &mut decoded);
            taken.expect("it is well formed");
            (block, decoded)
        };
        for _ in 0..4 {
            pass(&call());
        }
        let passed = heads.iter().map(pass).collect();
        Self {
            encoder,
            decoder,
            passed,
        }
    }
}

fn check(criterion: &mut Criterion, name: &str, heads: &[Head]) {
    let mut steady = Steady::of(heads);
    let mut decoded = Head::new();
    let mut turns = (0..heads.len()).cycle();
    criterion.bench_function(&format!("decode/{name}"), |bench| {
        bench.iter(|| {
            let turn = turns.next().expect("it has no end");
            decoded.clear();
            let block = black_box(&steady.passed[turn].0);
            steady.decoder.decode(block, LIMITS, &mut decoded)
        });
    });
    let mut block = Vec::new();
    criterion.bench_function(&format!("encode/{name}"), |bench| {
        bench.iter(|| {
            let turn = turns.next().expect("it has no end");
            block.clear();
            let head = black_box(&steady.passed[turn].1);
            steady.encoder.encode(head, &mut block);
            block.len()
        });
    });
}

fn hpack(criterion: &mut Criterion) {
    check(criterion, "call", &[call()]);
    let traced: Vec<Head> = (0..TRACES).map(traced).collect();
    check(criterion, "call and trace", &traced);
}

criterion_group!(benches, hpack);
criterion_main!(benches);
