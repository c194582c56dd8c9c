//! The programs inside the pods of the `netns` suite. Every hop of a connection announces itself
//! with one line before it passes bytes on, so a client reads the way its connection took:
//!
//! ```text
//! outbound 10.77.0.3:8080      the proxy of the caller, and the original destination it saw
//! inbound 10.77.0.3:8080       the proxy of the called
//! app 10.77.0.3:8080 by 10.77.0.3      the application, its own address and the peer's
//! ```

mod sandbox;
mod stray;

use std::{
    collections::HashMap,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use heddle_proxy::{
    init,
    intercept::{self, Leg, LoopGuard},
};
use heddle_shell::task::Tasks;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use stray::Tap;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The packet rules, as `heddle-proxy init`.
    Init(init::Args),
    /// The same as on a kernel without nf_tables.
    InitWithoutNftables(init::Args),
    /// An application or a resolver: names itself and echoes.
    App {
        #[arg(long, default_value = "app")]
        name: String,
        /// TCP and UDP addresses to serve.
        listen: Vec<SocketAddr>,
    },
    /// A proxy that forwards to the original destination.
    Proxy {
        /// Address of a service and of the pod that serves it.
        #[arg(long, value_parser = service)]
        service: Vec<(IpAddr, IpAddr)>,
    },
    /// A resolver that knows one IPv4 address for every name, another by TCP than by UDP.
    Resolver {
        listen: SocketAddr,
        #[arg(long)]
        by_udp: Ipv4Addr,
        #[arg(long)]
        by_tcp: Ipv4Addr,
    },
    /// Asks a resolver for the addresses of a name, of both families, and prints them.
    Resolve {
        name: Name,
        server: SocketAddr,
        #[arg(long)]
        tcp: bool,
    },
    /// Connects and prints the way.
    Call {
        to: SocketAddr,
        #[arg(long)]
        udp: bool,
        /// Sends segments from outside of the connection's window in between.
        #[arg(long)]
        stray: bool,
    },
}

fn service(text: &str) -> Result<(IpAddr, IpAddr)> {
    let (service, pod) = text.split_once('=').context("SERVICE=POD")?;
    Ok((service.parse()?, pod.parse()?))
}

fn main() -> Result<()> {
    match Cli::parse().role {
        Role::Init(args) => args.run(),
        Role::InitWithoutNftables(args) => {
            sandbox::without_nftables()?;
            args.run()
        }
        role => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(serve(role)),
    }
}

