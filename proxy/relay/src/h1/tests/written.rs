//! What is sent, byte by byte.

use super::*;

const PSEUDO: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "a:80"),
    (":path", "/b?c"),
];

#[track_caller]
fn check_request(fields: &[(&str, &str)], form: Form, then: Then, expected: &str) {
    let mut side = Side::new(Role::Client);
    let opened = side.connection.open(&head(fields), form, then);
    assert!(opened.is_ok(), "{fields:?}: {opened:?}");
    assert_eq!(side.output_text(), expected);
}

fn with<'a>(method: &'a str, fields: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let pseudo = PSEUDO.map(|(name, value)| (name, if name == ":method" { method } else { value }));
    [&pseudo[..], fields].concat()
}

#[test]
fn a_request_has_the_form_of_http1() {
    let plain = Form::default();
    let check = |method, fields: &[_], then, expected: &str| {
        let expected = format!("{method} /b?c HTTP/1.1\r\nhost: a:80\r\n{expected}\r\n");
        check_request(&with(method, fields), plain, then, &expected);
    };
    check("GET", &[], Then::End, "");
    check(
        "DELETE",
        &[("x-a", "1"), ("accept", "")],
        Then::End,
        "x-a: 1\r\naccept: \r\n",
    );
    for method in ["POST", "PUT", "PATCH"] {
        check(method, &[], Then::End, "content-length: 0\r\n");
        check(
            method,
            &[("content-length", "0")],
            Then::End,
            "content-length: 0\r\n",
        );
    }
    check("GET", &[], Then::More, "transfer-encoding: chunked\r\n");
    check(
        "GET",
        &[("content-length", "5"), ("x-a", "1")],
        Then::More,
        "content-length: 5\r\nx-a: 1\r\n",
    );
}

#[test]
fn of_a_requests_fields_only_those_that_pass_are_written() {
    let plain = Form::default();
    let check = |method, fields: &[_], then, expected: &str| {
        let expected = format!("{method} /b?c HTTP/1.1\r\nhost: a:80\r\n{expected}\r\n");
        check_request(&with(method, fields), plain, then, &expected);
    };
    // Two lengths, or one that is none, are not believed.
    for lengths in [
        &[("content-length", "5"), ("content-length", "5")][..],
        &[("content-length", "+5")],
    ] {
        check("GET", lengths, Then::More, "transfer-encoding: chunked\r\n");
        check("GET", lengths, Then::End, "");
    }
    check(
        "GET",
        &[("te", "trailers")],
        Then::End,
        "te: trailers\r\nconnection: te\r\n",
    );
    check("GET", &[("te", "gzip")], Then::End, "");
    // Crumbs are one field again (RFC 9113 section 8.2.3).
    let crumbs = [
        ("cookie", "a=1"),
        ("x-a", "1"),
        ("cookie", "b=2; c=3"),
        ("cookie", "d=4"),
    ];
    check(
        "GET",
        &crumbs,
        Then::End,
        "cookie: a=1; b=2; c=3; d=4\r\nx-a: 1\r\n",
    );
    let of_connection = [
        ("connection", "x"),
        ("keep-alive", "1"),
        ("proxy-connection", "x"),
        ("upgrade", "h2c"),
        ("transfer-encoding", "gzip"),
        ("http2-settings", "x"),
        ("host", "other"),
        ("expect", "100-continue"),
    ];
    check("GET", &of_connection, Then::End, "expect: 100-continue\r\n");
    let all = [(":protocol", "websocket"), ("te", "trailers")];
    check(
        "GET",
        &all,
        Then::End,
        "te: trailers\r\nupgrade: websocket\r\nconnection: upgrade, te\r\n",
    );
}

