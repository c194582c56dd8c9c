//! HTTP/1.1 through the relay, byte for byte: what a client says, what its endpoint hears, and
//! back.

#[path = "../relay/scene.rs"]
mod scene;
mod talk;

use heddle_relay::relay::Closing;
use talk::{Between, Talk};

const GET: &str = "GET /a HTTP/1.1\r\nhost: echo.shop\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

/// Without and with a mesh in between: nobody can tell.
fn both(play: impl Fn(&mut Talk)) {
    for between in [Between::OneRelay, Between::Mesh] {
        play(&mut Talk::new(between));
    }
}

#[test]
fn a_request_and_its_answer_pass_and_both_connections_are_used_again() {
    both(|talk| {
        for _ in 0..3 {
            talk.client_says(GET);
            let heard = talk.endpoint_hears();
            assert!(
                heard.starts_with("GET /a HTTP/1.1\r\nhost: echo.shop\r\n"),
                "{heard}"
            );
            assert!(heard.contains("\r\nx-request-id: "), "{heard}");
            talk.endpoint_says(OK);
            assert_eq!(talk.client_hears(), OK);
        }
        talk.check_records(&["200 - 1"; 3]);
        assert_eq!(talk.dials, 1);
        assert_eq!(talk.closed(), []);
    });
}

#[test]
fn requests_in_one_read_are_answered_in_turn() {
    both(|talk| {
        talk.client_says(&GET.repeat(3));
        for _ in 0..3 {
            assert_eq!(talk.endpoint_hears().matches("GET ").count(), 1);
            talk.endpoint_says(OK);
            assert_eq!(talk.client_hears(), OK);
        }
        talk.check_records(&["200 - 1"; 3]);
    });
}

