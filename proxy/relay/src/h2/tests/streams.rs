//! Streams beside each other: limits, goodbyes, turns, and what comes too late.

use bytes::Bytes;

use super::*;
use crate::{
    event::StreamId,
    h2::{Refusal, frame::MAX_31_BITS},
    input::Payload,
};

impl Probe {
    /// A server with `streams` posts, which the peer can send as much to as it wants.
    pub(super) fn serving(streams: u32, limits: &Limits) -> Self {
        let mut probe = Self::new(Role::Server, limits);
        probe.feed(&words(Kind::WindowUpdate, 0, 0, &[MAX_31_BITS - 65_535]));
        for n in 0..streams {
            let id = 2 * n + 1;
            probe.feed(&headers(id, Then::More, &request("POST")));
            probe.feed(&words(Kind::WindowUpdate, 0, id, &[1 << 20]));
        }
        probe.take_output();
        probe.events.clear();
        probe
    }

    pub(super) fn answer(&mut self, stream: u32, then: Then) {
        let head = head(&[(":status", "200")]);
        self.connection
            .send_head(StreamId(stream), &head, then, &mut self.heads);
    }

    pub(super) fn send(&mut self, stream: u32, len: usize, then: Then) -> u32 {
        let bytes = vec![7; len];
        let data = Payload::Lent(&bytes);
        self.connection.send_data(StreamId(stream), data, then)
    }

    pub(super) fn trailers(&mut self, stream: u32) {
        let head = head(&[("grpc-status", "0")]);
        self.connection
            .send_trailers(StreamId(stream), &head, &mut self.heads);
    }

    /// What is written when there is room, and what is told of it.
    #[track_caller]
    pub(super) fn check(&mut self, expected: &[&str]) {
        let (can_fill, before) = (self.connection.can_fill(), self.connection.output().len());
        self.connection.fill(usize::MAX, &mut self.heads);
        assert_eq!(can_fill, self.connection.output().len() > before);
        while let Some(event) = self.connection.next_written() {
            self.note(&event);
        }
        let mut lines = std::mem::take(&mut self.events);
        lines.extend(frames(&self.take_output()));
        assert_eq!(lines, expected);
    }
}

pub(super) fn mesh() -> Limits {
    Limits::of_mesh()
}

/// Output that keeps everything from going at once.
pub(super) fn block_output(probe: &mut Probe) {
    let full = probe.connection.limits.output_bytes;
    probe.connection.output().copy(&vec![0; full]);
}

pub(super) fn unblock_output(probe: &mut Probe) {
    let full = probe.connection.limits.output_bytes;
    probe.connection.output().consume(full);
}

#[test]
fn credit_comes_back_in_halves_of_a_window() {
    let limits = Limits {
        stream_window: 1_000,
        connection_window: 65_535,
        ..mesh()
    };
    let mut probe = Probe::serving(1, &limits);
    probe.feed(&frame(Kind::Data, 0, 1, &[7; 900]));
    probe.check(&["1 data 900"]);
    probe.connection.release(StreamId(1), 499);
    probe.check(&[]);
    probe.connection.release(StreamId(1), 1);
    probe.check(&["> WINDOW 1 500"]);
    // The connection's returns on receipt.
    for _ in 0..63 {
        probe.feed(&frame(Kind::Data, 0, 1, &[7; 500]));
        probe.connection.release(StreamId(1), 500);
        probe.take_output();
    }
    probe.events.clear();
    probe.feed(&frame(Kind::Data, 0, 1, &[7; 500]));
    probe.check(&["1 data 500", "> WINDOW 0 32900"]);
    probe.feed(&frame(Kind::Data, END_STREAM, 1, &[]));
    probe.connection.release(StreamId(1), 900);
    probe.check(&["1 data 0 end"]);
}

