//! HTTP/1.1 carried between two sidecars: requests that ask for an upgrade.

use super::{malformed::check_with, *};
use crate::{event::StreamId, h2::Upgrade, input::Payload};

fn limits() -> Limits {
    Limits {
        upgrade: Upgrade::Http1,
        ..Limits::of_mesh()
    }
}

fn asking(method: &str) -> Vec<(&str, &str)> {
    let mut fields = request(method).to_vec();
    fields.push((":protocol", "websocket"));
    fields
}

const SWITCHED: [(&str, &str); 2] = [(":status", "101"), (":protocol", "websocket")];

fn data(flags: u8, len: usize) -> Vec<u8> {
    frame(Kind::Data, flags, 1, &vec![7; len])
}

/// What a server is sent, and is to make of it.
#[track_caller]
fn server(rows: &[Vec<u8>], expected: &[&str]) {
    check_with(|| Probe::new(Role::Server, &limits()), rows, expected);
}

/// The same after it has answered a request for an upgrade.
#[track_caller]
fn answered(fields: &[(&str, &str)], then: Then, rows: &[Vec<u8>], expected: &[&str]) {
    let probe = || {
        let mut probe = Probe::new(Role::Server, &limits());
        probe.feed(&headers(1, Then::More, &asking("GET")));
        assert_eq!(probe.events, ["1 GET end"]);
        probe.events.clear();
        let heads = &mut probe.heads;
        probe
            .connection
            .send_head(StreamId(1), &head(fields), then, heads);
        probe.take_output();
        probe
    };
    check_with(probe, rows, expected);
}

/// What a client is sent that has asked for an upgrade.
#[track_caller]
fn client(rows: &[Vec<u8>], expected: &[&str]) {
    let probe = || {
        let mut probe = Probe::new(Role::Client, &limits());
        let head = head(&asking("GET"));
        let opened = probe.connection.open(&head, Then::End, &mut probe.heads);
        assert_eq!(opened, Ok(StreamId(1)));
        probe.connection.fill(usize::MAX, &mut probe.heads);
        assert_eq!(frames(&probe.take_output()), ["> HEADERS 1"]);
        probe
    };
    check_with(probe, rows, expected);
}

#[test]
fn an_upgrade_is_asked_for_beside_any_method_and_has_no_body() {
    for method in ["GET", "POST", "OPTIONS"] {
        let told = format!("1 {method} end");
        server(&[headers(1, Then::More, &asking(method))], &[&told]);
        server(&[headers(1, Then::End, &asking(method))], &[&told]);
    }
    let reset = ["1 PROTOCOL_ERROR by us", "> RST 1 PROTOCOL_ERROR"];
    for method in ["HEAD", "CONNECT"] {
        server(&[headers(1, Then::More, &asking(method))], &reset[1..]);
    }
    let mut sized = asking("POST");
    sized.push(("content-length", "3"));
    server(&[headers(1, Then::More, &sized)], &reset[1..]);
    let mut versioned = request("GET").to_vec();
    for (protocol, is_good) in [
        ("h/1.1", true),
        ("a b", false),
        ("", false),
        ("a/", false),
        ("a,b", false),
    ] {
        versioned.truncate(4);
        versioned.push((":protocol", protocol));
        let expected = if is_good { "1 GET end" } else { reset[1] };
        server(&[headers(1, Then::More, &versioned)], &[expected]);
    }
    let asked = headers(1, Then::More, &asking("GET"));
    for early in [data(0, 1), headers(1, Then::End, &[("a", "b")])] {
        server(&[asked.clone(), early], &["1 GET end", reset[0], reset[1]]);
    }
    // Its end is no event: it was told as over.
    server(&[asked, data(END_STREAM, 0)], &["1 GET end"]);
    // Nothing else changes.
    server(
        &[headers(1, Then::More, &request("GET")), data(END_STREAM, 2)],
        &["1 GET", "1 data 2 end"],
    );
    server(
        &[headers(
            1,
            Then::More,
            &[(":method", "CONNECT"), (":authority", "a:1")],
        )],
        &["1 CONNECT"],
    );
}

