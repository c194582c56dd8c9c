//! Addresses for services that have none of their own.
//!
//! An allotment is one number: the host part of an IPv4 and of an IPv6 address. It is kept under
//! `addresses/<host>`, and `address-numbers/<number>` makes it unique through compare-and-swap;
//! both are written and deleted in the transaction that stores or deletes the service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The two addresses of a number.
pub fn addresses(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    let [n0, n1, n2, n3, n4, n5, n6, _] = V6_NET;
    [
        Ipv4Addr::new(V4_NET[0], V4_NET[1], high, low).into(),
        Ipv6Addr::new(n0, n1, n2, n3, n4, n5, n6, number).into(),
    ]
}

/// Whether an address is one that we allot.
pub fn is_allottable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..2] == V4_NET,
        IpAddr::V6(address) => address.segments()[..7] == V6_NET[..7],
    }
}

/// Where the search for a free number begins, so that a service usually gets the same address
/// again, also in another mesh: FNV-1a of the host.
fn first_try(host: &str) -> u16 {
    let hash = host.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let [a, b, c, d] = hash.to_be_bytes();
    u16::from_be_bytes([a ^ c, b ^ d])
}

/// A free number for a host; never the network's first or last. `None`: all are taken.
pub fn choose(host: &str, is_taken: impl Fn(u16) -> bool) -> Option<u16> {
    let first = first_try(host);
    (0..=u16::MAX)
        .map(|step| first.wrapping_add(step))
        .find(|number| !matches!(*number, 0 | u16::MAX) && !is_taken(*number))
}

/// The key of a host's number.
pub fn host_key(host: &str) -> String {
    format!("{HOSTS}{host}")
}

/// The key that makes a number unique.
pub fn number_key(number: u16) -> String {
    format!("{NUMBERS}{number:05}")
}

/// Prefix of [`host_key`].
pub const HOSTS: &str = "addresses/";
/// Prefix of [`number_key`].
pub const NUMBERS: &str = "address-numbers/";
/// 240.240.0.0/16: reserved by RFC 1112, routed nowhere; Istio's choice too.
const V4_NET: [u8; 2] = [240, 240];
/// fdb4:9d9:ac8::/112 of our own (RFC 4193).
const V6_NET: [u16; 8] = [0xfdb4, 0x09d9, 0x0ac8, 0, 0, 0, 0, 0];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_are_stable_unique_and_run_out() {
        let first = choose("web.default.svc.cluster.local", |_| false).unwrap();
        let mut taken = HashSet::new();
        for i in 0..2_000 {
            let number = choose(&format!("host-{i}.x"), |number| taken.contains(&number)).unwrap();
            assert!(taken.insert(number));
            assert!(addresses(number).iter().all(is_allottable));
        }
        taken.extend(1..u16::MAX);
        assert_eq!(choose("one-more.x", |number| taken.contains(&number)), None);
        taken.remove(&first);
        assert_eq!(
            choose("web.default.svc.cluster.local", |number| taken
                .contains(&number)),
            Some(first)
        );
    }
}