#[test]
fn streams_have_the_windows_that_the_peer_has_heard_of() {
    let data = |n| frame(Kind::Data, 0, 1, &vec![7; n]);
    let small = Limits {
        stream_window: 10,
        ..mesh()
    };
    let mut probe = Probe::fresh(Role::Server, &small);
    probe.feed(PREFACE);
    probe.feed(&frame(Kind::Settings, 0, 0, &[]));
    probe.feed(&headers(1, Then::More, &request("POST")));
    probe.feed(&data(100));
    probe.feed(&frame(Kind::Settings, ACK, 0, &[]));
    probe.take_output();
    probe.check(&["1 POST", "1 data 100"]);
    // It has used 90 more than it has from now on.
    probe.connection.release(StreamId(1), 100);
    probe.check(&["> WINDOW 1 100"]);
    probe.feed(&data(10));
    probe.check(&["1 data 10"]);
    // Two changes at once: the second is said when the first has been heard.
    probe.connection.set_stream_window(30);
    probe.connection.set_stream_window(50);
    probe.check(&["> Settings 0"]);
    probe.feed(&frame(Kind::Settings, ACK, 0, &[]));
    probe.check(&["> Settings 0"]);
    probe.feed(&data(20));
    probe.check(&["1 data 20"]);
    probe.feed(&frame(Kind::Settings, ACK, 0, &[]));
    probe.feed(&data(21));
    probe.check(&["1 FLOW_CONTROL_ERROR by us", "> RST 1 FLOW_CONTROL_ERROR"]);
}

#[test]
fn a_peer_opens_as_many_streams_as_we_allow() {
    let limits = Limits {
        streams_max: 2,
        ..mesh()
    };
    let mut probe = Probe::serving(2, &limits);
    probe.feed(&headers(5, Then::End, &request("GET")));
    probe.check(&["> RST 5 REFUSED_STREAM"]);
    probe.feed(&frame(Kind::Data, END_STREAM, 1, &[]));
    probe.answer(1, Then::End);
    probe.check(&["1 data 0 end", "> HEADERS 1 end"]);
    probe.feed(&headers(7, Then::End, &request("GET")));
    probe.check(&["7 GET end"]);
}

#[test]
fn we_open_as_many_streams_as_the_peer_allows() {
    let mut probe = Probe::new(Role::Client, &mesh());
    let allow = |n: u32| {
        let setting = [&3_u16.to_be_bytes()[..], &n.to_be_bytes()].concat();
        frame(Kind::Settings, 0, 0, &setting)
    };
    probe.feed(&allow(1));
    probe.check(&["streams 1", "> Settings 0 ack"]);
    probe.open("GET", Then::End);
    assert!(!probe.connection.can_open());
    let refused = probe
        .connection
        .open(&head(&request("GET")), Then::End, &mut probe.heads);
    assert_eq!(refused, Err(Refusal::Busy));
    probe.check(&["> HEADERS 1 end"]);
    probe.feed(&headers(1, Then::End, &[(":status", "200")]));
    probe.open("GET", Then::End);
    probe.check(&["1 200 end", "> HEADERS 3 end"]);
    probe.feed(&allow(0));
    assert!(!probe.connection.can_open());
    probe.check(&["streams 0", "> Settings 0 ack"]);
}

#[test]
fn numbers_of_streams_are_used_up() {
    let mut probe = Probe::new(Role::Client, &mesh());
    probe.connection.next_id = MAX_31_BITS;
    probe.open("GET", Then::End);
    assert!(!probe.connection.can_open());
    probe.check(&["> HEADERS 2147483647 end"]);
}

#[test]
fn a_servers_goodbye_refuses_what_it_did_not_process() {
    let mut probe = Probe::new(Role::Client, &mesh());
    for _ in 0..4 {
        probe.open("POST", Then::More);
    }
    probe.take_output();
    probe.feed(&words(Kind::GoAway, 0, 0, &[MAX_31_BITS, 0]));
    probe.check(&["goodbye 2147483647 NO_ERROR"]);
    assert!(!probe.connection.can_open());
    probe.feed(&words(Kind::GoAway, 0, 0, &[3, 0]));
    probe.check(&[
        "goodbye 3 NO_ERROR",
        "7 REFUSED_STREAM by peer",
        "5 REFUSED_STREAM by peer",
    ]);
    assert_eq!(probe.connection.streams_active(), 2);
    probe.feed(&headers(3, Then::End, &[(":status", "200")]));
    probe.feed(&headers(5, Then::End, &[(":status", "200")]));
    probe.check(&["3 200 end"]);
}

