//! Bytes that a process keeps for its exchanges, over all workers: bodies under way, replays,
//! decoded heads, large reads.
//!
//! The budget says when to become careful; it never says no to bytes that a window already
//! promised, so what is kept can exceed it by the windows that are open. Nothing is killed: near
//! the end of it streams begin with small windows, and at the end new ones are refused.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Of a whole process.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    /// What the accounts have taken; each takes a little ahead.
    taken: AtomicUsize,
}

/// One worker's view of the budget. What it still holds goes back when it is dropped.
#[derive(Debug)]
pub struct Account {
    budget: Arc<Budget>,
    used: usize,
    /// At least `used`, and at most two steps more.
    taken: usize,
}

/// How much is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Everything may begin as usual.
    Ample,
    /// More than three quarters are in use: what begins gets a small window.
    Scarce,
    /// All of it is in use: nothing begins.
    None,
}

impl Budget {
    /// Nothing is in use of `bytes_max`.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            taken: AtomicUsize::new(0),
        })
    }

    /// How much is left.
    pub fn room(&self) -> Room {
        let taken = self.taken.load(Ordering::Relaxed);
        if taken >= self.bytes_max {
            Room::None
        } else if taken >= self.bytes_max / 4 * 3 {
            Room::Scarce
        } else {
            Room::Ample
        }
    }
}

impl Account {
    /// Of a worker that keeps nothing yet.
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self {
            budget: Arc::clone(budget),
            used: 0,
            taken: 0,
        }
    }

    /// So many bytes more are kept.
    pub fn charge(&mut self, bytes: usize) {
        self.used += bytes;
        if self.used > self.taken {
            let more = (self.used - self.taken).next_multiple_of(STEP);
            self.budget.taken.fetch_add(more, Ordering::Relaxed);
            self.taken += more;
        }
    }

    /// So many bytes, charged before, are not kept any more.
    ///
    /// # Panics
    /// When there were fewer.
    pub fn refund(&mut self, bytes: usize) {
        self.used = self.used.checked_sub(bytes).expect("it was charged");
        let spare = self.taken - self.used;
        if spare > 2 * STEP {
            let back = spare - STEP;
            self.budget.taken.fetch_sub(back, Ordering::Relaxed);
            self.taken -= back;
        }
    }

    /// Bytes that this worker keeps.
    pub fn used(&self) -> usize {
        self.used
    }

    /// How much is left of the process's budget.
    pub fn room(&self) -> Room {
        self.budget.room()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

/// Taken ahead, so that small charges touch no shared memory.
const STEP: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_follows_what_all_workers_keep() {
        let budget = Budget::new(16 * STEP);
        let mut one = Account::new(&budget);
        let mut other = Account::new(&budget);
        for (charge, room) in [
            (10 * STEP, Room::Ample),
            (2 * STEP, Room::Scarce),
            (4 * STEP, Room::None),
        ] {
            one.charge(charge / 2);
            other.charge(charge / 2);
            assert_eq!((one.room(), other.room()), (room, room));
        }
        one.refund(8 * STEP);
        assert_eq!(other.room(), Room::Ample);
        drop((one, other));
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn small_charges_touch_nothing_that_is_shared() {
        let budget = Budget::new(16 * STEP);
        let mut account = Account::new(&budget);
        let taken = || budget.taken.load(Ordering::Relaxed);
        for _ in 0..1_000 {
            account.charge(100);
            assert_eq!(taken(), STEP);
            account.refund(100);
            assert_eq!(taken(), STEP);
        }
        // At most two steps more than is used, whatever the order.
        for charge in 0..1_000 {
            account.charge(charge * 997);
            assert!(taken() - account.used() <= 2 * STEP);
        }
        for charge in 0..1_000 {
            account.refund(charge * 997);
            assert!(taken() - account.used() <= 2 * STEP);
        }
        assert_eq!(account.used(), 0);
    }
}