#[test]
fn a_request_is_rebuilt_as_it_was() {
    let plain = Form::default();
    let whole = Form {
        is_absolute: true,
        ..plain
    };
    check_request(
        &PSEUDO,
        whole,
        Then::End,
        "GET http://a:80/b?c HTTP/1.1\r\nhost: a:80\r\n\r\n",
    );
    let options = [
        (":method", "OPTIONS"),
        (":scheme", "https"),
        (":authority", "a"),
        (":path", "*"),
    ];
    check_request(
        &options,
        whole,
        Then::End,
        "OPTIONS https://a HTTP/1.1\r\nhost: a\r\n\r\n",
    );
    check_request(
        &options,
        plain,
        Then::End,
        "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    );
}

#[test]
fn what_http10_cannot_say_is_said_in_http11() {
    let plain = Form::default();
    let old = Form {
        version: Version::Http10,
        ..plain
    };
    let fields = with("GET", &[("expect", "100-continue")]);
    check_request(
        &fields,
        old,
        Then::End,
        "GET /b?c HTTP/1.0\r\nhost: a:80\r\n\r\n",
    );
    let nameless = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", ""),
        (":path", "/"),
    ];
    check_request(&nameless, old, Then::End, "GET / HTTP/1.0\r\n\r\n");
    check_request(
        &nameless,
        plain,
        Then::End,
        "GET / HTTP/1.1\r\nhost: \r\n\r\n",
    );
    // Whose body has no length can be said in 1.1 only.
    check_request(
        &nameless,
        old,
        Then::More,
        "GET / HTTP/1.1\r\nhost: \r\ntransfer-encoding: chunked\r\n\r\n",
    );
    let by_host = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        ("host", "b"),
    ];
    check_request(
        &by_host,
        plain,
        Then::End,
        "GET / HTTP/1.1\r\nhost: b\r\n\r\n",
    );
}

