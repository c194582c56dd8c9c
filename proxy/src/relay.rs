//! Bytes between two sessions, both ways, half-close included. Buffers belong to the worker: a
//! connection keeps bytes only while its reader is slower than its writer.

use std::{
    cell::Cell,
    future::poll_fn,
    io::{self, IoSlice},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, BytesMut};

use crate::session::{READ_BYTES_MAX, Received, Scratch, Session};

/// What passed, as it passes: of use also when the relay is dropped.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// From the first session to the second.
    pub forth: Rc<Cell<u64>>,
    /// From the second session to the first.
    pub back: Rc<Cell<u64>>,
}

/// How much one relay may read while all of them hold this much. A reader that is slower than its
/// writer makes us hold one read at most.
fn read_bytes(held: usize) -> usize {
    let left = HELD_BYTES_MAX.saturating_sub(held);
    (left / HELD_SHARES).clamp(READ_BYTES_MIN, READ_BYTES_MAX)
}

/// Relays until both sides have ended, or one fails.
///
/// # Errors
/// The first of either side; see [`Session`].
pub async fn relay(
    a: &mut Session,
    b: &mut Session,
    scratch: &Scratch,
    passed: &Passed,
) -> io::Result<()> {
    let mut forth = Half::default();
    let mut back = Half::default();
    let mut kept = Kept {
        scratch,
        by_this: 0,
    };
    poll_fn(|cx| {
        let forth_ended = forth.poll(cx, a, b, &kept, &passed.forth)?;
        let back_ended = back.poll(cx, b, a, &kept, &passed.back)?;
        let unsent = forth.unsent.len() + back.unsent.len();
        kept.set(unsent + a.kept_bytes() + b.kept_bytes());
        if forth_ended.is_ready() && back_ended.is_ready() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    })
    .await
}

/// What one relay keeps of the traffic, counted with all of them.
#[derive(Debug)]
struct Kept<'a> {
    scratch: &'a Scratch,
    by_this: usize,
}

impl Kept<'_> {
    fn set(&mut self, bytes: usize) {
        let by_others = self.by_others();
        self.scratch.kept().set(by_others + bytes);
        self.by_this = bytes;
    }

    fn by_others(&self) -> usize {
        self.scratch.kept().get() - self.by_this
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Read but not yet taken by the writer; of one read at most.
    unsent: BytesMut,
    is_ended: bool,
    is_shut: bool,
}

impl Half {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Session,
        to: &mut Session,
        kept: &Kept<'_>,
        passed: &Cell<u64>,
    ) -> Poll<io::Result<()>> {
        for _ in 0..TURNS_MAX {
            if self.is_shut {
                return Poll::Ready(Ok(()));
            }
            while !self.unsent.is_empty() {
                let parts = [IoSlice::new(&self.unsent)];
                let size = ready!(to.poll_write(cx, &parts, kept.scratch))?;
                self.unsent.advance(size);
            }
            if self.is_ended {
                ready!(to.poll_shutdown(cx))?;
                self.is_shut = true;
                continue;
            }
            // A reader that is slower than its writer makes us keep one read at most.
            ready!(to.poll_flush(cx))?;
            ready!(self.pass(cx.waker(), from, to, kept, passed))?;
        }
        // A fast pair must not keep the worker from the others.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read, and the write of what it gave.
    fn pass(
        &mut self,
        waker: &Waker,
        from: &mut Session,
        to: &mut Session,
        kept: &Kept<'_>,
        passed: &Cell<u64>,
    ) -> Poll<io::Result<()>> {
        let scratch = kept.scratch;
        let bytes_max = read_bytes(kept.by_others());
        let (mut reading, mut writing) = (Context::from_waker(waker), Context::from_waker(waker));
        let mut written = Ok(());
        let received = from.poll_receive_at_most(&mut reading, scratch, bytes_max, &mut |bytes| {
            passed.set(passed.get() + bytes.len() as u64);
            written = self.write(&mut writing, to, scratch, bytes);
        });
        written?;
        self.is_ended = ready!(received)? == Received::Ended;
        Poll::Ready(Ok(()))
    }

    /// Keeps what the writer does not take.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Session,
        scratch: &Scratch,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            match to.poll_write(cx, &[IoSlice::new(bytes)], scratch) {
                Poll::Ready(size) => bytes = &bytes[size?..],
                Poll::Pending => break,
            }
        }
        // Most connections are idle most of the time, and keep nothing.
        self.unsent = BytesMut::from(bytes);
        Ok(())
    }
}

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
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::*;

    async fn connected() -> (TcpStream, TcpStream) {
        dial(TcpListener::bind("127.0.0.1:0").await.unwrap()).await
    }

    /// To a reader whose kernel takes little for it.
    async fn connected_to_nobody() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SockRef::from(&listener).set_recv_buffer_size(1).unwrap();
        let (dialled, accepted) = dial(listener).await;
        SockRef::from(&dialled).set_send_buffer_size(1).unwrap();
        (dialled, accepted)
    }

    async fn dial(listener: TcpListener) -> (TcpStream, TcpStream) {
        let dialling = TcpStream::connect(listener.local_addr().unwrap());
        let (dialled, accepted) = tokio::join!(dialling, listener.accept());
        (dialled.unwrap(), accepted.unwrap().0)
    }

    /// Readers that stopped, of writers that do not.
    #[tokio::test(start_paused = true)]
    async fn stalled_relays_keep_a_bounded_amount_together() {
        let stalled = 300;
        let scratch = Scratch::of_this_thread();
        let mut relays = Vec::new();
        for _ in 0..stalled {
            let (mut writer, near) = connected().await;
            let (far, reader) = connected_to_nobody().await;
            let scratch = scratch.clone();
            let mut relay = Box::pin(async move {
                let (mut near, mut far) = (Session::from(near), Session::from(far));
                _ = relay(&mut near, &mut far, &scratch, &Passed::default()).await;
            });
            let bytes = vec![7; 1 << 19];
            // The clock goes on when nothing else does.
            let blocked = timeout(Duration::from_secs(1), async {
                tokio::join!(relay.as_mut(), writer.write_all(&bytes))
            });
            blocked.await.unwrap_err();
            relays.push((relay, writer, reader));
        }
        let kept = scratch.kept().get();
        assert!(kept <= HELD_BYTES_MAX + stalled * READ_BYTES_MIN, "{kept}");
        assert!(kept > HELD_BYTES_MAX / 2, "{kept}");
        // What ends gives back what it held.
        drop(relays);
        assert_eq!(scratch.kept().get(), 0);
    }

    #[tokio::test]
    async fn bytes_and_half_closes_pass_both_ways() {
        let (mut client, near) = connected().await;
        let (far, mut server) = connected().await;
        let (mut near, mut far) = (Session::from(near), Session::from(far));
        let scratch = Scratch::of_this_thread();
        let passed = Passed::default();
        let asked = vec![7; 1 << 20];
        let talk = async {
            client.write_all(&asked).await.unwrap();
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
            asked
        };
        let (relayed, answer, heard) =
            tokio::join!(relay(&mut near, &mut far, &scratch, &passed), talk, serve);
        relayed.unwrap();
        assert!(heard == asked);
        assert_eq!(answer, vec![7; 500]);
        assert_eq!((passed.forth.get(), passed.back.get()), (1 << 20, 500));
        assert_eq!(scratch.kept().get(), 0);
    }
}