#[test]
fn bodies_keep_their_framing() {
    both(|talk| {
        talk.client_says(
            "POST /a HTTP/1.1\r\nhost: e\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        );
        let heard = talk.endpoint_hears();
        assert!(heard.contains("transfer-encoding: chunked\r\n"), "{heard}");
        assert!(heard.ends_with("\r\n\r\n3\r\nabc\r\n"), "{heard}");
        talk.client_says("2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n");
        assert_eq!(talk.endpoint_hears(), "2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n");
        talk.endpoint_says("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab");
        talk.endpoint_says("cd");
        assert!(talk.client_hears().ends_with("\r\n\r\nabcd"));
        talk.client_says("PUT /a HTTP/1.1\r\nhost: e\r\ncontent-length: 5\r\n\r\nab");
        assert!(talk.endpoint_hears().contains("content-length: 5\r\n"));
        talk.client_says("cde");
        assert_eq!(talk.endpoint_hears(), "cde");
        talk.endpoint_says(OK);
        assert_eq!(talk.client_hears(), OK);
        talk.check_records(&["200 - 1"; 2]);
        assert_eq!(talk.dials, 1);
    });
}

#[test]
fn an_expectation_passes_both_ways() {
    both(|talk| {
        talk.client_says(
            "POST /a HTTP/1.1\r\nhost: e\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n",
        );
        assert!(talk.endpoint_hears().contains("expect: 100-continue\r\n"));
        talk.endpoint_says("HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(talk.client_hears(), "HTTP/1.1 100 Continue\r\n\r\n");
        talk.client_says("ok");
        assert_eq!(talk.endpoint_hears(), "ok");
        talk.endpoint_says(OK);
        assert_eq!(talk.client_hears(), OK);
    });
}

#[test]
fn an_upgrade_makes_a_tunnel_that_ends_when_both_directions_have() {
    both(|talk| {
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
        talk.client_says(&format!("GET /ws HTTP/1.1\r\nhost: e\r\n{upgrade}\r\n"));
        let heard = talk.endpoint_hears().to_ascii_lowercase();
        assert!(heard.contains("upgrade: websocket\r\n"), "{heard}");
        talk.endpoint_says(&format!(
            "HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\nfirst"
        ));
        let heard = talk.client_hears().to_ascii_lowercase();
        assert!(heard.starts_with("http/1.1 101 "), "{heard}");
        assert!(heard.ends_with("\r\n\r\nfirst"), "{heard}");
        talk.client_says("ping");
        assert_eq!(talk.endpoint_hears(), "ping");
        talk.endpoint_ends();
        assert_eq!(talk.shut(), ["client"]);
        talk.client_says("more");
        assert_eq!(talk.endpoint_hears(), "more");
        talk.check_records(&[]);
        talk.client_ends();
        talk.check_records(&["101 - 1"]);
        let both = [("client", Closing::Finish), ("endpoint", Closing::Finish)];
        assert_eq!(talk.closed(), both);
    });
}

#[test]
fn a_tunnel_that_breaks_is_broken_on_the_other_side() {
    both(|talk| {
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
        talk.client_says(&format!("GET /ws HTTP/1.1\r\nhost: e\r\n{upgrade}\r\n"));
        talk.endpoint_hears();
        talk.endpoint_says(&format!(
            "HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n"
        ));
        talk.client_hears();
        talk.endpoint_is_lost();
        assert_eq!(talk.closed(), [("client", Closing::Abort)]);
        talk.check_records(&["101 reset 1"]);
    });
}

#[test]
fn what_is_no_request_is_answered_and_ends_the_connection() {
    for (said, status) in [
        ("GET /a HTTP/1.1\r\n\r\n", "400"),
        ("GET /a HTTP/2.0\r\nhost: e\r\n\r\n", "505"),
        ("GET /a HTTP/1.1\r\nhost: e\r\n folded: x\r\n\r\n", "400"),
        (
            "POST /a HTTP/1.1\r\nhost: e\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "501",
        ),
        (
            "POST /a HTTP/1.1\r\nhost: e\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "400",
        ),
    ] {
        let mut talk = Talk::new(Between::OneRelay);
        talk.client_says(said);
        let heard = talk.client_hears();
        assert!(
            heard.starts_with(&format!("HTTP/1.1 {status} ")),
            "{said}: {heard}"
        );
        assert!(
            heard.contains("x-heddle-reason: bad_request\r\n"),
            "{heard}"
        );
        assert!(heard.contains("connection: close\r\n"), "{heard}");
        assert_eq!(talk.closed(), [("client", Closing::Finish)]);
        talk.check_records(&[&format!("{status} bad_request 0")]);
        assert_eq!(talk.dials, 0);
    }
}

#[test]
fn a_body_that_breaks_its_framing_ends_both_connections() {
    both(|talk| {
        talk.client_says(
            "POST /a HTTP/1.1\r\nhost: e\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        );
        talk.endpoint_hears();
        talk.client_says("zz\r\n");
        assert!(talk.client_hears().starts_with("HTTP/1.1 400 "));
        assert_eq!(
            talk.closed(),
            [("client", Closing::Finish), ("endpoint", Closing::Abort)]
        );
        talk.check_records(&["400 bad_request 1"]);
    });
}

#[test]
fn an_answer_that_is_none_is_a_bad_gateway() {
    for said in [
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        "SSH-2.0\r\n",
    ] {
        let mut talk = Talk::new(Between::OneRelay);
        talk.client_says(GET);
        talk.endpoint_hears();
        talk.endpoint_says(said);
        let heard = talk.client_hears();
        assert!(heard.starts_with("HTTP/1.1 502 "), "{heard}");
        assert!(
            heard.contains("x-heddle-reason: bad_response\r\n"),
            "{heard}"
        );
        assert_eq!(talk.closed(), [("endpoint", Closing::Abort)]);
        talk.check_records(&["502 bad_response 1"]);
        // The client's connection goes on.
        talk.client_says(GET);
        talk.endpoint_hears();
        talk.endpoint_says(OK);
        assert_eq!(talk.client_hears(), OK);
    }
}

#[test]
fn an_idle_connection_that_its_endpoint_had_closed_is_no_failure() {
    both(|talk| {
        talk.client_says(GET);
        talk.endpoint_hears();
        talk.endpoint_says(OK);
        talk.client_hears();
        talk.client_says(GET);
        talk.endpoint_hears();
        talk.endpoint_is_lost();
        assert!(talk.endpoint_hears().starts_with("GET "));
        talk.endpoint_says(OK);
        assert_eq!(talk.client_hears(), OK);
        talk.check_records(&["200 - 1"; 2]);
        assert_eq!(talk.dials, 2);
    });
}

#[test]
fn what_may_not_be_repeated_is_not() {
    both(|talk| {
        talk.client_says(GET);
        talk.endpoint_hears();
        talk.endpoint_says(OK);
        talk.client_hears();
        talk.client_says("POST /a HTTP/1.1\r\nhost: e\r\ncontent-length: 2\r\n\r\nab");
        talk.endpoint_hears();
        talk.endpoint_is_lost();
        let heard = talk.client_hears();
        assert!(heard.starts_with("HTTP/1.1 503 "), "{heard}");
        talk.check_records(&["200 - 1", "503 reset 1"]);
    });
}

#[test]
fn an_answer_until_the_end_of_its_connection_ends_there() {
    both(|talk| {
        talk.client_says(GET);
        talk.endpoint_hears();
        talk.endpoint_says("HTTP/1.1 200 OK\r\n\r\nab");
        talk.endpoint_says("cd");
        talk.endpoint_ends();
        let heard = talk.client_hears();
        assert!(
            heard.ends_with("2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"),
            "{heard}"
        );
        assert_eq!(talk.closed(), [("endpoint", Closing::Finish)]);
        talk.check_records(&["200 - 1"]);
    });
}

#[test]
fn an_answer_that_breaks_off_does_not_look_whole() {
    both(|talk| {
        talk.client_says(GET);
        talk.endpoint_hears();
        talk.endpoint_says("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab");
        talk.endpoint_is_lost();
        assert!(talk.client_hears().ends_with("\r\n\r\nab"));
        assert_eq!(talk.closed(), [("client", Closing::Abort)]);
        talk.check_records(&["200 reset 1"]);
    });
}

#[test]
fn a_client_that_leaves_takes_its_request_with_it() {
    both(|talk| {
        talk.client_says(GET);
        talk.endpoint_hears();
        talk.client_ends();
        assert_eq!(
            talk.closed(),
            [("client", Closing::Finish), ("endpoint", Closing::Abort)]
        );
        talk.check_records(&["- cancelled 1"]);
    });
}

#[test]
fn a_slow_reader_stops_its_endpoint() {
    both(|talk| {
        talk.client_says(GET);
        talk.endpoint_hears();
        talk.endpoint_says("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
        talk.client_reads = false;
        let mut said = 0;
        while talk.endpoint_room() > 0 {
            talk.endpoint_says(&"x".repeat(10_000));
            said += 10_000;
            assert!(said < 400_000, "it stops");
        }
        talk.client_reads = true;
        assert!(talk.client_hears().len() > 10_000);
        assert!(talk.endpoint_room() > 0);
        while said < 1_000_000 {
            talk.endpoint_says(&"x".repeat(10_000));
            said += 10_000;
            talk.client_hears();
        }
        talk.check_records(&["200 - 1"]);
    });
}

#[test]
fn requests_come_out_in_the_form_that_they_had() {
    for said in [
        "GET /a HTTP/1.0\r\nhost: echo.shop\r\n",
        "GET http://echo.shop/a HTTP/1.1\r\nhost: echo.shop\r\n",
        "GET http://echo.shop/a HTTP/1.0\r\nhost: echo.shop\r\n",
    ] {
        both(|talk| {
            talk.client_says(&format!("{said}\r\n"));
            let heard = talk.endpoint_hears();
            assert!(heard.starts_with(said), "{heard}");
            assert!(!heard.contains("x-heddle"), "{heard}");
        });
    }
}

#[test]
fn an_upgrade_that_goes_with_a_body_is_not_asked_for_between_sidecars() {
    let mut talk = Talk::new(Between::Mesh);
    talk.client_says(
        "POST /ws HTTP/1.1\r\nhost: e\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         content-length: 2\r\n\r\nhi",
    );
    let heard = talk.endpoint_hears();
    assert!(heard.ends_with("\r\n\r\nhi"), "{heard}");
    assert!(!heard.contains("upgrade"), "{heard}");
    talk.endpoint_says(OK);
    assert_eq!(talk.client_hears(), OK);
}
