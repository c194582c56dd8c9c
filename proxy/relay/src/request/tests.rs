use rand::{SeedableRng, rngs::SmallRng};

use super::*;
use crate::head::Indexing;

const TERMS: Terms = Terms {
    paths: Strictness {
        escaped_slashes: heddle_policy::path::EscapedSlashes::Refuse,
        empty_segments: heddle_policy::path::EmptySegments::Merge,
    },
    sampled_share: 0.0,
};

fn head(fields: &[(&str, &str)]) -> Head {
    let mut head = Head::new();
    for (name, value) in fields {
        head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
    }
    head
}

fn get(fields: &[(&str, &str)]) -> Head {
    let request = [(":method", "GET"), (":scheme", "http")];
    head(&[&request, fields].concat())
}

fn ready(head: &mut Head, version: Version) -> Result<Request, ProxyError> {
    Request::ready(head, version, &TERMS, &mut SmallRng::seed_from_u64(7))
}

fn names(head: &Head) -> Vec<&str> {
    let names = head.iter().map(|field| std::str::from_utf8(field.name));
    names.map(Result::unwrap).collect()
}

/// What is judged and forwarded of a request with this authority, these hosts and this path.
#[track_caller]
fn check(fields: &[(&str, &str)], version: Version, expected: Result<(&str, &str, &str), &str>) {
    let mut head = get(fields);
    let request = match ready(&mut head, version) {
        Ok(request) => request,
        Err(error) => {
            assert_eq!(Err(error.disposition().reason), expected, "{error}");
            return;
        }
    };
    let judged = request.judged(&head, |head| {
        (head.authority.to_owned(), head.path.to_owned())
    });
    let target = text(head.get(Token::Path));
    assert_eq!(Ok((&*judged.0, &*judged.1, target)), expected);
    assert!(!names(&head).contains(&"host"));
}

#[test]
fn authority_and_path_are_brought_to_one_form() {
    use Version::{Http1, Http2};
    let both = |path| [(":authority", "Echo.Shop:80"), (":path", path)];
    check(&both("/a"), Http2, Ok(("echo.shop:80", "/a", "/a")));
    check(
        &both("/a?b=/../c"),
        Http2,
        Ok(("echo.shop:80", "/a", "/a?b=/../c")),
    );
    check(
        &both("//a/./b/../c?d"),
        Http2,
        Ok(("echo.shop:80", "/a/c", "/a/c?d")),
    );
    check(&both("/a%2fb"), Http2, Err("bad_request"));
    check(&both("/a?b\u{7f}"), Http2, Err("bad_request"));
    let host = |host| [("host", host), (":path", "/")];
    check(&host("A"), Http2, Ok(("a", "/", "/")));
    check(&host("A"), Http1, Ok(("a", "/", "/")));
    check(&[(":path", "/")], Http1, Ok(("", "/", "/")));
    check(&[(":path", "/")], Http2, Err("bad_request"));
    check(&host("user@a"), Http1, Err("bad_request"));
    check(&host("a b"), Http1, Err("bad_request"));
    check(&host("a/b"), Http1, Err("bad_request"));
    let two = [("host", "a"), ("host", "a"), (":path", "/")];
    check(&two, Http2, Err("bad_request"));
}

#[test]
fn connect_is_refused() {
    let mut head = head(&[(":method", "CONNECT"), (":authority", "a:1")]);
    let error = ready(&mut head, Version::Http2).unwrap_err();
    assert_eq!(error.disposition().reason, "connect_refused");
}

#[test]
fn what_only_a_sidecar_says_is_not_believed() {
    let ours = [
        (":path", "/"),
        ("host", "a"),
        ("x-heddle-reason", "refused"),
        ("x-heddle-more", "1"),
        ("x-forwarded-client-cert", "By=me"),
        ("x-mine", "1"),
    ];
    let mut head = get(&ours);
    ready(&mut head, Version::Http2).unwrap();
    strip_claims(&mut head);
    let kept = names(&head);
    assert!(kept.contains(&"x-mine"));
    let is_said = |name: &&str| name.starts_with("x-heddle") || name.contains("cert");
    assert!(!kept.iter().any(is_said), "{kept:?}");
}

