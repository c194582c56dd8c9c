//! The task of one connection: it reads, writes what the socket did not take at once, and brings
//! the connection to its end.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use heddle_relay::relay::{Closing, ConnId};
use heddle_shell::clock;
use tokio::time::timeout;

use super::{
    Driver, State,
    conn::{ABORTED, Conn, Shut, Writer, hand_in},
};
use crate::session::Received;

/// A connection that the relay knows. It is lost when this is dropped.
#[derive(Debug)]
pub(super) struct Open {
    driver: Rc<Driver>,
    id: ConnId,
    other: Other,
}

/// Who is on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Other {
    Client,
    Endpoint,
}

/// Why nothing more is read for the relay.
enum End {
    /// The connection is gone.
    Lost,
    /// The relay has done with it.
    Close(Closing),
}

impl Open {
    pub(super) fn new(driver: &Rc<Driver>, id: ConnId, other: Other) -> Self {
        Self {
            driver: Rc::clone(driver),
            id,
            other,
        }
    }

    /// Returns at its end.
    pub(super) async fn run(self) {
        match poll_fn(|cx| self.poll(cx)).await {
            End::Lost => {}
            End::Close(Closing::Abort) => self.reset(),
            End::Close(Closing::Finish) => {
                if !Box::pin(self.finish()).await {
                    self.reset();
                }
            }
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<End> {
        if self.driver.is_torn.get() {
            return Poll::Ready(End::Lost);
        }
        let state = &mut *self.driver.state();
        let Some(conn) = state.conns.get_mut(self.id) else {
            return Poll::Ready(End::Lost);
        };
        conn.belongs_to(cx.waker());
        if let Some(closing) = conn.closing {
            return Poll::Ready(End::Close(closing));
        }
        if conn.writer == Writer::Task {
            self.write(state, cx);
        }
        let now = clock::now();
        state.look(now);
        for _ in 0..READS_MAX {
            match self.read(state, cx, now) {
                Poll::Ready(Ok(())) => state.wake(),
                Poll::Ready(Err(_gone)) => return Poll::Ready(End::Lost),
                Poll::Pending => return Poll::Pending,
            }
        }
        // A fast peer must not keep the worker from the others.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and hands in what came.
    fn read(&self, state: &mut State, cx: &mut Context<'_>, now: Instant) -> Poll<io::Result<()>> {
        let State { relay, conns, .. } = state;
        let Some(conn) = conns.get_mut(self.id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let room = relay.room(self.id);
        if room == 0 {
            // Also if nothing can be written any more: what had come is still looked at.
            return Poll::Pending;
        }
        let mut surplus = conn.take_surplus();
        let received = if !surplus.is_empty() {
            let taken = hand_in(relay, self.id, &surplus, now);
            surplus = surplus.split_off(taken);
            Poll::Ready(Ok(Received::Some))
        } else if conn.is_ended {
            Poll::Pending
        } else {
            conn.poll_receive(cx, room, &mut |bytes| {
                let taken = match surplus.is_empty() {
                    true => hand_in(relay, self.id, bytes, now),
                    false => 0,
                };
                surplus.extend_from_slice(&bytes[taken..]);
            })
        };
        conn.keep(surplus);
        if received.is_pending() && conn.is_broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if ready!(received)? == Received::Ended {
            conn.is_ended = true;
            relay.ended(self.id, now);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what the socket did not take from the flusher, and shuts our direction behind it.
    fn write(&self, state: &mut State, cx: &mut Context<'_>) {
        let State { relay, conns, .. } = state;
        let (Some(conn), Some(output)) = (conns.get_mut(self.id), relay.output(self.id)) else {
            return;
        };
        let before = output.len();
        let sent = match conn.poll_send(cx, output) {
            Poll::Ready(Ok(())) if conn.shut == Shut::Wanted => conn.poll_shut(cx),
            sent => sent,
        };
        let has_moved = output.len() < before;
        match sent {
            Poll::Ready(Ok(())) => conn.leave_to_flusher(),
            Poll::Ready(Err(_)) => conn.is_broken = true,
            Poll::Pending => {}
        }
        if has_moved || conn.writer == Writer::Flusher {
            relay.touch(self.id);
            state.wake();
        }
    }

    /// Says what there is to say, ends our direction, and reads what a client still sends for a
    /// while. An endpoint has answered, and others wait for the place of its connection. `false`: that came to nothing, and half of an answer must not pass for all of it.
    async fn finish(&self) -> bool {
        loop {
            let moved = timeout(WRITE_WAIT, poll_fn(|cx| self.poll_moved(cx)));
            match moved.await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => break,
                Ok(Err(_)) | Err(_) => return false,
            }
        }
        let lingering = timeout(LINGER, async {
            poll_fn(|cx| self.poll_shut(cx)).await?;
            if self.other == Other::Endpoint {
                return Ok(());
            }
            let mut left = LINGER_BYTES_MAX;
            poll_fn(|cx| self.poll_rest(cx, &mut left)).await
        });
        // Only the relay may still have it cut.
        !matches!(lingering.await, Ok(Err(error)) if error.kind() == ABORTED)
    }

    /// Some output has gone: `true`; there is none: `false`.
    fn poll_moved(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.with_conn(|state, id| {
            let State { relay, conns, .. } = state;
            let (Some(conn), Some(output)) = (conns.get_mut(id), relay.output(id)) else {
                return Poll::Ready(Ok(false));
            };
            conn.check_cut()?;
            let before = output.len();
            match conn.poll_send(cx, output) {
                Poll::Pending if output.len() < before => Poll::Ready(Ok(true)),
                Poll::Pending => Poll::Pending,
                Poll::Ready(sent) => Poll::Ready(sent.map(|()| before > 0)),
            }
        })
    }

    fn poll_shut(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with_conn(|state, id| match state.conns.get_mut(id) {
            Some(conn) if conn.shut != Shut::Done => {
                conn.check_cut()?;
                conn.poll_shut(cx)
            }
            Some(_) | None => Poll::Ready(Ok(())),
        })
    }

    /// Reads and throws away until the other side's end, or too much.
    fn poll_rest(&self, cx: &mut Context<'_>, left: &mut usize) -> Poll<io::Result<()>> {
        self.with_conn(|state, id| {
            let Some(conn) = state.conns.get_mut(id).filter(|conn| !conn.is_ended) else {
                return Poll::Ready(Ok(()));
            };
            conn.check_cut()?;
            while *left > 0 {
                let mut count = |bytes: &[u8]| *left = left.saturating_sub(bytes.len());
                if ready!(conn.poll_receive(cx, LINGER_BYTES_MAX, &mut count))? == Received::Ended {
                    break;
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    fn with_conn<T>(&self, act: impl FnOnce(&mut State, ConnId) -> T) -> T {
        act(&mut self.driver.state(), self.id)
    }

    fn reset(&self) {
        self.with_conn(|state, id| state.conns.get(id).map(Conn::reset));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.driver.is_torn.get() {
            return;
        }
        let state = &mut *self.driver.state();
        state.conns.remove(self.id);
        state.relay.lost(self.id, clock::now());
        state.wake();
    }
}

/// Reads of one connection before others get their turn.
const READS_MAX: usize = 8;
/// How long the last of a connection may wait for a reader that takes none of it.
const WRITE_WAIT: Duration = Duration::from_secs(30);
/// How long, and how much, is read behind our end. A client that is still sending would else be
/// reset by the kernel, and might not see the answer (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, pin::pin, sync::Arc};

    use heddle_policy::spiffe::Peer;
    use heddle_relay::{
        budget::Budget,
        relay::{Caller, Dialled, Speaks},
        view::View,
    };
    use heddle_shell::publish::Published;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::{
        demand::Demand,
        detect::Rewound,
        dial::Dialler,
        driver::Parts,
        settings::Bounds,
        telemetry::Telemetry,
        tls::{Configs, Stream},
    };

    fn driver() -> Rc<Driver> {
        let credentials = Published::new(None);
        let configs = Rc::new(RefCell::new(Configs::new(credentials, Duration::ZERO)));
        let (demand, _asks) = Demand::channel();
        Rc::new(Driver::new(Parts {
            bounds: Bounds::default(),
            budget: Budget::new(1 << 20),
            seed: 1,
            views: Published::new(View::empty(clock::now())),
            configs: Rc::clone(&configs),
            dialler: Rc::new(Dialler::new(configs)),
            demand,
            telemetry: Arc::new(Telemetry::default()),
        }))
    }

    /// A client that sends more requests than there is room for, and then takes no answers.
    #[tokio::test]
    async fn what_came_waits_for_room_though_nothing_can_be_written() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(connecting, listener.accept());
        let (client, (accepted, address)) = (client.unwrap(), accepted.unwrap());
        let driver = driver();
        let caller = Caller {
            address,
            peer: Peer::Anonymous,
            is_sidecar: false,
            dialled: Dialled::Authority,
            speaks: Speaks::Http1,
        };
        let stream = Rewound::new(Stream::plain(Rewound::new(accepted)));
        let mut serving = pin!(driver.serve(stream, caller));
        let requests = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(10_000);
        let mut written = 0;
        let id = poll_fn(|cx| {
            if let Ok(size) = client.try_write(&requests[written..]) {
                written += size;
            }
            assert!(serving.as_mut().poll(cx).is_pending());
            let state = &mut *driver.state();
            let id = state.conns.keys().next().unwrap();
            match state.relay.room(id) {
                0 => Poll::Ready(id),
                _ => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        })
        .await;
        driver.state().conns[id].is_broken = true;
        poll_fn(|cx| {
            assert!(serving.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    }
}
