//! Which connection takes a request, and who waits for one.

use std::{num::NonZeroU32, time::Duration};

use heddle_policy::{admission::Resource, snapshot::Limits};
use heddle_relay::{
    error::ConnectError,
    event::Then,
    h2,
    head::{Head, Heads, Indexing},
    input::Payload,
    relay::{Closing, ConnId, Speaks},
};

use crate::{
    stand::{Setup, Stand},
    upheaval::Upheavals,
};

#[test]
fn the_connection_that_was_used_last_is_used_next() {
    let mut stand = Stand::new(Setup::default());
    let clients = [stand.client(), stand.client(), stand.client()];
    for client in clients {
        stand.request(client, "GET");
    }
    assert_eq!(stand.endpoints.len(), 3);
    for endpoint in [0, 2, 1] {
        stand.asked_of_all();
        stand.answer(endpoint);
    }
    for expected in [1, 2, 0] {
        stand.request(clients[expected], "GET");
        assert_eq!(stand.asked(), Some(expected));
    }
}

/// Whether a connection that has rested so long is used for a request.
#[track_caller]
fn check_rest(method: &str, rest_ms: u64, is_sidecar: bool, is_reused: bool) {
    let mut stand = Stand::new(Setup {
        upheavals: Upheavals {
            is_meshed: is_sidecar,
            ..Upheavals::default()
        },
        ..Setup::default()
    });
    let client = stand.client();
    stand.request(client, "GET");
    stand.answer(0);
    stand.asked_of_all();
    stand.pass(Duration::from_millis(rest_ms));
    stand.request(client, method);
    assert_eq!(stand.asked(), Some(usize::from(!is_reused)), "{method}");
    let closed: Vec<_> = stand.closed.iter().map(|(conn, ..)| *conn).collect();
    let unfit = if is_reused {
        None
    } else {
        Some(stand.endpoints[0])
    };
    assert_eq!(closed, unfit.as_slice(), "what is unfit goes");
}

#[test]
fn what_may_not_be_repeated_takes_no_connection_that_has_rested_for_long() {
    check_rest("GET", 10_000, false, true);
    check_rest("POST", 900, false, true);
    check_rest("POST", 1_100, false, false);
    check_rest("POST", 1_100, true, true);
}

#[test]
fn a_request_whose_used_connection_broke_goes_over_a_new_one() {
    let mut stand = Stand::new(Setup::default());
    let clients = [stand.client(), stand.client()];
    for client in clients {
        stand.request(client, "GET");
    }
    stand.answer(0);
    stand.answer(1);
    stand.asked_of_all();
    stand.request(clients[0], "GET");
    assert_eq!(stand.asked(), Some(1));
    stand.lose(stand.endpoints[1]);
    assert_eq!(stand.asked(), Some(2));
    stand.answer(2);
    assert_eq!(stand.reasons, [None, None, None]);
}

#[test]
fn a_connection_takes_as_many_requests_as_it_may() {
    let mut stand = Stand::new(Setup {
        limits: Limits {
            requests_per_connection_max: NonZeroU32::new(2),
            ..Limits::UNLIMITED
        },
        ..Setup::default()
    });
    let client = stand.client();
    for expected in [0, 0, 1, 1, 2] {
        stand.request(client, "GET");
        assert_eq!(stand.asked(), Some(expected));
        stand.answer(expected);
    }
    let closed = stand.closed.iter().map(|(conn, how, _)| (*conn, *how));
    let expected = [0, 1].map(|index| (stand.endpoints[index], Closing::Finish));
    assert_eq!(closed.collect::<Vec<_>>(), expected);
    assert_eq!(stand.in_use(Resource::Connections), 1);
}

fn one_connection(timeout: Option<Duration>) -> Stand {
    Stand::new(Setup {
        limits: Limits {
            connections_max: NonZeroU32::new(1),
            pending_max: NonZeroU32::new(2),
            ..Limits::UNLIMITED
        },
        timeout,
        ..Setup::default()
    })
}