#[test]
fn a_request_id_is_kept_or_made() {
    let of = |id: &str| {
        let mut head = get(&[(":path", "/"), ("host", "a"), ("x-request-id", id)]);
        ready(&mut head, Version::Http2).unwrap();
        assert_eq!(head.all(Token::XRequestId).count(), 1);
        text(head.get(Token::XRequestId)).to_owned()
    };
    assert_eq!(of("mine"), "mine");
    for bad in ["", &"x".repeat(129)] {
        let made = of(bad);
        assert_eq!(made.len(), 32);
        assert!(made.bytes().all(|digit| digit.is_ascii_hexdigit()));
    }
}

#[test]
fn grpc_is_told_by_its_content_type_and_has_its_own_time() {
    for (content_type, version, spoken, timeout) in [
        ("application/grpc", Version::Http2, Spoken::Grpc, Some(2)),
        (
            "application/grpc+proto",
            Version::Http2,
            Spoken::Grpc,
            Some(2),
        ),
        ("application/grpc-web", Version::Http2, Spoken::Http2, None),
        ("application/grpc", Version::Http1, Spoken::Http1, None),
    ] {
        let mut head = get(&[
            (":path", "/"),
            ("host", "a"),
            ("content-type", content_type),
            ("grpc-timeout", "2S"),
        ]);
        let request = ready(&mut head, version).unwrap();
        assert_eq!(request.spoken, spoken);
        assert_eq!(request.timeout, timeout.map(Duration::from_secs));
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[test]
fn a_trace_is_continued_with_a_span_of_this_hop() {
    let caller = format!("00-{TRACE}-{PARENT}-01");
    let state = ("tracestate", "a=1");
    let mut head = get(&[
        (":path", "/"),
        ("host", "a"),
        ("traceparent", &caller),
        state,
    ]);
    let trace = ready(&mut head, Version::Http2).unwrap().trace;
    let told = text(head.get(Token::Traceparent));
    assert_eq!(told, format!("00-{TRACE}-{:016x}-01", trace.span_id));
    assert_eq!(trace.parent_id, Some(0xb7ad_6b71_6920_3331));
    assert!(trace.is_sampled && head.get(Token::Tracestate).is_some());

    let mut head = get(&[(":path", "/"), ("host", "a"), state]);
    let trace = ready(&mut head, Version::Http2).unwrap().trace;
    assert_eq!((trace.parent_id, trace.is_sampled), (None, false));
    assert_eq!(head.get(Token::Tracestate), None);
    assert_eq!(
        text(head.get(Token::Traceparent)),
        format!("00-{:032x}-{:016x}-00", trace.trace_id, trace.span_id)
    );
}

#[test]
fn a_traceparent_is_taken_only_if_it_is_well_formed() {
    let good = Some((
        0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
        0xb7ad_6b71_6920_3331,
    ));
    let check = |text: String, expected: Option<(u128, u64)>| {
        let parsed = parse_traceparent(text.as_bytes()).map(|(t, p, _)| (t, p));
        assert_eq!(parsed, expected, "{text}");
    };
    check(format!("00-{TRACE}-{PARENT}-01"), good);
    check(format!("cc-{TRACE}-{PARENT}-01-more"), good);
    check(format!("cc-{TRACE}-{PARENT}-01more"), None);
    check(format!("00-{TRACE}-{PARENT}-01-more"), None);
    check(format!("ff-{TRACE}-{PARENT}-01"), None);
    check(format!("00-{}-{PARENT}-01", "0".repeat(32)), None);
    check(format!("00-{TRACE}-{}-01", "0".repeat(16)), None);
    check(format!("00-{}-{PARENT}-01", TRACE.to_uppercase()), None);
    check(format!("00-{TRACE}-{PARENT}"), None);
    check(String::new(), None);
}

#[test]
fn host_and_authority_are_one_to_those_who_judge() {
    let mut head = get(&[("host", "Echo.Shop"), (":path", "/")]);
    ready(&mut head, Version::Http1).unwrap();
    for name in ["host", ":authority"] {
        let mut seen = Vec::new();
        head.visit(name, &mut |value| {
            seen.push(value.to_vec());
            true
        });
        assert_eq!(seen, [b"echo.shop"], "{name}");
    }
}