async fn serve(role: Role) -> Result<()> {
    let mut tasks = Tasks::new();
    match role {
        Role::Init(_) | Role::InitWithoutNftables(_) => {}
        Role::App { name, listen } => {
            for address in listen {
                let listener = listener(address)?;
                let datagrams = UdpSocket::bind(address).await?;
                tasks.spawn("app", app(name.clone(), listener));
                tasks.spawn("app datagrams", app_datagrams(name.clone(), datagrams));
            }
        }
        Role::Proxy { service } => proxy(&mut tasks, service.into_iter().collect()).await?,
        Role::Resolver {
            listen,
            by_udp,
            by_tcp,
        } => {
            let datagrams = UdpSocket::bind(listen).await?;
            tasks.spawn("resolver", resolver(listener(listen)?, by_tcp));
            tasks.spawn("resolver datagrams", resolver_datagrams(datagrams, by_udp));
        }
        Role::Resolve { name, server, tcp } => {
            let resolved = timeout(PATIENCE, resolve(&name, server, tcp)).await;
            let addresses = resolved.context("no answer")??;
            return say(&addresses.join(" "));
        }
        Role::Call { to, udp, stray } => {
            let way = timeout(PATIENCE, async {
                if udp {
                    call_udp(to).await
                } else {
                    call_tcp(to, stray).await
                }
            });
            return say(&way.await.unwrap_or_else(|_| "timeout".into()));
        }
    }
    say("ready")?;
    loop {
        tasks.reap().await;
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn listener(address: SocketAddr) -> Result<TcpListener> {
    let listener = intercept::listen(address).with_context(|| format!("listening on {address}"))?;
    Ok(TcpListener::from_std(listener)?)
}

async fn app(name: String, listener: TcpListener) {
    let mut tasks = Tasks::new();
    while let Ok((stream, peer)) = listener.accept().await {
        let local = stream.local_addr().map(canonical);
        let hello = match local {
            Ok(local) => format!("{name} {local} by {}\n", canonical(peer).ip()),
            Err(error) => format!("{name} {error}\n"),
        };
        tasks.spawn("echo", async move {
            _ = echo(stream, &hello).await;
        });
    }
}

async fn echo(mut stream: TcpStream, hello: &str) -> Result<()> {
    stream.write_all(hello.as_bytes()).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    Ok(write.shutdown().await?)
}

async fn app_datagrams(name: String, socket: UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
        _ = socket.send_to(name.as_bytes(), peer).await;
    }
}

async fn proxy(tasks: &mut Tasks, services: HashMap<IpAddr, IpAddr>) -> Result<()> {
    let any = |port| SocketAddr::from(([0_u16; 8], port));
    let guard = LoopGuard::new([any(INBOUND), any(OUTBOUND)]);
    for (leg, port) in [(Leg::Outbound, OUTBOUND), (Leg::Inbound, INBOUND)] {
        let way = Forward {
            leg,
            guard: guard.clone(),
            services: services.clone(),
        };
        tasks.spawn("proxy", forward_all(listener(any(port))?, way));
    }
    tasks.spawn("health", app("health".into(), listener(any(HEALTH))?));
    for ip in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(ip.parse()?, DNS);
        tasks.spawn("dns", app("dns".into(), listener(address)?));
        tasks.spawn(
            "dns datagrams",
            app_datagrams("dns".into(), UdpSocket::bind(address).await?),
        );
    }
    Ok(())
}

#[derive(Clone)]
struct Forward {
    leg: Leg,
    guard: LoopGuard,
    services: HashMap<IpAddr, IpAddr>,
}

async fn forward_all(listener: TcpListener, way: Forward) {
    let mut tasks = Tasks::new();
    while let Ok((stream, _)) = listener.accept().await {
        // A loop would otherwise eat the machine.
        if CONNECTIONS.fetch_add(1, Ordering::Relaxed) > CONNECTIONS_MAX {
            return;
        }
        let way = way.clone();
        tasks.spawn("forward", async move {
            _ = forward(stream, &way).await;
        });
    }
}

async fn forward(mut client: TcpStream, way: &Forward) -> Result<()> {
    let Some(to) = intercept::original_dst(&client)?.filter(|to| !way.guard.refuses(*to)) else {
        intercept::reset(client);
        return Ok(());
    };
    let mut endpoint = to.0;
    if let Some(pod) = way.services.get(&endpoint.ip()) {
        endpoint.set_ip(*pod);
    }
    let Ok(mut endpoint) = intercept::connect(endpoint, way.leg).await else {
        intercept::reset(client);
        return Ok(());
    };
    let name = if way.leg == Leg::Outbound {
        "outbound"
    } else {
        "inbound"
    };
    client
        .write_all(format!("{name} {}\n", to.0).as_bytes())
        .await?;
    tokio::io::copy_bidirectional(&mut client, &mut endpoint).await?;
    Ok(())
}

/// The way as one line, hop by hop, or how it ended.
async fn call_tcp(to: SocketAddr, stray: bool) -> String {
    let stream = match TcpStream::connect(to).await {
        Ok(stream) => stream,
        Err(error) => return error.kind().to_string(),
    };
    let mut hops = Vec::new();
    match read_hops(stream, &mut hops, stray).await {
        Ok(()) => hops.join(", "),
        Err(error) => match error.downcast_ref::<std::io::Error>() {
            Some(error) => error.kind().to_string(),
            None => error.to_string(),
        },
    }
}