#[test]
fn who_finds_every_connection_in_use_waits_in_order() {
    let mut stand = one_connection(None);
    let clients = [(); 5].map(|()| stand.client());
    for client in clients {
        stand.request(client, "GET");
    }
    let full = stand.told(clients[3]);
    assert!(full.starts_with("HTTP/1.1 503"), "{full}");
    assert!(full.contains("x-heddle-reason: overloaded"), "{full}");
    assert_eq!(stand.in_use(Resource::Pending), 2);
    // Whoever goes makes room for another.
    stand.lose(clients[1]);
    assert_eq!(stand.in_use(Resource::Pending), 1);
    let late = stand.client();
    stand.request(late, "GET");
    assert_eq!(stand.in_use(Resource::Pending), 2);
    for (client, waiting) in [(clients[0], 1), (clients[2], 0), (late, 0)] {
        assert_eq!(stand.asked(), Some(0));
        stand.answer(0);
        assert_eq!(stand.in_use(Resource::Pending), waiting);
        assert!(stand.told(client).starts_with("HTTP/1.1 200"));
    }
    assert_eq!(stand.endpoints.len(), 1);
}

#[test]
fn the_wait_for_a_connection_is_bounded_and_no_endpoints_fault() {
    for (timeout, answered_at, status, reason) in [
        (None, 2_000, "503", "overloaded"),
        (Some(1_500), 1_500, "504", "deadline"),
    ] {
        let mut stand = one_connection(timeout.map(Duration::from_millis));
        let other = stand.take_connection();
        let client = stand.client();
        stand.request(client, "GET");
        stand.pass(Duration::from_millis(answered_at - 1));
        assert_eq!(stand.told(client), "", "{reason}");
        stand.pass(Duration::from_millis(7));
        drop(other);
        let told = stand.told(client);
        assert!(told.starts_with(&format!("HTTP/1.1 {status}")), "{told}");
        assert!(told.contains(reason), "{told}");
        assert!(told.contains("every allowed connection"), "{told}");
        assert_eq!(stand.in_use(Resource::Pending), 0);
    }
}

#[test]
fn a_connection_that_another_worker_gives_back_is_seen_soon() {
    let mut stand = one_connection(None);
    let other = stand.take_connection();
    let client = stand.client();
    stand.request(client, "GET");
    assert_eq!(stand.endpoints.len(), 0);
    stand.pass(Duration::from_millis(100));
    drop(other);
    stand.pass(Duration::from_millis(6));
    assert_eq!(stand.asked(), Some(0));
}

#[test]
fn an_idle_connection_that_does_not_fit_makes_room() {
    let mut stand = one_connection(None);
    let client = stand.client();
    stand.request(client, "GET");
    stand.answer(0);
    stand.request(client, "GET");
    assert_eq!(stand.asked(), Some(0));
    // What breaks has to go over a new one.
    stand.lose(stand.endpoints[0]);
    assert_eq!(stand.asked(), Some(1));
    stand.answer(1);
    stand.pass(Duration::from_secs(2));
    stand.request(client, "POST");
    assert_eq!(stand.asked(), Some(2));
}

#[test]
fn a_connection_at_rest_makes_room_for_who_waits_elsewhere() {
    for speaks in [Speaks::Http1, Speaks::Http2] {
        for (connections_max, is_closed) in [(NonZeroU32::new(2), true), (None, false)] {
            let mut stand = Stand::new(Setup {
                speaks,
                limits: Limits {
                    connections_max,
                    ..Limits::UNLIMITED
                },
                ..Setup::default()
            });
            let client = match speaks {
                Speaks::Http1 => {
                    let client = stand.client();
                    stand.request(client, "GET");
                    client
                }
                Speaks::Http2 | Speaks::Http1InHttp2 => asking(&mut stand, 1, 0),
            };
            stand.pass(Duration::from_secs(5));
            let other = stand.wait_elsewhere();
            stand.pass(Duration::from_secs(5));
            assert_eq!(stand.closed, [], "it is in use");
            match speaks {
                Speaks::Http1 => stand.answer(0),
                Speaks::Http2 | Speaks::Http1InHttp2 => stand.lose(client),
            }
            stand.pass(Duration::from_secs(2));
            assert_eq!(stand.closed.len(), usize::from(is_closed), "{speaks:?}");
            drop(other);
        }
    }
}

