//! In which order what is sent goes, at once or when it has waited, and how far windows let it.

use bytes::Bytes;

use super::{
    streams::{block_output, mesh, unblock_output},
    *,
};
use crate::{event::StreamId, input::Payload};

#[test]
fn what_nothing_waits_before_goes_at_once() {
    let mut probe = Probe::serving(1, &mesh());
    probe.answer(1, Then::More);
    assert_eq!(probe.send(1, 20_000, Then::More), 20_000);
    probe.trailers(1);
    let frames = frames(&probe.take_output());
    let expected = [
        "> HEADERS 1",
        "> DATA 1 16384",
        "> DATA 1 3616",
        "> HEADERS 1 end",
    ];
    assert_eq!(frames, expected);
    probe.check(&[]);
}

#[test]
fn control_frames_go_before_heads_and_heads_before_bodies() {
    let mut probe = Probe::serving(3, &mesh());
    probe.answer(1, Then::More);
    probe.take_output();
    block_output(&mut probe);
    assert_eq!(probe.send(1, 5, Then::More), 0);
    probe.trailers(1);
    probe.answer(3, Then::More);
    assert_eq!(probe.send(3, 6, Then::End), 0);
    probe.answer(5, Then::End);
    probe.feed(&words(Kind::Ping, 0, 0, &[1, 2]));
    assert_eq!(probe.connection.waiting_bytes(), 11);
    unblock_output(&mut probe);
    probe.check(&[
        "1 sent 5",
        "3 sent 6",
        "> Ping 0 ack",
        "> HEADERS 3",
        "> HEADERS 5 end",
        "> DATA 1 5",
        "> HEADERS 1 end",
        "> DATA 3 6 end",
    ]);
    assert_eq!(probe.connection.waiting_bytes(), 0);
}

#[test]
fn bodies_take_turns() {
    let mut probe = Probe::serving(2, &mesh());
    for stream in [1, 3] {
        probe.answer(stream, Then::More);
    }
    probe.take_output();
    block_output(&mut probe);
    for piece in 0..400 {
        probe.send(1, 100, if piece == 399 { Then::End } else { Then::More });
    }
    probe.send(3, 20_000, Then::End);
    unblock_output(&mut probe);
    probe.check(&[
        "1 sent 40000",
        "3 sent 20000",
        "> DATA 1 16384",
        "> DATA 3 16384",
        "> DATA 1 16384",
        "> DATA 3 3616 end",
        "> DATA 1 7232 end",
    ]);
}

#[test]
fn nobody_passes_those_who_wait() {
    let mut probe = Probe::serving(3, &mesh());
    for stream in [1, 3] {
        probe.answer(stream, Then::More);
    }
    probe.take_output();
    block_output(&mut probe);
    probe.send(1, 5, Then::More);
    probe.answer(5, Then::More);
    unblock_output(&mut probe);
    assert_eq!(probe.send(3, 6, Then::More), 0);
    probe.check(&[
        "1 sent 5",
        "3 sent 6",
        "> HEADERS 5",
        "> DATA 1 5",
        "> DATA 3 6",
    ]);
    block_output(&mut probe);
    probe.trailers(5);
    unblock_output(&mut probe);
    assert_eq!(probe.send(3, 6, Then::More), 0);
    probe.check(&["3 sent 6", "> HEADERS 5 end", "> DATA 3 6"]);
}

#[test]
fn a_closed_window_holds_one_stream_and_not_others() {
    let mut probe = Probe::serving(0, &mesh());
    for stream in [1, 3] {
        probe.feed(&headers(stream, Then::More, &request("POST")));
        probe.answer(stream, Then::More);
    }
    probe.check(&["1 POST", "3 POST", "> HEADERS 1", "> HEADERS 3"]);
    assert_eq!(probe.send(1, 70_000, Then::More), 65_535);
    probe.take_output();
    probe.trailers(1);
    assert_eq!(probe.send(3, 3, Then::End), 3);
    probe.check(&["> DATA 3 3 end"]);
    probe.feed(&words(Kind::WindowUpdate, 0, 1, &[1]));
    probe.check(&["1 sent 1", "> DATA 1 1"]);
    probe.feed(&words(Kind::WindowUpdate, 0, 1, &[9_999]));
    probe.check(&["1 sent 4464", "> DATA 1 4464", "> HEADERS 1 end"]);
}

#[test]
fn a_window_may_become_negative() {
    let window = |bytes: u32| {
        let setting = [&4_u16.to_be_bytes()[..], &bytes.to_be_bytes()].concat();
        frame(Kind::Settings, 0, 0, &setting)
    };
    let mut probe = Probe::serving(0, &mesh());
    probe.feed(&headers(1, Then::More, &request("POST")));
    probe.answer(1, Then::More);
    assert_eq!(probe.send(1, 65_000, Then::More), 65_000);
    probe.take_output();
    probe.events.clear();
    assert_eq!(probe.send(1, 1_000, Then::End), 535);
    probe.take_output();
    probe.feed(&window(5));
    probe.check(&["> Settings 0 ack"]);
    probe.feed(&words(Kind::WindowUpdate, 0, 1, &[65_530]));
    probe.check(&[]);
    probe.feed(&window(65));
    probe.check(&["1 sent 60", "> Settings 0 ack", "> DATA 1 60"]);
    probe.feed(&words(Kind::WindowUpdate, 0, 1, &[405]));
    probe.check(&["1 sent 405", "> DATA 1 405 end"]);
}

