//! What endpoints answer: where it ends, what is refused, and when the connection goes on.

use super::*;

/// A client that has asked for something.
fn asking(fields: &[(&str, &str)]) -> Side {
    let mut side = Side::new(Role::Client);
    side.ask(fields, Then::End);
    side.output();
    side
}

fn request(method: &str) -> [(&str, &str); 4] {
    [
        (":method", method),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ]
}

#[track_caller]
fn check(method: &str, answer: &str, expected: &[&str], ending: Ending) {
    check_told(
        || asking(&request(method)),
        answer.as_bytes(),
        expected,
        ending,
    );
}

#[test]
fn the_end_of_an_answer_is_where_the_rfc_says() {
    let (open, over) = (Ending::Open, Ending::Finishing);
    let ok = "HTTP/1.1 200 OK\r\n";
    let length = format!("{ok}Content-Length: 5\r\n\r\n");
    let told = ":status=200 content-length=5";
    check(
        "GET",
        &format!("{length}hello"),
        &[told, "data hello", "end"],
        open,
    );
    check("HEAD", &length, &[told, "end"], open);
    check(
        "GET",
        &format!("{ok}content-length: 0\r\n\r\n"),
        &[":status=200 content-length=0", "end"],
        open,
    );
    let chunked = format!("{ok}transfer-encoding: chunked\r\n\r\n");
    let body = "5\r\nhello\r\n0\r\n\r\n";
    check(
        "POST",
        &format!("{chunked}{body}"),
        &[":status=200", "data hello", "end"],
        open,
    );
    check("HEAD", &chunked, &[":status=200", "end"], open);
    check(
        "GET",
        &format!("{chunked}5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"),
        &[":status=200", "data hello", "trailers x-sum=1", "end"],
        open,
    );
    check(
        "GET",
        "HTTP/1.1 304 \r\ncontent-length: 5\r\n\r\n",
        &[":status=304 content-length=5", "end"],
        open,
    );
    check(
        "GET",
        "HTTP/1.1 204\r\ncontent-length: 5\r\n\r\n",
        &[":status=204", "end"],
        open,
    );
    check(
        "GET",
        "HTTP/1.1 204 \r\ntransfer-encoding: chunked\r\n\r\n",
        &[":status=204", "end"],
        open,
    );
    // Of two lengths the coding counts, and the connection is not used again.
    let both = format!("{ok}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n{body}");
    check("GET", &both, &[":status=200", "data hello", "end"], over);
    check(
        "GET",
        "HTTP/1.1 999 \u{e4}what\r\ncontent-length: 0\r\n\r\n",
        &[":status=999 content-length=0", "end"],
        open,
    );
}

#[test]
fn a_connection_is_kept_as_its_endpoint_says() {
    for (version, option, kept) in [
        ("1.1", "", true),
        ("1.1", "connection: close\r\n", false),
        ("1.1", "connection: x, Close\r\nx: 1\r\n", false),
        ("1.0", "", false),
        ("1.0", "connection: keep-alive\r\n", true),
        ("1.0", "connection: keep-alive, close\r\n", false),
    ] {
        let answer = format!("HTTP/{version} 200 OK\r\n{option}content-length: 2\r\n\r\nok");
        let ending = if kept {
            Ending::Open
        } else {
            Ending::Finishing
        };
        let told = [":status=200 content-length=2", "data ok", "end"];
        check("GET", &answer, &told, ending);
        let mut side = asking(&request("GET"));
        side.feed(answer.as_bytes());
        assert_eq!(side.connection.can_open(), kept);
        assert_eq!(side.connection.hop().closes, !kept);
        if kept {
            side.ask(&request("GET"), Then::End);
            side.feed(answer.as_bytes());
            assert_eq!(side.told, [told, told].concat());
        }
    }
}

#[test]
fn a_body_without_a_length_ends_with_the_connection() {
    let answer = b"HTTP/1.1 200 OK\r\n\r\nhello 0\r\n\r\n";
    let told = [":status=200", "data hello 0\\r\\n\\r\\n"];
    check_told(|| asking(&request("GET")), answer, &told, Ending::Open);
    let mut side = asking(&request("GET"));
    side.feed(answer);
    assert!(side.connection.hop().ends_by_closing);
    side.end();
    assert_eq!(side.told, [&told[..], &["end"]].concat());
    assert_eq!(side.connection.ending(), Ending::Finishing);
}