#[test]
fn each_failed_dial_is_that_of_one_who_waits() {
    let mut stand = Stand::new(Setup {
        answers_dials: false,
        ..Setup::default()
    });
    let clients = [stand.client(), stand.client()];
    for client in clients {
        stand.request(client, "GET");
    }
    assert_eq!(stand.dials.len(), 2);
    assert_eq!(stand.in_use(Resource::Connections), 2);
    let dial = stand.dials.remove(0);
    let refused = Err(ConnectError::Tcp("refused".into()));
    assert_eq!(stand.relay.dialled(dial.channel, refused, stand.now), None);
    stand.settle();
    assert!(stand.told(clients[0]).contains("x-heddle-reason: connect"));
    assert_eq!(stand.in_use(Resource::Connections), 1);
    stand.dialled();
    stand.settle();
    stand.answer(0);
    assert!(stand.told(clients[1]).starts_with("HTTP/1.1 200"));
    assert_eq!(stand.dials.len(), 0);
}

#[test]
fn requests_go_over_connections_that_the_present_credentials_made() {
    let mut stand = Stand::new(Setup {
        upheavals: Upheavals {
            is_meshed: true,
            ..Upheavals::default()
        },
        answers_dials: false,
        ..Setup::default()
    });
    let clients = [stand.client(), stand.client(), stand.client()];
    stand.request(clients[0], "GET");
    stand.dialled();
    stand.settle();
    stand.request(clients[1], "GET");
    stand.asked_of_all();
    assert_eq!(stand.dials.len(), 1);
    stand.relay.credentials(1, stand.now);
    stand.settle();
    // Who waited is dialled for anew, and what the older dial brings is closed.
    assert_eq!(stand.dials.len(), 2);
    stand.dialled();
    stand.settle();
    assert_eq!(
        stand.closed.last().map(|(conn, ..)| *conn),
        Some(stand.endpoints[1])
    );
    stand.dialled();
    stand.settle();
    assert_eq!(stand.asked(), Some(2));
    // What is under way ends in order.
    stand.answer(0);
    assert_eq!(
        stand.closed.last().map(|(conn, ..)| *conn),
        Some(stand.endpoints[0])
    );
    stand.answer(2);
    stand.request(clients[0], "GET");
    assert_eq!(stand.asked(), Some(2));
    assert_eq!(stand.reasons, [None, None]);
}

/// A client of HTTP/2, whose connection is `conn`, with so many requests under way.
fn asking(stand: &mut Stand, requests: usize, bytes: usize) -> ConnId {
    let conn = stand.client();
    let mut client = h2::Connection::new(h2::Role::Client, &h2::Limits::of_mesh(), stand.now);
    let mut heads = Heads::default();
    let mut head = Head::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "echo.shop"),
        (":path", "/"),
    ] {
        head.push(name.as_bytes(), value.as_bytes(), Indexing::Never);
    }
    for _ in 0..requests {
        let stream = client.open(&head, Then::More, &mut heads);
        let stream = stream.expect("there is room");
        client.send_data(stream, Payload::Lent(&vec![7; bytes]), Then::End);
    }
    client.fill(1 << 20, &mut heads);
    let bytes: Vec<Vec<u8>> = client
        .output()
        .payloads()
        .map(|p| p.as_slice().to_vec())
        .collect();
    stand.send(conn, &bytes.concat());
    conn
}

fn http2(connections_max: Option<NonZeroU32>, answers_dials: bool) -> Stand {
    Stand::new(Setup {
        speaks: Speaks::Http2,
        answers_dials,
        limits: Limits {
            connections_max,
            ..Limits::UNLIMITED
        },
        ..Setup::default()
    })
}

