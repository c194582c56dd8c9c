//! What is no content: alerts, tickets, key updates, and bytes that are nothing at all.

use rustls::{ContentType, HandshakeType, InvalidMessage, PeerMisbehaved};

use super::*;

/// One message, or fragment of one, that a peer of ours might send.
type Fragment = (ContentType, &'static [u8]);

/// What `fragments`, from a peer that is not our kind, come to, behind content; and what it is told.
#[track_caller]
fn check_messages(role: Role, fragments: &[Fragment], expected: Result<(), (Error, u8)>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut session, mut other) = with_ourselves(role).await;
        let mut records = Vec::new();
        let traffic = traffic(&mut other);
        for (kind, fragment) in [(ContentType::ApplicationData, &b"before"[..])]
            .iter()
            .chain(fragments)
        {
            records.extend(traffic.sealed(*kind, fragment));
        }
        other.socket.write_all(&records).await.unwrap();
        assert_eq!(receive(&mut session).await.unwrap(), b"before");
        match expected {
            Ok(()) => {
                send(&mut other, b"behind").await;
                assert_eq!(
                    receive(&mut session).await.unwrap(),
                    b"behind",
                    "{fragments:?}"
                );
            }
            Err((expected, alert)) => {
                let error = receive(&mut session).await.unwrap_err();
                assert_eq!(tls_error(&error), &expected, "{fragments:?}");
                let again = receive(&mut session).await.unwrap_err();
                assert_eq!(tls_error(&again), &expected);
                let parts = [IoSlice::new(b"no more")];
                let scratch = Scratch::of_this_thread();
                let written = poll_fn(|cx| session.poll_write(cx, &parts, &scratch)).await;
                assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
                if alert == NO_ALERT {
                    return;
                }
                let told = receive(&mut other).await.unwrap_err();
                let alert = AlertDescription::from(alert);
                assert_eq!(
                    tls_error(&told),
                    &Error::AlertReceived(alert),
                    "{fragments:?}"
                );
            }
        }
    });
}

const NO_ALERT: u8 = 255;
const UNEXPECTED: u8 = 10;
const DECODE: u8 = 50;

const HANDSHAKE: ContentType = ContentType::Handshake;
const ALERT: ContentType = ContentType::Alert;
const DATA: ContentType = ContentType::ApplicationData;

#[test]
fn alerts_end_a_connection_behind_its_content() {
    let received = |alert| {
        Err((
            Error::AlertReceived(AlertDescription::from(alert)),
            NO_ALERT,
        ))
    };
    for role in BOTH {
        check_messages(role, &[(ALERT, &[2, 80])], received(80));
        // Of whatever level.
        check_messages(role, &[(ALERT, &[1, 45])], received(45));
        check_messages(role, &[(ALERT, &[1, 90])], Ok(()));
        let short = InvalidMessage::MissingData("AlertMessagePayload");
        check_messages(role, &[(ALERT, &[2])], Err((short.into(), DECODE)));
    }
}

#[test]
fn tickets_are_for_clients() {
    let ticket = [4, 0, 0, 3, 1, 2, 3];
    let refused = Error::InappropriateHandshakeMessage {
        expect_types: vec![HandshakeType::KeyUpdate],
        got_type: HandshakeType::NewSessionTicket,
    };
    let ticket: &'static [u8] = Box::leak(Box::new(ticket));
    check_messages(Role::Client, &[(HANDSHAKE, ticket)], Ok(()));
    check_messages(
        Role::Client,
        &[(HANDSHAKE, &ticket[..2]), (HANDSHAKE, &ticket[2..])],
        Ok(()),
    );
    check_messages(
        Role::Client,
        &[(HANDSHAKE, &ticket[..6]), (HANDSHAKE, &ticket[6..])],
        Ok(()),
    );
    check_messages(
        Role::Server,
        &[(HANDSHAKE, ticket)],
        Err((refused, UNEXPECTED)),
    );
    let interleaved = PeerMisbehaved::MessageInterleavedWithHandshakeMessage;
    check_messages(
        Role::Client,
        &[(HANDSHAKE, &ticket[..6]), (DATA, b"between")],
        Err((interleaved.into(), UNEXPECTED)),
    );
    check_messages(
        Role::Client,
        &[(HANDSHAKE, &[4, 1, 0, 0])],
        Err((InvalidMessage::HandshakePayloadTooLarge.into(), DECODE)),
    );
}

