//! What a peer may be late with.

use std::time::Duration;

use super::{streams::mesh, *};

#[test]
fn what_is_overdue_ends_the_connection() {
    let check = |bytes: &[u8], expected: Option<(u64, Code)>| {
        let mut probe = Probe::fresh(Role::Server, &mesh());
        probe.feed(PREFACE);
        probe.feed(&frame(Kind::Settings, 0, 0, &[]));
        probe.feed(bytes);
        let (secs, code) = match expected {
            Some((secs, code)) => (Some(secs), Some(code)),
            None => (None, None),
        };
        let deadline = secs.map(|secs| probe.now + Duration::from_secs(secs));
        assert_eq!(probe.connection.deadline(), deadline);
        let Some(deadline) = deadline else { return };
        let before = deadline - Duration::from_nanos(1);
        assert_eq!(probe.connection.expire(before), Ok(()));
        let broken = probe.connection.expire(deadline).unwrap_err();
        assert_eq!(Some(broken.code), code);
        assert_eq!(probe.connection.expire(before), Err(broken));
        let goaway = format!("> GOAWAY 0 {}", name(broken.code));
        assert_eq!(frames(&probe.take_output()).last(), Some(&goaway));
    };
    let ack = frame(Kind::Settings, ACK, 0, &[]);
    let begun = frame(Kind::Headers, 0, 1, &[]);
    check(&[], Some((30, Code::SETTINGS_TIMEOUT)));
    check(&ack, None);
    check(
        &[ack.clone(), begun.clone()].concat(),
        Some((30, Code::ENHANCE_YOUR_CALM)),
    );
    // A frame that is short of a byte, wherever.
    let whole = headers(1, Then::More, &request("GET"));
    for len in [1, HEADER_BYTES, whole.len() - 1] {
        let bytes = [&ack[..], &whole[..len]].concat();
        check(&bytes, Some((30, Code::ENHANCE_YOUR_CALM)));
    }
    let ping = words(Kind::Ping, 0, 0, &[1, 2]);
    check(&[&ack[..], &ping].concat(), None);
    check(
        &[&ack[..], &ping, &frame(Kind::Data, 0, 0, &[])[..4]].concat(),
        Some((30, Code::ENHANCE_YOUR_CALM)),
    );
}

#[test]
fn what_was_short_of_a_byte_may_come_in_time() {
    let mut probe = Probe::new(Role::Server, &mesh());
    let get = headers(1, Then::End, &request("GET"));
    for byte in &get[..get.len() - 1] {
        probe.feed(&[*byte]);
        probe.now += Duration::from_millis(1);
    }
    let due = probe.connection.deadline().expect("it is not whole");
    assert!(
        due < probe.now + Duration::from_secs(30),
        "from its first byte on"
    );
    probe.feed(&get[get.len() - 1..]);
    assert_eq!(probe.connection.deadline(), None);
    probe.check(&["1 GET end"]);
}

/// It is slow, and nothing depends on it.
#[test]
fn a_window_that_is_never_acknowledged_ends_nothing() {
    let mut probe = Probe::serving(1, &mesh());
    probe.connection.set_stream_window(1_000);
    probe.check(&["> Settings 0"]);
    assert_eq!(probe.connection.deadline(), None);
    let day = probe.now + Duration::from_secs(24 * 60 * 60);
    assert_eq!(probe.connection.expire(day), Ok(()));
    probe.feed(&frame(Kind::Data, 0, 1, &[7; 10_000]));
    probe.check(&["1 data 10000"]);
}
