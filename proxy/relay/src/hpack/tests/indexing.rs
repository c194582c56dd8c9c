//! Which fields an encoder puts into its table, and how it says so.

use std::collections::HashMap;

use super::{decode, encode, head, hex, lines};
use crate::{
    head::{self, Head, Indexing},
    hpack::{Decoder, Encoder},
    token::Token,
};

/// Blocks that the same field becomes, one after the other.
#[track_caller]
fn check(name: &str, value: &str, indexing: Indexing, blocks: &[&str]) {
    let mut encoder = Encoder::new();
    for block in blocks {
        let mut head = Head::new();
        head.push(name.as_bytes(), value.as_bytes(), indexing);
        assert_eq!(encode(&mut encoder, &head), hex(block), "{name}");
    }
}

#[test]
fn a_field_enters_the_table_on_its_second_sight() {
    for indexing in [Indexing::Allowed, Indexing::Indexed] {
        let twice = ["00 01 61 01 62", "40 01 61 01 62", "be", "be"];
        check("a", "b", indexing, &twice);
        check(":authority", "a", indexing, &["01 01 61", "41 01 61", "be"]);
        check(
            "te",
            "trailers",
            indexing,
            &[
                "00 02 74 65 08 7472 6169 6c65 7273",
                "40 02 74 65 86 4d83 3505 b11f",
                "be",
            ],
        );
    }
}

#[test]
fn fields_of_the_static_table_are_indexed_at_once() {
    check(":method", "POST", Indexing::Allowed, &["83", "83"]);
    check(":status", "200", Indexing::Indexed, &["88"]);
    check(
        "accept-encoding",
        "gzip, deflate",
        Indexing::Allowed,
        &["90"],
    );
    check("age", "", Indexing::Allowed, &["95"]);
}

#[test]
fn what_may_never_be_indexed_is_not() {
    let secret = ["10 01 61 01 62"; 3];
    check("a", "b", Indexing::Never, &secret);
    check(":method", "GET", Indexing::Never, &["12 03 47 45 54"; 3]);
}

#[test]
fn credentials_are_indexed_only_if_their_sender_did() {
    for (name, index) in [("authorization", "1f 08"), ("proxy-authorization", "1f 22")] {
        let never = format!("{index} 01 61");
        check(name, "a", Indexing::Allowed, &[&never, &never, &never]);
    }
    check("set-cookie", "a", Indexing::Allowed, &["1f 28 01 61"; 3]);
    check("cookie", "a", Indexing::Allowed, &["1f 11 01 61"; 3]);
    check(
        "authorization",
        "a",
        Indexing::Indexed,
        &["0f 08 01 61", "57 01 61", "be"],
    );
    check(
        "cookie",
        "a",
        Indexing::Indexed,
        &["0f 11 01 61", "60 01 61", "be"],
    );
    // It cannot be guessed.
    let long = ["0f 11 14 6161 6161 6161 6161 6161 6161 6161 6161 6161 6161"];
    check("cookie", &"a".repeat(20), Indexing::Allowed, &long);
}

#[test]
fn a_secret_stays_one_when_it_is_changed_and_on_its_way() {
    let mut head = Head::new();
    head.push(b"location", b"a", Indexing::Never);
    head.set(Token::Location, b"b");
    let block = encode(&mut Encoder::new(), &head);
    assert_eq!(block, hex("1f 1f 01 62"));
    let next = decode(&mut Decoder::new(4096), &block).unwrap();
    assert_eq!(encode(&mut Encoder::new(), &next), block);
}

#[test]
fn what_is_set_is_not_what_its_sender_indexed() {
    let mut head = Head::new();
    head.push(b"authorization", b"a", Indexing::Indexed);
    head.set(Token::Authorization, b"b");
    assert_eq!(encode(&mut Encoder::new(), &head), hex("1f 08 01 62"));
}

/// What comes once leaves what comes often where it is.
#[test]
fn unique_values_push_nothing_out() {
    let mut encoder = Encoder::new();
    for n in 0..2000 {
        let unique = format!("00-{n:032x}-{n:016x}-01");
        let path = format!("/orders/{n}");
        let often = [
            ("user-agent", "grpc-go"),
            ("x-tenant", "blue"),
            (":authority", "a"),
        ];
        let unique = [("traceparent", &*unique), (":path", &path)];
        let block = encode(&mut encoder, &head(&often));
        if n > 1 {
            assert_eq!(block.len(), often.len(), "{n}");
        }
        encode(&mut encoder, &head(&unique));
        // And one trace, for its name.
        assert!(encoder.table().len() <= often.len() + 1);
    }
}

