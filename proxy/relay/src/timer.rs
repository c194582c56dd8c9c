//! The timers of a worker: set and cancelled in constant time, whatever their number.
//!
//! ```text
//! level 0   64 slots of  1 ms   ◄─┐ a slot of a level is spread over the level below
//! level 1   64 slots of 64 ms   ◄─┤ when its time has come
//! level 2   64 slots of  4.1 s  ◄─┤
//! level 3   64 slots of  4.4 min ─┘
//! ```
//!
//! Most timers of a relay are cancelled: an exchange ends before its deadline. So a timer is a
//! link in its slot's list, and what is cancelled leaves nothing behind.

use std::time::{Duration, Instant};

/// Timers that carry a `T`, which says what for.
#[derive(Debug)]
pub struct Timers<T> {
    /// What ticks are counted from.
    started: Instant,
    /// All ticks before it have been looked at.
    now: u64,
    links: Vec<Link<T>>,
    /// Head of the list of links that are not in use.
    free: u32,
    slots: [[u32; SLOTS]; LEVELS],
    /// Which slots of a level are not empty.
    occupied: [u64; LEVELS],
    len: usize,
}

/// A timer that was set. It must be cancelled or expire exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer(u32);

#[derive(Clone, Copy, Debug)]
struct Link<T> {
    previous: u32,
    next: u32,
    /// Tick at which it expires.
    at: u64,
    level: usize,
    slot: u32,
    /// `None` while it is not in use.
    what: Option<T>,
}

impl<T: Copy> Timers<T> {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            now: 0,
            links: Vec::new(),
            free: NONE,
            slots: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            len: 0,
        }
    }

    /// Sets a timer. It expires at `at` or up to a millisecond later, never earlier.
    pub fn set(&mut self, at: Instant, what: T) -> Timer {
        let tick = self.tick_after(at).max(self.now);
        let index = self.allocate(tick, what);
        self.insert(index);
        self.len += 1;
        Timer(index)
    }

    /// Cancels a timer that has not expired.
    ///
    /// # Panics
    /// When it is not set.
    pub fn cancel(&mut self, timer: Timer) -> T {
        self.unlink(timer.0);
        self.release(timer.0)
    }

    /// What has expired by `now`, one after the other, in the order of their times.
    pub fn expired(&mut self, now: Instant) -> Option<T> {
        let until = self.tick_before(now);
        while let Some((level, tick)) = self.next_slot() {
            if tick > until {
                break;
            }
            self.now = self.now.max(tick);
            let index = self.slots[level][slot_of(level, tick) as usize];
            self.unlink(index);
            if self.links[index as usize].at <= tick {
                return Some(self.release(index));
            }
            self.insert(index);
        }
        self.now = self.now.max(until);
        None
    }

    /// When to look again: no timer expires before. `None`: there are none.
    pub fn next(&self) -> Option<Instant> {
        let (_, tick) = self.next_slot()?;
        Some(self.started + Duration::from_millis(tick))
    }

    /// How many are set.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slot that is due first, and when. A slot of a higher level is due when its time
    /// begins; it comes before one of a lower level at the same time, because it may hold the
    /// same tick.
    fn next_slot(&self) -> Option<(usize, u64)> {
        let mut first = None;
        for (level, (occupied, shift)) in self.occupied.iter().zip(SHIFTS).enumerate() {
            if *occupied == 0 {
                continue;
            }
            let ahead = occupied.rotate_right(slot_of(level, self.now));
            let tick = ((self.now >> shift) + u64::from(ahead.trailing_zeros())) << shift;
            if first.is_none_or(|(_, earliest)| tick <= earliest) {
                first = Some((level, tick));
            }
        }
        first
    }

    /// Puts a link where its time belongs, seen from now.
    fn insert(&mut self, index: u32) {
        let at = self.links[index as usize].at;
        let differing = (at ^ self.now) | 1;
        let level = SHIFTS.partition_point(|shift| *shift <= differing.ilog2()) - 1;
        // Beyond the horizon: as late as the highest level has, and then again.
        let last = ((self.now >> SHIFTS[level]) + SLOTS as u64 - 1) << SHIFTS[level];
        let slot = slot_of(level, at.min(last));
        let head = &mut self.slots[level][slot as usize];
        let next = std::mem::replace(head, index);
        if next != NONE {
            self.links[next as usize].previous = index;
        }
        let link = &mut self.links[index as usize];
        link.previous = NONE;
        link.next = next;
        link.level = level;
        link.slot = slot;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let Link {
            previous,
            next,
            level,
            slot,
            ..
        } = self.links[index as usize];
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if previous != NONE {
            self.links[previous as usize].next = next;
            return;
        }
        self.slots[level][slot as usize] = next;
        if next == NONE {
            self.occupied[level] &= !(1 << slot);
        }
    }

    fn allocate(&mut self, at: u64, what: T) -> u32 {
        let link = Link {
            previous: NONE,
            next: NONE,
            at,
            level: 0,
            slot: 0,
            what: Some(what),
        };
        if self.free == NONE {
            let index = u32::try_from(self.links.len()).expect("there is no memory for so many");
            self.links.push(link);
            return index;
        }
        let index = self.free;
        self.free = self.links[index as usize].next;
        self.links[index as usize] = link;
        index
    }

    fn release(&mut self, index: u32) -> T {
        let link = &mut self.links[index as usize];
        let what = link.what.take().expect("it was set and has not expired");
        link.next = self.free;
        self.free = index;
        self.len -= 1;
        what
    }

    fn tick_before(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started);
        ticks(since.as_secs(), since.subsec_millis())
    }

    fn tick_after(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started);
        ticks(since.as_secs(), since.subsec_nanos().div_ceil(1_000_000))
    }
}

fn ticks(seconds: u64, milliseconds: u32) -> u64 {
    seconds
        .saturating_mul(1_000)
        .saturating_add(u64::from(milliseconds))
}

#[expect(clippy::cast_possible_truncation, reason = "it is below SLOTS")]
fn slot_of(level: usize, tick: u64) -> u32 {
    ((tick >> SHIFTS[level]) % SLOTS as u64) as u32
}

/// No link.
const NONE: u32 = u32::MAX;
const SLOTS: usize = 64;
const LEVELS: usize = 4;
/// How much coarser a level is than milliseconds.
const SHIFTS: [u32; LEVELS] = [0, 6, 12, 18];

#[cfg(test)]
mod tests;
