use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};

use heddle_policy::snapshot::{Outbound, Snapshot};
use heddle_relay::view;
use heddle_shell::clock;

use super::*;

const OURS: &str = "web.shop.svc.cluster.local.";
const ELSEWHERE: &str = "elsewhere.example.";

/// The server on loopback.
struct Server {
    address: SocketAddr,
    telemetry: Arc<Telemetry>,
    _tasks: Tasks,
}

impl Server {
    /// Knows [`OURS`] and asks these for the rest.
    async fn start(resolvers: Vec<SocketAddr>) -> Self {
        let hosts = [(
            "web.shop.svc.cluster.local".into(),
            vec![[240, 0, 0, 1].into()],
        )];
        let outbound = Outbound {
            hosts: hosts.into(),
            ..Outbound::default()
        };
        let snapshot = Snapshot {
            outbound: Some(Arc::new(outbound)),
            ..Snapshot::default()
        };
        let now = clock::now();
        let view = view::reconcile(&View::empty(now), snapshot, now);
        let telemetry = Arc::<Telemetry>::default();
        let sockets = Sockets::bind(any()).await.unwrap();
        let address = sockets.udp.local_addr().unwrap();
        let config = config::Dns {
            listen: vec![address],
            resolvers,
        };
        let search = Search::of_namespace("shop");
        let shared = Arc::clone(&telemetry);
        let dns = Arc::new(Dns::new(&config, search, Published::new(view), shared));
        let mut tasks = Tasks::new();
        tasks.spawn("dns", dns.serve(sockets));
        Self {
            address,
            telemetry,
            _tasks: tasks,
        }
    }

    async fn asked(&self, query: &[u8], over: Over) -> Vec<u8> {
        let asked = timeout(PATIENCE, ask(self.address, query, over)).await;
        asked.expect("an answer in time").unwrap()
    }

    /// A mesh name is answered both ways.
    async fn check_ours(&self, after: &str) {
        for over in [Over::Udp, Over::Tcp] {
            let answer = self.asked(&query(OURS), over).await;
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!(answer.answers.len(), 1, "{over:?} after {after}");
        }
    }

    fn refused(&self) -> u64 {
        self.telemetry.metrics.dns.refused.load(Relaxed)
    }
}

fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Where nobody listens.
async fn dead() -> SocketAddr {
    Sockets::bind(any())
        .await
        .unwrap()
        .udp
        .local_addr()
        .unwrap()
}

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

/// What `query` becomes at the resolver, and what its answer `told` becomes at the client; the
/// first resolver is dead.
async fn check_forwarded(over: Over, query: &[u8], told: &[u8]) {
    let resolver = Sockets::bind(any()).await.unwrap();
    let at = resolver.udp.local_addr().unwrap();
    let server = Server::start(vec![dead().await, at]).await;
    let resolving = async {
        match over {
            Over::Udp => {
                let mut heard = vec![0; UDP_BYTES_MAX];
                let (len, from) = resolver.udp.recv_from(&mut heard).await.unwrap();
                resolver.udp.send_to(told, from).await.unwrap();
                heard.truncate(len);
                heard
            }
            Over::Tcp => {
                let (mut stream, _) = resolver.tcp.accept().await.unwrap();
                let heard = read_framed(&mut stream).await.unwrap();
                write_framed(&mut stream, told).await.unwrap();
                heard
            }
        }
    };
    let (heard, answer) = tokio::join!(resolving, server.asked(query, over));
    assert_eq!(heard, query, "{over:?}");
    assert_eq!(answer, told, "{over:?}");
    assert_eq!(server.telemetry.metrics.dns.forwarded.load(Relaxed), 1);
}

