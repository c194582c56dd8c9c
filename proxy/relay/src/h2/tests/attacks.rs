//! Floods: each ends the connection within its bounds, and ordinary use, also heavy, does not.

use std::time::Duration;

use super::*;
use crate::{event::StreamId, h2::Rate, input::Payload};

/// Whether the attacker takes what is said to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Reads,
    DoesNotRead,
}

/// More than any connection lives.
const FRAMES: u32 = 200_000;
/// What a connection may take besides the streams that it was allowed.
const MEMORY: usize = 416 * 1024;

/// Sends what `attack` makes of 0, 1, 2 until the connection ends: after at most `times`.
#[track_caller]
fn flood(
    mut probe: Probe,
    peer: Peer,
    times: u32,
    mut attack: impl FnMut(&mut Probe, u32) -> Vec<u8>,
) {
    let mut n = 0;
    while probe.broken.is_none() {
        assert!(n < FRAMES, "it goes on");
        let bytes = attack(&mut probe, n);
        probe.feed(&bytes);
        probe.events.clear();
        let bytes = probe.connection.memory_bytes();
        assert!(bytes <= MEMORY, "{bytes} bytes of memory after {n}");
        if peer == Peer::Reads {
            probe.take_output();
        }
        n += 1;
    }
    assert_eq!(
        probe.broken.map(|broken| broken.code),
        Some(Code::ENHANCE_YOUR_CALM)
    );
    assert!(n <= times, "after {n}");
}

#[track_caller]
fn flood_server(times: u32, mut attack: impl FnMut(u32) -> Vec<u8>) {
    let probe = Probe::new(Role::Server, &Limits::of_mesh());
    flood(probe, Peer::Reads, times, |_, n| attack(n));
}

#[track_caller]
fn flood_client(times: u32, mut attack: impl FnMut(u32) -> Vec<u8>) {
    let mut probe = Probe::new(Role::Client, &Limits::of_mesh());
    probe.open("POST", Then::More);
    flood(probe, Peer::Reads, times, |_, n| attack(n));
}

fn get(n: u32) -> Vec<u8> {
    headers(2 * n + 1, Then::End, &request("GET"))
}

fn post(n: u32) -> Vec<u8> {
    headers(2 * n + 1, Then::More, &request("POST"))
}

fn answer(probe: &mut Probe, stream: u32, then: Then) {
    let head = head(&[(":status", "200")]);
    let stream = StreamId(stream);
    probe
        .connection
        .send_head(stream, &head, then, &mut probe.heads);
}

#[test]
fn rapid_resets() {
    let rapid = |n| [get(n), words(Kind::RstStream, 0, 2 * n + 1, &[8])].concat();
    flood_server(5_001, rapid);
    // Answers that are ours pay for nothing.
    let probe = Probe::new(Role::Server, &Limits::of_mesh());
    flood(probe, Peer::Reads, 5_001, |probe, n| {
        let answered = 4 * n + 1;
        probe.feed(&get(2 * n));
        answer(probe, answered, Then::End);
        rapid(2 * n + 1)
    });
}

#[test]
fn a_connection_is_worn_by_what_we_reset_and_recovers() {
    let limits = Limits {
        resets_sent: Rate {
            burst: 25,
            per_second: 5,
        },
        ..Limits::of_mesh()
    };
    let mut probe = Probe::new(Role::Client, &limits);
    let reset = |probe: &mut Probe, streams| {
        for _ in 0..streams {
            probe.open("GET", Then::End);
            let last = probe.connection.next_id - 2;
            probe.connection.reset(StreamId(last), Code::CANCEL);
        }
        probe.take_output();
        probe.connection.is_worn(probe.now)
    };
    assert!(!reset(&mut probe, 24));
    assert!(reset(&mut probe, 1));
    assert!(reset(&mut probe, 10));
    probe.now += Duration::from_secs(1);
    assert!(!reset(&mut probe, 0));
    assert!(reset(&mut probe, 5));
    probe.now += Duration::from_secs(60);
    assert!(!reset(&mut probe, 0));
    assert!(!reset(&mut probe, 24));
    assert!(reset(&mut probe, 1));
    // What a server resets does not wear it.
    let mut probe = Probe::new(Role::Server, &limits);
    for n in 0..100 {
        probe.feed(&get(n));
        probe.connection.reset(StreamId(2 * n + 1), Code::CANCEL);
    }
    assert!(!probe.connection.is_worn(probe.now));
}

