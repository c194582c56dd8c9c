//! HTTP/2 requests over kept connections, in an open or a closed loop. Every answer is looked at:
//! status, bytes and gRPC status.

use std::{cell::RefCell, fmt::Write as _, rc::Rc, time::Duration};

use anyhow::{Context, ensure};
use bytes::Bytes;
use h2::client::{self, SendRequest};
use hdrhistogram::Histogram;
use http::{HeaderName, HeaderValue, Request};
use tokio::{net::TcpStream, task::JoinSet};

use super::{Order, pace::Pace};
use crate::{
    clock::{Instant, now},
    generator::{Answers, FIELDS, Latency, METHOD},
    scenario::Http,
};

/// Requests in flight of an open loop at most. Who lets that many wait does not keep up.
const IN_FLIGHT_MAX: usize = 2_000;

pub(super) async fn run(http: &Http, order: &Order) -> anyhow::Result<Answers> {
    let mut drivers = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..http.connections.get() {
        connections.push(connect(order, &mut drivers).await?);
    }
    let caller = Rc::new(Caller {
        template: template(&order.authority)?,
        body: vec![b'x'; http.request_bytes].into(),
        response_bytes: http.response_bytes,
        unique_headers: http.unique_headers,
        latencies: RefCell::new(Latency::histogram()),
    });
    let start = now();
    match http.requests_per_s {
        Some(rate) => {
            let total = rate.get().saturating_mul(order.seconds);
            let arrivals = Arrivals {
                total,
                gap: Duration::from_secs(1) * http.burst.get() / rate.get(),
                burst: http.burst.get(),
            };
            open(&caller, &connections, &arrivals).await?;
        }
        None => {
            let end = start + Duration::from_secs(order.seconds.into());
            closed(&caller, &connections, http.streams.get(), end).await?;
        }
    }
    let elapsed_s = start.elapsed().as_secs_f64();
    let latencies = caller.latencies.borrow();
    ensure!(!latencies.is_empty(), "no request was answered");
    let bytes = latencies.len() * (http.request_bytes + http.response_bytes) as u64;
    Ok(Answers {
        count: latencies.len(),
        bytes,
        elapsed_s,
        latency: Some(Latency::of(&latencies)),
    })
}

/// When requests are due.
struct Arrivals {
    total: u32,
    /// Between bursts.
    gap: Duration,
    /// Requests in each.
    burst: u32,
}

/// A request is sent when it is due, whatever became of those before it, and its latency counts
/// from then.
async fn open(
    caller: &Rc<Caller>,
    connections: &[SendRequest<Bytes>],
    arrivals: &Arrivals,
) -> anyhow::Result<()> {
    let pace = Pace::new()?;
    let start = now();
    let mut calls = JoinSet::new();
    for (i, connection) in (0..arrivals.total).zip(connections.iter().cycle()) {
        let due = start + arrivals.gap * (i / arrivals.burst);
        pace.until(due).await?;
        while let Some(ended) = calls.try_join_next() {
            ended??;
        }
        ensure!(
            calls.len() < IN_FLIGHT_MAX,
            "{IN_FLIGHT_MAX} requests wait: the rate is not kept up with"
        );
        let (caller, connection) = (Rc::clone(caller), connection.clone());
        calls.spawn_local(async move { caller.call(connection, i.into(), due).await });
    }
    while let Some(ended) = calls.join_next().await {
        ended??;
    }
    Ok(())
}

/// As many calls at once as there are streams, each followed by the next until `end`.
async fn closed(
    caller: &Rc<Caller>,
    connections: &[SendRequest<Bytes>],
    streams: u32,
    end: Instant,
) -> anyhow::Result<()> {
    let mut loops = JoinSet::new();
    let all = connections
        .iter()
        .flat_map(|connection| (0..streams).map(move |_| connection));
    for (i, connection) in (0u64..).zip(all) {
        let (caller, connection) = (Rc::clone(caller), connection.clone());
        loops.spawn_local(async move {
            let mut number = i << 32;
            loop {
                caller.call(connection.clone(), number, now()).await?;
                number += 1;
                if now() >= end {
                    return anyhow::Ok(());
                }
            }
        });
    }
    while let Some(ended) = loops.join_next().await {
        ended??;
    }
    Ok(())
}

/// What calls have in common.
struct Caller {
    template: Request<()>,
    body: Bytes,
    response_bytes: usize,
    unique_headers: u8,
    /// Of calls that were answered right; in microseconds.
    latencies: RefCell<Histogram<u64>>,
}

impl Caller {
    async fn call(
        &self,
        connection: SendRequest<Bytes>,
        number: u64,
        due: Instant,
    ) -> anyhow::Result<()> {
        let mut connection = connection.ready().await?;
        let (response, mut stream) = connection.send_request(self.request(number), false)?;
        stream.send_data(self.body.clone(), true)?;
        let response = response.await?;
        ensure!(response.status() == 200, "status {}", response.status());
        let mut body = response.into_body();
        let mut received = 0;
        while let Some(data) = body.data().await {
            let data = data?;
            received += data.len();
            body.flow_control().release_capacity(data.len())?;
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        let status = trailers.get("grpc-status").map(HeaderValue::as_bytes);
        ensure!(
            received == self.response_bytes && status == Some(b"0"),
            "an answer has {received} bytes, not {}, and grpc-status {:?}",
            self.response_bytes,
            status.map(String::from_utf8_lossy),
        );
        let us = due.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        self.latencies.borrow_mut().saturating_record(us);
        Ok(())
    }

    fn request(&self, number: u64) -> Request<()> {
        let mut request = self.template.clone();
        let mut value = String::new();
        for (i, name) in UNIQUE[..self.unique_headers.into()].iter().enumerate() {
            value.clear();
            // Writing to a String cannot fail. As long as a trace id, different in each digit.
            let own = (number * UNIQUE.len() as u64 + i as u64).wrapping_mul(SPREAD);
            let _ = write!(value, "{own:016x}{:016x}", own.rotate_left(32) ^ SPREAD);
            let value = HeaderValue::from_str(&value).expect("digits are a value");
            let name = HeaderName::from_static(name);
            request.headers_mut().insert(name, value);
        }
        request
    }
}

/// Odd, so that multiplying keeps numbers apart.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Names of the fields whose values are unique.
const UNIQUE: [&str; 8] = [
    "x-request-id",
    "x-correlation-id",
    "x-session-id",
    "x-user-id",
    "x-cart-id",
    "x-tenant-id",
    "x-device-id",
    "x-order-id",
];

fn template(authority: &str) -> anyhow::Result<Request<()>> {
    let mut request = Request::post(format!("http://{authority}{METHOD}"));
    for (name, value) in FIELDS {
        request = request.header(name, value);
    }
    Ok(request.body(())?)
}

async fn connect(
    order: &Order,
    drivers: &mut JoinSet<Result<(), h2::Error>>,
) -> anyhow::Result<SendRequest<Bytes>> {
    let socket = TcpStream::connect(order.address)
        .await
        .context("connecting")?;
    socket.set_nodelay(true)?;
    let (requests, connection) = client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(socket)
        .await?;
    // Its end fails the requests on it.
    drivers.spawn_local(connection);
    Ok(requests)
}

/// As h2load's: never what a proxy waits for.
const WINDOW: u32 = (1 << 30) - 1;
