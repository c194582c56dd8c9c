//! The one rule model: which packets are redirected, and why, as plain data in the order the
//! kernel tries them. The renderers translate it word by word and decide nothing.
//!
//! ```text
//! invalid   (mangle, prerouting)   drop segments conntrack cannot place
//! inbound   (nat, prerouting)      not for this host, lo, excluded ports: return;
//!                                  TCP: to the inbound listener
//! outbound  (nat, output)          self-calls: to the inbound listener; the proxy: return;
//!                                  DNS; lo, link-local, excluded ports and networks: return;
//!                                  TCP: to the outbound listener
//! ```
//!
//! A `return` ends our chain, so the packet goes where it was going.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::intercept::{SELF_CALL_V4, SELF_CALL_V6};

/// What is taken over and what is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The user the proxy runs as. What this user sends is never redirected.
    pub proxy_uid: u32,
    /// Port of the listener for connections to the workload.
    pub inbound_port: u16,
    /// Port of the listener for connections of the workload.
    pub outbound_port: u16,
    /// Ports of the pod that are reached directly: the proxy's own health and metrics, and what
    /// the operator names.
    pub excluded_inbound_ports: BTreeSet<u16>,
    /// Destination ports that are dialled directly.
    pub excluded_outbound_ports: BTreeSet<u16>,
    /// Destination networks that are dialled directly.
    pub excluded_networks: BTreeSet<IpNet>,
    /// Whether name queries of the workload go to the proxy.
    pub dns: Dns,
    /// What happens to TCP segments that conntrack cannot place.
    pub invalid: InvalidSegments,
}

/// Whether name queries of the workload go to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dns {
    /// They go where the workload sends them.
    Direct,
    /// Queries to any resolver, over UDP and TCP, go to this port.
    Captured(u16),
}

/// What happens to TCP segments that conntrack cannot place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidSegments {
    /// They are dropped. Else an out-of-window segment is not translated, reaches the
    /// application's real port, and the RST from there kills a good connection.
    Dropped,
    /// They pass, for networks that route the two directions differently.
    Passed,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            proxy_uid: 1337,
            inbound_port: 15006,
            outbound_port: 15001,
            excluded_inbound_ports: BTreeSet::from([15020]),
            excluded_outbound_ports: BTreeSet::new(),
            excluded_networks: BTreeSet::new(),
            dns: Dns::Direct,
            invalid: InvalidSegments::Dropped,
        }
    }
}

/// Why a set of rules makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Contradiction {
    /// Two listeners cannot share a port.
    #[error("{name} port {port} is used twice; inbound, outbound and DNS need a port each")]
    SharedPort { name: &'static str, port: u16 },
    /// Port 0 matches nothing.
    #[error("{0} port is 0; give the port the proxy listens on")]
    NoPort(&'static str),
    /// An excluded port that the proxy itself listens on.
    #[error("port {0} is one of the proxy's listeners and cannot be excluded")]
    ExcludedListener(u16),
    /// DNS is both captured and excluded.
    #[error("outbound port 53 is excluded, yet DNS capture is on; drop one of them")]
    ExcludedDns,
    /// More exclusions of a kind than the rules are made for.
    #[error("{count} excluded {what}; at most {EXCLUSIONS_MAX}, name networks instead of hosts")]
    TooMany { what: &'static str, count: usize },
}

/// One line of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub chain: Chain,
    /// All must hold. In the order in which `iptables-save` prints them.
    pub matches: Vec<Match>,
    pub verdict: Verdict,
    /// For people: what the rule is for.
    pub reason: Cow<'static, str>,
}

/// Where a packet meets the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    Invalid,
    Inbound,
    Outbound,
}

/// A condition on the first packet of a connection; [`Match::Invalid`] alone on any packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Source(IpNet),
    Destination(IpNet),
    NotDestination(IpNet),
    FromLoopback,
    ToLoopback,
    /// To an address that is none of this host's: to be routed on.
    ToOthers,
    Tcp,
    TcpPort(u16),
    UdpPort(u16),
    Uid(u32),
    Invalid,
}

/// What happens to a packet that matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Return,
    Drop,
    Redirect(u16),
}

impl Rules {
    /// The chains, rule by rule.
    pub fn compile(&self) -> Result<Vec<Rule>, Contradiction> {
        self.check()?;
        let mut rules = Vec::new();
        if self.invalid == InvalidSegments::Dropped {
            rules.push(Rule {
                chain: Chain::Invalid,
                matches: vec![Match::Tcp, Match::Invalid],
                verdict: Verdict::Drop,
                reason: "a stray segment would make the application reset the connection".into(),
            });
        }
        self.inbound(&mut rules);
        self.outbound(&mut rules);
        Ok(rules)
    }