#[test]
fn a_stream_that_waits_is_not_begun_after_a_goodbye() {
    let mut probe = Probe::new(Role::Client, &mesh());
    probe.open("GET", Then::End);
    probe.take_output();
    block_output(&mut probe);
    probe.open("GET", Then::End);
    let goodbye = words(Kind::GoAway, 0, 0, &[MAX_31_BITS, 0]);
    let mut input = Input::lent(&goodbye);
    let connection = &mut probe.connection;
    let event = connection.receive(&mut input, &mut probe.heads, probe.now);
    assert!(matches!(event, Ok(Some(Event::Goodbye { .. }))));
    unblock_output(&mut probe);
    // Also not if it is filled before all is told.
    probe.connection.fill(usize::MAX, &mut probe.heads);
    assert!(probe.connection.output().is_empty());
    probe.feed(&[]);
    probe.check(&["3 REFUSED_STREAM by peer"]);
    assert_eq!(probe.connection.streams_active(), 1);
}

#[test]
fn our_goodbye_has_two_steps() {
    let mut probe = Probe::serving(1, &mesh());
    probe.connection.goodbye_soon();
    probe.connection.ping();
    let output = probe.take_output();
    assert_eq!(
        frames(&output),
        ["> GOAWAY 2147483647 NO_ERROR", "> Ping 0"]
    );
    probe.feed(&headers(3, Then::More, &request("POST")));
    probe.check(&["3 POST"]);
    let mut answer = output[17..].to_vec();
    answer[4] = ACK;
    probe.feed(&answer);
    probe.connection.goodbye(Code::NO_ERROR);
    probe.check(&["pong", "> GOAWAY 3 NO_ERROR"]);
    // What crossed it is ignored, but for the windows and the table.
    let mut indexed = block(&request("POST"));
    indexed.extend_from_slice(&[0x40, 1, b'x', 1, b'y']);
    probe.feed(&frame(Kind::Headers, END_HEADERS, 5, &indexed));
    probe.feed(&frame(Kind::Data, 0, 5, &[7; 100]));
    probe.feed(&words(Kind::WindowUpdate, 0, 5, &[1]));
    probe.feed(&words(Kind::RstStream, 0, 5, &[8]));
    probe.check(&[]);
    // 62 is the entry that the ignored block made.
    probe.feed(&frame(
        Kind::Headers,
        END_HEADERS | END_STREAM,
        3,
        &[0x80 | 62],
    ));
    probe.answer(3, Then::End);
    probe.check(&["3 trailers", "> HEADERS 3 end"]);
    assert!(!probe.connection.is_idle());
    probe.feed(&frame(Kind::Data, END_STREAM, 1, &[]));
    probe.answer(1, Then::End);
    assert!(probe.connection.is_idle());
}

#[test]
fn an_answer_that_nobody_asked_for_is_no_pong() {
    let mut probe = Probe::new(Role::Client, &mesh());
    probe.feed(&words(Kind::Ping, ACK, 0, &[1, 2]));
    probe.connection.ping();
    probe.feed(&words(Kind::Ping, ACK, 0, &[1, 2]));
    let mut answer = probe.take_output();
    assert_eq!(frames(&answer), ["> Ping 0"]);
    answer[4] = ACK;
    probe.feed(&answer);
    probe.feed(&answer);
    probe.check(&["pong"]);
}

