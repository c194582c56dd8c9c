//! The calling side: a connection, one request on it, and why there was no answer.

use std::{error::Error, io, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use heddle_shell::task::Tasks;
use heddle_tests::node::{Answer, Failure, Wire};
use http::{HeaderMap, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

type Body = Full<Bytes>;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    wire: Wire,

    /// `host:port`.
    to: String,

    /// What to say.
    #[arg(long)]
    say: String,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let outcome = call(args.wire, &args.to, &args.say, &mut None).await;
    crate::say(&serde_json::to_string(&outcome).context("an outcome is JSON")?)?;
    Ok(())
}

/// A connection that takes requests one after the other (HTTP/1.1) or at once (HTTP/2).
enum Sender {
    Http(http1::SendRequest<Body>),
    Grpc(http2::SendRequest<Body>),
}

/// An HTTP connection and the task that drives it.
pub(crate) struct Link {
    sender: Sender,
    driver: Arc<Tasks>,
}

/// One call. An HTTP connection is taken from `link` and left there while it can be used again;
/// a request that a closing connection did not take goes out on a new one.
pub(crate) async fn call(
    wire: Wire,
    to: &str,
    say: &str,
    link: &mut Option<Link>,
) -> Result<Answer, Failure> {
    let answer = async {
        match wire {
            Wire::Http | Wire::Grpc => exchange(wire, to, say, link).await,
            Wire::Tcp | Wire::Greet => converse(wire, to, say).await,
        }
    };
    timeout(DEADLINE, answer).await.unwrap_or_else(|_elapsed| {
        *link = None;
        Err(failure("timeout", format!("no answer in {DEADLINE:?}")))
    })
}

async fn exchange(
    wire: Wire,
    to: &str,
    say: &str,
    link: &mut Option<Link>,
) -> Result<Answer, Failure> {
    let mut request = Some(request(wire, to, say));
    loop {
        let mut usable = match link.take().filter(Link::is_usable) {
            Some(usable) => usable,
            None => connect(wire, to).await.map_err(|error| of_chain(&error))?,
        };
        let unsent = request.take().expect("a request that was not sent");
        let response = match usable.send(unsent).await {
            Ok(response) => response,
            Err(mut failed) => match failed.take_message() {
                Some(unsent) => {
                    request = Some(unsent);
                    continue;
                }
                None => return Err(of_chain(failed.error())),
            },
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| of_chain(&error))?;
        *link = Some(usable);
        let trailers = body.trailers().cloned().unwrap_or_default();
        let body = body.to_bytes();
        return judge(wire, &head, &trailers, &body);
    }
}

/// A new connection with its driver.
async fn connect(wire: Wire, to: &str) -> Result<Link, io::Error> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let stream = TokioIo::new(stream);
    let mut driver = Tasks::new();
    // The failure of a connection is that of its requests, which they report.
    let sender = if wire == Wire::Grpc {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(io::Error::other)?;
        driver.spawn("connection", async {
            _ = connection.await;
        });
        Sender::Grpc(sender)
    } else {
        let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
        driver.spawn("connection", async {
            _ = connection.await;
        });
        sender.ready().await.map_err(io::Error::other)?;
        Sender::Http(sender)
    };
    Ok(Link {
        sender,
        driver: Arc::new(driver),
    })
}

impl Link {
    /// The same connection once more, if it takes more than one request at a time.
    pub(crate) fn share(&self) -> Option<Self> {
        match &self.sender {
            Sender::Http(_) => None,
            Sender::Grpc(sender) => Some(Self {
                sender: Sender::Grpc(sender.clone()),
                driver: Arc::clone(&self.driver),
            }),
        }
    }

    fn is_usable(&self) -> bool {
        match &self.sender {
            Sender::Http(sender) => !sender.is_closed() && sender.is_ready(),
            Sender::Grpc(sender) => !sender.is_closed(),
        }
    }

    async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<
        http::Response<hyper::body::Incoming>,
        hyper::client::conn::TrySendError<Request<Body>>,
    > {
        match &mut self.sender {
            Sender::Http(sender) => sender.try_send_request(request).await,
            Sender::Grpc(sender) => sender.try_send_request(request).await,
        }
    }
}