#[test]
fn resets_that_the_peer_makes_us_do() {
    let faults: [fn(u32) -> Vec<u8>; 6] = [
        |id| words(Kind::WindowUpdate, 0, id, &[0]),
        |id| words(Kind::WindowUpdate, 0, id, &[0x7fff_ffff]),
        |id| frame(Kind::Priority, 0, id, &[0; 4]),
        |id| headers(id, Then::More, &[]),
        |id| headers(id, Then::End, &[("A", "b")]),
        |id| {
            [
                frame(Kind::Data, END_STREAM, id, &[]),
                frame(Kind::Data, 0, id, &[]),
            ]
            .concat()
        },
    ];
    for fault in faults {
        flood_server(5_001, |n| [post(n), fault(2 * n + 1)].concat());
    }
    // Requests that never become streams.
    flood_server(5_001, |n| headers(2 * n + 1, Then::More, &[]));
    flood_server(6_001, get);
    let limits = Limits {
        list_bytes_max: 100,
        ..Limits::of_mesh()
    };
    let probe = Probe::new(Role::Server, &limits);
    flood(probe, Peer::Reads, 5_001, |_, n| get(n));
}

#[test]
fn frames_that_do_nothing() {
    let frames = [
        words(Kind::Ping, 0, 0, &[1, 2]),
        words(Kind::Ping, ACK, 0, &[1, 2]),
        frame(Kind::Settings, 0, 0, &[]),
        frame(Kind::Settings, ACK, 0, &[]),
        words(Kind::WindowUpdate, 0, 0, &[1]),
        words(Kind::WindowUpdate, 0, 1, &[1]),
        frame(Kind::Priority, 0, 7, &[0; 5]),
        frame(Kind::Data, 0, 1, &[]),
        frame(Kind::Data, super::super::frame::PADDED, 1, &[0]),
        frame(Kind::Unknown, 0, 9, &[0; 10]),
        words(Kind::GoAway, 0, 0, &[0x7fff_ffff, 0]),
    ];
    for frame in frames {
        let opened = |n| if n == 0 { post(0) } else { Vec::new() };
        flood_server(10_001, |n| [opened(n), frame.clone()].concat());
        let answered = headers(1, Then::More, &[(":status", "200")]);
        let opened = |n| if n == 0 { answered.clone() } else { Vec::new() };
        flood_client(10_001, |n| [opened(n), frame.clone()].concat());
    }
    // Of streams that are over.
    let over = [
        words(Kind::RstStream, 0, 1, &[8]),
        words(Kind::WindowUpdate, 0, 1, &[8]),
    ];
    for frame in over {
        let begin = [post(0), words(Kind::RstStream, 0, 1, &[8])].concat();
        flood_server(
            10_001,
            |n| if n == 0 { begin.clone() } else { frame.clone() },
        );
    }
    let ended = headers(1, Then::End, &[(":status", "200")]);
    let over = [
        words(Kind::RstStream, 0, 1, &[8]),
        words(Kind::WindowUpdate, 0, 1, &[1 << 20]),
        frame(Kind::Priority, 0, 1, &[0; 5]),
        frame(Kind::Data, 0, 1, &[]),
        ended.clone(),
    ];
    for frame in over {
        for is_ended in [false, true] {
            let mut probe = Probe::new(Role::Client, &Limits::of_mesh());
            probe.open("POST", Then::End);
            match is_ended {
                true => probe.feed(&ended),
                false => probe.connection.reset(StreamId(1), Code::CANCEL),
            }
            flood(probe, Peer::Reads, 10_001, |_, _| frame.clone());
        }
    }
    // Each of another stream.
    let mut probe = Probe::new(Role::Client, &Limits::of_mesh());
    for n in 0..10_000 {
        probe.open("POST", Then::End);
        probe.feed(&headers(2 * n + 1, Then::End, &[(":status", "200")]));
        probe.take_output();
    }
    flood(probe, Peer::Reads, 10_001, |_, n| {
        headers(2 * (n % 10_000) + 1, Then::End, &[(":status", "200")])
    });
    // Windows that change are changed in each stream.
    let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
    for n in 0..1_000 {
        probe.feed(&post(n));
    }
    flood(probe, Peer::Reads, 700, |_, n| {
        let setting = [&4_u16.to_be_bytes()[..], &n.to_be_bytes()].concat();
        frame(Kind::Settings, 0, 0, &setting)
    });
}

