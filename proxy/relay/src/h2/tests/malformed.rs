//! Every malformed case: raw frames, and the error that the RFC names. Each row is fed whole, in
//! two parts cut at every place, and byte by byte.

use super::*;
use crate::h2::frame::{PADDED, PRIORITY};

/// What `bytes` give: events, then what was written.
fn outcome(mut probe: Probe, parts: &[&[u8]]) -> Vec<String> {
    for part in parts {
        if probe.broken.is_none() {
            probe.feed(part);
        }
    }
    let mut lines = std::mem::take(&mut probe.events);
    lines.extend(frames(&probe.take_output()));
    let is_broken = lines
        .last()
        .is_some_and(|line| line.starts_with("> GOAWAY"));
    assert_eq!(probe.broken.is_some(), is_broken);
    lines
}

#[track_caller]
pub(super) fn check_with(probe: impl Fn() -> Probe, rows: &[Vec<u8>], expected: &[&str]) {
    let bytes = rows.concat();
    assert_eq!(outcome(probe(), &[&bytes]), expected, "whole");
    for at in 0..bytes.len() {
        let (one, two) = bytes.split_at(at);
        assert_eq!(outcome(probe(), &[one, two]), expected, "cut at {at}");
    }
    let each: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(outcome(probe(), &each), expected, "byte by byte");
}

/// Frames of a client.
#[track_caller]
pub(super) fn server(rows: &[Vec<u8>], expected: &[&str]) {
    check_with(
        || Probe::new(Role::Server, &Limits::of_mesh()),
        rows,
        expected,
    );
}

/// Frames of a server, after a request of `method` without a body that is on stream 1.
#[track_caller]
pub(super) fn client_of(method: &str, rows: &[Vec<u8>], expected: &[&str]) {
    let probe = || {
        let mut probe = Probe::new(Role::Client, &Limits::of_mesh());
        probe.open(method, Then::End);
        probe.take_output();
        probe
    };
    check_with(probe, rows, expected);
}

#[track_caller]
pub(super) fn client(rows: &[Vec<u8>], expected: &[&str]) {
    client_of("GET", rows, expected);
}

pub(super) fn get(stream: u32) -> Vec<u8> {
    headers(stream, Then::End, &request("GET"))
}

pub(super) fn post(stream: u32) -> Vec<u8> {
    headers(stream, Then::More, &request("POST"))
}

pub(super) fn data(stream: u32, flags: u8, len: usize) -> Vec<u8> {
    frame(Kind::Data, flags, stream, &vec![7; len])
}

/// A request with one field replaced, or left out.
pub(super) fn but<'a>(
    method: &'a str,
    name: &str,
    value: Option<&'a str>,
) -> Vec<(&'a str, &'a str)> {
    let fields = request(method).into_iter();
    let fields = fields.filter_map(|field| match field {
        (other, was) if other != name => Some((other, was)),
        (same, _) => Some((same, value?)),
    });
    fields.collect()
}

#[test]
fn ordinary_messages_pass() {
    server(&[get(1), get(3)], &["1 GET end", "3 GET end"]);
    server(
        &[post(1), data(1, 0, 3), data(1, END_STREAM, 4)],
        &["1 POST", "1 data 7 end"],
    );
    server(
        &[post(1), data(1, 0, 3), headers(1, Then::End, &[("a", "b")])],
        &["1 POST", "1 data 3", "1 trailers"],
    );
    server(
        &[post(1), data(1, END_STREAM, 0)],
        &["1 POST", "1 data 0 end"],
    );
    client(
        &[
            headers(1, Then::More, &[(":status", "100")]),
            headers(1, Then::More, &[(":status", "200")]),
            data(1, 0, 3),
            headers(1, Then::End, &[("grpc-status", "0")]),
        ],
        &["1 interim", "1 200", "1 data 3", "1 trailers"],
    );
}