async fn read_hops(mut stream: TcpStream, hops: &mut Vec<String>, stray: bool) -> Result<()> {
    let mut tap = match stray {
        true => Some(Tap::open(stream.local_addr()?, stream.peer_addr()?)?),
        false => None,
    };
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    let mut echo = async || {
        write.write_all(PING).await?;
        let mut said = Vec::new();
        while let Some(line) = lines.next_line().await? {
            if line.as_bytes() == PING.trim_ascii_end() {
                return Ok(said);
            }
            ensure!(said.len() < HOPS_MAX, "a loop");
            said.push(line);
        }
        anyhow::bail!("ended after {said:?}")
    };
    *hops = echo().await?;
    if let Some(tap) = &mut tap {
        // Spread over all numbers: one of them may be in the window by chance.
        for eighth in 0..8 {
            tap.send(eighth << 29)?;
            let more = echo().await?;
            ensure!(more.is_empty(), "after a stray segment: {more:?}");
        }
    }
    Ok(())
}

async fn call_udp(to: SocketAddr) -> String {
    match ask(to, PING).await {
        Ok(answer) => String::from_utf8_lossy(&answer).into_owned(),
        Err(error) => error.to_string(),
    }
}

async fn ask(to: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
    // Unconnected, so that an answer from another address than `to` would be seen.
    let socket = UdpSocket::bind(any).await?;
    socket.send_to(question, to).await?;
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).await?;
    ensure!(from == to, "answered by {from}");
    Ok(buffer[..length].to_vec())
}

async fn resolve(name: &Name, server: SocketAddr, tcp: bool) -> Result<Vec<String>> {
    let mut addresses = Vec::new();
    for kind in [RecordType::A, RecordType::AAAA] {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name.clone(), kind));
        let question = message.to_vec()?;
        let answer = if tcp {
            ask_tcp(server, &question).await?
        } else {
            ask(server, &question).await?
        };
        let answer = Message::from_vec(&answer)?;
        ensure!(answer.metadata.id == 7, "the answer to another question");
        let code = answer.metadata.response_code;
        ensure!(code == ResponseCode::NoError, "{code}");
        addresses.extend(answer.answers.iter().map(|record| record.data.to_string()));
    }
    Ok(addresses)
}

async fn ask_tcp(to: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    write_framed(&mut stream, question).await?;
    read_framed(&mut stream).await
}

async fn resolver(listener: TcpListener, address: Ipv4Addr) {
    let mut tasks = Tasks::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        tasks.spawn("resolver client", async move {
            while let Ok(question) = read_framed(&mut stream).await {
                let Ok(answer) = known(&question, address) else {
                    return;
                };
                if write_framed(&mut stream, &answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn resolver_datagrams(socket: UdpSocket, address: Ipv4Addr) {
    let mut buffer = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        if let Ok(answer) = known(&buffer[..length], address) {
            _ = socket.send_to(&answer, client).await;
        }
    }
}

fn known(question: &[u8], address: Ipv4Addr) -> Result<Vec<u8>> {
    let question = Message::from_vec(question)?;
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.add_queries(question.queries.iter().cloned());
    for asked in &question.queries {
        if asked.query_type() == RecordType::A {
            let data = RData::A(address.into());
            answer.add_answer(Record::from_rdata(asked.name().clone(), 1, data));
        }
    }
    Ok(answer.to_vec()?)
}

/// RFC 1035 section 4.2.2: a length of two bytes before each message.
async fn read_framed(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    stream.write_u16(message.len().try_into()?).await?;
    Ok(stream.write_all(message).await?)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

static CONNECTIONS: AtomicU32 = AtomicU32::new(0);

const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const HEALTH: u16 = 15020;
const DNS: u16 = 15053;
const PING: &[u8] = b"ping\n";
const HOPS_MAX: usize = 10;
const CONNECTIONS_MAX: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(10);