#[test]
fn continuations() {
    flood_server(10_002, |n| match n {
        0 => frame(Kind::Headers, 0, 1, &[]),
        _ => frame(Kind::Continuation, 0, 1, &[]),
    });
    flood_server(10_002, |n| match n {
        0 => frame(Kind::Headers, 0, 1, &[]),
        _ => frame(Kind::Continuation, 0, 1, &[0x20]),
    });
    flood_server(11, |n| match n {
        0 => frame(Kind::Headers, 0, 1, &[]),
        _ => frame(Kind::Continuation, 0, 1, &[0; 16_000]),
    });
}

#[test]
fn answers_that_are_asked_for_and_not_read() {
    let unlimited = Rate {
        burst: u32::MAX,
        per_second: 0,
    };
    let limits = Limits {
        resets: unlimited,
        idle_frames: unlimited,
        ..Limits::of_mesh()
    };
    let probe = |role| Probe::new(role, &limits);
    for role in [Role::Server, Role::Client] {
        flood(probe(role), Peer::DoesNotRead, 17_000, |_, _| {
            words(Kind::Ping, 0, 0, &[1, 2])
        });
        flood(probe(role), Peer::DoesNotRead, 32_000, |_, _| {
            frame(Kind::Settings, 0, 0, &[])
        });
    }
    flood(probe(Role::Server), Peer::DoesNotRead, 32_000, |_, n| {
        headers(2 * n + 1, Then::End, &[])
    });
    // Answers wait while the output is long, and their streams stay until then.
    let few = Limits {
        streams_max: 100,
        ..limits.clone()
    };
    let probe = Probe::new(Role::Server, &few);
    flood(probe, Peer::DoesNotRead, 60_000, |probe, n| {
        if n > 0 {
            answer(probe, 2 * n - 1, Then::End);
        }
        probe.connection.fill(usize::MAX, &mut probe.heads);
        assert!(probe.connection.streams_active() <= 100);
        get(n)
    });
}

#[test]
fn long_heads_that_are_not_read() {
    let limits = Limits {
        streams_max: 100,
        ..Limits::of_mesh()
    };
    let bound = 1024 * 1024 + 100 * 8 * 1024 + 2 * 72 * 1024;
    let long = "x".repeat(70_000);
    let long_head = |first: (&str, &str)| head(&[first, ("a", &long)]);
    let mut probe = Probe::new(Role::Server, &limits);
    for n in 0..100 {
        probe.feed(&get(n));
    }
    probe.events.clear();
    let heads = &mut probe.heads;
    for n in 0..1_000 {
        let stream = StreamId(2 * (n % 100) + 1);
        let interim = long_head((":status", "103"));
        probe
            .connection
            .send_head(stream, &interim, Then::More, heads);
        let held = probe.connection.kept_bytes();
        assert!(held < bound + 140_000, "{held}");
    }
    assert!(probe.connection.kept_bytes() > bound / 2);
    // Nobody asks for more when so much was not taken.
    probe.feed(&words(Kind::Ping, 0, 0, &[1, 2]));
    let code = probe.broken.map(|broken| broken.code);
    assert_eq!(code, Some(Code::ENHANCE_YOUR_CALM));
    // As a client we wait.
    let mut probe = Probe::new(Role::Client, &limits);
    let mut fields = request("GET").to_vec();
    fields.push(("a", &long));
    let long_head = head(&fields);
    while probe.connection.can_open() {
        let opened = probe
            .connection
            .open(&long_head, Then::End, &mut probe.heads);
        assert!(opened.is_ok());
    }
    let held = probe.connection.kept_bytes();
    assert!((bound / 2..bound).contains(&held), "{held}");
    while !probe.connection.output().is_empty() || probe.connection.can_fill() {
        probe.connection.fill(usize::MAX, &mut probe.heads);
        probe.take_output();
    }
    assert_eq!(probe.connection.kept_bytes(), 0);
    assert!(probe.connection.can_open());
}

/// What is told of memory is what there is.
#[test]
fn what_is_held_is_counted() {
    let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
    probe.feed(&post(0));
    answer(&mut probe, 1, Then::More);
    probe.take_output();
    assert_eq!(probe.connection.kept_bytes(), 0);
    let held = |probe: &Probe| probe.connection.kept_bytes();
    assert_eq!(probe.send(1, 70_000, Then::More), 65_535);
    assert_eq!(held(&probe), 70_000 + 4 * HEADER_BYTES);
    probe.take_output();
    assert_eq!(held(&probe), 70_000 - 65_535);
    probe.feed(&frame(Kind::Headers, 0, 3, &[0; 100]));
    probe.feed(&frame(Kind::Continuation, 0, 3, &[0; 100])[..50]);
    assert_eq!(held(&probe), 70_000 - 65_535 + 100 + 50);
    probe.connection.reset(StreamId(1), Code::CANCEL);
    probe.take_output();
    assert_eq!(held(&probe), 100 + 50);
}