    fn inbound(&self, rules: &mut Vec<Rule>) {
        let mut add = |matches, verdict, reason: Cow<'static, str>| {
            rules.push(Rule {
                chain: Chain::Inbound,
                matches,
                verdict,
                reason,
            });
        };
        add(
            vec![Match::ToOthers],
            Verdict::Return,
            "what is routed on to others is not for the workload".into(),
        );
        add(
            vec![Match::FromLoopback],
            Verdict::Return,
            "containers of one pod talk directly".into(),
        );
        for port in &self.excluded_inbound_ports {
            add(
                vec![Match::TcpPort(*port)],
                Verdict::Return,
                format!("inbound port {port} is excluded").into(),
            );
        }
        add(
            vec![Match::Tcp],
            Verdict::Redirect(self.inbound_port),
            "what others open to the workload passes the proxy".into(),
        );
    }

    fn outbound(&self, rules: &mut Vec<Rule>) {
        let mut add = |matches, verdict, reason: Cow<'static, str>| {
            rules.push(Rule {
                chain: Chain::Outbound,
                matches,
                verdict,
                reason,
            });
        };
        for (source, loopback) in self_calls() {
            add(
                vec![
                    Match::Source(source),
                    Match::NotDestination(loopback),
                    Match::ToLoopback,
                    Match::Tcp,
                    Match::Uid(self.proxy_uid),
                ],
                Verdict::Redirect(self.inbound_port),
                "a workload that calls its own service meets its own inbound policy".into(),
            );
        }
        add(
            vec![Match::Uid(self.proxy_uid)],
            Verdict::Return,
            "what the proxy itself sends is never redirected".into(),
        );
        if let Dns::Captured(port) = self.dns {
            // Before loopback: some hosts name a resolver there. Before the exclusions, which
            // are about connections.
            for query in [Match::TcpPort(DNS_PORT), Match::UdpPort(DNS_PORT)] {
                add(
                    vec![query],
                    Verdict::Redirect(port),
                    "the proxy answers names of the mesh and forwards the rest".into(),
                );
            }
        }
        add(
            vec![Match::ToLoopback],
            Verdict::Return,
            "loopback and the pod's own addresses are reached directly".into(),
        );
        add(
            // Its interface is part of such an address, and the redirection forgets it.
            vec![Match::Destination(link_local().into())],
            Verdict::Return,
            "link-local addresses of IPv6 are reached directly".into(),
        );
        for port in &self.excluded_outbound_ports {
            add(
                vec![Match::TcpPort(*port)],
                Verdict::Return,
                format!("outbound port {port} is excluded").into(),
            );
        }
        for network in &self.excluded_networks {
            add(
                // Host bits would never compare equal.
                vec![Match::Destination(network.trunc())],
                Verdict::Return,
                format!("network {network} is excluded").into(),
            );
        }
        add(
            vec![Match::Tcp],
            Verdict::Redirect(self.outbound_port),
            "what the workload opens passes the proxy".into(),
        );
    }

    fn check(&self) -> Result<(), Contradiction> {
        let mut listeners = vec![
            ("inbound", self.inbound_port),
            ("outbound", self.outbound_port),
        ];
        if let Dns::Captured(port) = self.dns {
            listeners.push(("DNS", port));
        }
        let mut seen = BTreeSet::new();
        for (name, port) in listeners {
            if port == 0 {
                return Err(Contradiction::NoPort(name));
            }
            if !seen.insert(port) {
                return Err(Contradiction::SharedPort { name, port });
            }
            if self.excluded_inbound_ports.contains(&port) {
                return Err(Contradiction::ExcludedListener(port));
            }
        }
        if self.dns != Dns::Direct && self.excluded_outbound_ports.contains(&DNS_PORT) {
            return Err(Contradiction::ExcludedDns);
        }
        for (what, count) in [
            ("inbound ports", self.excluded_inbound_ports.len()),
            ("outbound ports", self.excluded_outbound_ports.len()),
            ("networks", self.excluded_networks.len()),
        ] {
            if count > EXCLUSIONS_MAX {
                return Err(Contradiction::TooMany { what, count });
            }
        }
        Ok(())
    }
}

/// Per family: the source that marks a self-call, and the destinations that never are one. IPv6
/// has a single loopback address, so a plain connection to it carries the same source.
fn self_calls() -> [(IpNet, IpNet); 2] {
    let loopback_v4 = Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);
    let loopback_v6 = Ipv6Net::from(std::net::Ipv6Addr::LOCALHOST);
    [
        (Ipv4Net::from(SELF_CALL_V4).into(), loopback_v4.into()),
        (Ipv6Net::from(SELF_CALL_V6).into(), loopback_v6.into()),
    ]
}

