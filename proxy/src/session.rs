//! A connection under everything that is spoken on it: a socket, and after a handshake TLS 1.3
//! around it. Bytes pass through buffers of the worker; a connection that is idle keeps its keys
//! and nothing else.
//!
//! ```text
//! socket ──► wire ──(open)──► plain ──► take
//! parts ──(seal)──► sealed ──► socket      what it does not take: unsent, at most one batch
//! ```

mod handshake;
mod record;
mod stream;
mod traffic;

use std::{
    cell::{Cell, RefCell},
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use heddle_relay::output::Output;
use rustls::{AlertDescription, Error};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

pub use self::{handshake::Handshake, stream::Stream};
use self::{
    record::RECORD_BYTES_MAX,
    traffic::{BATCH_BYTES_MAX, BATCH_CONTENT_MAX, End, Traffic, alert_of},
};

/// The worker's buffers, borrowed for one call at a time.
#[derive(Clone, Debug)]
pub struct Scratch(Rc<Buffers>);

struct Buffers {
    /// What was read.
    wire: RefCell<Box<[u8]>>,
    /// What of it was content.
    plain: RefCell<Box<[u8]>>,
    /// What is written.
    sealed: RefCell<Box<[u8]>>,
    /// What all relays of the worker keep.
    kept: Cell<usize>,
}

/// A connection, encrypted or not, after its handshake.
pub struct Session {
    socket: TcpStream,
    /// Plaintext that was read ahead of its reader.
    ahead: BytesMut,
    /// Bytes for the socket, which took none of them yet. No more come before they have gone, but
    /// for one key update and one alert.
    unsent: BytesMut,
    /// Boxed: most of the state of a connection that has it, and none of the others'.
    tls: Option<Box<Tls>>,
}

/// What TLS adds.
struct Tls {
    traffic: Traffic,
    /// The beginning of a record that is not whole; and after a handshake what came with it.
    partial: Vec<u8>,
    /// Nothing is read any more.
    end: Option<End>,
    /// Nothing is written any more.
    is_shut: bool,
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// At least one byte.
    Some,
    /// The peer has ended its side in order.
    Ended,
}

impl Session {
    /// Nothing is encrypted.
    pub fn plain(socket: TcpStream, ahead: BytesMut) -> Self {
        Self {
            socket,
            ahead,
            unsent: BytesMut::new(),
            tls: None,
        }
    }

    fn encrypted(socket: TcpStream, traffic: Traffic, partial: &[u8]) -> Self {
        let tls = Tls {
            traffic,
            partial: partial.to_vec(),
            end: None,
            is_shut: false,
        };
        Self {
            tls: Some(Box::new(tls)),
            ..Self::plain(socket, BytesMut::new())
        }
    }

    /// Reads once what is there and calls `take` with its content, in one piece, if there is any.
    /// `take` may write to other sessions, but not receive from them.
    ///
    /// # Errors
    /// Of the socket; [`io::ErrorKind::UnexpectedEof`] when a TLS peer's bytes end without its
    /// saying so; [`rustls::Error`] inside of [`io::ErrorKind::InvalidData`] when they are not
    /// valid, or an alert. What was valid before is received first.
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &Scratch,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<Received>> {
        self.poll_receive_at_most(cx, scratch, READ_BYTES_MAX, take)
    }

    /// As [`Session::poll_receive`], of no more than `bytes_max` from the socket, at least one.
    ///
    /// # Errors
    /// The same.
    pub fn poll_receive_at_most(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &Scratch,
        bytes_max: usize,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<Received>> {
        if !self.ahead.is_empty() {
            take(&std::mem::take(&mut self.ahead));
            return Poll::Ready(Ok(Received::Some));
        }
        let wire = &mut *scratch.0.wire.borrow_mut();
        let received = match &mut self.tls {
            Some(tls) => {
                let plain = &mut *scratch.0.plain.borrow_mut();
                let room = Room {
                    wire,
                    plain,
                    bytes_max,
                };
                let received = tls.poll_receive(cx, &mut self.socket, room, take);
                // Also while there is no content.
                self.answer();
                ready!(received)?
            }
            None => {
                let size = bytes_max.clamp(1, BATCH_CONTENT_MAX);
                let mut buffer = ReadBuf::new(&mut wire[..size]);
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer))?;
                if buffer.filled().is_empty() {
                    return Poll::Ready(Ok(Received::Ended));
                }
                take(buffer.filled());
                Received::Some
            }
        };
        Poll::Ready(Ok(received))
    }

    /// Says what TLS has to say to what was just read. Whatever the socket does not take at once
    /// goes with what is written next.
    fn answer(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        let is_blocked = !self.unsent.is_empty();
        if let Err(error) = tls.answer(&mut self.unsent) {
            tls.end.get_or_insert(End::Broken(error));
        }
        if is_blocked || self.unsent.is_empty() {
            return;
        }
        // An error is met again by whoever reads or writes next.
        if let Ok(size) = self.socket.try_write(&self.unsent) {
            self.sent(size);
        }
    }

    /// Writes what is in `output`, as far as the socket takes it. Ready when all has gone.
    ///
    /// # Errors
    /// Of the socket, and [`io::ErrorKind::BrokenPipe`] after [`Session::poll_shutdown`].
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        output: &mut Output,
        scratch: &Scratch,
    ) -> Poll<io::Result<()>> {
        while !output.is_empty() {
            let mut places = [IoSlice::new(&[]); PARTS_MAX];
            let used = output.slices(&mut places);
            let size = ready!(self.poll_write(cx, &places[..used], scratch))?;
            output.consume(size);
        }
        self.poll_flush(cx)
    }

    /// Takes some of `parts`: how many bytes. What of it the socket did not take is kept, and goes
    /// with [`Session::poll_flush`] or before whatever is written next.
    ///
    /// # Errors
    /// As of [`Session::poll_send`].
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
        scratch: &Scratch,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        if parts.iter().all(|part| part.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let Some(tls) = &mut self.tls else {
            let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, parts))?;
            return Poll::Ready(not_nothing(written));
        };
        if tls.is_shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let sealed = &mut *scratch.0.sealed.borrow_mut();
        let (taken, size) = tls.traffic.seal(parts, sealed).map_err(invalid)?;
        let sealed = &sealed[..size];
        let written = match Pin::new(&mut self.socket).poll_write(cx, sealed) {
            Poll::Ready(written) => not_nothing(written?)?,
            Poll::Pending => 0,
        };
        self.unsent.extend_from_slice(&sealed[written..]);
        Poll::Ready(Ok(taken))
    }

    /// Ready when the socket has taken all that was written.
    ///
    /// # Errors
    /// Of the socket.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.unsent))?;
            self.sent(not_nothing(written)?);
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our side in order, after all that was written. Ready when that is done.
    ///
    /// # Errors
    /// Of the socket.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &mut self.tls
            && !tls.is_shut
        {
            tls.shut(AlertDescription::CloseNotify, &mut self.unsent)
                .map_err(invalid)?;
        }
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    /// Gives back `bytes` of content that were received, before whatever is received next.
    pub fn unread(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let behind = std::mem::replace(&mut self.ahead, BytesMut::from(bytes));
        self.ahead.extend_from_slice(&behind);
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Bytes of traffic that are kept at present: the beginning of a record, what was read ahead,
    /// and what the socket did not take.
    pub fn kept_bytes(&self) -> usize {
        let partial = self.tls.as_ref().map_or(0, |tls| tls.partial.len());
        self.ahead.len() + self.unsent.len() + partial
    }

    /// Memory that is held at present, without that of the socket and of rustls's own state.
    pub fn memory_bytes(&self) -> usize {
        let tls = self.tls.as_ref();
        let tls = tls.map_or(0, |tls| size_of::<Tls>() + tls.partial.capacity());
        size_of::<Self>() + tls + self.ahead.capacity() + self.unsent.capacity()
    }

    fn sent(&mut self, size: usize) {
        self.unsent.advance(size);
        if self.unsent.is_empty() {
            self.unsent = BytesMut::new();
        }
    }
}

