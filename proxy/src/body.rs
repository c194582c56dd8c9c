//! The one body type of the data path.
//!
//! Bodies stream. Only [`Replay`] keeps bytes, up to its limit, and gives up silently beyond it.
//! [`Observed`] sees the end of a response, trailers included, and what it holds is dropped
//! exactly then: record, outcome, slots.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use heddle_policy::outcome::grpc;
use heddle_relay::error::ProxyError;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::{
    error::message_header,
    exchange::{Ending, Received},
};

/// A request's or a response's body.
#[derive(Debug, Default)]
pub enum Body {
    /// No bytes.
    #[default]
    Empty,
    /// Made here.
    Full(Option<Bytes>),
    /// One attempt's reading of a request body.
    Attempt(AttemptBody),
    /// A response on its way to the client.
    Observed(Box<Observed>),
}

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The other side's connection or stream broke.
    #[error("the body broke off")]
    Broken(#[from] hyper::Error),
    /// Time ran out.
    #[error("the deadline passed before the body was complete")]
    Deadline,
    /// Another attempt took over.
    #[error("this attempt is over")]
    Superseded,
}

/// A request body that can be read again by another attempt, while it is small enough.
#[derive(Clone, Debug)]
pub struct Replay {
    shared: Rc<RefCell<Shared>>,
    received: Rc<Received>,
}

#[derive(Debug)]
struct Shared {
    /// What is still to come; `None` at the end.
    source: Option<Incoming>,
    /// What came, while it is kept.
    kept: Vec<Frame<Bytes>>,
    kept_bytes: usize,
    bytes_max: usize,
    /// False once `kept` had to be given up.
    is_whole: bool,
    /// Whether anything was taken from `source`.
    is_consumed: bool,
    /// The attempt that may read.
    attempt: u32,
}

/// See [`Replay::attempt`].
#[derive(Debug)]
pub struct AttemptBody {
    shared: Rc<RefCell<Shared>>,
    received: Rc<Received>,
    attempt: u32,
    /// Frames of `kept` already read.
    read: usize,
}

/// A response body with its end in sight.
#[derive(Debug)]
pub struct Observed {
    source: Incoming,
    /// Fires at the deadline of the whole exchange.
    deadline: Option<Pin<Box<Sleep>>>,
    /// gRPC: a failure is told in trailers.
    is_grpc: bool,
    is_over: bool,
    /// Told of what passes; reports when dropped.
    ending: Ending,
}

impl Body {
    /// Made here.
    pub fn full(text: impl Into<Bytes>) -> Self {
        Self::Full(Some(text.into()))
    }
}

impl Replay {
    /// Keeps at most `bytes_max`; notes what arrives in `received`.
    pub fn new(source: Incoming, bytes_max: usize, received: Rc<Received>) -> Self {
        let source = (!http_body::Body::is_end_stream(&source)).then_some(source);
        let shared = Shared {
            source,
            kept: Vec::new(),
            kept_bytes: 0,
            bytes_max,
            is_whole: true,
            is_consumed: false,
            attempt: 0,
        };
        Self {
            shared: Rc::new(RefCell::new(shared)),
            received,
        }
    }

    /// The body from its beginning, for the next attempt; earlier attempts read no further.
    pub fn attempt(&self) -> Body {
        let mut shared = self.shared.borrow_mut();
        if shared.source.is_none() && shared.kept.is_empty() {
            return Body::Empty;
        }
        shared.attempt += 1;
        Body::Attempt(AttemptBody {
            attempt: shared.attempt,
            shared: Rc::clone(&self.shared),
            received: Rc::clone(&self.received),
            read: 0,
        })
    }

    /// Whether the body will be replayable whatever is read of it.
    pub fn fits(&self) -> bool {
        let shared = self.shared.borrow();
        let source = shared.source.as_ref();
        let left = source.map_or(Some(0), |source| http_body::Body::size_hint(source).upper());
        let left_max = shared.bytes_max.saturating_sub(shared.kept_bytes) as u64;
        shared.is_whole && left.is_some_and(|left| left <= left_max)
    }

    /// Whether [`Replay::attempt`] would give the whole body.
    pub fn is_replayable(&self) -> bool {
        self.shared.borrow().is_whole && !self.received.is_broken.get()
    }

    /// Why an attempt failed: because of `error`, unless the client broke the body off.
    pub fn cause(&self, error: ProxyError) -> ProxyError {
        if self.received.is_broken.get() {
            return ProxyError::BadRequest("the request's body broke off");
        }
        error
    }