fn request(wire: Wire, to: &str, say: &str) -> Request<Body> {
    let uri = Uri::builder().path_and_query("/echo.v1.Echo/Say");
    let uri = match wire {
        Wire::Grpc => uri.scheme("http").authority(to),
        Wire::Http | Wire::Tcp | Wire::Greet => uri,
    };
    let mut request = Request::post(uri.build().expect("an address is an authority"));
    let body = if wire == Wire::Grpc {
        request = request
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers");
        frame(say.as_bytes())
    } else {
        request = request.header(header::HOST, to);
        Bytes::copy_from_slice(say.as_bytes())
    };
    request.body(Full::new(body)).expect("valid headers")
}

fn judge(
    wire: Wire,
    head: &http::response::Parts,
    trailers: &HeaderMap,
    body: &[u8],
) -> Result<Answer, Failure> {
    let text = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name))?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let status = match wire {
        Wire::Grpc => text("grpc-status").unwrap_or_else(|| "none".to_owned()),
        Wire::Http | Wire::Tcp | Wire::Greet => "0".to_owned(),
    };
    let said = match wire {
        Wire::Grpc => unframe(body).unwrap_or_default(),
        Wire::Http | Wire::Tcp | Wire::Greet => body,
    };
    if head.status.is_success() && status == "0" {
        return serde_json::from_slice(said)
            .map_err(|error| failure("garbled", format!("{error} in {said:?}")));
    }
    let status = format!("status {} {status}", head.status.as_u16());
    Err(Failure {
        reason: text("x-heddle-reason").unwrap_or_else(|| status.clone()),
        detail: text("grpc-message")
            .unwrap_or_else(|| format!("{status}: {}", String::from_utf8_lossy(said))),
    })
}

async fn converse(wire: Wire, to: &str, say: &str) -> Result<Answer, Failure> {
    let conversation = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.split();
        let mut lines = BufReader::new(read).lines();
        let mut next = async || {
            let line = lines.next_line().await?;
            line.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let say = format!("{say}\n");
        if wire == Wire::Greet {
            let greeting = next().await?;
            write.write_all(say.as_bytes()).await?;
            return Ok((greeting, Some(next().await?)));
        }
        write.write_all(say.as_bytes()).await?;
        Ok::<(String, Option<String>), io::Error>((next().await?, None))
    };
    let (line, echo) = conversation.await.map_err(|error| of_chain(&error))?;
    let mut answer: Answer = serde_json::from_str(&line)
        .map_err(|error| failure("garbled", format!("{error} in {line}")))?;
    if let Some(echo) = echo {
        answer.said = echo;
    }
    Ok(answer)
}

/// The innermost I/O error names the reason, or else the innermost error does.
fn of_chain(error: &(dyn Error + 'static)) -> Failure {
    let mut detail = error.to_string();
    let mut reason = detail.clone();
    let mut cause = Some(error);
    while let Some(error) = cause {
        reason = match error.downcast_ref::<io::Error>() {
            Some(error) => error.kind().to_string(),
            None => error.to_string(),
        };
        let text = error.to_string();
        if !detail.contains(&text) {
            detail = format!("{detail}: {text}");
        }
        cause = error.source();
    }
    Failure { reason, detail }
}

fn failure(reason: &str, detail: String) -> Failure {
    Failure {
        reason: reason.to_owned(),
        detail,
    }
}

/// A gRPC message of these bytes, uncompressed.
pub(crate) fn frame(bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + bytes.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(bytes.len()).expect("a short message"));
    frame.put_slice(bytes);
    frame.freeze()
}

/// The bytes of one whole gRPC message.
pub(crate) fn unframe(frame: &[u8]) -> Option<&[u8]> {
    let (prefix, bytes) = frame.split_at_checked(PREFIX_BYTES)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    (usize::try_from(length) == Ok(bytes.len())).then_some(bytes)
}

/// Compression flag and length.
const PREFIX_BYTES: usize = 5;

/// A request that takes longer has been lost.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