#[test]
fn the_connections_window_holds_all() {
    let mut probe = Probe::new(Role::Server, &mesh());
    for stream in [1, 3] {
        probe.feed(&headers(stream, Then::More, &request("POST")));
        probe.answer(stream, Then::More);
    }
    probe.check(&["1 POST", "3 POST", "> HEADERS 1", "> HEADERS 3"]);
    assert_eq!(probe.send(1, 65_535, Then::More), 65_535);
    probe.take_output();
    assert_eq!(probe.connection.send_window(), 0);
    assert_eq!(probe.send(3, 2, Then::End), 0);
    // An end needs no window.
    assert_eq!(probe.send(1, 0, Then::End), 0);
    probe.check(&["> DATA 1 0 end"]);
    probe.feed(&words(Kind::WindowUpdate, 0, 0, &[1]));
    probe.check(&["3 sent 1", "> DATA 3 1"]);
    probe.feed(&words(Kind::WindowUpdate, 0, 0, &[5]));
    probe.check(&["3 sent 1", "> DATA 3 1 end"]);
}

#[test]
fn a_shared_body_is_not_copied() {
    let mut probe = Probe::serving(1, &mesh());
    probe.answer(1, Then::More);
    probe.take_output();
    // The last of it is more than a quarter: less would not be worth what it keeps alive.
    let body = Bytes::from(vec![7; 48_000]);
    let addresses = |probe: &mut Probe| {
        let mut places = [IoSlice::new(&[]); 16];
        let used = probe.connection.output().slices(&mut places);
        let places = places[..used].iter().filter(|place| place.len() > 9);
        places.map(|place| place.as_ptr()).collect::<Vec<_>>()
    };
    let expected = [0, 16_384, 32_768].map(|at| body[at..].as_ptr());
    for is_blocked in [false, true] {
        if is_blocked {
            block_output(&mut probe);
        }
        let data = Payload::Shared(body.clone());
        probe.connection.send_data(StreamId(1), data, Then::More);
        if is_blocked {
            unblock_output(&mut probe);
            probe.connection.fill(usize::MAX, &mut probe.heads);
        }
        assert_eq!(addresses(&mut probe), expected);
        probe.take_output();
    }
}

#[test]
fn a_large_head_is_cut_and_put_together() {
    let mut server = Probe::new(Role::Server, &mesh());
    let mut client = Probe::new(Role::Client, &mesh());
    let long = "~".repeat(15_000);
    let mut fields = request("GET").to_vec();
    fields.extend([("a", &*long), ("b", &*long), ("c", &*long)]);
    for (stream, reads) in [(1, 1_000), (3, 100_000)] {
        let opened = client
            .connection
            .open(&head(&fields), Then::End, &mut client.heads);
        assert_eq!(opened, Ok(StreamId(stream)));
        client.connection.fill(usize::MAX, &mut client.heads);
        let output = client.take_output();
        let kinds = frames(&output);
        assert_eq!(kinds[0], format!("> HEADERS {stream} end"));
        assert!(
            kinds[1..]
                .iter()
                .all(|kind| *kind == format!("> Continuation {stream}"))
        );
        assert!(kinds.len() >= 3, "{kinds:?}");
        for read in output.chunks(reads) {
            server.feed(read);
        }
        server.check(&[&format!("{stream} GET end")]);
    }
    assert!(server.connection.block.capacity() <= 4 * 1024);
    assert!(server.connection.partial.capacity() <= 4 * 1024);
}

#[test]
fn a_reset_drops_what_waits() {
    let mut probe = Probe::serving(2, &mesh());
    probe.answer(1, Then::More);
    probe.answer(3, Then::More);
    probe.take_output();
    block_output(&mut probe);
    probe.send(1, 100, Then::More);
    probe.trailers(1);
    probe.send(3, 50, Then::End);
    probe.connection.reset(StreamId(1), Code::CANCEL);
    unblock_output(&mut probe);
    assert_eq!(probe.connection.waiting_bytes(), 50);
    probe.check(&["3 sent 50", "> RST 1 CANCEL", "> DATA 3 50 end"]);
    // What has gone of a stream is not told when it is over.
    block_output(&mut probe);
    probe.feed(&headers(5, Then::More, &request("POST")));
    probe.answer(5, Then::More);
    probe.send(5, 7, Then::More);
    unblock_output(&mut probe);
    probe.connection.fill(usize::MAX, &mut probe.heads);
    probe.connection.reset(StreamId(5), Code::CANCEL);
    probe.check(&["5 POST", "> HEADERS 5", "> DATA 5 7", "> RST 5 CANCEL"]);
    // Nothing happens to streams that are over.
    assert_eq!(probe.send(1, 5, Then::End), 5);
    probe.answer(1, Then::End);
    probe.trailers(1);
    probe.connection.reset(StreamId(1), Code::CANCEL);
    probe.connection.release(StreamId(1), 5);
    probe.feed(&frame(Kind::Data, 0, 1, &[7; 9]));
    probe.check(&[]);
}
