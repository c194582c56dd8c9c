//! Addresses known to be meshed: none of them is dialled in plaintext.
//!
//! What the control plane says about an address can lapse while the sidecar there serves on: its
//! registration ends when it cannot reach the control plane, and then the address is described as
//! plain, or not at all. Neither is a reason to send in clear what was encrypted a moment before.
//!
//! So an address is remembered from the first view that leads there by mutual TLS, across restarts
//! too, and for as long as views do. It is forgotten once a control plane at work has not said so
//! for [`KEPT`]. Time without a control plane does not count.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use parking_lot::Mutex;

/// How long an address stays known as meshed that no longer is described so: the life of a
/// certificate. A sidecar that lost touch with the control plane for longer cannot prove who it
/// is any more, and an address that somebody else has got meanwhile is not lost for ever.
pub const KEPT: Duration = Duration::from_hours(24);

/// Addresses remembered at once; beyond it those that were not described for longest go.
const ADDRESSES_MAX: usize = 65_536;

/// Shared by all views of a process.
#[derive(Debug, Default)]
pub struct Meshed {
    /// How long each has not been described as meshed.
    unseen: Mutex<HashMap<SocketAddr, Duration>>,
}

impl Meshed {
    /// Whether it must not be dialled in plaintext.
    pub fn contains(&self, address: &SocketAddr) -> bool {
        self.unseen.lock().contains_key(address)
    }

    /// Takes note of addresses that are described as meshed.
    pub fn note(&self, addresses: impl Iterator<Item = SocketAddr>) {
        let mut unseen = self.unseen.lock();
        unseen.extend(addresses.map(|address| (address, Duration::ZERO)));
        shorten(&mut unseen);
    }

    /// Time has passed under a control plane that describes as meshed what `is_described` says.
    /// Returns what is forgotten.
    pub fn age(
        &self,
        passed: Duration,
        is_described: impl Fn(&SocketAddr) -> bool,
    ) -> Vec<SocketAddr> {
        let mut forgotten = Vec::new();
        self.unseen.lock().retain(|address, unseen| {
            *unseen = if is_described(address) {
                Duration::ZERO
            } else {
                *unseen + passed
            };
            let is_kept = *unseen < KEPT;
            if !is_kept {
                forgotten.push(*address);
            }
            is_kept
        });
        forgotten
    }

    /// All of them, and how long each has not been described as meshed.
    pub fn known(&self) -> Vec<(SocketAddr, Duration)> {
        let unseen = self.unseen.lock();
        unseen
            .iter()
            .map(|(address, unseen)| (*address, *unseen))
            .collect()
    }

    /// Takes over what an earlier process knew. Its time since then does not count.
    pub fn restore(&self, known: impl Iterator<Item = (SocketAddr, Duration)>) {
        let mut unseen = self.unseen.lock();
        unseen.extend(known.map(|(address, unseen)| (address, unseen.min(KEPT))));
        shorten(&mut unseen);
    }
}

fn shorten(unseen: &mut HashMap<SocketAddr, Duration>) {
    let excess = unseen.len().saturating_sub(ADDRESSES_MAX);
    if excess == 0 {
        return;
    }
    let mut oldest: Vec<(Duration, SocketAddr)> = unseen
        .iter()
        .map(|(address, unseen)| (*unseen, *address))
        .collect();
    oldest.sort_unstable_by(|a, b| b.cmp(a));
    for (_, address) in oldest.into_iter().take(excess) {
        unseen.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn an_address_is_forgotten_a_day_after_it_was_last_described() {
        let meshed = Meshed::default();
        meshed.note([address(1), address(2)].into_iter());
        for _ in 0..100 {
            assert_eq!(meshed.age(HOUR, |_| true), []);
        }
        for _ in 0..23 {
            assert_eq!(meshed.age(HOUR, |one| *one == address(2)), []);
        }
        assert!(meshed.contains(&address(1)));
        assert_eq!(meshed.age(HOUR, |one| *one == address(2)), [address(1)]);
        assert!(!meshed.contains(&address(1)) && meshed.contains(&address(2)));
    }

    #[test]
    fn a_restart_neither_forgets_nor_begins_anew() {
        let before = Meshed::default();
        before.note([address(1)].into_iter());
        before.age(23 * HOUR, |_| false);
        let after = Meshed::default();
        after.restore(before.known().into_iter());
        assert!(after.contains(&address(1)));
        assert_eq!(after.age(HOUR, |_| false), [address(1)]);
    }

    #[test]
    fn beyond_the_bound_the_longest_undescribed_go() {
        let meshed = Meshed::default();
        meshed.note((1..=100).map(address));
        meshed.age(HOUR, |_| false);
        let many = (0..ADDRESSES_MAX).map(|i| {
            let i = u32::try_from(i).unwrap();
            SocketAddr::from((std::net::Ipv4Addr::from(0x0b00_0000 + i), 80))
        });
        meshed.note(many.clone().skip(50));
        assert_eq!(meshed.known().len(), ADDRESSES_MAX);
        assert!(many.skip(50).all(|one| meshed.contains(&one)));
    }
}