#[test]
fn credit_that_is_given_and_not_read() {
    // A peer that uploads and never reads makes us say windows.
    let limits = Limits {
        stream_window: 2,
        ..Limits::of_mesh()
    };
    let mut probe = Probe::new(Role::Server, &limits);
    probe.feed(&post(0));
    flood(probe, Peer::DoesNotRead, 32_000, |probe, _| {
        probe.connection.release(StreamId(1), 1);
        frame(Kind::Data, 0, 1, &[7])
    });
}

/// Each SETTINGS opens the window of all streams by a byte, or each WINDOW_UPDATE that of one.
#[test]
fn windows_that_open_by_single_bytes() {
    for is_by_settings in [true, false] {
        let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
        let window = |n: u32| {
            let setting = [&4_u16.to_be_bytes()[..], &n.to_be_bytes()].concat();
            frame(Kind::Settings, 0, 0, &setting)
        };
        probe.feed(&words(Kind::WindowUpdate, 0, 0, &[1 << 30]));
        probe.feed(&window(0));
        for n in 0..1_000 {
            probe.feed(&post(n));
            answer(&mut probe, 2 * n + 1, Then::More);
            probe.send(2 * n + 1, 200, Then::More);
        }
        let mut frames = 0;
        flood(probe, Peer::Reads, 12_000, |probe, n| {
            probe.connection.fill(usize::MAX, &mut probe.heads);
            frames += probe.connection.output().len() / 10;
            match is_by_settings {
                true => window(n + 1),
                false => words(Kind::WindowUpdate, 0, 2 * (n % 1_000) + 1, &[1]),
            }
        });
        assert!(frames < 100_000, "{frames}");
    }
}

#[test]
fn pieces_of_one_byte_are_collected() {
    let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
    probe.feed(&post(0));
    answer(&mut probe, 1, Then::More);
    let window = 256 * 1024;
    let mut waiting = 0;
    for _ in 0..window {
        let byte = Payload::Lent(b"x");
        let sent = probe.connection.send_data(StreamId(1), byte, Then::More);
        waiting += 1 - sent as usize;
    }
    assert!(waiting > 250_000);
    assert_eq!(probe.connection.waiting_bytes(), waiting);
    probe.take_output();
    assert!(probe.connection.memory_bytes() < window + 160 * 1024);
}

#[test]
fn a_frame_that_never_ends_is_kept_once() {
    for kind in [Kind::Headers, Kind::Settings, Kind::Unknown, Kind::Data] {
        let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
        probe.feed(&post(0));
        let stream = if kind == Kind::Settings { 0 } else { 1 };
        let whole = frame(kind, 0, stream, &[0; 16_380]);
        for byte in &whole[..whole.len() - 1] {
            probe.feed(&[*byte]);
        }
        assert_eq!(probe.broken, None);
        assert!(probe.connection.memory_bytes() < 40 * 1024);
    }
}

/// Rounds of what honest peers do, while no time passes.
const ROUNDS: u32 = 20_000;

#[test]
fn a_busy_grpc_client_is_ordinary() {
    let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
    for n in 0..ROUNDS {
        let id = 2 * n + 1;
        probe.feed(&post(n));
        probe.feed(&frame(Kind::Priority, 0, id, &[0; 5]));
        probe.feed(&frame(Kind::Data, 0, id, &[7; 100]));
        // It measures its bandwidth.
        probe.feed(&words(Kind::Ping, 0, 0, &[1, 2]));
        probe.feed(&frame(Kind::Data, END_STREAM, id, &[]));
        answer(&mut probe, id, Then::More);
        let sent = probe
            .connection
            .send_data(StreamId(id), Payload::Lent(&[7; 100]), Then::End);
        assert_eq!(sent, 100);
        probe.take_output();
        probe.feed(&words(Kind::WindowUpdate, 0, id, &[100]));
        probe.feed(&words(Kind::WindowUpdate, 0, 0, &[100]));
        assert_eq!(probe.broken, None, "round {n}");
        probe.events.clear();
    }
    assert!(probe.connection.is_idle());
}