#[test]
fn other_messages_are_unexpected() {
    for role in BOTH {
        for kind in [0_u8, 1, 2, 13, 20] {
            let message: &'static [u8] = Box::leak(Box::new([kind, 0, 0, 0]));
            let refused = Error::InappropriateHandshakeMessage {
                expect_types: vec![HandshakeType::KeyUpdate],
                got_type: HandshakeType::from(kind),
            };
            check_messages(role, &[(HANDSHAKE, message)], Err((refused, UNEXPECTED)));
        }
        for kind in [ContentType::ChangeCipherSpec, ContentType::Heartbeat] {
            let refused = Error::InappropriateMessage {
                expect_types: vec![DATA],
                got_type: kind,
            };
            check_messages(role, &[(kind, &[1])], Err((refused, UNEXPECTED)));
        }
        let empty = InvalidMessage::InvalidEmptyPayload;
        check_messages(role, &[(HANDSHAKE, &[])], Err((empty.into(), DECODE)));
    }
}

#[test]
fn a_key_update_is_whole_and_the_last_of_its_record() {
    let misshapen = || Err((InvalidMessage::InvalidKeyUpdate.into(), DECODE));
    check_messages(
        Role::Server,
        &[(HANDSHAKE, &[24, 0, 0, 2, 0, 0])],
        misshapen(),
    );
    check_messages(Role::Server, &[(HANDSHAKE, &[24, 0, 0, 1, 2])], misshapen());
    let pending = PeerMisbehaved::KeyEpochWithPendingFragment;
    check_messages(
        Role::Server,
        &[(HANDSHAKE, &[24, 0, 0, 1, 0, 24])],
        Err((pending.into(), UNEXPECTED)),
    );
    let interleaved = PeerMisbehaved::MessageInterleavedWithHandshakeMessage;
    check_messages(
        Role::Server,
        &[(HANDSHAKE, &[24, 0]), (DATA, b"between")],
        Err((interleaved.into(), UNEXPECTED)),
    );
}

/// Makes one record without content.
type Barren = fn(&mut Traffic) -> Vec<u8>;

/// `barren` may come 32 times in a row, again and again, and not once more.
async fn check_barren(barren: Barren, expected: PeerMisbehaved) {
    let (mut session, mut other) = with_ourselves(Role::Server).await;
    for times in [32, 32, 33] {
        let mut records = Vec::new();
        for _ in 0..times {
            records.extend(barren(traffic(&mut other)));
        }
        records.extend(traffic(&mut other).sealed(DATA, b"content"));
        other.socket.write_all(&records).await.unwrap();
        if times == 32 {
            assert_eq!(receive(&mut session).await.unwrap(), b"content");
        }
    }
    let error = receive(&mut session).await.unwrap_err();
    assert_eq!(tls_error(&error), &Error::from(expected));
}

#[tokio::test]
async fn records_that_bring_no_content_come_to_an_end() {
    let update: Barren = |traffic| traffic.key_update().to_vec();
    check_barren(update, PeerMisbehaved::TooManyKeyUpdateRequests).await;
    let empty: Barren = |traffic| traffic.sealed(DATA, b"");
    check_barren(empty, PeerMisbehaved::TooManyEmptyFragments).await;
    let cancelled: Barren = |traffic| traffic.sealed(ALERT, &[1, 90]);
    check_barren(cancelled, PeerMisbehaved::TooManyWarningAlertsReceived).await;
}

