//! How a server's connection goes on, waits, and ends.

use super::*;

const GET: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

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
    while side.told.len() < 2 * 10_003 {
        let told = side.told.len();
        side.feed(b"");
        // A client that does not read is not answered for ever.
        assert!(side.connection.output().len() < 64 * 1024 + 200);
        side.output();
        side.connection.fill(64 * 1024);
        assert!(side.told.len() > told);
    }
    assert!(side.connection.is_idle());
    side.output();
    side.connection.shrink();
    assert!(side.connection.memory_bytes() < 2048);
}

/// The last piece of an answer waits in the output of a reader that takes its time.
#[test]
fn an_answer_has_gone_before_the_next_request_begins_or_the_connection_ends() {
    for (said, ending) in [
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", Ending::Open),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
            Ending::Finishing,
        ),
        ("GET / HTTP/1.0\r\n\r\n", Ending::Finishing),
    ] {
        let mut side = Side::new(Role::Server);
        side.feed(format!("{said}{GET}").as_bytes());
        let told = side.told.len();
        side.answer(&[(":status", "200")], Then::More);
        side.send(&"x".repeat(60_000), Then::More);
        assert_eq!(side.send(&"y".repeat(10_000), Then::End), 0);
        side.feed(b"");
        side.connection.fill(64 * 1024);
        assert_eq!(
            (side.told.len(), side.connection.ending()),
            (told, Ending::Open),
            "{said}"
        );
        side.output();
        side.connection.fill(64 * 1024);
        let Some(Event::Writable { sent, .. }) = side.connection.next_written() else {
            unreachable!("what waited has gone");
        };
        assert_eq!((sent, side.connection.ending()), (10_000, ending), "{said}");
        side.feed(b"");
        assert_eq!(side.told.len() > told, ending == Ending::Open, "{said}");
    }
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
    let is_told = answer.contains("\r\nconnection: close\r\n");
    let is_known = !head.contains("chunked");
    assert_eq!(is_told, !kept && is_known, "{head:?}: {answer}");
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

#[test]
fn what_is_thrown_away_needs_no_window() {
    let limits = Limits {
        window: 4,
        ..Limits::default()
    };
    let mut side = Side::limited(Role::Server, &limits);
    side.releases = false;
    side.feed(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8\r\n\r\n012345");
    assert_eq!(side.connection.room(), 0);
    side.answer(&[(":status", "413")], Then::End);
    side.reset();
    side.feed(format!("67{GET}").as_bytes());
    assert_eq!(side.told[2..].len(), 2, "{:?}", side.told);
}

#[test]
fn no_more_can_be_released_than_there_is() {
    let limits = Limits {
        window: 10,
        ..Limits::default()
    };
    let mut side = Side::limited(Role::Server, &limits);
    side.feed(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n");
    side.connection.release(side.stream.unwrap(), 1000);
    assert_eq!(side.connection.room(), 10);
}

#[test]
fn a_refusal_says_that_the_connection_ends() {
    let mut side = Side::new(Role::Server);
    side.feed(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n");
    // On the stream that the error names, which is the first.
    side.stream = Some(StreamId(1));
    side.answer(&[(":status", "400"), ("content-length", "2")], Then::More);
    side.send("no", Then::End);
    assert_eq!(
        side.output_text(),
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
    );
    assert_eq!(side.connection.ending(), Ending::Finishing);
}

#[test]
fn an_answer_without_a_body_is_whole_with_its_head() {
    let mut side = Side::new(Role::Server);
    side.feed(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
    side.answer(&[(":status", "200")], Then::More);
    side.feed(GET.as_bytes());
    assert_eq!(side.told.len(), 2, "its end has not been told");
    side.reset();
    side.feed(b"");
    assert_eq!(side.told.len(), 4);
}