#[tokio::test]
async fn other_names_go_to_the_next_resolver_that_answers_byte_for_byte() {
    let mut strange = query(ELSEWHERE);
    // A notification, not a question: none of our business.
    strange[2] |= 4 << 3;
    let answer = [&strange[..], b"whatever the resolver says"].concat();
    for over in [Over::Udp, Over::Tcp] {
        check_forwarded(over, &query(ELSEWHERE), &answer).await;
        check_forwarded(over, &strange, &answer).await;
    }
    // More than a client without EDNS takes: that is between the two.
    let long = [&query(ELSEWHERE)[..], &[7; 9000]].concat();
    check_forwarded(Over::Udp, &query(ELSEWHERE), &long).await;
}

#[tokio::test]
async fn without_a_resolver_that_answers_it_is_a_failure_of_the_server() {
    for resolvers in [vec![], vec![dead().await, dead().await]] {
        let server = Server::start(resolvers).await;
        for over in [Over::Udp, Over::Tcp] {
            let answer = server.asked(&query(ELSEWHERE), over).await;
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!(answer.metadata.id, 7);
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        }
        assert_eq!(server.telemetry.metrics.dns.failed.load(Relaxed), 2);
    }
}

/// A resolver that hears and says nothing keeps queries waiting by UDP, not clients of TCP.
#[tokio::test]
async fn slow_queries_by_udp_close_no_client_of_tcp() {
    let silent = Sockets::bind(any()).await.unwrap();
    let server = Server::start(vec![silent.udp.local_addr().unwrap()]).await;
    let client = UdpSocket::bind(any()).await.unwrap();
    let mut heard = [0; UDP_QUERY_BYTES_MAX];
    for _ in 0..2 * CONNECTIONS_MAX {
        let query = query(ELSEWHERE);
        client.send_to(&query, server.address).await.unwrap();
        silent.udp.recv_from(&mut heard).await.unwrap();
    }
    server.check_ours("the slow ones").await;
    assert_eq!(server.refused(), 0);
}

#[tokio::test]
async fn clients_of_tcp_beyond_the_limit_are_closed_and_counted() {
    let server = Server::start(vec![]).await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        write_framed(&mut stream, &query(OURS)).await.unwrap();
        read_framed(&mut stream).await.unwrap();
        held.push(stream);
    }
    let mut more = TcpStream::connect(server.address).await.unwrap();
    assert!(read_framed(&mut more).await.is_err());
    assert_eq!(server.refused(), 1);
    // Those inside are served on.
    for stream in &mut held {
        write_framed(stream, &query(OURS)).await.unwrap();
        read_framed(stream).await.unwrap();
    }
}

#[tokio::test]
async fn garbage_and_half_messages_leave_others_answered() {
    let server = Server::start(vec![]).await;
    let whole = query(OURS);
    let mut response = whole.clone();
    response[2] |= 0x80;
    let endless = [&whole[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
    let garbage = [
        &[][..],
        &[0],
        &[0xff; 12],
        &[0xff; UDP_QUERY_BYTES_MAX],
        &whole[..11],
        &whole[..whole.len() - 1],
        &response,
        &endless,
    ];
    let client = UdpSocket::bind(any()).await.unwrap();
    for (n, bytes) in garbage.into_iter().enumerate() {
        client.send_to(bytes, server.address).await.unwrap();
        server.check_ours(&format!("datagram {n}")).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        write_framed(&mut stream, bytes).await.unwrap();
        let closed = timeout(PATIENCE, read_framed(&mut stream)).await;
        assert!(closed.expect("it is closed").is_err(), "message {n}");
        server.check_ours(&format!("message {n}")).await;
    }
    assert_eq!(server.refused(), 2 * garbage.len() as u64);
    let mut halves = Vec::new();
    for half in [&[][..], &[0], &[0xff, 0xff], &[0xff, 0xff, 1, 2, 3]] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(half).await.unwrap();
        halves.push(stream);
        server.check_ours("half a message").await;
    }
    assert!(client.try_recv(&mut [0]).is_err(), "garbage was answered");
}

const PATIENCE: Duration = Duration::from_secs(10);
