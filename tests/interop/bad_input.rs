//! What no good client sends to the control plane: every method refuses it, nothing is stored, and
//! others are served as before. A real program, so that its memory is nobody else's.

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use heddle_control_plane::authn::{self, Access};
use heddle_proto::v1::{ListRequest, config_client::ConfigClient};
use heddle_tests::{netns::Family, process::PATIENCE};
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Status, body::Body, transport::Channel};
use tower::{Service, ServiceExt};

use crate::command_line::{Bench, lazy_sidecar};

/// Callers, and what they call.
struct Callers {
    administrator: Channel,
    web: Channel,
}

impl Callers {
    async fn of(bench: &Bench<'_>) -> Result<Self> {
        Ok(Self {
            administrator: bench.as_administrator().await?,
            web: bench.channel(&bench.web()?).await?,
        })
    }

    /// Who may call: whoever may not is refused before a byte of the message is read.
    fn permitted(&self, access: Access) -> Channel {
        match access {
            Access::Administrator => self.administrator.clone(),
            Access::Anyone | Access::Workload | Access::Proven => self.web.clone(),
        }
    }

    /// How a method answers a body of these bytes.
    async fn answer(&self, (path, access): (&str, Access), bytes: Bytes) -> Result<Status> {
        let request = Request::post(path)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::new(Full::new(bytes)))?;
        let mut channel = self.permitted(access);
        let response = channel.ready().await?.call(request).await?;
        let (head, body) = response.into_parts();
        let in_head = Status::from_header_map(&head.headers);
        if let Some(status) = in_head {
            return Ok(status);
        }
        let body = body.collect().await?;
        let trailers = body.trailers().context("the end has no trailers")?;
        Status::from_header_map(trailers).context("the trailers have no status")
    }

    /// Has a method refuse everything that is wrong. Of one that is not ours an end is enough:
    /// reflection ends its stream as if nothing had been.
    async fn refused(&self, method: (&str, Access)) -> Result<()> {
        let path = method.0;
        let ours = bytes_max(path);
        let (limit, said_limit) = match ours {
            Some(limit) => (limit, format!("the limit is: {limit} ")),
            None => (4 << 20, String::new()),
        };
        for (what, bytes, said) in [
            ("no protobuf", frame(PLAIN, 3, &[0xff; 3]), ""),
            ("half a message", frame(PLAIN, 100, &[0; 3]), ""),
            ("half a head", Bytes::from_static(&[0; 3]), ""),
            ("compressed unasked", frame(1, 3, &[0; 3]), ""),
            ("an unknown flag", frame(7, 3, &[0; 3]), ""),
            (
                "too long",
                frame(PLAIN, limit + 1, &[0; 64 << 10]),
                &said_limit,
            ),
        ] {
            let answer = tokio::time::timeout(PATIENCE, self.answer(method, bytes)).await;
            let status = answer
                .with_context(|| format!("{path}: {what}: no end"))?
                .with_context(|| format!("{path}: {what}"))?;
            let is_fine = status.code() == Code::Ok;
            ensure!(!is_fine || ours.is_none(), "{path}: {what} is fine");
            ensure!(
                status.message().contains(said),
                "{path}: {what}: {status:?}"
            );
        }
        Ok(())
    }
}

/// A message as gRPC frames it, whatever its length really is.
fn frame(flag: u8, length: u32, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(flag);
    frame.put_u32(length);
    frame.put_slice(message);
    frame.freeze()
}

/// The longest message that a method takes; none for health and reflection, which are not ours.
fn bytes_max(path: &str) -> Option<u32> {
    match path.rsplit_once('/').map_or(path, |(service, _)| service) {
        "/heddle.v1.Config" => Some(16 << 20),
        "/heddle.v1.Status" => Some(8 << 20),
        "/heddle.v1.CertificateAuthority" | "/heddle.v1.Registry" | "/heddle.v1.Traffic" => {
            Some(256 << 10)
        }
        "/envoy.service.discovery.v3.AggregatedDiscoveryService" => Some(2 << 20),
        _ => None,
    }
}

async fn revision(bench: &Bench<'_>) -> Result<u64> {
    let mut config = ConfigClient::new(bench.as_administrator().await?);
    let listed = config.list(ListRequest::default()).await?;
    Ok(listed.into_inner().revision)
}

#[tokio::test]
async fn no_method_takes_garbage_half_or_oversized_messages() -> Result<()> {
    let directory = TempDir::new()?;
    let bench = Bench::shop(&directory).await?;
    let callers = Callers::of(&bench).await?;
    let before = revision(&bench).await?;
    for method in authn::methods() {
        callers.refused(method).await?;
    }
    ensure!(revision(&bench).await? == before, "something was stored");
    // A certificate, a stream and the routes on it; and those who sent it are served as well.
    lazy_sidecar(&bench).await?;
    let mut config = ConfigClient::new(callers.administrator);
    let listed = config.list(ListRequest::default()).await?.into_inner();
    ensure!(listed.resources.len() == 3, "{listed:?}");
    Ok(())
}

#[tokio::test]
async fn the_control_plane_holds_garbage_in_flat_memory() -> Result<()> {
    let directory = TempDir::new()?;
    let bench = Bench::start(&directory, json!({})).await?;
    let callers = Callers::of(&bench).await?;
    let methods: Vec<_> = authn::methods().collect();
    // What is made once: connections, buffers, the allocator's own.
    for &method in &methods {
        callers.refused(method).await?;
    }
    let process = bench.plane.process();
    let before = process.peak_bytes_now()?;
    for round in 0..ROUNDS {
        callers.refused(methods[round % methods.len()]).await?;
        no_handshake(&bench).await?;
    }
    let grew = process.peak_bytes_now()?.saturating_sub(before);
    ensure!(grew <= GROWTH_BYTES_MAX, "{grew} bytes more");
    Ok(())
}

/// A connection whose first record of TLS never ends.
async fn no_handshake(bench: &Bench<'_>) -> Result<()> {
    let mut stream = TcpStream::connect(bench.plane.address(Family::V4)).await?;
    let mut record = vec![0x16, 0x03, 0x01, 0x40, 0x00];
    record.resize(8 << 10, 0);
    // It may be closed before all of it is written.
    drop(stream.write_all(&record).await);
    drop(stream.shutdown().await);
    let mut heard = Vec::new();
    drop(stream.read_to_end(&mut heard).await);
    Ok(())
}

/// The flag of a message that is not compressed.
const PLAIN: u8 = 0;
const ROUNDS: usize = 1000;
const GROWTH_BYTES_MAX: u64 = 16 << 20;
