//! Both directions: the examples of the RFC, what is refused, what is indexed, and random heads.

mod examples;
mod indexing;
mod random;
mod refused;

use super::{Decoder, Encoder, Error, Limits};
use crate::head::{Head, Indexing};

const LIMITS: Limits = Limits {
    list_bytes_max: 64 * 1024,
    fields_max: 1000,
};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let pairs = digits.chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// The fields as lines.
fn lines(head: &Head) -> String {
    let lines = head.iter().map(|field| {
        let [name, value] = [field.name, field.value].map(String::from_utf8_lossy);
        format!("{name}: {value}\n")
    });
    lines.collect()
}

fn head(fields: &[(&str, &str)]) -> Head {
    let mut head = Head::new();
    for (name, value) in fields {
        head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
    }
    head
}

fn encode(encoder: &mut Encoder, head: &Head) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.encode(head, &mut block);
    block
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Head, Error> {
    let mut head = Head::new();
    decoder.decode(block, LIMITS, &mut head).map(|()| head)
}