#[test]
fn the_preface_is_checked_and_settings_come_first() {
    let check = |bytes: Vec<u8>, expected: &[&str]| {
        let probe = || {
            let mut probe = Probe::fresh(Role::Server, &Limits::of_mesh());
            probe.take_output();
            probe
        };
        check_with(probe, &[bytes], expected);
    };
    let goaway = ["> GOAWAY 0 PROTOCOL_ERROR"];
    check(b"GET / HTTP/1.1\r\n\r\n".to_vec(), &goaway);
    check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX".to_vec(), &goaway);
    let settings = frame(Kind::Settings, 0, 0, &[]);
    check([PREFACE.to_vec(), settings].concat(), &["> Settings 0 ack"]);
    let ack = frame(Kind::Settings, ACK, 0, &[]);
    check([PREFACE.to_vec(), ack].concat(), &goaway);
    check([PREFACE.to_vec(), get(1)].concat(), &goaway);
    let probe = || {
        let mut probe = Probe::fresh(Role::Client, &Limits::of_mesh());
        probe.take_output();
        probe
    };
    check_with(probe, &[words(Kind::Ping, 0, 0, &[0, 0])], &goaway);
    check_with(probe, &[b"HTTP/1.1 400 Bad Request".to_vec()], &goaway);
}

#[test]
fn lengths_of_frames_are_checked() {
    let size = ["> GOAWAY 0 FRAME_SIZE_ERROR"];
    server(
        &[frame(Kind::Data, 0, 1, &[0; 16_385])[..9].to_vec()],
        &size,
    );
    server(&[frame(Kind::Settings, 0, 0, &[0; 5])], &size);
    server(&[frame(Kind::Settings, ACK, 0, &[0; 6])], &size);
    server(&[frame(Kind::Ping, 0, 0, &[0; 7])], &size);
    server(&[frame(Kind::Ping, 0, 0, &[0; 9])], &size);
    server(&[frame(Kind::GoAway, 0, 0, &[0; 7])], &size);
    server(&[frame(Kind::WindowUpdate, 0, 0, &[0; 3])], &size);
    server(&[frame(Kind::WindowUpdate, 0, 0, &[0; 5])], &size);
    server(&[frame(Kind::RstStream, 0, 1, &[0; 3])], &size);
    server(&[frame(Kind::Headers, PADDED, 1, &[])], &size);
    server(&[frame(Kind::Headers, PRIORITY, 1, &[0; 4])], &size);
    server(&[frame(Kind::Data, PADDED, 1, &[])], &size);
    // Of PRIORITY it is the stream's error, which an idle stream cannot have.
    server(&[frame(Kind::Priority, 0, 1, &[0; 4])], &size);
    server(
        &[post(1), frame(Kind::Priority, 0, 1, &[0; 6]), get(3)],
        &[
            "1 POST",
            "1 FRAME_SIZE_ERROR by us",
            "3 GET end",
            "> RST 1 FRAME_SIZE_ERROR",
        ],
    );
}

#[test]
fn frames_are_on_the_right_kind_of_stream() {
    let protocol = ["> GOAWAY 0 PROTOCOL_ERROR"];
    for kind in [Kind::Data, Kind::Headers, Kind::Continuation] {
        server(&[frame(kind, END_HEADERS, 0, &[])], &protocol);
    }
    server(&[frame(Kind::Priority, 0, 0, &[0; 5])], &protocol);
    server(&[words(Kind::RstStream, 0, 0, &[8])], &protocol);
    server(&[frame(Kind::Settings, 0, 1, &[])], &protocol);
    server(&[words(Kind::Ping, 0, 1, &[0, 0])], &protocol);
    server(&[words(Kind::GoAway, 0, 1, &[0, 0])], &protocol);
}

#[test]
fn streams_begin_with_headers_in_order_and_are_odd() {
    let protocol = ["> GOAWAY 0 PROTOCOL_ERROR"];
    server(&[get(2)], &protocol);
    server(&[data(1, 0, 1)], &protocol);
    server(&[words(Kind::RstStream, 0, 1, &[8])], &protocol);
    server(&[words(Kind::WindowUpdate, 0, 1, &[1])], &protocol);
    server(&[words(Kind::WindowUpdate, 0, 2, &[1])], &protocol);
    server(
        &[get(5), get(3)],
        &["5 GET end", "> GOAWAY 5 PROTOCOL_ERROR"],
    );
    server(
        &[get(5), data(7, 0, 0)],
        &["5 GET end", "> GOAWAY 5 PROTOCOL_ERROR"],
    );
    client(&[headers(3, Then::End, &[(":status", "200")])], &protocol);
    client(&[headers(2, Then::End, &[(":status", "200")])], &protocol);
    client(&[data(3, 0, 1)], &protocol);
    client(&[words(Kind::RstStream, 0, 3, &[8])], &protocol);
    // The highest bit of a number is reserved.
    let mut reserved = get(1);
    reserved[5] |= 0x80;
    server(&[reserved], &["1 GET end"]);
}