/// RFC 4291 section 2.4.
fn link_local() -> Ipv6Net {
    Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Rule {
    /// What the rule does and why, for people.
    pub fn explained(&self) -> String {
        format!("{self}  ({})", self.reason)
    }

    /// Whether the rule can match packets of this family.
    pub fn applies_to(&self, family: Family) -> bool {
        self.matches.iter().all(|one| match one {
            Match::Source(net) | Match::Destination(net) | Match::NotDestination(net) => {
                matches!(net, IpNet::V4(_)) == (family == Family::V4)
            }
            Match::FromLoopback
            | Match::ToLoopback
            | Match::ToOthers
            | Match::Tcp
            | Match::TcpPort(_)
            | Match::UdpPort(_)
            | Match::Uid(_)
            | Match::Invalid => true,
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.matches {
            write!(f, "{one} ")?;
        }
        write!(f, "-> {}", self.verdict)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(net) => write!(f, "from {net}"),
            Self::Destination(net) => write!(f, "to {net}"),
            Self::NotDestination(net) => write!(f, "not to {net}"),
            Self::FromLoopback => f.write_str("arriving on lo"),
            Self::ToLoopback => f.write_str("leaving on lo"),
            Self::ToOthers => f.write_str("not to this host"),
            Self::Tcp => f.write_str("tcp"),
            Self::TcpPort(port) => write!(f, "tcp port {port}"),
            Self::UdpPort(port) => write!(f, "udp port {port}"),
            Self::Uid(uid) => write!(f, "by uid {uid}"),
            Self::Invalid => f.write_str("invalid"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return => f.write_str("untouched"),
            Self::Drop => f.write_str("drop"),
            Self::Redirect(port) => write!(f, "port {port}"),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        })
    }
}

/// Most exclusions of each kind: one rule each, tried once per connection.
pub const EXCLUSIONS_MAX: usize = 64;

const DNS_PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(rules: &Rules, expected: &Contradiction) {
        assert_eq!(rules.compile().as_ref(), Err(expected));
    }

    #[test]
    fn contradictions_are_refused_in_words() {
        let plain = Rules::default();
        refused(
            &Rules {
                inbound_port: 15001,
                ..plain.clone()
            },
            &Contradiction::SharedPort {
                name: "outbound",
                port: 15001,
            },
        );
        refused(
            &Rules {
                outbound_port: 0,
                ..plain.clone()
            },
            &Contradiction::NoPort("outbound"),
        );
        refused(
            &Rules {
                excluded_inbound_ports: [15006].into(),
                ..plain.clone()
            },
            &Contradiction::ExcludedListener(15006),
        );
        refused(
            &Rules {
                dns: Dns::Captured(15053),
                excluded_outbound_ports: [53].into(),
                ..plain.clone()
            },
            &Contradiction::ExcludedDns,
        );
        refused(
            &Rules {
                excluded_outbound_ports: (1..=65).collect(),
                ..plain
            },
            &Contradiction::TooMany {
                what: "outbound ports",
                count: 65,
            },
        );
    }

    #[test]
    fn the_proxy_is_let_through_before_anything_else_it_sends_could_be_redirected() {
        let rules = Rules {
            dns: Dns::Captured(15053),
            ..Rules::default()
        };
        let rules = rules.compile().expect("sound");
        let outbound: Vec<_> = rules
            .iter()
            .filter(|rule| rule.chain == Chain::Outbound)
            .collect();
        let own = outbound
            .iter()
            .position(|rule| rule.matches == [Match::Uid(1337)])
            .expect("the proxy's own rule");
        // Only the marked self-calls stand before it.
        for rule in &outbound[..own] {
            assert!(
                rule.matches
                    .iter()
                    .any(|one| matches!(one, Match::Source(_))),
                "{rule}"
            );
            assert_eq!(rule.verdict, Verdict::Redirect(15006));
        }
    }

    #[test]
    fn each_family_gets_its_own_addresses_and_the_shared_rules() {
        let rules = Rules {
            excluded_networks: ["10.0.0.0/8", "fd00::/8"]
                .map(|net| net.parse().expect("a network"))
                .into(),
            ..Rules::default()
        };
        let rules = rules.compile().expect("sound");
        let count = |family| rules.iter().filter(|rule| rule.applies_to(family)).count();
        assert_eq!(count(Family::V4) + 1, count(Family::V6), "link-local");
        assert_eq!(
            count(Family::V6) + 2,
            rules.len(),
            "self-call and network, once per family"
        );
    }
}
