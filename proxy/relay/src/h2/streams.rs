//! The streams of a connection: a slab, a way from numbers to places in it, and the queues that
//! run through it.
//!
//! Numbers of new streams only grow (RFC 9113 section 5.1.1), so the way is a sorted line: a new
//! stream comes last, a look-up is a guess that is right while no number was left out, else a
//! binary search. There is nothing that a peer could make collide.

use std::collections::VecDeque;

use super::{
    fields::Length,
    flow::{ReceiveWindow, SendWindow},
    pieces::Line,
};

/// A stream that is not over.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) receiving: Receiving,
    pub(super) sending: Sending,
    /// What its messages may be, from the request's method.
    pub(super) asked: Asked,
    /// Whether CONNECT or an upgrade succeeded: from then on there is only DATA (RFC 9113 section 8.5).
    pub(super) is_tunnel: bool,
    /// Whether an endpoint answered, see [`Connection::served`].
    ///
    /// [`Connection::served`]: super::Connection::served
    pub(super) is_served: bool,
    /// Whether the rest of what the peer sends is of no use, see [`Connection::stop`].
    ///
    /// [`Connection::stop`]: super::Connection::stop
    pub(super) is_unwanted: bool,
    pub(super) interims: u8,
    /// What of the received body is still to come.
    pub(super) length: Length,
    pub(super) receive_window: ReceiveWindow,
    pub(super) send_window: SendWindow,
    /// What waits to be sent.
    pub(super) line: Line,
    /// Bytes of a body that went into frames before the stream's HEADERS were written.
    pub(super) framed: u32,
    /// Bytes that waited, have gone, and have not been told of.
    pub(super) written: u32,
    links: [Link; Queue::ALL],
}

/// The received half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// As a client: no final answer yet.
    Head,
    /// DATA or trailers.
    Body,
    /// Nothing more comes.
    Ended,
}

/// The sent half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// As a server: the final head has not been given to us yet.
    Head,
    /// The end has not.
    Body,
    /// It has, and goes with the last that waits.
    Ending,
    /// It has gone.
    Ended,
}

/// What a client asked for, as far as it changes what answers may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Whatever.
    Any,
    /// HEAD: an answer has no body.
    Head,
    /// CONNECT, also the extended one.
    Connect,
    /// An upgrade of HTTP/1.1.
    Upgrade,
}

/// A place in the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// A queue that runs through the slab; a stream is in each at most once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Queue {
    /// A head is first in line.
    Heads,
    /// A body is first in line, and the stream's window is open.
    Data,
    /// `written` is to be told.
    Written,
}

#[derive(Debug)]
pub(super) struct Streams {
    slots: Vec<Stream>,
    free: Slot,
    live: u32,
    /// In the order of numbers; those that are over stay until they are first, or many.
    index: VecDeque<Entry>,
    dead: usize,
    /// First and last.
    ends: [(Slot, Slot); Queue::ALL],
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u32,
    slot: Slot,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    before: Slot,
    after: Slot,
    is_in: bool,
}

impl Stream {
    pub(super) fn new(id: u32, receiving: Receiving, asked: Asked) -> Self {
        Self {
            id,
            receiving,
            sending: Sending::Head,
            asked,
            is_tunnel: false,
            is_served: false,
            is_unwanted: false,
            interims: 0,
            length: Length::Unknown,
            receive_window: ReceiveWindow::new(0),
            send_window: SendWindow::new(0),
            line: Line::default(),
            framed: 0,
            written: 0,
            links: [Link::OUT; Queue::ALL],
        }
    }

    /// Whether it asks for an upgrade which has not been granted: nothing may come of the request
    /// but its end.
    pub(super) fn is_upgrade_due(&self) -> bool {
        self.asked == Asked::Upgrade && !self.is_tunnel
    }
}