#[test]
fn a_server_that_grants_it_gets_bytes_until_their_end() {
    let reset = [
        "1 data 3",
        "1 PROTOCOL_ERROR by us",
        "> RST 1 PROTOCOL_ERROR",
    ];
    answered(
        &SWITCHED,
        Then::More,
        &[data(0, 3), data(END_STREAM, 2)],
        &["1 data 5 end"],
    );
    answered(
        &SWITCHED,
        Then::More,
        &[data(END_STREAM, 0)],
        &["1 data 0 end"],
    );
    answered(
        &SWITCHED,
        Then::More,
        &[data(0, 3), headers(1, Then::End, &[("a", "b")])],
        &reset,
    );
    // One that does not gets the end.
    let refused = [(":status", "400")];
    answered(&refused, Then::More, &[data(END_STREAM, 0)], &[]);
    answered(&refused, Then::More, &[data(0, 1)], &reset[1..]);
    answered(
        &[(":status", "103")],
        Then::More,
        &[data(0, 1)],
        &reset[1..],
    );
}

#[test]
fn a_client_takes_101_as_the_final_answer() {
    let switched = headers(1, Then::More, &SWITCHED);
    let early = headers(1, Then::More, &[(":status", "103")]);
    client(
        &[early, switched.clone(), data(0, 3), data(END_STREAM, 1)],
        &["1 interim", "1 101", "1 data 4 end"],
    );
    let reset = ["1 101", "1 PROTOCOL_ERROR by us", "> RST 1 PROTOCOL_ERROR"];
    client(
        &[switched.clone(), headers(1, Then::End, &[("a", "b")])],
        &reset,
    );
    client(&[headers(1, Then::More, &SWITCHED[..1])], &reset[1..]);
    client(
        &[headers(1, Then::More, &[(":status", "200"), SWITCHED[1]])],
        &reset[1..],
    );
    client(
        &[headers(1, Then::More, &[(":status", "103"), SWITCHED[1]])],
        &reset[1..],
    );
    // Of a request that did not ask.
    let probe = || {
        let mut probe = Probe::new(Role::Client, &limits());
        probe.open("GET", Then::End);
        probe.take_output();
        probe
    };
    check_with(probe, &[switched], &reset[1..]);
}

#[test]
fn a_request_whose_upgrade_is_not_granted_is_ended() {
    let refused = headers(1, Then::More, &[(":status", "400")]);
    let trailers = headers(1, Then::End, &[("a", "b")]);
    client(
        &[refused, data(0, 3), trailers],
        &["1 400", "1 data 3", "1 trailers", "> DATA 1 0 end"],
    );
    client(
        &[headers(1, Then::End, &[(":status", "200")])],
        &["1 200 end", "> DATA 1 0 end"],
    );
}

#[test]
fn both_directions_are_open_after_a_101_and_end_for_themselves() {
    let mut client = Probe::new(Role::Client, &limits());
    let mut server = Probe::new(Role::Server, &limits());
    let opened = client
        .connection
        .open(&head(&asking("GET")), Then::End, &mut client.heads);
    assert_eq!(opened, Ok(StreamId(1)));
    let pass = |from: &mut Probe, to: &mut Probe, expected: &[&str]| {
        from.connection.fill(usize::MAX, &mut from.heads);
        to.feed(&from.take_output());
        assert_eq!(std::mem::take(&mut to.events), expected);
    };
    let send = |probe: &mut Probe, len: usize, then| {
        let bytes = vec![7; len];
        probe
            .connection
            .send_data(StreamId(1), Payload::Lent(&bytes), then);
    };
    pass(&mut client, &mut server, &["1 GET end"]);
    let heads = &mut server.heads;
    server
        .connection
        .send_head(StreamId(1), &head(&SWITCHED), Then::More, heads);
    send(&mut server, 4, Then::More);
    pass(&mut server, &mut client, &["1 101", "1 data 4"]);
    send(&mut client, 5, Then::End);
    pass(&mut client, &mut server, &["1 data 5 end"]);
    send(&mut server, 6, Then::More);
    pass(&mut server, &mut client, &["1 data 6"]);
    send(&mut server, 0, Then::End);
    pass(&mut server, &mut client, &["1 data 0 end"]);
    assert!(client.connection.is_idle() && server.connection.is_idle());
}
