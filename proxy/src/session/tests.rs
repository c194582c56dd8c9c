use std::{
    fmt::Write as _,
    future::poll_fn,
    io::{Read, Write},
    sync::Arc,
};

use allocation_counter::measure;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
    client::UnbufferedClientConnection,
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs},
    pki_types::{PrivateKeyDer, ServerName},
    server::UnbufferedServerConnection,
    version::TLS13,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::detect::Rewound;

mod handshakes;
mod messages;

/// Which side of the handshake we were.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    Client,
    Server,
}

const BOTH: [Role; 2] = [Role::Client, Role::Server];

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    configs_with(aws_lc_rs::default_provider().kx_groups)
}

fn configs_with(
    kx_groups: Vec<&'static dyn SupportedKxGroup>,
) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let names = vec!["localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(CryptoProvider {
        kx_groups,
        ..aws_lc_rs::default_provider()
    });
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // With tickets, which are of no use to our side.
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    client.enable_secret_extraction = true;
    server.enable_secret_extraction = true;
    (Arc::new(client), Arc::new(server))
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialling = TcpStream::connect(listener.local_addr().unwrap());
    let (dialled, accepted) = tokio::join!(dialling, listener.accept());
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap().0);
    dialled.set_nodelay(true).unwrap();
    accepted.set_nodelay(true).unwrap();
    (dialled, accepted)
}

/// The other side: rustls's own record layer.
struct Peer {
    tls: Box<Connection>,
    socket: TcpStream,
    /// Many connections share one.
    _config: Arc<ClientConfig>,
}

impl Peer {
    /// All records that it has to send.
    fn records(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).unwrap();
        }
        records
    }

    fn sealed(&mut self, content: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(content).unwrap();
        self.records()
    }

    async fn send(&mut self, content: &[u8]) {
        let records = self.sealed(content);
        self.socket.write_all(&records).await.unwrap();
    }

    /// Reads until there is content, or the end of it.
    async fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 1 << 16];
        loop {
            let mut content = Vec::new();
            match self.tls.reader().read_to_end(&mut content) {
                Ok(_ended) => return Ok(content),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if !content.is_empty() {
                return Ok(content);
            }
            let size = self.socket.read(&mut bytes).await?;
            let mut read = &bytes[..size];
            loop {
                self.tls.read_tls(&mut read)?;
                let state = self.tls.process_new_packets();
                state.map_err(io::Error::other)?;
                if read.is_empty() {
                    break;
                }
                self.tls.reader().read_to_end(&mut content).ok();
            }
            if !content.is_empty() {
                return Ok(content);
            }
        }
    }

    async fn shake(&mut self) {
        let mut bytes = vec![0; 1 << 14];
        loop {
            let records = self.records();
            self.socket.write_all(&records).await.unwrap();
            if !self.tls.is_handshaking() {
                return;
            }
            let size = self.socket.read(&mut bytes).await.unwrap();
            self.tls.read_tls(&mut &bytes[..size]).unwrap();
            self.tls.process_new_packets().unwrap();
        }
    }
}

fn ours(role: Role, client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Handshake {
    match role {
        Role::Client => {
            let client = UnbufferedClientConnection::new(Arc::clone(client), name());
            Handshake::Client(client.unwrap())
        }
        Role::Server => {
            let server = UnbufferedServerConnection::new(Arc::clone(server));
            Handshake::Server(server.unwrap())
        }
    }
}

async fn shake(handshake: Handshake, socket: TcpStream) -> io::Result<Session> {
    let shaken = Box::pin(handshake.shake(Rewound::new(socket), |_agreed| ()));
    shaken.await.map(|(session, ())| session)
}

/// We in `role`, and rustls.
async fn with_peer(role: Role) -> (Session, Peer) {
    let (client, server) = configs();
    let (near, far) = sockets().await;
    let tls = match role {
        Role::Client => Connection::from(ServerConnection::new(Arc::clone(&server)).unwrap()),
        Role::Server => ClientConnection::new(Arc::clone(&client), name())
            .unwrap()
            .into(),
    };
    let tls = Box::new(tls);
    let mut peer = Peer {
        tls,
        socket: far,
        _config: Arc::clone(&client),
    };
    let shaking = Box::pin(shake(ours(role, &client, &server), near));
    let (session, ()) = tokio::join!(shaking, peer.shake());
    (session.unwrap(), peer)
}

/// We in `role`, and we again.
pub(crate) async fn with_ourselves(role: Role) -> (Session, Session) {
    let (client, server) = configs();
    let (near, far) = sockets().await;
    let other = match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    };
    let (near, far) = tokio::join!(
        Box::pin(shake(ours(role, &client, &server), near)),
        Box::pin(shake(ours(other, &client, &server), far)),
    );
    (near.unwrap(), far.unwrap())
}

