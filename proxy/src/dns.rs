//! DNS for mesh names, on loopback. Everything else goes to the resolvers of the machine, as it
//! came and with their answer as it came.

mod answer;
mod query;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use heddle_shell::{publish::Published, task::Tasks};
use hickory_proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tracing::warn;

use crate::{config, telemetry::Telemetry, view::View};

pub use answer::Search;

use answer::Answer;

/// Queries that wait for a resolver at once, all addresses together; beyond it they are refused.
const IN_FLIGHT_MAX: usize = 256;

/// TCP connections of an address at once; beyond it they are closed.
const CONNECTIONS_MAX: usize = 64;

/// For one resolver.
const RESOLVER_WAIT: Duration = Duration::from_secs(2);

/// A TCP client that says nothing for this long is closed.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Largest UDP message.
const UDP_BYTES_MAX: usize = 64 * 1024 - 1;

/// The DNS server.
#[derive(Debug)]
pub struct Dns {
    resolvers: Vec<SocketAddr>,
    search: Search,
    views: Arc<Published<View>>,
    telemetry: Arc<Telemetry>,
    in_flight: Semaphore,
}

/// Both sockets of one address.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds the same port for UDP and TCP.
    ///
    /// # Errors
    /// When one of them is taken.
    pub async fn bind(listen: SocketAddr) -> io::Result<Self> {
        let tcp = TcpListener::bind(listen).await?;
        let udp = UdpSocket::bind(tcp.local_addr()?).await?;
        Ok(Self { udp, tcp })
    }
}

impl Dns {
    /// Answers from `views`, forwards to the resolvers of `config`, never to itself.
    pub fn new(
        config: &config::Dns,
        search: Search,
        views: Arc<Published<View>>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let is_own = |resolver: &SocketAddr| {
            let is_it = |own: &SocketAddr| {
                resolver.port() == own.port()
                    && (resolver.ip() == own.ip() || resolver.ip().is_loopback())
            };
            config.listen.iter().any(is_it)
        };
        let resolvers: Vec<_> = config
            .resolvers
            .iter()
            .copied()
            .filter(|one| !is_own(one))
            .collect();
        if resolvers.is_empty() {
            warn!("no resolver but this one is known; only mesh names resolve");
        }
        Self {
            resolvers,
            search,
            views,
            telemetry,
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
        }
    }

    /// Serves one address until the task is dropped.
    pub async fn serve(self: Arc<Self>, sockets: Sockets) {
        let dns = self;
        let udp = Arc::new(sockets.udp);
        let mut tasks = Tasks::new();
        let mut buffer = vec![0; UDP_QUERY_BYTES_MAX];
        loop {
            tokio::select! {
                biased; // Room is made before it is used.
                () = tasks.reap(), if !tasks.is_empty() => {}
                received = udp.recv_from(&mut buffer) => {
                    // An error is about an earlier datagram (ICMP), not about the socket.
                    let Ok((len, client)) = received else { continue };
                    if tasks.len() >= IN_FLIGHT_MAX + CONNECTIONS_MAX {
                        dns.telemetry.metrics.dns.refused.fetch_add(1, Relaxed);
                        continue;
                    }
                    let (dns, udp, query) = (Arc::clone(&dns), Arc::clone(&udp), buffer[..len].to_vec());
                    tasks.spawn("dns-udp", async move {
                        if let Some(answer) = dns.resolve(&query, Over::Udp).await {
                            _ = udp.send_to(&answer, client).await;
                        }
                    });
                }
                accepted = sockets.tcp.accept() => {
                    if let Ok((stream, _)) = accepted
                        && tasks.len() < CONNECTIONS_MAX
                    {
                        let dns = Arc::clone(&dns);
                        tasks.spawn("dns-tcp", async move {
                            // A broken client is its own affair.
                            _ = dns.serve_tcp(stream).await;
                        });
                    }
                }
            }
        }
    }

    async fn serve_tcp(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let query = timeout(TCP_IDLE, read_framed(&mut stream)).await??;
            let Some(answer) = self.resolve(&query, Over::Tcp).await else {
                return Ok(());
            };
            write_framed(&mut stream, &answer).await?;
        }
    }

    /// The answer's bytes; `None` for what is not a DNS query.
    async fn resolve(&self, query: &[u8], over: Over) -> Option<Vec<u8>> {
        let counters = &self.telemetry.metrics.dns;
        let outbound = self.views.load().outbound.clone().unwrap_or_default();
        match answer::answer(query, &outbound.hosts, &self.search, over) {
            Answer::Ours(answer) => {
                counters.answered.fetch_add(1, Relaxed);
                Some(answer)
            }
            Answer::NotDns => {
                counters.refused.fetch_add(1, Relaxed);
                None
            }
            Answer::Forward => {
                drop(outbound);
                let Ok(_permit) = self.in_flight.try_acquire() else {
                    counters.refused.fetch_add(1, Relaxed);
                    return answer::failure(query, ResponseCode::ServFail);
                };
                for resolver in &self.resolvers {
                    let asked = timeout(RESOLVER_WAIT, ask(*resolver, query, over)).await;
                    if let Ok(Ok(answer)) = asked {
                        counters.forwarded.fetch_add(1, Relaxed);
                        return Some(answer);
                    }
                }
                counters.failed.fetch_add(1, Relaxed);
                answer::failure(query, ResponseCode::ServFail)
            }
        }
    }
}

/// What a query came by, and goes on by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Udp,
    Tcp,
}

async fn ask(resolver: SocketAddr, query: &[u8], over: Over) -> io::Result<Vec<u8>> {
    match over {
        Over::Tcp => {
            let mut stream = TcpStream::connect(resolver).await?;
            write_framed(&mut stream, query).await?;
            read_framed(&mut stream).await
        }
        Over::Udp => {
            let any: SocketAddr = match resolver {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            // A socket of its own: the port is what an attacker off the path has to guess.
            let socket = UdpSocket::bind(any).await?;
            socket.connect(resolver).await?;
            socket.send(query).await?;
            let mut buffer = vec![0; UDP_BYTES_MAX];
            loop {
                let len = socket.recv(&mut buffer).await?;
                if len >= 12 && buffer[..2] == query[..2] {
                    buffer.truncate(len);
                    return Ok(buffer);
                }
            }
        }
    }
}

/// RFC 1035 section 4.2.2: a length of two bytes before each message.
async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; usize::from(len)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&len.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// Largest query taken by UDP; an honest one has some hundred bytes.
const UDP_QUERY_BYTES_MAX: usize = 4096;