/// How many requests have begun in what was written, and how many were reset.
fn begun_and_reset(mut written: &[u8]) -> (usize, usize) {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    written = written.strip_prefix(PREFACE).unwrap_or(written);
    let (mut begun, mut reset) = (0, 0);
    while let Some((head, rest)) = written.split_first_chunk::<9>() {
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        begun += usize::from(head[3] == 1);
        reset += usize::from(head[3] == 3);
        written = &rest[len..];
    }
    (begun, reset)
}

/// SETTINGS with MAX_CONCURRENT_STREAMS of 1.
const ONE_STREAM: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x01";

#[test]
fn who_waits_is_not_sent_in_the_place_of_another_of_a_client_that_is_gone() {
    let mut stand = http2(NonZeroU32::new(1), false);
    let client = asking(&mut stand, 1, 10);
    stand.dialled();
    stand.settle();
    let endpoint = stand.endpoints[0];
    stand.send(endpoint, ONE_STREAM);
    assert_eq!(begun_and_reset(&stand.taken(endpoint)), (1, 0));
    let late = asking(&mut stand, 5, 10);
    let last = asking(&mut stand, 1, 10);
    stand.lose(client);
    assert_eq!(begun_and_reset(&stand.taken(endpoint)), (1, 1));
    stand.lose(late);
    assert_eq!(begun_and_reset(&stand.taken(endpoint)), (1, 1));
    assert_eq!(stand.relay.exchanges_active(), 1, "that of {last:?}");
}

#[test]
fn what_never_began_is_not_lost_with_its_connection() {
    for is_written in [false, true] {
        let mut stand = http2(NonZeroU32::new(1), false);
        asking(&mut stand, 3, 10);
        stand.dialled();
        if is_written {
            stand.settle();
        }
        stand.relay.lost(stand.endpoints[0], stand.now);
        stand.settle();
        if is_written {
            assert_eq!(stand.reasons, [Some("reset"); 3]);
            continue;
        }
        assert_eq!(stand.reasons, []);
        stand.dialled();
        stand.settle();
        let again = stand.taken(stand.endpoints[1]);
        assert_eq!(begun_and_reset(&again), (3, 0));
    }
}

#[test]
fn the_first_connection_with_room_takes_a_request() {
    let mut stand = http2(None, true);
    let clients = [0, 1, 2].map(|index: usize| {
        let client = asking(&mut stand, 1, 10);
        stand.send(stand.endpoints[index], ONE_STREAM);
        assert_eq!(stand.endpoints.len(), index + 1);
        client
    });
    stand.lose(clients[0]);
    stand.asked_of_all();
    asking(&mut stand, 1, 10);
    assert_eq!(stand.asked(), Some(0));
    asking(&mut stand, 1, 10);
    assert_eq!(stand.asked(), Some(3));
}

#[test]
fn a_connection_whose_window_is_shut_for_a_while_takes_no_request() {
    for (wait_ms, expected) in [(4, 0), (6, 1)] {
        let mut stand = http2(None, true);
        asking(&mut stand, 2, 40_000);
        stand.asked_of_all();
        stand.pass(Duration::from_millis(wait_ms));
        asking(&mut stand, 1, 10);
        assert_eq!(stand.asked(), Some(expected), "{wait_ms} ms");
    }
}

#[test]
fn beyond_eight_connections_to_the_application_requests_wait() {
    let mut stand = Stand::new(Setup {
        speaks: Speaks::Http2,
        upheavals: Upheavals {
            is_inbound: true,
            ..Upheavals::default()
        },
        ..Setup::default()
    });
    for index in 0..8 {
        asking(&mut stand, 1, 10);
        stand.send(stand.endpoints[index], ONE_STREAM);
    }
    asking(&mut stand, 1, 10);
    assert_eq!(
        (stand.endpoints.len(), stand.relay.exchanges_active()),
        (8, 9)
    );
    stand.pass(Duration::from_millis(1_999));
    assert_eq!(stand.reasons, []);
    stand.pass(Duration::from_millis(2));
    assert_eq!(stand.reasons, [Some("overloaded")]);
}
