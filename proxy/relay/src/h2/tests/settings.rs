//! What settings change, and from when on.

use super::{
    streams::{begin, mesh},
    *,
};

#[test]
fn what_fitted_a_larger_window_goes_before_the_smaller_one_is_acknowledged() {
    let mut probe = Probe::new(Role::Client, &mesh());
    let stream = begin(&mut probe, Then::More);
    assert_eq!(probe.send(stream.0, 10, Then::More), 10);
    let window = [&4_u16.to_be_bytes()[..], &5_u32.to_be_bytes()].concat();
    probe.feed(&frame(Kind::Settings, 0, 0, &window));
    assert_eq!(probe.send(stream.0, 7, Then::More), 0);
    probe.feed(&words(Kind::WindowUpdate, 0, 1, &[6]));
    probe.check(&[
        "1 sent 1",
        "> HEADERS 1",
        "> DATA 1 10",
        "> Settings 0 ack",
        "> DATA 1 1",
    ]);
}

#[test]
fn a_server_gets_a_hundred_streams_until_its_settings_come() {
    let mut probe = Probe::fresh(Role::Client, &mesh());
    for _ in 0..100 {
        probe.open("GET", Then::End);
    }
    assert!(!probe.connection.can_open());
    probe.feed(&frame(Kind::Settings, 0, 0, &[]));
    assert!(probe.connection.can_open());
}

#[test]
fn a_small_table_counts_from_when_the_peer_has_heard_of_it() {
    let limits = Limits {
        table_bytes_max: 0,
        ..mesh()
    };
    let mut probe = Probe::fresh(Role::Server, &limits);
    probe.feed(PREFACE);
    probe.feed(&frame(Kind::Settings, 0, 0, &[]));
    let indexed = [&block(&request("GET"))[..], &[0x40, 1, b'a', 1, b'b']].concat();
    let flags = END_HEADERS | END_STREAM;
    probe.feed(&frame(Kind::Headers, flags, 1, &indexed));
    let again = [&block(&request("GET"))[..], &[0x80 | 62]].concat();
    probe.feed(&frame(Kind::Headers, flags, 3, &again));
    probe.feed(&frame(Kind::Settings, ACK, 0, &[]));
    let resized = [&[0x20][..], &indexed].concat();
    probe.feed(&frame(Kind::Headers, flags, 5, &resized));
    assert_eq!(probe.events, ["1 GET end", "3 GET end", "5 GET end"]);
    probe.feed(&frame(Kind::Headers, flags, 7, &again));
    let code = probe.broken.map(|broken| broken.code);
    assert_eq!(code, Some(Code::COMPRESSION_ERROR));
}

#[test]
fn a_table_that_is_emptied_and_allowed_again_is_emptied() {
    let sizes = |sizes: &[u32]| {
        let settings = sizes
            .iter()
            .map(|size| [&[0, 1], &size.to_be_bytes()[..]].concat());
        frame(Kind::Settings, 0, 0, &settings.collect::<Vec<_>>().concat())
    };
    let check = |values: &[u32], expected: &[u8]| {
        let mut probe = Probe::new(Role::Client, &mesh());
        probe.feed(&sizes(values));
        probe.take_output();
        probe.open("GET", Then::End);
        let block = probe.take_output().split_off(HEADER_BYTES);
        let (updates, rest) = block.split_at(expected.len());
        assert_eq!(updates, expected, "{values:?}");
        assert_eq!(rest[0], 0x82, ":method is next");
    };
    check(&[], &[]);
    check(&[4_096, 10_000], &[]);
    check(&[100], &[0x3f, 69]);
    check(&[0, 4_096], &[0x20, 0x3f, 0xe1, 31]);
    check(&[10_000, 0, 100, 50], &[0x20, 0x3f, 19]);
}
