//! The flusher: one task of a worker that carries out what its relay wants.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use heddle_relay::{
    record::Direction,
    relay::{ConnId, Task},
};
use heddle_shell::clock;
use tokio::time::{Sleep, sleep_until};

use super::{
    Driver, State,
    conn::{Shut, Writer},
};
use crate::drain::{Draining, Phase};

/// Sleeps until the relay's next deadline, or less.
#[derive(Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Driver {
    /// Runs for as long as the worker does. Without tokio's budget for a task: that would stop
    /// writes to sockets that take them.
    pub async fn flush(self: Rc<Self>) {
        let mut alarm = Alarm::default();
        tokio::task::unconstrained(poll_fn(|cx| {
            self.hears(cx.waker());
            self.turn();
            let deadline = self.state.borrow().relay.deadline();
            alarm.arm(cx, deadline);
            Poll::<()>::Pending
        }))
        .await;
    }

    /// Wakes the flusher for what no connection tells it of: a new view, new credentials.
    pub async fn watch(self: Rc<Self>) {
        let mut views = self.views.subscribe();
        let mut credentials = self.state.borrow().configs.borrow().subscribe();
        loop {
            let changed = tokio::select! {
                biased; // Either only wakes.
                changed = views.changed() => changed,
                changed = credentials.changed() => changed,
            };
            self.state.borrow().wake();
            if changed.is_err() {
                return;
            }
        }
    }

    /// Obeys a drain.
    pub async fn drain(self: Rc<Self>, mut draining: Draining) {
        for (phase, retired) in [
            (Phase::Inbound, Direction::Inbound),
            (Phase::All, Direction::Outbound),
        ] {
            draining.reached(phase).await;
            let state = &mut *self.state();
            state.relay.retire(retired, clock::now());
            state.wake();
        }
        draining.reached(Phase::Cut).await;
        let state = &mut *self.state();
        state.relay.cut(clock::now());
        state.wake();
    }

    /// Ends what still runs for the relay, and reports what that ended.
    pub fn stop(self: &Rc<Self>) {
        drop(self.tasks.take());
        self.turn();
        drop(self.tasks.take());
    }

    fn hears(&self, waker: &Waker) {
        let flusher = &mut self.state.borrow_mut().flusher;
        if !flusher.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *flusher = Some(waker.clone());
        }
    }

    /// Does all that is to be done now.
    fn turn(self: &Rc<Self>) {
        assert!(!self.is_torn.get(), "nobody has panicked within the relay");
        let state = &mut *self.state();
        let now = clock::now();
        state.look(now);
        state.relay.expire(now);
        while let Some(id) = state.relay.next_write(now) {
            state.write(id);
        }
        while let Some(task) = state.relay.next_task() {
            match task {
                Task::Dial(dial) => self.dial(dial),
                Task::Ask(key) => self.ask(key),
                Task::Shut(id) => state.leave_to_task(id, |conn| conn.shut = Shut::Wanted),
                Task::Close(id, closing) => {
                    state.leave_to_task(id, |conn| conn.closing = Some(closing));
                }
            }
        }
        while let Some(id) = state.relay.next_resumed() {
            state.conns.get(id).inspect(|conn| conn.wake());
        }
        self.report(state);
    }

    fn report(&self, state: &mut State) {
        let begun = state.relay.begun();
        for direction in [Direction::Outbound, Direction::Inbound] {
            let at = direction as usize;
            let new = begun[at] - std::mem::replace(&mut state.begun[at], begun[at]);
            if new > 0 {
                self.telemetry.metrics.begin(direction, new);
            }
        }
        while let Some(record) = state.relay.next_record() {
            self.telemetry.metrics.end(record.direction);
            self.telemetry.exchange(&record);
            state.relay.recycle(record);
        }
    }
}

impl State {
    /// Writes what a connection has, as far as its socket takes it; its task waits for the rest.
    fn write(&mut self, id: ConnId) {
        let (Some(conn), Some(output)) = (self.conns.get_mut(id), self.relay.output(id)) else {
            return;
        };
        if conn.is_broken {
            output.consume(output.len());
            return;
        }
        if conn.writer == Writer::Task {
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        match conn.poll_send(&mut cx, output) {
            // There may be more now that it is short.
            Poll::Ready(Ok(())) => self.relay.touch(id),
            Poll::Ready(Err(_)) => {
                conn.is_broken = true;
                conn.wake();
            }
            Poll::Pending => conn.leave_to_task(),
        }
    }

    fn leave_to_task(&mut self, id: ConnId, set: impl FnOnce(&mut super::conn::Conn)) {
        if let Some(conn) = self.conns.get_mut(id) {
            set(conn);
            conn.leave_to_task();
        }
    }
}

impl Alarm {
    /// A deadline that moved back is not worth a change: the alarm comes early, once.
    fn arm(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) {
        let Some(deadline) = deadline else {
            self.sleep = None;
            return;
        };
        let deadline = deadline.into();
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            sleep.as_mut().reset(deadline);
            if deadline <= tokio::time::Instant::now() {
                // It is due: once more round.
                cx.waker().wake_by_ref();
                return;
            }
        }
    }
}
