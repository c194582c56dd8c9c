//! What clients send: what becomes of it, what is refused, and when the connection goes on.

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
fn a_connection_is_kept_as_its_client_says() {
    for (version, option, kept, said) in [
        ("1.1", "", true, ""),
        (
            "1.1",
            "connection: close\r\n",
            false,
            "connection: close\r\n",
        ),
        (
            "1.1",
            "connection: CLOSE, x\r\n",
            false,
            "connection: close\r\n",
        ),
        ("1.1", "connection: keep-alive\r\n", true, ""),
        (
            "1.1",
            "connection: keep-alive\r\nconnection: close\r\n",
            false,
            "connection: close\r\n",
        ),
        ("1.0", "", false, "connection: close\r\n"),
        (
            "1.0",
            "connection: Keep-Alive\r\n",
            true,
            "connection: keep-alive\r\n",
        ),
        (
            "1.0",
            "connection: keep-alive, close\r\n",
            false,
            "connection: close\r\n",
        ),
    ] {
        let mut side = Side::answering();
        let request = format!("GET / HTTP/{version}\r\nhost: a\r\n{option}\r\n");
        side.feed(format!("{request}{GET}").as_bytes());
        let heads = side.told.iter().filter(|told| told.contains(":method"));
        assert_eq!(
            heads.count(),
            if kept { 2 } else { 1 },
            "{version} {option:?}"
        );
        let answer = side.output_text();
        let expected = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{said}\r\n");
        assert!(
            answer.starts_with(&expected),
            "{version} {option:?}: {answer:?}"
        );
        let ending = if kept {
            Ending::Open
        } else {
            Ending::Finishing
        };
        assert_eq!(side.connection.ending(), ending);
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

#[test]
fn a_pipelined_request_waits_for_the_answer_before_it() {
    let mut side = Side::new(Role::Server);
    side.feed(GET.repeat(3).as_bytes());
    assert_eq!(side.told.len(), 2);
    assert!(!side.connection.is_ready());
    // As much as the bound is kept, the rest is left to the kernel.
    side.feed(GET.repeat(10_000).as_bytes());
    assert!(
        side.connection.memory_bytes() < 2 * 64 * 1024 + 4096,
        "{:?}",
        side.connection
    );
    assert!(!side.unread.is_empty());
    for n in 2..=100 {
        side.answer(&[(":status", "200"), ("content-length", "1")], Then::More);
        side.feed(b"");
        assert_eq!(side.told.len(), 2 * (n - 1));
        side.send("x", Then::End);
        side.feed(b"");
        assert_eq!(side.told.len(), 2 * n);
    }
    side.answers = true;
    side.answer(&[(":status", "200")], Then::End);
    side.feed(b"");
    assert_eq!(side.told.len(), 2 * 10_003);
    assert!(side.connection.is_idle());
    assert!(side.connection.memory_bytes() < 2048);
}

/// A body, how much of it comes before the answer and after it; whether the connection is kept.
#[track_caller]
fn check_unread(head: &str, before: &str, after: &str, kept: bool) {
    let mut side = Side::new(Role::Server);
    side.feed(format!("POST / HTTP/1.1\r\nhost: a\r\n{head}\r\n{before}").as_bytes());
    side.answer(&[(":status", "413")], Then::End);
    side.reset();
    let told = side.told.len();
    side.feed(format!("{after}{GET}").as_bytes());
    side.feed(b"");
    let answer = side.output_text();
    let heads = side.told[told..]
        .iter()
        .filter(|told| told.contains("/smuggled"))
        .count();
    assert_eq!(heads, usize::from(kept), "{head:?}: {:?}", side.told);
    assert_eq!(
        side.told.len() - told,
        2 * heads,
        "nobody is told of the rest"
    );
    let is_open = side.connection.ending() == Ending::Open;
    assert_eq!(is_open, kept, "{head:?}");
    assert_eq!(side.connection.is_idle(), !kept);
    // Who is told so at once need not send the rest.
    assert!(!kept || !answer.contains("close"), "{head:?}: {answer}");
}

#[test]
fn a_body_that_nobody_wants_is_dropped_if_it_is_short() {
    let many = "x".repeat(65_536);
    check_unread("content-length: 4\r\n", "ab", "cd", true);
    check_unread("content-length: 65536\r\n", "", &many, true);
    check_unread("content-length: 65537\r\n", "", &format!("{many}x"), false);
    check_unread("content-length: 65538\r\n", "ab", &many, true);
    let chunks = "1\r\na\r\n";
    check_unread(
        "transfer-encoding: chunked\r\n",
        chunks,
        "1\r\nb\r\n0\r\nx: y\r\n\r\n",
        true,
    );
    let many = format!("10001\r\n{many}y\r\n0\r\n\r\n");
    check_unread("transfer-encoding: chunked\r\n", chunks, &many, false);
    check_unread(
        "transfer-encoding: chunked\r\n",
        chunks,
        "no chunk\r\n",
        false,
    );
    check_unread(
        "connection: close\r\ncontent-length: 4\r\n",
        "ab",
        "cd",
        false,
    );
    // Whether it sends its body nobody can tell, so nobody can tell what comes next.
    let waits = "expect: 100-continue\r\ncontent-length: 4\r\n";
    check_unread(waits, "", "", false);
    check_unread(waits, "a", "bcd", true);
}

#[test]
fn a_client_that_was_told_to_go_on_keeps_its_connection() {
    let mut side = Side::new(Role::Server);
    side.feed(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n");
    side.answer(&[(":status", "100")], Then::More);
    assert_eq!(side.output_text(), "HTTP/1.1 100 Continue\r\n\r\n");
    side.answer(&[(":status", "403")], Then::End);
    side.reset();
    side.feed(format!("x{GET}").as_bytes());
    assert_eq!(
        side.output_text(),
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
    );
    assert_eq!(side.told.len(), 3);
}

#[test]
fn an_answer_that_is_given_up_is_not_taken_for_whole() {
    for (answer, ending) in [
        (None, Ending::Finishing),
        (Some(vec![(":status", "200")]), Ending::Aborted),
        (
            Some(vec![(":status", "200"), ("content-length", "5")]),
            Ending::Aborted,
        ),
    ] {
        let mut side = Side::new(Role::Server);
        side.feed(GET.as_bytes());
        if let Some(answer) = &answer {
            side.answer(answer, Then::More);
            side.send("x", Then::More);
        }
        side.reset();
        assert_eq!(side.connection.ending(), ending, "{answer:?}");
        side.feed(GET.as_bytes());
        assert_eq!(side.told.len(), 2);
    }
}

/// What is told when the client ends its direction behind these bytes.
#[track_caller]
fn check_end(bytes: &str, expected: &str, ending: Ending) {
    let mut side = Side::new(Role::Server);
    side.feed(bytes.as_bytes());
    side.told.clear();
    side.end();
    assert_eq!(side.told.join(" "), expected, "{bytes:?}");
    assert_eq!(side.connection.ending(), ending, "{bytes:?}");
    side.feed(b"");
    assert_eq!(side.told.join(" "), expected, "it is told once");
}

#[test]
fn a_client_that_leaves_is_told() {
    check_end("", "", Ending::Finishing);
    check_end("\r\n", "", Ending::Finishing);
    check_end("G", "malformed 400 to answer", Ending::Finishing);
    check_end(
        &GET[..GET.len() - 1],
        "malformed 400 to answer",
        Ending::Finishing,
    );
    check_end(GET, "reset 8", Ending::Finishing);
    let post = "POST / HTTP/1.1\r\nhost: a\r\n";
    check_end(
        &format!("{post}content-length: 2\r\n\r\nx"),
        "reset 8",
        Ending::Finishing,
    );
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    for body in ["", "1", "1\r\nx", "0\r\n", "0\r\nx: y\r\n"] {
        check_end(
            &format!("{post}{chunked}{body}"),
            "reset 8",
            Ending::Finishing,
        );
    }
}

#[test]
fn a_client_that_leaves_during_its_answer_has_it_cut() {
    let mut side = Side::new(Role::Server);
    side.feed(GET.as_bytes());
    side.answer(&[(":status", "200")], Then::More);
    side.end();
    assert_eq!(side.told.last().unwrap(), "reset 8");
    assert_eq!(side.connection.ending(), Ending::Aborted);
}

#[test]
fn only_a_head_that_has_begun_has_a_deadline() {
    let timeout = Limits::default().head_timeout;
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
    let chunked =
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    let begun = "GET / HTTP/1.1\r\nhost:";
    for (pieces, has_begun) in [
        (vec![""], false),
        (vec![begun], true),
        (vec!["G"], true),
        (vec!["\r\n"], false),
        (vec!["\r\n\r\n", "G"], true),
        (vec![GET, begun], true),
        (vec![&[GET, begun].concat()], true),
        (vec![GET], false),
        (vec![post], false),
        (vec![&[post, begun].concat()], true),
        (vec![post, begun], true),
        (vec![chunked], false),
        (vec![&[chunked, begun].concat()], true),
        (vec![&post[..post.len() - 1]], false),
        (vec![&[GET, GET, begun].concat()], true),
        (vec!["bad\r\n"], false),
    ] {
        let mut side = Side::answering();
        let began = side.now;
        for piece in &pieces {
            side.feed(piece.as_bytes());
        }
        side.feed(b"");
        // What comes later of the same head does not move it.
        side.now += Duration::from_secs(1);
        side.feed(if has_begun { b" " } else { b"" });
        let expected = has_begun.then_some(began + timeout);
        assert_eq!(side.connection.deadline(), expected, "{pieces:?}");
        let too_early = Duration::from_nanos(1);
        assert_eq!(side.connection.expire(began + timeout - too_early), Ok(()));
        let expired = side.connection.expire(began + timeout);
        let status = expired
            .err()
            .map(|late| (late.status, late.answer.is_some()));
        assert_eq!(status, has_begun.then_some((408, true)), "{pieces:?}");
    }
}

#[test]
fn a_body_comes_no_faster_than_it_is_released() {
    let limits = Limits {
        window: 10,
        ..Limits::default()
    };
    for body in [
        "0123456789abcdefghij",
        "5\r\n01234\r\nf\r\n56789abcdefghij\r\n0\r\n\r\n",
    ] {
        let framing = if body.contains('\r') {
            "transfer-encoding: chunked"
        } else {
            "content-length: 20"
        };
        let mut side = Side::limited(Role::Server, &limits);
        side.releases = false;
        side.feed(format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n{body}").as_bytes());
        assert_eq!(side.told.last().unwrap(), "data 0123456789");
        assert_eq!(
            (side.connection.room(), side.connection.is_ready()),
            (0, false)
        );
        let stream = side.stream.unwrap();
        side.connection.release(StreamId(stream.0 + 2), 5);
        assert!(!side.connection.is_ready(), "it is of another exchange");
        side.connection.release(stream, 4);
        assert!(side.connection.is_ready());
        side.feed(b"");
        assert_eq!(side.told.last().unwrap(), "data 0123456789abcd");
        // No more than all of it.
        side.connection.release(stream, 1000);
        side.feed(b"");
        assert_eq!(&side.told[1..], ["data 0123456789abcdefghij", "end"]);
    }
}

#[test]
fn the_end_of_a_body_comes_with_its_last_piece() {
    for request in [
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ] {
        let mut side = Side::new(Role::Server);
        let mut input = Input::lent(request.as_bytes());
        let mut next = || {
            side.connection
                .receive(&mut input, &mut side.heads, side.now)
                .unwrap()
        };
        assert!(matches!(
            next(),
            Some(Event::Head {
                then: Then::More,
                ..
            })
        ));
        assert!(matches!(
            next(),
            Some(Event::Data {
                then: Then::End,
                ..
            })
        ));
        assert!(next().is_none());
    }
}

#[test]
fn a_large_piece_of_a_body_is_not_copied() {
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9999\r\n\r\n";
    let read = bytes::Bytes::from([&head[..], &[7; 9999]].concat());
    let mut side = Side::new(Role::Server);
    let mut input = Input::shared(&read);
    side.connection
        .receive(&mut input, &mut side.heads, side.now)
        .unwrap();
    let event = side
        .connection
        .receive(&mut input, &mut side.heads, side.now)
        .unwrap();
    let Some(Event::Data {
        data: Payload::Shared(data),
        ..
    }) = event
    else {
        panic!("{event:?}");
    };
    assert_eq!(data.as_ptr(), read[head.len()..].as_ptr());
}

#[test]
fn after_goodbye_no_other_request_is_taken() {
    let mut idle = Side::new(Role::Server);
    idle.connection.goodbye();
    assert_eq!(idle.connection.ending(), Ending::Finishing);
    let mut side = Side::new(Role::Server);
    side.feed(&GET.as_bytes()[..10]);
    side.connection.goodbye();
    assert_eq!(side.connection.ending(), Ending::Open);
    side.feed(&GET.as_bytes()[10..]);
    side.answer(&[(":status", "200")], Then::End);
    assert_eq!(
        side.output_text(),
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    side.feed(GET.as_bytes());
    assert_eq!(
        (side.told.len(), side.connection.ending()),
        (2, Ending::Finishing)
    );
}

#[test]
fn a_goodbye_inside_an_answer_ends_the_connection_behind_it() {
    let mut side = Side::new(Role::Server);
    side.feed(GET.as_bytes());
    side.answer(&[(":status", "200")], Then::More);
    side.connection.goodbye();
    side.send("ok", Then::More);
    assert_eq!(side.connection.ending(), Ending::Open);
    side.send("", Then::End);
    assert_eq!(side.connection.ending(), Ending::Finishing);
}

#[test]
fn bytes_behind_the_last_request_are_thrown_away() {
    let last = GET.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    let mut side = Side::new(Role::Server);
    side.feed(last.as_bytes());
    for _ in 0..10 {
        side.feed(&[b'x'; 100_000]);
        assert!(side.unread.is_empty());
        assert!(side.connection.memory_bytes() < 2048);
    }
    // So the client's end is seen.
    side.end();
    assert_eq!(side.told[2..], ["reset 8"]);
}

#[test]
fn nobody_is_told_that_a_client_leaves_who_was_given_up() {
    let mut side = Side::new(Role::Server);
    side.feed(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab");
    side.answer(&[(":status", "413")], Then::End);
    side.reset();
    let told = side.told.len();
    side.end();
    assert_eq!(side.told.len(), told);
    assert_eq!(side.connection.ending(), Ending::Finishing);
}