#[test]
fn interim_answers_come_before_the_final_one() {
    let interims = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: </a>\r\ncontent-length: 3\r\n\r\n";
    check(
        "POST",
        &format!("{interims}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        &[
            "interim :status=100",
            "interim :status=103 link=</a>",
            ":status=200 content-length=0",
            "end",
        ],
        Ending::Open,
    );
    let mut side = asking(&request("GET"));
    let interim = "HTTP/1.1 102 Processing\r\n\r\n";
    let most = Limits::default().interim_bytes_max as usize / interim.len();
    side.feed(interim.repeat(most).as_bytes());
    assert_eq!(
        (side.told.len(), side.connection.ending()),
        (most, Ending::Open)
    );
    side.feed(interim.as_bytes());
    assert_eq!(side.told.last().unwrap(), "malformed 502");
    assert_eq!(side.connection.ending(), Ending::Aborted);
}

#[test]
fn what_is_no_answer_is_refused() {
    let many = format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(129));
    let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(64 * 1024));
    for answer in [
        "HTTP/1.1 20 OK\r\n",
        "HTTP/1.1 099 OK\r\n",
        "HTTP/1.1 2000 OK\r\n",
        "HTTP/1.1  200 OK\r\n",
        "HTTP/2.0 200 OK\r\n",
        "HTTP/1.2 200 OK\r\n",
        "http/1.1 200 OK\r\n",
        "HTTP/1.1 200 O\0K\r\n",
        "HTTP/1.1 200 O\rK\r\n",
        "HTTP/1.1 200 OK\n",
        "\r\nHTTP/1.1 200 OK\r\n",
        "ICY 200 OK\r\n",
        "HTTP/1.1 +20 OK\r\n",
        "HTTP/1.1 200\tOK\r\n",
        "GET / HTTP/1.1\r\n",
        "SSH-2.0-x\r\n",
        &many,
        &long,
    ] {
        let mut side = asking(&request("GET"));
        side.feed(format!("{answer}\r\n").as_bytes());
        assert_eq!(side.told, ["malformed 502"], "{answer:.80?}");
        assert_eq!(side.connection.ending(), Ending::Aborted);
    }
    for fields in [
        "name : x\r\n",
        "na me: x\r\n",
        "name: x\0y\r\n",
        "name: x\ry\r\n",
        "name: x\ny: z\r\n",
        " folded: x\r\n",
        "name: x\r\n folded\r\n",
        "no colon\r\n",
        ": no name\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 5, 5\r\n",
        "content-length: -1\r\n",
        "content-length:\r\n",
        "content-length: 99999999999999999999\r\n",
        "transfer-encoding: gzip\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
    ] {
        for method in ["GET", "HEAD"] {
            let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            check(method, &answer, &["malformed 502"], Ending::Aborted);
        }
    }
    let coded = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    check("GET", coded, &["malformed 502"], Ending::Aborted);
    for body in [
        "g\r\n",
        "1\rx",
        "0\r\ncontent-length: 1\r\n\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}");
        check(
            "GET",
            &answer,
            &[":status=200", "malformed 502"],
            Ending::Aborted,
        );
    }
}

#[test]
fn bytes_that_answer_nothing_are_no_answer() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let told = [
        ":status=200 content-length=2",
        "data ok",
        "end",
        "malformed 502",
    ];
    check("GET", &format!("{answer}{answer}"), &told, Ending::Aborted);
    check("GET", &format!("{answer}!"), &told, Ending::Aborted);
    let mut side = Side::new(Role::Client);
    side.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n");
    assert_eq!(side.told, ["malformed 502"]);
    assert!(!side.connection.can_open());
    // What closes the connection may say what it likes behind its answer.
    let last = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok, or not";
    check("GET", last, &told[..3], Ending::Finishing);
}