#[tokio::test]
async fn bytes_that_are_no_record_of_the_peer_are_refused() {
    let unprotected = |kind| Error::InappropriateMessage {
        expect_types: vec![DATA],
        got_type: ContentType::from(kind),
    };
    let cases: [(&[u8], Error, u8); 9] = [
        (
            b"GET / HTTP/1.1\r\n\r\n",
            InvalidMessage::InvalidContentType.into(),
            DECODE,
        ),
        (
            &[23, 2, 0, 0, 1],
            InvalidMessage::UnknownProtocolVersion.into(),
            DECODE,
        ),
        (&[23, 3, 3, 0x41, 1], Error::PeerSentOversizedRecord, 22),
        (&[23, 3, 3, 0, 0], Error::DecryptError, 20),
        (
            &[
                23, 3, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
            Error::DecryptError,
            20,
        ),
        (
            &[
                23, 3, 3, 0, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
            Error::DecryptError,
            20,
        ),
        (&[20, 3, 3, 0, 1, 1], unprotected(20), UNEXPECTED),
        (&[21, 3, 3, 0, 2, 1, 0], unprotected(21), UNEXPECTED),
        (&[22, 3, 3, 0, 1, 1], unprotected(22), UNEXPECTED),
    ];
    for role in BOTH {
        for (bytes, expected, alert) in &cases {
            let (mut session, mut peer) = with_peer(role).await;
            peer.socket.write_all(bytes).await.unwrap();
            let error = receive(&mut session).await.unwrap_err();
            assert_eq!(tls_error(&error), expected, "{bytes:?}");
            let told = peer.receive().await.unwrap_err();
            let told = told.get_ref().unwrap().downcast_ref::<Error>();
            let alert = AlertDescription::from(*alert);
            assert_eq!(told, Some(&Error::AlertReceived(alert)), "{bytes:?}");
        }
    }
}

#[tokio::test]
async fn a_record_that_was_changed_or_comes_twice_is_refused() {
    let (mut session, mut peer) = with_peer(Role::Server).await;
    let mut records = peer.sealed(b"content");
    peer.socket.write_all(&records).await.unwrap();
    assert_eq!(receive(&mut session).await.unwrap(), b"content");
    peer.socket.write_all(&records).await.unwrap();
    let error = receive(&mut session).await.unwrap_err();
    assert_eq!(tls_error(&error), &Error::DecryptError);

    for at in 0..records.len() {
        if (3..5).contains(&at) {
            // Its length: more bytes would be waited for.
            continue;
        }
        let (mut session, mut peer) = with_peer(Role::Server).await;
        records = peer.sealed(b"content");
        records[at] ^= 1;
        peer.socket.write_all(&records).await.unwrap();
        receive(&mut session).await.unwrap_err();
    }
}

#[tokio::test]
async fn padding_is_no_content() {
    let (mut session, mut other) = with_ourselves(Role::Server).await;
    let traffic = traffic(&mut other);
    // The type is the last byte that is not zero.
    let padded = traffic.sealed(ContentType::from(0), b"content\x17\0\0\0");
    let nothing = traffic.sealed(ContentType::from(0), b"\x17\0\0\0");
    let behind = traffic.sealed(DATA, b", and on");
    let untyped = traffic.sealed(ContentType::from(0), b"\0\0");
    other
        .socket
        .write_all(&[padded, nothing, behind].concat())
        .await
        .unwrap();
    assert_eq!(receive_all(&mut session, 15).await, b"content, and on");
    other.socket.write_all(&untyped).await.unwrap();
    let error = receive(&mut session).await.unwrap_err();
    let expected = Error::from(PeerMisbehaved::IllegalTlsInnerPlaintext);
    assert_eq!(tls_error(&error), &expected);
}

/// Records that are lost, doubled, exchanged or changed end the content; they never become some.
#[tokio::test]
async fn what_was_tampered_with_is_never_content() {
    for seed in 0..200 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut session, mut other) = with_ourselves(BOTH[rng.random_range(0..2)]).await;
        let mut sent = Vec::new();
        let mut records: Vec<Vec<u8>> = (0..20_u8)
            .map(|n| {
                if rng.random_bool(0.1) {
                    return traffic(&mut other).key_update().to_vec();
                }
                let content = vec![n; rng.random_range(0..200)];
                sent.extend_from_slice(&content);
                traffic(&mut other).sealed(DATA, &content)
            })
            .collect();
        let (at, from) = (rng.random_range(0..20), rng.random_range(0..20));
        match rng.random_range(0..4) {
            0 => _ = records.remove(at),
            1 => records.insert(at, records[from].clone()),
            2 => records.swap(at, from),
            _ => {
                let byte = rng.random_range(0..records[at].len());
                records[at][byte] ^= 1 << rng.random_range(0..8);
            }
        }
        let bytes = records.concat();
        let (mut content, mut taken) = (Vec::new(), 0);
        let mut plain = vec![0; bytes.len()];
        while taken < bytes.len() {
            let until = bytes.len().min(taken + rng.random_range(1..2000));
            let opened = traffic(&mut session).open(&bytes[taken..until], &mut plain);
            taken += opened.taken;
            content.extend_from_slice(&plain[..opened.content]);
            if opened.end.is_some() || (opened.taken == 0 && until == bytes.len()) {
                break;
            }
        }
        assert!(sent.starts_with(&content), "seed {seed}");
    }
}
