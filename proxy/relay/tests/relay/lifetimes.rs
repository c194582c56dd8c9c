//! How long connections live, and how they end.

use std::time::Duration;

use heddle_policy::spiffe::SpiffeId;
use heddle_relay::{
    input::Input,
    record::Direction,
    relay::{Closing, Speaks},
};

use crate::{
    stand::{Setup, Stand},
    upheaval::Upheavals,
};

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

#[test]
fn a_connection_without_a_request_is_closed_in_time() {
    let mut stand = Stand::new(Setup::default());
    let client = stand.client();
    stand.request(client, "GET");
    stand.pass(Duration::from_secs(10));
    stand.answer(0);
    stand.pass(Duration::from_secs(10 * 60));
    let rested = Duration::from_secs(10 + 5 * 60);
    assert_eq!(
        stand.closed,
        [(stand.endpoints[0], Closing::Finish, rested)]
    );
    assert_eq!(stand.relay.channels_open(), 0);
    stand.pass(2 * HOUR);
    let (conn, how, at) = stand.closed[1];
    assert_eq!((conn, how), (client, Closing::Finish));
    // By rest, or by age.
    assert!(at <= HOUR + Duration::from_secs(10), "{at:?}");
    assert_eq!(stand.relay.conns_open(), 0);
}