#[test]
fn a_name_of_no_table_enters_on_its_second_sight() {
    for name in ["traceparent", "x-order-id"] {
        let mut encoder = Encoder::new();
        let mut block = |value: &str| encode(&mut encoder, &head(&[(name, value)]));
        assert_eq!(block("1")[0], 0x00);
        assert_eq!(block("2")[0], 0x40);
        assert_eq!(block("3"), hex("0f 2f 01 33"));
        assert_eq!(block("4"), hex("0f 2f 01 34"));
        assert_eq!(block("2"), hex("be"));
        assert_eq!(block("4"), hex("7e 01 34"));
        // Both have the name.
        let fifth = block("5");
        assert!(
            matches!(fifth[..], [0x0f, 0x2f | 0x30, 1, 0x35]),
            "{fifth:x?}"
        );
        let mut secret = Head::new();
        secret.push(name.as_bytes(), b"6", Indexing::Never);
        let sixth = encode(&mut encoder, &secret);
        assert!(
            matches!(sixth[..], [0x1f, 0x2f | 0x30, 1, 0x36]),
            "{sixth:x?}"
        );
    }
}

/// Two values whose hash is the same: one out of 300,000 pairs of 32 bits almost surely is.
#[test]
fn a_field_is_compared_with_what_has_its_hash() {
    let mut by_hash = HashMap::new();
    let (first, second) = (0..300_000_u32)
        .find_map(|n| {
            let value = n.to_string();
            let hash = head::hash(Token::Other, b"a", value.as_bytes());
            let before = by_hash.insert(hash, value.clone())?;
            Some((before, value))
        })
        .unwrap();
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    for value in [&first, &first, &first, &second, &second, &second, &first] {
        let head = head(&[("a", value)]);
        let decoded = decode(&mut decoder, &encode(&mut encoder, &head)).unwrap();
        assert_eq!(lines(&decoded), lines(&head));
    }
}

/// More names than the table has room for: what is in it is found all the same.
#[test]
fn the_table_may_be_full() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    for n in 0..3000 {
        let names = [n % 7, n % 50, n % 130].map(|n| format!("x-{n}"));
        let fields: Vec<_> = names.iter().map(|name| (&**name, "a")).collect();
        let head = head(&fields);
        let decoded = decode(&mut decoder, &encode(&mut encoder, &head)).unwrap();
        assert_eq!(lines(&decoded), lines(&head), "{n}");
    }
    assert!(encoder.table().len() > 100);
}

#[test]
fn large_fields_stay_out_of_the_table() {
    let mut encoder = Encoder::new();
    let (large, fits) = ("a".repeat(2048 - 32), "b".repeat(2048 - 33));
    for _ in 0..4 {
        encode(&mut encoder, &head(&[("a", &fits), ("a", &large)]));
    }
    assert_eq!(
        encoder.table().fields(),
        [(b"a".to_vec(), fits.into_bytes())]
    );
}

/// What the next block begins with when the peer's SETTINGS say that.
#[track_caller]
fn check_size(settings: &[u32], begins: &str) {
    let mut encoder = Encoder::new();
    for &peer in settings {
        encoder.set_table_bytes_max(peer);
    }
    let method = head(&[(":method", "GET")]);
    assert_eq!(encode(&mut encoder, &method), hex(&format!("{begins} 82")));
    assert_eq!(encode(&mut encoder, &method), [0x82], "it is said once");
}

#[test]
fn the_peer_says_how_large_the_table_may_be() {
    check_size(&[], "");
    check_size(&[4096], "");
    check_size(&[65_536], "");
    check_size(&[u32::MAX], "");
    check_size(&[0], "20");
    check_size(&[100], "3f 45");
    check_size(&[100, 50, 200], "3f 13 3f a9 01");
    check_size(&[0, 4096], "20 3f e1 1f");
    check_size(&[0, 65_536], "20 3f e1 1f");
}

#[test]
fn a_peer_without_a_table_gets_literals() {
    let mut encoder = Encoder::new();
    encoder.set_table_bytes_max(0);
    encode(&mut encoder, &Head::new());
    for _ in 0..3 {
        let block = encode(&mut encoder, &head(&[("a", "b")]));
        assert_eq!(block, hex("00 01 61 01 62"));
    }
    assert_eq!(encoder.table().memory_bytes(), 0);
}

#[test]
fn no_memory_is_taken_before_a_field_needs_it() {
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new(4096);
    let block = encode(&mut encoder, &head(&[(":method", "GET"), (":path", "/")]));
    decode(&mut decoder, &block).unwrap();
    assert_eq!(encoder.memory_bytes(), 0);
    assert_eq!(decoder.memory_bytes(), 0);
}
