//! HTTP connections that were accepted: hyper's side of them, with bounds, age and drain.
//!
//! A head that does not parse never becomes a request: hyper answers it (HTTP/1: a bare 400, 414
//! or 431, without our reason word) and closes. The reason is in the record.

mod head_wait;

use std::{convert::Infallible, pin::pin, rc::Rc, time::Duration};

use heddle_relay::error::ProxyError;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::RngExt;
use tokio::time::sleep;

use self::head_wait::{HeadTimer, Heard, Listening};
use crate::{
    body::Body,
    channel::{
        BUFFER_BYTES_MAX, CONNECTION_WINDOW, HEADER_BYTES_MAX, HEADERS_MAX, LocalExec,
        SEND_BUFFER_BYTES_MAX, STREAM_WINDOW,
    },
    detect::Rewound,
    drain::Phase,
    exchange::Direction,
    settings::Bounds,
    tls::Stream,
    worker::Worker,
};

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// What hyper is given of an HTTP/1.1 connection.
pub type Http1Stream = Listening<Rewound<Stream>>;

/// Serves a connection until it ends: by its client, by age, or by the stop. Says why, when it
/// ended because of a head that is none.
pub async fn serve<S, F>(
    worker: &Rc<Worker>,
    stream: Rewound<Stream>,
    version: Version,
    direction: Direction,
    respond: S,
) -> Option<ProxyError>
where
    S: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<Body>> + 'static,
{
    let heard = Heard::default();
    let hears = heard.clone();
    let service = service_fn(move |request| {
        hears.took(&request);
        // Boxed once: hyper moves the future several times.
        let responding = Box::pin(respond(request));
        async move { Ok::<_, Infallible>(responding.await) }
    });
    let share = worker.rng.borrow_mut().random_range(0.8..1.2);
    let age = worker.settings.bounds.connection_age.mul_f64(share);
    let (retires_at, streams_max) = match direction {
        Direction::Outbound => (Phase::All, OUTBOUND_STREAMS_MAX),
        Direction::Inbound => (Phase::Inbound, INBOUND_STREAMS_MAX),
    };
    // How a connection ends is told by its exchanges, if it came to any.
    let ended = match version {
        Version::Http1 => {
            let stream = TokioIo::new(Listening::new(stream, heard.clone()));
            let connection = http1_builder(&worker.settings.bounds, &heard)
                .serve_connection(stream, service)
                .with_upgrades();
            let mut connection = pin!(connection);
            tokio::select! {
                biased;
                ended = connection.as_mut() => return refused_head(ended, &heard),
                () = retired(worker, retires_at, age) => connection.as_mut().graceful_shutdown(),
            }
            until_cut(worker, connection).await
        }
        Version::Http2 => {
            let connection =
                http2_builder(streams_max).serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            tokio::select! {
                biased;
                ended = connection.as_mut() => return refused_head(ended, &heard),
                () = retired(worker, retires_at, age) => connection.as_mut().graceful_shutdown(),
            }
            until_cut(worker, connection).await
        }
    };
    refused_head(ended, &heard)
}

fn refused_head(ended: hyper::Result<()>, heard: &Heard) -> Option<ProxyError> {
    let error = ended.err()?;
    if error.is_timeout() && heard.has_begun() {
        return Some(ProxyError::BadRequest(
            "the request head did not arrive in time",
        ));
    }
    if error.is_parse_too_large() {
        return Some(ProxyError::HeadersTooLarge);
    }
    let is_parse = error.is_parse();
    is_parse.then_some(ProxyError::BadRequest("the request head is not valid"))
}

fn http1_builder(bounds: &Bounds, heard: &Heard) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(HeadTimer {
            heard: heard.clone(),
            wait: bounds.header_wait,
        })
        .header_read_timeout(bounds.idle)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEADER_BYTES_MAX as usize)
        .max_buf_size(BUFFER_BYTES_MAX)
        .auto_date_header(false);
    builder
}

fn http2_builder(streams_max: u32) -> http2::Builder<LocalExec> {
    let mut builder = http2::Builder::new(LocalExec);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(streams_max)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .auto_date_header(false)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// The connection takes no new requests from now on: it is old, or the stop has come.
async fn retired(worker: &Worker, phase: Phase, age: Duration) {
    let mut draining = worker.draining.clone();
    tokio::select! {
        biased;
        () = draining.reached(phase) => {}
        () = sleep(age) => {}
    }
}

/// What runs may finish; a stop waits only so long.
async fn until_cut(
    worker: &Worker,
    connection: impl Future<Output = hyper::Result<()>>,
) -> hyper::Result<()> {
    let mut draining = worker.draining.clone();
    tokio::select! {
        biased;
        ended = connection => ended,
        () = draining.reached(Phase::Cut) => Ok(()),
    }
}

/// Streams of one connection of a peer; one that wants more opens another connection. More than
/// the 100 that RFC 9113 section 6.5.2 asks for and that servers commonly allow (nginx 128, Go
/// 250). Times what a stream may buffer it is what one connection can make us hold: 12 MiB, and 16 MiB
/// in windows of the connections to the application.
const INBOUND_STREAMS_MAX: u32 = 256;
/// Streams of one connection of the workload, which harms only itself: gRPC clients put every
/// call on one connection, and let those above the limit wait.
const OUTBOUND_STREAMS_MAX: u32 = 1024;
/// Streams reset by the peer before they were taken up (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 64;
/// Streams we had to reset because the peer broke the protocol.
const LOCAL_RESETS_MAX: usize = 256;
const PING_INTERVAL: Duration = Duration::from_mins(1);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