#[test]
fn a_long_upload_is_ordinary() {
    let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
    probe.feed(&post(0));
    for n in 0..ROUNDS {
        probe.feed(&frame(Kind::Data, 0, 1, &[7; 1_000]));
        probe.connection.release(StreamId(1), 1_000);
        probe.feed(&words(Kind::Ping, 0, 0, &[1, 2]));
        assert_eq!(probe.broken, None, "round {n}");
        probe.take_output();
    }
}

#[test]
fn a_long_download_is_ordinary() {
    let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
    probe.feed(&post(0));
    answer(&mut probe, 1, Then::More);
    for n in 0..ROUNDS {
        let data = Payload::Lent(&[7; 1_000]);
        probe.connection.send_data(StreamId(1), data, Then::More);
        probe.take_output();
        probe.feed(&words(Kind::WindowUpdate, 0, 1, &[1_000]));
        probe.feed(&words(Kind::WindowUpdate, 0, 0, &[1_000]));
        assert_eq!(probe.broken, None, "round {n}");
    }
    assert_eq!(probe.connection.waiting_bytes(), 0);
}

/// As Go's HTTP/2 does when its reader has a buffer of 4 KiB.
#[test]
fn a_reader_of_small_pieces_is_ordinary() {
    let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
    probe.feed(&post(0));
    answer(&mut probe, 1, Then::More);
    for n in 0..ROUNDS {
        let data = Payload::Lent(&[7; 16 * 1024]);
        probe.connection.send_data(StreamId(1), data, Then::More);
        probe.take_output();
        for _ in 0..4 {
            probe.feed(&words(Kind::WindowUpdate, 0, 1, &[4 * 1024]));
            probe.feed(&words(Kind::WindowUpdate, 0, 0, &[4 * 1024]));
        }
        assert_eq!(probe.broken, None, "round {n}");
    }
}

#[test]
fn half_of_all_requests_may_be_cancelled() {
    let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
    for n in 0..ROUNDS {
        let id = 4 * n + 1;
        probe.feed(&get(2 * n));
        probe.feed(&get(2 * n + 1));
        probe.connection.served(StreamId(id));
        answer(&mut probe, id, Then::End);
        probe.feed(&words(Kind::RstStream, 0, id + 2, &[8]));
        assert_eq!(probe.broken, None, "round {n}");
        probe.take_output();
        probe.events.clear();
    }
}

#[test]
fn all_streams_may_be_cancelled_at_once() {
    let mut probe = Probe::new(Role::Client, &Limits::of_mesh());
    for _ in 0..1_000 {
        probe.open("GET", Then::End);
    }
    probe.take_output();
    for n in 0..1_000 {
        probe.connection.reset(StreamId(2 * n + 1), Code::CANCEL);
    }
    probe.take_output();
    // Small frames of all of them were on their way.
    for n in 0..1_000 {
        let id = 2 * n + 1;
        probe.feed(&headers(id, Then::More, &[(":status", "200")]));
        for _ in 0..20 {
            probe.feed(&frame(Kind::Data, 0, id, &[7; 100]));
        }
        probe.feed(&headers(id, Then::End, &[("grpc-status", "0")]));
    }
    assert_eq!((probe.broken, probe.events.len()), (None, 0));
    // But not more than their windows.
    let data = frame(Kind::Data, 0, 1, &[7; 16_000]);
    for _ in 0..17 {
        probe.feed(&data);
    }
    assert_eq!(
        probe.broken.map(|broken| broken.code),
        Some(Code::FLOW_CONTROL_ERROR)
    );
}

#[test]
fn keep_alive_for_a_day_is_ordinary() {
    let mut probe = Probe::new(Role::Server, &Limits::of_mesh());
    for _ in 0..24 * 60 * 60 {
        probe.now += Duration::from_secs(1);
        probe.feed(&words(Kind::Ping, 0, 0, &[1, 2]));
        probe.take_output();
    }
    assert_eq!(probe.broken, None);
}

#[test]
fn more_streams_than_are_allowed_before_the_limit_is_known_are_ordinary() {
    let limits = Limits {
        streams_max: 10,
        ..Limits::of_mesh()
    };
    let mut probe = Probe::fresh(Role::Server, &limits);
    probe.feed(PREFACE);
    probe.feed(&frame(Kind::Settings, 0, 0, &[]));
    for n in 0..5_000 {
        probe.feed(&get(n));
    }
    assert_eq!(probe.broken, None);
    assert_eq!(probe.events.len(), 10);
    flood(probe, Peer::Reads, 6_000, |_, n| get(5_000 + n));
}