fn receive_now(
    session: &mut Session,
    cx: &mut Context<'_>,
    into: &mut Vec<u8>,
) -> Poll<io::Result<Received>> {
    let scratch = Scratch::of_this_thread();
    session.poll_receive(cx, &scratch, &mut |bytes| into.extend_from_slice(bytes))
}

/// The next content; empty at its end.
async fn receive(session: &mut Session) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let received = poll_fn(|cx| receive_now(session, cx, &mut content)).await?;
    assert_eq!(content.is_empty(), received == Received::Ended);
    Ok(content)
}

async fn receive_all(session: &mut Session, size: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < size {
        all.extend(receive(session).await.unwrap());
    }
    all
}

async fn send(session: &mut Session, content: &[u8]) {
    let scratch = Scratch::of_this_thread();
    let mut output = Output::default();
    output.copy(content);
    poll_fn(|cx| session.poll_send(cx, &mut output, &scratch))
        .await
        .unwrap();
    assert!(output.is_empty());
}

async fn shut(session: &mut Session) {
    poll_fn(|cx| session.poll_shutdown(cx)).await.unwrap();
}

/// What `error` wraps.
fn tls_error(error: &io::Error) -> &Error {
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    error.get_ref().unwrap().downcast_ref().unwrap()
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251).to_le_bytes()[0]).collect()
}

#[tokio::test]
async fn a_record_may_arrive_in_any_two_pieces() {
    for role in BOTH {
        let (mut session, mut peer) = with_peer(role).await;
        let size = peer.sealed(b"").len() + b"in pieces".len() + 22;
        for split in 1..size {
            let records = peer.sealed(b"in pieces");
            assert_eq!(records.len(), size);
            peer.socket.write_all(&records[..split]).await.unwrap();
            while session.kept_bytes() < split {
                session.socket().readable().await.unwrap();
                let polled = poll_fn(|cx| {
                    Poll::Ready(receive_now(&mut session, cx, &mut Vec::new()).is_pending())
                });
                assert!(polled.await, "{role:?}, {split}");
            }
            peer.socket.write_all(&records[split..]).await.unwrap();
            assert_eq!(receive(&mut session).await.unwrap(), b"in pieces");
            assert_eq!(session.kept_bytes(), 0);
        }
    }
}

#[tokio::test]
async fn many_records_are_received_in_one_piece() {
    let (mut session, mut peer) = with_peer(Role::Server).await;
    let mut records = Vec::new();
    for n in 0..200_u8 {
        records.extend(peer.sealed(&[n; 3]));
    }
    let expected: Vec<u8> = (0..200_u8).flat_map(|n| [n; 3]).collect();
    peer.socket.write_all(&records).await.unwrap();
    let mut all = Vec::new();
    let mut pieces = 0;
    while all.len() < expected.len() {
        all.extend(receive(&mut session).await.unwrap());
        pieces += 1;
    }
    assert_eq!(all, expected);
    assert!(pieces < 200);
}

#[tokio::test]
async fn what_comes_with_the_last_record_of_a_handshake_is_content() {
    let (client, server) = configs();
    let (near, far) = sockets().await;
    let tls = ClientConnection::new(Arc::clone(&client), name()).unwrap();
    let mut peer = Peer {
        tls: Box::new(tls.into()),
        socket: far,
        _config: Arc::clone(&client),
    };
    let early = async {
        let hello = peer.records();
        peer.socket.write_all(&hello).await.unwrap();
        let mut bytes = vec![0; 1 << 14];
        while peer.tls.is_handshaking() {
            let size = peer.socket.read(&mut bytes).await.unwrap();
            peer.tls.read_tls(&mut &bytes[..size]).unwrap();
            peer.tls.process_new_packets().unwrap();
        }
        let flight = peer.sealed(b"at once");
        peer.socket.write_all(&flight).await.unwrap();
    };
    let (session, ()) = tokio::join!(shake(ours(Role::Server, &client, &server), near), early);
    assert_eq!(receive(&mut session.unwrap()).await.unwrap(), b"at once");
}