impl Streams {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Slot::NONE,
            live: 0,
            index: VecDeque::new(),
            dead: 0,
            ends: [(Slot::NONE, Slot::NONE); Queue::ALL],
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        self.live
    }

    /// Adds a stream whose number is above all before.
    pub(super) fn insert(&mut self, stream: Stream) -> Slot {
        let id = stream.id;
        debug_assert!(self.index.back().is_none_or(|last| last.id < id));
        let slot = match self.free {
            Slot::NONE => {
                let place = u32::try_from(self.slots.len());
                self.slots.push(stream);
                Slot(place.expect("numbers of streams have 31 bits"))
            }
            slot => {
                let place = &mut self.slots[slot.at()];
                self.free = place.links[FREE].after;
                *place = stream;
                slot
            }
        };
        self.index.push_back(Entry { id, slot });
        self.live += 1;
        slot
    }

    /// Removes a stream, whose line is empty, from everywhere.
    pub(super) fn remove(&mut self, slot: Slot) {
        for queue in [Queue::Heads, Queue::Data, Queue::Written] {
            self.unlink(queue, slot);
        }
        let id = self.slots[slot.at()].id;
        if let Some(place) = self.place(id) {
            self.index[place].slot = Slot::NONE;
            self.dead += 1;
        }
        self.live -= 1;
        self.slots[slot.at()].links[FREE].after = self.free;
        self.free = slot;
        while self
            .index
            .front()
            .is_some_and(|entry| entry.slot == Slot::NONE)
        {
            self.index.pop_front();
            self.dead -= 1;
        }
        // Each that is removed pays for one step of the next clearing.
        if self.dead > DEAD_MIN && self.dead > self.index.len() / 2 {
            self.index.retain(|entry| entry.slot != Slot::NONE);
            self.dead = 0;
        }
    }

    /// Where the stream `id` is, if it is not over.
    pub(super) fn find(&self, id: u32) -> Option<Slot> {
        let slot = self.index[self.place(id)?].slot;
        (slot != Slot::NONE).then_some(slot)
    }

    /// The stream with the highest number, if that is above `id`.
    pub(super) fn last_above(&mut self, id: u32) -> Option<Slot> {
        while let Some(entry) = self.index.back() {
            if entry.slot != Slot::NONE {
                return (entry.id > id).then_some(entry.slot);
            }
            self.index.pop_back();
            self.dead -= 1;
        }
        None
    }

    /// All streams, lowest number first, by position: `None` is one that is over.
    pub(super) fn at(&self, position: usize) -> Option<Option<Slot>> {
        let slot = self.index.get(position)?.slot;
        Some((slot != Slot::NONE).then_some(slot))
    }

    pub(super) fn push(&mut self, queue: Queue, slot: Slot) {
        if self[slot].links[queue as usize].is_in {
            return;
        }
        let (first, last) = self.ends[queue as usize];
        self[slot].links[queue as usize] = Link {
            before: last,
            after: Slot::NONE,
            is_in: true,
        };
        if last == Slot::NONE {
            self.ends[queue as usize] = (slot, slot);
        } else {
            self[last].links[queue as usize].after = slot;
            self.ends[queue as usize] = (first, slot);
        }
    }

    pub(super) fn pop(&mut self, queue: Queue) -> Option<Slot> {
        let (first, _) = self.ends[queue as usize];
        if first == Slot::NONE {
            return None;
        }
        self.unlink(queue, first);
        Some(first)
    }

    pub(super) fn is_empty(&self, queue: Queue) -> bool {
        self.ends[queue as usize].0 == Slot::NONE
    }

    pub(super) fn is_in(&self, queue: Queue, slot: Slot) -> bool {
        self[slot].links[queue as usize].is_in
    }

    pub(super) fn unlink(&mut self, queue: Queue, slot: Slot) {
        let kind = queue as usize;
        let Link {
            before,
            after,
            is_in,
        } = self[slot].links[kind];
        if !is_in {
            return;
        }
        self[slot].links[kind] = Link::OUT;
        match before {
            Slot::NONE => self.ends[kind].0 = after,
            before => self[before].links[kind].after = after,
        }
        match after {
            Slot::NONE => self.ends[kind].1 = before,
            after => self[after].links[kind].before = before,
        }
    }

    /// Gives back memory when there are no streams.
    pub(super) fn shrink(&mut self) {
        if self.live == 0 {
            *self = Self::new();
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Stream>() + self.index.capacity() * size_of::<Entry>()
    }

    fn place(&self, id: u32) -> Option<usize> {
        let first = self.index.front()?.id;
        let guess = (id.checked_sub(first)? / 2) as usize;
        match self.index.get(guess) {
            Some(entry) if entry.id == id => Some(guess),
            _ => self.index.binary_search_by_key(&id, |entry| entry.id).ok(),
        }
    }
}

