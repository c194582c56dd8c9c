//! What clients send: what becomes of it, and what is refused.

use super::*;

const GET: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

#[track_caller]
fn check(request: &str, expected: &[&str]) {
    check_told(Side::answering, request.as_bytes(), expected, Ending::Open);
}

#[test]
fn a_request_has_the_form_of_http2() {
    let pseudo = ":method=GET :scheme=http :authority=a:80 :path=/b?c";
    check("GET /b?c HTTP/1.1\r\nHost: a:80\r\n\r\n", &[pseudo, "end"]);
    check(
        "GET /b?c HTTP/1.1\r\nX-A:1\r\nHOST:\t a:80 \r\nx-a: \t2 3\t\r\ncookie: a=b\r\n\r\n",
        &[&format!("{pseudo} x-a=1 x-a=2 3 cookie=a=b"), "end"],
    );
    check(
        "GET http://a:80/b?c HTTP/1.1\r\nhost: other\r\n\r\n",
        &[pseudo, "end"],
    );
    check(
        "OPTIONS http://a HTTP/1.1\r\nhost: a\r\n\r\n",
        &[":method=OPTIONS :scheme=http :authority=a :path=*", "end"],
    );
    check(
        "GET https://a?b HTTP/1.1\r\nhost: a\r\n\r\n",
        &[":method=GET :scheme=https :authority=a :path=/?b", "end"],
    );
    check(
        "GET / HTTP/1.1\r\nhost:\r\n\r\n",
        &[":method=GET :scheme=http :authority= :path=/", "end"],
    );
    // What CONNECT asks for is told as it is.
    check_told(
        || Side::new(Role::Server),
        b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n",
        &[":method=CONNECT :authority=a:80", "end"],
        Ending::Open,
    );
}

#[test]
fn what_belongs_to_the_connection_does_not_pass() {
    for (fields, passed) in [
        (
            "connection: keep-alive, X-Mine\r\nx-mine: 1\r\nx-b: 2\r\n",
            " x-b=2",
        ),
        ("x-mine: 1\r\nconnection: x-mine\r\nx-mine: 3\r\n", ""),
        (
            "keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\n",
            "",
        ),
        ("http2-settings: AAAA\r\nconnection: http2-settings\r\n", ""),
        ("te: gzip, Trailers;q=1\r\n", ""),
        ("te: gzip, Trailers\r\nconnection: te\r\n", " te=trailers"),
        ("te: trailers\r\nte: trailers\r\n", " te=trailers"),
        (
            "trailer: x\r\nexpect: 100-continue\r\n",
            " trailer=x expect=100-continue",
        ),
        // Neither is what names a pseudo-header, or what proxies before us said.
        (
            "connection: :path, x-forwarded-for, forwarded\r\nx-forwarded-for: a\r\n",
            " x-forwarded-for=a",
        ),
        ("upgrade: websocket\r\n", ""),
        ("connection: ,, ,\r\n", ""),
    ] {
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        let head = format!(":method=GET :scheme=http :authority=a :path=/{passed}");
        check(&request, &[&head, "end"]);
    }
}

#[test]
fn an_upgrade_is_one_protocol_that_is_no_other_http() {
    let head = ":method=GET :scheme=http :authority=a :path=/";
    let check = |fields: &str, protocol: Option<&str>| {
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        let head = match protocol {
            Some(protocol) => format!(":protocol={protocol} {head}"),
            None => head.into(),
        };
        check(&request, &[&head, "end"]);
    };
    check(
        "connection: Upgrade\r\nupgrade: WebSocket\r\n",
        Some("WebSocket"),
    );
    check(
        "upgrade: foo/1.0\r\nconnection: x, upgrade\r\n",
        Some("foo/1.0"),
    );
    for upgrade in [
        "upgrade: h2c\r\n",
        "upgrade: H2C\r\n",
        "upgrade: h2\r\n",
        "upgrade: HTTP/2.0\r\n",
        "upgrade: TLS/1.0\r\n",
        "upgrade: tls/1.2\r\n",
        "upgrade: websocket, h2c\r\n",
        "upgrade: websocket\r\nupgrade: h2c\r\n",
        "upgrade: websocket h2c\r\n",
        "upgrade:\r\n",
        "upgrade: websocket/\r\n",
        "upgrade: a/b/c\r\n",
    ] {
        check(&format!("connection: upgrade\r\n{upgrade}"), None);
    }
    check("upgrade: websocket\r\nconnection: x\r\n", None);
}

/// Refused with `status`, which can be answered; what is behind is no request.
#[track_caller]
fn check_refused(request: &str, status: u16) {
    let bytes = format!("{request}{GET}");
    let expected = [format!("malformed {status} to answer")];
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    check_told(
        Side::answering,
        bytes.as_bytes(),
        &expected,
        Ending::Finishing,
    );
}