#[test]
fn a_header_list_over_its_limit_is_told_and_can_be_answered() {
    let limits = Limits {
        list_bytes_max: 300,
        ..mesh()
    };
    let long = "x".repeat(200);
    let mut fields = request("POST").to_vec();
    fields.push(("a", &long));
    let mut probe = Probe::new(Role::Server, &limits);
    probe.feed(&headers(1, Then::More, &fields));
    probe.feed(&frame(Kind::Data, 0, 1, &[7; 3]));
    probe.feed(&headers(3, Then::End, &fields));
    for stream in [1, 3] {
        probe.answer(stream, Then::End);
        probe.connection.stop(StreamId(stream));
    }
    probe.check(&[
        "1 too large",
        "1 data 3",
        "3 too large end",
        "> HEADERS 1 end",
        "> RST 1 NO_ERROR",
        "> HEADERS 3 end",
    ]);
    assert!(probe.connection.is_idle());
    // Trailers and answers that are too long end the stream.
    probe.feed(&headers(5, Then::More, &request("POST")));
    probe.feed(&headers(5, Then::End, &[("a", &long), ("b", &long)]));
    probe.check(&[
        "5 POST",
        "5 ENHANCE_YOUR_CALM by us",
        "> RST 5 ENHANCE_YOUR_CALM",
    ]);
    let mut probe = Probe::new(Role::Client, &limits);
    probe.open("GET", Then::End);
    probe.take_output();
    probe.feed(&headers(
        1,
        Then::End,
        &[(":status", "200"), ("a", &long), ("b", &long)],
    ));
    probe.check(&["1 ENHANCE_YOUR_CALM by us", "> RST 1 ENHANCE_YOUR_CALM"]);
}

#[test]
fn an_endpoint_gets_no_larger_header_lists_than_it_wants() {
    let bytes = head(&request("GET")).list_bytes();
    let allow = |bytes: usize| {
        let bytes = u32::try_from(bytes).unwrap();
        let setting = [&6_u16.to_be_bytes()[..], &bytes.to_be_bytes()].concat();
        frame(Kind::Settings, 0, 0, &setting)
    };
    let mut probe = Probe::new(Role::Client, &mesh());
    for (allowed, is_sent) in [(bytes - 1, false), (bytes, true), (0, false)] {
        probe.feed(&allow(allowed));
        let head = head(&request("GET"));
        let opened = probe.connection.open(&head, Then::End, &mut probe.heads);
        let expected = [Err(Refusal::HeadTooLarge), Ok(StreamId(1))][usize::from(is_sent)];
        assert_eq!(opened, expected);
    }
    // A client's answers go as they are.
    let mut probe = Probe::serving(1, &mesh());
    probe.feed(&allow(1));
    probe.answer(1, Then::More);
    probe.check(&["> Settings 0 ack", "> HEADERS 1"]);
}

#[test]
fn interim_answers_are_few() {
    let limits = Limits {
        interims_max: 2,
        ..mesh()
    };
    let mut probe = Probe::new(Role::Client, &limits);
    probe.open("GET", Then::End);
    probe.take_output();
    for _ in 0..3 {
        probe.feed(&headers(1, Then::More, &[(":status", "103")]));
    }
    probe.check(&[
        "1 interim",
        "1 interim",
        "1 ENHANCE_YOUR_CALM by us",
        "> RST 1 ENHANCE_YOUR_CALM",
    ]);
}

#[test]
fn a_stream_may_be_reset_in_the_middle_of_a_frame() {
    let mut probe = Probe::serving(1, &mesh());
    let padded = [&[3][..], &[7; 10], &[0; 3]].concat();
    let padded = frame(Kind::Data, crate::h2::frame::PADDED, 1, &padded);
    let (begin, rest) = padded.split_at(14);
    probe.feed(begin);
    probe.connection.reset(StreamId(1), Code::CANCEL);
    probe.feed(rest);
    probe.feed(&headers(3, Then::End, &request("GET")));
    probe.check(&["1 data 4", "3 GET end", "> RST 1 CANCEL"]);
}

#[test]
fn a_stream_that_the_peer_has_not_heard_of_is_not_reset() {
    let mut probe = Probe::new(Role::Client, &mesh());
    block_output(&mut probe);
    probe.open("GET", Then::End);
    probe.open("GET", Then::End);
    probe.connection.reset(StreamId(1), Code::CANCEL);
    unblock_output(&mut probe);
    probe.check(&["> HEADERS 3 end"]);
    let idle = [
        words(Kind::RstStream, 0, 1, &[8]),
        words(Kind::WindowUpdate, 0, 1, &[8]),
        frame(Kind::Data, 0, 1, &[7]),
        headers(1, Then::End, &[(":status", "200")]),
    ];
    for frame in idle {
        let mut probe = Probe::new(Role::Client, &mesh());
        block_output(&mut probe);
        probe.open("GET", Then::End);
        probe.feed(&frame);
        unblock_output(&mut probe);
        probe.check(&["> GOAWAY 0 PROTOCOL_ERROR"]);
    }
}

