//! Patience with the heads of an HTTP/1.1 connection: a connection without a request may stay
//! long, a head that has begun must arrive soon. Else a few bytes hold a connection and its
//! buffers for as long as an idle one.
//!
//! hyper has one timer for both, armed when it wants the next head. [`HeadTimer`] makes those
//! timers, and [`Listening`] sees the bytes that go to hyper and shortens a timer at the first of
//! a head. Bytes that hyper read ahead of the end of an exchange are found by counting: what came
//! behind a head, less its body.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use heddle_shell::clock;
use http::{HeaderMap, Request, header};
use hyper::rt::{Sleep, Timer};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{session::Session, tls::AsSocket};

/// What is known of the bytes of one connection. A lock because hyper wants its timers to be
/// `Sync`; all users are on one thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<Mutex<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    /// When the head that is waited for began.
    began: Option<Instant>,
    /// Bytes behind the end of the head; `None` while that was not seen.
    behind: Option<u64>,
    /// The last four bytes.
    tail: u32,
    /// Body of the request that was taken up; `None` before the first.
    body: Option<Length>,
}

/// How many bytes belong to a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// As many.
    Known(u64),
    /// Up to an empty line.
    Chunked,
}

/// A stream whose bytes are watched.
#[derive(Debug)]
pub struct Listening<S> {
    stream: S,
    heard: Heard,
}

/// Makes hyper's timers for heads.
#[derive(Clone, Debug)]
pub(super) struct HeadTimer {
    pub(super) heard: Heard,
    /// From the first byte of a head on.
    pub(super) wait: Duration,
}

/// One timer.
#[derive(Debug)]
struct HeadSleep {
    sleep: Pin<Box<tokio::time::Sleep>>,
    heard: Heard,
    wait: Duration,
    is_shortened: bool,
}

impl Heard {
    /// A request was taken up: its head is over.
    pub(super) fn took<B>(&self, request: &Request<B>) {
        let mut progress = self.0.lock();
        progress.began = None;
        progress.body = Some(Length::of(request.headers()));
    }

    /// Whether the head that is waited for has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.0.lock().began.is_some()
    }

    /// hyper wants the next head.
    fn wants_head(&self) {
        let mut progress = self.0.lock();
        let has_rest = match (progress.body, progress.behind) {
            (None, _) => false,
            (Some(Length::Known(body)), Some(behind)) => behind > body,
            (Some(Length::Chunked), Some(_)) => !progress.ends_in_empty_line(),
            // The request came with an earlier one's bytes; so may the beginning of the next.
            (Some(_), None) => true,
        };
        *progress = Progress {
            began: has_rest.then(clock::now),
            ..Progress::default()
        };
    }

    fn read(&self, bytes: &[u8]) {
        self.0.lock().read(bytes);
    }
}

impl Progress {
    fn read(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while self.behind.is_none()
            && let Some((byte, after)) = rest.split_first()
        {
            rest = after;
            let is_line_end = matches!(byte, b'\r' | b'\n');
            // Empty lines before a head are none of it (RFC 9112 section 2.2).
            if self.began.is_none() && is_line_end {
                continue;
            }
            self.began.get_or_insert_with(clock::now);
            self.push(*byte);
            if self.ends_in_empty_line() {
                self.behind = Some(0);
            }
        }
        if let Some(behind) = &mut self.behind {
            *behind += rest.len() as u64;
            let last = rest.len().saturating_sub(size_of_val(&self.tail));
            rest[last..].iter().for_each(|byte| self.push(*byte));
        }
    }

    fn push(&mut self, byte: u8) {
        self.tail = self.tail << 8 | u32::from(byte);
    }

    fn ends_in_empty_line(&self) -> bool {
        self.tail & 0xffff == 0x0a0a || self.tail & 0x00ff_ffff == 0x000a_0d0a
    }
}

impl Length {
    fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(header::TRANSFER_ENCODING) {
            return Self::Chunked;
        }
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self::Known(length.unwrap_or(0))
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(clock::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.heard.wants_head();
        Box::pin(HeadSleep {
            sleep: Box::pin(tokio::time::sleep_until(deadline.into())),
            heard: self.heard.clone(),
            wait: self.wait,
            is_shortened: false,
        })
    }

    fn now(&self) -> Instant {
        clock::now()
    }
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    /// hyper polls it after every read.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let began = this.heard.0.lock().began;
        if !this.is_shortened
            && let Some(began) = began
        {
            this.is_shortened = true;
            let until = (began + this.wait).min(this.sleep.deadline().into_std());
            this.sleep.as_mut().reset(until.into());
        }
        this.sleep.as_mut().poll(cx)
    }
}

impl<S> Listening<S> {
    pub(super) fn new(stream: S, heard: Heard) -> Self {
        Self { stream, heard }
    }
}

impl<S: Into<Session>> From<Listening<S>> for Session {
    fn from(listening: Listening<S>) -> Self {
        listening.stream.into()
    }
}

impl<S: AsSocket> AsSocket for Listening<S> {
    fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.heard.read(&buffer.filled()[before..]);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
