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

use heddle_relay::view::View;
use heddle_shell::{publish::Published, task::Tasks};
use hickory_proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::warn;

use crate::{config, telemetry::Telemetry};

pub use answer::Search;

use answer::Answer;

/// Queries that wait for a resolver at once, all addresses together; beyond it they are refused.
const IN_FLIGHT_MAX: usize = 256;

/// UDP queries of an address at once; beyond it they are dropped. Beside those that wait for a
/// resolver there is room for mesh names, which wait for nobody.
const DATAGRAMS_MAX: usize = IN_FLIGHT_MAX + 64;

/// TCP connections of an address at once; beyond it they are closed.
const CONNECTIONS_MAX: usize = 64;

/// For one resolver.
const RESOLVER_WAIT: Duration = Duration::from_secs(2);

/// A TCP client that says nothing, or reads nothing, for this long is closed.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Before accepting is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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

    /// Serves one address until the task is dropped. Queries by UDP and clients of TCP have rooms
    /// of their own, so that many of the one do not keep the other out.
    pub async fn serve(self: Arc<Self>, sockets: Sockets) {
        let datagrams = Arc::clone(&self).serve_udp(sockets.udp);
        tokio::join!(datagrams, self.accept_tcp(sockets.tcp));
    }

    async fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut tasks = Tasks::new();
        let mut buffer = vec![0; UDP_QUERY_BYTES_MAX];
        loop {
            // An error is about an earlier datagram (ICMP), not about the socket.
            let Ok((len, client)) = tasks.reaping(socket.recv_from(&mut buffer)).await else {
                continue;
            };
            if tasks.len() >= DATAGRAMS_MAX {
                self.refuse();
                continue;
            }
            let (dns, socket) = (Arc::clone(&self), Arc::clone(&socket));
            let query = buffer[..len].to_vec();
            tasks.spawn("dns-udp", async move {
                if let Some(answer) = dns.resolve(&query, Over::Udp).await {
                    _ = socket.send_to(&answer, client).await;
                }
            });
        }
    }

    async fn accept_tcp(self: Arc<Self>, listener: TcpListener) {
        let mut tasks = Tasks::new();
        loop {
            match tasks.reaping(listener.accept()).await {
                Ok(_) if tasks.len() >= CONNECTIONS_MAX => self.refuse(),
                Ok((stream, _)) => {
                    let dns = Arc::clone(&self);
                    tasks.spawn("dns-tcp", async move {
                        // A broken client is its own affair.
                        _ = dns.serve_tcp(stream).await;
                    });
                }
                Err(error) => {
                    // Out of file descriptors or memory: others need the time to end.
                    warn!(%error, "accepting a DNS client");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn refuse(&self) {
        let refused = &self.telemetry.metrics.dns.refused;
        refused.fetch_add(1, Relaxed);
    }

    async fn serve_tcp(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let query = timeout(TCP_IDLE, read_framed(&mut stream)).await??;
            let Some(answer) = self.resolve(&query, Over::Tcp).await else {
                return Ok(());
            };
            // Nor does one that asks and never reads keep its place.
            timeout(TCP_IDLE, write_framed(&mut stream, &answer)).await??;
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
                self.refuse();
                None
            }
            Answer::Forward => {
                drop(outbound);
                let Ok(_permit) = self.in_flight.try_acquire() else {
                    self.refuse();
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

#[cfg(test)]
mod tests;
