//! Messages that are malformed (RFC 9113 sections 8.1 to 8.5), and those beside them that are not.

use super::{
    malformed::{but, check_with, client, client_of, data, post, server},
    *,
};
use crate::h2::Upgrade;

/// A request whose fields are malformed.
#[track_caller]
fn bad_request(fields: &[(&str, &str)]) {
    server(
        &[headers(1, Then::End, fields)],
        &["> RST 1 PROTOCOL_ERROR"],
    );
}

#[track_caller]
fn good_request(fields: &[(&str, &str)]) {
    let expected = format!("1 {}", fields[0].1);
    server(&[headers(1, Then::More, fields)], &[&expected]);
}

#[track_caller]
fn bad_answer(fields: &[(&str, &str)]) {
    let expected = ["1 PROTOCOL_ERROR by us", "> RST 1 PROTOCOL_ERROR"];
    client(&[headers(1, Then::More, fields)], &expected);
}

/// A request with one more field.
fn with<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut fields = request("GET").to_vec();
    fields.push((name, value));
    fields
}

#[test]
fn pseudo_headers_are_first_and_once_and_those_of_requests() {
    good_request(&request("GET"));
    bad_request(&[]);
    bad_request(&with(":method", "GET"));
    bad_request(&with(":path", "/"));
    bad_request(&with(":status", "200"));
    bad_request(&with(":other", "x"));
    bad_request(&with(":", "x"));
    bad_request(&with("Accept", "x"));
    for name in [":method", ":scheme", ":path", ":authority"] {
        bad_request(&but("GET", name, None));
        bad_request(&but("GET", name, Some("")));
    }
    let mut late = vec![("a", "b")];
    late.extend(request("GET"));
    bad_request(&late);
    bad_answer(&[("a", "b")]);
    bad_answer(&[("a", "b"), (":status", "200")]);
    bad_answer(&[(":status", "200"), (":status", "200")]);
    bad_answer(&[(":status", "200"), (":path", "/")]);
    bad_answer(&[(":status", "200"), (":protocol", "a")]);
    bad_answer(&[(":status", "200"), (":other", "a")]);
}

#[test]
fn methods_schemes_paths_and_authorities_have_their_form() {
    bad_request(&but("GE T", "", None));
    bad_request(&but("GET,", "", None));
    bad_request(&but("GET", ":scheme", Some("1http")));
    bad_request(&but("GET", ":scheme", Some("http:")));
    for path in ["*", "a", "http://a/", "/a b", "/a\tb", "/\u{7f}"] {
        bad_request(&but("GET", ":path", Some(path)));
    }
    good_request(&but("OPTIONS", ":path", Some("*")));
    for authority in ["u@a", "a b", "a\tb"] {
        bad_request(&but("GET", ":authority", Some(authority)));
    }
    good_request(&with("host", "A"));
    bad_request(&with("host", "b"));
    bad_request(&with("host", ""));
    let mut host = but("GET", ":authority", None);
    host.push(("host", "a"));
    good_request(&host);
    host.push(("host", "a"));
    bad_request(&host);
}

#[test]
fn connect_has_an_authority_and_nothing_else_unless_it_is_extended() {
    let connect = [(":method", "CONNECT"), (":authority", "a:1")];
    good_request(&connect);
    bad_request(&connect[..1]);
    bad_request(&but("CONNECT", "", None));
    bad_request(&but("CONNECT", ":path", None));
    bad_request(&but("CONNECT", ":scheme", None));
    let limits = Limits {
        upgrade: Upgrade::ExtendedConnect,
        ..Limits::of_mesh()
    };
    let extended = |fields: &[(&str, &str)], expected: &str| {
        let probe = || Probe::new(Role::Server, &limits);
        check_with(probe, &[headers(1, Then::More, fields)], &[expected]);
    };
    let mut fields = request("CONNECT").to_vec();
    fields.push((":protocol", "websocket"));
    extended(&fields, "1 CONNECT");
    // Unless it is announced there is no such thing.
    bad_request(&fields);
    for missing in 1..4 {
        let mut fields = fields.clone();
        fields.remove(missing);
        extended(&fields, "> RST 1 PROTOCOL_ERROR");
    }
    extended(&with(":protocol", "websocket"), "> RST 1 PROTOCOL_ERROR");
    let mut spaced = request("CONNECT").to_vec();
    spaced.push((":protocol", "web socket"));
    extended(&spaced, "> RST 1 PROTOCOL_ERROR");
    // Only DATA follows.
    server(
        &[
            headers(1, Then::More, &connect),
            data(1, 0, 3),
            headers(1, Then::End, &[]),
        ],
        &[
            "1 CONNECT",
            "1 data 3",
            "1 PROTOCOL_ERROR by us",
            "> RST 1 PROTOCOL_ERROR",
        ],
    );
    let ok = headers(
        1,
        Then::More,
        &[(":status", "200"), ("content-length", "1")],
    );
    client_of(
        "CONNECT",
        &[ok, data(1, 0, 3), headers(1, Then::End, &[])],
        &[
            "1 200",
            "1 data 3",
            "1 PROTOCOL_ERROR by us",
            "> RST 1 PROTOCOL_ERROR",
        ],
    );
    let refused = headers(1, Then::More, &[(":status", "403")]);
    client_of(
        "CONNECT",
        &[refused, data(1, 0, 3), headers(1, Then::End, &[])],
        &["1 403", "1 data 3", "1 trailers"],
    );
}

