//! What follows a 101, or 2xx to CONNECT.

use super::*;

const ASKED: &str =
    "GET /socket HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
const GET: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

/// A server's side of a tunnel.
fn server() -> Side {
    let mut side = Side::new(Role::Server);
    side.feed(ASKED.as_bytes());
    side.answer(
        &[(":protocol", "websocket"), (":status", "101")],
        Then::More,
    );
    assert_eq!(side.output_text(), SWITCHED);
    side.told.clear();
    side
}

/// A client's side of a tunnel.
fn client() -> Side {
    let mut side = Side::new(Role::Client);
    let request = [
        (":protocol", "websocket"),
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/socket"),
    ];
    side.ask(&request, Then::End);
    assert_eq!(
        side.output_text(),
        "GET /socket HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    );
    side.feed(SWITCHED.as_bytes());
    assert_eq!(side.told, [":protocol=websocket :status=101"]);
    side.told.clear();
    side
}

/// A tunnel that CONNECT makes, of either side.
fn connected(role: Role) -> Side {
    let mut side = Side::new(role);
    match role {
        Role::Server => {
            side.feed(b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n");
            side.answer(&[(":status", "200"), ("content-length", "5")], Then::More);
            assert_eq!(side.output_text(), "HTTP/1.1 200 OK\r\n\r\n");
        }
        Role::Client => {
            let request = [(":method", "CONNECT"), (":authority", "a:1")];
            side.ask(&request, Then::More);
            assert_eq!(
                side.output_text(),
                "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n"
            );
            side.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        }
    }
    side.told.clear();
    side
}

#[test]
fn bytes_pass_both_ways_until_both_have_ended() {
    for make in [
        server,
        client,
        || connected(Role::Server),
        || connected(Role::Client),
    ] {
        let mut side = make();
        assert!(side.connection.is_tunnel());
        side.feed(GET.as_bytes());
        side.send("one", Then::More);
        side.feed(b"\0\x01");
        assert_eq!(
            side.told,
            [format!("data {}\\x00\\x01", GET.escape_default())]
        );
        assert_eq!(side.output_text(), "one");
        // Either direction ends first.
        side.end();
        assert_eq!(side.told.last().unwrap(), "end");
        assert_eq!(side.connection.ending(), Ending::Open);
        side.send("two", Then::More);
        side.send("", Then::End);
        assert_eq!(side.output_text(), "two");
        assert_eq!(side.connection.ending(), Ending::Finishing);

        let mut side = make();
        side.send("last", Then::End);
        assert_eq!(side.connection.ending(), Ending::HalfClosed);
        side.send("more", Then::More);
        assert_eq!(side.output_text(), "last");
        side.feed(b"still");
        side.end();
        assert_eq!(side.told, ["data still", "end"]);
        assert_eq!(side.connection.ending(), Ending::Finishing);
    }
}

#[test]
fn a_tunnel_that_is_cut_is_reset() {
    for make in [
        server,
        client,
        || connected(Role::Server),
        || connected(Role::Client),
    ] {
        let mut side = make();
        side.reset();
        assert_eq!(side.connection.ending(), Ending::Aborted);
    }
}

#[test]
fn a_tunnel_goes_no_faster_than_it_is_released() {
    let limits = Limits {
        window: 4,
        ..Limits::default()
    };
    let mut side = Side::limited(Role::Server, &limits);
    side.releases = false;
    side.feed(format!("{ASKED}012345").as_bytes());
    side.answer(
        &[(":protocol", "websocket"), (":status", "101")],
        Then::More,
    );
    side.feed(b"");
    side.end();
    assert_eq!(side.told.last().unwrap(), "data 0123");
    side.connection.release(side.stream.unwrap(), 4);
    side.feed(b"");
    assert_eq!(side.told[2..], ["data 012345", "end"]);
}

#[test]
fn bytes_behind_an_upgrade_are_no_request() {
    let mut side = Side::new(Role::Server);
    side.feed(format!("{ASKED}{GET}").as_bytes());
    assert_eq!(side.told.len(), 2);
    side.answer(
        &[(":protocol", "websocket"), (":status", "101")],
        Then::More,
    );
    side.feed(b"");
    assert_eq!(side.told[2..], [format!("data {}", GET.escape_default())]);
}

#[test]
fn an_upgrade_that_is_declined_was_an_ordinary_request() {
    let mut side = Side::new(Role::Server);
    side.feed(format!("{ASKED}{GET}").as_bytes());
    side.answer(&[(":status", "200")], Then::End);
    side.feed(b"");
    assert_eq!(
        side.told[2..],
        [
            ":method=GET :scheme=http :authority=a :path=/smuggled",
            "end"
        ]
    );

    let mut side = Side::new(Role::Client);
    let request = [
        (":protocol", "websocket"),
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ];
    side.ask(&request, Then::End);
    side.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert_eq!(side.told.last().unwrap(), "end");
    assert!(side.connection.can_open());
}

#[test]
fn nothing_is_switched_to_that_was_not_asked_for() {
    for (request, protocol) in [
        (GET, "websocket"),
        (ASKED, "h2c"),
        (
            &ASKED.replace("\r\n\r\n", "\r\ncontent-length: 1\r\n\r\n"),
            "websocket",
        ),
    ] {
        let mut side = Side::new(Role::Server);
        side.feed(request.as_bytes());
        side.answer(&[(":protocol", protocol), (":status", "101")], Then::More);
        assert_eq!(side.output_text(), "", "{request:?}");
        assert_eq!(side.connection.ending(), Ending::Aborted);
    }
}