    /// Keeps nothing from here on: the response is committed.
    pub fn commit(&self) {
        self.shared.borrow_mut().bytes_max = 0;
    }
}

impl Shared {
    /// Keeps a copy of `frame` while that is allowed. What the current attempt has not read yet
    /// stays until it has.
    fn keep(&mut self, frame: &Frame<Bytes>) {
        self.is_consumed = true;
        if !self.is_whole {
            return;
        }
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if self.kept_bytes + bytes > self.bytes_max {
            self.is_whole = false;
            self.kept = Vec::new();
            return;
        }
        self.kept_bytes += bytes;
        self.kept.push(copy(frame));
    }
}

impl AttemptBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        if shared.attempt != self.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(frame) = shared.kept.get(self.read) {
            self.read += 1;
            return Poll::Ready(Some(Ok(copy(frame))));
        }
        let Some(source) = &mut shared.source else {
            return Poll::Ready(None);
        };
        let Some(frame) = ready!(http_body::Body::poll_frame(Pin::new(source), cx)) else {
            shared.source = None;
            return Poll::Ready(None);
        };
        let received = &self.received;
        let frame = frame.inspect_err(|_broken| received.is_broken.set(true))?;
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        received.bytes.set(received.bytes.get() + bytes as u64);
        shared.keep(&frame);
        self.read += 1;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        let is_read = self.read >= shared.kept.len();
        is_read
            && shared
                .source
                .as_ref()
                .is_none_or(http_body::Body::is_end_stream)
    }

    /// What is left to read, so that HTTP/1.1 keeps a `Content-Length`.
    fn size_hint(&self) -> SizeHint {
        let shared = self.shared.borrow();
        let unread = shared.kept.iter().skip(self.read);
        let kept: usize = unread.filter_map(|f| f.data_ref()).map(Bytes::len).sum();
        let mut hint = shared
            .source
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint);
        let kept = kept as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + kept);
        }
        hint.set_lower(hint.lower() + kept);
        hint
    }
}

impl Observed {
    /// Forwards `source` and tells `ending` what passes.
    pub fn new(source: Incoming, deadline: Option<Instant>, is_grpc: bool, ending: Ending) -> Self {
        Self {
            source,
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into()))),
            is_grpc,
            is_over: false,
            ending,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        match http_body::Body::poll_frame(Pin::new(&mut self.source), cx) {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(frame))) => {
                self.ending.saw(&frame);
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => {
                self.is_over = true;
                self.ending.completed();
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => {
                self.is_over = true;
                let reason = self.ending.broke();
                let failed = Failed {
                    grpc: grpc::UNAVAILABLE,
                    reason,
                    error: BodyError::Broken(error),
                };
                return Poll::Ready(Some(self.fail(failed)));
            }
        }
        let Some(deadline) = &mut self.deadline else {
            return Poll::Pending;
        };
        ready!(deadline.as_mut().poll(cx));
        self.is_over = true;
        let reason = self.ending.timed_out();
        Poll::Ready(Some(self.fail(Failed {
            grpc: grpc::DEADLINE_EXCEEDED,
            reason,
            error: BodyError::Deadline,
        })))
    }

    /// Trailers for gRPC, because a reset would hide the reason; otherwise the error itself.
    fn fail(&self, failed: Failed) -> Result<Frame<Bytes>, BodyError> {
        if !self.is_grpc {
            return Err(failed.error);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(failed.grpc));
        trailers.insert("grpc-message", message_header(&failed.error.to_string()));
        trailers.insert(
            crate::error::REASON,
            HeaderValue::from_static(failed.reason),
        );
        Ok(Frame::trailers(trailers))
    }
}

struct Failed {
    grpc: u32,
    reason: &'static str,
    error: BodyError,
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Attempt(body) => body.poll(cx),
            Self::Observed(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Attempt(body) => body.is_end_stream(),
            // Its end must be polled, so that it is reported.
            Self::Observed(body) => body.is_over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Attempt(body) => body.size_hint(),
            Self::Observed(body) => body.source.size_hint(),
        }
    }
}

fn copy(frame: &Frame<Bytes>) -> Frame<Bytes> {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(bytes), _) => Frame::data(bytes.clone()),
        (None, Some(trailers)) => Frame::trailers(trailers.clone()),
        (None, None) => Frame::data(Bytes::new()),
    }
}