/// HTTP/2 can say more than HTTP/1.1 can.
#[test]
fn what_would_be_another_request_is_not_sent() {
    for (name, value) in [
        (":method", "GET /admin"),
        (":method", ""),
        (":method", "G\tT"),
        (":path", "/a b"),
        (":path", ""),
        (":path", "/a\tHTTP/1.1"),
        (":path", "a"),
        (":path", "/\u{7f}"),
        (":authority", "a b"),
        (":authority", "a/b"),
        (":authority", "u@a"),
        (":path", "*"),
        (":scheme", "a b"),
        ("content-length", "5"),
    ] {
        let mut fields = PSEUDO.to_vec();
        match fields.iter_mut().find(|(known, _)| *known == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
        let mut side = Side::new(Role::Client);
        let opened = side
            .connection
            .open(&head(&fields), Form::default(), Then::End);
        assert!(
            matches!(opened, Err(Refusal::Malformed(_))),
            "{name} {value:?}: {opened:?}"
        );
        assert_eq!(side.output_text(), "");
        assert!(side.connection.can_open());
    }
    let injected = with("GET", &[("x", "a\r\nhost: b\r\n\r\n\0")]);
    let expected = "GET /b?c HTTP/1.1\r\nhost: a:80\r\nx: a  host: b     \r\n\r\n";
    check_request(&injected, Form::default(), Then::End, expected);
}

#[test]
fn a_connection_has_one_exchange_at_a_time() {
    let mut side = Side::new(Role::Client);
    side.ask(&PSEUDO, Then::End);
    let second = side
        .connection
        .open(&head(&PSEUDO), Form::default(), Then::End);
    assert_eq!(second, Err(Refusal::Busy));
    side.feed(b"HTTP/1.1 204 \r\n\r\n");
    side.connection.goodbye();
    let third = side
        .connection
        .open(&head(&PSEUDO), Form::default(), Then::End);
    assert_eq!(third, Err(Refusal::Busy));
    let mut server = Side::new(Role::Server);
    let wrong = server
        .connection
        .open(&head(&PSEUDO), Form::default(), Then::End);
    assert_eq!(wrong, Err(Refusal::Busy));
}

/// What a request of `line` gets; a body of "ok" follows unless the head is all.
#[track_caller]
fn check_answer(line: &str, fields: &[(&str, &str)], then: Then, expected: &str) {
    let mut side = Side::new(Role::Server);
    side.feed(format!("{line}\r\nhost: a\r\n\r\n").as_bytes());
    side.answer(fields, then);
    if then == Then::More {
        side.send("", Then::More);
        side.send("ok", Then::More);
        side.send("", Then::End);
    }
    assert_eq!(side.output_text(), expected, "{line} {fields:?}");
}

#[test]
fn an_answer_ends_where_the_rfc_says() {
    let (get, head) = ("GET / HTTP/1.1", "HEAD / HTTP/1.1");
    let ok = [(":status", "200")];
    let length = [(":status", "200"), ("content-length", "2")];
    let said = "HTTP/1.1 200 OK\r\n";
    check_answer(
        get,
        &ok,
        Then::End,
        &format!("{said}content-length: 0\r\n\r\n"),
    );
    check_answer(
        get,
        &ok,
        Then::More,
        &format!("{said}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    );
    check_answer(
        get,
        &length,
        Then::More,
        &format!("{said}content-length: 2\r\n\r\nok"),
    );
    for then in [Then::More, Then::End] {
        check_answer(head, &ok, then, &format!("{said}\r\n"));
        check_answer(
            head,
            &length,
            then,
            &format!("{said}content-length: 2\r\n\r\n"),
        );
        let none = [(":status", "204"), ("content-length", "0")];
        check_answer(get, &none, then, "HTTP/1.1 204 No Content\r\n\r\n");
        let same = [(":status", "304"), ("content-length", "2")];
        check_answer(
            get,
            &same,
            then,
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n",
        );
    }
}

#[test]
fn an_answer_fits_its_clients_version_and_its_own_fields() {
    let get = "GET / HTTP/1.1";
    let ok = [(":status", "200")];
    let length = [(":status", "200"), ("content-length", "2")];
    let said = "HTTP/1.1 200 OK\r\n";
    check_answer(
        "GET / HTTP/1.0",
        &ok,
        Then::More,
        &format!("{said}connection: close\r\n\r\nok"),
    );
    check_answer(
        "GET / HTTP/1.0",
        &length,
        Then::More,
        &format!("{said}content-length: 2\r\nconnection: close\r\n\r\nok"),
    );
    let two = [
        (":status", "200"),
        ("content-length", "2"),
        ("content-length", "3"),
    ];
    check_answer(
        get,
        &two,
        Then::More,
        &format!("{said}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    );
    let of_connection = [
        (":status", "299"),
        ("connection", "x"),
        ("transfer-encoding", "x"),
        ("set-cookie", "a"),
        ("set-cookie", "b"),
        ("te", "trailers"),
    ];
    check_answer(
        get,
        &of_connection,
        Then::End,
        "HTTP/1.1 299 \r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 0\r\n\r\n",
    );
    check_answer(
        get,
        &[(":status", "2")],
        Then::End,
        "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
    );
}

#[test]
fn http10_keeps_no_connection_whose_body_has_no_length() {
    let mut side = Side::new(Role::Server);
    side.feed(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    side.answer(&[(":status", "200")], Then::More);
    side.send("ok", Then::End);
    assert_eq!(
        side.output_text(),
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok"
    );
    assert_eq!(side.connection.ending(), Ending::Finishing);
}

#[test]
fn interim_answers_are_for_http11() {
    for (version, expected) in [
        ("1.1", "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"),
        ("1.0", ""),
    ] {
        let mut side = Side::new(Role::Server);
        side.feed(format!("GET / HTTP/{version}\r\nhost: a\r\n\r\n").as_bytes());
        let hints = [(":status", "103"), ("link", "x"), ("content-length", "1")];
        side.answer(&hints, Then::More);
        assert_eq!(side.output_text(), expected);
        side.answer(&[(":status", "204")], Then::End);
        side.output();
        side.answer(&hints, Then::More);
        assert_eq!(side.output_text(), "", "the answer was final");
    }
}

/// Of a body in chunks.
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

#[test]
fn trailers_follow_the_last_chunk_and_nothing_else() {
    let trailers = [
        ("grpc-status", "0"),
        ("content-length", "5"),
        ("host", "a"),
        ("x", "1"),
    ];
    let send = |request: &str, fields: &[(&str, &str)]| {
        let mut side = Side::new(Role::Server);
        side.feed(format!("{request}\r\nhost: a\r\n\r\n").as_bytes());
        side.answer(fields, Then::More);
        side.send("ok", Then::More);
        side.connection
            .send_trailers(side.stream.unwrap(), &head(&trailers));
        (side.output_text(), side.connection.ending())
    };
    let ok = [(":status", "200"), ("content-length", "2")];
    let chunked = format!("{CHUNKED}2\r\nok\r\n0\r\ngrpc-status: 0\r\nx: 1\r\n\r\n");
    assert_eq!(send("GET / HTTP/1.1", &ok[..1]), (chunked, Ending::Open));
    let length = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned();
    assert_eq!(send("GET / HTTP/1.1", &ok), (length, Ending::Open));
    let closed = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok".to_owned();
    assert_eq!(
        send("GET / HTTP/1.0", &ok[..1]),
        (closed, Ending::Finishing)
    );
}

#[test]
fn a_body_that_is_not_as_long_as_its_head_said_does_not_pass_for_whole() {
    for pieces in [&["a"][..], &["ab", "c"], &["abc"], &[""]] {
        let mut side = Side::new(Role::Server);
        side.feed(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        side.answer(&[(":status", "200"), ("content-length", "2")], Then::More);
        side.output();
        for piece in pieces {
            side.send(piece, Then::More);
        }
        side.send("", Then::End);
        assert_eq!(side.connection.ending(), Ending::Aborted, "{pieces:?}");
        assert!(side.output().len() <= 2);
    }
}

#[test]
fn what_is_sent_counts_as_gone_while_the_output_is_short() {
    let limits = Limits {
        output_bytes: 100,
        ..Limits::default()
    };
    let mut side = Side::limited(Role::Server, &limits);
    side.feed(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    side.answer(&[(":status", "200")], Then::More);
    let head_bytes = side.connection.output().len();
    let first = "x".repeat(100 - head_bytes - 6);
    assert_eq!(side.send(&first, Then::More) as usize, first.len());
    assert_eq!(side.send("yy", Then::More), 0);
    assert_eq!(side.send("zzz", Then::More), 0);
    let mut fill = |written| {
        side.connection.output().consume(written);
        side.connection.fill(100);
        side.connection.next_written()
    };
    assert!(fill(0).is_none(), "the output is long");
    let filled = fill(50);
    assert!(
        matches!(filled, Some(Event::Writable { sent: 5, .. })),
        "{filled:?}"
    );
    assert!(fill(0).is_none(), "it is told once");
    assert_eq!(side.send("z", Then::End), 1);
    // Of an exchange that is over all is gone.
    assert_eq!(side.send(&"z".repeat(1000), Then::More), 1000);
}

#[test]
fn a_large_piece_is_sent_by_reference() {
    let body = bytes::Bytes::from(vec![7; 10_000]);
    let mut side = Side::new(Role::Server);
    side.feed(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    side.answer(&[(":status", "200")], Then::More);
    let data = Payload::Shared(body.clone());
    side.connection
        .send_data(side.stream.unwrap(), data, Then::End);
    let mut places = [IoSlice::new(&[]); 8];
    let used = side.connection.output().slices(&mut places);
    assert!(
        places[..used]
            .iter()
            .any(|slice| slice.as_ptr() == body.as_ptr())
    );
}
