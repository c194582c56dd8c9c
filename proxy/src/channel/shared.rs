//! An HTTP/2 connection to an endpoint: what it is made with, and how many requests share it.

use std::{cell::Cell, rc::Rc, time::Instant};

use heddle_policy::spiffe::Peer;
use hyper::client::conn::http2;
use hyper_util::rt::TokioTimer;

use super::{HEADER_BYTES_MAX, LocalExec};
use crate::{body::Body, intercept::Leg};

#[derive(Debug)]
pub(super) struct Http2 {
    pub(super) sender: http2::SendRequest<Body>,
    pub(super) peer: Peer,
    pub(super) is_sidecar: bool,
    pub(super) streams: Cell<usize>,
    /// What the endpoint allows, as of now.
    pub(super) streams_max: Rc<Cell<usize>>,
    /// What cannot fill the connection's window; more only where there may be no more connections.
    pub(super) streams_apart: usize,
    pub(super) uses: Cell<u32>,
    pub(super) used: Cell<Instant>,
    pub(super) retire_at: Instant,
}

/// Which connection takes one more request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// One whose window suffices for all that it carries, while there may be another connection.
    Apart,
    /// Any that its endpoint lets.
    Any,
}

impl Http2 {
    pub(super) fn has_room(&self) -> bool {
        self.streams.get() < self.streams_max.get()
    }

    /// Whether one more stream is none that the others could stop by not being read.
    pub(super) fn has_room_apart(&self) -> bool {
        self.has_room() && self.streams.get() < self.streams_apart
    }
}

/// What every HTTP/2 connection to an endpoint is made with.
pub(crate) fn http2_builder(leg: Leg) -> http2::Builder<LocalExec> {
    let mut builder = http2::Builder::new(LocalExec);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(stream_window(leg))
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        // An endpoint cannot push here.
        .max_concurrent_streams(0);
    builder
}

/// The callers of an application share its connections, and none may stop another by not reading:
/// of as many streams as fit the window none waits for it. The callers of other endpoints are one
/// workload, which harms only itself.
pub(super) fn streams_apart(leg: Leg) -> usize {
    match leg {
        Leg::Outbound => usize::MAX,
        Leg::Inbound => (CONNECTION_WINDOW / APPLICATION_STREAM_WINDOW) as usize,
    }
}

fn stream_window(leg: Leg) -> u32 {
    match leg {
        Leg::Outbound => STREAM_WINDOW,
        Leg::Inbound => APPLICATION_STREAM_WINDOW,
    }
}

/// Received before the reader has read it, each stream.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// The same of an application, which is near: a window comes back at once. 64 stalled readers fit
/// a connection.
const APPLICATION_STREAM_WINDOW: u32 = 64 * 1024;
/// Received before their readers have read it, all streams of a connection: 15 stalled readers
/// do not stop the others.
pub const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of one HTTP/2 stream that wait for their receiver, whatever window it grants; a frame
/// more can wait behind them.
pub const SEND_BUFFER_BYTES_MAX: usize = 32 * 1024;
/// Streams we reset whose late frames are still expected.
const RESET_STREAMS_MAX: usize = 100;