/// What passes is nobody's business.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Session");
        shown
            .field("socket", &self.socket)
            .field("is_encrypted", &self.tls.is_some())
            .field("kept_bytes", &self.kept_bytes())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Buffers(..)")
    }
}

/// Where one read goes.
struct Room<'a> {
    wire: &'a mut [u8],
    plain: &'a mut [u8],
    bytes_max: usize,
}

impl Tls {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut TcpStream,
        room: Room<'_>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<Received>> {
        if let Some(end) = &self.end {
            return Poll::Ready(end.clone().into());
        }
        let Room {
            wire,
            plain,
            bytes_max,
        } = room;
        let mut filled = self.partial.len();
        wire[..filled].copy_from_slice(&self.partial);
        for _ in 0..READS_MAX {
            let opened = self.traffic.open(&wire[..filled], plain);
            wire.copy_within(opened.taken..filled, 0);
            filled -= opened.taken;
            self.end = opened.end;
            if opened.content > 0 {
                take(&plain[..opened.content]);
            }
            if opened.content > 0 || self.end.is_some() {
                self.keep(&wire[..filled]);
                let end = self.end.as_ref().filter(|_| opened.content == 0);
                let received = end.map_or(Ok(Received::Some), |end| end.clone().into());
                return Poll::Ready(received);
            }
            let until = wire.len().min(filled.saturating_add(bytes_max.max(1)));
            let mut buffer = ReadBuf::new(&mut wire[filled..until]);
            let read = Pin::new(&mut *socket).poll_read(cx, &mut buffer);
            let size = buffer.filled().len();
            if !matches!(read, Poll::Ready(Ok(()))) || size == 0 {
                self.keep(&wire[..filled]);
                ready!(read)?;
                // The end of the bytes, which was not that of the content.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            filled += size;
        }
        // A peer that sends nothing but what is no content must not keep the worker.
        self.keep(&wire[..filled]);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn keep(&mut self, partial: &[u8]) {
        if partial.is_empty() || self.end.is_some() {
            self.partial = Vec::new();
        } else {
            self.partial.clear();
            self.partial.extend_from_slice(partial);
        }
    }

    /// Appends what must be said to what was just read to `unsent`.
    fn answer(&mut self, unsent: &mut BytesMut) -> Result<(), Error> {
        if self.is_shut {
            return Ok(());
        }
        if let Some(End::Broken(error)) = &self.end {
            let alert = alert_of(error);
            self.is_shut = true;
            return alert.map_or(Ok(()), |alert| self.shut(alert, unsent));
        }
        // One answer to all that asked while we were blocked (RFC 8446 section 4.6.3).
        if self.traffic.owes_key_update() && unsent.is_empty() {
            let record = self.traffic.update_key()?;
            unsent.extend_from_slice(record.as_ref().map_or(&[][..], |record| record));
        }
        Ok(())
    }

    fn shut(&mut self, alert: AlertDescription, unsent: &mut BytesMut) -> Result<(), Error> {
        self.is_shut = true;
        unsent.extend_from_slice(&self.traffic.alert(alert)?);
        Ok(())
    }
}

impl From<End> for io::Result<Received> {
    fn from(end: End) -> Self {
        match end {
            End::Orderly => Ok(Received::Ended),
            End::Broken(error) => Err(invalid(error)),
        }
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A socket that takes nothing, and says so, would be asked for ever.
fn not_nothing(written: usize) -> io::Result<usize> {
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(written)
}

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
}

impl Scratch {
    /// That of this thread, which is this worker.
    pub fn of_this_thread() -> Self {
        SCRATCH.with(Clone::clone)
    }

    fn new() -> Self {
        Self(Rc::new(Buffers {
            wire: RefCell::new(vec![0; WIRE_BYTES].into()),
            plain: RefCell::new(vec![0; WIRE_BYTES].into()),
            sealed: RefCell::new(vec![0; BATCH_BYTES_MAX].into()),
            kept: Cell::new(0),
        }))
    }

    /// What all relays of the worker keep.
    pub(crate) fn kept(&self) -> &Cell<usize> {
        &self.0.kept
    }
}

/// Most bytes of one read.
pub const READ_BYTES_MAX: usize = BATCH_BYTES_MAX;
/// A batch as another session of ours writes it, behind the beginning of a record.
const WIRE_BYTES: usize = RECORD_BYTES_MAX + READ_BYTES_MAX;
/// Pieces of output in one write.
const PARTS_MAX: usize = 64;
/// Reads in one call, while they give no content.
const READS_MAX: usize = 4;

#[cfg(test)]
pub(crate) mod tests;
