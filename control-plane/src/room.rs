//! Room for connections that have proven nothing yet: bounded for each source and in all. Who comes when
//! there is none gets the place of the oldest that may be sent away, so that a crowd that only
//! waits keeps nobody out: an honest guest is gone, or proven, within milliseconds.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::authn::Usage;

/// See the module.
#[derive(Clone, Debug)]
pub struct Room {
    guests: Arc<Mutex<Guests>>,
    bounds: Bounds,
}

/// How many guests there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of whatever source.
    pub in_all: usize,
    /// Of one IPv4 address or one IPv6 network of 64 bits.
    pub per_source: usize,
}

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    /// By arrival.
    present: BTreeMap<u64, Guest>,
}

#[derive(Debug)]
struct Guest {
    source: IpAddr,
    /// While it is in use nobody sends the guest away.
    usage: Option<Arc<Usage>>,
    /// Dropped to send it away.
    _stay: oneshot::Sender<()>,
}

/// A place, for as long as it is not dropped.
#[derive(Debug)]
pub struct Place {
    guests: Arc<Mutex<Guests>>,
    number: u64,
}

/// Resolves, with an error, when the guest is sent away.
pub type SentAway = oneshot::Receiver<()>;

impl Room {
    /// An empty one.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            guests: Arc::default(),
            bounds,
        }
    }

    /// A place for who comes from `peer`; none when all are taken by guests in use.
    pub fn enter(&self, peer: IpAddr, usage: Option<Arc<Usage>>) -> Option<(Place, SentAway)> {
        let source = source(peer);
        let mut guests = self.guests.lock();
        let of_source = |guest: &Guest| guest.source == source;
        if guests.present.values().filter(|g| of_source(g)).count() >= self.bounds.per_source {
            guests.send_away(of_source)?;
        }
        if guests.present.len() >= self.bounds.in_all {
            guests.send_away(|_anyone| true)?;
        }
        guests.next += 1;
        let number = guests.next;
        let (stay, sent_away) = oneshot::channel();
        let guest = Guest {
            source,
            usage,
            _stay: stay,
        };
        guests.present.insert(number, guest);
        let place = Place {
            guests: Arc::clone(&self.guests),
            number,
        };
        Some((place, sent_away))
    }
}

impl Guests {
    /// Sends the oldest away that is meant and not in use.
    fn send_away(&mut self, is_meant: impl Fn(&Guest) -> bool) -> Option<Guest> {
        let is_in_use = |guest: &Guest| guest.usage.as_ref().is_some_and(|usage| usage.is_open());
        let (number, _) = self
            .present
            .iter()
            .find(|(_, guest)| is_meant(guest) && !is_in_use(guest))?;
        let number = *number;
        self.present.remove(&number)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guests.lock().present.remove(&self.number);
    }
}

/// What one party has: an IPv4 address, or an IPv6 network of 64 bits.
fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> Room {
        Room::new(Bounds {
            in_all: 3,
            per_source: 2,
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn has_left(sent_away: &mut SentAway) -> bool {
        sent_away.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn a_source_displaces_its_own_oldest_and_nobody_elses() {
        let room = room();
        let (_a, mut other) = room.enter(ip("10.0.0.1"), None).unwrap();
        let (_b, mut first) = room.enter(ip("fd00::1"), None).unwrap();
        let (_c, mut second) = room.enter(ip("fd00::2"), None).unwrap();
        let (_d, mut third) = room.enter(ip("fd00::3"), None).unwrap();
        assert!(has_left(&mut first), "one network of 64 bits is one source");
        assert!(!has_left(&mut other) && !has_left(&mut second) && !has_left(&mut third));
    }

    #[test]
    fn a_full_room_sends_its_oldest_away_but_never_one_in_use() {
        let room = room();
        let usage = Arc::<Usage>::default();
        let in_use = usage.begin();
        let (_a, mut proven) = room.enter(ip("10.0.0.1"), Some(usage)).unwrap();
        let (_b, mut silent) = room.enter(ip("10.0.0.2"), None).unwrap();
        let (c, mut newer) = room.enter(ip("10.0.0.3"), None).unwrap();
        let (_d, _) = room.enter(ip("10.0.0.4"), None).unwrap();
        assert!(has_left(&mut silent) && !has_left(&mut proven) && !has_left(&mut newer));
        drop(c);
        let (_e, _) = room.enter(ip("10.0.0.5"), None).unwrap();
        assert!(!has_left(&mut proven), "a place was free");
        drop(in_use);
        let (_f, _) = room.enter(ip("10.0.0.6"), None).unwrap();
        assert!(has_left(&mut proven), "not in use any more");
    }

    #[test]
    fn who_comes_to_a_room_in_use_is_refused() {
        let room = room();
        let usages = [(); 3].map(|()| Arc::<Usage>::default());
        let _in_use = usages.each_ref().map(Usage::begin);
        let _places: Vec<_> = (0..3_u8)
            .zip(usages)
            .map(|(n, usage)| room.enter([10, 0, 0, n].into(), Some(usage)))
            .collect();
        assert!(room.enter(ip("10.0.1.1"), None).is_none());
    }
}
