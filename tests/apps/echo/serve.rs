//! The serving side. What is said begins with the request's number when there is one; numbers go
//! to a journal, a line each, before the answer: it outlives a SIGKILL.

use std::{
    convert::Infallible,
    fs::{File, OpenOptions},
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use heddle_shell::task::Tasks;
use heddle_tests::node::{Answer, Wire};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::call::{frame, unframe};

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How it calls itself.
    #[arg(long)]
    name: String,

    /// Where to serve HTTP/1.1.
    #[arg(long)]
    http: Vec<SocketAddr>,

    /// Where to serve gRPC.
    #[arg(long)]
    grpc: Vec<SocketAddr>,

    /// Where to serve bytes, listening first.
    #[arg(long)]
    tcp: Vec<SocketAddr>,

    /// Where to serve bytes, speaking first.
    #[arg(long)]
    greet: Vec<SocketAddr>,

    /// How long to think before each answer.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,

    /// File that the numbers of requests are appended to.
    #[arg(long)]
    journal: Option<PathBuf>,
}

/// What all connections share.
struct App {
    name: String,
    delay: Duration,
    journal: Option<File>,
}

/// One connection: whose it is and who is at its ends.
struct Conn {
    app: Arc<App>,
    local: SocketAddr,
    peer: SocketAddr,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let open = |path| OpenOptions::new().create(true).append(true).open(path);
    let app = Arc::new(App {
        name: args.name,
        delay: Duration::from_millis(args.delay_ms),
        journal: args.journal.map(open).transpose()?,
    });
    let mut tasks = Tasks::new();
    let ports = [
        (Wire::Http, args.http),
        (Wire::Grpc, args.grpc),
        (Wire::Tcp, args.tcp),
        (Wire::Greet, args.greet),
    ];
    for (wire, addresses) in ports {
        for address in addresses {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("listening on {address}"))?;
            tasks.spawn("listener", accept(listener, wire, Arc::clone(&app)));
        }
    }
    crate::say("ready")?;
    loop {
        tasks.reap().await;
    }
}

async fn accept(listener: TcpListener, wire: Wire, app: Arc<App>) {
    let mut connections = Tasks::new();
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors: the connections that end make room.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let Ok(local) = stream.local_addr() else {
            continue;
        };
        let conn = Conn {
            app: Arc::clone(&app),
            local: canonical(local),
            peer: canonical(peer),
        };
        connections.reap_ended();
        // The failure of a connection is that of its requests, which their callers see.
        connections.spawn("connection", async move {
            _ = stream.set_nodelay(true);
            match wire {
                Wire::Http | Wire::Grpc => conn.serve_http(stream, wire).await,
                Wire::Tcp | Wire::Greet => _ = conn.serve_bytes(stream, wire).await,
            }
        });
    }
}

impl Conn {
    async fn serve_http(self, stream: TcpStream, wire: Wire) {
        let conn = Arc::new(self);
        let service = service_fn(move |request| {
            let conn = Arc::clone(&conn);
            async move { conn.respond(request, wire).await }
        });
        let stream = TokioIo::new(stream);
        if wire == Wire::Grpc {
            let builder = http2::Builder::new(TokioExecutor::new());
            _ = builder.serve_connection(stream, service).await;
        } else {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new());
            _ = builder.serve_connection(stream, service).await;
        }
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        wire: Wire,
    ) -> Result<Response<Body>, hyper::Error> {
        let body = request.into_body().collect().await?.to_bytes();
        let said = if wire == Wire::Grpc {
            unframe(&body)
        } else {
            Some(&body[..])
        };
        let answer = match said.map(|said| String::from_utf8_lossy(said)) {
            Some(said) => self.answer(&said).await,
            None => Err(io::ErrorKind::InvalidData.into()),
        };
        let mut response = Response::new(Full::default().boxed_unsync());
        let Ok(answer) = answer else {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return Ok(response);
        };
        let answer = serde_json::to_vec(&answer).expect("an answer is JSON");
        let kind = if wire == Wire::Grpc {
            let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
            let body = Full::new(frame(&answer)).with_trailers(async { Some(Ok(trailers)) });
            *response.body_mut() = body.boxed_unsync();
            "application/grpc"
        } else {
            *response.body_mut() = Full::from(answer).boxed_unsync();
            "application/json"
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        Ok(response)
    }

    /// One line for each line; the first one, or the greeting, is the answer.
    async fn serve_bytes(self, mut stream: TcpStream, wire: Wire) -> io::Result<()> {
        let (read, mut write) = stream.split();
        let mut lines = BufReader::new(read).lines();
        if wire == Wire::Greet {
            write.write_all(&self.line("").await?).await?;
            while let Some(line) = lines.next_line().await? {
                self.app.note(&line)?;
                write.write_all(format!("{line}\n").as_bytes()).await?;
            }
            return Ok(());
        }
        while let Some(line) = lines.next_line().await? {
            write.write_all(&self.line(&line).await?).await?;
        }
        Ok(())
    }

    async fn line(&self, said: &str) -> io::Result<Vec<u8>> {
        let answer = self.answer(said).await?;
        Ok(format!("{}\n", serde_json::json!(answer)).into_bytes())
    }

    async fn answer(&self, said: &str) -> io::Result<Answer> {
        self.app.note(said)?;
        tokio::time::sleep(self.app.delay).await;
        Ok(Answer {
            app: self.app.name.clone(),
            local: self.local,
            peer: self.peer.ip(),
            said: said.to_owned(),
        })
    }
}

impl App {
    /// Writes the number that begins `said` into the journal.
    fn note(&self, said: &str) -> io::Result<()> {
        let number = said.split(' ').next().unwrap_or_default();
        match &self.journal {
            Some(journal) if number.parse::<u64>().is_ok() => {
                let mut journal: &File = journal;
                journal.write_all(format!("{number}\n").as_bytes())
            }
            _ => Ok(()),
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

const GRPC_STATUS: http::HeaderName = http::HeaderName::from_static("grpc-status");
