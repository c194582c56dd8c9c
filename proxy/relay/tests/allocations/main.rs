//! The codecs do not allocate once their buffers have grown to what the traffic needs.

mod http1;
mod http2;
mod relay;
#[path = "../relay/scene.rs"]
mod scene;

use allocation_counter::measure;
use heddle_relay::{
    head::{Head, Indexing},
    hpack::{Decoder, Encoder, Limits},
};

const LIMITS: Limits = Limits {
    list_bytes_max: 64 * 1024,
    fields_max: 100,
};

/// A call, with a trace and a message size of its own.
pub(crate) fn request(n: u64, head: &mut Head) {
    let digits = b"0123456789abcdef";
    let mut trace = *b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01";
    for (at, place) in trace[36..52].iter_mut().enumerate() {
        *place = digits[usize::try_from((n >> (4 * at)) % 16).expect("four bits")];
    }
    head.clear();
    for (name, value) in [
        (":method", &b"POST"[..]),
        (":scheme", b"http"),
        (":path", b"/users.v1.Users/Get"),
        (":authority", b"user-service:8080"),
        ("content-type", b"application/grpc"),
        ("te", b"trailers"),
        ("traceparent", &trace),
        // It comes again after a while, and so enters and leaves the table.
        ("x-shard", &trace[50..52]),
        ("x-unknown", b"value"),
    ] {
        head.push(name.as_bytes(), value, Indexing::Allowed);
    }
}

#[test]
fn header_blocks_are_decoded_and_encoded_without_allocating() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let (mut head, mut block, mut decoded) = (Head::new(), Vec::new(), Head::new());
    let mut pass = |n: u64| {
        request(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), &mut head);
        block.clear();
        encoder.encode(&head, &mut block);
        decoded.clear();
        decoder
            .decode(&block, LIMITS, &mut decoded)
            .expect("it is well formed");
        assert_eq!(decoded.list_bytes(), head.list_bytes());
    };
    let cold = measure(|| (0..20_000).for_each(&mut pass));
    assert!(cold.count_total > 0, "the count counts");
    let warm = measure(|| (20_000..40_000).for_each(&mut pass));
    assert_eq!(warm.count_total, 0);
}