impl std::ops::Index<Slot> for Streams {
    type Output = Stream;

    fn index(&self, slot: Slot) -> &Stream {
        &self.slots[slot.at()]
    }
}

impl std::ops::IndexMut<Slot> for Streams {
    fn index_mut(&mut self, slot: Slot) -> &mut Stream {
        &mut self.slots[slot.at()]
    }
}

impl Slot {
    const NONE: Self = Self(u32::MAX);

    fn at(self) -> usize {
        self.0 as usize
    }
}

impl Queue {
    const ALL: usize = 3;
}

impl Link {
    const OUT: Self = Self {
        before: Slot::NONE,
        after: Slot::NONE,
        is_in: false,
    };
}

/// The link that free places use to find each other.
const FREE: usize = Queue::Heads as usize;

/// Entries of streams that are over which are always allowed in the index.
const DEAD_MIN: usize = 16;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::h2::tests::Rng;

    fn stream(id: u32) -> Stream {
        Stream::new(id, Receiving::Body, Asked::Any)
    }

    /// Opens and ends streams at random, with gaps of up to `gap` between numbers, beside a map.
    fn check(seed: u64, gap: usize, live_max: usize) {
        let mut rng = Rng::new(seed);
        let mut streams = Streams::new();
        let mut model = BTreeMap::new();
        let mut next = 1;
        for step in 0..4_000 {
            let context = format!("seed {seed}, step {step}");
            if model.is_empty() || (rng.below(2) == 0 && model.len() < live_max) {
                model.insert(next, streams.insert(stream(next)));
                next += 2 + 2 * u32::try_from(rng.below(gap)).unwrap();
            } else {
                let at = rng.below(model.len());
                let (&id, &slot) = model.iter().nth(at).unwrap();
                model.remove(&id);
                streams.remove(slot);
                assert_eq!(streams.find(id), None, "{context}");
            }
            assert_eq!(streams.len() as usize, model.len(), "{context}");
            for (&id, &slot) in &model {
                assert_eq!(streams.find(id), Some(slot), "{context}");
                assert_eq!(streams[slot].id, id, "{context}");
                assert_eq!(streams.find(id + 1), None, "{context}");
            }
            let bound = 2 * model.len() + DEAD_MIN + 1;
            assert!(streams.index.len() <= bound, "{context}");
            assert!(streams.slots.len() <= live_max, "{context}");
        }
        let last = model.last_key_value().map(|(id, _)| *id);
        assert_eq!(streams.last_above(0).map(|slot| streams[slot].id), last);
        assert_eq!(streams.last_above(next), None);
    }

    #[test]
    fn a_stream_is_found_while_it_is_there() {
        for seed in 0..10 {
            check(seed, 1, 50);
            check(seed, 100, 50);
        }
    }

    #[test]
    fn a_stream_that_stays_does_not_make_others_pile_up() {
        let mut streams = Streams::new();
        streams.insert(stream(1));
        for n in 1..10_000 {
            let slot = streams.insert(stream(2 * n + 1));
            streams.remove(slot);
        }
        assert!(streams.index.len() <= DEAD_MIN + 2);
        assert!(streams.find(1).is_some());
        assert_eq!(streams.slots.len(), 2);
    }

    #[test]
    fn queues_are_in_order_and_lose_what_is_removed() {
        let queues = [Queue::Heads, Queue::Data, Queue::Written];
        let mut streams = Streams::new();
        let slots = [1, 3, 5, 7, 9].map(|id| streams.insert(stream(id)));
        for (queue, slot) in queues
            .iter()
            .flat_map(|queue| slots.map(|slot| (*queue, slot)))
        {
            streams.push(queue, slot);
            streams.push(queue, slot);
        }
        for removed in [0, 2, 4] {
            streams.remove(slots[removed]);
        }
        let new = streams.insert(stream(11));
        for queue in queues {
            assert!(!streams.is_in(queue, new));
            streams.push(queue, new);
            let order = std::iter::from_fn(|| streams.pop(queue)).collect::<Vec<_>>();
            assert_eq!(order, [slots[1], slots[3], new], "{queue:?}");
            assert!(streams.is_empty(queue));
        }
    }
}