/// What is told when the endpoint ends its direction behind these bytes.
#[track_caller]
fn check_end(answer: &str, expected: &str, is_answered: bool) {
    let mut side = asking(&request("GET"));
    side.feed(answer.as_bytes());
    assert_eq!(side.connection.is_answered(), is_answered, "{answer:?}");
    side.told.clear();
    side.end();
    assert_eq!(side.told.join(" "), expected, "{answer:?}");
    assert_ne!(side.connection.ending(), Ending::Open);
    assert!(!side.connection.can_open());
}

#[test]
fn an_answer_that_breaks_off_is_not_whole() {
    check_end("", "reset 8", false);
    check_end("H", "reset 1", true);
    check_end("HTTP/1.1 200 OK\r\n", "reset 1", true);
    check_end("HTTP/1.1 100 \r\n\r\n", "reset 1", true);
    let head = "HTTP/1.1 200 OK\r\n";
    check_end(
        &format!("{head}content-length: 2\r\n\r\no"),
        "reset 1",
        true,
    );
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    for body in ["", "2", "2\r\no", "2\r\nok\r\n0\r\n", "0\r\nx: y\r\n"] {
        check_end(&format!("{head}{chunked}{body}"), "reset 1", true);
    }
    let mut idle = Side::new(Role::Client);
    idle.end();
    assert!(idle.told.is_empty());
    assert!(!idle.connection.can_open());
    assert_eq!(idle.connection.ending(), Ending::Finishing);
}

#[test]
fn an_endpoint_may_answer_before_the_request_has_ended() {
    let answer = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n";
    let sending = || {
        let mut side = Side::new(Role::Client);
        side.ask(&request("POST"), Then::More);
        side.feed(answer.as_bytes());
        assert_eq!(side.told, [":status=413 content-length=0", "end"]);
        assert!(!side.connection.can_open());
        side
    };
    let mut going_on = sending();
    going_on.send("rest", Then::End);
    assert!(going_on.connection.can_open());
    let mut given_up = sending();
    given_up.reset();
    assert_eq!(given_up.connection.ending(), Ending::Aborted);
    let mut left = sending();
    left.end();
    assert_eq!(left.told.last().unwrap(), "reset 8");
}

#[test]
fn an_exchange_that_is_given_up_takes_its_connection_with_it() {
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no"] {
        let mut side = asking(&request("GET"));
        side.feed(answer.as_bytes());
        side.reset();
        assert_eq!(side.connection.ending(), Ending::Aborted);
        let told = side.told.len();
        side.feed(b"ok");
        assert_eq!(side.told.len(), told);
    }
    let mut over = asking(&request("GET"));
    over.feed(b"HTTP/1.1 204 \r\n\r\n");
    over.reset();
    assert!(over.connection.can_open(), "the exchange was over");
}

/// What the endpoint says to a request for `websocket`.
#[track_caller]
fn check_switch(fields: &str, expected: &str) {
    let make = || {
        let protocol = [(":protocol", "websocket")];
        asking(&[&protocol[..], &request("GET")].concat())
    };
    let answer = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
    let is_good = !expected.starts_with("malformed");
    let ending = if is_good {
        Ending::Open
    } else {
        Ending::Aborted
    };
    check_told(make, answer.as_bytes(), &[expected], ending);
}

#[test]
fn only_what_was_asked_for_is_switched_to() {
    let good = ":protocol=websocket :status=101";
    check_switch("connection: upgrade\r\nupgrade: websocket\r\n", good);
    check_switch(
        "connection: Upgrade\r\nupgrade: WebSocket\r\ncontent-length: 5\r\n",
        good,
    );
    for fields in [
        "connection: upgrade\r\nupgrade: h2c\r\n",
        "connection: upgrade\r\n",
        "upgrade: websocket\r\n",
        "",
        "connection: upgrade\r\nupgrade: websocket, h2c\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\nupgrade: websocket\r\n",
    ] {
        check_switch(fields, "malformed 502");
    }
    let answer = "HTTP/1.1 101 \r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    check("GET", answer, &["malformed 502"], Ending::Aborted);
    // It was asked for, but the request has not ended.
    let mut side = Side::new(Role::Client);
    let protocol = [(":protocol", "websocket"), ("content-length", "2")];
    side.ask(
        &[&protocol[..1], &request("POST"), &protocol[1..]].concat(),
        Then::More,
    );
    side.feed(answer.as_bytes());
    assert_eq!(side.told, ["malformed 502"]);
}