#[test]
fn push_is_refused() {
    let promise = [&[0, 0, 0, 2][..], &block(&request("GET"))].concat();
    let promise = frame(Kind::PushPromise, END_HEADERS, 1, &promise);
    client(
        std::slice::from_ref(&promise),
        &["> GOAWAY 0 PROTOCOL_ERROR"],
    );
    server(&[promise], &["> GOAWAY 0 PROTOCOL_ERROR"]);
}

#[test]
fn unknown_frames_and_priorities_are_ignored() {
    let mut unknown = frame(Kind::Unknown, 0xff, 77, &[9; 300]);
    server(&[unknown.clone(), get(1)], &["1 GET end"]);
    unknown[3] = 0x10;
    server(&[unknown, get(1)], &["1 GET end"]);
    server(
        &[frame(Kind::Priority, 0, 9, &[0; 5]), get(1)],
        &["1 GET end"],
    );
    // A stream that depends on itself.
    let payload = [&[0, 0, 0, 1, 15][..], &block(&request("GET"))].concat();
    let flags = END_HEADERS | END_STREAM | PRIORITY;
    server(&[frame(Kind::Headers, flags, 1, &payload)], &["1 GET end"]);
}

#[test]
fn header_blocks_are_in_one_piece() {
    let block = block(&request("GET"));
    let open = frame(Kind::Headers, END_STREAM, 1, &block[..5]);
    let middle = frame(Kind::Continuation, 0, 1, &block[5..9]);
    let end = frame(Kind::Continuation, END_HEADERS, 1, &block[9..]);
    server(&[open.clone(), middle.clone(), end.clone()], &["1 GET end"]);
    let protocol = ["> GOAWAY 0 PROTOCOL_ERROR"];
    let within = [
        words(Kind::Ping, 0, 0, &[0, 0]),
        frame(Kind::Continuation, END_HEADERS, 3, &block[5..]),
        frame(Kind::Unknown, 0, 1, &[]),
        get(3),
        data(1, 0, 1),
    ];
    for frame in within {
        server(&[open.clone(), frame.clone()], &protocol);
        server(&[open.clone(), middle.clone(), frame], &protocol);
    }
    server(std::slice::from_ref(&end), &protocol);
    server(
        &[open, middle, end.clone(), end],
        &["1 GET end", "> GOAWAY 1 PROTOCOL_ERROR"],
    );
}

#[test]
fn header_blocks_that_cannot_be_decoded_end_the_connection() {
    let lost = |rows: &[Vec<u8>], last: u32| {
        let goaway = format!("> GOAWAY {last} COMPRESSION_ERROR");
        server(rows, &[&goaway]);
    };
    let index_zero = frame(Kind::Headers, END_HEADERS | END_STREAM, 1, &[0x80]);
    lost(&[index_zero], 0);
    lost(&[frame(Kind::Headers, END_HEADERS, 1, &[0xff, 0x80])], 0);
    let trailers = frame(Kind::Headers, END_HEADERS | END_STREAM, 1, &[0x80]);
    server(
        &[post(1), trailers],
        &["1 POST", "> GOAWAY 1 COMPRESSION_ERROR"],
    );
}