#[test]
fn fields_of_one_connection_do_not_pass() {
    let names = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
    ];
    for name in names {
        bad_request(&with(name, "x"));
        bad_answer(&[(":status", "200"), (name, "x")]);
    }
    bad_request(&with("te", "gzip"));
    bad_request(&with("te", "trailers, gzip"));
    good_request(&with("te", "trailers"));
}

#[test]
fn bodies_have_the_length_that_was_said() {
    let of = |length: &'static str| {
        let mut fields = request("POST").to_vec();
        fields.push(("content-length", length));
        headers(1, Then::More, &fields)
    };
    let reset = ["1 POST", "1 PROTOCOL_ERROR by us", "> RST 1 PROTOCOL_ERROR"];
    server(
        &[of("3"), data(1, END_STREAM, 3)],
        &["1 POST", "1 data 3 end"],
    );
    server(
        &[of("0"), data(1, END_STREAM, 0)],
        &["1 POST", "1 data 0 end"],
    );
    server(&[of("3"), data(1, 0, 4)], &reset);
    server(&[of("3"), data(1, END_STREAM, 2)], &reset);
    server(
        &[of("3"), data(1, 0, 2), data(1, 0, 2)],
        &[
            "1 POST",
            "1 data 2",
            "1 PROTOCOL_ERROR by us",
            "> RST 1 PROTOCOL_ERROR",
        ],
    );
    server(&[of("3"), headers(1, Then::End, &[])], &reset);
    for length in ["-1", "+1", "", "1,1", "0x1", "99999999999999999999"] {
        bad_request(&with("content-length", length));
    }
    bad_request(&with("content-length", "1"));
    let mut twice = with("content-length", "0");
    twice.push(("content-length", "0"));
    bad_request(&twice);
}

#[test]
fn answers_have_the_body_that_their_status_and_method_allow() {
    let answer =
        |then, status, length| headers(1, then, &[(":status", status), ("content-length", length)]);
    client_of("HEAD", &[answer(Then::End, "200", "5")], &["1 200 end"]);
    client(&[answer(Then::End, "304", "5")], &["1 304 end"]);
    let reset = ["1 PROTOCOL_ERROR by us", "> RST 1 PROTOCOL_ERROR"];
    client(&[answer(Then::End, "200", "5")], &reset);
    client(&[answer(Then::End, "204", "5")], &reset);
    for (method, status) in [("HEAD", "200"), ("GET", "304"), ("GET", "204")] {
        let head = headers(1, Then::More, &[(":status", status)]);
        let told = format!("1 {status}");
        client_of(
            method,
            &[head.clone(), data(1, END_STREAM, 0)],
            &[&told, "1 data 0 end"],
        );
        client_of(method, &[head, data(1, 0, 1)], &[&told, reset[0], reset[1]]);
    }
    for status in ["", "20", "2000", "2x0", "099", "101", "+20"] {
        bad_answer(&[(":status", status)]);
    }
    client(&[headers(1, Then::End, &[(":status", "100")])], &reset);
    client(&[data(1, 0, 1)], &reset);
    client(
        &[headers(1, Then::More, &[(":status", "100")]), data(1, 0, 1)],
        &["1 interim", reset[0], reset[1]],
    );
}

#[test]
fn trailers_are_the_end_and_have_no_pseudo_headers() {
    let reset = ["1 POST", "1 PROTOCOL_ERROR by us", "> RST 1 PROTOCOL_ERROR"];
    server(&[post(1), headers(1, Then::More, &[("a", "b")])], &reset);
    server(&[post(1), headers(1, Then::End, &[(":path", "/")])], &reset);
    server(
        &[post(1), headers(1, Then::End, &[(":other", "/")])],
        &reset,
    );
    server(
        &[post(1), headers(1, Then::End, &[("upgrade", "a")])],
        &reset,
    );
    server(&[post(1), headers(1, Then::End, &[("A", "b")])], &reset);
    let ok = headers(1, Then::More, &[(":status", "200")]);
    client(
        &[ok.clone(), ok],
        &["1 200", "1 PROTOCOL_ERROR by us", "> RST 1 PROTOCOL_ERROR"],
    );
}
