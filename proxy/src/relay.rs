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
        }
    }
}

/// Relays until both sides have ended, or one fails.
pub async fn relay<A, B>(a: &mut A, b: &mut B, scratch: &Scratch, passed: &Passed) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut forth = Half::default();
    let mut back = Half::default();
    poll_fn(|cx| {
        let forth = forth.poll(cx, a, b, scratch, &passed.forth)?;
        let back = back.poll(cx, b, a, scratch, &passed.back)?;
        if forth.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    })
    .await
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    /// Read but not yet taken by the writer; at most one scratch.
    unsent: BytesMut,
    is_ended: bool,
    is_shut: bool,
    needs_flush: bool,
}

impl Half {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        scratch: &Scratch,
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
            match self.read(cx, from, to, scratch, passed) {
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
        scratch: &Scratch,
        passed: &Cell<u64>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut bytes = scratch.bytes.borrow_mut();
        let mut buffer = ReadBuf::new(&mut bytes);
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
        self.unsent.extend_from_slice(&filled[sent..]);
        if self.unsent.is_empty() {
            // Give the memory back: most connections are idle most of the time.
            self.unsent = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// Large enough that reads and records are (measured: 128 KiB cost two thirds of the CPU of 16 KiB).
const SCRATCH_BYTES: usize = 64 * 1024;
/// Reads in one poll of one direction.
const TURNS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

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