#[test]
fn padding_is_left_out_and_checked() {
    server(
        &[post(1), frame(Kind::Data, PADDED, 1, &[2, 7, 7, 7, 0, 0])],
        &["1 POST", "1 data 3"],
    );
    server(
        &[post(1), frame(Kind::Data, PADDED | END_STREAM, 1, &[1, 0])],
        &["1 POST", "1 data 0 end"],
    );
    server(
        &[post(1), frame(Kind::Data, PADDED, 1, &[2, 7])],
        &["1 POST", "> GOAWAY 1 PROTOCOL_ERROR"],
    );
    let padded = [&[3][..], &block(&request("GET")), &[0, 0, 0]].concat();
    let flags = END_HEADERS | END_STREAM | PADDED;
    server(&[frame(Kind::Headers, flags, 1, &padded)], &["1 GET end"]);
    server(
        &[frame(Kind::Headers, flags, 1, &[3, 0, 0])],
        &["> GOAWAY 0 PROTOCOL_ERROR"],
    );
    let flags = flags | PRIORITY;
    server(
        &[frame(Kind::Headers, flags, 1, &[1, 0, 0, 0, 0, 0])],
        &["> GOAWAY 0 PROTOCOL_ERROR"],
    );
}

#[test]
fn settings_have_their_values() {
    let setting = |id: u16, value: u32| {
        let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        frame(Kind::Settings, 0, 0, &payload)
    };
    let good = |id, value| server(&[setting(id, value)], &["> Settings 0 ack"]);
    let bad = |id, value, code| {
        let goaway = format!("> GOAWAY 0 {code}");
        server(&[setting(id, value)], &[&goaway]);
    };
    good(0x1, 0);
    good(0x1, u32::MAX);
    good(0x2, 0);
    good(0x2, 1);
    bad(0x2, 2, "PROTOCOL_ERROR");
    good(0x3, 0);
    good(0x4, 0);
    good(0x4, 0x7fff_ffff);
    bad(0x4, 0x8000_0000, "FLOW_CONTROL_ERROR");
    bad(0x5, 16_383, "PROTOCOL_ERROR");
    good(0x5, 16_384);
    good(0x5, (1 << 24) - 1);
    bad(0x5, 1 << 24, "PROTOCOL_ERROR");
    good(0x6, 0);
    bad(0x8, 2, "PROTOCOL_ERROR");
    good(0x9, 7);
    good(0xffff, u32::MAX);
    server(
        &[setting(0x8, 1), setting(0x8, 0)],
        &["> Settings 0 ack", "> GOAWAY 0 PROTOCOL_ERROR"],
    );
    client(&[setting(0x2, 1)], &["> GOAWAY 0 PROTOCOL_ERROR"]);
    client(&[setting(0x3, 7)], &["streams 7", "> Settings 0 ack"]);
}

#[test]
fn windows_neither_overflow_nor_grow_by_nothing() {
    let update = |stream, n| words(Kind::WindowUpdate, 0, stream, &[n]);
    server(&[update(0, 0)], &["> GOAWAY 0 PROTOCOL_ERROR"]);
    server(&[update(0, 0x8000_0000)], &["> GOAWAY 0 PROTOCOL_ERROR"]);
    server(&[update(0, 0x7fff_ffff - 65_535)], &[]);
    server(
        &[update(0, 0x7fff_ffff - 65_534)],
        &["> GOAWAY 0 FLOW_CONTROL_ERROR"],
    );
    server(
        &[post(1), update(1, 0), get(3)],
        &[
            "1 POST",
            "1 PROTOCOL_ERROR by us",
            "3 GET end",
            "> RST 1 PROTOCOL_ERROR",
        ],
    );
    server(
        &[post(1), update(1, 0x7fff_ffff), get(3)],
        &[
            "1 POST",
            "1 FLOW_CONTROL_ERROR by us",
            "3 GET end",
            "> RST 1 FLOW_CONTROL_ERROR",
        ],
    );
    // By SETTINGS it is the connection's error (6.9.2).
    let settings = [&4_u16.to_be_bytes()[..], &65_536_u32.to_be_bytes()].concat();
    server(
        &[
            post(1),
            update(1, 0x7fff_ffff - 65_535),
            frame(Kind::Settings, 0, 0, &settings),
        ],
        &["1 POST", "> GOAWAY 1 FLOW_CONTROL_ERROR"],
    );
}

