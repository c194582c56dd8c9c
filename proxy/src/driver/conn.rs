//! Bytes of one connection: read into the worker's buffer, written from the relay's output.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use heddle_relay::{input::Input, output::Output, relay::Closing};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    detect::Rewound,
    intercept,
    tls::{AsSocket, Stream},
};

/// A connection that the relay knows.
#[derive(Debug)]
pub(super) struct Conn {
    stream: Rewound<Stream>,
    /// Its task's.
    task: Option<Waker>,
    pub(super) writer: Writer,
    /// Its other side has ended its direction.
    pub(super) is_ended: bool,
    /// Nothing can be written any more; what had come may still be read.
    pub(super) is_broken: bool,
    pub(super) shut: Shut,
    pub(super) closing: Option<Closing>,
}

/// Who writes. Only one does at a time: the kernel's readiness wakes whoever asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// The flusher, as soon as there is something.
    Flusher,
    /// The connection's task: the socket took no more, or is about to be shut.
    Task,
}

/// Our direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shut {
    /// Open.
    No,
    /// To be shut behind the output.
    Wanted,
    /// Shut.
    Done,
}

impl Conn {
    pub(super) fn new(stream: Rewound<Stream>) -> Self {
        Self {
            stream,
            task: None,
            writer: Writer::Flusher,
            is_ended: false,
            is_broken: false,
            shut: Shut::No,
            closing: None,
        }
    }

    /// This is its task.
    pub(super) fn belongs_to(&mut self, task: &Waker) {
        if !self.task.as_ref().is_some_and(|own| own.will_wake(task)) {
            self.task = Some(task.clone());
        }
    }

    /// There is something for its task to do.
    pub(super) fn wake(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    /// The next steps are the task's.
    pub(super) fn leave_to_task(&mut self) {
        self.writer = Writer::Task;
        self.wake();
    }

    /// All has gone; and our direction is shut, if that was wanted.
    pub(super) fn leave_to_flusher(&mut self) {
        self.writer = Writer::Flusher;
        if self.shut == Shut::Wanted {
            self.shut = Shut::Done;
        }
    }

    /// Reads what is there; 0 is the other side's end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Writes until all has gone, or no more is taken.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        output: &mut Output,
    ) -> Poll<io::Result<()>> {
        while !output.is_empty() {
            let mut places = [IoSlice::new(&[]); SLICES_MAX];
            let used = output.slices(&mut places);
            let stream = Pin::new(&mut self.stream);
            let sent = ready!(stream.poll_write_vectored(cx, &places[..used]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            output.consume(sent);
        }
        // What TLS has encrypted and the socket did not take.
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Shuts our direction.
    pub(super) fn poll_shut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// An error when the relay does not want it to end in order any more.
    pub(super) fn check_cut(&self) -> io::Result<()> {
        match self.closing {
            Some(Closing::Abort) => Err(ABORTED.into()),
            Some(Closing::Finish) | None => Ok(()),
        }
    }

    /// It ends by RST when it is dropped.
    pub(super) fn reset(&self) {
        intercept::reset(self.stream.socket());
    }
}

/// Hands on what was read.
pub(super) fn hand_in(read: &[u8], take: impl FnOnce(Input<'_>)) {
    if read.len() < SHARED_MIN {
        return take(Input::lent(read));
    }
    // One copy here rather than one for each piece that waits; and what waits keeps alive no more
    // than was read.
    let shared = Bytes::copy_from_slice(read);
    take(Input::shared(&shared));
}

/// The relay has a connection cut that was ending in order.
pub(super) const ABORTED: io::ErrorKind = io::ErrorKind::ConnectionAborted;
/// Slices in one system call; the kernel takes 1024, and more than a few are seldom there.
const SLICES_MAX: usize = 64;
/// A read from which on it most likely carries bodies.
const SHARED_MIN: usize = 8 * 1024;
