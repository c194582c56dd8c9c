//! Bytes of one connection: handed in as they are read, written from the relay's output.

use std::{
    cell::RefCell,
    fmt, io,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use heddle_relay::{
    budget::Account,
    input::Input,
    output::Output,
    relay::{Closing, ConnId, Relay},
};

use crate::{
    intercept,
    session::{Received, Scratch, Session},
};

/// A connection that the relay knows.
pub(super) struct Conn {
    session: Session,
    /// What came and there was no room for: a TLS record comes whole or not at all. At most one
    /// read.
    surplus: Vec<u8>,
    kept: Kept,
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
    /// What it keeps is on `account`.
    pub(super) fn new(session: Session, account: &Rc<RefCell<Account>>) -> Self {
        Self {
            session,
            surplus: Vec::new(),
            kept: Kept {
                account: Rc::clone(account),
                bytes: 0,
            },
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

    /// What came before and is still to be handed in. What of it there is no room for goes back
    /// with [`Conn::keep`].
    pub(super) fn take_surplus(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.surplus)
    }

    /// Keeps what there was no room for.
    pub(super) fn keep(&mut self, surplus: Vec<u8>) {
        self.surplus = surplus;
        self.count();
    }

    fn count(&mut self) {
        self.kept
            .set(self.session.kept_bytes() + self.surplus.len());
    }

    /// Reads what is there, about `bytes_max` at most, and hands it to `take`.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        bytes_max: usize,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<Received>> {
        let scratch = Scratch::of_this_thread();
        self.session
            .poll_receive_at_most(cx, &scratch, bytes_max, take)
    }

    /// Writes until all has gone, or no more is taken.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        output: &mut Output,
    ) -> Poll<io::Result<()>> {
        let scratch = Scratch::of_this_thread();
        let sent = self.session.poll_send(cx, output, &scratch);
        self.count();
        sent
    }

    /// Shuts our direction.
    pub(super) fn poll_shut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.poll_shutdown(cx)
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
        intercept::reset(self.session.socket());
    }
}

/// What passes is nobody's business.
impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Conn");
        shown
            .field("session", &self.session)
            .field("kept_bytes", &self.kept.bytes)
            .field("writer", &self.writer)
            .field("is_ended", &self.is_ended)
            .field("is_broken", &self.is_broken)
            .field("shut", &self.shut)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}

/// Bytes of a connection that the relay does not count: they have left its output and the socket
/// did not take them, or have not come to it yet.
struct Kept {
    account: Rc<RefCell<Account>>,
    bytes: usize,
}

impl Kept {
    fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            let mut account = self.account.borrow_mut();
            account.charge(bytes);
            account.refund(std::mem::replace(&mut self.bytes, bytes));
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Hands on what was read, as far as there is room; how much that is.
pub(super) fn hand_in(relay: &mut Relay, id: ConnId, read: &[u8], now: Instant) -> usize {
    let size = relay.room(id).min(read.len());
    let read = &read[..size];
    if size == 0 {
        return 0;
    }
    if size < SHARED_MIN {
        relay.received(id, Input::lent(read), now);
    } else {
        // One copy here rather than one for each piece that waits; and what waits keeps alive no
        // more than was read.
        relay.received(id, Input::shared(&Bytes::copy_from_slice(read)), now);
    }
    size
}

/// The relay has a connection cut that was ending in order.
pub(super) const ABORTED: io::ErrorKind = io::ErrorKind::ConnectionAborted;
/// A read from which on it most likely carries bodies.
const SHARED_MIN: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Arc};

    use heddle_policy::spiffe::Peer;
    use heddle_relay::{
        budget::Budget,
        relay::{Caller, Dialled, Speaks},
        view::View,
    };
    use heddle_shell::clock;

    use super::*;
    use crate::{
        session::tests::{Role, with_ourselves},
        settings::Bounds,
    };

    #[tokio::test]
    async fn what_a_connection_keeps_is_on_the_account() {
        let (near, _far) = with_ourselves(Role::Server).await;
        let account = Rc::new(RefCell::new(Account::new(&Budget::new(1 << 30))));
        let mut conn = Conn::new(near, &account);
        let mut output = Output::default();
        output.copy(&vec![7; 16 << 20]);
        let sent = poll_fn(|cx| Poll::Ready(conn.poll_send(cx, &mut output)));
        assert!(sent.await.is_pending());
        let unsent = conn.session.kept_bytes();
        assert!(unsent > 0);
        assert_eq!(account.borrow().used(), unsent);
        conn.keep(vec![7; 100]);
        assert_eq!(account.borrow().used(), unsent + 100);
        assert_eq!(conn.take_surplus().len(), 100);
        conn.keep(Vec::new());
        assert_eq!(account.borrow().used(), unsent);
        drop(conn);
        assert_eq!(account.borrow().used(), 0);
    }

    #[test]
    fn no_more_is_handed_in_than_there_is_room_for() {
        let now = clock::now();
        let settings = super::super::settings(&Bounds::default(), Budget::new(1 << 20));
        let mut relay = Relay::new(settings, Arc::new(View::empty(now)), 1, now);
        let id = relay.accepted(
            Caller {
                address: ([127, 0, 0, 1], 1).into(),
                peer: Peer::Anonymous,
                is_sidecar: false,
                dialled: Dialled::Authority,
                speaks: Speaks::Http1,
            },
            now,
        );
        let requests = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(10_000);
        let taken = hand_in(&mut relay, id, &requests, now);
        assert!(taken > 0 && taken < requests.len(), "{taken}");
        assert_eq!(hand_in(&mut relay, id, &requests[taken..], now), 0);
    }
}
