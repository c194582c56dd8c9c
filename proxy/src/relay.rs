//! Bytes between two streams, both ways, half-close included. Buffers belong to the worker: a
//! connection keeps bytes only while its reader is slower than its writer.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The worker's read buffer, borrowed for one poll at a time.
#[derive(Clone, Debug)]
pub struct Scratch {
    bytes: Rc<RefCell<Box<[u8]>>>,
    /// What all relays of the worker hold.
    held: Rc<Cell<usize>>,
}

/// What passed, as it passes: of use also when the relay is dropped.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// From the first stream to the second.
    pub forth: Rc<Cell<u64>>,
    /// From the second stream to the first.
    pub back: Rc<Cell<u64>>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            bytes: Rc::new(RefCell::new(vec![0; SCRATCH_BYTES].into())),
            held: Rc::default(),
        }
    }
}

/// How much one relay may read while all of them hold this much. A reader that is slower than its
/// writer makes us hold one read at most.
fn read_bytes(held: usize) -> usize {
    let left = HELD_BYTES_MAX.saturating_sub(held);
    (left / HELD_SHARES).clamp(READ_BYTES_MIN, SCRATCH_BYTES)
}

/// Relays until both sides have ended, or one fails.
pub async fn relay<A, B>(a: &mut A, b: &mut B, scratch: &Scratch, passed: &Passed) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut forth = Half::new(scratch);
    let mut back = Half::new(scratch);
    poll_fn(|cx| {
        let forth = forth.poll(cx, a, b, &passed.forth)?;
        let back = back.poll(cx, b, a, &passed.back)?;
        if forth.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    })
    .await
}

/// One direction.
#[derive(Debug)]
struct Half {
    scratch: Scratch,
    /// Read but not yet taken by the writer; at most one scratch.
    unsent: BytesMut,
    /// What `unsent` began with: its memory is given back as a whole.
    held: usize,
    is_ended: bool,
    is_shut: bool,
    needs_flush: bool,
}

impl Half {
    fn new(scratch: &Scratch) -> Self {
        Self {
            scratch: scratch.clone(),
            unsent: BytesMut::new(),
            held: 0,
            is_ended: false,
            is_shut: false,
            needs_flush: false,
        }
    }

    /// Keeps what the writer does not take.
    fn hold(&mut self, bytes: &[u8]) {
        let all = &self.scratch.held;
        all.set(all.get() - self.held + bytes.len());
        self.held = bytes.len();
        // Most connections are idle most of the time, and keep nothing.
        self.unsent = BytesMut::from(bytes);
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        passed: &Cell<u64>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURNS_MAX {
            if self.is_shut {
                return Poll::Ready(Ok(()));
            }
            while !self.unsent.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.unsent))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.unsent.advance(n);
                self.needs_flush = true;
            }
            if self.is_ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.is_shut = true;
                continue;
            }
            match self.read(cx, from, to, passed) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.needs_flush {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        // A fast pair must not keep the worker from the others.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read, and the write of what it gave.
    fn read<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        passed: &Cell<u64>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let scratch = self.scratch.clone();
        let mut bytes = scratch.bytes.borrow_mut();
        let size = read_bytes(scratch.held.get() - self.held);
        let mut buffer = ReadBuf::new(&mut bytes[..size]);
        ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
        let filled = buffer.filled();
        passed.set(passed.get() + filled.len() as u64);
        self.is_ended = filled.is_empty();
        let mut sent = 0;
        while sent < filled.len() {
            match Pin::new(&mut *to).poll_write(cx, &filled[sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => sent += n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        self.needs_flush |= sent > 0;
        self.hold(&filled[sent..]);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.hold(&[]);
    }
}

/// Large enough that reads and records are (measured: 128 KiB cost two thirds of the CPU of 16 KiB).
const SCRATCH_BYTES: usize = 64 * 1024;
/// What the relays of a worker hold together before they read less at a time; each of them goes
/// on, with [`READ_BYTES_MIN`] at least.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The part of what is left that one read may take.
const HELD_SHARES: usize = 64;
const READ_BYTES_MIN: usize = 1024;
/// Reads in one poll of one direction.
const TURNS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Readers that stopped, of writers that do not.
    #[tokio::test]
    async fn stalled_relays_hold_a_bounded_amount_together() {
        const PIPE_BYTES: usize = 1024;
        let stalled = 2000;
        let scratch = Scratch::default();
        let mut relays = Vec::new();
        let mut passed = 0;
        for _ in 0..stalled {
            let mut near = tokio::io::join(tokio::io::repeat(7), tokio::io::sink());
            let (mut far, reader) = duplex(PIPE_BYTES);
            let (scratch, counts) = (scratch.clone(), Passed::default());
            let counted = counts.clone();
            let mut relay = Box::pin(async move {
                _ = relay(&mut near, &mut far, &scratch, &counts).await;
            });
            let first = poll_fn(|cx| Poll::Ready(relay.as_mut().poll(cx))).await;
            assert!(first.is_pending());
            // Else tokio stops the whole test for its many reads.
            tokio::task::yield_now().await;
            passed += usize::try_from(counted.forth.get()).unwrap();
            relays.push((relay, reader));
        }
        let bytes_max = HELD_BYTES_MAX + stalled * (PIPE_BYTES + READ_BYTES_MIN);
        assert!(passed <= bytes_max, "{passed} of {bytes_max}");
        assert!(scratch.held.get() > HELD_BYTES_MAX / 2);
        // What ends gives back what it held.
        drop(relays);
        assert_eq!(scratch.held.get(), 0);
    }

    #[tokio::test]
    async fn bytes_and_half_closes_pass_both_ways() {
        let (mut client, mut near) = duplex(16);
        let (mut far, mut server) = duplex(16);
        let scratch = Scratch::default();
        let passed = Passed::default();
        let talk = async {
            client.write_all(&[7; 1000]).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let serve = async {
            let mut asked = Vec::new();
            server.read_to_end(&mut asked).await.unwrap();
            server.write_all(&asked[..500]).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let (relayed, answer, ()) =
            tokio::join!(relay(&mut near, &mut far, &scratch, &passed), talk, serve);
        relayed.unwrap();
        assert_eq!(answer, vec![7; 500]);
        assert_eq!((passed.forth.get(), passed.back.get()), (1000, 500));
    }
}
