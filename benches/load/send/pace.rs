//! Waiting to a few microseconds. The runtime's own timers are of whole milliseconds, in which
//! eight requests would gather at 8,000 a second; the kernel's timers are not.

use std::{io, os::fd::OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{io::unix::AsyncFd, task};

use crate::clock::{Instant, now};

pub(super) struct Pace {
    timer: AsyncFd<OwnedFd>,
}

impl Pace {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types that change their descriptor: this cannot"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer })
    }

    /// Returns once `due` has come; other tasks run meanwhile, also when it has long been.
    pub(super) async fn until(&self, due: Instant) -> io::Result<()> {
        let wait = due.saturating_duration_since(now());
        if wait.is_zero() {
            task::yield_now().await;
            return Ok(());
        }
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: wait.as_secs().cast_signed(),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.timer.readable().await?;
            let mut expirations = [0; 8];
            let read =
                |timer: &AsyncFd<OwnedFd>| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?);
            // The other error is that it was not ready after all.
            if let Ok(read) = ready.try_io(read) {
                return read.map(drop);
            }
        }
    }
}