/// As a client, without writing.
pub(super) fn begin(probe: &mut Probe, then: Then) -> StreamId {
    let head = head(&request("POST"));
    let opened = probe.connection.open(&head, then, &mut probe.heads);
    opened.expect("there is room")
}

#[test]
fn a_request_that_is_cancelled_before_it_was_written_is_never_heard_of() {
    let mut probe = Probe::new(Role::Client, &mesh());
    for n in 0..2_000 {
        let stream = begin(&mut probe, Then::More);
        // Within the windows and the output, or beyond them.
        for _ in 0..n % 5 {
            probe.send(stream.0, 20_000, Then::More);
        }
        if n % 2 == 0 {
            probe.trailers(stream.0);
        }
        probe.connection.reset(stream, Code::CANCEL);
    }
    assert!(probe.connection.is_idle());
    assert_eq!(probe.connection.waiting_bytes(), 0);
    probe.check(&[]);
    // And nothing of the connection's window is lost.
    let stream = begin(&mut probe, Then::More);
    probe.send(stream.0, 65_535, Then::End);
    probe.check(&[
        "> HEADERS 4001",
        "> DATA 4001 16384",
        "> DATA 4001 16384",
        "> DATA 4001 16384",
        "> DATA 4001 16383 end",
    ]);
}

#[test]
fn a_request_goes_in_one_piece_with_what_is_there_of_its_body() {
    let mut probe = Probe::new(Role::Client, &mesh());
    probe.feed(&words(Kind::WindowUpdate, 0, 0, &[1 << 20]));
    let streams = [(); 7].map(|()| begin(&mut probe, Then::More).0);
    let [one, two, three, four, five, six, seven] = streams;
    assert_eq!(probe.send(one, 10, Then::End), 10);
    assert_eq!(probe.send(two, 20, Then::More), 20);
    assert_eq!(probe.send(three, 0, Then::End), 0);
    assert_eq!(probe.send(four, 5, Then::More), 5);
    probe.trailers(four);
    assert_eq!(probe.send(two, 0, Then::End), 0);
    // References wait, as a copy would cost more.
    let shared = Payload::Shared(Bytes::from(vec![7; 3_000]));
    assert_eq!(
        probe
            .connection
            .send_data(StreamId(five), shared, Then::More),
        0
    );
    assert_eq!(probe.send(five, 4, Then::End), 0);
    // No more than the output takes.
    assert_eq!(probe.send(six, 65_535, Then::End), 65_535);
    assert_eq!(probe.send(seven, 1, Then::End), 0);
    probe.check(&[
        "> HEADERS 1",
        "> DATA 1 10 end",
        "> HEADERS 3",
        "> DATA 3 20",
        "> DATA 3 0 end",
        "> HEADERS 5 end",
        "> HEADERS 7",
        "> DATA 7 5",
        "> HEADERS 9",
        "> HEADERS 11",
        "> DATA 11 16384",
        "> DATA 11 16384",
        "> DATA 11 16384",
        "> DATA 11 16383 end",
    ]);
    probe.check(&[
        "9 sent 3004",
        "13 sent 1",
        "> HEADERS 13",
        "> HEADERS 7 end",
        "> DATA 9 3004 end",
        "> DATA 13 1 end",
    ]);
}

#[test]
fn a_connection_at_rest_keeps_little() {
    let mut probe = Probe::serving(1_000, &mesh());
    for n in 0..1_000 {
        probe.feed(&frame(Kind::Data, END_STREAM, 2 * n + 1, &[7; 100]));
        probe.answer(2 * n + 1, Then::More);
        probe.send(2 * n + 1, 10, Then::End);
    }
    assert!(probe.connection.is_idle());
    probe.take_output();
    probe.connection.shrink();
    let tables = probe.connection.decoder.memory_bytes() + probe.connection.encoder.memory_bytes();
    let bytes = probe.connection.memory_bytes() - tables;
    assert!(bytes <= 1_024, "{bytes}, tables {tables}");
}