#[test]
fn a_first_line_that_can_be_read_two_ways_is_refused() {
    for line in [
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        "G(T / HTTP/1.1",
        "GET /\x01 HTTP/1.1",
        "GET HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1.1\r",
        "GET / HTTQ/1.1",
        "GET /\x7f HTTP/1.1",
        "GET a HTTP/1.1",
        "GET http://u@a/ HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "CONNECT a HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "\n\nGET / HTTP/1.1",
        "\r\n\nGET / HTTP/1.1",
        "\rGET / HTTP/1.1",
        "GET / HTTP/1.1\n",
        "HTTP/1.1 200 OK",
        "GET / HTTP/11",
    ] {
        check_refused(&format!("{line}\r\nhost: a\r\n\r\n"), 400);
    }
    for line in [
        "GET / HTTP/2.0",
        "GET / HTTP/1.2",
        "GET / HTTP/0.9",
        "PRI * HTTP/2.0",
    ] {
        check_refused(&format!("{line}\r\nhost: a\r\n\r\n"), 505);
    }
}

#[test]
fn fields_that_can_be_read_two_ways_are_refused() {
    for fields in [
        "name : x\r\n",
        "name\t: x\r\n",
        "na me: x\r\n",
        "name\0: x\r\n",
        "name: x\0y\r\n",
        "name: x\ry\r\n",
        "name: x\ny: z\r\n",
        "name: x\n",
        "name: x\r\r\n",
        " folded: x\r\n",
        "name: x\r\n folded\r\n",
        "name: x\r\n\tfolded\r\n",
        "no colon\r\n",
        ": no name\r\n",
        "name: \x01\r\n",
        "name: \x7f\r\n",
        "n\u{e4}me: x\r\n",
        "n@me: x\r\n",
        "host: other\r\n",
        "Host: a\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 5, 5\r\n",
        "content-length: 5,\r\n",
        "content-length: +3\r\n",
        "content-length: -1\r\n",
        "content-length: 0x3\r\n",
        "content-length: 3 3\r\n",
        "content-length: 3.0\r\n",
        "content-length:\r\n",
        "content-length: a\r\n",
        "content-length: 99999999999999999999\r\n",
        "content-length: 9223372036854775808\r\n",
        "content-length: 18446744073709551617\r\n",
        "content-length: 1e1\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding:\r\n",
        "transfer-encoding: ,\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: chunked;q=1\r\n",
        "transfer-encoding: \x0bchunked\r\n",
        "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: x\r\n",
        "connection: host\r\n",
        "connection: x, Content-Length\r\n",
    ] {
        check_refused(&format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n"), 400);
    }
    for fields in [
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked,\r\n",
    ] {
        check_refused(&format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n"), 501);
    }
    check_refused("GET / HTTP/1.1\r\n\r\n", 400);
    check_refused("GET / HTTP/1.1\r\nhost: u@a\r\n\r\n", 400);
    check_refused("GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", 400);
    check_refused("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", 400);
    check_refused("GET / HTTP/1.0\r\nhost: a\r\nhost: a\r\n\r\n", 400);
    check_refused(
        "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\ncontent-length: 1\r\n\r\n",
        400,
    );
}

#[test]
fn heads_over_a_limit_are_refused() {
    let limits = Limits {
        line_bytes_max: 100,
        head_bytes_max: 400,
        fields_max: 4,
        ..Limits::default()
    };
    let check = |request: String, told: &str, ending| {
        let make = || Side {
            answers: true,
            ..Side::limited(Role::Server, &limits)
        };
        let mut first = String::new();
        for step in [1, 7, request.len()] {
            let mut side = make();
            request
                .as_bytes()
                .chunks(step)
                .for_each(|piece| side.feed(piece));
            first = side.told.first().cloned().unwrap_or_default();
            assert!(first.starts_with(told), "{request:?} by {step}: {first}");
            assert_eq!(side.connection.ending(), ending);
            assert!(side.connection.memory_bytes() < 2048);
        }
        first
    };
    let head = |path: usize, fields: &str| {
        format!(
            "GET /{} HTTP/1.1\r\nhost: a\r\n{fields}\r\n",
            "x".repeat(path)
        )
    };
    let (open, over) = (Ending::Open, Ending::Finishing);
    // "GET /", " HTTP/1.1\r\n"
    check(head(100 - 16, ""), ":method", open);
    check(head(100 - 15, ""), "malformed 414", over);
    check("x".repeat(200), "malformed 414", over);
    check(head(0, "a: b\r\nc: d\r\ne: f\r\n"), ":method", open);
    check(
        head(0, "a: b\r\nc: d\r\ne: f\r\ng: h\r\n"),
        "malformed 431",
        over,
    );
    // As HTTP/2 counts them: those of the pseudo-headers are 166 bytes.
    let list = |bytes: usize| format!("a: {}\r\n", "x".repeat(bytes - 33));
    check(head(0, &list(400 - 166)), ":method", open);
    check(head(0, &list(401 - 166)), "malformed 431", over);
    check(
        head(0, &format!("a: {}", "x".repeat(1000))),
        "malformed 431",
        over,
    );
    check(
        head(0, &format!("a:{}b\r\n", " ".repeat(400))),
        "malformed 431",
        over,
    );
    check(
        head(0, &format!("connection: {}\r\n", "x,".repeat(17))),
        "malformed 400",
        over,
    );
    check(
        head(0, &format!("connection: {}\r\n", "x,".repeat(16))),
        ":method",
        open,
    );
}

#[test]
fn bodies_are_told_in_order_and_the_next_request_behind_them() {
    let post = ":method=POST :scheme=http :authority=a :path=/";
    let next = [
        ":method=GET :scheme=http :authority=a :path=/smuggled",
        "end",
    ];
    let check = |rest: &str, expected: &[&str]| {
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{rest}{GET}");
        check(&request, &[expected, &next].concat());
    };
    let with_length = |n: usize| format!("{post} content-length={n}");
    check("content-length: 0\r\n\r\n", &[&with_length(0), "end"]);
    check(
        "content-length: 5\r\n\r\nhello",
        &[&with_length(5), "data hello", "end"],
    );
    check(
        "content-length: 5\r\n\r\nGET /",
        &[&with_length(5), "data GET /", "end"],
    );
    let chunked = "Transfer-Encoding: Chunked\r\n\r\n";
    check(&format!("{chunked}0\r\n\r\n"), &[post, "end"]);
    check(
        &format!("{chunked}3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"),
        &[post, "data abc0123456789", "end"],
    );
    check(
        &format!("{chunked}1\r\na\r\n0\r\nX-Sum: 1\r\nx-other:\r\n\r\n"),
        &[post, "data a", "trailers x-sum=1 x-other=", "end"],
    );
    // A client of long ago ends its body with an empty line that is none of it.
    check(
        "content-length: 1\r\n\r\na\r\n\r\n\r\n",
        &[&with_length(1), "data a", "end"],
    );
}

/// The head is good, its body is not; what hides behind it never becomes a request.
#[test]
fn a_chunked_body_that_is_none_ends_the_connection() {
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(1024));
    let check = |body: &str, status: &str| {
        let request = format!("{head}{body}{GET}");
        let mut side = Side::answering();
        side.feed(request.as_bytes());
        let last = side.told.last().expect("a head");
        assert_eq!(*last, format!("malformed {status} to answer"), "{body:?}");
        assert_eq!(side.connection.ending(), Ending::Finishing);
        let mut single = Side::answering();
        request
            .as_bytes()
            .chunks(1)
            .for_each(|byte| single.feed(byte));
        assert_eq!(single.told, side.told, "{body:?}");
    };
    for body in [
        "ffffffffffffffff1\r\na\r\n0\r\n\r\n",
        "-1\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1 1\r\na\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\nab\n0\n\n",
        "g\r\na\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "0\r\nno field\r\n\r\n",
        "0\r\n\n",
        "0\r\n folded: x\r\n\r\n",
        "0\r\nx: y\n\r\n",
        "0\r\ncontent-length: 1\r\n\r\n",
        "0\r\ntransfer-encoding: chunked\r\n\r\n",
        "0\r\nHost: b\r\n\r\n",
        "0\r\nconnection: close\r\n\r\n",
        "0\r\nx : y\r\n\r\n",
        "0\r\n\rx\r\n\r\n",
        &long,
    ] {
        check(body, "400");
    }
    check(&format!("0\r\nx: {}\r\n\r\n", "y".repeat(16 * 1024)), "431");
    check(&format!("0\r\n{}\r\n", "x: y\r\n".repeat(129)), "431");
}

/// RFC 9112 section 6.3: the coding wins, the length does not pass, the connection ends.
#[test]
fn of_two_lengths_only_the_coding_counts() {
    let (length, coding) = ("content-length: 3\r\n", "transfer-encoding: chunked\r\n");
    for both in [[length, coding].concat(), [coding, length].concat()] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: a\r\n{both}\r\n5\r\nhello\r\n0\r\n\r\n{GET}");
        let expected = [
            ":method=POST :scheme=http :authority=a :path=/",
            "data hello",
            "end",
        ];
        check_told(
            Side::answering,
            request.as_bytes(),
            &expected,
            Ending::Finishing,
        );
    }
}

#[test]
fn what_http2_has_no_words_for_is_told_beside_the_head() {
    let hop = |request: &str| {
        let mut side = Side::new(Role::Server);
        side.feed(request.as_bytes());
        assert_eq!(
            side.told.len(),
            1 + usize::from(!request.contains("length: 1"))
        );
        side.connection.hop()
    };
    let plain = Hop::default();
    assert_eq!(hop("GET / HTTP/1.1\r\nhost: a\r\n\r\n"), plain);
    let (mut old, mut whole) = (plain, plain);
    old.form.version = Version::Http10;
    old.closes = true;
    whole.form.is_absolute = true;
    assert_eq!(hop("GET / HTTP/1.0\r\n\r\n"), old);
    assert_eq!(hop("GET / HTTP/1.0\r\nexpect: 100-continue\r\n\r\n"), old);
    assert_eq!(hop("GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n"), whole);
    let waits = Hop {
        expects_continue: true,
        closes: true,
        ..plain
    };
    let request = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-Continue\r\nconnection: close\r\n";
    assert_eq!(hop(&format!("{request}content-length: 1\r\n\r\n")), waits);
}