#[test]
fn nobody_sends_over_a_window() {
    let limits = Limits {
        stream_window: 10,
        ..Limits::of_mesh()
    };
    let check = |rows: &[Vec<u8>], expected: &[&str]| {
        check_with(|| Probe::new(Role::Server, &limits), rows, expected);
    };
    check(&[post(1), data(1, 0, 10)], &["1 POST", "1 data 10"]);
    check(
        &[post(1), data(1, 0, 10), data(1, 0, 1), get(3)],
        &[
            "1 POST",
            "1 data 10",
            "1 FLOW_CONTROL_ERROR by us",
            "3 GET end",
            "> RST 1 FLOW_CONTROL_ERROR",
        ],
    );
    // Padding counts, and returns at once.
    let padded = frame(Kind::Data, PADDED, 1, &[5, 7, 7, 0, 0, 0, 0, 0]);
    check(
        &[post(1), padded.clone()],
        &["1 POST", "1 data 2", "> WINDOW 1 6"],
    );
    check(
        &[post(1), padded.clone(), padded],
        &["1 POST", "1 data 4", "> WINDOW 1 6", "> WINDOW 1 6"],
    );
    let padded = frame(Kind::Data, PADDED, 1, &[10; 11]);
    check(
        &[post(1), padded],
        &[
            "1 POST",
            "1 FLOW_CONTROL_ERROR by us",
            "> RST 1 FLOW_CONTROL_ERROR",
        ],
    );
}

#[test]
fn a_half_that_is_closed_takes_nothing() {
    for late in [
        data(1, 0, 1),
        data(1, END_STREAM, 0),
        headers(1, Then::End, &[]),
    ] {
        server(
            &[get(1), late, get(3)],
            &[
                "1 GET end",
                "1 STREAM_CLOSED by us",
                "3 GET end",
                "> RST 1 STREAM_CLOSED",
            ],
        );
    }
    let update = words(Kind::WindowUpdate, 0, 1, &[1]);
    let priority = frame(Kind::Priority, 0, 1, &[0; 5]);
    server(&[get(1), update, priority], &["1 GET end"]);
}

#[test]
fn a_stream_that_is_over_takes_nothing() {
    let over = headers(1, Then::End, &[(":status", "200")]);
    client(
        &[over.clone(), data(1, 0, 1)],
        &["1 200 end", "> RST 1 STREAM_CLOSED"],
    );
    client(
        &[over.clone(), over.clone()],
        &["1 200 end", "> RST 1 STREAM_CLOSED"],
    );
    let update = words(Kind::WindowUpdate, 0, 1, &[0x7fff_ffff]);
    let reset = words(Kind::RstStream, 0, 1, &[0]);
    client(&[over, update, reset], &["1 200 end"]);
    let reset = words(Kind::RstStream, 0, 1, &[8]);
    server(
        &[
            post(1),
            reset.clone(),
            reset.clone(),
            data(1, 0, 1),
            data(1, 0, 1),
        ],
        &["1 POST", "1 CANCEL by peer", "> RST 1 STREAM_CLOSED"],
    );
    server(
        &[post(1), reset, headers(1, Then::End, &[])],
        &["1 POST", "1 CANCEL by peer", "> GOAWAY 1 STREAM_CLOSED"],
    );
}

#[test]
fn a_stream_that_we_reset_may_go_on_for_a_while() {
    server(
        &[
            headers(1, Then::More, &but("GET", ":path", Some(""))),
            data(1, 0, 9),
            words(Kind::WindowUpdate, 0, 1, &[0]),
            headers(1, Then::End, &[("a", "b")]),
            words(Kind::RstStream, 0, 1, &[8]),
            get(3),
        ],
        &["3 GET end", "> RST 1 PROTOCOL_ERROR"],
    );
}

#[test]
fn a_goodbye_is_not_taken_back() {
    let goaway = |last| words(Kind::GoAway, 0, 0, &[last, 0]);
    server(
        &[goaway(7), goaway(7), goaway(3), get(1)],
        &[
            "goodbye 7 NO_ERROR",
            "goodbye 7 NO_ERROR",
            "goodbye 3 NO_ERROR",
            "1 GET end",
        ],
    );
    client(
        &[goaway(1), goaway(3)],
        &["goodbye 1 NO_ERROR", "> GOAWAY 0 PROTOCOL_ERROR"],
    );
    client(
        &[words(Kind::GoAway, 0, 0, &[0, 11, 77, 78])],
        &["goodbye 0 ENHANCE_YOUR_CALM", "1 REFUSED_STREAM by peer"],
    );
}