#[tokio::test]
async fn a_caller_that_does_not_speak_tls_is_told_so_at_once() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x16\x02",
        b"\x17\x03\x03\xff\xff",
    ] {
        let (client, server) = configs();
        let (near, mut far) = sockets().await;
        far.write_all(bytes).await.unwrap();
        if bytes.len() < 5 {
            far.write_all(&[0; 3]).await.unwrap();
        }
        let error = shake(ours(Role::Server, &client, &server), near)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_peer_that_is_refused_is_told_why() {
    let ((client, _), (_, server)) = (configs(), configs());
    let (near, far) = sockets().await;
    let (refusing, refused) = tokio::join!(
        Box::pin(shake(ours(Role::Client, &client, &server), near)),
        Box::pin(shake(ours(Role::Server, &client, &server), far)),
    );
    let (refusing, refused) = (refusing.unwrap_err(), refused.unwrap_err());
    assert!(matches!(tls_error(&refusing), Error::InvalidCertificate(_)));
    assert!(matches!(tls_error(&refused), Error::AlertReceived(_)));
}

#[tokio::test]
async fn a_handshake_that_breaks_off_is_an_early_end() {
    let (client, server) = configs();
    let (near, far) = sockets().await;
    drop(far);
    let error = shake(ours(Role::Server, &client, &server), near)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_writer_is_blocked_by_a_slow_reader_and_goes_on_with_it() {
    let (mut session, mut peer) = with_peer(Role::Client).await;
    SockRef::from(session.socket())
        .set_send_buffer_size(1 << 14)
        .unwrap();
    let content = pattern(8 << 20);
    let scratch = Scratch::of_this_thread();
    let mut output = Output::default();
    output.copy(&content);
    // Until the socket takes no more.
    let first = poll_fn(|cx| Poll::Ready(session.poll_send(cx, &mut output, &scratch))).await;
    assert!(first.is_pending());
    assert!(!output.is_empty());
    assert!((1..=BATCH_BYTES_MAX).contains(&session.kept_bytes()));
    let reading = async {
        let mut all = Vec::new();
        while all.len() < content.len() {
            all.extend(peer.receive().await.unwrap());
        }
        all
    };
    let sending = async {
        poll_fn(|cx| session.poll_send(cx, &mut output, &scratch))
            .await
            .unwrap();
        session
    };
    let (all, session) = tokio::join!(reading, sending);
    assert!(all == content);
    assert_eq!(session.kept_bytes(), 0);
    assert!(
        session.memory_bytes() <= IDLE_BYTES_MAX,
        "{}",
        session.memory_bytes()
    );
}

#[tokio::test]
async fn small_pieces_of_output_leave_in_full_records() {
    let (mut session, peer) = with_peer(Role::Client).await;
    let scratch = Scratch::of_this_thread();
    let content = pattern(3 * BATCH_CONTENT_MAX / 2);
    let mut output = Output::default();
    for piece in content.chunks(5000) {
        output.push(heddle_relay::input::Payload::Shared(
            bytes::Bytes::copy_from_slice(piece),
        ));
    }
    poll_fn(|cx| session.poll_send(cx, &mut output, &scratch))
        .await
        .unwrap();
    let (mut tls, mut socket) = (peer.tls, peer.socket);
    let mut sizes = Vec::new();
    let mut all = Vec::new();
    while all.len() < content.len() {
        let mut record = vec![0; 5];
        socket.read_exact(&mut record).await.unwrap();
        let size = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(5 + size, 0);
        socket.read_exact(&mut record[5..]).await.unwrap();
        let mut record = &record[..];
        while !record.is_empty() {
            tls.read_tls(&mut record).unwrap();
            tls.process_new_packets().unwrap();
        }
        sizes.push(size - 17);
        tls.reader().read_to_end(&mut all).ok();
    }
    assert!(all == content);
    assert_eq!(sizes, [1 << 14; 12]);
}

#[tokio::test]
async fn either_side_may_end_first_and_the_other_go_on() {
    for role in BOTH {
        let (mut session, mut peer) = with_peer(role).await;
        peer.tls.send_close_notify();
        let records = peer.records();
        peer.socket.write_all(&records).await.unwrap();
        peer.socket.shutdown().await.unwrap();
        assert_eq!(receive(&mut session).await.unwrap(), b"");
        assert_eq!(receive(&mut session).await.unwrap(), b"");
        send(&mut session, b"still here").await;
        assert_eq!(peer.receive().await.unwrap(), b"still here");

        let (mut session, mut peer) = with_peer(role).await;
        shut(&mut session).await;
        assert_eq!(peer.receive().await.unwrap(), b"");
        peer.send(b"still here").await;
        assert_eq!(receive(&mut session).await.unwrap(), b"still here");
        let scratch = Scratch::of_this_thread();
        let parts = [IoSlice::new(b"no more")];
        let written = poll_fn(|cx| session.poll_write(cx, &parts, &scratch)).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn bytes_that_end_without_saying_so_are_cut_off() {
    for role in BOTH {
        let (mut session, mut peer) = with_peer(role).await;
        peer.send(b"not all").await;
        peer.socket.shutdown().await.unwrap();
        assert_eq!(receive(&mut session).await.unwrap(), b"not all");
        let error = receive(&mut session).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);

        // In the middle of a record.
        let (mut session, mut peer) = with_peer(role).await;
        let records = peer.sealed(b"not all");
        peer.socket.write_all(&records[..7]).await.unwrap();
        peer.socket.shutdown().await.unwrap();
        let error = receive(&mut session).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn what_passes_is_not_shown() {
    const WORDS: &[u8] = b"a card's number";
    for role in BOTH {
        let (mut session, mut peer) = with_peer(role).await;
        peer.send(WORDS).await;
        // Also in the worker's buffers now.
        let received = receive(&mut session).await.unwrap();
        session.unread(&received);
        let scratch = Scratch::of_this_thread();
        let mut shown = format!("{session:?} {scratch:?}");
        write!(shown, "{:?}", Stream::from(session)).unwrap();
        assert!(!shown.contains("card"), "{shown}");
        // As numbers.
        assert!(!shown.contains("97, 114, 100"), "{shown}");
    }
    let (mut near, far) = sockets().await;
    near.write_all(WORDS).await.unwrap();
    let mut rewound = Rewound::new(far);
    rewound.read_ahead().await.unwrap();
    let mut shown = format!("{rewound:?}");
    write!(shown, "{:?}", Session::from(rewound)).unwrap();
    assert!(!shown.contains("card"), "{shown}");
}

#[tokio::test]
async fn plaintext_passes_as_it_is() {
    let (near, mut far) = sockets().await;
    let mut session = Session::plain(near, BytesMut::from(&b"ahead"[..]));
    session.unread(b"further ");
    assert_eq!(receive(&mut session).await.unwrap(), b"further ahead");
    far.write_all(b"asked").await.unwrap();
    assert_eq!(receive(&mut session).await.unwrap(), b"asked");
    send(&mut session, b"answered").await;
    shut(&mut session).await;
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answered");
    drop(far);
    assert_eq!(receive(&mut session).await.unwrap(), b"");
}

#[tokio::test]
async fn keys_are_changed_when_the_peer_wants_it() {
    for role in BOTH {
        let (mut session, mut peer) = with_peer(role).await;
        for _ in 0..2 * usize::from(u8::MAX) {
            peer.tls.refresh_traffic_keys().unwrap();
            // With the answer to it, in one direction; and with content in the other.
            peer.send(b"new key").await;
            assert_eq!(receive(&mut session).await.unwrap(), b"new key");
            send(&mut session, b"new key too").await;
            assert_eq!(peer.receive().await.unwrap(), b"new key too");
        }
    }
}

#[tokio::test]
async fn a_key_update_is_answered_without_content() {
    let (mut session, mut peer) = with_peer(Role::Server).await;
    peer.tls.refresh_traffic_keys().unwrap();
    let records = peer.records();
    peer.socket.write_all(&records).await.unwrap();
    let mut answer = [0; 27];
    tokio::select! {
        _content = receive(&mut session) => panic!("there was none"),
        read = peer.socket.read_exact(&mut answer) => assert_eq!(read.unwrap(), 27),
    }
    peer.tls.read_tls(&mut &answer[..]).unwrap();
    peer.tls.process_new_packets().unwrap();
    send(&mut session, b"by the new key").await;
    assert_eq!(peer.receive().await.unwrap(), b"by the new key");
}

#[tokio::test]
async fn a_worn_key_is_changed() {
    let (mut session, mut other) = with_ourselves(Role::Client).await;
    traffic(&mut session).wear_out(traffic(&mut other));
    assert!(traffic(&mut session).is_worn());
    for _ in 0..3 {
        send(&mut session, b"content").await;
        assert_eq!(receive(&mut other).await.unwrap(), b"content");
        assert!(!traffic(&mut session).is_worn());
    }
}

fn traffic(session: &mut Session) -> &mut Traffic {
    &mut session.tls.as_mut().unwrap().traffic
}

/// Sizes, pieces and key updates as they fall, both ways.
#[tokio::test]
async fn what_is_sent_is_received_whatever_its_pieces() {
    for seed in 0..8 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut session, mut peer) = with_peer(BOTH[rng.random_range(0..2)]).await;
        for step in 0..40 {
            let sent = pattern(1 << rng.random_range(0..18));
            if rng.random_bool(0.2) {
                peer.tls.refresh_traffic_keys().unwrap();
            }
            let records: Vec<u8> = sent
                .chunks(rng.random_range(1..40_000).max(sent.len() / 50))
                .flat_map(|content| peer.sealed(content))
                .collect();
            let pieces = rng.random_range(1..20_000).max(records.len() / 20);
            let sending = async {
                for piece in records.chunks(pieces) {
                    peer.socket.write_all(piece).await.unwrap();
                }
            };
            let (received, ()) = tokio::join!(receive_all(&mut session, sent.len()), sending);
            assert!(received == sent, "seed {seed}, step {step}");

            let sent = pattern(1 << rng.random_range(0..18));
            let receiving = async {
                let mut all = Vec::new();
                while all.len() < sent.len() {
                    all.extend(peer.receive().await.unwrap());
                }
                all
            };
            let (received, ()) = tokio::join!(receiving, send(&mut session, &sent));
            assert!(received == sent, "seed {seed}, step {step}");
            assert_eq!(session.kept_bytes(), 0);
            assert!(session.memory_bytes() <= IDLE_BYTES_MAX);
        }
    }
}

#[tokio::test]
async fn records_cost_no_allocation() {
    let (mut session, mut other) = with_ourselves(Role::Client).await;
    let content = pattern(BATCH_CONTENT_MAX);
    let (mut sealed, mut plain) = (vec![0; BATCH_BYTES_MAX], vec![0; BATCH_BYTES_MAX]);
    for size in [1, 130, 1 << 14, BATCH_CONTENT_MAX] {
        for piece in [size, 1 + size / 7] {
            let parts: Vec<_> = content[..size].chunks(piece).map(IoSlice::new).collect();
            let measured = measure(|| {
                for _ in 0..100 {
                    let (_, len) = traffic(&mut session).seal(&parts, &mut sealed).unwrap();
                    let opened = traffic(&mut other).open(&sealed[..len], &mut plain);
                    assert_eq!(opened.content, size);
                }
            });
            assert_eq!(measured.count_total, 0, "{size} in pieces of {piece}");
        }
    }
}

#[tokio::test]
async fn an_idle_session_keeps_its_keys_and_little_else() {
    for role in BOTH {
        let (mut session, mut peer) = with_peer(role).await;
        let content = pattern(60_000);
        let receiving = async {
            let mut received = 0;
            while received < content.len() {
                received += peer.receive().await.unwrap().len();
            }
        };
        tokio::join!(receiving, send(&mut session, &content));
        let sending = peer.send(&content);
        let (received, ()) = tokio::join!(receive_all(&mut session, content.len()), sending);
        assert!(received == content);
        let own = session.memory_bytes();
        assert!(own <= IDLE_BYTES_MAX, "{role:?}: {own}");
        // With the peer's certificates and the socket's own, without what aws-lc allocates: about
        // 600 bytes for each key.
        let freed = usize::try_from(-measure(|| drop(session)).bytes_current).unwrap();
        assert!(freed <= 2 * IDLE_BYTES_MAX, "{role:?}: {freed}");
    }
}

/// The keys, and rustls's key schedule.
const IDLE_BYTES_MAX: usize = 1024;
