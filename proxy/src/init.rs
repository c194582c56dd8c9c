//! Makes and checks the packet rules that bring a pod's TCP connections to the proxy:
//! `heddle-proxy init`, run once with `CAP_NET_ADMIN` before the workload starts. The proxy
//! itself runs without capabilities and never touches the rules.
//!
//! ```text
//! Rules ──compile──> [Rule] ──┬── nftables: one table, one netlink transaction
//!         (model)             └── iptables: one restore per family, where the kernel lacks nf_tables
//! ```
//!
//! Installing replaces what an earlier run installed, so it can be repeated; removing leaves
//! nothing of ours. Which backend works is found out by doing, and said.

mod choice;
mod command;
mod iptables;
pub mod model;
mod netlink;
mod nftables;
mod verify;

use std::{fmt, io};

use self::choice::ThisMachine;
pub use self::{
    command::Args,
    iptables::{Failed as IptablesFailed, Programs as IptablesPrograms},
    model::{Contradiction, Dns, InvalidSegments, Rules},
    verify::Difference,
};

/// What to speak to the kernel with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// nf_tables, and iptables where the kernel refuses that.
    #[default]
    Auto,
    /// nf_tables by netlink; needs no program.
    Nftables,
    /// `iptables-restore` and `ip6tables-restore`.
    Iptables,
}

/// What an installation used.
#[derive(Debug)]
pub enum Installed {
    /// nf_tables, both families.
    Nftables,
    /// iptables.
    Iptables {
        /// The build that worked.
        programs: IptablesPrograms,
        /// Why nf_tables was not used; nothing when iptables was asked for.
        instead_of_nftables: Option<io::Error>,
        /// Why there are no IPv6 rules, in a pod without an IPv6 address.
        without_ipv6: Option<IptablesFailed>,
    },
}

/// Why the rules could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules contradict each other.
    #[error("the rules make no sense")]
    Contradiction(#[from] Contradiction),
    /// The process may not.
    #[error(
        "changing packet rules needs CAP_NET_ADMIN in the pod's network namespace; \
         on Kubernetes give the init container securityContext.capabilities.add: [\"NET_ADMIN\"]"
    )]
    NotPermitted,
    /// The kernel refused.
    #[error("nf_tables: cannot {what}")]
    Nftables { what: String, source: io::Error },
    /// iptables refused.
    #[error("iptables does not work here")]
    Iptables(#[source] IptablesFailed),
    /// Neither worked.
    #[error("nf_tables does not work here ({nftables}), and iptables does not either")]
    Neither {
        nftables: io::Error,
        #[source]
        iptables: IptablesFailed,
    },
}

/// Puts the rules in force, replacing those of an earlier run.
pub fn install(rules: &Rules, backend: Backend) -> Result<Installed, Error> {
    let rules = rules.compile()?;
    require_net_admin()?;
    choice::install(&mut ThisMachine, &rules, backend)
}

/// What differs between the rules and what is in force; nothing when all is well.
pub fn verify(rules: &Rules, backend: Backend) -> Result<Vec<Difference>, Error> {
    let rules = rules.compile()?;
    let of_nftables = || nftables::installed().map_err(Error::from);
    let of_iptables = || {
        require_net_admin()?;
        iptables::installed().map_err(Error::Iptables)
    };
    let against_nftables = |found: &[Line]| verify::compare(&nftables::expected(&rules), found);
    let against_iptables =
        |found: &[Line]| verify::compare(&iptables::expected(&rules, found), found);
    match backend {
        Backend::Nftables => Ok(against_nftables(&of_nftables()?)),
        Backend::Iptables => Ok(against_iptables(&of_iptables()?)),
        Backend::Auto => match of_nftables() {
            Err(Error::NotPermitted) => Err(Error::NotPermitted),
            Ok(found) if !found.is_empty() => Ok(against_nftables(&found)),
            without_nftables => match (of_iptables(), without_nftables) {
                (Ok(found), _) if !found.is_empty() => Ok(against_iptables(&found)),
                // Neither holds anything of ours.
                (_, Ok(nothing)) => Ok(against_nftables(&nothing)),
                (Ok(nothing), Err(_)) => Ok(against_iptables(&nothing)),
                (Err(error), Err(_)) => Err(error),
            },
        },
    }
}

/// Removes our rules, whichever backend made them.
pub fn remove() -> Result<(), Error> {
    require_net_admin()?;
    nftables::remove_if_supported()?;
    iptables::remove().map_err(Error::Iptables)?;
    Ok(())
}

/// A line of the rules in force, in the words of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    chain: String,
    text: String,
    /// What it is and why it should be there; unknown for what was read back.
    meaning: Option<String>,
}

impl Line {
    /// The line that hooks a chain into the packets' way.
    fn chain(chain: String, text: String) -> Self {
        Self {
            chain,
            text,
            meaning: None,
        }
    }
}

impl From<netlink::Refused> for Error {
    fn from(refused: netlink::Refused) -> Self {
        match refused.source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted,
            _ => Self::Nftables {
                what: refused.what,
                source: refused.source,
            },
        }
    }
}

/// The programs report a missing capability in a dozen ways, so it is checked before they run.
fn require_net_admin() -> Result<(), Error> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match has_net_admin(&status) {
        // An unreadable status says nothing; the programs will.
        Some(false) => Err(Error::NotPermitted),
        Some(true) | None => Ok(()),
    }
}

fn has_net_admin(status: &str) -> Option<bool> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let bits = u64::from_str_radix(effective.trim(), 16).ok()?;
    Some(bits & CAP_NET_ADMIN != 0)
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables => f.write_str("nf_tables, table inet heddle"),
            Self::Iptables {
                programs,
                instead_of_nftables,
                without_ipv6,
            } => {
                write!(f, "{programs}")?;
                if let Some(error) = instead_of_nftables {
                    write!(f, ", because nf_tables refused: {error}")?;
                }
                if let Some(error) = without_ipv6 {
                    write!(
                        f,
                        "; no IPv6 rules, and no IPv6 address in this pod: {error}"
                    )?;
                }
                Ok(())
            }
        }
    }
}

/// `CAP_NET_ADMIN` of `capabilities(7)`.
const CAP_NET_ADMIN: u64 = 1 << 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_read_from_the_process_status() {
        assert_eq!(has_net_admin("CapEff:\t0000000000003000\n"), Some(true));
        assert_eq!(
            has_net_admin("Name:\tx\nCapEff:\t0000000000002000\n"),
            Some(false)
        );
        assert_eq!(has_net_admin("Name:\tx\n"), None);
    }
}