#[test]
fn a_connection_that_is_used_in_the_last_moment_is_not_closed() {
    let mut stand = Stand::new(Setup::default());
    let client = stand.client();
    stand.request(client, "GET");
    stand.answer(0);
    let late = stand.client();
    stand.pass(Duration::from_secs(5 * 60) - Duration::from_millis(1));
    stand.now += Duration::from_millis(2);
    // Before anybody has looked.
    let head = b"GET / HTTP/1.1\r\nhost: echo.shop\r\n\r\n";
    stand.relay.received(late, Input::lent(head), stand.now);
    stand.relay.expire(stand.now);
    stand.settle();
    assert_eq!(stand.closed, []);
    stand.answer(0);
    assert!(stand.told(late).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_connection_is_retired_by_age_give_or_take_a_fifth() {
    let mut ages = Vec::new();
    let mut stand = Stand::new(Setup::default());
    let clients: Vec<_> = (0..100).map(|_| stand.client()).collect();
    for client in &clients {
        stand.request(*client, "GET");
    }
    // One in two minutes keeps all of them.
    for _ in 0..40 {
        for endpoint in 0..stand.endpoints.len() {
            if !stand.taken(stand.endpoints[endpoint]).is_empty() {
                stand.answer(endpoint);
            }
        }
        stand.pass(Duration::from_mins(2));
        for client in &clients {
            if !stand.closed.iter().any(|(conn, ..)| conn == client) {
                stand.request(*client, "GET");
            }
        }
    }
    for (conn, how, at) in &stand.closed {
        assert_eq!(*how, Closing::Finish);
        if clients.contains(conn) {
            ages.push(*at);
        }
    }
    assert!(ages.iter().all(|age| *age >= HOUR.mul_f64(0.8)));
    assert!(ages.len() > 50 && ages.windows(2).any(|two| two[0] != two[1]));
    assert!(stand.reasons.iter().all(Option::is_none));
}

/// Setup of HTTP/2 with a sidecar or somebody else.
fn http2(is_meshed: bool) -> Setup {
    Setup {
        speaks: Speaks::Http2,
        upheavals: Upheavals {
            is_meshed,
            ..Upheavals::default()
        },
        ..Setup::default()
    }
}

#[test]
fn a_client_that_gives_no_sign_of_life_is_closed() {
    let mut stand = Stand::new(http2(false));
    let client = stand.client();
    stand.send(client, PREFACE);
    stand.taken(client);
    stand.pass(Duration::from_secs(59));
    assert_eq!(stand.taken(client), b"");
    stand.pass(Duration::from_secs(1));
    let ping = stand.taken(client);
    assert_eq!(ping.get(3), Some(&PING));
    // Whatever comes is a sign of life.
    stand.send(client, SETTINGS_ACK);
    stand.pass(Duration::from_secs(59));
    assert_eq!(stand.closed, []);
    stand.pass(Duration::from_secs(1));
    assert_eq!(stand.taken(client).get(3), Some(&PING));
    stand.pass(Duration::from_secs(20));
    let closed = Duration::from_secs(60 + 60 + 20);
    assert_eq!(stand.closed, [(client, Closing::Abort, closed)]);
}

#[test]
fn at_once_when_it_is_cut_or_denied_and_in_order_when_it_is_retired() {
    let id = |text: &str| -> SpiffeId { text.parse().expect("it is one") };
    let echo = id("spiffe://cluster.local/ns/shop/sa/echo");
    for (cut, is_closed) in [("nobody", false), ("echo", true), ("all", true)] {
        let setup = Setup {
            upheavals: Upheavals {
                is_meshed: true,
                ..Upheavals::default()
            },
            ..Setup::default()
        };
        let mut stand = Stand::new(setup);
        let client = stand.client();
        stand.request(client, "GET");
        match cut {
            "echo" => stand.relay.revoke(&|peer| *peer == echo, stand.now),
            "all" => stand.relay.cut(stand.now),
            _ => stand.relay.revoke(&|peer| *peer != echo, stand.now),
        }
        stand.settle();
        let endpoint = stand.endpoints[0];
        let aborted = (endpoint, Closing::Abort, Duration::ZERO);
        assert_eq!(stand.closed.contains(&aborted), is_closed, "{cut}");
        assert_eq!(stand.reasons.len(), usize::from(is_closed), "{cut}");
        if cut == "all" {
            assert_eq!(stand.relay.conns_open(), 0);
            let late = stand.client();
            stand.settle();
            assert_eq!(stand.closed.last().map(|(conn, ..)| *conn), Some(late));
        }
    }
}

#[test]
fn clients_of_http_1_that_are_retired_are_served_once_more() {
    let mut stand = Stand::new(Setup::default());
    let (resting, busy, silent) = (stand.client(), stand.client(), stand.client());
    stand.request(resting, "GET");
    stand.answer(0);
    stand.request(busy, "GET");
    stand.relay.retire(Direction::Inbound, stand.now);
    stand.settle();
    assert_eq!(stand.closed, [], "it is the other direction that goes");
    stand.relay.retire(Direction::Outbound, stand.now);
    stand.settle();
    assert_eq!(stand.closed, [], "what it sends now may cross our goodbye");
    stand.pass(Duration::from_secs(2));
    assert_eq!(stand.closed.len(), 1);
    assert_eq!(stand.closed[0].0, resting);
    let late = stand.client();
    stand.request(late, "GET");
    stand.answer(0);
    stand.answer(1);
    for client in [busy, late] {
        let told = stand.told(client);
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        assert!(told.contains("connection: close"), "{told}");
        assert!(stand.closed.iter().any(|(conn, ..)| *conn == client));
    }
    assert!(!stand.closed.iter().any(|(conn, ..)| *conn == silent));
    stand.pass(Duration::from_secs(10));
    assert!(stand.closed.iter().any(|(conn, ..)| *conn == silent));
}

#[test]
fn a_client_of_http_2_that_answers_no_ping_hears_the_last_goodbye_all_the_same() {
    let mut stand = Stand::new(http2(false));
    let client = stand.client();
    stand.send(client, PREFACE);
    stand.taken(client);
    stand.relay.retire(Direction::Outbound, stand.now);
    stand.settle();
    let first = stand.taken(client);
    assert_eq!(first[3], GOAWAY);
    assert_eq!(first[9..13], (u32::MAX >> 1).to_be_bytes());
    assert_eq!(first[17 + 3], PING);
    stand.pass(Duration::from_secs(4));
    assert_eq!(stand.closed, []);
    stand.pass(Duration::from_secs(1));
    let last = stand.taken(client);
    assert_eq!((last[3], &last[9..13]), (GOAWAY, &[0; 4][..]));
    let at = Duration::from_secs(5);
    assert_eq!(stand.closed, [(client, Closing::Finish, at)]);
}

#[test]
fn the_last_goodbye_follows_the_answer_to_the_ping_behind_the_first() {
    for has_pinged in [false, true] {
        let mut stand = Stand::new(http2(false));
        let client = stand.client();
        stand.send(client, PREFACE);
        if has_pinged {
            stand.pass(Duration::from_mins(1));
        }
        stand.taken(client);
        stand.relay.retire(Direction::Outbound, stand.now);
        stand.settle();
        let first = stand.taken(client);
        let mut pong = first[17..34].to_vec();
        assert_eq!((pong[3], pong[4]), (PING, 0));
        pong[4] = 1;
        if has_pinged {
            stand.send(client, &pong);
            assert_eq!(stand.taken(client), b"", "that was another ping");
        }
        stand.send(client, &pong);
        assert_eq!(stand.taken(client).get(3), Some(&GOAWAY));
        let closed = stand.closed.first().map(|(conn, how, _)| (*conn, *how));
        assert_eq!(closed, Some((client, Closing::Finish)));
    }
}

#[test]
fn when_nothing_may_be_kept_a_request_of_http_1_is_refused_and_its_connection_ends() {
    let mut stand = Stand::new(Setup {
        upheavals: Upheavals {
            budget_bytes: Some(0),
            ..Upheavals::default()
        },
        ..Setup::default()
    });
    let client = stand.client();
    stand.request(client, "GET");
    let told = stand.told(client);
    assert!(told.starts_with("HTTP/1.1 503"), "{told}");
    assert!(told.contains("connection: close"), "{told}");
    assert!(told.contains("x-heddle-reason: overloaded"), "{told}");
    assert_eq!(stand.closed.len(), 1);
    assert_eq!(stand.endpoints, []);
}

#[test]
fn a_day_of_rest_costs_no_work() {
    let mut stand = Stand::new(http2(true));
    let client = stand.client();
    stand.send(client, PREFACE);
    stand.lose(client);
    stand.pass(DAY);
    assert_eq!(stand.relay.deadline(), None);
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";
const SETTINGS_ACK: &[u8] = b"\0\0\0\x04\x01\0\0\0\0";
const PING: u8 = 6;
const GOAWAY: u8 = 7;
