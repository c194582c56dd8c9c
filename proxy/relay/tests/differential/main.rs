//! The same bytes of a client for our server and for that of the `h2` crate: the same requests,
//! bodies and trailers, and the same error.
//!
//! And ours with theirs, both ways (`talk`).
//!
//! Bytes are drawn from a seed: ordinary frames of several streams, then one fault. Where the two
//! differ on purpose, [`DIFFERENT`] says how and why.

mod ours;
mod script;
mod talk;
mod theirs;

use std::collections::BTreeMap;

/// What a server made of the bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    streams: BTreeMap<u32, Stream>,
    /// The last GOAWAY with an error.
    goaway: Option<u32>,
    /// RST_STREAM frames.
    resets: BTreeMap<u32, u32>,
}

/// What was heard of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stream {
    /// Pseudo-headers and fields, sorted.
    head: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Option<Vec<(String, Vec<u8>)>>,
    is_ended: bool,
}

/// How a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Error {
    None,
    /// RST_STREAM with that code.
    Stream(u32),
    /// GOAWAY with that code.
    Connection(u32),
}

impl Heard {
    fn error(&self, stream: u32) -> Error {
        match (self.goaway, self.resets.get(&stream)) {
            (Some(code), _) => Error::Connection(code),
            (None, Some(code)) => Error::Stream(*code),
            (None, None) => Error::None,
        }
    }

    /// Takes frames that a server wrote.
    fn frames(&mut self, mut bytes: &[u8]) {
        while let Some((header, rest)) = bytes.split_first_chunk::<9>() {
            let [l1, l2, l3, kind, _, s1, s2, s3, s4] = *header;
            let len = u32::from_be_bytes([0, l1, l2, l3]) as usize;
            let stream = u32::from_be_bytes([s1, s2, s3, s4]);
            let (payload, rest) = rest.split_at(len);
            bytes = rest;
            let word = |at: usize| {
                let bytes = payload[at..at + 4].first_chunk().expect("four of them");
                u32::from_be_bytes(*bytes)
            };
            match kind {
                0x3 => drop(self.resets.insert(stream, word(0))),
                0x7 if word(4) != 0 => self.goaway = Some(word(4)),
                _ => {}
            }
        }
    }
}

/// Faults at which the two differ: ours, theirs, and what RFC 9113 says.
#[rustfmt::skip]
const DIFFERENT: &[(&str, Error, Error, &str)] = &[
    ("DATA without its padding's length", Error::Connection(FRAME_SIZE), Error::Connection(PROTOCOL), "4.2 names FRAME_SIZE_ERROR"),
    ("HEADERS without its priority", Error::Connection(FRAME_SIZE), Error::Connection(PROTOCOL), "4.2 names FRAME_SIZE_ERROR"),
    ("RST_STREAM of 3 bytes", Error::Connection(FRAME_SIZE), Error::Connection(PROTOCOL), "4.2 names FRAME_SIZE_ERROR"),
    ("SETTINGS of 5 bytes", Error::Connection(FRAME_SIZE), Error::Connection(PROTOCOL), "4.2 names FRAME_SIZE_ERROR"),
    ("an acknowledgement with settings", Error::Connection(FRAME_SIZE), Error::Connection(PROTOCOL), "4.2 names FRAME_SIZE_ERROR"),
    ("PING of 7 bytes", Error::Connection(FRAME_SIZE), Error::Connection(PROTOCOL), "4.2 names FRAME_SIZE_ERROR"),
    ("GOAWAY of 7 bytes", Error::Connection(FRAME_SIZE), Error::Connection(PROTOCOL), "4.2 names FRAME_SIZE_ERROR"),
    ("WINDOW_UPDATE of 3 bytes", Error::Connection(FRAME_SIZE), Error::Connection(PROTOCOL), "4.2 names FRAME_SIZE_ERROR"),
    ("PRIORITY of 4 bytes", Error::Stream(FRAME_SIZE), Error::Connection(PROTOCOL), "6.3: of the stream, FRAME_SIZE_ERROR"),
    ("DATA behind the end", Error::Stream(STREAM_CLOSED), Error::Connection(PROTOCOL), "5.1: of the stream, STREAM_CLOSED"),
    ("HEADERS behind the end", Error::Stream(STREAM_CLOSED), Error::Connection(PROTOCOL), "5.1: of the stream, STREAM_CLOSED"),
    ("a window of 2^31", Error::Connection(FLOW_CONTROL), Error::Connection(PROTOCOL), "6.5.2 names FLOW_CONTROL_ERROR"),
    ("WINDOW_UPDATE of zero on a stream", Error::Stream(PROTOCOL), Error::Connection(PROTOCOL), "6.9: of the stream"),
    ("a header block with index 0", Error::Connection(COMPRESSION), Error::Connection(PROTOCOL), "4.3 names COMPRESSION_ERROR"),
    ("a header block that breaks off", Error::Connection(COMPRESSION), Error::Connection(PROTOCOL), "4.3 names COMPRESSION_ERROR"),
    ("a method that is no token", Error::Stream(PROTOCOL), Error::Connection(PROTOCOL), "8.1.1: of the stream"),
    ("an unknown pseudo-header", Error::Stream(PROTOCOL), Error::Connection(PROTOCOL), "8.1.1: of the stream"),
    ("an upper case name", Error::Stream(PROTOCOL), Error::Connection(PROTOCOL), "8.1.1: of the stream"),
    ("a name with a space", Error::Stream(PROTOCOL), Error::Connection(PROTOCOL), "8.1.1: of the stream"),
    ("a value with a line break", Error::Stream(PROTOCOL), Error::Connection(PROTOCOL), "8.1.1: of the stream"),
    ("trailers with a pseudo-header", Error::Stream(PROTOCOL), Error::None, "8.1: malformed"),
    ("no authority", Error::Stream(PROTOCOL), Error::None, "8.3.1: http has one"),
    ("an authority with user information", Error::Stream(PROTOCOL), Error::None, "8.3.1: it must not"),
    ("a host that is not the authority", Error::Stream(PROTOCOL), Error::None, "8.3.1: malformed"),
];

const PROTOCOL: u32 = 0x1;
const FLOW_CONTROL: u32 = 0x3;
const STREAM_CLOSED: u32 = 0x5;
const FRAME_SIZE: u32 = 0x6;
const COMPRESSION: u32 = 0x9;

#[test]
fn ordinary_frames_are_heard_alike() {
    for seed in 0..2_000 {
        let script = script::ordinary(seed);
        let (ours, theirs) = (ours::hear(&script.bytes), theirs::hear(&script.bytes));
        assert_eq!(ours.goaway, None, "seed {seed}");
        assert_eq!(ours, theirs, "seed {seed}");
    }
}

#[test]
fn faults_have_the_same_error() {
    let mut differences = Vec::new();
    for (name, fault) in script::FAULTS {
        for seed in 0..20 {
            let script = script::with_fault(seed, *fault);
            let ours = ours::hear(&script.bytes).error(script.stream);
            let theirs = theirs::hear(&script.bytes).error(script.stream);
            let expected = DIFFERENT.iter().find(|different| different.0 == *name);
            let is_expected = match expected {
                Some(different) => (ours, theirs) == (different.1, different.2),
                None => ours == theirs && ours != Error::None,
            };
            if !is_expected {
                let rfc = expected.map_or("", |different| different.3);
                let line = format!("{name}, seed {seed}: {ours:?}, theirs {theirs:?} {rfc}");
                differences.push(line);
                break;
            }
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
}
